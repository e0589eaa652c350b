"""Turns side by side: one at a time in a conversation; whoever writes again waits, others do not."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from services.chat.conversation import Conversation, Conversations, Said
from services.chat.domain import MaskedText, Understanding
from services.chat.metrics import ChatMetrics
from services.chat.processor import NOT_ANSWERED, ChatProcessor
from services.chat.reading import Refused
from services.chat.streaming.live import LiveAnswers
from services.chat.turn.values import Message, Outcome, Trail, Turned
from tests.support.pauses import until
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics

NOW_MS = 1_800_000_000_000


class Answers:
    """Answers what it is let to; notes what each message found."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.found: dict[str, int] = {}
        self.let: dict[str, asyncio.Event] = {}

    async def __call__(self, message: Message, before: Conversation, show) -> Turned | None:
        self.begun.append(message.text)
        self.found[message.text] = len(before.turns)
        if message.text in self.let:
            await self.let[message.text].wait()
        if message.text == "broken":
            raise ZeroDivisionError("the text of a customer")
        after = before.said(message.event_id, {}, Said("customer", message.text, NOW_MS))
        after = msgspec.structs.replace(after, customer_id=message.customer_id)
        return Turned(after, Outcome.ANSWERED, (), Understanding("en", "", 0.0), Trail(masked=MaskedText("")))

    def agent(self, reply, before):
        raise AssertionError("no agent speaks here")


def processor(answers: Answers, turns_max: int = 8) -> ChatProcessor:
    metrics = Metrics("chat", CollectorRegistry())
    made = ChatProcessor(
        Conversations(100),
        lambda value: Message(value.decode(), value.decode()[0], "anna", value.decode(), NOW_MS),
        answers,
        None,
        None,
        LiveAnswers(lambda: 0.0, watchers_max=1),
        pseudonym=lambda raw: raw.hex().encode(),
        schemas=None,
        turns_max=turns_max,
        metrics=ChatMetrics(metrics),
        stream_metrics=StreamMetrics("chat", metrics.registry),
        now_ms=lambda: NOW_MS,
    )
    made.conversations.attach(0, {})
    made._positions["messages", 0] = 0
    return made


class Batch(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.values)


def group(*texts: str, first: int = 0) -> SimpleNamespace:
    """Messages of one partition; a text's first letter names its conversation."""
    values = [text.encode() for text in texts]
    batch = Batch(topic="messages", partition=0, values=values, offset_last=first + len(texts) - 1)
    return SimpleNamespace(batches=[batch])


async def test_who_writes_again_while_the_answer_is_written_waits_for_it_and_others_do_not():
    answers = Answers()
    answers.let = {"a first": asyncio.Event()}
    chat = processor(answers)
    slow = asyncio.create_task(chat.score(chat.read(1, group("a first", "b one"))))
    await until(lambda: len(answers.begun) == 2, "both have begun")
    # The next group is read while the first is being answered.
    again = asyncio.create_task(chat.score(chat.read(2, group("a again", "c other", first=2))))
    await until(lambda: "c other" in answers.begun, "another conversation goes on")
    assert "a again" not in answers.begun
    answers.let["a first"].set()
    works = [*await slow, *await again]
    assert [work.turned.outcome for work in works] == [Outcome.ANSWERED] * 4
    assert answers.found == {"a first": 0, "b one": 0, "a again": 1, "c other": 0}


async def test_who_waits_for_his_own_answer_takes_nobodys_place():
    answers = Answers()
    answers.let = {"a first": asyncio.Event()}
    chat = processor(answers, turns_max=2)
    waiting = [f"a {number}" for number in range(1000)]
    scoring = asyncio.create_task(chat.score(chat.read(1, group("a first", *waiting, "b one"))))
    await until(lambda: "b one" in answers.begun, "another conversation has its place")
    assert answers.begun == ["a first", "b one"]
    answers.let["a first"].set()
    await scoring
    assert [answers.found[text] for text in waiting[:3]] == [1, 2, 3]


async def test_a_turn_that_breaks_leaves_the_conversation_and_says_nothing_of_its_text(capsys):
    answers = Answers()
    chat = processor(answers)
    read = chat.read(1, group("b before", "broken", "b after"))
    before, broken, after = await chat.score(read)
    assert broken.record == NOT_ANSWERED
    assert isinstance(broken.record, Refused)
    assert answers.found["b after"] == answers.found["broken"] == 1
    assert after.turned is not None
    assert before.turned is not None
    assert "the text of a customer" not in capsys.readouterr().err


@pytest.mark.parametrize("again", [1, 2])
async def test_a_group_that_is_rolled_back_is_answered_again_from_what_stood_before(again):
    answers = Answers()
    chat = processor(answers)
    await chat.score(chat.read(1, group("a one")))
    await chat.score(chat.read(2, group("a two", first=1)))
    chat.roll_back(again)
    assert chat.position(("messages", 0)) == again - 1
    await chat.score(chat.read(again, group("a three", first=again - 1)))
    assert answers.found["a three"] == again - 1
