"""A worker that is told to stop ends soon, whatever its group waits for; one that crashes holds nobody up."""

import asyncio
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from tests.support.pauses import APPEND_TIME, PARTITIONS, Load, Worker, all_copied, read, until, watch
from weir.streams.engine_app import AT_LEAST_ONCE, EXACTLY_ONCE

# The deadline of the hand-over, 10 s, that of the drain, and an end on a busy machine.
ENDS_WITHIN_S = 20.0
# A member that may take so long to join; its heart beats meanwhile.
REBALANCE_S = 60.0


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator:
    """Starts copying workers; what still runs at the end is killed."""
    workers: list[Worker] = []
    numbers = count()

    def start(*args: object, module: str = "tests.support.copy_worker") -> Worker:
        workers.append(Worker(tmp_path / f"worker-{next(numbers)}.log", *args, module=module))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def topics(kafka) -> tuple[str, str]:
    """Source and target; the source's name is the group's."""
    return kafka.make_topic("source", PARTITIONS), kafka.make_topic("copies", PARTITIONS, APPEND_TIME)


class HoldsOn(ConsumerRebalanceListener):
    """A member that does not let go: the group waits for it, for its heart beats."""

    def __init__(self) -> None:
        self.asked, self.may_go = asyncio.Event(), asyncio.Event()

    async def on_partitions_revoked(self, revoked) -> None:
        if revoked:
            self.asked.set()
            await self.may_go.wait()

    async def on_partitions_assigned(self, assigned) -> None:
        pass


async def ended_within(worker: Worker, deadline_s: float) -> float:
    """How long it took to end."""
    begun_s = time.monotonic()
    await until(lambda: worker.process.poll() is not None, "a worker's end", deadline_s)
    return time.monotonic() - begun_s


async def test_a_worker_ends_though_its_group_waits_for_a_member_that_does_not_join(
    kafka, start_worker, topics
):
    """The others wait in the middle of a join, and the broker answers nothing else on that connection."""
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, AT_LEAST_ONCE)
    listener = HoldsOn()
    other = AIOKafkaConsumer(
        bootstrap_servers=servers,
        group_id=source,
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        enable_auto_commit=False,
        heartbeat_interval_ms=500,
        rebalance_timeout_ms=int(REBALANCE_S * 1000),
    )
    async with Load(servers, source):
        worker = start_worker(*command)
        await worker.works()
        other.subscribe([source], listener=listener)
        await other.start()
        try:
            async with asyncio.timeout(30):
                while not other.assignment():
                    await other.getmany(timeout_ms=100)
            joining = start_worker(*command)
            async with asyncio.timeout(30):
                await listener.asked.wait()
            worker.process.send_signal(signal.SIGTERM)
            joining.process.send_signal(signal.SIGTERM)
            took = [await ended_within(each, ENDS_WITHIN_S) for each in (worker, joining)]
            print(f"ended after {took[0]:.1f} s, and {took[1]:.1f} s later")
            assert not listener.may_go.is_set()
        finally:
            listener.may_go.set()
            await other.stop()


async def test_a_worker_that_crashes_ends_soon_and_the_others_take_over(kafka, start_worker, topics):
    """Its thread waits for an answer that nobody gives any more; the group need not."""
    servers, (source, target) = kafka.bootstrap_servers, topics
    command = (servers, source, source, target, 0, -1, EXACTLY_ONCE)
    load = Load(servers, source)
    async with load:
        stays = start_worker(*command)
        crashes = start_worker(*command, module="tests.support.crashing_worker")
        await stays.works()
        await crashes.works()
        # In the middle of a rebalance, as when it happened.
        joins = start_worker(*command)
        await joins.works()
        crashes.process.send_signal(signal.SIGUSR2)
        took_s = await ended_within(crashes, ENDS_WITHIN_S)
        print(f"ended after {took_s:.1f} s")
        assert crashes.process.returncode != 0
        await watch(load, servers, target, 1.0)
    await all_copied(servers, target, load.counts, 60.0)
    found = await read(servers, target)
    copies = {partition: [value for _, value in records] for partition, records in found.items()}
    assert load.unlike(copies) == {}
