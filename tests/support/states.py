"""Streams of payments and labels as hypothesis draws them, and what two tables have in common."""

import numpy as np
from hypothesis import strategies as st

from tests.support.slow_features import DAY_MS, HOUR_MS
from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.features.terminals import Terminals

START_MS = 1_767_225_600_000  # 1 January 2026

Payment = tuple[int, int, int, int, int]
Label = tuple[int, int, int, int, bool]


def payments(rows: list[Payment]) -> Payments:
    """Account, terminal, amount, event time, channel."""
    account, terminal, amount, event_ms, channel = zip(*rows, strict=True)
    return Payments(
        np.array(account, np.uint64),
        np.array(terminal, np.uint64),
        np.array(amount, np.int64),
        np.array(event_ms, np.int64),
        np.array(channel, np.int8),
    )


def labels(rows: list[Label]) -> Labels:
    """Account, terminal, event time, reported time, whether it is fraud."""
    account, terminal, event_ms, reported_ms, is_fraud = zip(*rows, strict=True)
    return Labels(
        np.array(account, np.uint64),
        np.array(terminal, np.uint64),
        np.array(event_ms, np.int64),
        np.array(reported_ms, np.int64),
        np.array(is_fraud, np.bool_),
    )


@st.composite
def streams(
    draw: st.DrawFn, accounts: int = 3, terminals: int = 2, size: int = 60
) -> list[tuple[str, Payment | Label]]:
    """Payments and labels of few entities over some months: bursts, long silences, steps back in time."""
    at, sent = START_MS, []
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["pay", "pay", "pay", "pay", "label"]),
                st.integers(1, accounts),
                st.integers(1, terminals),
                st.integers(0, 50_000_000),
                st.sampled_from([0, 1000, HOUR_MS // 2, 5 * HOUR_MS, DAY_MS, 9 * DAY_MS, 40 * DAY_MS])
                | st.integers(-50 * HOUR_MS, 50 * HOUR_MS)
                | st.integers(-40, 40).map(lambda days: days * DAY_MS),
                st.integers(0, 4),
            ),
            min_size=1,
            max_size=size,
        )
    )
    stream: list[tuple[str, Payment | Label]] = []
    for what, account, terminal, amount, step, channel in steps:
        if what == "label" and sent:
            paid = sent[amount % len(sent)]
            stream.append(("label", (paid[0], paid[1], paid[3], max(at, paid[3]), amount % 5 != 0)))
            continue
        at = max(at + step, START_MS)
        sent.append((account, terminal, amount, at, channel))
        stream.append(("pay", sent[-1]))
    return stream


def random_payments(
    seed: int, count: int, *, accounts: int, terminals: int, days: float, first_day: float = 0
):
    """Payments in time order, of identifiers that look like hashes."""
    rng = np.random.default_rng(seed)
    golden = np.uint64(0x9E3779B97F4A7C15)
    return Payments(
        rng.integers(1, accounts + 1, count).astype(np.uint64) * golden,
        rng.integers(1, terminals + 1, count).astype(np.uint64) * golden,
        rng.integers(1, 30_000, count) * 100,
        np.sort(START_MS + rng.integers(int(first_day * DAY_MS), int((first_day + days) * DAY_MS), count)),
        rng.integers(0, 5, count).astype(np.int8),
    )


def frauds_of(batch: Payments, every: int) -> Labels:
    """A label that says fraud for some of the payments, known a day later."""
    part = batch.rows(slice(None, None, every))
    return Labels(
        part.account,
        part.terminal,
        part.event_ms,
        part.event_ms + DAY_MS,
        np.ones(part.row_count, np.bool_),
    )


def whole(table: Accounts | Terminals) -> tuple[list[bytes], list[int], list[int]]:
    """All that a table is: rows in their order without stamps, where each key leads, the clock."""
    rows = table.rows.block.copy()
    rows.view(np.uint32)[:, table.rows.stamp_at] = 0
    keys = rows.view(np.uint64)[:, 0].copy()
    return [row.tobytes() for row in rows], table.rows.find(keys).tolist(), table.clock.tolist()
