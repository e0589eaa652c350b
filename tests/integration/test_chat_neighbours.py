"""The chat worker with its neighbours coming and going: the bank's interface, models, other workers, keys."""

import asyncio
from contextlib import asynccontextmanager

import httpx
from aiohttp import web

from infra.llm.convert import convert
from infra.llm.repository import Serving, write_embedded
from infra.local.triton import TritonServer
from tests.support.chat import (
    chat_under_test,
    message,
    opened,
    replied,
    reply_to,
    say,
)
from tests.support.pauses import until
from tests.support.payments import raw_records
from tests.support.tiny_llm import TinyLlm
from weir.clock import now_ms
from weir.codec.avro import FramedCodec
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, load_schema

KNOWN = "What does a replacement card cost?"


@asynccontextmanager
async def bank(port: int, *, hangs: bool = False):
    """The bank's interface, for one customer."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        if hangs:
            await asyncio.sleep(30)
        if request.path == "/customers/anna/balance":
            return web.json_response({"amount": "1204.50", "currency": "EUR"})
        payment = {"event_id": "paid-1", "account_id": "acc-1", "terminal_id": "shop", "currency": "EUR"}
        return web.json_response([payment | {"amount": "12.50", "time_ms": now_ms() - 86_400_000}])

    app = web.Application()
    app.router.add_get("/customers/{customer}/{what}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield asked
    finally:
        await runner.cleanup()


async def test_a_balance_and_a_dispute_go_by_the_banks_own_interface(
    tmp_path, kafka, keys, knowledge, unused_tcp_port
):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    with chat_under_test(tmp_path, kafka, keys, knowledge, bank_url=url) as chat:
        chat.start()
        async with bank(unused_tcp_port) as asked:
            told = await reply_to(chat, message("m1", "what is my balance?", account_id="acc-1"))
            assert told.text == "Your balance is 1,204.50 EUR."
            assert asked == ["/customers/anna/balance?account_id=acc-1"]
            assert "paid" not in (await reply_to(chat, message("m2", "show me my last payments"))).text
            assert (await reply_to(chat, message("m3", "dispute 1"))).outcome == "CONFIRM"
            assert (await reply_to(chat, message("m4", "yes"))).outcome == "DONE"
        (record,) = await raw_records(chat.kafka.bootstrap_servers, chat.topics.labels)
        registry = FileRegistry.read()
        schema = load_schema("label")
        codec = FramedCodec(schema, await registry.id_of(SUBJECTS["label"], schema), registry)
        label = await codec.decode(record.value)
        assert (label["event_id"], label["is_fraud"], label["source"]) == ("paid-1", True, "CUSTOMER")
        away = await reply_to(chat, message("m5", "what is my balance?", "other"))
        assert away.outcome == "HANDED_OVER"
        assert "anna" not in chat.log_text()


async def test_a_bank_that_hangs_costs_its_deadline_and_a_person(
    tmp_path, kafka, keys, knowledge, unused_tcp_port
):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    options = {"bank_url": url, "bank_deadline_s": 0.3}
    with chat_under_test(tmp_path, kafka, keys, knowledge, **options) as chat:
        chat.start()
        async with bank(unused_tcp_port, hangs=True):
            assert (await reply_to(chat, message("slow", "what is my balance?"))).outcome == "HANDED_OVER"


async def test_what_a_model_makes_up_is_not_shown_and_its_audit_says_why(
    tmp_path, kafka, keys, knowledge, start_triton
):
    model = TinyLlm(layers=1, vocabulary=31, seed=3, context=4096)
    convert(model.write(tmp_path / "model.gguf"), tmp_path / "made")
    write_embedded(tmp_path / "made", tmp_path / "repository", "llm", Serving(conversations_max=4))
    served = start_triton(tmp_path / "repository")
    folder = tmp_path / "worker"
    with chat_under_test(folder, kafka, keys, knowledge, served.endpoint, generate=True) as chat:
        chat.start()
        reply = await reply_to(chat, message("made-up", KNOWN))
        found = await opened(chat, chat.topics.chat_audit, "chat_audit", "analyst", "investigation")
    assert reply.outcome == "ANSWERED"
    assert {sentence.origin for sentence in reply.sentences} == {"passage"}
    assert reply.prompt_sha256
    assert not reply.degraded
    assert found[0]["flaw"]


async def test_without_triton_the_passage_answers_and_says_degraded(tmp_path, kafka, keys, knowledge):
    with chat_under_test(tmp_path, kafka, keys, knowledge, generate=True) as chat:
        chat.start()
        reply = await reply_to(chat, message("alone", KNOWN))
    assert (reply.outcome, reply.degraded, reply.degraded_reason) == ("ANSWERED", True, "model_unavailable")


async def test_a_model_server_that_dies_in_the_middle_of_answers_leaves_them_to_the_passages(
    tmp_path, kafka, keys, knowledge, start_triton
):
    model = TinyLlm(layers=2, vocabulary=31, seed=3, context=4096)
    convert(model.write(tmp_path / "model.gguf"), tmp_path / "made")
    write_embedded(tmp_path / "made", tmp_path / "repository", "llm", Serving(conversations_max=2))
    served = start_triton(tmp_path / "repository")
    folder = tmp_path / "worker"
    with chat_under_test(folder, kafka, keys, knowledge, served.endpoint, generate=True) as chat:
        chat.start()
        asked = [message(f"mid-{number}", KNOWN, f"mid-{number}") for number in range(24)]
        await say(chat, *asked)
        await until(lambda: under_way(served) > 0, "an answer is under way")
        served.kill()
        found = await replied(chat, *(each.event_id for each in asked))
        assert chat.health()["ready"]
    replies = [found[each.event_id][0] for each in asked]
    assert {reply.outcome for reply in replies} == {"ANSWERED"}
    assert {sentence.origin for reply in replies for sentence in reply.sentences} == {"passage"}
    assert "model_unavailable" in {reply.degraded_reason for reply in replies}


def under_way(served: TritonServer) -> float:
    lines = httpx.get(served.metrics_url).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("weir_llm_conversations"))


async def test_two_workers_share_the_conversations_and_one_goes_on_alone(tmp_path, kafka, keys, knowledge):
    with chat_under_test(tmp_path / "one", kafka, keys, knowledge) as first:
        second = first.another(tmp_path / "two")
        try:
            first.start()
            second.start()
            early = [message(f"early-{number}", KNOWN, f"talk-{number}") for number in range(40)]
            await say(first, *early)
            await replied(first, *(each.event_id for each in early))
            late = [message(f"late-{number}", KNOWN, f"talk-{number}") for number in range(40)]
            saying = asyncio.create_task(say(first, *late))
            assert await asyncio.to_thread(second.stop) == 0
            await saying
            found = await replied(first, *(each.event_id for each in late))
        finally:
            second.kill()
    assert all(len(found[each.event_id]) == 1 for each in (*early, *late))
    assert all(found[each.event_id][0].outcome == "ANSWERED" for each in late)


async def test_a_worker_whose_key_service_is_away_for_a_while_answers_afterwards(
    tmp_path, kafka, keys, knowledge
):
    with chat_under_test(tmp_path, kafka, keys, knowledge) as chat:
        chat.start()
        await reply_to(chat, message("before", KNOWN))
        keys.kill()
        try:
            await say(chat, message("during", KNOWN))
        finally:
            keys.start()
        (reply,) = (await replied(chat, "during"))["during"]
    assert reply.outcome == "ANSWERED"
