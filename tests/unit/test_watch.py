"""A watched model: chance raises few alarms, a change is found, what cannot be judged is not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.training.data import DAY_MS, NEVER_MS, Events
from services.training.errors import DataMissing
from services.training.split import Window
from services.training.watch.draws import Figures, difference, draw, samples
from services.training.watch.drift import SCORE, Bins, Drift, Limits, drift, psi
from services.training.watch.errors import WatchRefused
from services.training.watch.fairness import Groups, fairness, read_groups
from services.training.watch.grouped import Clusters, benjamini_hochberg, compare, kolmogorov_smirnov
from services.training.watch.performance import performance
from services.training.watch.slices import auc_influence, slices
from services.training.watch.weeks import Watched, reference_of, weeks_after, window_of
from weir.features.payments import Labels, Payments

DAYS, RIPE = 42, 7
Change = Callable[[dict[str, Any]], None]


def world(seed: int, change: Change | None = None, *, accounts: int = 250, days: int = DAYS) -> Watched:
    """A bank whose accounts differ, and pay in bursts; `change` may alter its columns."""
    random = np.random.default_rng(seed)
    level = random.normal(size=accounts)
    burst = random.gamma(0.5, 2 * 1.7, (accounts, days // 7)) + 0.3
    count = random.poisson(burst)
    account = np.repeat(np.arange(accounts), count.sum(axis=1))
    week = np.concatenate([np.repeat(np.arange(days // 7), row) for row in count])
    event_ms = week * 7 * DAY_MS + random.integers(0, 7 * DAY_MS, len(week))
    own = level[account] + 0.3 * random.normal(size=len(account))
    score = -3 + 1.5 * random.normal(size=len(account))
    columns: dict[str, Any] = {
        "account": account,
        "terminal": random.integers(0, 60, len(account)),
        "event_ms": event_ms,
        "own": own,
        "noise": random.normal(size=len(account)),
        "flag": (random.random(len(account)) < 0.1).astype(float),
        "constant": np.ones(len(account)),
        "missing": np.full(len(account), np.nan),
        "score": score,
        "fraud": random.random(len(account)) < 1 / (1 + np.exp(-score)),
        "delay": random.integers(1, 5, len(account)) * DAY_MS,
    }
    if change is not None:
        change(columns)
    order = np.argsort(columns["event_ms"], kind="stable")
    columns = {name: np.asarray(column)[order] for name, column in columns.items()}
    return watched(columns)


def watched(columns: dict[str, Any]) -> Watched:
    event_ms, fraud = columns["event_ms"].astype(np.int64), columns["fraud"]
    n = len(event_ms)
    payments = Payments(
        account=columns["account"].astype(np.uint64) + np.uint64(1),
        terminal=columns["terminal"].astype(np.uint64) + np.uint64(1),
        amount=np.full(n, 500_000),
        event_ms=event_ms,
        channel=(columns["terminal"] % 3).astype(np.int8),
    )
    reported = np.where(fraud, event_ms + columns["delay"], NEVER_MS)
    empty = (np.empty(0, np.uint64),) * 2 + (np.empty(0, np.int64),) * 2 + (np.empty(0, np.bool_),)
    events = Events(payments, Labels(*empty), fraud, reported, "weir", "")
    names = ("own", "noise", "flag", "constant", "missing")
    now_ms = DAYS * DAY_MS
    reference = Window(0, 14 * DAY_MS)
    weeks = weeks_after(reference, np.append(event_ms, now_ms - 1), now_ms=now_ms, ripe_days=RIPE)
    x = np.stack([columns[name] for name in names], axis=1).astype(np.float32)
    score = columns["score"]
    return Watched(events, x, score, 1 / (1 + np.exp(-score)), names, reference, weeks, now_ms, RIPE)


def later(columns: dict[str, Any], day: int = 21) -> np.ndarray:
    return np.asarray(columns["event_ms"] >= day * DAY_MS)


def levels(found: Drift) -> dict[str, set[str]]:
    """The weeks in which each feature drifted."""
    out: dict[str, set[str]] = {}
    for each in found.moved:
        if each.level:
            out.setdefault(each.feature, set()).add(each.week)
    return out


@pytest.fixture(scope="module")
def quiet() -> list[Drift]:
    """Thirty banks in which nothing changes."""
    return [drift(world(seed)) for seed in range(30)]


def test_without_drift_the_test_rejects_no_more_often_than_it_says(quiet):
    for feature in ("own", "noise", "flag", SCORE):
        p = np.array([each.p for found in quiet for each in found.moved if each.feature == feature])
        assert len(p) == 120
        assert (p < 0.05).mean() < 0.11, feature  # 0.05, and four standard errors less the weeks' dependence
        assert (p < 0.5).mean() > 0.2, feature  # nor does it never reject


def test_without_drift_few_banks_raise_any_alarm_even_when_no_size_is_asked_for():
    none = Limits(psi=0.0)
    alarmed = sum(bool(levels(drift(world(seed), none))) for seed in range(100, 130))
    assert alarmed <= 5


def test_rows_taken_for_independent_would_cry_wolf_where_accounts_pay_in_bursts():
    """The reason for clusters: the same test, each row its own cluster, rejects half a quiet bank's weeks."""
    alone, together = [], []
    for seed in range(12):
        bank = world(seed)
        before = bank.rows(bank.reference)
        for week in bank.weeks:
            rows = np.concatenate([np.flatnonzero(before), np.flatnonzero(bank.rows(week.window))])
            first, own = int(before.sum()), Bins.of(bank.x[before, 0])
            account = bank.events.payments.account[rows]
            cells = own.cells(bank.x[rows, 0])
            ids = np.arange(len(rows))
            alone.append(compare(cells, own.count, Clusters.of(ids[:first], ids[first:])).p)
            together.append(compare(cells, own.count, Clusters.of(account[:first], account[first:])).p)
    assert np.mean(np.array(alone) < 0.05) > 0.3
    assert np.mean(np.array(together) < 0.05) < 0.15


def test_a_shifted_feature_is_found_in_its_weeks_and_no_other_feature_is():
    def shift(columns: dict[str, Any]) -> None:
        columns["noise"] = columns["noise"] + 1.0 * later(columns, 28)

    assert levels(drift(world(3, shift))) == {"noise": {"1970-01-29", "1970-02-05"}}


def test_a_shifted_score_is_found():
    def shift(columns: dict[str, Any]) -> None:
        columns["score"] = columns["score"] + 1.5 * later(columns)

    assert len(levels(drift(world(4, shift)))[SCORE]) == 3


def test_a_small_shift_that_is_certain_is_no_drift_and_a_large_one_of_few_rows_is_none_either():
    def shift(columns: dict[str, Any]) -> None:
        columns["noise"] = columns["noise"] + 0.2 * later(columns)

    found = [each for each in drift(world(5, shift, accounts=3000)).moved if each.feature == "noise"]
    assert any(each.q < 1e-3 for each in found)
    assert not any(each.level for each in found)
    few = compare(np.array([0] * 20 + [1] * 20 + [0] * 3 + [1] * 7), 2, Clusters.of(range(40), range(10)))
    assert psi(few.reference, few.later) > 0.1
    assert few.p > 0.05


def test_one_account_with_very_many_payments_raises_no_alarm_by_itself():
    def flood(columns: dict[str, Any]) -> None:
        rows = np.flatnonzero(columns["event_ms"] >= 28 * DAY_MS)[:1]
        for name, column in list(columns.items()):
            columns[name] = np.concatenate([column, np.repeat(np.asarray(column)[rows], 4000)])
        columns["event_ms"][-4000:] = 28 * DAY_MS + np.arange(4000) * 100_000
        columns["terminal"][-4000:] = np.arange(4000) % 60
        columns["noise"][-4000:] = 3.0

    found = drift(world(6, flood))
    flooded = [each for each in found.moved if each.feature == "noise" and each.week == "1970-01-29"]
    assert flooded[0].psi > 1
    assert levels(found) == {}


def test_a_week_that_is_one_account_is_too_small_to_judge():
    def lone(columns: dict[str, Any]) -> None:
        columns["account"] = np.where(later(columns, 35), 7, columns["account"])

    found = drift(world(7, lone))
    assert found.skipped["1970-02-05"].startswith("too small")


def test_a_constant_feature_and_one_that_is_all_missing_stand_still(quiet):
    for each in quiet[0].moved:
        if each.feature in ("constant", "missing"):
            assert (each.psi, each.p, each.level) == (0.0, 1.0, "")


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_value_never_seen_in_a_constant_feature_is_drift_on_either_side(value):
    def new(columns: dict[str, Any]) -> None:
        columns["constant"] = np.where(later(columns) & (columns["account"] % 2 == 0), value, 1.0)

    assert len(levels(drift(world(8, new)))["constant"]) == 3


def test_a_feature_that_goes_missing_drifts_and_one_that_comes_back_does_too():
    def swap(columns: dict[str, Any]) -> None:
        columns["noise"] = np.where(later(columns), np.nan, columns["noise"])
        columns["missing"] = np.where(later(columns), 1.0, np.nan)

    found = drift(world(9, swap))
    assert set(levels(found)) == {"noise", "missing"}
    gone = next(each for each in found.moved if each.feature == "noise" and each.level)
    assert (gone.missing_reference, gone.missing) == (0.0, 1.0)
    assert np.isnan(gone.ks)


def test_an_empty_week_and_a_week_without_fraud_are_told_and_break_nothing():
    def hole(columns: dict[str, Any]) -> None:
        keep = (columns["event_ms"] < 21 * DAY_MS) | (columns["event_ms"] >= 28 * DAY_MS)
        for name, column in list(columns.items()):
            columns[name] = np.asarray(column)[keep]
        columns["fraud"] = columns["fraud"] & ~(later(columns, 28) & ~later(columns, 35))

    bank = world(10, hole)
    found, judged = drift(bank), performance(bank, draws=20)
    assert found.skipped["1970-01-22"] == "no payments"
    assert judged.skipped["1970-01-29"].startswith("0 frauds")
    rate = next(each for each in found.rates if each.week == "1970-01-29")
    assert rate.rate == 0
    assert rate.drifted


def test_a_week_whose_labels_still_come_in_is_not_said_to_have_less_fraud():
    bank = world(11, accounts=1500)
    newest = drift(bank).rates[-1]
    assert not newest.ripe
    assert np.isnan(newest.rate)
    assert not newest.drifted
    assert performance(bank, draws=20).skipped[newest.week] == "labels still come in"
    hurried = drift(replace(bank, weeks=tuple(replace(week, ripe=True) for week in bank.weeks)))
    assert hurried.rates[-1].rate < 0.8 * hurried.rates[-1].rate_reference  # what a naive reader would see


def test_labels_count_by_the_same_age_in_every_week():
    def slow(columns: dict[str, Any]) -> None:
        columns["delay"] = np.where(columns["account"] % 2 == 0, 20 * DAY_MS, DAY_MS)

    bank = world(12, slow)
    assert (
        0.4 < bank.in_time < 0.6
    )  # the slow half of the reference's frauds is known by now, yet not counted
    assert not any(each.drifted for each in drift(bank).rates)


def test_a_fraud_rate_that_doubles_is_found():
    def double(columns: dict[str, Any]) -> None:
        extra = np.random.default_rng(0).random(len(columns["fraud"])) < 0.15
        columns["fraud"] = columns["fraud"] | (extra & later(columns))

    assert [each.drifted for each in drift(world(13, double)).rates] == [False, True, True, False]


def test_tied_quantiles_share_a_bin_and_every_value_has_exactly_one():
    column = np.array([0.0] * 95 + [1, 2, 3, np.nan, np.inf], np.float32)
    bins = Bins.of(column)
    cells = bins.cells(np.array([-1, 0, 0.5, 3, np.inf, np.nan], np.float32))
    assert (np.diff(bins.edges) > 0).all()
    assert cells.min() >= 0
    assert cells.max() == bins.count - 1
    assert cells[0] < cells[1] < cells[3]
    assert cells[-1] == bins.count - 1


def test_psi_is_zero_for_the_same_shares_and_finite_for_an_empty_bin():
    assert psi(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    assert psi(np.array([0.5, 0.5, 0]), np.array([0.5, 0, 0.5])) == pytest.approx(
        2 * (0.5 - 1e-4) * np.log(0.5 / 1e-4)
    )


def test_for_independent_rows_the_chance_psi_is_that_of_yurdakul_and_naranjo():
    random = np.random.default_rng(1)
    n, m, cells = 20_000, 8_000, 10
    compared = compare(random.integers(0, cells, n + m), cells, Clusters.of(range(n), range(n, n + m)))
    assert compared.chance == pytest.approx((cells - 1) * (1 / n + 1 / m), rel=0.05)


def test_the_distance_of_two_windows_and_the_false_discovery_rate_are_the_textbooks():
    assert kolmogorov_smirnov(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == 0.5
    q = benjamini_hochberg([0.01, 0.04, 0.03, np.nan, 0.5])
    assert q[:3] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3])
    assert np.isnan(q[3])


# -- performance, slices, groups --


def test_a_model_that_stops_ranking_is_said_to_have_fallen_from_that_week_on():
    def scramble(columns: dict[str, Any]) -> None:
        mixed = np.random.default_rng(0).permutation(columns["score"])
        columns["score"] = np.where(later(columns), mixed, columns["score"])

    judged = performance(world(14, scramble, accounts=500), draws=60)
    assert [("auc_roc" in week.fallen) for week in judged.weeks] == [False, True, True]


def test_a_model_that_ranks_as_before_is_seldom_said_to_have_fallen():
    fallen = [any(week.fallen for week in performance(world(seed), draws=40).weeks) for seed in range(12)]
    assert sum(fallen) <= 2


def test_less_fraud_alone_is_no_fall_of_the_average_precision_that_alarms():
    def fewer(columns: dict[str, Any]) -> None:
        kept = np.random.default_rng(0).random(len(columns["fraud"])) < 0.3
        kept |= ~(columns["fraud"] & later(columns))
        for name, column in list(columns.items()):
            columns[name] = np.asarray(column)[kept]

    judged = performance(world(15, fewer, accounts=800), draws=60)
    last = judged.weeks[-1]
    assert last.differences["average_precision"].high < 0
    assert "average_precision_same_rate" not in last.fallen
    assert "observed_expected" in last.fallen


def test_a_reference_without_labelled_frauds_is_refused_in_one_line():
    def none(columns: dict[str, Any]) -> None:
        columns["fraud"] = columns["fraud"] & later(columns)

    with pytest.raises(WatchRefused, match="--reference-days"):
        performance(world(16, none), draws=5)


def test_a_figure_and_its_difference_to_itself_agree():
    bank = world(17)
    rows = bank.judged_rows(bank.reference)
    (one, two), accounts = samples(bank, [rows, rows])
    drawn = draw([Figures(one), Figures(two)], accounts, draws=10, seed=1)
    same = difference(drawn[0], drawn[1], "auc_roc")
    assert (same.value, same.low, same.high, same.p, same.sure) == (0, 0, 0, 1, False)


def test_the_worst_slice_is_found_and_a_small_one_is_not_judged():
    def blind(columns: dict[str, Any]) -> None:
        mixed = np.random.default_rng(0).permutation(columns["score"])
        columns["score"] = np.where(columns["terminal"] % 3 == 1, mixed, columns["score"])

    found = slices(world(18, blind, accounts=600))
    assert "channel ECOM" in [each.name for each in found.worst]
    assert all("ECOM" in each.name for each in found.worst)
    assert [each.name for each in found.single if each.auc_roc is None] == []
    small = slices(world(18, accounts=110))
    assert any(each.auc_roc is None and each.frauds < 30 for each in small.single)
    for each in small.single:
        assert (each.auc_roc is None) == (each.frauds < 30)


def test_the_spread_of_a_slice_is_that_of_the_bootstrap_over_accounts():
    bank = world(19, accounts=500)
    (sample,), accounts = samples(bank, [bank.judged_rows(bank.reference)])
    auc, influence = auc_influence(sample, np.ones(len(sample.score), np.bool_), accounts)
    (drawn,) = draw([Figures(sample, cards=False)], accounts, draws=300, seed=1)
    assert auc == pytest.approx(drawn.value["auc_roc"])
    assert np.sqrt((influence**2).sum()) == pytest.approx(drawn.draws["auc_roc"].std(), rel=0.2)


def groups_of(bank: Watched, code: np.ndarray, names: tuple[str, ...]) -> Groups:
    return Groups(np.unique(bank.events.payments.account), code.astype(np.int64), names)


def test_a_group_that_is_stopped_far_more_often_is_below_four_fifths_and_chance_is_not():
    def against(columns: dict[str, Any]) -> None:
        columns["score"] = columns["score"] + 3.0 * (columns["account"] % 2 == 1)

    bank = world(20, against, accounts=400)
    parity = (np.unique(bank.events.payments.account) - 1) % 2
    found = fairness(bank, groups_of(bank, parity, ("even", "odd")), decline_at=0.5, review_at=0.3, draws=50)
    assert {each.group: each.below_four_fifths for each in found.groups} == {"even": False, "odd": True}
    odd = next(each for each in found.groups if each.group == "odd")
    assert odd.rates["stopped_ratio"].low > 1
    fair = world(21, accounts=400)
    drawn = np.random.default_rng(0).integers(0, 2, len(np.unique(fair.events.payments.account)))
    found = fairness(fair, groups_of(fair, drawn, ("a", "b")), decline_at=0.5, review_at=0.3, draws=50)
    assert not any(each.below_four_fifths for each in found.groups)


def test_a_group_too_small_to_hide_a_person_in_is_counted_and_not_shown():
    bank = world(22)
    code = np.zeros(len(np.unique(bank.events.payments.account)))
    code[:20] = 1
    found = fairness(bank, groups_of(bank, code, ("many", "few")), decline_at=0.5, review_at=0.3, draws=10)
    assert [each.group for each in found.groups] == ["many"]
    assert found.not_shown == 1
    assert "few" not in str(found.as_dict())


def test_the_handbooks_customers_are_found_in_a_file_of_groups(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("account_id,group\n3,b\n0,a\n")
    groups = read_groups(file, "handbook")
    names = [(*groups.names, "?")[each] for each in groups.of(np.array([1, 2, 4, 99], np.uint64))]
    assert names == ["a", "?", "b", "?"]
    with pytest.raises(DataMissing, match="--groups"):
        read_groups(tmp_path / "none.csv", "handbook")


# -- windows --


def test_the_reference_is_the_versions_own_window_else_the_first_days_and_the_reader_is_told():
    moments = np.array([0, 200 * DAY_MS], np.int64)
    own, notes = reference_of(moments, "1970-03-01..1970-03-07", None)
    assert (str(own), notes) == ("1970-03-01..1970-03-07", [])
    first, notes = reference_of(moments, "2020-03-01..2020-03-07", None)
    assert first == Window(0, 14 * DAY_MS)
    assert "does not hold" in notes[0]
    assert "still filling" in notes[1]
    with pytest.raises(WatchRefused, match="no day after"):
        reference_of(moments, None, 201)
    with pytest.raises(WatchRefused, match="no window"):
        window_of("yesterday")
