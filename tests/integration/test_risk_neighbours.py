"""A risk worker while its neighbours are away, its keys rotate, it is killed, or it is not alone."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.local import layout
from infra.local.ports import LOOPBACK, free_port
from infra.local.triton import TritonServer
from tests.support.keys import running_keys_service
from tests.support.payments import (
    Sent,
    dead_letters,
    decided,
    decisions,
    decisions_reader,
    now,
    pay,
    payment,
    raw_records,
    sample,
    send,
    settled,
    until,
)
from tests.support.risk import risk_under_test
from tests.support.scores import scored_here
from tests.support.servers import running_server
from weir.client.records import Outcome
from weir.crypto.client import KeyServiceClient
from weir.crypto.envelope import sealing_key_id
from weir.crypto.secret import Compartment

LOGIT_TOLERANCE = 1e-4
PACE_S = 0.05
CACHE_S = 2
QUIET_S = 1.5


@dataclass
class Stream:
    """Payments that go in, a few at a time on both partitions, for as long as a test needs."""

    risk: object
    name: str
    sent: list[str] = field(default_factory=list)
    ending: bool = False

    async def run(self) -> None:
        while not self.ending:
            await self.more()
            await asyncio.sleep(PACE_S)

    async def more(self, count: int = 10) -> None:
        for partition in (0, 1):
            records = [payment(f"{self.name}-{len(self.sent) + index}") for index in range(count)]
            await pay(self.risk, records, partition)
            self.sent += [each["event_id"] for each in records]


@asynccontextmanager
async def streaming(risk, name):
    """A stream that runs while the block does."""
    stream = Stream(risk, name)
    task = asyncio.create_task(stream.run())
    try:
        yield stream
    finally:
        # Not cancelled: what Kafka took must stand in `sent`.
        stream.ending = True
        await task


def decided_by(risk, basis):
    return sum(
        sample(risk.metrics(), f'weir_decisions_total{{basis="{basis}",outcome="{outcome}",service="risk"}}')
        for outcome in ("approve", "review", "decline")
    )


async def more_decided(risk, basis, count=20):
    before = await asyncio.to_thread(decided_by, risk, basis)
    await until(lambda: decided_by(risk, basis) >= before + count, f"{count} decisions more by {basis}")


def once_each(found, sent):
    assert {event: len(each) for event, each in found.items()} == dict.fromkeys(sent, 1)


def without_model(decision):
    """Whether a decision is degraded; then what a model would have said is missing, and nothing passes."""
    if not decision.degraded:
        assert None not in (decision.score, decision.probability, decision.logit, decision.base_logit)
        assert decision.model_name == "risk"
        return False
    assert (decision.score, decision.probability, decision.logit, decision.reasons) == (None, None, None, ())
    assert decision.degraded_reason in ("model_unavailable", "circuit_open")
    assert decision.model_name == "none"
    assert decision.outcome in (Outcome.REVIEW, Outcome.DECLINE)
    return True


# --- Triton ---


async def test_triton_killed_in_midstream_leaves_a_marked_decision_for_each_payment(
    tmp_path, kafka, keys, start_triton
):
    server = start_triton(layout.MODEL_SOURCES)
    with risk_under_test(
        tmp_path / "risk", kafka, keys, server.endpoint, commit_interval_s=0.2, score_deadline_ms=500
    ) as risk:
        await asyncio.to_thread(risk.start)
        async with streaming(risk, "triton") as stream:
            await more_decided(risk, "model")
            server.kill()
            await more_decided(risk, "degraded", 60)
            server.start()
            await asyncio.to_thread(server.wait_ready)
            await more_decided(risk, "model")
        found = await decided(risk)
        once_each(found, stream.sent)
        degraded = [event for event in stream.sent if without_model(found[event][0])]
        assert len(degraded) >= 60
        # Before, during, after: what came first and last has its model.
        assert stream.sent[0] not in degraded
        assert not set(stream.sent[-10:]) & set(degraded)
        assert await dead_letters(risk) == []


async def test_worker_starts_without_triton_and_asks_the_model_once_it_is_there(tmp_path, kafka, keys):
    port = free_port()
    with risk_under_test(
        tmp_path / "risk", kafka, keys, f"{LOOPBACK}:{port}", commit_interval_s=0.2, score_deadline_ms=500
    ) as risk:
        await asyncio.to_thread(risk.start)
        assert (risk.health()["ready"], risk.health()["model_ready"]) == (True, False)
        await pay(risk, [payment(f"alone-{index}") for index in range(10)])
        found = await decided(risk)
        once_each(found, [f"alone-{index}" for index in range(10)])
        assert all(without_model(each) for (each,) in found.values())
        server = TritonServer(
            layout.MODEL_SOURCES, tmp_path / "triton.log", staged=tmp_path / "models", grpc_port=port
        )
        with running_server(server):
            async with streaming(risk, "joined") as stream:
                await more_decided(risk, "model")
            await settled(risk)
            assert not without_model((await decided(risk))[stream.sent[-1]][0])


# --- keys ---


@pytest.fixture
def short(tmp_path, kafka, triton):
    """A worker whose keys may be kept for two seconds only."""
    with (
        running_keys_service(tmp_path / "keys", cache_seconds=CACHE_S) as keys,
        risk_under_test(tmp_path / "risk", kafka, keys, triton.endpoint, commit_interval_s=0.2) as risk,
    ):
        yield risk.start()


async def published(risk):
    """How many records the worker's output topics hold."""
    topics = (risk.topics.decisions, risk.topics.risk_dlq)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(risk.partitions)]
    async with AIOKafkaConsumer(bootstrap_servers=risk.kafka.bootstrap_servers) as consumer:
        return sum((await consumer.end_offsets(partitions)).values())


async def test_without_the_key_service_the_worker_waits_and_nothing_leaves_then_nothing_is_missing(short):
    risk = short
    first = [payment(f"with-keys-{index}") for index in range(20)]
    await pay(risk, first)
    await settled(risk)
    risk.keys.kill()
    expired_s = time.monotonic() + CACHE_S + 0.5
    await until(lambda: time.monotonic() > expired_s, "the held keys' time is over")
    before = await published(risk)
    waiting = [payment(f"without-keys-{index}") for index in range(20)]
    await pay(risk, waiting)
    await send(risk, [Sent(b"poison without keys")], risk.topics.transactions)
    await until(lambda: risk.health()["groups_in_flight"] > 0, "the worker has read them")
    quiet_s = time.monotonic() + QUIET_S
    while time.monotonic() < quiet_s:
        assert await published(risk) == before
        await asyncio.sleep(PACE_S)
    assert risk.process.poll() is None
    assert "key_service_away" in risk.log_text()

    await asyncio.to_thread(risk.keys.start)
    found = await decided(risk)
    once_each(found, [each["event_id"] for each in (*first, *waiting)])
    (letter,) = await dead_letters(risk)
    assert letter.value == b"poison without keys"


async def test_data_key_rotates_under_load_and_both_epochs_are_read(short):
    risk = short
    topic = risk.topics.decisions
    admin = KeyServiceClient(risk.keys.settings("admin"))
    opened = []

    async def read():
        async with decisions_reader(risk) as reader:
            async for decision in reader:
                opened.append(decision.event_id)

    reading = asyncio.create_task(read())
    try:
        async with streaming(risk, "rotated") as stream:
            await until(lambda: len(opened) >= 20, "decisions are read")
            rotated = await admin.rotate(Compartment(topic, "C3"), 10)
            assert rotated.epoch == 2
            await until(
                lambda: f"{rotated.key_id:08x}" in risk.log_text(), "the worker seals with the new key"
            )
            count = len(opened)
            await until(lambda: len(opened) >= count + 100, "decisions are read on")
        await settled(risk)
        await until(lambda: len(opened) >= len(stream.sent) or reading.done(), "all are read")
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await admin.close()
    assert sorted(opened) == sorted(stream.sent)
    key_ids = [sealing_key_id(each.value) for each in await raw_records(risk.kafka.bootstrap_servers, topic)]
    assert len(set(key_ids)) == 2
    assert rotated.key_id in key_ids


# --- the worker itself ---


def history(name):
    """Payments of one account at one terminal, and one more that is scored on all of them."""
    moment = now() - timedelta(minutes=20)
    records = [
        payment(
            f"{name}-{index}",
            account_id=f"account of {name}",
            terminal_id=f"terminal of {name}",
            event_time=moment + timedelta(minutes=index),
        )
        for index in range(8)
    ]
    probe = payment(
        f"{name}-probe",
        account_id=f"account of {name}",
        terminal_id=f"terminal of {name}",
        event_time=moment + timedelta(minutes=10),
    )
    return records, probe


def assert_scored_on(decision, records, probe):
    """The probe's score is the one on its whole history, each payment counted once."""
    whole = float(scored_here([*records, probe])[0][-1])
    assert decision.logit == pytest.approx(whole, abs=LOGIT_TOLERANCE)
    # The test can tell: with half of them missing, or one twice, the score is another.
    for part in (records[4:], [], [records[-1], *records]):
        assert abs(whole - float(scored_here([*part, probe])[0][-1])) > 2 * LOGIT_TOLERANCE


async def test_killed_worker_leaves_a_decision_for_each_payment_and_finds_its_windows_again(
    tmp_path, kafka, keys, triton
):
    """Kill -9 while payments come in, restart, then ask for a score on what came before the kill."""
    with risk_under_test(tmp_path / "risk", kafka, keys, triton.endpoint, commit_interval_s=1.0) as risk:
        await asyncio.to_thread(risk.start)
        records, probe = history("remembered")
        await pay(risk, records[:4])
        # Committed: the next worker is not handed these again, it has to look for them.
        await settled(risk)
        async with streaming(risk, "killed") as stream:
            await more_decided(risk, "model", 60)
            await pay(risk, records[4:6])
            risk.kill()
            await pay(risk, records[6:])
            await stream.more(200)
            await asyncio.to_thread(risk.start)
        await pay(risk, [probe])
        found = await decided(risk)
        assert set(found) == {*stream.sent, *(each["event_id"] for each in records), probe["event_id"]}
        for each in found.values():
            # Published again at most once, and then under the same id.
            assert len(each) in (1, 2)
            assert len({decision.decision_id for decision in each}) == 1
        ids = Counter(each[0].decision_id for each in found.values())
        assert max(ids.values()) == 1
        assert_scored_on(found[probe["event_id"]][0], records, probe)


async def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_is_killed(
    tmp_path, kafka, keys, triton
):
    with (
        risk_under_test(tmp_path / "one", kafka, keys, triton.endpoint, commit_interval_s=0.2) as one,
        risk_under_test(tmp_path / "two", kafka, keys, triton.endpoint, commit_interval_s=0.2) as two,
    ):
        two.topics = one.topics
        await asyncio.gather(asyncio.to_thread(one.start), asyncio.to_thread(two.start))
        workers = (one, two)
        await until(
            lambda: sorted(each.health().get("partitions", []) for each in workers) == [[0], [1]],
            "each worker has a partition",
        )
        (partition,) = two.health()["partitions"]
        records, probe = history("moved")
        await pay(one, records, partition)
        stream = Stream(one, "shared")
        await stream.more(50)
        await settled(one)
        assert min(decided_by(each, "model") for each in workers) >= 50

        two.kill()
        await stream.more(50)
        await pay(one, [probe], partition)
        found = await decided(one)
        assert one.health()["partitions"] == [0, 1]
        once_each(found, [*stream.sent, *(each["event_id"] for each in records), probe["event_id"]])
        assert_scored_on(found[probe["event_id"]][0], records, probe)


async def test_stop_under_load_decides_nothing_twice(tmp_path, kafka, keys, triton):
    """SIGTERM while payments come in: what was read is published and committed, the rest comes after."""
    with risk_under_test(tmp_path / "risk", kafka, keys, triton.endpoint, commit_interval_s=5.0) as risk:
        await asyncio.to_thread(risk.start)
        async with streaming(risk, "stopped") as stream:
            await more_decided(risk, "model", 60)
            assert await asyncio.to_thread(risk.stop) == 0
            await asyncio.to_thread(risk.start)
            await more_decided(risk, "model", 20)
        once_each(await decided(risk), stream.sent)
        assert "Traceback" not in risk.log_text()
        assert len(await decisions(risk)) == len(stream.sent)
