"""A real Kafka broker (KRaft, no ZooKeeper), bound to the loopback interface; alone, or one of several."""

import base64
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from infra.local import layout
from infra.local.java import Java, find_java
from infra.local.ports import LOOPBACK, free_port, require_free
from infra.local.server import LocalServer, ServerFailed
from weir.errors import MissingPart, WeirError

LOG_CONFIG = layout.ROOT / "infra" / "kafka" / "log4j2.properties"

_AOT_CACHE_SINCE = 25  # one step from run to cache; before, an archive of classes (AppCDS) does
_METADATA_REQUEST = 3
_CLIENT_ID = b"weir-probe"


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """How the broker's client listener is protected; files are PEM, the key PKCS#8 without a password.

    With `scram_users` (name to password, SCRAM-SHA-512) set, the protocol is SASL_*. With `acl_super_users`
    set, the broker's authorizer denies whatever no ACL allows, save to those principals ("User:admin").
    """

    protocol: Literal["SSL", "SASL_SSL", "SASL_PLAINTEXT"]
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    client_certificate_required: bool = False
    scram_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    acl_super_users: tuple[str, ...] = ()

    def properties(self, keystore: Path | None) -> dict[str, str]:
        """The broker's settings for the listener named CLIENT."""
        settings: dict[str, str] = {}
        if keystore is not None:
            settings |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.enabled.protocols": "TLSv1.3,TLSv1.2",
            }
        if self.ca is not None:
            settings |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.ca)}
        if self.client_certificate_required:
            settings["ssl.client.auth"] = "required"
        if self.scram_users:
            settings |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.client.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
            }
        if self.acl_super_users:
            settings |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # The broker speaks to itself on a listener without a name.
                "super.users": ";".join([*self.acl_super_users, "User:ANONYMOUS"]),
            }
        return settings


@dataclass(frozen=True, slots=True)
class KafkaNode:
    """One node's place in a cluster of several, each told the same `cluster_id`, `voters` and `node_count`.

    Topics are kept `node_count` times (three at most) and take a write once all but one of those have it.

    node_id: 1 to node_count.
    voters: node id of each controller to the port at which the others reach it.
    """

    node_id: int
    node_count: int
    cluster_id: str
    voters: Mapping[int, int]

    @property
    def is_controller(self) -> bool:
        """Whether this node votes; a broker it is in any case."""
        return self.node_id in self.voters

    def properties(self) -> dict[str, str]:
        """The node's settings, replication included."""
        copies = min(self.node_count, 3)
        in_sync_min = str(max(copies - 1, 1))
        return {
            "process.roles": "broker,controller" if self.is_controller else "broker",
            "node.id": str(self.node_id),
            "controller.quorum.voters": ",".join(
                f"{voter}@{LOOPBACK}:{port}" for voter, port in sorted(self.voters.items())
            ),
            "default.replication.factor": str(copies),
            "min.insync.replicas": in_sync_min,
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": in_sync_min,
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": in_sync_min,
            # A follower that is away leaves the in-sync set after this; 30 s by default.
            "replica.lag.time.max.ms": "3000",
        }


def new_cluster_id() -> str:
    """What a cluster's storage is formatted with: 16 random bytes in URL-safe base64, without padding."""
    while True:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # StorageTool would take it for an option: one first start in 64 failed.
        if not cluster_id.startswith("-"):
            return cluster_id


class KafkaServer(LocalServer):
    """A broker, and with it a controller unless `node` says otherwise, in one process.

    Args:
        data_dir: the log and the metadata; formatted at the first start, kept between starts.
        log_path: what the broker prints.
        port: of the client listener; 0 chooses a free one.
        controller_port: of the controller's listener; 0 chooses a free one.
        heap_mb: the Java heap at most.
        long_run: compile what runs often as well as Java can, as a broker of months has long done.
        security: TLS, SCRAM and ACLs on the client listener; None leaves it in the clear.
        properties: more settings of the broker, over ours.
        node: its place in a cluster of several; None makes a cluster of this broker alone.
        advertised_port: where clients are told to find the broker, when a proxy stands in front of `port`.
        peer_advertised_port: the same for the other brokers, in front of `internal_port`.
        lib: the folder of jars.
        record_classes: write the classes that this run loads to an archive there, when the broker ends.
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        data_dir: Path,
        log_path: Path,
        *,
        port: int = 0,
        controller_port: int = 0,
        heap_mb: int = 384,
        long_run: bool = False,
        security: KafkaSecurity | None = None,
        properties: Mapping[str, str] | None = None,
        node: KafkaNode | None = None,
        advertised_port: int = 0,
        peer_advertised_port: int = 0,
        lib: Path = layout.KAFKA_LIB,
        record_classes: Path | None = None,
    ) -> None:
        super().__init__(log_path)
        self.data_dir = data_dir
        self.port = port or free_port()
        self.controller_port = controller_port or free_port()
        self.heap_mb, self.long_run = heap_mb, long_run
        self.security = security
        self.node = node
        self.advertised_port = advertised_port or self.port
        # With a protected or proxied client listener the broker needs another, by which it reaches itself.
        apart = security or node or advertised_port or peer_advertised_port
        self.internal_port = free_port() if apart else self.port
        self.peer_advertised_port = peer_advertised_port or self.internal_port
        self.extra = dict(properties or {})
        self.lib = lib
        self.record_classes = record_classes

    @property
    def bootstrap_servers(self) -> str:
        """host:port of the client listener, as clients are told."""
        return f"{LOOPBACK}:{self.advertised_port}"

    @property
    def internal_bootstrap_servers(self) -> str:
        """host:port of the broker's own listener in the clear: the client's, where that is all there is."""
        return f"{LOOPBACK}:{self.internal_port}"

    @property
    def _properties_path(self) -> Path:
        return self.data_dir / "server.properties"

    def server_properties(self) -> dict[str, str]:
        """The broker's settings."""
        protocol = self.security.protocol if self.security else "PLAINTEXT"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            # A static voter: the port may be another at the next start.
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,CLIENT:{protocol}",
            "log.dirs": str(self.data_dir / "log"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            # How long a leader waits while the last transaction's markers are written; 20 by default.
            "add.partitions.to.txn.retry.backoff.ms": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            # Topics are made on purpose, with their partitions; a mistyped name must be an error.
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            # 128 MB by default, for a cleaner that has little to clean here.
            "log.cleaner.dedupe.buffer.size": "4194304",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "num.recovery.threads.per.data.dir": "2",
            # After kill -9 the next start waits until the dead broker's session has ended: 9 s by default.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
        }
        if self.security:
            settings |= self.security.properties(self._keystore_path if self.security.certificate else None)
        if self.node:
            settings |= self.node.properties()
        return settings | self._listeners() | self.extra

    def _listeners(self) -> dict[str, str]:
        listeners = {"CLIENT": self.port}
        advertised = {"CLIENT": self.advertised_port}
        if self.internal_port != self.port:
            listeners["INTERNAL"] = self.internal_port
            advertised["INTERNAL"] = self.peer_advertised_port
        between = list(listeners)[-1]
        if self.node is None or self.node.is_controller:
            listeners["CONTROLLER"] = self.controller_port
        return {
            "inter.broker.listener.name": between,
            "listeners": _addresses(listeners),
            "advertised.listeners": _addresses(advertised),
        }

    @property
    def _keystore_path(self) -> Path:
        return self.data_dir / "keystore.pem"

    def _classpath(self) -> str:
        jars = sorted(self.lib.glob("*.jar"))
        if not jars:
            raise MissingPart(f"Kafka's jars are not in {self.lib}. Run `make setup`.")
        return os.pathsep.join(map(str, jars))

    def prepare(self) -> None:
        """Write the settings and, at the first start, format the storage.

        Raises:
            PortTaken, NoJava, MissingPart: say what to do.
            WeirError: the storage cannot be formatted.
        """
        for port in {self.port, self.controller_port, self.internal_port}:
            require_free(port, self.name)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self.security and self.security.certificate and self.security.key:
            self._keystore_path.touch(mode=0o600)
            self._keystore_path.write_bytes(
                self.security.key.read_bytes() + b"\n" + self.security.certificate.read_bytes()
            )
        lines = [f"{name}={value}" for name, value in sorted(self.server_properties().items())]
        self._properties_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if not (self.data_dir / "log" / "meta.properties").is_file():
            self._format(find_java())

    def _format(self, java: Java) -> None:
        # Whatever an interrupted format left behind.
        shutil.rmtree(self.data_dir / "log", ignore_errors=True)
        cluster_id = self.node.cluster_id if self.node else new_cluster_id()
        arguments = ["format", "-t", cluster_id, "-c", str(self._properties_path)]
        for user, password in (self.security.scram_users if self.security else {}).items():
            arguments += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run(
            [*self._java(java), "-Xmx128m", *self._main("kafka.tools.StorageTool"), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            # Only the last line: format prints the salts of its users.
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise WeirError(f"kafka: cannot format {self.data_dir}: {said}")

    def _java(self, java: Java) -> list[str]:
        # C1 alone and the serial collector: a start of 0.7 s and 175 MB, not 1.8 s and 320 MB.
        first_tier = [] if self.long_run else ["-XX:TieredStopAtLevel=1"]
        return [str(java.program), *first_tier, "-XX:+UseSerialGC"]

    def _main(self, main_class: str) -> list[str]:
        return [
            f"-Dlog4j2.configurationFile={LOG_CONFIG.as_uri()}",
            "-Dlog4j2.disableJmx=true",
            "-Djava.awt.headless=true",
            "-cp",
            self._classpath(),
            main_class,
        ]

    def command(self) -> list[str]:
        """The broker's command line."""
        java = find_java()
        return [
            *self._java(java),
            f"-Xmx{self.heap_mb}m",
            *self._class_cache(java),
            *self._main("kafka.Kafka"),
            str(self._properties_path),
        ]

    def _class_cache(self, java: Java) -> list[str]:
        ahead = java.version >= _AOT_CACHE_SINCE
        if self.record_classes is not None:
            return [f"-XX:{'AOTCacheOutput' if ahead else 'ArchiveClassesAtExit'}={self.record_classes}"]
        cache = class_cache_path(java)
        if not cache.is_file():
            return []
        return [f"-XX:{'AOTCache' if ahead else 'SharedArchiveFile'}={cache}"]

    def env(self) -> dict[str, str]:
        """The environment without what would change the JVM behind our back."""
        return {
            name: value
            for name, value in os.environ.items()
            if name not in {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"}
        }

    def probe(self) -> str | None:
        """None once the broker lists itself in its metadata."""
        try:
            known = brokers_known(self.internal_port)
        except (OSError, struct.error):
            return f"no answer on port {self.internal_port}"
        return None if known else "the broker has not joined its own cluster"


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())


def class_cache_path(java: Java) -> Path:
    """Where the shared archive of Kafka's classes lies for one Java; it serves that Java alone."""
    return layout.KAFKA_CLASS_CACHE / f"kafka-java{java.version}.jsa"


def make_class_cache(java: Java) -> bool:
    """Start the broker once over an empty folder and keep what it loaded; whether there is a cache now.

    A Java that cannot write one (some come without their own base archive) starts the broker without.
    """
    path = class_cache_path(java)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout.SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=layout.SCRATCH) as folder:
        fresh = Path(folder) / path.name
        server = KafkaServer(Path(folder) / "data", Path(folder) / "kafka.log", record_classes=fresh)
        server.start()
        try:
            server.wait_ready()
        except ServerFailed:
            return False
        finally:
            # Java writes the archive while it ends.
            server.stop(grace_s=60.0)
        if not fresh.is_file():
            return False
        fresh.replace(path)
    return True


def brokers_known(port: int, timeout_s: float = 2.0) -> frozenset[int]:
    """The node ids of the brokers that the one at `port` knows: a Metadata request (version 1) for no topics.

    A broker that the controller has shut out (fenced) is not among them, be it that it runs.

    Raises:
        OSError: nobody answers. struct.error: what answers is not Kafka.
    """
    header = struct.pack(">hhih", _METADATA_REQUEST, 1, 1, len(_CLIENT_ID)) + _CLIENT_ID
    request = header + struct.pack(">i", 0)
    with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _exactly(connection, 4))
        if not 8 <= size <= 1 << 20:
            raise struct.error("not a Kafka answer")
        answer = _exactly(connection, size)
    _correlation, count = struct.unpack_from(">ii", answer)
    found, at = set(), 8
    for _ in range(count):
        node_id, host_bytes = struct.unpack_from(">ih", answer, at)
        found.add(node_id)
        # Host and port, then the rack, whose length is -1 where there is none.
        at += 6 + host_bytes + 4
        (rack_bytes,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(rack_bytes, 0)
    return frozenset(found)


def _exactly(connection: socket.socket, byte_count: int) -> bytes:
    parts = b""
    while len(parts) < byte_count:
        part = connection.recv(byte_count - len(parts))
        if not part:
            raise ConnectionError("the broker hung up")
        parts += part
    return parts
