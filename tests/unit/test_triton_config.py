"""The model repository is written for the stock Triton image, and says the same to the embedded server."""

import json

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from infra.local import layout
from infra.local.triton import cpu_config, stage
from services.risk.scoring import OUTPUTS
from services.risk.settings import RiskSettings
from services.training.repository import config_text
from weir.errors import ConfigError

CONFIGS = sorted(layout.MODEL_SOURCES.glob("*/config.pbtxt"))
# Backends of the stock image; a Python model of ours would need its packages there too.
STOCK_BACKENDS = {"onnxruntime", "tensorrt", "openvino", "vllm"}


def parsed(text):
    """A configuration; a field that Triton does not know is an error."""
    return text_format.Parse(text, pb.ModelConfig())


def tensors(entries):
    return [(entry.name, pb.DataType.Name(entry.data_type), list(entry.dims)) for entry in entries]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.parent.name)
def folder(request):
    return request.param.parent


@pytest.fixture
def config(folder):
    return parsed((folder / "config.pbtxt").read_text())


def versions(folder):
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


def test_there_is_a_model():
    assert "risk" in [path.parent.name for path in CONFIGS]


def test_every_field_is_one_of_triton_s_and_the_backend_is_in_the_stock_image(folder, config):
    assert config.name == folder.name
    assert config.backend in STOCK_BACKENDS
    assert not config.platform
    assert config.max_batch_size > 0
    assert versions(folder)
    assert all((version / config.default_model_filename).is_file() for version in versions(folder))


def test_the_batcher_asks_for_no_more_than_the_model_takes(config):
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds < 5_000


def test_tensors_are_those_of_the_graph_and_of_model_json(folder, config):
    for version in versions(folder):
        graph = onnx.load(version / "model.onnx").graph
        for said, in_graph in ((config.input, graph.input), (config.output, graph.output)):
            assert [entry.name for entry in said] == [each.name for each in in_graph]
            for entry, each in zip(said, in_graph, strict=True):
                assert pb.DataType.Name(entry.data_type) == "TYPE_FP32"
                assert each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
                # The first dimension is the batch, which Triton's configuration leaves out.
                dims = each.type.tensor_type.shape.dim
                assert dims[0].dim_param
                assert [dim.dim_value for dim in dims[1:]] == list(entry.dims)
        about = json.loads((version / "model.json").read_text())
        assert tensors(config.input) == [("features", "TYPE_FP32", [len(about["features"])])]


def test_the_risk_model_answers_what_the_risk_worker_asks_for_in_calls_of_its_size():
    config = parsed((layout.MODEL_SOURCES / "risk" / "config.pbtxt").read_text())
    assert {entry.name for entry in config.output} >= set(OUTPUTS)
    assert RiskSettings().model_rows_max <= config.max_batch_size


def test_trees_are_put_on_the_cpu_where_onnx_runtime_has_their_operator(folder, config):
    """ONNX Runtime has ai.onnx.ml's tree ensembles for the CPU alone."""
    operators = {
        node.op_type for version in versions(folder) for node in onnx.load(version / "model.onnx").graph.node
    }
    if any(name.startswith("TreeEnsemble") for name in operators):
        assert {group.kind for group in config.instance_group} == {pb.ModelInstanceGroup.KIND_CPU}


def test_the_cpu_profile_changes_the_backend_and_nothing_that_a_caller_sees(folder, config, tmp_path):
    assert folder.name in stage(layout.MODEL_SOURCES, target=tmp_path / "models", intra_op_threads=2)
    staged = parsed((tmp_path / "models" / folder.name / "config.pbtxt").read_text())
    # What the model says of its threads holds, whatever the server would give it.
    assert staged.backend == "python"
    assert staged.parameters["intra_op_thread_count"].string_value == "1"
    assert tensors(staged.input) == tensors(config.input)
    assert tensors(staged.output) == tensors(config.output)
    assert staged.max_batch_size == config.max_batch_size
    assert staged.dynamic_batching == config.dynamic_batching
    assert staged.version_policy == config.version_policy
    for version in versions(folder):
        copied = tmp_path / "models" / folder.name / version.name
        assert (copied / "model.onnx").read_bytes() == (version / "model.onnx").read_bytes()
        assert (copied / "model.py").is_file()


def test_a_score_never_depends_on_threads_for_the_model_itself_asks_for_one(folder, config):
    """On the stock image as in the embedded server; trees are summed by as many threads as there are."""
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_the_shipped_configuration_is_the_one_that_training_writes():
    shipped = layout.MODEL_SOURCES / "risk"
    about = json.loads((versions(shipped)[0] / "model.json").read_text())
    assert (shipped / "config.pbtxt").read_text() == config_text("risk", len(about["features"]))


def test_a_model_that_says_nothing_of_threads_gets_the_servers(tmp_path):
    staged, _ = cpu_config('name: "m" backend: "onnxruntime"', intra_op_threads=2, where=tmp_path)
    assert parsed(staged).parameters["intra_op_thread_count"].string_value == "2"


def test_a_gpu_group_becomes_a_cpu_group_in_the_cpu_profile_alone(tmp_path):
    text = 'name: "m" backend: "onnxruntime" instance_group [{ count: 2 kind: KIND_GPU gpus: [0, 1] }]'
    staged, _ = cpu_config(text, intra_op_threads=1, where=tmp_path)
    (group,) = parsed(staged).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_CPU, 2, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [('name: "m" backend: "tensorrt"', "tensorrt"), ('name: "m" bakend: "onnxruntime"', "bakend")],
)
def test_what_the_embedded_server_cannot_run_is_one_line(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        cpu_config(text, intra_op_threads=1, where=tmp_path / "config.pbtxt")
    assert "\n" not in str(error.value)
