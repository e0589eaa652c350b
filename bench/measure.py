"""Watching a worker from outside: how fast its target topic grows, at what CPU and memory."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from aiokafka import AIOKafkaConsumer

from weir.streams.history import partitions as partitions_of

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Cost:
    """What a worker did between its first result and its last."""

    events: int
    seconds: float
    cpu_s: float
    rss_mb: float

    @property
    def events_s(self) -> float:
        """Results a second."""
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """Worker CPU for each result, in microseconds."""
        return self.cpu_s / self.events * 1e6


def _cpu_s(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


async def watch(servers: str, topic: str, goal: int, pids: Sequence[int], deadline_s: float) -> Cost:
    """The cost of growing `topic` by `goal` records, from the moment its first record is seen.

    Raises:
        TimeoutError: the goal was not reached in time.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    await consumer.start()
    try:
        partitions = await partitions_of(consumer, topic)
        begun_s = time.monotonic()
        first: tuple[float, float, int] | None = None
        rss = 0
        while time.monotonic() - begun_s < deadline_s:
            count = sum((await consumer.end_offsets(partitions)).values())
            now_s = time.monotonic()
            if count and first is None:
                first = (now_s, _cpu_s(pids), count)
            if first is not None:
                rss = max(rss, sum(psutil.Process(pid).memory_info().rss for pid in pids))
            if count >= goal and first is not None:
                return Cost(count - first[2], now_s - first[0], _cpu_s(pids) - first[1], rss / 2**20)
            await asyncio.sleep(_POLL_S)
        raise TimeoutError(f"{topic} did not reach {goal} records in {deadline_s:.0f} s")
    finally:
        await consumer.stop()
