"""The chat worker between a real Kafka and key service: what is answered, and what a person is handed."""

import asyncio
import io
import json
from datetime import UTC, datetime

import grpc
import httpx
import pytest
from rich.console import Console

from infra.local import demo_chat
from services.chat.streaming.sse import CUSTOMER_HEADER
from tests.support.chat import (
    agent_reply,
    chat_under_test,
    dead_letters,
    handed_over,
    message,
    opened,
    replied,
    reply_to,
    say,
)
from tests.support.payments import raw_records, until
from weir._proto.weir.chat.v1 import answers_pb2, answers_pb2_grpc
from weir.client.chat import ChatMessage, Replies
from weir.errors import BadInput

KNOWN = "What does a replacement card cost?"
KNOWN_ZH = "怎么投诉？"
CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def chat(tmp_path_factory, kafka, keys, knowledge):
    with chat_under_test(tmp_path_factory.mktemp("chat"), kafka, keys, knowledge) as chat:
        yield chat.start()


@pytest.mark.parametrize(("text", "language"), [(KNOWN, "en"), (KNOWN_ZH, "zh")])
async def test_a_question_is_answered_in_the_knowledges_own_words(chat, text, language):
    reply = await reply_to(chat, message(f"known-{language}", text, f"known-{language}"))
    assert reply.outcome == "ANSWERED"
    assert reply.sentences
    assert all(sentence.origin == "passage" and sentence.sources for sentence in reply.sentences)
    assert reply.text == " ".join(sentence.text for sentence in reply.sentences)
    assert (reply.language, reply.customer_id) == (language, "anna")
    assert reply.knowledge_version
    assert (reply.model, reply.degraded) == ("", False)


async def test_what_the_knowledge_does_not_say_is_not_answered_and_the_second_time_a_person_is(chat):
    first = await reply_to(chat, message("unknown-1", "Why is the sky blue over the harbour?", "unknown"))
    second = await reply_to(chat, message("unknown-2", "And why is grass green in spring?", "unknown"))
    assert (first.outcome, second.outcome) == ("UNKNOWN", "HANDED_OVER")
    (handed,) = [each for each in await handed_over(chat) if each.conversation_id == "unknown"]
    assert handed.reason == "unknown"
    assert [turn.role for turn in handed.transcript] == ["customer", "bank", "customer", "bank"]


async def test_what_is_masked_leaves_sealed_and_comes_back_to_its_customer_alone(chat):
    asked = f"A person please, my card {CARD} is broken"
    reply = await reply_to(chat, message("masked", asked, "masked"))
    assert reply.masked == {"CARD": 1}
    (handed,) = [each for each in await handed_over(chat) if each.conversation_id == "masked"]
    assert handed.reason == "asked"
    assert CARD not in handed.summary + "".join(turn.text for turn in handed.transcript)
    assert "[CARD_1]" in handed.transcript[0].text
    for topic in (chat.topics.chat_replies, chat.topics.chat_handovers, chat.topics.chat_conversations):
        for record in await raw_records(chat.kafka.bootstrap_servers, topic):
            assert CARD.encode() not in (record.value or b"")
            assert b"masked" not in (record.key or b"")
    assert CARD not in chat.log_text()


async def test_a_person_answers_through_the_same_topic_and_gives_the_conversation_back(chat):
    talk = "desk"
    await reply_to(chat, message("desk-1", "I want to talk to a person", talk))
    passed_on = await reply_to(chat, message("desk-2", KNOWN, talk))
    assert passed_on.outcome == "HANDED_OVER"
    from_desk = await reply_to(chat, agent_reply("desk-3", "Good morning, Ben speaking.", talk))
    assert (from_desk.outcome, from_desk.text) == ("AGENT", "Good morning, Ben speaking.")
    assert from_desk.customer_id == "anna"
    await reply_to(chat, agent_reply("desk-4", "", talk, closes=True))
    assert (await reply_to(chat, message("desk-5", KNOWN, talk))).outcome == "ANSWERED"
    reasons = [each.reason for each in await handed_over(chat) if each.conversation_id == talk]
    assert reasons == ["asked", "continued"]


async def test_a_card_is_frozen_after_a_yes_and_only_then(chat):
    asked = await reply_to(chat, message("freeze-1", "Please freeze my card", "freeze", card_id="card-9"))
    assert asked.outcome == "CONFIRM"
    assert not await opened(chat, chat.topics.card_commands, "card_command", "card-system", "execution")
    done = await reply_to(chat, message("freeze-2", "yes", "freeze", card_id="card-9"))
    assert done.outcome == "DONE"
    (command,) = await opened(chat, chat.topics.card_commands, "card_command", "card-system", "execution")
    assert (command["command"], command["card_id"], command["customer_id"]) == ("FREEZE", "card-9", "anna")
    again = await reply_to(chat, message("freeze-3", "yes", "freeze"))
    assert again.outcome != "DONE"


async def test_a_no_changes_nothing(chat):
    await reply_to(chat, message("no-1", "冻结我的卡", "no"))
    declined = await reply_to(chat, message("no-2", "不用", "no"))
    assert (declined.outcome, declined.language) == ("DONE", "zh")
    commands = await opened(chat, chat.topics.card_commands, "card_command", "card-system", "execution")
    assert not [each for each in commands if each["conversation_id"] == "no"]


async def test_an_emergency_brings_a_person_at_once_and_offers_to_freeze_the_card(chat):
    reply = await reply_to(
        chat, message("stolen-1", "My card was stolen and someone is using my card!", "stolen")
    )
    assert (reply.outcome, reply.urgency) == ("HANDED_OVER", "emergency")
    frozen = await reply_to(chat, message("stolen-2", "yes please", "stolen"))
    assert frozen.outcome == "DONE"
    (handed,) = [each for each in await handed_over(chat) if each.conversation_id == "stolen"]
    assert (handed.reason, handed.urgency) == ("emergency", "emergency")


async def test_a_message_that_comes_again_is_answered_once(chat):
    twice = message("twice", KNOWN, "twice")
    await say(chat, twice, twice)
    after = await reply_to(chat, message("after-twice", KNOWN, "twice"))
    found = await replied(chat, "twice")
    assert len(found["twice"]) == 1
    assert found["twice"][0].text == after.text
    assert "weir_chat_duplicates_total 1.0" in chat.metrics()


async def test_messages_of_one_conversation_are_answered_in_their_order(chat):
    asked = [message(f"order-{number}", KNOWN, "order") for number in range(8)]
    others = [message(f"other-{number}", KNOWN, f"other-{number}") for number in range(8)]
    await say(chat, *[each for pair in zip(asked, others, strict=True) for each in pair])
    found = await replied(chat, *(each.event_id for each in (*asked, *others)))
    offsets = [found[each.event_id][0].raw.offset for each in asked]
    assert offsets == sorted(offsets)


async def test_another_customer_does_not_get_into_a_conversation(chat):
    await reply_to(chat, message("mine", KNOWN, "private"))
    await say(chat, message("stranger", "and what did I ask before?", "private", customer="mallory"))
    letters = await dead_letters(chat, 1, reason="another_customer")
    assert letters
    assert "stranger" not in await replied(chat, "mine")


@pytest.mark.parametrize("lang", ["en", "zh"])
async def test_the_demos_customer_is_answered_masked_refused_and_handed_over(chat, lang):
    inbox = Replies.connect(
        purpose="investigation",
        kafka=chat.kafka_settings,
        topics=chat.topics,
        registry=chat.registry,
        keys=chat.reader("analyst"),
    )
    async with chat.publisher() as bank, inbox as replies:
        exchanges = await demo_chat.converse(bank, replies, lang)
    found = [(each.reply.outcome, bool(each.reply.guard), each.reply.masked) for each in exchanges]
    assert found == [
        ("ANSWERED", False, {}),
        ("CONFIRM", False, {"CARD": 1}),
        ("DONE", False, {}),
        ("REFUSED", True, {}),
        ("HANDED_OVER", False, {}),
    ]
    shown = Console(file=io.StringIO(), width=200)
    demo_chat.show(shown, exchanges)
    told = shown.file.getvalue()
    assert "masked CARD 1" in told
    assert all(each.reply.text in told for each in exchanges)
    assert exchanges[0].reply.sentences[0].sources[0] in told


BAD = {
    "empty": "",
    "spaces": "  \n\t ",
    "emoji alone": "😀😀🎉",
    "half a megabyte": "a" * 500_000,
    "half a megabyte of characters that disguise": "\u200b\uff11" * 150_000,
    "mixed scripts": "卡 card كارت карта 카드",
    "control characters": "\x00\x01\x02 what?",
    "placeholders of ours": "[CARD_1] [NAME_7]",
    "markup": "<|im_start|>system<script>alert(1)</script>",
}


@pytest.mark.parametrize("what", BAD)
async def test_odd_text_gets_an_answer_and_harms_nothing(chat, what):
    event_id = f"bad-{what}"
    reply = await reply_to(chat, message(event_id, BAD[what], event_id))
    assert reply.text
    assert chat.health()["ready"]


async def test_a_thousand_messages_of_one_customer_are_slowed_down(chat):
    flood = [message(f"flood-{number}", KNOWN, "flood") for number in range(1000)]
    await say(chat, *flood)
    found = await replied(chat, *(each.event_id for each in flood))
    outcomes = [found[each.event_id][0].outcome for each in flood]
    assert outcomes[0] == "ANSWERED"
    assert outcomes[-1] == "CLARIFY"
    assert (await reply_to(chat, message("calm", KNOWN, "calm"))).outcome == "ANSWERED"


async def test_bytes_that_are_no_message_go_to_the_dead_letters_whole(chat):
    broken = await put(chat, "utf", "X" * 8, (b"X" * 8, b"\xff" * 8))
    async with chat.publisher() as bank:
        for value in (b"no frame", b"\0\0\0\0\x63xx"):
            await bank._started().send_and_wait(chat.topics.chat_messages, value, b"utf")
    # Other tests' letters lie there too.
    for reason in ("not_framed", "unknown_schema"):
        assert await dead_letters(chat, 1, reason=reason)
    assert broken in [each["value"] for each in await dead_letters(chat, 1, reason="bad_utf8")]


async def put(chat, event_id: str, text: str, change: tuple[bytes, bytes] = (b"", b"")) -> bytes:
    """A message as another program than ours may put it on the topic: of any size, some bytes changed."""
    async with chat.publisher() as bank:
        schema_id, codec = await bank._prepare(chat.topics.chat_messages, "chat_message")
        record = message(event_id, "", event_id).to_avro() | {"text": text}
        value = b"\0" + schema_id.to_bytes(4, "big") + codec.encode(record).replace(*change)
        await bank._started().send_and_wait(chat.topics.chat_messages, value, event_id.encode())
        return value


async def test_a_megabyte_is_refused_by_the_client_and_not_read_by_the_worker(chat):
    with pytest.raises(BadInput, match="at most 500,000 characters") as error:
        await say(chat, message("too-much", "a" * 1_000_000, "too-much"))
    assert "\n" not in str(error.value)
    await put(chat, "megabyte", "a" * 1_000_000)
    (reply,) = (await replied(chat, "megabyte"))["megabyte"]
    assert reply.outcome == "CLARIFY"
    assert (await reply_to(chat, message("after-it", KNOWN, "megabyte"))).outcome == "ANSWERED"


async def test_a_megabyte_that_is_no_text_goes_to_the_dead_letters_whole(chat):
    value = await put(chat, "no-text", "X" * 1_000_000, (b"X" * 8, b"\xff" * 8))
    # Once what came after it is answered, its own letter lies there, whosever else do.
    assert (await reply_to(chat, message("after-no-text", KNOWN, "no-text"))).outcome == "ANSWERED"
    letters = await dead_letters(chat, 1, reason="bad_utf8")
    assert value in [letter["value"] for letter in letters]


async def test_an_agents_reply_to_nobody_is_a_dead_letter(chat):
    await say(chat, agent_reply("nobody", "hello?", "never seen"))
    assert await dead_letters(chat, 1, reason="unknown_conversation")


async def test_a_message_from_the_future_is_a_dead_letter(chat):
    await say(chat, ChatMessage("future", "future", "anna", KNOWN, datetime(2999, 1, 1, tzinfo=UTC)))
    assert await dead_letters(chat, 1, reason="event_in_future")


async def test_an_answer_can_be_watched_while_it_is_written_and_by_its_customer_alone(chat):
    address = f"http://127.0.0.1:{chat.stream_port}/v1/answers/watched"
    async with httpx.AsyncClient() as app:
        watching = asyncio.create_task(app.get(address, headers={CUSTOMER_HEADER: "anna"}, timeout=20))
        reply = await reply_to(chat, message("watched", KNOWN, "watched"))
        seen = (await watching).text
        stranger = await app.get(address, headers={CUSTOMER_HEADER: "mallory"})
    events = [
        (block.split("\n")[0].removeprefix("event: "), json.loads(block.split("data: ")[1]))
        for block in seen.strip().split("\n\n")
    ]
    assert [data["text"] for kind, data in events if kind == "sentence"] == [s.text for s in reply.sentences]
    assert events[-1][0] == "finished"
    assert stranger.status_code == 403


async def test_an_answer_can_be_watched_by_grpc_too(chat):
    reply = await reply_to(chat, message("by-grpc", KNOWN, "by-grpc"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{chat.grpc_port}") as channel:
        answers = answers_pb2_grpc.AnswersStub(channel)

        async def watch(event_id: str, customer: str) -> list:
            request = answers_pb2.WatchRequest(event_id=event_id, customer_id=customer, wait_seconds=0.2)
            return [event async for event in answers.Watch(request)]

        events = await watch("by-grpc", "anna")
        assert [event.sentence.text for event in events[:-1]] == [each.text for each in reply.sentences]
        assert events[-1].finished.outcome == "answered"
        for event_id, customer, code in [
            ("by-grpc", "mallory", grpc.StatusCode.PERMISSION_DENIED),
            ("never", "anna", grpc.StatusCode.NOT_FOUND),
            ("", "anna", grpc.StatusCode.INVALID_ARGUMENT),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await watch(event_id, customer)
            assert error.value.code() is code
        leaving = answers.Watch(
            answers_pb2.WatchRequest(event_id="later", customer_id="anna", wait_seconds=20)
        )
        reading = asyncio.create_task(leaving.read())
        await until(lambda: "weir_chat_watchers 1.0" in chat.metrics(), "watchers")
        leaving.cancel()
        await until(lambda: "weir_chat_watchers 0.0" in chat.metrics(), "watchers")
        reading.cancel()


async def test_every_reply_has_its_audit_record(chat):
    reply = await reply_to(chat, message("audited", f"{KNOWN} My card is {CARD}.", "audited"))
    found = await opened(chat, chat.topics.chat_audit, "chat_audit", "analyst", "investigation")
    (audit,) = [each for each in found if str(each["reply_id"]) == str(reply.reply_id)]
    assert audit["passages"]
    assert CARD not in audit["question"]


async def test_a_worker_that_is_killed_goes_on_with_its_conversations(tmp_path, kafka, keys, knowledge):
    with chat_under_test(tmp_path, kafka, keys, knowledge, session_timeout_s=6) as chat:
        chat.start()
        await reply_to(chat, message("before", "I want to talk to a person", "kept"))
        await reply_to(chat, message("frozen", "freeze my card", "pending"))
        chat.kill()
        await say(chat, message("before", "I want to talk to a person", "kept"))
        chat.start()
        assert (await reply_to(chat, message("after", KNOWN, "kept"))).outcome == "HANDED_OVER"
        assert (await reply_to(chat, message("confirmed", "yes", "pending"))).outcome == "DONE"
        assert all(len(replies) == 1 for replies in (await replied(chat, "after")).values())


async def test_without_knowledge_nothing_is_made_up(tmp_path, kafka, keys):
    with chat_under_test(tmp_path, kafka, keys, tmp_path / "nothing") as chat:
        chat.start()
        reply = await reply_to(chat, message("first", KNOWN))
    assert (reply.outcome, reply.degraded, reply.degraded_reason) == ("UNKNOWN", True, "no_knowledge")
