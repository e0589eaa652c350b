"""The model as tensor operators: the same answers as its tables, for engines that know no trees."""

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from infra.local import layout
from services.training.additive import AdditiveModel, Calibration, Table
from services.training.errors import TrainingError
from services.training.export import to_onnx
from services.training.imported import from_onnx
from services.training.repository import ModelRepository
from services.training.tensors import BACKENDS, gpu_config, plan_command, to_tensors, with_int8_shares
from tests.support.training import small_table
from tests.unit.test_training_pipeline import call
from weir.features.payments import FEATURES

SHIPPED = layout.MODEL_SOURCES / "risk" / "1" / "model.onnx"


def answers(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = ["logit", "probability", "contributions"]
    return dict(zip(names, session.run(names, {"features": x}), strict=True))


def drawn_model(seed: int) -> AdditiveModel:
    """Tables of one and of two features with edges among few values, so that rows lie on them."""
    random = np.random.default_rng(seed)
    tables = []
    for features in ((0,), (1,), (0, 2), (1, 2)):
        edges = []
        for _ in features:
            chosen = np.unique(random.choice([-1.0, 0.0, 0.5, 1.0, 2.0], random.integers(1, 5)))
            more = [np.inf] if random.random() < 0.5 else []
            edges.append(np.append(chosen, more).astype(np.float32))
        shape = [len(axis) + 1 for axis in edges]
        tables.append(Table(features, tuple(edges), tuple(random.normal(size=shape) for _ in features)))
    return AdditiveModel(("a", "b", "c"), tuple(tables), -1.5, Calibration(1.1, 0.9, 0.2))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_tensors_say_what_the_tables_say_on_edges_beyond_them_and_for_what_is_missing(seed):
    model = drawn_model(seed)
    values = [-np.inf, -1.0, -0.5, 0.0, 0.5, np.nextafter(np.float32(0.5), 1), 1.0, 2.0, 7.0, np.inf, np.nan]
    x = np.random.default_rng(seed).choice(values, (300, 3)).astype(np.float32)
    found = answers(to_tensors(model, name="risk", feature_spec="spec"), x)
    assert found["contributions"] == pytest.approx(model.contributions(x), abs=1e-5)
    assert found["logit"][:, 0] == pytest.approx(model.logit(x), abs=1e-5)
    assert found["probability"][:, 0] == pytest.approx(model.probability(x), abs=1e-6)


def test_the_shipped_model_answers_alike_in_both_forms():
    trees = onnx.load(SHIPPED)
    tensors = to_tensors(from_onnx(trees), name="risk", feature_spec="spec")
    x = small_table().x[::11]
    one, two = answers(trees, x), answers(tensors, x)
    assert np.abs(one["contributions"] - two["contributions"]).max() < 1e-5
    assert np.abs(one["logit"] - two["logit"]).max() < 1e-5


def test_no_operator_is_of_trees():
    proto = to_tensors(drawn_model(1), name="risk", feature_spec="spec")
    assert {node.domain for node in proto.graph.node} == {""}
    assert all(entry.domain in ("", "ai.onnx") for entry in proto.opset_import)


def test_int8_shares_are_stored_as_such_and_move_no_share_by_more_than_half_a_step():
    model = from_onnx(onnx.load(SHIPPED))
    whole, small = (to_tensors(model, name="risk", feature_spec="spec", bits=bits) for bits in (32, 8))
    stored = {each.name: each.data_type for each in small.graph.initializer}
    assert stored["shares_0"] == onnx.TensorProto.INT8
    assert len(small.SerializeToString()) < len(whole.SerializeToString())
    x = small_table().x[::11]
    steps = sum((share.max() - share.min()) / 254 / 2 for table in model.tables for share in table.shares)
    moved = np.abs(answers(whole, x)["contributions"] - answers(small, x)["contributions"]).sum(axis=1)
    assert 0 < moved.max() <= steps + 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_configuration_is_one_that_triton_reads(backend):
    found = text_format.Parse(gpu_config("risk", len(FEATURES), backend), model_config_pb2.ModelConfig())
    assert found.backend == ("tensorrt" if backend == "tensorrt" else "onnxruntime")
    assert found.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert [tensor.name for tensor in found.output] == ["logit", "probability", "contributions"]
    accelerators = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert [each.name for each in accelerators] == (["tensorrt"] if backend.endswith("-tensorrt") else [])


def test_the_model_with_int8_shares_is_the_one_that_the_int8_graph_computes():
    model = from_onnx(onnx.load(SHIPPED))
    x = small_table().x[::11]
    found = answers(to_tensors(model, name="risk", feature_spec="spec", bits=8), x)
    assert found["contributions"] == pytest.approx(with_int8_shares(model).contributions(x), abs=1e-5)


def test_the_command_writes_a_repository_and_says_what_was_not_tried(tmp_path):
    words = ("models", "export", "1", "--repository", layout.MODEL_SOURCES, "--out", tmp_path)
    told = call(*words, "--backend", "tensorrt", "--bits", "8")
    assert "not run on a GPU" in told
    assert plan_command(len(FEATURES)) in told
    made = ModelRepository(tmp_path).verify("risk", "1", features=FEATURES)
    assert made.about["trained"]["exported"]["bits"] == 8
    assert made.about["trained"]["exported"]["from"] != made.about["sha256"]
    with pytest.raises(TrainingError, match="exists"):
        call(*words)


def test_the_trees_are_as_they_were_to_the_byte():
    """The parts that both forms share are the ones that made the shipped file."""
    shipped = onnx.load(SHIPPED)
    spec = {entry.key: entry.value for entry in shipped.metadata_props}["weir.feature_spec"]
    again = to_onnx(from_onnx(shipped), name="risk", feature_spec=spec)
    assert again.SerializeToString(deterministic=True) == SHIPPED.read_bytes()
