"""`python -m bench.state`: what the state costs in memory and time, at any number of accounts.

Accounts are copies of a few thousand that paid for a month, under keys of their own, spread over partitions
as a worker holds them. Each figure is of one run on this machine.
"""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from weir.features.accounts import Accounts
from weir.features.columns import Payments
from weir.features.terminals import Terminals, observe
from weir.features.warm import warm

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000  # 1 January 2026
MONTH_DAYS = 31
PATTERNS = 20_000
BATCH_ROWS = 1_000
# As a consumer hands a changelog over: about a megabyte.
RECORDS = 8_192
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Figures:
    """Rows of one table: what was measured, its value, its unit."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str, digits: int = 0) -> None:
        """One more."""
        self.rows.append((what, f"{value:,.{digits}f}", unit))


def payments(rng: np.random.Generator, keys: NDArray[np.uint64], day: float, days: float) -> Payments:
    """One payment of each key, in time order, at one of 100,000 terminals."""
    n = keys.size
    return Payments(
        keys,
        rng.integers(1, 100_001, n).astype(np.uint64) * GOLDEN,
        np.rint(rng.lognormal(3.5, 1.0, n) * 100).astype(np.int64) * 100,
        np.sort(START_MS + rng.integers(int(day * DAY_MS), int((day + days) * DAY_MS), n)),
        np.zeros(n, np.int8),
    )


def patterns(rng: np.random.Generator, per_day: float) -> NDArray[np.uint8]:
    """Rows of accounts that paid for a month, `per_day` times a day on average, each at a rate of its own."""
    accounts, terminals = Accounts(rows_max=PATTERNS), Terminals(rows_max=100_000)
    rate = rng.gamma(2.0, per_day / 2.0, PATTERNS)
    names = np.arange(1, PATTERNS + 1, dtype=np.uint64)
    for day in range(MONTH_DAYS):
        who = rng.permutation(np.repeat(names, rng.poisson(rate)))
        observe(accounts, terminals, payments(rng, who, day, 1.0))
    return accounts.rows.block.copy()


def key_of(partition: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys as hashes are: spread over 64 bits, never 0."""
    return ((rows.astype(np.uint64) << np.uint64(8)) + np.uint64(partition + 1)) * GOLDEN


def filled(pattern: NDArray[np.uint8], partition: int, row_count: int) -> Accounts:
    """A partition of so many accounts, each a copy of one of the patterns."""
    accounts = Accounts(rows_max=row_count + row_count // 4, rows_start=row_count)
    for first in range(0, row_count, RECORDS):
        rows = np.arange(first, min(first + RECORDS, row_count))
        block = pattern[rows % len(pattern)]
        block.view(np.uint64)[:, 0] = key_of(partition, rows)
        accounts.rows.put(block, 0)
    accounts.clock[0] = START_MS + MONTH_DAYS * DAY_MS
    return accounts


def seconds(call: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def records(accounts: Accounts) -> Iterator[tuple[list[bytes | None], list[bytes | None], float]]:
    """The whole changelog of a table, as a consumer would hand it over; and the time to encode each part."""
    for first in range(0, accounts.row_count, RECORDS):
        rows = np.arange(first, min(first + RECORDS, accounts.row_count))
        begun = time.perf_counter()
        keys, values = accounts.encode_rows(rows)
        took = time.perf_counter() - begun
        yield keys.to_list(), values.to_list(), took


def changelog(accounts: Accounts, figures: Figures) -> None:
    """Encode a partition row by row, and restore another table from it."""
    restored = Accounts(rows_max=accounts.rows.row_max)
    encoding = restoring = value_bytes = 0.0
    for keys, values, took in records(accounts):
        encoding += took
        value_bytes += sum(len(value) for value in values if value is not None)
        restoring += seconds(lambda keys=keys, values=values: restored.restore_rows(keys, values))  # type: ignore[misc]
    n = accounts.row_count
    if restored.row_count != n:
        raise SystemExit(f"{restored.row_count} of {n} rows came back")
    figures.add("changelog value, mean", value_bytes / n, "bytes", 1)
    figures.add("encode for the changelog", encoding / n * 1e6, "µs a row", 2)
    figures.add("restore from the changelog", n / restoring, "rows/s")


class Driving:
    """Payments of random accounts in batches, each an epoch, released two later: as a worker does."""

    def __init__(self, rng: np.random.Generator, accounts: Accounts, partition: int) -> None:
        self._rng, self._accounts, self._partition = rng, accounts, partition
        self._terminals = Terminals(rows_max=200_000, rows_start=200_000)
        self._known = accounts.row_count
        self._epoch = 0
        self._day = float(MONTH_DAYS)

    def batch(self, *, undo: bool) -> float:
        """Seconds that one batch takes."""
        rows = self._rng.integers(0, self._known, BATCH_ROWS)
        self._day += 0.0001
        batch = payments(self._rng, key_of(self._partition, rows), self._day, 0.0001)
        tables = (self._accounts, self._terminals)
        begun = time.perf_counter()
        if undo:
            self._epoch += 1
            for table in tables:
                table.begin(self._epoch)
        observe(*tables, batch)
        if undo:
            for table in tables:
                table.release(self._epoch - 2)
        return time.perf_counter() - begun

    def settle(self) -> None:
        """Release what is outstanding."""
        for table in (self._accounts, self._terminals):
            table.release(self._epoch)


def undoing(driving: Driving, batches: int, figures: Figures) -> None:
    """What keeping rows costs: batches with and without, in turns."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for undo in (False, True):
        for _ in range(20):
            driving.batch(undo=undo)
        driving.settle()
    for _ in range(5):
        for undo in (False, True):
            taken[undo] += [driving.batch(undo=undo) for _ in range(batches // 5)]
            driving.settle()
    per_event = {undo: float(np.median(each)) / BATCH_ROWS * 1e6 for undo, each in taken.items()}
    figures.add("observe, accounts at random, no undo", per_event[False], "µs an event", 3)
    figures.add("observe, with undo", per_event[True], "µs an event", 3)


def snapshots(accounts: Accounts, driving: Driving, folder: Path, figures: Figures) -> None:
    """Write a partition while batches go on, then load it."""
    path = folder / "accounts.state"
    calm = [driving.batch(undo=True) for _ in range(300)]
    begun = time.perf_counter()
    saving = accounts.pin()
    pinned = time.perf_counter() - begun
    written: list[float] = []
    thread = threading.Thread(target=lambda: written.append(seconds(lambda: saving.write(path))))
    thread.start()
    busy = []
    while thread.is_alive():
        busy.append(driving.batch(undo=True))
    thread.join()
    kept = accounts.nbytes
    closing = seconds(saving.close)
    driving.settle()
    size = path.stat().st_size
    n = saving.row_count
    loading = seconds(lambda: Accounts.load(path, rows_max=accounts.rows.row_max))
    figures.add("snapshot file", size / n, "bytes an account", 1)
    figures.add("snapshot write, beside batches", n / written[0], "rows/s")
    figures.add("snapshot write, beside batches", size / written[0] / 1e6, "MB/s")
    figures.add("snapshot load", n / loading, "rows/s")
    figures.add("snapshot load", size / loading / 1e6, "MB/s")
    figures.add("batches decided meanwhile", len(busy), f"of {BATCH_ROWS} events")
    figures.add("kept for undoing and the snapshot", (kept - accounts.nbytes) / 1e6, "MB")
    figures.add("pin and close", (pinned + closing) * 1e3, "ms", 2)
    for name, each in (("alone", calm), ("beside the snapshot", busy)):
        p50, p99 = np.percentile(each, [50, 99]) * 1e3
        figures.add(f"a batch {name}: p50", p50, "ms", 2)
        figures.add(f"a batch {name}: p99", p99, "ms", 2)
        figures.add(f"a batch {name}: max", max(each) * 1e3, "ms", 2)


def doubling(rows: int, figures: Figures) -> None:
    """How long the loop stands when a table of so many accounts needs more slots."""
    accounts = Accounts(rows_max=2 * rows, rows_start=rows)
    block = np.zeros((RECORDS, accounts.rows.row_bytes), np.uint8)
    for first in range(0, rows, RECORDS):
        part = block[: min(RECORDS, rows - first)]
        part.view(np.uint64)[:, 0] = key_of(0, np.arange(first, first + len(part)))
        accounts.rows.put(part, 0)
    took = seconds(lambda: accounts.rows.reserve(2 * rows))
    figures.add(f"doubling at {rows:,} accounts", took * 1e3, "ms", 1)


def evicting(accounts: Accounts, figures: Figures) -> None:
    """Look for expired accounts, and forget a part."""
    accounts.clock[0] = START_MS + 200 * DAY_MS
    begun = time.perf_counter()
    keys = accounts.expired(10_000)
    found = time.perf_counter() - begun
    figures.add("look for expired accounts, one call", found * 1e3, "ms", 2)
    figures.add("forget 10,000 accounts", seconds(lambda: accounts.evict(keys)) * 1e3, "ms", 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.state", description=__doc__.splitlines()[0])
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--per-day", type=float, default=0.8, help="payments of an account, on average")
    parser.add_argument("--batches", type=int, default=500, help="of 1,000 events, for the cost of undo")
    parser.add_argument("--folder", type=Path, help="for the snapshot; a temporary one by default")
    arguments = parser.parse_args()
    console, figures = Console(width=100), Figures()
    warm()
    rng = np.random.default_rng(7)
    pattern = patterns(rng, arguments.per_day)
    rows_each = -(-arguments.accounts // arguments.partitions)
    process = psutil.Process()
    before = process.memory_info().rss
    tables = [filled(pattern, partition, rows_each) for partition in range(arguments.partitions)]
    count = sum(table.row_count for table in tables)
    figures.add("accounts", count, f"in {arguments.partitions} partitions")
    figures.add("table: rows and slots", sum(table.nbytes for table in tables) / count, "bytes an account", 1)
    resident = process.memory_info().rss - before
    figures.add("resident memory", resident / count, "bytes an account", 1)
    figures.add("resident memory", resident / 2**30, "GiB", 2)
    console.print(f"{count:,} accounts are there")
    driving = Driving(rng, tables[0], 0)
    undoing(driving, arguments.batches, figures)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="weir-bench-state-") as folder:
        snapshots(tables[0], driving, Path(folder), figures)
    changelog(tables[0], figures)
    evicting(tables[0], figures)
    tables.clear()
    del driving
    for rows in sorted({rows_each, arguments.accounts}):
        doubling(rows, figures)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures.add("peak of this process", peak, "GiB", 2)
    table = Table(title="State of accounts")
    for column in ("what", "value", "unit"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in figures.rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
