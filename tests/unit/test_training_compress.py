"""Smaller models: still additive, never further off than was asked, read back from the graph that serves."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from services.training.additive import AdditiveModel, Calibration, Table
from services.training.compress import (
    Fidelity,
    Line,
    Speed,
    cell_count,
    fidelity,
    pareto,
    pruned,
    quantised,
    speeds,
    variants,
)
from services.training.errors import TrainingError
from services.training.export import to_onnx
from services.training.fit import Recipe
from services.training.imported import from_onnx
from services.training.repository import ModelRepository
from services.training.train import fit
from tests.support.training import small_bank, small_table
from tests.unit.test_training_pipeline import call
from weir.features.payments import FEATURES


@pytest.fixture(scope="module")
def model() -> AdditiveModel:
    return fit(small_table(), Recipe(threads=1).quick(), honest_max=5000).model


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return small_table().x[::7]


def graph(model: AdditiveModel) -> onnx.ModelProto:
    return to_onnx(model, name="risk", feature_spec="spec")


def ones(x: np.ndarray) -> np.ndarray:
    return np.ones(len(x))


def test_a_graph_read_back_and_written_again_is_the_same_to_the_byte(model):
    first = graph(model)
    again = to_onnx(from_onnx(first), name="risk", feature_spec="spec")
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


def test_a_graph_read_back_keeps_missing_values_and_edges_apart():
    edges = (np.array([1, 2, np.inf], np.float32), np.array([0.5], np.float32))
    values = np.arange(8, dtype=np.float64).reshape(4, 2)
    whole = AdditiveModel(
        ("a", "b"), (Table((0, 1), edges, (values, -2 * values)),), 0.5, Calibration(2, 3, 4)
    )
    back = from_onnx(graph(whole))
    points = [0.0, 1.0, np.nextafter(np.float32(1), np.float32(9)), 2.0, 9.0, np.nan]
    x = np.array([[a, b] for a in points for b in (0.5, 0.6, np.nan)], np.float32)
    assert np.array_equal(back.contributions(x), whole.contributions(x))
    assert back.calibration == whole.calibration


def test_a_graph_of_another_maker_is_refused_in_one_line(model):
    strange = graph(model)
    del strange.graph.node[0]
    with pytest.raises(TrainingError, match="weir train risk"):
        from_onnx(strange)
    strange = graph(model)
    del strange.metadata_props[:]
    with pytest.raises(TrainingError, match="weir train risk"):
        from_onnx(strange)


@pytest.mark.parametrize("tolerance", [0.003, 0.03, 0.3])
def test_pruning_moves_no_table_by_more_than_its_tolerance(model, x, tolerance):
    smaller = pruned(model, x, ones(x), tolerance)
    assert cell_count(smaller) < cell_count(model)
    # A table's own change is within the tolerance, so all of them together are within the sum.
    moved = smaller.logit(x) - model.logit(x)
    assert np.sqrt(np.mean(moved**2)) <= tolerance * len(model.tables)
    alone = AdditiveModel(model.features, model.tables[:1], 0.0)
    change = pruned(alone, x, ones(x), tolerance).logit(x) - alone.logit(x)
    assert np.sqrt(np.mean(change**2)) <= tolerance * 1.001


def test_pruning_keeps_the_mean_of_the_logit(model, x):
    assert pruned(model, x, ones(x), 0.1).logit(x).mean() == pytest.approx(model.logit(x).mean(), abs=1e-3)


def test_a_heavier_row_is_kept_more_exactly(model, x):
    heavy = np.where(np.arange(len(x)) < len(x) // 2, 100.0, 1.0)
    smaller = pruned(model, x, heavy, 0.1)
    off = np.abs(smaller.logit(x) - model.logit(x))
    assert np.mean(off[heavy > 1] ** 2) < np.mean(off[heavy == 1] ** 2)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_shares_take_few_values_and_stay_within_half_a_step(model, x, bits):
    smaller = quantised(model, bits)
    for table, before in zip(smaller.tables, model.tables, strict=True):
        for share, old in zip(table.shares, before.shares, strict=True):
            assert len(np.unique(np.round(share, 12))) <= 2**bits
            step = (old.max() - old.min()) / (2**bits - 1)
            assert share.min() >= old.min() - step
            assert share.max() <= old.max() + step
    steps = sum((t.max() - t.min()) / (2**bits - 1) / 2 for table in model.tables for t in table.shares)
    assert np.abs(smaller.logit(x) - model.logit(x)).max() <= steps + 1e-9


def test_every_variant_is_a_graph_whose_reasons_add_up(model, x):
    for each in variants(model, x, ones(x)):
        data = each.graph("spec").SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        logit, moved = session.run(["logit", "contributions"], {"features": x[:500]})
        assert logit.ravel() == pytest.approx(each.model.base_logit + moved.sum(axis=1), abs=1e-4)
        assert logit.ravel() == pytest.approx(each.model.logit(x[:500]), abs=1e-4)


def test_fidelity_of_a_model_with_itself_is_whole(model, x):
    moved = model.contributions(x)
    assert fidelity(moved, moved) == Fidelity(0.0, 0.0, 1.0, 1.0)


def test_fidelity_counts_the_base_that_moved():
    moved = np.array([[1.0, 0.5, 0.2, 0.1]])
    assert fidelity(moved, moved, 0.5).logit_rmse == pytest.approx(0.5)
    turned = fidelity(moved, moved[:, ::-1])
    assert (turned.first_same, turned.top_same) == (0.0, pytest.approx(2 / 3))


def test_the_front_holds_what_nothing_beats():
    still, whole = Speed(1, 1, 1, 1), Fidelity(0, 0, 1, 1)
    lines = [
        Line(name, size, 1, precision, 0, 1, whole, still)
        for name, size, precision in (("big", 9, 0.5), ("small", 3, 0.4), ("bad", 5, 0.3), ("equal", 3, 0.4))
    ]
    assert {line.name for line in pareto(lines) if line.best} == {"big", "small", "equal"}


def test_speeds_are_told_of_every_graph(model, x):
    told = speeds({"one": graph(model), "two": graph(quantised(model, 4))}, x, calls=5)
    for speed in told.values():
        assert 0 < speed.one_p50_us <= speed.one_p99_us
        assert speed.rows_s > 0


def test_the_command_writes_a_table_a_plot_and_keeps_what_was_chosen(tmp_path):
    bank, home, out = small_bank(tmp_path / "bank"), tmp_path / "models", tmp_path / "out"
    call("train", "risk", "--data", bank, "--quick", "--repository", home)
    words = ("compress", "risk", "--data", bank, "--model", "1", "--out", out, "--repository", home)
    about = json.loads(call(*words, "--keep", "pruned 0.03", "--json"))
    served = about["variants"][0]
    assert (served["name"], served["fidelity"]["logit_rmse"]) == ("as served", 0.0)
    assert (out / "pareto.svg").read_text().startswith("<?xml")
    assert "as served" in (out / "compress.md").read_text()
    home = ModelRepository(home)
    kept = home.verify("risk", "2", features=FEATURES)
    assert kept.about["trained"]["compressed"]["how"] == "pruned 0.03"
    assert "smaller: pruned 0.03" in (kept.folder / "MODEL_CARD.md").read_text()
    written = ModelRepository(out / "models")
    assert len(written.names()) == len(about["variants"])
    with pytest.raises(TrainingError, match="no variant 'int3'"):
        call(*words, "--keep", "int3")
    with pytest.raises(TrainingError, match="weir models export"):
        call(*words, "--keep", "as tensors")
