"""A sentence encoder in a Triton model repository, and its tokenizer where clients find it."""

import json
from pathlib import Path

from infra.encoder.convert import convert, read_folder
from infra.encoder.packed import read_packed
from infra.encoder.weights import Encoder
from services.chat.knowledge.encoding import MARKS

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
    """Put an encoder into the repository: of a folder with BERT's files, or of a packed E5.

    Raises:
        EncoderNotConvertible: see `convert`.
    """
    return write_opened(read_encoder(source), source, repository, name=name)


def read_encoder(source: Path) -> Encoder:
    """The encoder in a folder with BERT's files, or in a packed E5.

    Raises:
        EncoderNotConvertible: see `read_folder` and `read_packed`.
    """
    return read_folder(source) if source.is_dir() else read_packed(source)


def write_opened(encoder: Encoder, source: Path, repository: Path, *, name: str = NAME) -> Path:
    """Put an encoder that is read into the repository; `source` is where, for the error.

    Raises:
        EncoderNotConvertible: see `convert`.
    """
    model = repository / name
    convert(encoder, source, model / "1" / "model.onnx")
    (model / TOKENIZER).write_text(encoder.tokenizer, encoding="utf-8")
    marks = {"asked": encoder.asked, "passage": encoder.passage}
    (model / MARKS).write_text(json.dumps(marks) + "\n", encoding="utf-8")
    config = _CONFIG.format(name=name, dimension=encoder.shape.hidden)
    (model / "config.pbtxt").write_text(config, encoding="utf-8")
    return model
