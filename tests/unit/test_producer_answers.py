"""What a producer makes of each answer that the brokers may give: every answer, every loss, scripted."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from weir.config import KafkaSettings
from weir.errors import AccessDenied
from weir.kafka import protocol
from weir.kafka._codes import FENCED, NOT_MEMBER, Code, name_of
from weir.kafka._waiting import Backoff
from weir.kafka.errors import (
    CommitUnknown,
    Fenced,
    NotMember,
    RecordTooLarge,
    Refused,
    TransactionAborted,
    Unavailable,
)
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.link import Link, Lost
from weir.kafka.producer import Stage, TransactionalProducer
from weir.kafka.protocol import GroupMember, Identity
from weir.streams.output import Output

SETTINGS = KafkaSettings(bootstrap_servers="nowhere:9092")
MEMBER = GroupMember("g", 3, "m", None)

LOST = "lost"
Answer = int | str | Callable[[], Any]


@dataclass
class Brokers:
    """Answers a producer's calls: a code, or LOST, as scripted by the call's name; else well."""

    script: dict[str, deque[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    versions: int = 2
    epoch: int = 0
    sent: list[tuple[str, Identity]] = field(default_factory=list)

    def will(self, name: str, *answers: Answer) -> None:
        self.script.setdefault(name, deque()).extend(answers)

    def calls(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked

    async def ask(self, node: int, call: protocol.Call[Any], *_: Any, **__: Any) -> Any:
        self.asked.append(call.name)
        await asyncio.sleep(0)
        scripted = self.script.get(call.name)
        answer = scripted.popleft() if scripted else 0
        if callable(answer):
            answer = await answer()
        if answer == LOST:
            raise Lost("KafkaConnectionError")
        return self._answer(call, answer)

    def _answer(self, call: protocol.Call[Any], code: int) -> Any:
        if call.name == "ApiVersions":
            return protocol.Features(0, {"transaction.version": self.versions})
        if call.name in ("InitProducerId", "EndTxn"):
            if not code and (call.name == "InitProducerId" or call.API_VERSION >= 5):
                self.epoch += 1
            return protocol.Identified(code, Identity(7, self.epoch))
        return _Everywhere(code)


class _Everywhere(dict[Any, int]):
    """One code for every partition that is asked about."""

    def __init__(self, code: int) -> None:
        self.code, self.worst, self.by_place = code, (("t", 0), code), self

    def get(self, *_: Any) -> int:
        return self.code


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    scripted = Brokers()

    async def nothing(*_: Any) -> None:
        return None

    async def node(*_: Any) -> int:
        return 1

    monkeypatch.setattr(Link, "start", nothing)
    monkeypatch.setattr(Link, "stop", nothing)
    monkeypatch.setattr(Link, "any_node", lambda self: 1)
    monkeypatch.setattr(Link, "leader", lambda self, place: 1)
    monkeypatch.setattr(Link, "find_leaders", nothing)
    monkeypatch.setattr(Link, "_coordinator", node)
    monkeypatch.setattr(Link, "ask", lambda self, *args, **kwargs: scripted.ask(*args, **kwargs))
    monkeypatch.setattr(Backoff, "_LOST_S", 0.001)
    return scripted


async def started(brokers: Brokers, version: int = 2, deadline_s: float = 5) -> TransactionalProducer:
    brokers.versions = version
    producer = TransactionalProducer(SETTINGS, transactional_id="id", client_id="test", deadline_s=deadline_s)
    await producer.start()
    assert producer.version == version
    brokers.calls()
    return producer


def output(topic: str = "t") -> Output:
    return Output(topic, 0, [None], [b"v"], [()], 0)


async def opened(brokers: Brokers, version: int = 2, deadline_s: float = 5) -> TransactionalProducer:
    producer = await started(brokers, version, deadline_s)
    await producer.produce([output()])
    await producer.send_offsets(MEMBER, {("in", 0): (1, "")})
    return producer


async def test_version_2_says_no_more_than_it_must(brokers: Brokers) -> None:
    producer = await opened(brokers)
    await producer.commit()
    assert brokers.calls() == ["Produce", "TxnOffsetCommit", "EndTxn"]
    assert producer.identity == Identity(7, 2)


async def test_version_1_adds_what_it_writes_to_once_a_transaction(brokers: Brokers) -> None:
    producer = await opened(brokers, version=1)
    await producer.produce([output()])
    await producer.send_offsets(MEMBER, {("in", 0): (2, "")})
    await producer.commit()
    first = ["AddPartitionsToTxn", "Produce", "AddOffsetsToTxn", "TxnOffsetCommit"]
    assert brokers.calls() == [*first, "Produce", "TxnOffsetCommit", "EndTxn"]
    await producer.produce([output()])
    assert brokers.calls() == first[:2]
    assert producer.identity == Identity(7, 1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_an_end_is_asked_for_until_it_is_known(brokers: Brokers, version: int, end: str) -> None:
    """Lost answers, a coordinator that moves, markers that are still being written."""
    producer = await opened(brokers, version)
    brokers.calls()
    brokers.will("EndTxn", LOST, Code.NOT_COORDINATOR, Code.CONCURRENT_TRANSACTIONS, LOST, 0)
    await getattr(producer, end)()
    # Of version 1 a late request could still end the next transaction: only a new epoch refuses it.
    assert brokers.calls() == ["EndTxn"] * 5 + ["InitProducerId"] * (version == 1)
    assert producer.stage is Stage.READY
    brokers.will("EndTxn", 0)
    await producer.produce([output()])
    await producer.commit()
    assert brokers.calls()[-1] == "EndTxn"


async def test_a_commit_in_doubt_stays_in_doubt_until_it_is_told(brokers: Brokers) -> None:
    """No abort, no next record; asking again is the only way on."""
    producer = await opened(brokers, deadline_s=0.05)
    brokers.will("EndTxn", *[LOST] * 1000)
    with pytest.raises(CommitUnknown, match="say whether it committed"):
        await producer.commit()
    brokers.calls()
    for refused in (
        producer.abort,
        lambda: producer.produce([output()]),
        lambda: producer.send_offsets(MEMBER, {("t", 0): (1, "")}),
    ):
        with pytest.raises(CommitUnknown):
            await refused()
    assert brokers.calls() == []
    brokers.script["EndTxn"].clear()
    await producer.commit()
    assert brokers.calls() == ["EndTxn"]
    assert producer.stage is Stage.READY


@pytest.mark.parametrize("code", sorted(FENCED))
@pytest.mark.parametrize("call", ["Produce", "TxnOffsetCommit", "EndTxn"])
async def test_fenced_by_any_answer_is_the_end(brokers: Brokers, code: Code, call: str) -> None:
    producer = await started(brokers)
    brokers.will(call, code)

    async def transaction() -> None:
        await producer.produce([output()])
        await producer.send_offsets(MEMBER, {("in", 0): (1, "")})
        await producer.commit()

    with pytest.raises(Fenced) as error:
        await transaction()
    assert not error.value.retriable
    brokers.calls()
    for refused in (producer.commit(), producer.abort(), producer.produce([output()])):
        with pytest.raises(Fenced):
            await refused
    assert brokers.calls() == []


@pytest.mark.parametrize("code", sorted(NOT_MEMBER))
async def test_a_transaction_without_its_refused_offsets_is_not_committed(
    brokers: Brokers, code: Code
) -> None:
    producer = await started(brokers)
    brokers.will("TxnOffsetCommit", code)
    with pytest.raises(NotMember, match=name_of(code)):
        await producer.send_offsets(MEMBER, {("in", 0): (1, "")})
    with pytest.raises(TransactionAborted):
        await producer.commit()
    brokers.calls()
    await producer.abort()
    assert brokers.calls() == ["EndTxn"]
    await producer.produce([output()])


async def test_offsets_that_were_refused_may_be_sent_again(brokers: Brokers) -> None:
    """In a rebalance the broker has the new generation an answer sooner than the worker."""
    producer = await started(brokers)
    brokers.will("TxnOffsetCommit", min(NOT_MEMBER))
    with pytest.raises(NotMember):
        await producer.send_offsets(MEMBER, {("in", 0): (1, "")})
    await producer.send_offsets(MEMBER, {("in", 0): (1, "")})
    brokers.calls()
    await producer.commit()
    assert brokers.calls() == ["EndTxn"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.OUT_OF_ORDER_SEQUENCE_NUMBER, TransactionAborted),
        (Code.INVALID_TXN_STATE, TransactionAborted),
        (Code.TRANSACTION_ABORTABLE, TransactionAborted),
        (Code.MESSAGE_TOO_LARGE, RecordTooLarge),
        (Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, AccessDenied),
        (Code.TOPIC_AUTHORIZATION_FAILED, AccessDenied),
        (87, Refused),
    ],
)
async def test_a_refused_batch_fails_the_transaction_and_no_other(
    brokers: Brokers, code: int, error: type[Exception]
) -> None:
    producer = await started(brokers)
    brokers.will("Produce", code)
    with pytest.raises(error):
        await producer.produce([output()])
    with pytest.raises(TransactionAborted):
        await producer.commit()
    await producer.abort()
    await producer.produce([output()])
    await producer.commit()


async def test_a_transaction_that_the_broker_has_ended_is_not_committed(brokers: Brokers) -> None:
    """Its state says so: nothing of ours is committed under it, and an abort clears the way."""
    producer = await opened(brokers)
    brokers.will("EndTxn", Code.INVALID_TXN_STATE)
    with pytest.raises(TransactionAborted, match="INVALID_TXN_STATE"):
        await producer.commit()
    await producer.abort()
    assert producer.stage is Stage.READY


async def test_an_abort_of_version_1_finds_nothing_open(brokers: Brokers) -> None:
    """What failed may never have come to the coordinator; a new epoch ends the doubt."""
    producer = await started(brokers, version=1, deadline_s=0.05)
    brokers.will("AddPartitionsToTxn", *[LOST] * 1000)
    with pytest.raises(Unavailable):
        await producer.produce([output()])
    brokers.calls()
    brokers.will("EndTxn", Code.INVALID_TXN_STATE)
    await producer.abort()
    assert brokers.calls() == ["EndTxn", "InitProducerId"]


async def test_another_that_took_the_id_in_the_doubt_is_not_fenced(brokers: Brokers) -> None:
    producer = await opened(brokers, version=1)
    brokers.will("EndTxn", LOST, 0)
    brokers.will("InitProducerId", Code.PRODUCER_FENCED)
    with pytest.raises(Fenced):
        await producer.commit()
    assert producer.stage is Stage.FENCED


async def test_an_abort_ends_the_calls_that_still_run(brokers: Brokers) -> None:
    """Their records would else be sent in the next transaction; who waits for them is told."""
    producer = await started(brokers)
    never = asyncio.Event()
    brokers.will("Produce", never.wait)
    call = asyncio.ensure_future(producer.produce([output()]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert brokers.asked
    await producer.abort()
    with pytest.raises(TransactionAborted, match="aborted meanwhile"):
        await call
    assert producer.stage is Stage.READY
    assert brokers.calls() == ["Produce", "EndTxn"]


@pytest.mark.parametrize("steps", range(4))
async def test_a_call_whose_caller_gave_up_cannot_be_committed(brokers: Brokers, steps: int) -> None:
    """However far it had come."""
    producer = await started(brokers)
    brokers.will("Produce", asyncio.Event().wait)
    call = asyncio.ensure_future(producer.produce([output()]))
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    if steps:
        with pytest.raises(TransactionAborted):
            await producer.commit()
        await producer.abort()
    assert producer.stage is Stage.READY


async def test_a_commit_waits_for_the_calls_that_still_run(brokers: Brokers) -> None:
    producer = await started(brokers)
    go = asyncio.Event()

    async def when_told() -> int:
        await go.wait()
        return 0

    brokers.will("Produce", when_told)
    call = asyncio.ensure_future(producer.produce([output()]))
    await asyncio.sleep(0)
    commit = asyncio.ensure_future(producer.commit())
    for _ in range(5):
        await asyncio.sleep(0)
    assert brokers.asked == ["Produce"]
    go.set()
    await asyncio.gather(call, commit)
    assert brokers.calls() == ["Produce", "EndTxn"]


async def test_a_batch_whose_answer_was_lost_is_known_by_its_number(brokers: Brokers) -> None:
    producer = await started(brokers)
    brokers.will("Produce", LOST, Code.NOT_LEADER_OR_FOLLOWER, Code.DUPLICATE_SEQUENCE_NUMBER)
    await producer.produce([output()])
    await producer.commit()
    assert brokers.calls() == ["Produce"] * 3 + ["EndTxn"]


async def test_nothing_works_before_the_start(brokers: Brokers) -> None:
    producer = TransactionalProducer(SETTINGS, transactional_id="id", client_id="test")
    for call in (producer.produce([output()]), producer.commit(), producer.abort()):
        with pytest.raises(RuntimeError, match="start"):
            await call
    await producer.start()
    with pytest.raises(RuntimeError, match="READY"):
        await producer.start()


async def test_an_idempotent_producer_begins_anew_once_nothing_is_on_its_way(brokers: Brokers) -> None:
    """A lost number spoils the id; what waits behind fails with it, and the next call has another id."""
    producer = IdempotentProducer(SETTINGS, client_id="test")
    await producer.start()
    brokers.calls()
    go = asyncio.Event()

    async def when_told() -> int:
        await go.wait()
        return 0

    brokers.will("Produce", when_told, Code.OUT_OF_ORDER_SEQUENCE_NUMBER)
    slow = asyncio.ensure_future(producer.produce([output("slow")]))
    await asyncio.sleep(0)
    results = await asyncio.gather(
        *(producer.produce([output("bad")]) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in results] == [Unavailable] * 3
    assert brokers.calls() == ["Produce"] * 2
    again = asyncio.ensure_future(producer.produce([output("bad")]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert brokers.calls() == []
    go.set()
    await asyncio.gather(slow, again)
    assert brokers.calls() == ["InitProducerId", "Produce"]
    await producer.stop()
