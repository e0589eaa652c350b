"""A converted model in a Triton model repository, for the embedded server."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from infra.llm.convert import ABOUT
from infra.local import layout
from weir.errors import MissingPart

SOURCES = layout.ROOT / "infra" / "triton" / "python_llm"

_CONFIG = """\
# Written by `weir llm import`. The tensors are those of Triton's vLLM backend; `cancel` ends the answer to
# the request of the same id.
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "cancel" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "folder" value {{ string_value: "{folder}" }} }}
parameters {{ key: "conversations_max" value {{ string_value: "{conversations_max}" }} }}
parameters {{ key: "waiting_max" value {{ string_value: "{waiting_max}" }} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
"""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served.

    conversations_max: at once; each has a buffer of the context's length. waiting_max: more are refused.
    """

    conversations_max: int = 8
    waiting_max: int = 64
    threads: int = 1


def write_embedded(folder: Path, repository: Path, name: str, serving: Serving | None = None) -> Path:
    """Let the repository's model `name` be the converted one in `folder`, which stays where it is.

    Raises:
        MissingPart: nothing was converted there.
    """
    if not (folder / ABOUT).is_file():
        raise MissingPart(f"No converted model in {folder}. Convert one with `weir llm import`.")
    serving = serving or Serving()
    model = repository / name
    version = model / "1"
    version.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.py")):
        shutil.copyfile(source, version / source.name)
    text = _CONFIG.format(
        name=name,
        folder=folder.resolve(),
        conversations_max=serving.conversations_max,
        waiting_max=serving.waiting_max,
        threads=serving.threads,
    )
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return model
