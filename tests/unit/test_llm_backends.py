"""A model's repository is what its server takes, and a person is told beforehand what it needs."""

import json

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from infra.llm.cli import app
from infra.llm.errors import NotConvertible
from infra.local.triton import cpu_config
from tests.support.tiny_llm import TinyLlm
from weir.errors import MissingPart

RUN = CliRunner()


@pytest.fixture
def source(tmp_path):
    return TinyLlm().write(tmp_path / "tiny.gguf")


def config_of(model) -> model_config_pb2.ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_what_a_model_needs_is_said_before_it_is_converted(source):
    said = RUN.invoke(app, ["memory", str(source), "--conversations", "4", "--context", "64"])
    assert said.exit_code == 0
    for word in ("million parameters, llama", "F32", "int8", "4 conversations of 64 tokens"):
        assert word in said.output
    machine = json.loads(RUN.invoke(app, ["memory", str(source), "--json"]).output)
    assert machine["parameters"] == sum(
        values.size for values in TinyLlm().tensors.values() if values.ndim == 2
    )
    assert machine["cache"] > 0


def test_a_gguf_becomes_a_model_that_the_embedded_server_takes(source, tmp_path):
    repository = tmp_path / "llm" / "repository"
    done = RUN.invoke(
        app, ["import", str(source), "--repository", str(repository), "--name", "chat", "--context", "64"]
    )
    assert done.exit_code == 0, done.output
    model = repository / "chat"
    config = config_of(model)
    assert config.model_transaction_policy.decoupled
    assert {each.name for each in config.input} >= {"text_input", "stream", "sampling_parameters"}
    assert cpu_config((model / "config.pbtxt").read_text(), intra_op_threads=1, where=model)[1] is False
    assert (model / "1" / "model.py").is_file()
    folder = tmp_path / "llm" / "chat-converted"
    assert config.parameters["folder"].string_value == str(folder)
    assert (folder / "tokenizer.json").is_file()


def test_vllm_and_tensorrt_get_what_their_servers_read(tmp_path):
    weights = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    said = [
        "import",
        weights,
        "--repository",
        str(tmp_path),
        "--backend",
        "vllm",
        "--gpus",
        "2",
        "--quantisation",
        "fp8",
    ]
    done = RUN.invoke(app, said)
    assert done.exit_code == 0, done.output
    assert "was not run" in done.output
    assert config_of(tmp_path / "llm").backend == "vllm"
    engine = json.loads((tmp_path / "llm" / "1" / "model.json").read_text())
    assert (engine["model"], engine["tensor_parallel_size"], engine["quantization"]) == (weights, 2, "fp8")
    built = tmp_path / "engine"
    built.mkdir()
    said = ["import", str(built), "--repository", str(tmp_path), "--backend", "tensorrt-llm", "--name", "trt"]
    assert isinstance(RUN.invoke(app, said).exception, NotConvertible)
    assert not (tmp_path / "trt").exists()
    (built / "config.json").write_text("{}")
    assert RUN.invoke(app, said).exit_code == 0
    config = config_of(tmp_path / "trt")
    assert config.backend == "tensorrtllm"
    assert config.parameters["gpt_model_path"].string_value == str(built)


def test_what_cannot_be_asked_for_is_refused(source, tmp_path):
    assert RUN.invoke(app, ["memory", str(source), "--quantisation", "int3"]).exit_code == 2
    assert RUN.invoke(app, ["smoke", "--template", "mine"]).exit_code == 2
    from infra.llm.repository import write_embedded

    with pytest.raises(MissingPart, match="weir llm import"):
        write_embedded(tmp_path, tmp_path / "repository", "llm")
