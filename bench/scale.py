"""`python -m bench.scale`: what stays flat and what grows with workers, accounts and partitions.

Each point has a stack of its own. The workers are ready before the first payment is sent, all payments are
sent before the measured part begins, and each account has paid once by then.
"""

import argparse
import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import httpx
from rich.console import Console
from rich.table import Table

from bench import report
from bench.fill import fill
from bench.measure import Cost, cost_of, watch
from bench.stage import Process, Stage, stage
from bench.workers import WEIR, Weir
from infra.local.ports import free_ports

WORKERS = (1, 2, 4)
ACCOUNTS = (10_000, 1_000_000)
ACCOUNTS_MANY = 10_000_000
PARTITIONS = (1, 4, 16, 64)
BASE_PARTITIONS = 4
BASE_ACCOUNTS = 50_000
# A payment on the broker's disk: itself, its decision, its account's row, its part of the journal.
DISK_BYTES = 2_500
WARM_ROWS = 100_000
BALANCED_DEADLINE_S = 60.0
# Of CPU a decision, either way: within it a curve counts as flat.
FLAT = 0.15


@dataclass(frozen=True, slots=True)
class Point:
    """One place on one curve."""

    workers: int = 1
    accounts: int = BASE_ACCOUNTS
    partitions: int = BASE_PARTITIONS


def curves(accounts_many: bool) -> dict[str, list[Point]]:
    """The curves by what varies along them."""
    accounts = (*ACCOUNTS, ACCOUNTS_MANY) if accounts_many else ACCOUNTS
    return {
        "workers": [Point(workers=count) for count in WORKERS],
        "accounts": [Point(accounts=count) for count in accounts],
        "partitions": [Point(partitions=count) for count in PARTITIONS],
    }


def verdict(first: float, last: float) -> str:
    """In words, what CPU a decision does along a curve."""
    ratio = last / first
    if abs(ratio - 1) <= FLAT:
        return f"CPU a decision stays flat ({ratio:.2f} times)"
    return f"CPU a decision {'grows' if ratio > 1 else 'falls'} to {ratio:.2f} times"


def measure(point: Point, events: int, worker: Weir) -> Cost:
    """What deciding `events` payments costs there, all workers together."""
    _need_disk(point.accounts + events)
    with stage(partitions=point.partitions) as theatre, ExitStack() as stack:
        ports = free_ports(point.workers)
        started = [
            stack.enter_context(_worker(theatre, worker, point, number, port))
            for number, port in enumerate(ports)
        ]
        for process, port in zip(started, ports, strict=True):
            process.wait_ready(port)
        _wait_balanced(ports, point.partitions)
        topic = theatre.topics.transactions
        sent = fill(
            theatre.servers,
            topic,
            point.partitions,
            accounts=point.accounts,
            after=max(events, WARM_ROWS) + events,
        )

        def check() -> None:
            for process in started:
                process.check()

        span = asyncio.run(
            watch(
                theatre.servers,
                theatre.topics.decisions,
                sent,
                [process.pid for process in started],
                warm=sent - events,
                deadline_s=120 + sent / 5_000,
                beside=theatre.model_pids,
                check=check,
            )
        )
        stack.close()
        return asyncio.run(cost_of(theatre.servers, span))


@contextmanager
def _worker(theatre: Stage, worker: Weir, point: Point, number: int, port: int) -> Iterator[Process]:
    name = f"{worker.key}-{number}"
    env = {
        **worker.env(theatre, name, port),
        "WEIR_RISK_ACCOUNTS_MAX": str(max(2 * point.accounts, 100_000)),
    }
    with theatre.process(name, worker.command(), env) as process:
        yield process


def _wait_balanced(ports: list[int], partitions: int) -> None:
    """Until every partition has a worker and every worker that can have one has one."""
    ends = time.monotonic() + BALANCED_DEADLINE_S
    while time.monotonic() < ends:
        held = [httpx.get(f"http://127.0.0.1:{port}/healthz").json().get("partitions", []) for port in ports]
        busy = sum(bool(each) for each in held)
        shared_out = sorted(partition for each in held for partition in each)
        if shared_out == list(range(partitions)) and busy == min(len(ports), partitions):
            return
        time.sleep(0.2)
    raise SystemExit(f"{partitions} partitions were not shared by {len(ports)} workers: {held}")


def _need_disk(payments: int) -> None:
    needed, free = payments * DISK_BYTES, shutil.disk_usage(gettempdir()).free
    if needed > 0.8 * free:
        raise SystemExit(
            f"{payments:,} payments need {needed / 2**30:.0f} GiB in {Path(gettempdir())}, where "
            f"{free / 2**30:.0f} GiB are free. Make room, or take fewer accounts."
        )


def table(name: str, points: list[Point], costs: list[Cost]) -> Table:
    """One curve."""
    shown = Table(title=f"Weir, by {name}")
    for column in (name, "events/s", "CPU µs an event", "model server µs", "peak RSS MiB", "CPU / first"):
        shown.add_column(column, justify="right")
    for point, cost in zip(points, costs, strict=True):
        shown.add_row(
            f"{getattr(point, name):,}",
            f"{cost.events_s:,.0f}",
            f"{cost.cpu_us:.1f}",
            f"{cost.beside_us:.1f}",
            f"{cost.rss_mb:,.0f}",
            f"{cost.cpu_us / costs[0].cpu_us:.2f}",
        )
    shown.caption = verdict(costs[0].cpu_us, costs[-1].cpu_us)
    return shown


def main() -> None:
    """Measure the curves and print them."""
    names = list(curves(False))
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=str(__doc__).splitlines()[0])
    parser.add_argument("--events", type=int, default=400_000, help="that are measured at each point")
    parser.add_argument("--curves", default=",".join(names), help="some of them, by comma")
    parser.add_argument(
        "--ten-million", action="store_true", help="also 10 million accounts, which each pay once first"
    )
    parser.add_argument("--at-least-once", action="store_true", help="instead of exactly once")
    arguments = parser.parse_args()
    wanted = arguments.curves.split(",")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"no curve {', '.join(unknown)}; there are {', '.join(names)}")
    console = Console(width=110)
    console.print(report.machine())
    worker = next(
        each
        for each in WEIR
        if isinstance(each, Weir)
        and each.guarantee == ("at_least_once" if arguments.at_least_once else "exactly_once")
    )
    for name in wanted:
        points = curves(arguments.ten_million)[name]
        costs = []
        for point in points:
            costs.append(measure(point, arguments.events, worker))
            console.print(
                f"{name} {getattr(point, name):,}: {costs[-1].events_s:,.0f} events/s, "
                f"{costs[-1].cpu_us:.1f} µs"
            )
        console.print(table(name, points, costs))


if __name__ == "__main__":
    main()
