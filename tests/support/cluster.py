"""A whole cluster that faults can be done to: brokers behind proxies, Triton, the key service, risk workers.

Each part is a process of its own. The cluster serves many tests; a test has topics and workers of its own.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infra.local import layout
from infra.local.kafka import KafkaNode, KafkaServer, brokers_known, new_cluster_id
from infra.local.pki import ROLES, ensure_pki
from infra.local.ports import is_free
from infra.local.process import dies_with_us
from infra.local.server import LocalServer
from infra.local.triton import TritonServer
from tests.support.disk import SmallDisk, can_mount, small_disk
from tests.support.keys import KeysProcess
from tests.support.proxy import Network
from tests.support.risk import RiskUnderTest
from tests.support.servers import READY_WITHIN_S, KafkaUnderTest, running_server
from tests.support.shifted_clock import (
    build_for_processes,
    can_shift_processes,
    environment,
    make_shift_file,
    set_shift,
)

BANK = "bank"
CLOCK = "tests.support.shifted_clock"
_BROKER_DISK_MB = 384
_WORKER_DISK_MB = 64
_POLL_S = 0.05
# Below what Linux takes for outgoing connections, 32768 and more.
_QUIET_PORTS = (20_000, 32_000)
# What a cluster that is broken all the time waits for, and what a machine in order would not notice.
_PROPERTIES = {
    "file.delete.delay.ms": "1000",
    "log.segment.delete.delay.ms": "1000",
    # A broker that is stopped in order says so first; without it the others wait for its session.
    "controlled.shutdown.enable": "true",
}


class ClockedKafka(KafkaServer):
    """A broker with a clock of its own; `clock` is what that takes in its environment."""

    clock: Mapping[str, str] = MappingProxyType({})

    def env(self) -> dict[str, str]:
        return {**super().env(), **self.clock}


@dataclass
class Broker:
    """One broker: its process, its proxies' names, its disk and its clock where these can be had."""

    name: str
    server: KafkaServer
    disk: SmallDisk | None
    clock_file: Path | None

    @property
    def peers(self) -> tuple[str, str]:
        """The proxies by which other brokers reach it: as a replica and as a controller."""
        return f"{self.name}/peers", f"{self.name}/controller"


class ClusterUnderTest(KafkaUnderTest):
    """The brokers as a test's clients see them, through the proxies; topics are kept on all of them."""

    def __init__(self, brokers: Sequence[Broker]) -> None:
        super().__init__(brokers[0].server)
        self._brokers = brokers
        self.bootstrap_servers = ",".join(each.server.bootstrap_servers for each in brokers)

    def make_topic(
        self, name: str = "topic", partitions: int = 4, config: Mapping[str, str] | None = None
    ) -> str:
        """Make a topic under a unique name, a copy on each broker."""
        from confluent_kafka.admin import NewTopic

        topic = self.unique(name)
        new = NewTopic(
            topic,
            num_partitions=partitions,
            replication_factor=min(len(self._brokers), 3),
            config=dict(config or {}),
        )
        admin = self._admin()
        admin.create_topics([new], operation_timeout=30)[topic].result(timeout=30)
        return topic

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Give back the space of a test that is over."""
        admin = self._admin()
        for done in admin.delete_topics(list(topics), operation_timeout=10).values():
            done.exception(timeout=30)

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        servers = ",".join(each.server.internal_bootstrap_servers for each in self._brokers)
        return AdminClient({"bootstrap.servers": servers})


@dataclass
class ClusterWorker(RiskUnderTest):
    """A risk worker with a clock of its own; several of one group share the `topics` of the first."""

    first: "ClusterWorker | None" = None
    name: str = "worker-0"
    disk: SmallDisk | None = None
    # Whether somebody (a supervisor, in a bank) starts it again when it ends.
    wanted: bool = False
    exit_codes: list[int] = field(default_factory=list)
    # What is run, with its arguments.
    module: tuple[str, ...] = ("services.risk",)

    def __post_init__(self) -> None:
        if self.first is None:
            super().__post_init__()
        else:
            self.topics, self.kafka_settings = self.first.topics, self.first.kafka_settings
            self.directory.mkdir(parents=True, exist_ok=True)
        self.clock_file = make_shift_file(self.directory / "clock")

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    def start(self, *, wait: bool = True) -> "ClusterWorker":
        """Start the process; with `wait` return once it decides. It ends with the thread that started it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
        environment["WEIR_CONFIG"] = str(self.config())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*dies_with_us(), sys.executable, "-m", CLOCK, str(self.clock_file), *self.module],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=layout.ROOT,
            )
        self.wanted = True
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, deadline_s: float = 60.0) -> None:
        """Return once it says that it decides."""
        ends_s = time.monotonic() + deadline_s
        while not self.health().get("ready"):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > ends_s:
                raise AssertionError(f"{self.name} did not start:\n{self.log_text()[-4000:]}")
            time.sleep(_POLL_S)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        self.wanted = False
        super().kill()

    def stop(self) -> int:
        self.wanted = False
        return super().stop()


class Cluster:
    """Brokers, Triton and the key service, all running; `workers` gives risk workers over them.

    Attributes:
        network: the links between workers, brokers and the bank; the proxies' names are the brokers' and,
            between brokers, `Broker.peers`.
        has_disks: whether disks can be filled here; only root can mount them.
        has_clocks: whether brokers' clocks can be set; it takes a C compiler.
    """

    def __init__(
        self,
        folder: Path,
        brokers: Sequence[Broker],
        network: Network,
        triton: TritonServer,
        keys: KeysProcess,
    ) -> None:
        self.folder, self.brokers, self.network = folder, brokers, network
        self.triton, self.keys = triton, keys
        self.kafka = ClusterUnderTest(brokers)
        self.workers_now: list[ClusterWorker] = []
        self._count = 0

    @property
    def has_disks(self) -> bool:
        return all(each.disk is not None for each in self.brokers)

    @property
    def has_clocks(self) -> bool:
        return all(each.clock_file is not None for each in self.brokers)

    def broker(self, name: str) -> Broker:
        return next(each for each in self.brokers if each.name == name)

    @contextmanager
    def workers(
        self, count: int, *, partitions: int = 4, module: Sequence[str] = ("services.risk",), **overrides: Any
    ) -> Iterator[list[ClusterWorker]]:
        """Workers of one group, not yet started, on topics of their own; all is gone when the block ends."""
        self._count += 1
        folder = self.folder / f"run-{self._count}"
        with ExitStack() as stack:
            workers: list[ClusterWorker] = []
            for number in range(count):
                directory = folder / f"worker-{number}"
                worker = ClusterWorker(
                    directory,
                    self.kafka,
                    self.keys,
                    self.triton.endpoint,
                    overrides=dict(overrides),
                    partitions=partitions,
                    metrics_port=quiet_ports(1)[0],
                    first=workers[0] if workers else None,
                    name=f"worker-{number}",
                    module=tuple(module),
                )
                if self.has_disks:
                    worker.disk = stack.enter_context(small_disk(worker.data_dir, _WORKER_DISK_MB))
                workers.append(worker)
            self.workers_now = workers
            try:
                yield workers
            finally:
                for worker in workers:
                    worker.signal(signal.SIGCONT)
                    worker.kill()
                self.workers_now = []

    def processes(self) -> dict[int, str]:
        """Process id to name, of all that have links of their own."""
        found = {os.getpid(): BANK, **broker_processes(self.brokers)}
        return found | {each.process.pid: each.name for each in self.workers_now if each.process}

    def mend(self) -> None:
        """Put everything right that a fault may have left: links, disks, stopped processes, dead ones."""
        self.network.mend()
        for broker in self.brokers:
            if broker.disk is not None:
                broker.disk.free()
            if broker.clock_file is not None:
                set_shift(broker.clock_file, 0.0)
        for server in (*(each.server for each in self.brokers), self.triton):
            signal_server(server, signal.SIGCONT)
            if server.pid is None:
                server.kill()
                server.start()
        if self.keys.process is None or self.keys.process.poll() is not None:
            self.keys.start()

    def wait_whole(self, deadline_s: float = READY_WITHIN_S) -> None:
        """Return once every broker, Triton and the key service answer."""
        ends_s = time.monotonic() + deadline_s
        for broker in self.brokers:
            broker.server.wait_ready(deadline_s)
        self.triton.wait_ready(deadline_s)
        while missing := self._not_whole():
            assert time.monotonic() < ends_s, f"not whole after {deadline_s} s: {missing}"
            time.sleep(_POLL_S)

    def shut_out(self) -> list[Broker]:
        """Brokers that run, and that another does not know."""
        known = [brokers_known(each.server.internal_port) for each in self.brokers]
        return [
            each
            for each in self.brokers
            if each.server.node is not None and any(each.server.node.node_id not in ids for ids in known)
        ]

    def _not_whole(self) -> str:
        for broker in self.brokers:
            try:
                count = len(brokers_known(broker.server.internal_port))
            except OSError:
                return f"{broker.name} does not answer"
            if count != len(self.brokers):
                return f"{broker.name} knows {count} brokers of {len(self.brokers)}"
        return ""


_handed_out: set[int] = set()


def quiet_ports(count: int) -> list[int]:
    """Free ports that the kernel gives to no outgoing connection, and that were not handed out before.

    A server that is away for a while finds its port again: an ephemeral one may have become somebody's end of
    a connection, even of one to itself.
    """
    found: list[int] = []
    draw = random.Random()
    while len(found) < count:
        port = draw.randrange(*_QUIET_PORTS)
        if port not in _handed_out and is_free(port):
            _handed_out.add(port)
            found.append(port)
    return found


def broker_processes(brokers: Sequence[Broker]) -> dict[int, str]:
    """Process id to name, of those that run."""
    return {each.server.pid: each.name for each in brokers if each.server.pid}


def signal_server(server: LocalServer, number: signal.Signals) -> None:
    """Send a signal to a server and to what it started."""
    if server.pid is not None:
        os.killpg(server.pid, number)


@contextmanager
def running_cluster(folder: Path, node_count: int = 1) -> Iterator[Cluster]:
    """A cluster of `node_count` brokers, ready; it is gone when the block ends."""
    with ExitStack() as stack:
        cluster: Cluster | None = None
        brokers: list[Broker] = []
        network = stack.enter_context(
            Network(lambda: cluster.processes() if cluster else broker_processes(brokers))
        )
        brokers += _brokers(folder, node_count, network, stack)
        for broker in brokers:
            broker.server.start()
            stack.callback(broker.server.kill)
        grpc_port, triton_metrics_port, keys_port, keys_metrics_port = quiet_ports(4)
        triton = TritonServer(
            layout.MODEL_SOURCES,
            folder / "triton.log",
            staged=folder / "models",
            grpc_port=grpc_port,
            metrics_port=triton_metrics_port,
        )
        stack.enter_context(running_server(triton))
        stack.callback(triton.kill)
        pki = ensure_pki(folder / "keys" / "pki", ROLES)
        keys = KeysProcess(folder / "keys", pki, port=keys_port, metrics_port=keys_metrics_port)
        stack.callback(keys.kill)
        keys.start()
        cluster = Cluster(folder, brokers, network, triton, keys)
        cluster.wait_whole()
        yield cluster


def _brokers(folder: Path, count: int, network: Network, stack: ExitStack) -> list[Broker]:
    ports = quiet_ports(3 * count)
    disks = can_mount()
    clock = build_for_processes(folder) if can_shift_processes() else None
    cluster_id = new_cluster_id()
    names = [f"broker-{number}" for number in range(1, count + 1)]
    controllers = dict(zip(names, ports[:count], strict=True))
    # A cluster of one talks to itself directly.
    reached = {
        number: network.proxy(f"{name}/controller", controllers[name]) if count > 1 else controllers[name]
        for number, name in enumerate(names, 1)
    }
    brokers = []
    for number, name in enumerate(names, 1):
        data_dir = folder / name
        disk = stack.enter_context(small_disk(data_dir, _BROKER_DISK_MB)) if disks else None
        client_port = ports[count + number - 1]
        server = ClockedKafka(
            data_dir,
            folder / f"{name}.log",
            port=client_port,
            controller_port=controllers[name],
            heap_mb=320,
            node=KafkaNode(number, count, cluster_id, reached),
            advertised_port=network.proxy(name, client_port),
            properties=_PROPERTIES,
        )
        server.internal_port = server.peer_advertised_port = ports[2 * count + number - 1]
        if count > 1:
            server.peer_advertised_port = network.proxy(f"{name}/peers", server.internal_port)
        clock_file = make_shift_file(folder / f"{name}.clock") if clock else None
        if clock and clock_file:
            server.clock = environment(clock, clock_file)
        brokers.append(Broker(name, server, disk, clock_file))
    return brokers
