"""A sentence encoder in a Triton model repository, and its tokenizer where clients find it."""

import shutil
from pathlib import Path

from infra.encoder.convert import convert

NAME, TOKENIZER = "encoder", "tokenizer.json"

_CONFIG = """\
# Written at set-up; see infra/encoder.
name: "{name}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 64
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ {dimension} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def write_encoder(source: Path, repository: Path, *, name: str = NAME) -> Path:
    """Put the encoder in `source` (config.json, model.safetensors, tokenizer.json) into the repository.

    Raises:
        EncoderNotConvertible: see `convert`.
    """
    model = repository / name
    version = model / "1"
    version.mkdir(parents=True, exist_ok=True)
    dimension = convert(source, version / "model.onnx")
    shutil.copyfile(source / TOKENIZER, model / TOKENIZER)
    (model / "config.pbtxt").write_text(_CONFIG.format(name=name, dimension=dimension), encoding="utf-8")
    return model
