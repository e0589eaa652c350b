"""How each fault is done, and undone: one coroutine a kind, over the processes of a run."""

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import httpx
from aiokafka import AIOKafkaProducer

from infra.local.kafka import KafkaServer
from tests.faults.bank import Bank
from tests.faults.history import read
from tests.faults.schedule import Fault, Kind, Moment
from tests.support.cluster import Cluster, ClusterWorker, signal_server
from tests.support.proxy import ANY, CUT, HALF_OPEN, Link
from tests.support.shifted_clock import set_shift

MOMENT_DEADLINE_S = 1.0
READY_DEADLINE_S = 60.0
# A broker that the controller still shuts out by then is started again, as somebody on call would.
_SHUT_OUT_S = 45.0
_POLL_S = 0.02
_HOUR_S = 3600.0


class Run(Protocol):
    """What a fault can be done to."""

    cluster: Cluster
    workers: list[ClusterWorker]
    bank: Bank

    def worker(self, name: str) -> ClusterWorker:
        """The worker of this name."""

    def note(self, text: str) -> None:
        """Remember what happened, for the report."""

    def unwatched(self, name: str) -> AbstractContextManager[None]:
        """While it is entered, nobody starts the named broker again when it ends."""


Act = Callable[[Run, Fault, random.Random], Awaitable[None]]


async def act(run: Run, fault: Fault) -> None:
    """Do the fault now and undo it after its time; it has ended when this returns."""
    await ACTS[fault.kind](run, fault, random.Random(repr(fault)))


# --- workers ---


async def _worker_killed(run: Run, fault: Fault, draw: random.Random) -> None:
    worker = run.worker(fault.target)
    await _moment(worker, fault.moment)
    worker.kill()
    await asyncio.sleep(fault.seconds)
    worker.start(wait=False)


async def _worker_stopped(run: Run, fault: Fault, draw: random.Random) -> None:
    worker = run.worker(fault.target)
    await _moment(worker, fault.moment)
    worker.signal(signal.SIGSTOP)
    await asyncio.sleep(fault.seconds)
    worker.signal(signal.SIGCONT)


async def _worker_cut_off(run: Run, fault: Fault, draw: random.Random) -> None:
    await _moment(run.worker(fault.target), fault.moment)
    await _linked(run, fault, CUT, reset=fault.strength < 0.3)


async def _link_slow(run: Run, fault: Fault, draw: random.Random) -> None:
    await _linked(
        run, fault, Link(delay_s=0.02 + 0.3 * fault.strength, bytes_per_s=20_000 + 500_000 * draw.random())
    )


async def _link_half_open(run: Run, fault: Fault, draw: random.Random) -> None:
    await _moment(run.worker(fault.target), fault.moment)
    await _linked(run, fault, HALF_OPEN, reset=fault.strength < 0.5)


async def _worker_joins(run: Run, fault: Fault, draw: random.Random) -> None:
    """A worker more comes, decides for a while, and leaves in order."""
    worker = run.worker("spare")
    worker.start(wait=False)
    await _ready(worker)
    await asyncio.sleep(fault.seconds)
    await stop(run, worker)


async def _workers_restarted(run: Run, fault: Fault, draw: random.Random) -> None:
    """Each in turn, as a new version is brought out."""
    for worker in [each for each in run.workers if each.wanted]:
        await stop(run, worker)
        worker.start(wait=False)
        await _ready(worker)


async def _clock_jump(run: Run, fault: Fault, draw: random.Random) -> None:
    """The machine's clock is set: up to an hour ahead, or back; and right again after a while."""
    shift_s = (2 * fault.strength - 1) * _HOUR_S
    worker = run.worker(fault.target)
    run.note(f"the clock of {fault.target} is set by {shift_s:+.0f} s")
    set_shift(worker.clock_file, shift_s)
    await asyncio.sleep(fault.seconds)
    set_shift(worker.clock_file, 0.0)


async def _worker_disk_full(run: Run, fault: Fault, draw: random.Random) -> None:
    disk = run.worker(fault.target).disk
    assert disk is not None
    disk.fill()
    await asyncio.sleep(fault.seconds)
    disk.free()


async def _snapshot_flipped(run: Run, fault: Fault, draw: random.Random) -> None:
    """A bit of each file of the worker's folder changes while the worker is away."""
    worker = run.worker(fault.target)
    worker.kill()
    flipped = [each for each in files(worker.data_dir) if flip_bit(each, draw)]
    run.note(f"flipped a bit in {len(flipped)} files of {fault.target}")
    await asyncio.sleep(fault.seconds)
    worker.start(wait=False)


# --- the stream ---


async def _poison(run: Run, fault: Fault, draw: random.Random) -> None:
    for _ in range(2 + int(6 * fault.strength)):
        run.bank.poison(draw.randint(1, 3))
        await asyncio.sleep(fault.seconds / 4)


async def _changelog_flipped(run: Run, fault: Fault, draw: random.Random) -> None:
    """A changelog row is written again with one bit changed, and the workers must restore from there."""
    topic = getattr(run.workers[0].topics, "risk_accounts", None)
    if topic is None:
        run.note("there is no changelog to change")
        return
    servers = run.cluster.kafka.bootstrap_servers
    rows = [each for each in await read(servers, topic, committed=True) if each.value]
    if not rows:
        run.note("the changelog is still empty")
        return
    row = draw.choice(rows)
    value = bytearray(row.value)
    value[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
    async with AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True) as producer:
        await producer.send_and_wait(topic, bytes(value), row.key, partition=row.partition)
    run.note(f"flipped a bit of a changelog row of partition {row.partition}")
    for worker in [each for each in run.workers if each.wanted]:
        worker.kill()
        for file in files(worker.data_dir):
            file.unlink()
        worker.start(wait=False)


# --- neighbours ---


async def _triton_killed(run: Run, fault: Fault, draw: random.Random) -> None:
    server = run.cluster.triton
    server.kill()
    await asyncio.sleep(fault.seconds)
    server.start()
    await asyncio.to_thread(server.wait_ready, READY_DEADLINE_S)


async def _triton_stopped(run: Run, fault: Fault, draw: random.Random) -> None:
    signal_server(run.cluster.triton, signal.SIGSTOP)
    await asyncio.sleep(fault.seconds)
    signal_server(run.cluster.triton, signal.SIGCONT)


async def _keys_killed(run: Run, fault: Fault, draw: random.Random) -> None:
    run.cluster.keys.kill()
    await asyncio.sleep(fault.seconds)
    await asyncio.to_thread(run.cluster.keys.start)


# --- brokers ---


async def _broker_killed(run: Run, fault: Fault, draw: random.Random) -> None:
    await _broker_away(run, fault, lambda server: None)


async def _broker_unclean(run: Run, fault: Fault, draw: random.Random) -> None:
    """Killed, and its files are as a power cut leaves them: torn at the end, an index missing."""

    def damage(server: KafkaServer) -> None:
        torn = 0
        for segment in files(server.data_dir / "log"):
            # The cluster's own metadata is left alone: of it a single node has the only copy.
            if segment.parent.name.startswith("__cluster_metadata"):
                continue
            if segment.suffix == ".log" and segment.stat().st_size and draw.random() < 0.5:
                with segment.open("ab") as opened:
                    opened.write(draw.randbytes(draw.randint(1, 200)))
                torn += 1
            elif segment.suffix in (".index", ".timeindex") and draw.random() < 0.3:
                segment.unlink()
        run.note(f"{torn} segments of {fault.target} end in garbage")

    await _broker_away(run, fault, damage)


async def _broker_stopped(run: Run, fault: Fault, draw: random.Random) -> None:
    server = run.cluster.broker(fault.target).server
    signal_server(server, signal.SIGSTOP)
    await asyncio.sleep(fault.seconds)
    signal_server(server, signal.SIGCONT)


async def _broker_isolated(run: Run, fault: Fault, draw: random.Random) -> None:
    """The other brokers and it do not reach each other; clients reach them all."""
    broker, network = run.cluster.broker(fault.target), run.cluster.network
    others = [each for each in run.cluster.brokers if each is not broker]
    network.links(
        {(other.name, peer): CUT for other in others for peer in broker.peers}
        | {(broker.name, peer): CUT for other in others for peer in other.peers}
    )
    await asyncio.sleep(fault.seconds)
    for other in others:
        for peer in broker.peers:
            network.mend(other.name, peer)
    network.mend(broker.name)


async def _broker_disk_full(run: Run, fault: Fault, draw: random.Random) -> None:
    """No byte is left beneath the log; a broker that ends over it is started again once there is room."""
    broker = run.cluster.broker(fault.target)
    assert broker.disk is not None
    with run.unwatched(broker.name):
        broker.disk.fill()
        await asyncio.sleep(fault.seconds)
        broker.disk.free()
    if broker.server.pid is None:
        run.note(f"{broker.name} ended over its full disk")


async def _broker_clock_jump(run: Run, fault: Fault, draw: random.Random) -> None:
    """As a worker's: ahead, so that open transactions look old at once, or back; and right again."""
    broker = run.cluster.broker(fault.target)
    assert broker.clock_file is not None
    # An hour back and no more: what is stamped further ahead of a broker's clock it does not take.
    shift_s = (2 * fault.strength - 1) * 0.9 * _HOUR_S
    run.note(f"the clock of {fault.target} is set by {shift_s:+.0f} s")
    set_shift(broker.clock_file, shift_s)
    await asyncio.sleep(fault.seconds)  # as long as the schedule says
    set_shift(broker.clock_file, 0.0)


async def _rolling_restart(run: Run, fault: Fault, draw: random.Random) -> None:
    for broker in run.cluster.brokers:
        with run.unwatched(broker.name):
            await asyncio.to_thread(broker.server.stop, 30.0)
            broker.server.start()
        await whole(run.cluster, run.note)
        await asyncio.sleep(fault.seconds)


async def _broker_away(run: Run, fault: Fault, meanwhile: Callable[[KafkaServer], None]) -> None:
    broker = run.cluster.broker(fault.target)
    with run.unwatched(broker.name):
        broker.server.kill()
        meanwhile(broker.server)
        await asyncio.sleep(fault.seconds)
        broker.server.start()
    await asyncio.to_thread(broker.server.wait_ready, READY_DEADLINE_S)


# --- what several need ---


async def whole(cluster: Cluster, note: Callable[[str], None]) -> None:
    """Wait until every part answers; a broker that runs and is shut out for good is started again."""
    try:
        await asyncio.to_thread(cluster.wait_whole, _SHUT_OUT_S)
    except AssertionError as error:
        note(str(error))
        for broker in cluster.shut_out():
            note(f"{broker.name} runs and is shut out: started again")
            broker.server.kill()
            broker.server.start()
        await asyncio.to_thread(cluster.wait_whole)


async def _linked(run: Run, fault: Fault, link: Link, *, reset: bool = False) -> None:
    network = run.cluster.network
    network.link(fault.target, ANY, link)
    await asyncio.sleep(fault.seconds)
    network.mend(fault.target, ANY, reset=reset)


async def _moment(worker: ClusterWorker, moment: Moment) -> None:
    """Wait for the moment, a second at most: it need not come."""
    if moment is Moment.AT_ONCE or not worker.running:
        return
    ends_s = time.monotonic() + MOMENT_DEADLINE_S
    before = await asyncio.to_thread(_decided, worker)
    while time.monotonic() < ends_s:
        if moment is Moment.IN_FLIGHT:
            if (await asyncio.to_thread(worker.health)).get("groups_in_flight"):
                return
        elif await asyncio.to_thread(_decided, worker) > before:
            return
        await asyncio.sleep(_POLL_S)


def _decided(worker: ClusterWorker) -> float:
    try:
        metrics = worker.metrics()
    except httpx.TransportError:
        return 0.0
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("weir_decisions_total{")
    )


async def stop(run: Run, worker: ClusterWorker) -> None:
    """End a worker in order; one that cannot is killed, and that is noted."""
    if not worker.running:
        worker.wanted = False
        return
    try:
        code = await asyncio.to_thread(worker.stop)
    except subprocess.TimeoutExpired:
        # Its log then says what it waits for.
        worker.signal(signal.SIGUSR1)
        await asyncio.sleep(1.0)
        worker.kill()
        run.note(f"{worker.name} did not end when it was asked to")
        return
    # A worker that has just begun to start does not listen yet.
    if code not in (0, -signal.SIGTERM):
        run.note(f"{worker.name} ended with {code} when it was asked to")


async def _ready(worker: ClusterWorker) -> None:
    """Return once it decides; a worker that does not come up shows in what it leaves undecided."""
    ends_s = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < ends_s:
        if (await asyncio.to_thread(worker.health)).get("ready"):
            return
        await asyncio.sleep(_POLL_S * 5)


def files(folder: Path) -> Iterator[Path]:
    """Every file beneath the folder, in order."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def flip_bit(file: Path, draw: random.Random) -> bool:
    """Change one bit of the file; False when it is empty."""
    data = bytearray(file.read_bytes())
    if not data:
        return False
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    return True


ACTS: dict[Kind, Act] = {
    Kind.WORKER_KILLED: _worker_killed,
    Kind.WORKER_STOPPED: _worker_stopped,
    Kind.WORKER_CUT_OFF: _worker_cut_off,
    Kind.WORKER_JOINS: _worker_joins,
    Kind.WORKERS_RESTARTED: _workers_restarted,
    Kind.LINK_SLOW: _link_slow,
    Kind.LINK_HALF_OPEN: _link_half_open,
    Kind.CLOCK_JUMP: _clock_jump,
    Kind.WORKER_DISK_FULL: _worker_disk_full,
    Kind.SNAPSHOT_FLIPPED: _snapshot_flipped,
    Kind.CHANGELOG_FLIPPED: _changelog_flipped,
    Kind.POISON: _poison,
    Kind.TRITON_KILLED: _triton_killed,
    Kind.TRITON_STOPPED: _triton_stopped,
    Kind.KEYS_KILLED: _keys_killed,
    Kind.BROKER_KILLED: _broker_killed,
    Kind.BROKER_STOPPED: _broker_stopped,
    Kind.BROKER_UNCLEAN: _broker_unclean,
    Kind.BROKER_ISOLATED: _broker_isolated,
    Kind.BROKER_DISK_FULL: _broker_disk_full,
    Kind.BROKER_CLOCK_JUMP: _broker_clock_jump,
    Kind.ROLLING_RESTART: _rolling_restart,
}
