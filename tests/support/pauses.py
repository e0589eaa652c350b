"""How long a partition goes without a decision while workers come and go; also a table of it on its own.

python -m tests.support.pauses [ROUNDS] [GUARANTEE]
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count, pairwise
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.local.kafka import KafkaServer
from tests.support.servers import KafkaUnderTest, running_server

ROOT = Path(__file__).parents[2]
PARTITIONS = 8
TICK_S = 0.005
# The target's records are stamped by the broker: when a copy arrived, not when its original was made.
APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}


class Worker:
    """A copying worker's process, and what it says."""

    def __init__(self, log: Path, *args: object, module: str = "tests.support.copy_worker") -> None:
        self._log = log
        with log.open("wb") as out:
            command = [sys.executable, "-m", module, *map(str, args)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

    async def works(self) -> None:
        """Wait until it has taken a batch."""
        await until(lambda: b"TAKEN" in self._log.read_bytes(), "a worker's first batch", 90.0)

    async def end(self, how: signal.Signals) -> None:
        """Send the signal and wait for the process to end."""
        self.process.send_signal(how)
        await until(lambda: self.process.poll() is not None, "a worker's end")


StartWorker = Callable[..., Worker]


async def until(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    """Wait for a condition."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < deadline_s, f"{what}: not within {deadline_s} s"
        await asyncio.sleep(0.05)


class Load:
    """A record to each partition of a topic every few milliseconds, until it is stopped."""

    def __init__(self, servers: str, topic: str) -> None:
        self._servers, self._topic = servers, topic
        self.counts = dict.fromkeys(range(PARTITIONS), 0)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    async def __aenter__(self) -> "Load":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        # Not cancelled: what is counted and what is sent would differ by one.
        self._stopped = True
        await self._task

    def unlike(self, found: dict[int, list[bytes]]) -> dict[int, str]:
        """What is wrong with copies of what was sent, by partition; empty if they are whole and in order."""
        wrong = {}
        for partition, total in self.counts.items():
            sent = [b"%08d" % number for number in range(total)]
            if (copies := found[partition]) != sent:
                missing = sorted(set(sent) - set(copies))
                again = [value for value, times in Counter(copies).items() if times > 1]
                wrong[partition] = (
                    f"{len(missing)} missing {missing[:2]}, {len(again)} repeated {again[:2]}, "
                    f"{'in' if copies == sorted(copies) else 'out of'} order"
                )
        return wrong

    async def _run(self) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._servers, linger_ms=2) as producer:
            while not self._stopped:
                for partition in self.counts:
                    value = b"%08d" % self.counts[partition]
                    await producer.send(self._topic, value, partition=partition)
                    self.counts[partition] += 1
                await asyncio.sleep(TICK_S)


async def read(servers: str, topic: str) -> dict[int, list[tuple[int, bytes]]]:
    """Each partition's records so far: broker's time in ms, and value."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        found: dict[int, list[tuple[int, bytes]]] = {tp.partition: [] for tp in tps}
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found[tp.partition] += [(record.timestamp, record.value) for record in records]
        return found
    finally:
        await consumer.stop()


def longest_gaps(
    found: dict[int, list[tuple[int, bytes]]], since_ms: float, until_ms: float
) -> dict[int, int]:
    """Per partition the longest time between two records, ms, of those from `since_ms` to `until_ms`."""
    gaps = {}
    for partition, records in found.items():
        stamps = [stamp for stamp, _ in records if stamp <= until_ms]
        gaps[partition] = max([after - before for before, after in pairwise(stamps) if after >= since_ms])
    return gaps


async def all_copied(servers: str, target: str, counts: dict[int, int], deadline_s: float) -> None:
    """Wait until each partition's last record so far has been copied, where a reader sees it."""
    begun = time.monotonic()
    last = {partition: b"%08d" % (sent - 1) for partition, sent in counts.items() if sent}
    while True:
        seen = await read(servers, target)
        if all(any(value >= last[partition] for _, value in seen[partition][-500:]) for partition in last):
            return
        assert time.monotonic() - begun < deadline_s, f"not all copied within {deadline_s} s"
        await asyncio.sleep(0.2)


async def watch(load: Load, servers: str, target: str, settle_s: float) -> float:
    """Let the load go on for `settle_s` and be copied; the time until then, ms since the epoch."""
    await asyncio.sleep(settle_s)
    await all_copied(servers, target, dict(load.counts), 30.0)
    return time.time() * 1000


def row(what: str, gaps: dict[int, int]) -> str:
    """One line of the table: what happened, and each partition's longest gap, ms, ascending."""
    return f"{what:<28}" + "".join(f"{gap:7}" for gap in sorted(gaps.values()))


async def measure(kafka: KafkaUnderTest, start: StartWorker, rounds: int, guarantee: str) -> None:
    """Print a table: two workers, a third joins, leaves, joins, is killed."""
    servers, source = kafka.bootstrap_servers, kafka.make_topic(partitions=PARTITIONS)
    target = kafka.make_topic("copies", PARTITIONS, APPEND_TIME)

    async def show(what: str, settle_s: float) -> None:
        nonlocal since_ms
        until_ms = await watch(load, servers, target, settle_s)
        print(row(what, longest_gaps(await read(servers, target), since_ms, until_ms)), flush=True)
        since_ms = until_ms

    command = (servers, source, source, target, 0, -1, guarantee)
    async with Load(servers, source) as load:
        stay = [start(*command) for _ in range(2)]
        for worker in stay:
            await worker.works()
        since_ms = await watch(load, servers, target, 2.0)
        for _ in range(rounds):
            await show("nothing happens", 5.0)
            for what in (signal.SIGTERM, signal.SIGKILL):
                third = start(*command)
                await third.works()
                await show("a third joins", 2.0)
                await third.end(what)
                await show("it leaves" if what == signal.SIGTERM else "it is killed", 8.0)


def main() -> None:
    """Run a broker, workers and a load, and print the table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-pauses-")))
        numbers = count()

        def start(*args: object) -> Worker:
            worker = Worker(folder / f"worker-{next(numbers)}.log", *args)
            stack.callback(worker.process.kill)
            return worker

        server = stack.enter_context(running_server(KafkaServer(folder / "data", folder / "kafka.log")))
        rounds, guarantee, *_ = [*sys.argv[1:], *["2", "exactly_once"][len(sys.argv) - 1 :]]
        asyncio.run(measure(KafkaUnderTest(server), start, int(rounds), guarantee))


if __name__ == "__main__":
    main()
