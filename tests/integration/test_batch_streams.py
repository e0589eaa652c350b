"""The batch transport against a real broker: nothing is lost, offsets are honest, workers come and go."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.servers import KafkaUnderTest
from weir.config import KafkaSettings
from weir.errors import MissingPart
from weir.streams.history import end_offsets, partition_counts, partitions, read_until
from weir.streams.side_input import SideInput

DEADLINE_S = 45.0
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def start(servers: str, group: str, source: str, target: str, *more: int) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"worker-{len(running)}.log").open("wb")
        command = [sys.executable, "-m", "tests.support.copy_worker", servers, group, source, target]
        process = subprocess.Popen(
            [*command, *map(str, more)], stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2]
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


async def publish(servers: str, topic: str, values: list[bytes], **options: object) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=5, **options) as producer:
        for value in values:
            await producer.send(topic, value, key=value)


async def read_all(servers: str, topic: str) -> dict[int, list[bytes]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        tps = await partitions(consumer, topic)
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        found: dict[int, list[bytes]] = {tp.partition: [] for tp in tps}
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found[tp.partition] += [record.value for record in records]
        return found
    finally:
        await consumer.stop()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < DEADLINE_S, f"{what}: not within {DEADLINE_S} s"
        await asyncio.sleep(0.1)


async def copied(servers: str, topic: str, count: int) -> bool:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    await consumer.start()
    try:
        tps = await partitions(consumer, topic)
        return sum((await consumer.end_offsets(tps)).values()) >= count
    finally:
        await consumer.stop()


async def committed(servers: str, group: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        return sum(
            max(found.offset, 0) for found in (await admin.list_consumer_group_offsets(group)).values()
        )
    finally:
        await admin.close()


def numbered(count: int) -> list[bytes]:
    return [b"%06d" % number for number in range(count)]


async def test_a_batch_topic_is_copied_whole_in_order_and_committed_to_its_end(
    kafka: KafkaUnderTest, start_worker: Start
):
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=3),
        kafka.make_topic(partitions=3),
    )
    await publish(servers, source, numbered(5000))
    worker = start_worker(servers, source, source, target)
    await until(lambda: copied(servers, target, 5000), "copy")
    assert await read_all(servers, target) == await read_all(servers, source)
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    assert await committed(servers, source) == 5000


async def test_offsets_with_holes_are_committed_past_the_holes(kafka: KafkaUnderTest, start_worker: Start):
    """Transaction markers and aborted records leave holes; a restarted worker copies nothing twice."""
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=1),
        kafka.make_topic(partitions=1),
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers, transactional_id=f"{source}-bank")
    async with producer:
        for number in range(20):
            await producer.begin_transaction()
            await producer.send_and_wait(source, b"%d" % number)
            await (producer.abort_transaction if number % 3 == 0 else producer.commit_transaction)()
    expected = [b"%d" % number for number in range(20) if number % 3]
    worker = start_worker(servers, source, source, target)
    await until(lambda: copied(servers, target, len(expected)), "copy")
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    again = start_worker(servers, source, source, target)
    await publish(servers, source, [b"last"])
    await until(lambda: copied(servers, target, len(expected) + 1), "the record after the restart")
    again.send_signal(signal.SIGTERM)
    again.wait(20)
    assert await read_all(servers, target) == {0: [*expected, b"last"]}


async def test_nothing_is_lost_when_workers_are_killed_and_join_under_load(
    kafka: KafkaUnderTest, start_worker: Start
):
    """At least once: after kill -9 and two rebalances each record is there, in order at its first place."""
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=4),
        kafka.make_topic(partitions=4),
    )
    await publish(servers, source, numbered(6000))
    first = start_worker(servers, source, source, target, 20)
    await until(lambda: copied(servers, target, 1000), "the first thousand")
    second = start_worker(servers, source, source, target, 20)
    await until(lambda: copied(servers, target, 2500), "with two workers")
    first.kill()
    await publish(servers, source, [b"%06d" % number for number in range(6000, 8000)])
    third = start_worker(servers, source, source, target)
    expected = await read_all(servers, source)

    async def all_there() -> bool:
        found = await read_all(servers, target)
        return {p: list(dict.fromkeys(values)) for p, values in found.items()} == expected

    await until(all_there, "every record")
    counts = Counter(value for values in (await read_all(servers, target)).values() for value in values)
    assert len(counts) == 8000
    for worker in (second, third):
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
    assert await committed(servers, source) == 8000


async def test_a_graceful_stop_leaves_nothing_to_repeat(kafka: KafkaUnderTest, start_worker: Start):
    """SIGTERM in the middle: what is in flight is finished and committed, so nothing is copied twice."""
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=2),
        kafka.make_topic(partitions=2),
    )
    await publish(servers, source, numbered(5000))
    worker = start_worker(servers, source, source, target, 50)
    await until(lambda: copied(servers, target, 500), "a part")
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    rest = start_worker(servers, source, source, target)
    await until(lambda: copied(servers, target, 5000), "the rest")
    rest.send_signal(signal.SIGTERM)
    rest.wait(20)
    assert await read_all(servers, target) == await read_all(servers, source)


async def test_a_slow_agent_holds_back_the_fetching(
    kafka: KafkaUnderTest, start_worker: Start, tmp_path: Path
):
    """A stopped process aside, memory is bounded: batches wait at most in the declared number."""
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=1),
        kafka.make_topic(partitions=1),
    )
    nothing, nowhere = kafka.make_topic(partitions=1), kafka.make_topic(partitions=1)
    await publish(servers, nothing, [b"one record"])
    idle = start_worker(servers, nothing, nothing, nowhere)
    await until(lambda: copied(servers, nowhere, 1), "an idle worker")
    await publish(servers, source, [os.urandom(1000) for _ in range(20_000)])
    worker = start_worker(servers, source, source, target, 30)
    await until(lambda: copied(servers, target, 1500), "a part")
    more = (psutil.Process(worker.pid).memory_info().rss - psutil.Process(idle.pid).memory_info().rss) / 2**20
    taken = re.findall(rb"TAKEN \d+ \d+ (\d+)", (tmp_path / "worker-1.log").read_bytes())
    assert max(map(int, taken)) <= 500
    # 20 MB of values lie in the topic; the worker holds the waiting batches and aiokafka's one fetch.
    assert more < 40


async def test_after_a_seek_the_records_come_again_and_the_end_is_committed(
    kafka: KafkaUnderTest, start_worker: Start
):
    servers, source, target = (
        kafka.bootstrap_servers,
        kafka.make_topic(partitions=1),
        kafka.make_topic(partitions=1),
    )
    await publish(servers, source, numbered(3000))
    worker = start_worker(servers, source, source, target, 5, 1500)

    async def all_there() -> bool:
        found = (await read_all(servers, target))[0]
        return found.count(b"000000") == 2 and found[-1] == b"002999"

    await until(all_there, "the first record again, and the last one after it")
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    counts = Counter((await read_all(servers, target))[0])
    assert set(counts) == set(numbered(3000))
    assert counts[b"000000"] == 2
    assert await committed(servers, source) == 3000


async def test_a_missing_topic_is_one_clear_line(kafka: KafkaUnderTest):
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(MissingPart, match="has no topic no-such-topic"):
        await partition_counts(settings, ["no-such-topic"], "test")


async def test_history_ends_before_the_offset_it_is_told(kafka: KafkaUnderTest):
    servers, topic = kafka.bootstrap_servers, kafka.make_topic(partitions=1)
    await publish(servers, topic, numbered(1000))
    settings = KafkaSettings(bootstrap_servers=servers)
    seen = [
        value async for batch in read_until(settings, topic, {0: 700}, 0, "test") for value in batch.values
    ]
    assert seen == numbered(1000)[:700]


@contextlib.asynccontextmanager
async def following(feed: SideInput) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def taken_values(feed: SideInput) -> tuple[list[bytes | None], dict[int, int]]:
    batches, positions = feed.take()
    return [value for batch in batches for value in batch.values], positions


async def test_a_side_input_catches_up_goes_on_and_comes_again_once_rewound(
    kafka: KafkaUnderTest,
):
    servers, topic = kafka.bootstrap_servers, kafka.make_topic(partitions=2)
    await publish(servers, topic, numbered(100))
    ends = await end_offsets(KafkaSettings(bootstrap_servers=servers), topic, "test")
    feed = SideInput(KafkaSettings(bootstrap_servers=servers), topic, "test")
    async with following(feed):
        assert not feed.has_some
        feed.rewind({})
        await asyncio.wait_for(feed.reach(ends), DEADLINE_S)
        values, positions = taken_values(feed)
        assert (sorted(values), positions) == (numbered(100), ends)
        await publish(servers, topic, [b"more"])

        async def came() -> bool:
            return feed.has_some

        await until(came, "the live record")
        assert taken_values(feed)[0] == [b"more"]
        feed.rewind({**ends, 0: 0})
        assert not feed.has_some
        await asyncio.wait_for(feed.reach({0: ends[0]}), DEADLINE_S)
        again = taken_values(feed)[0]
        assert len([value for value in again if value != b"more"]) == ends[0]


async def test_a_side_input_that_nobody_takes_from_fetches_no_more(kafka: KafkaUnderTest):
    servers, topic = kafka.bootstrap_servers, kafka.make_topic(partitions=1)
    await publish(servers, topic, numbered(3000))
    feed = SideInput(KafkaSettings(bootstrap_servers=servers), topic, "test", rows_waiting_max=1000)
    feed.rewind({})
    seen: list[bytes | None] = []
    async with following(feed):
        for floor in (1000, 2000, 3000):
            await asyncio.wait_for(feed.reach({0: floor}), DEADLINE_S)
            values, _ = taken_values(feed)
            assert len(values) <= 2000
            seen += values
    assert seen == numbered(3000)
