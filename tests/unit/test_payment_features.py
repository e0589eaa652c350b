"""Features of payments: their values, that batches do not matter, what memory promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_features import DAY_MS, HOUR_MS, SlowState
from tests.support.states import START_MS, labels, payments, streams
from weir.features.payments import FEATURES, FeatureSpec, Payments, PaymentState, StateFull


def state_of(spec: FeatureSpec | None = None, entities: int = 1000) -> PaymentState:
    return PaymentState(spec or FeatureSpec(), accounts_max=entities, terminals_max=entities)


def column(features: np.ndarray, name: str) -> list[float]:
    return features[:, FEATURES.index(name)].tolist()


@settings(deadline=None, max_examples=150)
@given(streams(), st.sampled_from([0, 7, 30]), st.sampled_from([(0, 7, 0), (22, 6, 90)]))
def test_every_feature_is_what_the_slow_reference_says(
    stream: list[tuple], delay: int, night: tuple[int, int, int]
) -> None:
    """Out of order and late events and labels included; sums in float32 buckets bound the difference."""
    spec = FeatureSpec(delay, 3600, night[2], night[0], night[1])
    state, slow = state_of(spec), SlowState(spec)
    for what, row in stream:
        if what == "label":
            state.learn(labels([row]))
            slow.learn(row[0], row[1], row[2], row[4])
            continue
        features = state.observe(payments([row]))[0]
        expected = slow.observe(*row)
        assert np.isfinite(features).all()
        for name, value in zip(FEATURES, features.tolist(), strict=True):
            tolerance = 2e-2 if "zscore" in name else 1e-5
            assert value == pytest.approx(float(expected[name]), rel=tolerance, abs=tolerance), name
    assert state.late_total == slow.late_total


@settings(deadline=None, max_examples=60)
@given(streams(), st.randoms(use_true_random=False))
def test_no_value_depends_on_how_the_stream_is_cut(stream: list[tuple], random) -> None:
    """Row by row against random cuts between labels: the same bits, the same saved state."""
    whole, cut = state_of(), state_of()
    expected = [whole.observe(payments([row])) for kind, row in stream if _learnt(whole, kind, row)]
    got, batch = [], []
    for what, row in stream:
        if batch and (what == "label" or random.random() < 0.3):
            got.append(cut.observe(payments(batch)))
            batch = []
        if what == "label":
            cut.learn(labels([row]))
        else:
            batch.append(row)
    if batch:
        got.append(cut.observe(payments(batch)))
    assert np.array_equal(np.concatenate(got), np.concatenate(expected)) if got else not expected
    assert (whole.watermark_ms, whole.late_total) == (cut.watermark_ms, cut.late_total)


def _learnt(state: PaymentState, kind: str, row: tuple) -> bool:
    if kind == "label":
        state.learn(labels([row]))
    return kind == "pay"


def test_the_first_payment_has_the_declared_defaults() -> None:
    features = state_of().observe(payments([(1, 1, 250_000, START_MS, 0)]))
    named = dict(zip(FEATURES, features[0].tolist(), strict=True))
    assert named["amount"] == 25.0
    assert named["account_amount_ratio_30d"] == 1.0
    assert named["account_idle_log_s"] == pytest.approx(np.log1p(30 * 86_400))
    # Longer ago than the windows reach.
    assert named.pop("terminal_fraud_first_days") == named.pop("terminal_fraud_last_days") == 38
    assert all(
        value == 0.0
        for name, value in named.items()
        if name.startswith(("account_count", "account_amount_mean", "account_age", "terminal"))
    )


def test_a_label_acts_from_the_day_after_its_delay_whenever_it_came() -> None:
    """A fraud on day 0, its label on day 1 or day 7: seen from day 8 on, not on day 7."""
    for reported_day in (1, 7):
        state = state_of()
        state.observe(payments([(1, 9, 10_000, START_MS, 0)]))
        risks = []
        for day in range(1, 10):
            if day == reported_day:
                state.learn(labels([(1, 9, START_MS, START_MS + day * DAY_MS, True)]))
            features = state.observe(payments([(2, 9, 10_000, START_MS + day * DAY_MS, 0)]))
            risks += column(features, "terminal_risk_30d")
        assert risks == [0, 0, 0, 0, 0, 0, 0, 1.0, 0.5]


def test_what_is_reported_within_the_delay_is_told_apart_until_the_delay_is_over() -> None:
    """A fraud of day 0, reported on day 2: early from then to day 7, in the windows from day 8 on."""
    state = state_of()
    state.observe(payments([(1, 9, 10_000, START_MS, 0)]))
    told = []
    for day in range(1, 10):
        if day == 2:
            state.learn(labels([(1, 9, START_MS, START_MS + 2 * DAY_MS, True)]))
        told.append(state.observe(payments([(2, 9, 10_000, START_MS + day * DAY_MS, 0)])))
    features = np.concatenate(told)
    assert column(features, "terminal_fraud_early") == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    shares = [0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 0, 0]
    assert column(features, "terminal_risk_early") == pytest.approx(shares)
    assert column(features, "terminal_risk_1d") == [0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_a_high_payment_is_seen_while_it_is_in_the_window_and_hardly_becomes_usual() -> None:
    """An account that pays 10.00 each day, and on day 20 100.00 too, among three payments of that day."""
    state = state_of()
    paid = [(day, 10.0) for day in range(20)] + [(20, 10.0), (20, 100.0), (20, 10.0)]
    paid += [(day, 10.0) for day in (21, 26, 27, 49, 50)]
    features = state.observe(
        payments([(1, 1, round(10_000 * x), START_MS + day * DAY_MS, 0) for day, x in paid])
    )[-7:]
    # Before the high one, on its day, one and six days after it, seven, and at the two ends of 30 days.
    assert column(features, "account_high_days_7d") == [0, 1, 1, 1, 0, 0, 0]
    highest = column(features, "account_highest_ratio_30d")
    assert highest[0] == highest[-1] == pytest.approx(1)
    assert all(7 < each < 10 for each in highest[1:5])
    assert highest[5] > 2.5


def test_many_high_payments_do_not_hide_each_other() -> None:
    """Three days of ten times the usual amount double the plain mean, and lift the usual one by a third."""
    state = state_of()
    paid = [(day, 10.0) for day in range(25)] + [(day, 100.0) for day in (25, 26, 27)] + [(28, 10.0)]
    features = state.observe(
        payments([(1, 1, round(10_000 * x), START_MS + day * DAY_MS, 0) for day, x in paid])
    )[-1:]
    assert column(features, "account_amount_mean_30d")[0] == pytest.approx(550 / 28)
    assert column(features, "account_highest_ratio_30d")[0] > 7
    assert column(features, "account_high_days_7d") == [3]


def test_a_company_with_ten_thousand_equal_payments_a_day_has_no_high_one() -> None:
    """What rounding in 32 bits does to so many amounts is no spread."""
    state = state_of()
    same = [(1, 1, 12_999_900, START_MS + day * DAY_MS + at, 0) for day in range(2) for at in range(10_000)]
    features = state.observe(payments(same))[-1:]
    assert column(features, "account_highest_ratio_30d") == pytest.approx([1], abs=1e-3)
    assert column(features, "account_high_days_7d") == [0]


def test_an_honest_label_changes_nothing() -> None:
    state, other = state_of(), state_of()
    for each in (state, other):
        each.observe(payments([(1, 9, 10_000, START_MS, 0)]))
    state.learn(labels([(1, 9, START_MS, START_MS, False), (5, 6, START_MS, START_MS, False)]))
    assert (state.account_count, state.terminal_count) == (1, 1)
    later = payments([(1, 9, 10_000, START_MS + 9 * DAY_MS, 0)])
    assert np.array_equal(state.observe(later), other.observe(later))


def test_a_label_that_comes_before_its_payment_is_not_lost() -> None:
    """A worker has read the labels further than another's payments: the terminal learns all the same."""
    early, late = state_of(), state_of()
    known = labels([(1, 9, START_MS, START_MS, True)])
    paid = payments([(1, 9, 10_000, START_MS, 0)])
    assert early.terminals.learn(known) == 1
    assert early.accounts.learn(known) == 0  # held by another worker, for all that this one knows
    early.observe(paid)
    late.observe(paid)
    late.learn(known)
    assert early.terminals.rows.content() == late.terminals.rows.content()
    risks = [
        column(state.observe(payments([(2, 9, 10_000, START_MS + 9 * DAY_MS, 0)])), "terminal_risk_7d")
        for state in (early, late)
    ]
    assert risks == [[1.0], [1.0]]


def test_late_events_are_counted_and_enter_what_is_still_open() -> None:
    """Newest at day 40; two hours late enters all rings, two days late the days', 31 days late none."""
    state = state_of()
    newest = START_MS + 40 * DAY_MS
    late = [newest - 2 * HOUR_MS, newest - 2 * DAY_MS, newest - 31 * DAY_MS]
    features = state.observe(payments([(1, 1, 10_000, at, 0) for at in [newest, *late, newest]]))
    assert state.late_total == 3
    assert state.watermark_ms == newest - HOUR_MS
    assert column(features, "account_count_1d") == [0, 1, 2, 2, 2]
    assert column(features, "account_count_30d") == [0, 1, 2, 3, 3]


def test_growth_changes_no_value() -> None:
    """20,000 accounts through a state that starts with one row, against one that never grows."""
    rng = np.random.default_rng(1)
    n = 60_000
    batch = Payments(
        rng.integers(1, 20_001, n).astype(np.uint64),
        rng.integers(1, 5_001, n).astype(np.uint64),
        rng.integers(100, 1_000_000, n),
        np.sort(START_MS + rng.integers(0, 3 * DAY_MS, n)),
        rng.integers(0, 5, n).astype(np.int8),
    )
    grows = PaymentState(accounts_max=30_000, terminals_max=8_000, accounts_start=1, terminals_start=1)
    ready = PaymentState(
        accounts_max=30_000, terminals_max=8_000, accounts_start=30_000, terminals_start=8_000
    )
    assert np.array_equal(grows.observe(batch), ready.observe(batch))
    assert (grows.account_count, grows.terminal_count) == (ready.account_count, ready.terminal_count)


def test_a_full_state_evicts_what_no_window_sees_else_says_so() -> None:
    """Four rows: the fifth account fits once an old one is out of every window, and not before."""
    state = PaymentState(accounts_max=4, terminals_max=10)
    state.observe(payments([(account, 1, 10_000, START_MS, 0) for account in (1, 2, 3, 4)]))
    with pytest.raises(StateFull, match="all 4 rows for accounts"):
        state.observe(payments([(5, 1, 10_000, START_MS + DAY_MS, 0)]))
    state.observe(payments([(4, 1, 10_000, START_MS + 50 * DAY_MS, 0)]))
    features = state.observe(
        payments([(account, 1, 10_000, START_MS + 50 * DAY_MS, 0) for account in (5, 4)])
    )
    assert column(features, "account_count_30d") == [0, 1]
    assert state.account_count == 2
    assert state.evicted_total == 3


def test_rows_are_within_their_budget() -> None:
    """Row and slots at a power of two of entities: at most 600 bytes an account, 400 a terminal."""
    accounts = PaymentState(accounts_max=1 << 17, terminals_max=1, accounts_start=1 << 17)
    terminals = PaymentState(accounts_max=1, terminals_max=1 << 17, terminals_start=1 << 17)
    assert accounts.nbytes / (1 << 17) <= 600
    assert terminals.nbytes / (1 << 17) <= 400


def test_columns_are_checked_once_at_the_door() -> None:
    good = payments([(1, 1, 1, START_MS, 0)])
    with pytest.raises(ValueError, match="account must be a column of uint64"):
        Payments(good.account.astype(np.int64), good.terminal, good.amount, good.event_ms, good.channel)
    with pytest.raises(ValueError, match="2 rows"):
        Payments(good.account, np.ones(2, np.uint64), good.amount, good.event_ms, good.channel)
    with pytest.raises(ValueError, match="0 is no entity"):
        Payments(np.zeros(1, np.uint64), good.terminal, good.amount, good.event_ms, good.channel)
    with pytest.raises(ValueError, match="1970 to 2199"):
        Payments(good.account, good.terminal, good.amount, -good.event_ms, good.channel)
    with pytest.raises(ValueError, match="label_delay_days must be 0 to 30"):
        FeatureSpec(label_delay_days=31)


def test_the_spec_id_follows_every_setting() -> None:
    assert FeatureSpec().id == FeatureSpec().id
    assert len({FeatureSpec().id, FeatureSpec(3).id, FeatureSpec(utc_offset_minutes=60).id}) == 3
