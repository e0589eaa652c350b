"""Workers come, go, stop and die under load, with a real broker: what records and partitions meet."""

import asyncio
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from tests.support.pauses import (
    APPEND_TIME,
    PARTITIONS,
    Load,
    StartWorker,
    Worker,
    all_copied,
    longest_gaps,
    read,
    watch,
)
from tests.support.servers import KafkaUnderTest

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly_once", "at_least_once"
# The workers' session time-out: how long the group waits for a member that says nothing.
SESSION_S = 6.0


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts copying workers; what still runs at the end is killed."""
    workers: list[Worker] = []
    numbers = count()

    def start(*args: object) -> Worker:
        worker = Worker(tmp_path / f"worker-{next(numbers)}.log", *args)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def topics(kafka: KafkaUnderTest) -> tuple[str, str]:
    """Source and target; the source's name is the group's."""
    return kafka.make_topic("source", PARTITIONS), kafka.make_topic("copies", PARTITIONS, APPEND_TIME)


async def copies(load: Load, servers: str, target: str) -> dict[int, list[bytes]]:
    """What a reader sees once all that was sent has been copied."""
    await all_copied(servers, target, load.counts, 60.0)
    found = await read(servers, target)
    return {partition: [value for _, value in records] for partition, records in found.items()}


async def test_each_record_is_copied_once_and_in_order_while_workers_come_and_go(kafka, start_worker, topics):
    """Exactly once: two workers become four, one leaves, one is killed, one comes."""
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, EXACTLY_ONCE)
    load = Load(servers, source)
    async with load:
        first, second = start_worker(*command), start_worker(*command)
        await first.works()
        await second.works()
        third, fourth = start_worker(*command), start_worker(*command)
        await third.works()
        await fourth.works()
        await first.end(signal.SIGTERM)
        await watch(load, servers, target, 1.0)
        await second.end(signal.SIGKILL)
        await watch(load, servers, target, 1.0)
        await start_worker(*command).works()
        await watch(load, servers, target, 1.0)
    assert load.unlike(await copies(load, servers, target)) == {}


async def test_who_leaves_hands_over_and_nothing_is_repeated(kafka, start_worker, topics):
    """At least once repeats what was in flight; who is told to stop has nothing in flight when it goes."""
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, AT_LEAST_ONCE)
    load = Load(servers, source)
    async with load:
        workers = [start_worker(*command) for _ in range(3)]
        for worker in workers:
            await worker.works()
        await watch(load, servers, target, 1.0)
        before = {partition: len(found) for partition, found in (await read(servers, target)).items()}
        for worker in workers[:2]:
            await worker.end(signal.SIGTERM)
        await watch(load, servers, target, 1.0)
    for partition, found in (await copies(load, servers, target)).items():
        since = found[before[partition] :]
        assert len(since) == len(set(since))


async def test_deciding_goes_on_while_the_group_waits_for_a_member(kafka, start_worker, topics):
    """One member is stopped, another joins: the group waits for a session. The third reads on all the time.

    The stopped one wakes up a zombie: nothing that it still has in hand is seen.
    """
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, EXACTLY_ONCE)
    load = Load(servers, source)
    async with load:
        awake, stopped = start_worker(*command), start_worker(*command)
        await awake.works()
        await stopped.works()
        since_ms = await watch(load, servers, target, 2.0)
        begun = time.monotonic()
        stopped.process.send_signal(signal.SIGSTOP)
        joining = start_worker(*command)
        await joining.works()
        joined_s = time.monotonic() - begun
        until_ms = await watch(load, servers, target, 1.0)
        gaps = longest_gaps(await read(servers, target), since_ms, until_ms)
        stopped.process.send_signal(signal.SIGCONT)
        await watch(load, servers, target, 3.0)
    assert joined_s > SESSION_S / 2
    paused = [gap for gap in gaps.values() if gap > SESSION_S * 500]
    # The stopped member's partitions wait for the group; the other half does not.
    assert len(paused) == PARTITIONS // 2
    assert load.unlike(await copies(load, servers, target)) == {}


async def test_a_member_of_the_version_before_joins_and_leaves(kafka, start_worker, topics):
    """A rolling upgrade, and back: the group takes the protocol that all its members know."""
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, AT_LEAST_ONCE)
    load = Load(servers, source)
    async with load:
        await start_worker(*command).works()
        old = AIOKafkaConsumer(
            source,
            bootstrap_servers=servers,
            group_id=source,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            heartbeat_interval_ms=500,
        )
        await old.start()
        try:
            async with asyncio.timeout(30):
                while len(old.assignment()) != PARTITIONS // 2:
                    await old.getmany(timeout_ms=100)
        finally:
            # It has committed nothing: what it held is copied by the worker, from there on.
            await old.stop()
        await watch(load, servers, target, 1.0)
        await start_worker(*command).works()
        await watch(load, servers, target, 1.0)
    found = await copies(load, servers, target)
    assert load.unlike({partition: list(dict.fromkeys(values)) for partition, values in found.items()}) == {}
