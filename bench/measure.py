"""Watching a worker from outside: how fast its target topic grows, at what CPU and memory."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from weir.streams.history import partitions as partitions_of

_POLL_S = 0.05
_COUNT_POLL_MS = 1000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a worker did between two moments: after its warming up, and at its last result."""

    events: int
    seconds: float
    cpu_s: float
    rss_mb: float
    beside_cpu_s: float = 0.0

    @property
    def events_s(self) -> float:
        """Results a second."""
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """Worker CPU for each result, in microseconds."""
        return self.cpu_s / self.events * 1e6

    @property
    def beside_us(self) -> float:
        """CPU for each result of what works for the worker (the model server), in microseconds."""
        return self.beside_cpu_s / self.events * 1e6

    @property
    def events_cpu_s(self) -> float:
        """Results for each second of CPU, the worker's and what works for it."""
        return self.events / (self.cpu_s + self.beside_cpu_s)


@dataclass(frozen=True, slots=True)
class Span:
    """What was seen at both ends of a measurement, before transactions' markers are taken out."""

    begin: Mapping[TopicPartition, int]
    end: Mapping[TopicPartition, int]
    seconds: float
    cpu_s: float
    rss_mb: float
    beside_cpu_s: float


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of the processes so far, all their threads."""
    total = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def peak_rss_mb(pids: Sequence[int]) -> float:
    """The most memory that was ever resident, summed over the processes, MiB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


async def watch(
    servers: str,
    topic: str,
    goal: int,
    pids: Sequence[int],
    *,
    warm: int,
    deadline_s: float,
    beside: Sequence[int] = (),
    check: Callable[[], None] = lambda: None,
) -> Span:
    """From the moment `topic` holds `warm` records, or any, until it holds `goal` records.

    Args:
        pids: of the worker; beside: of what works for it, such as the model server.
        check: called at each look; raises when it is of no use to wait on.
    Raises:
        TimeoutError: the goal was not reached in time.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    await consumer.start()
    try:
        partitions = await partitions_of(consumer, topic)
        begun_s = time.monotonic()
        first: tuple[float, float, float, Mapping[TopicPartition, int]] | None = None
        while time.monotonic() - begun_s < deadline_s:
            ends = await consumer.end_offsets(partitions)
            count, now_s = sum(ends.values()), time.monotonic()
            if first is None and count >= max(warm, 1):
                first = (now_s, cpu_s(pids), cpu_s(beside), ends)
            if first is not None and count >= goal:
                return Span(
                    first[3],
                    ends,
                    seconds=now_s - first[0],
                    cpu_s=cpu_s(pids) - first[1],
                    rss_mb=peak_rss_mb(pids),
                    beside_cpu_s=cpu_s(beside) - first[2],
                )
            check()
            await asyncio.sleep(_POLL_S)
        raise TimeoutError(f"{topic} did not reach {goal} records in {deadline_s:.0f} s")
    finally:
        await consumer.stop()


async def cost_of(servers: str, span: Span) -> Cost:
    """The cost, by the records that lie between the two moments; offsets alone would count markers too.

    Call it when the worker is gone: reading takes CPU from it.
    """
    count = await _records(servers, span.begin, span.end)
    return Cost(count, span.seconds, span.cpu_s, span.rss_mb, span.beside_cpu_s)


async def _records(
    servers: str, begin: Mapping[TopicPartition, int], end: Mapping[TopicPartition, int]
) -> int:
    left = {tp for tp in end if end[tp] > begin[tp]}
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, fetch_max_bytes=16 * 2**20)
    await consumer.start()
    count = 0
    try:
        consumer.assign(list(left))
        for tp in left:
            consumer.seek(tp, begin[tp])
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=_COUNT_POLL_MS)).items():
                count += sum(record.offset < end[tp] for record in records)
            # The position passes markers, which are no records.
            left = {tp for tp in left if await consumer.position(tp) < end[tp]}
        return count
    finally:
        await consumer.stop()
