"""Counterfactuals are the smallest there are, move only what can be moved, and give a payment that can be."""

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pytest

from services.training.additive import AdditiveModel, Calibration, Table
from services.training.errors import TrainingError
from services.training.explain.counterfactual import Search
from services.training.explain.moves import SHIPPED, Moves, Quantiles
from tests.support.slow_features import DAY_MS, HOUR_MS
from tests.support.states import START_MS, payments
from weir.features.payments import FEATURES, PaymentState

AT = {name: index for index, name in enumerate(FEATURES)}
COUNTS = ("account_count_1h", "account_count_1d", "account_count_7d", "account_count_30d")
CHANNELS = ("channel_pos", "channel_ecom", "channel_atm", "channel_transfer")
# How long ago the last payment was is known at least, and an age is held: it is a lever of its own.
BEFORE = ("account_idle_log_s", "account_age_days")
# With pairs whose sides follow from one lever, from two, and from none.
TABLES = (
    ("amount",),
    ("amount_log",),
    ("account_amount_ratio_30d",),
    ("account_amount_zscore_30d", "hour_of_day"),
    ("hour_of_day",),
    ("is_night", "channel_ecom"),
    ("channel_atm",),
    ("account_count_1h", "account_count_7d"),
    ("account_count_1d",),
    ("account_count_30d", "account_amount_mean_7d"),
    ("account_idle_log_s",),
    ("account_age_days", "amount"),
    ("terminal_risk_7d",),
    ("account_highest_ratio_30d",),
    ("account_high_days_7d", "hour_of_day"),
)
EDGES = {
    "amount": (0.5, 1.104, 2.2),
    "amount_log": (0.4, 0.9, 1.25),
    "account_amount_ratio_30d": (0.333, 1.0, 1.7),
    "account_amount_zscore_30d": (-0.7, 0.21, 0.8),
    "hour_of_day": (11.5, 15.5, 20.5),
    "account_count_1h": (0.5,),
    "account_count_1d": (0.5, 1.5),
    "account_count_7d": (1.5, 2.5),
    "account_count_30d": (0.5, 3.5),
    "account_amount_mean_7d": (0.5, 1.5),
    "account_idle_log_s": (9.0, 10.5, 12.0),
    "account_age_days": (29.26, 29.7),
    "account_highest_ratio_30d": (2.0,),
    "account_high_days_7d": (0.5, 1.5),
}


def payment(**values: float) -> np.ndarray:
    """A payment of 3.00 at nine, of an account that pays 2.00 on average with a spread of 1.25."""
    told = {
        "amount": 3.0, "amount_log": np.log1p(3.0), "hour_of_day": 9, "channel_ecom": 1,
        "account_count_1h": 1, "account_count_1d": 2, "account_count_7d": 3, "account_count_30d": 5,
        "account_amount_mean_1d": 2.0, "account_amount_mean_7d": 2.0, "account_amount_mean_30d": 2.0,
        "account_amount_ratio_30d": 1.5, "account_amount_zscore_30d": 0.8,
        "account_idle_log_s": np.log1p(1800.0), "account_age_days": 29.0,
        "account_highest_ratio_30d": 4.0, "account_high_days_7d": 2,
        "terminal_fraud_first_days": 38, "terminal_fraud_last_days": 38,
    }  # fmt: skip
    row = np.zeros(len(FEATURES), np.float32)
    for name, value in (told | values).items():
        row[AT[name]] = value
    return row


def random_model(seed: int) -> AdditiveModel:
    random = np.random.default_rng(seed)
    tables = []
    for names in TABLES:
        used = tuple(AT[name] for name in sorted(names, key=AT.__getitem__))
        edges = tuple(np.array([*EDGES.get(FEATURES[each], (0.5,)), np.inf], np.float32) for each in used)
        values = random.normal(size=[len(axis) + 1 for axis in edges])
        tables.append(Table(used, edges, (values / len(used),) * len(used)))
    return AdditiveModel(FEATURES, tuple(tables), 1.0, Calibration(0.9, 1.1, -0.1))


def training_rows() -> np.ndarray:
    """Rows that span all that the levers can reach, unevenly."""
    random = np.random.default_rng(3)
    x = np.tile(payment(), (300, 1))
    x[:, AT["amount"]] = np.round(random.gamma(2, 1.5, 300), 2)
    x[:, AT["hour_of_day"]] = random.integers(0, 24, 300)
    for name, most in zip(COUNTS, (2, 4, 6, 9), strict=True):
        x[:, AT[name]] = random.integers(0, most, 300)
    x[:, AT["account_age_days"]] = random.integers(0, 721, 300) / np.float32(24)
    x[:, [AT[name] for name in CHANNELS]] = np.eye(4)[random.integers(0, 3, 300)]  # nobody transfers
    x[0, AT["amount"]], x[0, AT["account_age_days"]] = 0.01, 30
    return x


@dataclass(frozen=True)
class Brute:
    """Every value that a lever could take, with what follows written out for a single row."""

    training: np.ndarray

    def values(self, lever: str, row: np.ndarray) -> list[float]:
        if lever == "channel":
            names = [n for n in CHANNELS if row[AT[n]] == 0 and self.training[:, AT[n]].any()]
            return [float(CHANNELS.index(name)) for name in names]
        now = float(row[AT[lever]])
        column = self.training[:, AT[lever]]
        if lever == "amount":
            found = [np.float32(cents / 100) for cents in range(1, round(now * 100))]
        elif lever == "hour_of_day":
            found = list(range(int(now) + 1, 24))
        elif lever == "account_age_days":
            found = [np.float32(hours / 24) for hours in range(round(now * 24) + 1, 721)]
        else:
            found = list(range(int(now)))
        return [float(value) for value in found if column.min() <= value <= column.max()]

    def shift(self, lever: str, value: float, row: np.ndarray) -> float:
        if lever == "channel":
            return 1 - float((self.training[:, AT[CHANNELS[int(value)]]] > 0).mean())
        column = self.training[:, AT[lever]]

        def quantile(at: float) -> float:
            return float((column < np.float32(at)).mean() + (column == np.float32(at)).mean() / 2)

        return abs(quantile(value) - quantile(row[AT[lever]]))

    def after(self, row: np.ndarray, moved: dict[str, float]) -> np.ndarray:
        out = {name: float(row[at]) for name, at in AT.items()}
        counts = [out[name] for name in COUNTS]
        for lever, value in moved.items():
            if lever == "channel":
                out |= {name: float(CHANNELS[int(value)] == name) for name in CHANNELS}
            else:
                out[lever] = value
        waited = out["hour_of_day"] - float(row[AT["hour_of_day"]])
        if waited:
            out["is_night"] = float(out["hour_of_day"] < 7)
            out["account_count_1h"] = 0
            idle = min(np.expm1(out["account_idle_log_s"]) + 3600 * waited, 30 * 86_400)
            out["account_idle_log_s"] = np.log1p(idle)
            age = min(float(row[AT["account_age_days"]]) + waited / 24, 30)
            out["account_age_days"] = max(out["account_age_days"], age)
        for short, long in reversed(list(pairwise(COUNTS))):
            out[short] = min(out[short], out[long])
        for name, before, hours in zip(COUNTS[1:], counts[1:], (23, 144, 696), strict=True):
            if out[name] == 0 < before:
                out[name.replace("_count_", "_amount_mean_")] = 0
                out["account_idle_log_s"] = max(out["account_idle_log_s"], np.log1p(hours * 3600))
        out["account_high_days_7d"] = min(out["account_high_days_7d"], out["account_count_7d"])
        if out["account_count_30d"] == 0:
            out["account_amount_ratio_30d"], out["account_amount_zscore_30d"] = 1, 0
            out["account_highest_ratio_30d"] = 1
        else:
            out["account_amount_ratio_30d"] = out["amount"] / 2
            out["account_amount_zscore_30d"] = (out["amount"] - 2) / 1.25
        out["amount_log"] = np.log1p(out["amount"])
        return np.array([out[name] for name in FEATURES], np.float32)

    def nearest(self, model: AdditiveModel, row: np.ndarray, threshold: float) -> tuple[int, float] | None:
        """How many levers it takes, 1 or 2, and how near the nearest such change is."""
        levers = ("amount", "hour_of_day", "channel", *COUNTS[1:], "account_age_days")
        for size in (1, 2):
            rows, far = [], []
            for group in combinations(levers, size):
                options = [[(lever, value) for value in self.values(lever, row)] for lever in group]
                pairs = options[0] if size == 1 else None
                picks = (
                    [(each,) for each in pairs]
                    if pairs
                    else [(a, b) for a in options[0] for b in options[-1]]
                )
                for pick in picks:
                    if len(pick) == size:
                        rows.append(self.after(row, dict(pick)))
                        far.append(sum(self.shift(lever, value, row) for lever, value in pick))
            below = model.probability(np.array(rows)) < threshold
            if below.any():
                return size, float(np.array(far)[below].min())
        return None


def search(model: AdditiveModel, x: np.ndarray | None = None) -> Search:
    return Search(model, Moves.load(), Quantiles.of(training_rows() if x is None else x))


def test_one_and_two_levers_are_as_near_as_brute_force_over_every_value_finds():
    row, x, sizes = payment(), training_rows(), []
    brute = Brute(x)
    for seed in range(8):
        model = random_model(seed)
        now = float(model.probability(row[None])[0])
        for share in (0.3, 0.03, 0.01):
            expected = brute.nearest(model, row, now * share)
            found = search(model, x).nearest(row, now * share, levers_max=2)
            told = found and (len(found.changes), pytest.approx(found.distance, abs=1e-9))
            assert expected == told, (seed, share)
            assert found is None or (found.exact and found.probability < now * share)
            sizes.append(expected and expected[0])
    assert min(sizes.count(size) for size in (1, 2, None)) >= 2, "some way to end was hardly tried"


def test_what_follows_is_what_the_features_would_be():
    row, moves, brute = payment(), Moves.load(), Brute(training_rows())
    for moved in (
        {"amount": 1.25},
        {"hour_of_day": 14.0},
        {"account_count_7d": 0.0},
        {"account_count_30d": 0.0, "amount": 0.5},
        {"account_count_1d": 1.0, "hour_of_day": 23.0},
        {"account_count_7d": 1.0, "hour_of_day": 15.0, "amount": 2.0},
    ):
        changed = row.copy()
        for name, value in moved.items():
            changed[AT[name]] = value
        np.testing.assert_allclose(
            moves.settled(changed[None], row)[0], brute.after(row, moved), rtol=1e-6, err_msg=str(moved)
        )


Past = tuple[tuple[int, float], ...]
# Hours before the payment, and amounts; the last, a day ago, is far above the others.
REGULAR: Past = (*((hours, 10.0 + hours % 7) for hours in range(120, 24, -20)), (24, 900.0))


def observed(past: Past, amount: float = 40.0, *, ago: int = 0) -> np.ndarray:
    """The features of a payment at nine, of an account with this past, all of it `ago` days earlier."""
    now_ms = START_MS + 90 * DAY_MS + 9 * HOUR_MS
    rows = [(1, 1, round(x * 10_000), now_ms - hours * HOUR_MS - ago * DAY_MS, 1) for hours, x in past]
    rows.append((1, 2, round(amount * 10_000), now_ms, 1))
    return PaymentState(accounts_max=10, terminals_max=10).observe(payments(rows))[-1]


def settled(row: np.ndarray, **moved: float) -> np.ndarray:
    out = row.copy()
    for name, value in moved.items():
        out[AT[name]] = value
    return Moves.load().settled(out[None], row)[0]


@pytest.mark.parametrize("past", [REGULAR, REGULAR[:1], ((400, 0.01), (30, 0.01)), ()])
def test_a_lower_amount_is_told_as_the_features_of_that_payment_are(past):
    """Of every feature, of accounts that are known, hardly known, pay next to nothing, or are new."""
    row = observed(past)
    for amount in (39.99, 14.0, 9.99, 0.01):
        # A score tells the spread in 32 bits, and it is divided by that again.
        np.testing.assert_allclose(settled(row, amount=amount), observed(past, amount), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "ago"), [("7d", 8), ("30d", 31)])
def test_an_account_whose_window_is_emptied_is_told_as_one_that_paid_before_it(window, ago):
    """Its last payment, a high one, leaves the window with the others."""
    row, expected = observed(REGULAR), observed(REGULAR, ago=ago)
    assert row[AT["account_highest_ratio_30d"]] > 10
    assert row[AT["account_high_days_7d"]] == 1
    told = settled(row, **{f"account_count_{window}": 0})
    names = [name for name in FEATURES if name.startswith(("amount", "account_")) and name not in BEFORE]
    for name in names:
        assert told[AT[name]] == pytest.approx(expected[AT[name]], rel=1e-5, abs=1e-6), name


def test_a_week_has_no_more_high_days_than_payments():
    """Counts of 12, 9 and 6 high days: the fourth payment is the first that leaves too many."""
    edges = (np.array([3.5, np.inf], np.float32),)
    table = Table((AT["account_high_days_7d"],), edges, (np.array([-3.0, 3.0, 0.0]),))
    row = payment(account_count_7d=9, account_count_30d=12, account_high_days_7d=6)
    found = search(AdditiveModel(FEATURES, (table,), 0.0)).nearest(row, 0.5)
    assert found is not None
    assert [found.row[AT[name]] for name in ("account_count_7d", "account_high_days_7d")] == [3, 3]
    assert [change.lever.name for change in found.changes] == ["account_count_7d"]
    assert settled(row, account_count_7d=8)[AT["account_high_days_7d"]] == 6


def test_a_first_payment_is_as_usual_whatever_its_amount_and_hour():
    row = observed(())
    for moved in ({"amount": 0.01}, {"hour_of_day": 23}, {"amount": 1, "hour_of_day": 20}):
        told = settled(row, **moved)
        assert [told[AT[name]] for name in ("account_highest_ratio_30d", "account_high_days_7d")] == [1, 0]
        assert told[AT["account_amount_ratio_30d"]] == 1


def test_windows_stay_nested_and_only_levers_and_what_follows_move():
    model, row = random_model(1), payment()
    moves = Moves.load()
    fixed = [
        AT[name] for name in FEATURES if name.startswith("terminal_") or name == "account_fraud_count_30d"
    ]
    for lever in moves.levers:
        values = moves.choices(lever, row, model, Quantiles.of(training_rows()))
        rows = np.tile(row, (len(values), 1))
        rows[:, list(moves.index(lever))] = values
        out = moves.settled(rows, row)
        counts = out[:, [AT[name] for name in COUNTS]]
        assert (np.diff(counts, axis=1) >= 0).all()
        assert (out[:, fixed] == row[fixed]).all()
        assert (out[:, [AT[name] for name in CHANNELS]].sum(axis=1) <= 1).all()


def test_a_row_left_alone_stays_what_it_was_to_the_bit():
    row = payment(amount=7.77, account_amount_ratio_30d=3.885, account_amount_zscore_30d=100)
    assert (Moves.load().settled(row[None], row)[0] == row).all()


def test_a_row_below_the_threshold_needs_no_change():
    model, row = random_model(0), payment()
    found = search(model).nearest(row, 1.0)
    assert found is not None
    assert not found.changes
    assert found.distance == 0


def test_where_only_fixed_features_speak_there_is_no_counterfactual():
    column = AT["account_fraud_count_30d"]
    table = Table((column,), (np.array([0.5, np.inf], np.float32),), (np.array([-3.0, 3.0, 0.0]),))
    model = AdditiveModel(FEATURES, (table,), 0.0)
    assert search(model).nearest(payment(account_fraud_count_30d=2), 0.5) is None


def test_three_levers_are_found_where_two_are_not_enough():
    def step(name: str, edge: float, low: float, high: float) -> Table:
        return Table((AT[name],), (np.array([edge, np.inf], np.float32),), (np.array([low, high, 0.0]),))

    tables = (
        step("amount", 1.0, -1.0, 1.0),
        step("channel_ecom", 0.5, -1.0, 1.0),
        step("account_age_days", 29.5, 1.0, -1.0),
    )
    model = AdditiveModel(FEATURES, tables, 0.0)
    threshold = float(Calibration()(np.array([-2.9]))[0])
    found = search(model).nearest(payment(), threshold)
    assert found is not None
    assert {change.lever.name for change in found.changes} == {"amount", "channel", "account_age_days"}
    assert not found.exact
    assert found.row[AT["amount"]] == 1.0  # the nearest cent of its cell
    assert search(model).nearest(payment(), threshold, levers_max=2) is None


def test_what_nobody_ever_did_is_not_proposed():
    x = training_rows()
    column = AT["channel_transfer"]
    table = Table((column,), (np.array([0.5, np.inf], np.float32),), (np.array([3.0, -3.0, 0.0]),))
    model = AdditiveModel(FEATURES, (table,), 0.0)
    assert search(model, x).nearest(payment(), 0.5) is None
    x[0, [AT[name] for name in CHANNELS]] = (0, 0, 0, 1)
    found = search(model, x).nearest(payment(), 0.5)
    assert found is not None
    assert found.row[column] == 1
    assert found.row[AT["channel_ecom"]] == 0


def test_a_value_that_is_missing_is_not_moved_and_moves_nothing():
    model = random_model(2)
    row = payment(amount=np.nan, account_count_7d=np.nan, hour_of_day=np.nan)
    moves, seen = Moves.load(), Quantiles.of(training_rows())
    for lever in moves.levers:
        if lever.name in ("amount", "account_count_7d", "hour_of_day"):
            assert not len(moves.choices(lever, row, model, seen))
    settled = moves.settled(row[None], row)[0]
    assert np.array_equal(settled, row, equal_nan=True)
    assert np.isnan(seen.at(AT["amount"], row[AT["amount"] : AT["amount"] + 1])).all()
    found = search(model).nearest(row, 0.999)
    assert found is None or np.isnan(found.row[AT["amount"]])


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(TrainingError, match="at most 1"):
        search(random_model(0)).nearest(payment(), threshold)


def test_every_feature_must_be_a_lever_follow_or_be_fixed(tmp_path):
    text = SHIPPED.read_text(encoding="utf-8")
    path = tmp_path / "moves.toml"
    for changed, says in (
        (text.replace("is_weekend =", "is_sunday ="), "is_sunday"),
        (text.replace("[fixed]\n", '[fixed]\namount = "twice"\n'), "amount must stand once"),
        (text.replace('moves = "down"', 'moves = "sideways"'), "moves"),
        ("[lever.amount", "not a file of levers"),
    ):
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(TrainingError, match=says):
            Moves.load(path)
    with pytest.raises(TrainingError, match="cannot be read"):
        Moves.load(tmp_path / "none.toml")
