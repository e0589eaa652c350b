"""Text in windows of tokens, and what a converted decoder says at every place of them.

The served graph computes the logits of the last token alone. Here it is asked for all, by the same weights
and the same operators, so that a window is read once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says on one window: of each token but the first.

    nats: (n - 1,) float64, minus the natural logarithm of the token's probability. best: (n - 1,) int64, the
    likeliest token there.
    """

    nats: NDArray[np.float64]
    best: NDArray[np.int64]


def windows_of(tokens: Tokens, length: int, count: int) -> list[Tokens]:
    """At most `count` windows of `length` tokens, spread evenly over the text; a short text is one window."""
    if len(tokens) <= length:
        return [tokens] if len(tokens) > 1 else []
    whole = [tokens[at : at + length] for at in range(0, len(tokens) - length + 1, length)]
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int))
    return [whole[at] for at in chosen]


class Reader:
    """A converted decoder that is asked what it says at every place.

    Args:
        folder: what `infra.llm.convert` wrote.
    """

    def __init__(self, folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        for node in graph.graph.node:
            for at, name in enumerate(node.input):
                if name == "last_hidden":
                    node.input[at] = "final"
        logits = next(output for output in graph.graph.output if output.name == "logits")
        logits.type.tensor_type.shape.dim[1].dim_param = "sequence"
        self._session, _, self._past = session_of(folder, graph)

    def __call__(self, window: Tokens) -> Said:
        """What it says of each token but the first."""
        ids = np.array([window], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)} | self._past
        (found,) = self._session.run(["logits"], feeds)
        logits = found[0, :-1]
        highest = logits.max(-1, keepdims=True)
        total = np.log(np.exp(logits - highest).sum(-1, dtype=np.float64)) + highest[:, 0]
        own = np.take_along_axis(logits, ids[0, 1:, None], axis=-1)[:, 0]
        return Said(total - own, logits.argmax(-1))


def session_of(
    folder: Path, graph: onnx.ModelProto
) -> tuple[onnxruntime.InferenceSession, dict[str, Any], dict[str, NDArray[np.float32]]]:
    """A changed graph over the weights in `folder`, with one thread; what llm.json says; an empty past."""
    about = json.loads((folder / "llm.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # The graph comes from memory: this says where its weights lie.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    shape = about["shape"]
    empty = np.zeros((1, shape["kv_head_count"], 0, shape["head_dim"]), np.float32)
    past = {each.name: empty for each in session.get_inputs() if each.name.startswith("past_key_values")}
    return session, about, past
