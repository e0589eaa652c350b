"""What a run found, as tables a person reads."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from rich.table import Table

from bench.latency import Latency
from bench.measure import Cost
from bench.memory import of_state
from bench.workers import FLOOR, Worker

STAGES = ("decode", "features", "model", "decide", "encode", "seal", "send")
NOTE = (
    "CPU is of the worker process alone, all its threads, after it has warmed up on a first part of the "
    "events. The model server's CPU stands beside it: Kafka Streams scores in its own process."
)
KAFKA_STREAMS = (
    "Kafka Streams does less than Weir: no labels, no dead letters, no journal, one constant key; terminal "
    "windows only in the row that says so (a second topic, keyed by terminal, which gives up the order of an "
    "account's decisions). Its model is the shipped one, evaluated natively from the graph's tables; its "
    "features and decisions were held against Weir's first."
)


def machine() -> str:
    """What this was measured on."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.split(":")[1].strip() for line in cpu if line.startswith("model name")),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}; "
        f"load average at the start {os.getloadavg()[0]:.1f}"
    )


def costs(rows: Mapping[str, Cost], workers: Sequence[Worker], notes: Sequence[str]) -> Table:
    """Every worker beside the floor."""
    floor = rows.get(FLOOR)
    table = Table(title="One worker process; broker and model server on the same machine")
    for column in (
        "worker",
        "events/s",
        "CPU µs an event",
        "model server µs",
        "events a CPU second",
        "CPU / floor",
        "peak RSS MiB",
    ):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for worker in workers:
        cost = rows.get(worker.key)
        if cost is None:
            continue
        table.add_row(
            worker.title,
            f"{cost.events_s:,.0f}",
            f"{cost.cpu_us:.1f}",
            f"{cost.beside_us:.1f}" if worker.models else "-",
            f"{cost.events_cpu_s:,.0f}",
            f"{cost.cpu_us / floor.cpu_us:.2f}" if floor else "-",
            f"{cost.rss_mb:,.0f}",
        )
    table.caption = "\n".join(notes)
    return table


def stages(seconds: Mapping[str, float], events: int, total: Cost, title: str) -> Table:
    """Where a decision's time goes, by the worker's own counters."""
    table = Table(title=f"{title}: wall time of each stage, over {events:,} decisions")
    table.add_column("stage")
    table.add_column("µs a decision", justify="right")
    known = [stage for stage in STAGES if stage in seconds]
    for stage in [*known, *sorted(set(seconds) - set(STAGES))]:
        table.add_row(stage, f"{seconds[stage] / events * 1e6:.2f}")
    table.add_row("worker CPU in all", f"{total.cpu_us:.2f}")
    table.caption = "model and send are waiting, beside the work on other batches"
    return table


def memory() -> Table:
    """What the windows hold."""
    table = Table(title="Windows of a million accounts, and of a million terminals")
    for column in ("entity", "bytes in the tables", "bytes of resident memory"):
        table.add_column(column, justify="left" if column == "entity" else "right")
    for name, accounts in (("account", True), ("terminal", False)):
        found = of_state(1_000_000, accounts=accounts)
        table.add_row(name, f"{found.state_bytes:.0f}", f"{found.resident_bytes:.0f}")
    return table


def latencies(rows: Mapping[str, Latency], workers: Sequence[Worker]) -> Table:
    """End to end, as a reader of committed records sees it."""
    rate = next(iter(rows.values())).rate
    table = Table(title=f"From publishing to reading, at {rate:,.0f} payments a second")
    for column in ("worker", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "payments"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for worker in workers:
        if worker.key in rows:
            found = rows[worker.key]
            table.add_row(
                worker.title, *(f"{value:.1f}" for value in found.percentiles_ms()), f"{len(found.ms):,}"
            )
    return table
