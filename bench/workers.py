"""The rows of the table: who works, how it is started, and on which topic its results appear."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench.peers.kafka_streams import build, settings
from bench.stage import Process, Stage

FLOOR = "aiokafka"
# What the peers write begins with it.
OWN_TOPICS = "bench."


@dataclass(frozen=True, slots=True)
class Running:
    """A worker at work: its results appear on `topic`; `metrics_port` is Weir's alone."""

    process: Process
    topic: str
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """One row.

    key: what `--only` takes.
    title: what the table shows.
    share: of the events; a slow worker's rate does not depend on their number.
    decides: does the whole job, so its latency means something.
    models: asks the model server, whose CPU is then counted beside the worker's own.
    """

    key: str
    title: str
    share: float = 1.0
    decides: bool = False
    models: bool = False

    @contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        """The worker for the block, reading the payments from their beginning."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Copy(Worker):
    """A Python program of `bench.peers` that copies."""

    module: str = ""

    @contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        topic = f"{OWN_TOPICS}{self.key}"
        stage.make_topics([topic], stage.topics.partitions)
        command = [sys.executable, "-m", self.module, stage.servers, topic, stage.topics.transactions, topic]
        with stage.process(self.key, command, stage.env) as process:
            yield Running(process, topic)


@dataclass(frozen=True, slots=True)
class Weir(Worker):
    """The risk worker of this checkout, under one guarantee, with topics and state of its own."""

    guarantee: str = "exactly_once"
    options: tuple[tuple[str, str], ...] = ()

    @contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        stage.reset()
        port = int(stage.config["risk"]["metrics_port"])
        with stage.process(self.key, self.command(), self.env(stage, self.key, port)) as process:
            process.wait_ready(port)
            yield Running(process, stage.topics.decisions, port)

    def command(self) -> list[str]:
        """The worker's command line."""
        return [sys.executable, "-m", "services.risk"]

    def env(self, stage: Stage, name: str, port: int) -> dict[str, str]:
        """The environment of one worker process, whose data lies in a folder of that name."""
        role = stage.config["roles"]["risk-worker"]
        return {
            **stage.env,
            "WEIR_KEYS_SSL_CERTIFICATE": role["ssl_certificate"],
            "WEIR_KEYS_SSL_KEY": role["ssl_key"],
            "WEIR_LOG_LEVEL": "warning",
            "WEIR_RISK_METRICS_PORT": str(port),
            # What is measured is deciding: the group begins at the first payment, so nothing is read before.
            "WEIR_RISK_GROUP": f"bench-{self.key}",
            "WEIR_RISK_RESTORE_DAYS": "0",
            "WEIR_RISK_PROCESSING_GUARANTEE": self.guarantee,
            "WEIR_RISK_DATA_DIR": str(stage.home / "state" / name),
            **dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class KafkaStreams(Worker):
    """The Java peer under one choice of settings."""

    variant: settings.Variant = settings.THROUGHPUT

    @contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        built = build.build(rocksdb=self.variant.store == "rocksdb")
        topic = f"{OWN_TOPICS}{self.key}"
        partitions = stage.topics.partitions
        between = [settings.by_terminal(topic)] if self.variant.terminals else []
        stage.make_topics([topic, *between], partitions)
        config = stage.home / f"{self.key}.json"
        common = settings.shared(stage.topics.transactions, topic, partitions)
        state = stage.home / "state" / self.key
        settings.write(config, common, self.variant, stage.servers, topic, state)
        command = built.command("peer.Peer", str(config), options=self.variant.jvm)
        with stage.process(self.key, command, stage.env) as process:
            yield Running(process, topic)


COPIES: tuple[Worker, ...] = (
    Copy(FLOOR, "aiokafka copy (the floor)", module="bench.peers.aiokafka_copy"),
    Copy("confluent", "confluent-kafka copy", module="bench.peers.confluent_copy"),
    Copy("quix", "Quix Streams copy", module="bench.peers.quix_copy"),
    Copy("faust", "Faust agent copy", share=0.05, module="bench.peers.faust_copy"),
)
STREAMS: tuple[Worker, ...] = tuple(
    KafkaStreams(key, f"Kafka Streams, {what}", decides=True, variant=variant)
    for key, what, variant in (
        ("kafka-streams", "for throughput", settings.THROUGHPUT),
        ("kafka-streams-latency", "for latency", settings.LATENCY),
        ("kafka-streams-terminals", "with terminals", replace(settings.THROUGHPUT, terminals=True)),
    )
)
WEIR: tuple[Worker, ...] = tuple(
    Weir(
        f"weir-{guarantee.replace('_', '-')}",
        f"Weir, {guarantee.replace('_', ' ')}",
        decides=True,
        models=True,
        guarantee=guarantee,
    )
    for guarantee in ("exactly_once", "at_least_once")
)
ALL: tuple[Worker, ...] = (*COPIES, *STREAMS, *WEIR)


def chosen(keys: Sequence[str] | None) -> list[Worker]:
    """The workers of these keys in the table's order; all of them for None.

    Raises:
        ValueError: there is no such key.
    """
    if keys is None:
        return list(ALL)
    unknown = [key for key in keys if key not in {worker.key for worker in ALL}]
    if unknown:
        raise ValueError(
            f"no worker {', '.join(unknown)}; there are {', '.join(worker.key for worker in ALL)}"
        )
    return [worker for worker in ALL if worker.key in keys]
