"""Offline and online features of a simulated month are the same bits."""

from pathlib import Path

import numpy as np
import pytest

from services.simulator.bank import DAY_MS, Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from weir.errors import BadInput, MissingPart
from weir.features.offline import features_of, read_labels, read_payments, stream_features
from weir.features.payments import FEATURES, Payments, PaymentState

DAYS = 45


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    bank = Bank(SimulatorSettings(accounts=400, terminals=40, seed=11, fraud_intensity=4.0))
    write_history(bank, folder, DAYS)
    return folder


def joined(batches: list[Payments]) -> Payments:
    return Payments(
        *(
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("account", "terminal", "amount", "event_ms", "channel")
        )
    )


@pytest.mark.parametrize("lag_ms", [0, DAY_MS])
def test_offline_equals_online_row_for_row_on_a_month_and_a_half(history: Path, lag_ms: int) -> None:
    """Online: random batches, labels consumed between them when reported, or up to a day later.

    What is told early follows the labels as they come; every other feature waits for its delay, so a lag
    within it cannot be seen.
    """
    offline = features_of(history, history)
    payments, labels = joined(list(read_payments(history))), read_labels(history)
    # A label that comes after its delay acts from then on: those go in exactly when reported.
    in_time = labels.reported_ms - labels.event_ms < 6 * DAY_MS
    rng = np.random.default_rng(5)
    consumed_ms = labels.reported_ms + np.where(in_time, rng.integers(0, lag_ms + 1, labels.row_count), 0)
    order = np.argsort(consumed_ms, kind="stable")
    labels, consumed_ms = labels.rows(order), consumed_ms[order]

    state = PaymentState(accounts_max=1000, terminals_max=100, accounts_start=8, terminals_start=8)
    online, at, learnt = [], 0, 0
    while at < payments.row_count:
        end = min(at + int(rng.integers(1, 400)), payments.row_count)
        due = int(np.searchsorted(consumed_ms, payments.event_ms[at], side="right"))
        if due > learnt:
            state.learn(labels.rows(slice(learnt, due)))
            learnt = due
        if learnt < labels.row_count:
            end = min(end, max(int(np.searchsorted(payments.event_ms, consumed_ms[learnt])), at + 1))
        online.append(state.observe(payments.rows(slice(at, end))))
        at = end
    assert offline.shape == (payments.row_count, len(FEATURES))
    differs = (offline != np.concatenate(online)).any(axis=0)
    early = {"terminal_fraud_early", "terminal_risk_early"} if lag_ms else set()
    assert {name for name, each in zip(FEATURES, differs, strict=True) if each} == early
    assert (offline[:, FEATURES.index("terminal_risk_7d")] > 0).any()
    assert np.isfinite(offline).all()


def test_chunks_and_order_change_nothing(history: Path) -> None:
    """Parquet in chunks of 777 rows, and columns handed over shuffled."""
    whole = features_of(history, history)
    assert np.array_equal(whole, features_of(history, history, chunk_rows=777))
    payments, labels = joined(list(read_payments(history))), read_labels(history)
    times, first = np.unique(payments.event_ms, return_index=True)
    assert times.size > payments.row_count * 0.99
    distinct = np.sort(first)
    alone = features_of(payments.rows(distinct), labels)
    shuffled = np.random.default_rng(0).permutation(distinct.size)
    mixed = features_of(payments.rows(distinct[shuffled]), labels)
    assert np.array_equal(alone[shuffled], mixed)


def test_a_missing_file_column_or_order_is_said(history: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match="no transactions"):
        features_of(tmp_path)
    with pytest.raises(BadInput, match="missing_column"):
        next(read_payments(next(history.glob("truth-*"))))
    payments = next(read_payments(history, 10))
    with pytest.raises(BadInput, match="not_in_time_order"):
        list(stream_features([payments.rows(np.arange(9, -1, -1))]))
