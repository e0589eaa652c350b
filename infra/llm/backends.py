"""The same model for the other servers of Triton: what their repositories hold, checked as far as can be.

The embedded one runs on a CPU. vLLM's and TensorRT-LLM's run on a GPU and read the published weights
themselves, so nothing is converted; their configuration is written, and parsed by Triton's own message.
Neither was ever run by us.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from infra.llm.errors import NotConvertible

GPU_BACKENDS_NOTE = "written and checked by its grammar; it was not run, for that takes a GPU"


class Backend(StrEnum):
    """Who serves the model."""

    EMBEDDED = "embedded"
    VLLM = "vllm"
    TENSORRT_LLM = "tensorrt-llm"


@dataclass(frozen=True, slots=True)
class GpuServing:
    """How a GPU serves a model.

    dtype: of the weights: float16, bfloat16, or auto.
    quantisation: as the server names it, such as awq or fp8; empty for none.
    gpus: that share one model.
    """

    context: int = 8192
    dtype: str = "auto"
    quantisation: str = ""
    gpus: int = 1
    memory_share: float = 0.9


def write_vllm(weights: str, repository: Path, name: str, serving: GpuServing) -> Path:
    """A model for Triton's vLLM back end.

    Args:
        weights: a folder of published weights, or the name by which vLLM downloads them.
    """
    model = repository / name
    (model / "1").mkdir(parents=True, exist_ok=True)
    engine = {
        "model": weights,
        "dtype": serving.dtype,
        "max_model_len": serving.context,
        "gpu_memory_utilization": serving.memory_share,
        "tensor_parallel_size": serving.gpus,
        "enable_prefix_caching": True,
        "disable_log_requests": True,  # prompts are customers' words
    }
    if serving.quantisation:
        engine["quantization"] = serving.quantisation
    (model / "1" / "model.json").write_text(json.dumps(engine, indent=1) + "\n", encoding="utf-8")
    return _write(
        model, f'name: "{name}"\nbackend: "vllm"\ninstance_group [ {{ count: 1 kind: KIND_MODEL }} ]\n'
    )


def write_tensorrt_llm(engine: Path, repository: Path, name: str, serving: GpuServing) -> Path:
    """A model for Triton's TensorRT-LLM back end, over an engine that `trtllm-build` made.

    Raises:
        NotConvertible: there is no engine in the folder.
    """
    if not (engine / "config.json").is_file():
        raise NotConvertible(engine, "no engine of TensorRT-LLM: `trtllm-build` makes one from the weights")
    model = repository / name
    (model / "1").mkdir(parents=True, exist_ok=True)
    parameters = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine.resolve()),
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_kv_cache_reuse": "true",
        "kv_cache_free_gpu_mem_fraction": f"{serving.memory_share}",
        "max_tokens_in_paged_kv_cache": f"{serving.context * 64}",
    }
    said = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    lines = [
        f'name: "{name}"',
        'backend: "tensorrtllm"',
        "max_batch_size: 64",
        "model_transaction_policy { decoupled: true }",
        *said,
        # Its GPUs are held by the engine itself.
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]
    return _write(model, "\n".join(lines) + "\n")


def _write(model: Path, config: str) -> Path:
    # Triton's own message: a field that it does not have is an error here, not at a customer's start.
    text_format.Parse(config, model_config_pb2.ModelConfig())
    (model / "config.pbtxt").write_text(f"# Written by `weir llm import`.\n{config}", encoding="utf-8")
    return model
