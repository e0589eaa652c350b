"""`python -m bench.peers.kafka_streams`: the settings that were tried, and what came of each.

The best of them for throughput and for latency are what `python -m bench` shows.
"""

import argparse
import asyncio
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from bench import report
from bench.latency import at_rate
from bench.measure import cost_of, watch
from bench.peers.kafka_streams.settings import LATENCY, THROUGHPUT, Variant
from bench.stage import stage
from bench.workers import OWN_TOPICS, KafkaStreams

PARTITIONS = 4
DEADLINE_S = 400.0
_MIB = 2**20
_NO_LINGER = {"producer.linger.ms": "0"}


def _jvm(*options: str) -> Variant:
    return replace(THROUGHPUT, jvm=("-Xms1g", "-Xmx1g", *options))


TRIED: dict[str, Variant] = {
    "chosen for throughput": THROUGHPUT,
    "chosen for latency": LATENCY,
    "2 threads": replace(THROUGHPUT, threads=2),
    "commit.interval.ms 20": replace(THROUGHPUT, commit_interval_ms=20),
    "commit.interval.ms 500": replace(THROUGHPUT, commit_interval_ms=500),
    "commit.interval.ms 10, linger.ms 0": replace(THROUGHPUT, commit_interval_ms=10, more=_NO_LINGER),
    "commit.interval.ms 5, linger.ms 0": replace(THROUGHPUT, commit_interval_ms=5, more=_NO_LINGER),
    "commit.interval.ms 10, linger.ms 0, 2 threads": replace(
        THROUGHPUT, threads=2, commit_interval_ms=10, more=_NO_LINGER
    ),
    "linger.ms 100 (Kafka Streams' default)": replace(THROUGHPUT, more={"producer.linger.ms": "100"}),
    "batch.size 16 KiB (the default)": replace(THROUGHPUT, more={"producer.batch.size": "16384"}),
    "batch.size 1 MiB": replace(THROUGHPUT, more={"producer.batch.size": str(_MIB)}),
    "max.poll.records 1000 (the default)": replace(THROUGHPUT, more={"consumer.max.poll.records": "1000"}),
    "cache 64 MiB": replace(THROUGHPUT, cache_bytes=64 * _MIB),
    "RocksDB": replace(THROUGHPUT, store="rocksdb"),
    "RocksDB, cache 64 MiB": replace(THROUGHPUT, store="rocksdb", cache_bytes=64 * _MIB),
    "G1": _jvm("-XX:+UseG1GC"),
    "ParallelGC": _jvm("-XX:+UseParallelGC"),
    "heap 384 MiB": replace(THROUGHPUT, jvm=("-Xms384m", "-Xmx384m", "-XX:+UseSerialGC")),
}


def main() -> None:
    """Try each and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.kafka_streams")
    parser.add_argument("--events", type=int, default=400_000, help="that count")
    parser.add_argument("--warm", type=int, default=1_000_000, help="events before them that do not")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each latency run; 0 for none")
    parser.add_argument("--only", help="those whose name holds this text")
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(report.machine())
    table = Table(title="Kafka Streams, exactly_once_v2, in-memory store, unless said otherwise")
    for column in ("settings", "events/s", "CPU µs an event", "peak RSS MiB", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "settings" else "right")
    with stage(partitions=PARTITIONS, parts=("kafka", "topics")) as theatre:
        total = arguments.warm + arguments.events
        theatre.simulate("--count", str(total), "--rate", "0")
        for number, (name, variant) in enumerate(TRIED.items()):
            if arguments.only and arguments.only not in name:
                continue
            worker = KafkaStreams(f"try-{number}", name, variant=variant)
            with worker.running(theatre) as running:
                span = asyncio.run(
                    watch(
                        theatre.servers,
                        running.topic,
                        total,
                        [running.process.pid],
                        warm=arguments.warm,
                        deadline_s=DEADLINE_S,
                        check=running.process.check,
                    )
                )
                said = ("-", "-")
                if arguments.seconds:
                    latency = asyncio.run(at_rate(theatre, running.topic, 1000.0, arguments.seconds))
                    p50, p99, *_ = latency.percentiles_ms()
                    said = (f"{p50:.1f}", f"{p99:.1f}")
            cost = asyncio.run(cost_of(theatre.servers, span))
            theatre.delete_topics(prefix=OWN_TOPICS)
            row = (name, f"{cost.events_s:,.0f}", f"{cost.cpu_us:.1f}", f"{cost.rss_mb:,.0f}", *said)
            console.print("  ".join(row))
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
