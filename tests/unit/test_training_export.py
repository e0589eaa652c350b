"""The served graph is the trained model: same logit, contributions that add up, edges on the right side."""

import lightgbm
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.training.additive import (
    AdditiveModel,
    Calibration,
    Table,
    float32_at_or_below,
    from_lightgbm,
)
from services.training.errors import TrainingError
from services.training.export import OUTPUTS, to_onnx

NAMES = ("amount", "count", "risk", "night", "idle")


def payments(row_count: int = 6000, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = np.column_stack(
        [
            random.lognormal(3, 1.5, row_count),
            random.poisson(3, row_count),
            np.where(random.random(row_count) < 0.7, 0, random.random(row_count)),
            random.random(row_count) < 0.3,
            np.ones(row_count),
        ]
    ).astype(np.float32)
    logit = -4 + 0.6 * np.log(x[:, 0]) + 3 * x[:, 2] - (x[:, 1] > 4) + x[:, 3]
    return x, random.random(row_count) < 1 / (1 + np.exp(-logit))


def grow(x, fraud, constraints, rounds=120) -> lightgbm.Booster:
    parameters = {
        "objective": "binary", "num_leaves": 6, "learning_rate": 0.1, "interaction_constraints": constraints,
        "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 1,
    }  # fmt: skip
    return lightgbm.train(parameters, lightgbm.Dataset(x, fraud.astype(int)), rounds)


@pytest.fixture(scope="module", params=["one feature a tree", "pairs that share a feature"])
def trained(request) -> tuple[lightgbm.Booster, AdditiveModel, np.ndarray]:
    x, fraud = payments()
    singles = [[feature] for feature in range(len(NAMES))]
    booster = grow(
        x, fraud, singles if request.param == "one feature a tree" else [[0, 2], [0, 1], [1, 3], [4]]
    )
    model = from_lightgbm([booster.dump_model()], NAMES).explained_by(x)
    return booster, model, x


def edge_rows(model: AdditiveModel, row_count: int, seed: int = 9) -> np.ndarray:
    """Rows whose values lie on thresholds, one float32 below or above them, or far outside."""
    random = np.random.default_rng(seed)
    x = np.zeros((row_count, len(model.features)), np.float32)
    for feature in range(len(model.features)):
        of_feature = [
            edges
            for table in model.tables
            for index, edges in zip(table.features, table.edges, strict=True)
            if index == feature
        ]
        edges = np.concatenate([np.zeros(1, np.float32), *of_feature])
        beside = [np.nextafter(edges, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
        pool = np.concatenate([edges, *beside, np.float32([0, -0.0, -1, 1e30, -1e30])])
        x[:, feature] = random.choice(pool, row_count)
    return x


def run(model: AdditiveModel, x: np.ndarray) -> dict[str, np.ndarray]:
    proto = to_onnx(model, name="risk", feature_spec="spec")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"features": x}), strict=True))


def test_served_logit_is_lightgbms_raw_score_on_and_beside_every_threshold(trained):
    booster, model, x = trained
    rows = np.concatenate([x[:2000], edge_rows(model, 8000)])
    served = run(model, rows)["logit"].ravel()
    raw = booster.predict(rows.astype(np.float64), raw_score=True)
    np.testing.assert_allclose(served, raw, atol=1e-5)
    np.testing.assert_allclose(model.logit(rows), raw, atol=1e-10)


def test_contributions_add_up_to_the_logit_and_average_to_zero_in_training(trained):
    _, model, x = trained
    out = run(model, x)
    np.testing.assert_allclose(
        model.base_logit + out["contributions"].sum(1), out["logit"].ravel(), atol=1e-4
    )
    np.testing.assert_allclose(out["contributions"].astype(np.float64).mean(0), 0, atol=1e-5)
    assert (out["contributions"][:, 4] == 0).all()  # a constant feature explains nothing
    assert out["contributions"].shape == x.shape


def test_served_probability_is_the_calibrated_one(trained):
    _, model, x = trained
    calibrated = AdditiveModel(model.features, model.tables, model.base_logit, Calibration(1.3, 0.8, -0.4))
    np.testing.assert_allclose(
        run(calibrated, x)["probability"].ravel(), calibrated.probability(x), atol=1e-6
    )


def test_a_missing_value_goes_where_lightgbm_sends_it(trained):
    booster, model, x = trained
    holes = x[:500].copy()
    holes[np.random.default_rng(1).random(holes.shape) < 0.3] = np.nan
    np.testing.assert_allclose(
        run(model, holes)["logit"].ravel(), booster.predict(holes, raw_score=True), atol=1e-5
    )
    seen_in_training = grow(
        np.where(x > 100, np.nan, x).astype(np.float32), payments()[1], [[f] for f in range(5)]
    )
    with_nan = from_lightgbm([seen_in_training.dump_model()], NAMES)
    np.testing.assert_allclose(
        run(with_nan, holes)["logit"].ravel(), seen_in_training.predict(holes, raw_score=True), atol=1e-5
    )


@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_rounded_threshold_decides_like_the_double_for_every_float32(threshold, x):
    rounded = float32_at_or_below(np.array([threshold]))[0]
    assert (np.float32(x) <= rounded) == (x <= threshold)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), unique=True, max_size=300),
    st.integers(0, 9),
)
def test_any_step_function_survives_the_graph_exactly(edges, seed):
    ordered = np.unique(np.float32(edges))
    values = np.random.default_rng(seed).normal(size=len(ordered) + 1).astype(np.float32).astype(np.float64)
    model = AdditiveModel(("only",), (Table((0,), (ordered,), (values,)),), 0.0)
    x = np.concatenate(
        [ordered, np.nextafter(ordered, np.float32(np.inf)), np.float32([np.inf, -np.inf, np.nan])]
    )
    assert (run(model, x[:, None])["contributions"][:, 0] == model.contributions(x[:, None])[:, 0]).all()


def test_shares_of_a_pair_are_its_shapley_values_by_enumeration(trained):
    """phi_i = ½ [v(i) - v()] + ½ [v(ij) - v(j)], each v an average over the training rows, row by row."""
    _, model, x = trained
    background, asked = x[:400], x[400:420]
    told = model.explained_by(background)
    for table in told.tables:
        if len(table.features) != 2:
            continue
        first, second = table.features

        def v(row, known, table=table):
            mixed = background.copy()
            mixed[:, known] = row[known]
            return table.values[table.cells(mixed)].mean()

        for row in asked:
            share = table.shares[0][tuple(cell[0] for cell in table.cells(row[None]))]
            expected = (v(row, [first]) - v(row, []) + v(row, [first, second]) - v(row, [second])) / 2
            assert share == pytest.approx(expected, abs=1e-9)


def test_two_boosters_average_to_one_model(trained):
    booster, _, x = trained
    other = grow(x, payments(seed=8)[1], [[0, 1], [2], [3]], rounds=40)
    both = from_lightgbm([booster.dump_model(), other.dump_model()], NAMES, weight=0.5)
    raw = [each.predict(x, raw_score=True) for each in (booster, other)]
    np.testing.assert_allclose(both.logit(x), np.mean(raw, axis=0), atol=1e-10)


def test_a_tree_of_three_features_is_refused():
    x, fraud = payments(2000)
    booster = grow(x, fraud, [list(range(5))], rounds=20)
    with pytest.raises(TrainingError, match="at most two"):
        from_lightgbm([booster.dump_model()], NAMES)


def test_the_same_model_gives_the_same_bytes(trained):
    _, model, _ = trained
    one, two = (
        to_onnx(model, name="risk", feature_spec="s").SerializeToString(deterministic=True) for _ in "ab"
    )
    assert one == two
