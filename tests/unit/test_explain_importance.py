"""What the model goes by, against its definitions; and how steady its reasons are."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from services.training.additive import AdditiveModel, Floats32, Table
from services.training.errors import TrainingError
from services.training.evaluate import average_precision
from services.training.explain import importance, report, stability
from services.training.explain.moves import Moves
from weir.features.payments import FEATURES

F = 4
NAMES = ("a", "b", "c", "d")


def table(features: tuple[int, ...], edges: tuple[tuple[float, ...], ...], seed: int) -> Table:
    random = np.random.default_rng(seed)
    shape = [len(axis) + 1 for axis in edges]
    shares = tuple(random.normal(size=shape) for _ in features)
    return Table(features, tuple(np.array(axis, np.float32) for axis in edges), shares)


def model() -> AdditiveModel:
    """Singles, pairs on both sides, edges that differ between tables, nan apart in some; `d` in none."""
    tables = (
        table((0,), ((0.0, 1.0, np.inf),), 1),
        table((0, 1), ((0.5, np.inf), (-1.0, 0.0)), 2),
        table((1, 2), ((0.25, np.inf), (0.0, 2.0, np.inf)), 3),
        table((2,), ((1.0,),), 4),
    )
    return AdditiveModel(NAMES, tables, -2.0)


def rows(count: int = 400, seed: int = 5) -> Floats32:
    x = np.random.default_rng(seed).normal(size=(count, F)).astype(np.float32)
    x[::17, 0] = np.nan
    x[::23, 2] = np.nan
    return x


def test_partial_dependence_is_the_mean_prediction_with_the_feature_set_for_every_row():
    whole, x = model(), rows()
    shapes = {effect.feature: effect for effect in importance.effects(whole, x)}
    assert set(shapes) == {"a", "b", "c"}
    for feature, name in enumerate(NAMES[:3]):
        effect = shapes[name]
        inside = np.append(effect.edges, np.nan)
        for value, logit in zip(inside, effect.logit, strict=True):
            everybody = x.copy()
            everybody[:, feature] = value
            assert logit == pytest.approx(float(whole.logit(everybody).mean()), abs=1e-9)


def test_shares_of_payments_count_the_rows_of_each_cell_with_those_of_nan_apart():
    x = rows()
    effect = next(each for each in importance.effects(model(), x) if each.feature == "a")
    assert effect.share.sum() == pytest.approx(1)
    assert list(effect.edges) == [0.0, 0.5, 1.0, np.inf]
    assert effect.share[-1] == pytest.approx(np.isnan(x[:, 0]).mean())
    assert effect.share[1] == pytest.approx(((x[:, 0] > 0) & (x[:, 0] <= 0.5)).mean())


def judged(count: int = 600) -> tuple[Floats32, np.ndarray, np.ndarray]:
    x = rows(count)
    chance = 1 / (1 + np.exp(-3 * model().logit(x) - 4))
    random = np.random.default_rng(8)
    return x, random.random(count) < chance, random.integers(0, 60, count).astype(np.uint64)


def test_importance_is_the_mean_contribution_and_what_a_shuffle_of_the_column_costs():
    whole, (x, fraud, account) = model(), judged()
    found = {each.feature: each for each in importance.weights(whole, x, fraud, account, draws=40, seed=2)}
    assert set(found) == {"a", "b", "c"}
    moved = np.abs(whole.contributions(x)).mean(axis=0)
    base = average_precision(whole.logit(x), fraud)
    random = np.random.default_rng(99)
    for feature, name in enumerate(NAMES[:3]):
        assert found[name].contribution.value == pytest.approx(moved[feature])
        lost = []
        for _ in range(40):
            shuffled = x.copy()
            shuffled[:, feature] = random.permutation(x[:, feature])
            lost.append(base - average_precision(whole.logit(shuffled), fraud))
        spread = float(np.std(lost)) / np.sqrt(importance.PERMUTATIONS)
        assert abs(found[name].permuted.value - np.mean(lost)) < 5 * spread
        for interval in (found[name].contribution, found[name].permuted):
            assert interval.low < interval.high
        assert found[name].contribution.low <= moved[feature] <= found[name].contribution.high


def test_the_interval_draws_whole_accounts_so_one_account_alone_has_no_spread():
    x, fraud, _ = judged()
    alone = importance.weights(model(), x, fraud, np.zeros(len(x), np.uint64), draws=10, seed=2)
    for each in alone:
        assert each.contribution.low == pytest.approx(each.contribution.high)


def test_the_same_seed_gives_the_same_figures():
    x, fraud, account = judged(200)
    one, two = (importance.weights(model(), x, fraud, account, draws=10, seed=4) for _ in range(2))
    assert one == two


def test_rows_of_one_class_or_none_are_refused_in_one_line():
    x = rows(20)
    with pytest.raises(TrainingError, match="0 frauds"):
        importance.weights(model(), x, np.zeros(20, bool), np.zeros(20, np.uint64), draws=10, seed=1)
    with pytest.raises(TrainingError, match="no payments"):
        importance.effects(model(), x[:0])
    with pytest.raises(TrainingError, match="no payments"):
        stability.agreement(model(), model(), x[:0], x[:0], np.zeros(0, bool))


def test_the_files_hold_what_was_measured_and_each_picture_is_one_svg(tmp_path):
    x, fraud, account = judged(200)
    heavy = importance.weights(model(), x, fraud, account, draws=10, seed=4)
    shapes = importance.effects(model(), x)
    about = {
        "name": "risk", "version": "1", "sha256": "0" * 64, "feature_spec": "spec", "window": "2026-01-01",
        "rows": 200, "frauds": int(fraud.sum()), "fingerprint": "f" * 64, "draws": 10, "seed": 4,
    }  # fmt: skip
    made = report.write(tmp_path, about, heavy, shapes, pictures=2)
    assert all(path.is_file() for path in made)
    plain = json.loads((tmp_path / "importance.json").read_text())
    assert plain["features"][0]["contribution"]["value"] == heavy[0].contribution.value
    with (tmp_path / "partial_dependence.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for effect in shapes:
        mine = [line for line in lines if line["feature"] == effect.feature]
        assert len(mine) == len(effect.logit)
        assert sum(float(line["share_of_payments"]) for line in mine) == pytest.approx(1, abs=1e-4)
    assert [line["above"] for line in lines if line["feature"] == "a"] == ["", "0", "0.5", "1", "nan"]
    for path in tmp_path.glob("*.svg"):
        assert "<svg" in path.read_text()
    for shape in shapes[:2]:
        assert f"({shape.feature}.svg)" in (tmp_path / "README.md").read_text()


# -- stability --


def payments_model(seed: int) -> AdditiveModel:
    random = np.random.default_rng(seed)
    tables = [
        Table((at,), (np.array([edge, np.inf], np.float32),), (np.append(random.normal(size=2), 0),))
        for at, edge in ((0, 50.0), (2, 6.5), (4, 0.5), (9, 1.5), (16, 1.01))
    ]
    return AdditiveModel(FEATURES, tuple(tables), -1.0)


def some_payments(count: int = 300) -> Floats32:
    random = np.random.default_rng(6)
    x = np.zeros((count, len(FEATURES)), np.float32)
    x[:, 0] = np.round(random.gamma(2, 25, count), 2)
    x[:, 1] = np.log1p(x[:, 0])
    x[:, 2] = random.integers(0, 24, count)
    x[:, 4] = x[:, 2] < 7
    x[:, 9] = random.integers(0, 4, count)
    x[:, 12], x[:, 15] = 10, 50
    x[:, 16] = x[:, 0] / 50
    x[:, 17] = (x[:, 0] - 50) / 30
    return x


def test_a_model_agrees_with_itself_in_everything():
    x = some_payments()
    same = stability.agreement(payments_model(1), payments_model(1), x, x, np.zeros(len(x), bool))
    assert (same.first, same.three, same.order, same.moved) == (1, 1, pytest.approx(1), 0)


def test_agreement_counts_what_a_loop_over_the_rows_counts():
    x, one, other = some_payments(60), payments_model(1), payments_model(2)
    stopped = np.arange(60) % 3 == 0
    found = stability.agreement(one, other, x, x, stopped)
    first = three = 0
    for row, held in zip(x, stopped, strict=True):
        both = []
        for each in (one, other):
            told = each.contributions(row[None])[0]
            strength = {at: (value if held else abs(value)) for at, value in enumerate(told)}
            ranked = sorted((at for at in strength if strength[at] > 0), key=lambda at: (-strength[at], at))
            both.append(ranked[:3])
        first += both[0][:1] == both[1][:1]
        three += set(both[0]) == set(both[1])
    assert found.first == pytest.approx(first / 60)
    assert found.three == pytest.approx(three / 60)
    assert 0 < found.first < 1


def test_reasons_of_a_stopped_payment_only_raise_its_score():
    told = np.array([[0.5, -2.0, 0.1, 0.0], [-0.5, -2.0, -0.1, 0.0]])
    assert stability.reasons(told, np.array([True, True])).tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert stability.reasons(told, np.array([False, False])).tolist() == [[1, 0, 2], [1, 0, 2]]


def test_a_small_change_of_the_amount_carries_all_that_follows_from_it():
    x, moves = some_payments(), Moves.load()
    changed, which = stability.nudged(x, "amount +1 %", moves)
    np.testing.assert_allclose(changed[:, 0], x[which, 0] * 1.01, atol=0.0051)
    np.testing.assert_allclose(changed[:, 1], np.log1p(changed[:, 0]), rtol=1e-6)
    np.testing.assert_allclose(changed[:, 16], changed[:, 0] / 50, rtol=1e-5)
    np.testing.assert_allclose(changed[:, 17], (changed[:, 0] - 50) / 30, rtol=1e-3, atol=1e-4)
    assert (np.delete(changed, [0, 1, 16, 17], axis=1) == np.delete(x[which], [0, 1, 16, 17], axis=1)).all()


def test_an_hour_is_moved_within_its_day_and_only_the_night_follows():
    x, moves = some_payments(), Moves.load()
    changed, which = stability.nudged(x, "hour +1", moves)
    assert set(which) == set(np.flatnonzero(x[:, 2] < 23))
    assert (changed[:, 4] == (changed[:, 2] < 7)).all()
    assert (np.delete(changed, [2, 4], axis=1) == np.delete(x[which], [2, 4], axis=1)).all()


def test_an_edge_within_a_percent_shows_as_a_move_of_the_logit():
    x, moves = some_payments(), Moves.load()
    whole = payments_model(3)
    held = np.zeros(len(x), bool)
    lines = stability.under_nudges(whole, x, moves, held)
    assert set(lines) == set(stability.NUDGES)
    steps = [float(np.ptp(table.values[:2])) for table in whole.tables]
    for line in lines.values():
        assert line is not None
        assert 0 < line.moved <= sum(steps) + 1e-9
    flat = replace(whole, tables=whole.tables[3:4])  # a count, which no such change touches
    assert all(
        line is not None and line.moved == 0 for line in stability.under_nudges(flat, x, moves, held).values()
    )


def test_a_row_with_missing_values_is_not_nudged_and_json_holds_no_nan():
    x, moves = some_payments(4), Moves.load()
    x[:2, [0, 2]] = np.nan
    for how in stability.NUDGES:
        changed, which = stability.nudged(x, how, moves)
        assert set(which) <= {2, 3}
        assert not np.isnan(changed).any()
    nothing = AdditiveModel(FEATURES, (), -1.0)
    line = stability.agreement(nothing, nothing, x, x, np.zeros(4, bool)).as_dict()
    assert line["order"] is None
    json.dumps(line, allow_nan=False)


def test_an_unknown_change_is_told_the_known_ones():
    with pytest.raises(TrainingError, match="amount \\+1 %"):
        stability.nudged(some_payments(3), "weather +1", Moves.load())
