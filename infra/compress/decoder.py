"""Smaller decoders of one source: weights pruned, feed-forward units left out, whole layers left out.

A pruned weight is stored as 0: a dense product reads it all the same. Units and layers that are left out are
read by nobody: those make a dense model faster.

Sources: Men et al. 2024 (a layer that hardly turns what runs past it can go); Sun et al. 2023 (weights by
magnitude times the input's norm).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from infra.compress.errors import CannotCompress
from infra.compress.windows import Tokens, session_of
from infra.llm.convert import Source
from infra.llm.graph import Quantisation
from infra.llm.weights import Floats, Shape
from infra.weights.prune import pruned
from infra.weights.quantise import BLOCK

# What feeds each matrix of a layer, by the names of `infra.llm.graph`.
_FED_BY = {
    "attn_q": "attention_in",
    "attn_k": "attention_in",
    "attn_v": "attention_in",
    "attn_output": "attention",
    "ffn_gate": "forward_in",
    "ffn_up": "forward_in",
    "ffn_down": "gated",
}


@dataclass(frozen=True, slots=True)
class Use:
    """What a model does on a text.

    influence: (layers,) float64, how far a layer turns what runs past it, 1 - cosine.
    norms: root mean square of each input of a layer's matrices, by layer and what feeds them; (inputs,)
    float32.
    """

    influence: NDArray[np.float64]
    norms: Mapping[tuple[int, str], Floats]


@dataclass(frozen=True, slots=True)
class Variant:
    """How a decoder is made smaller, and in how many bits it is then stored.

    pruned: share of each row's weights that go, of the layers' matrices. by_use: as `pruned` has it.
    layers_out: layers left out. units_out: share of each layer's feed-forward units left out.
    """

    name: str
    quantisation: Quantisation
    pruned: float = 0.0
    by_use: bool = False
    layers_out: int = 0
    units_out: float = 0.0


VARIANTS = (
    Variant("float32", "float32"),
    Variant("int8", "int8"),
    Variant("int4", "int4"),
    Variant("int4-small", "int4-small"),
    Variant("pruned-30", "float32", pruned=0.3),
    Variant("pruned-50", "float32", pruned=0.5),
    Variant("pruned-50-by-use", "float32", pruned=0.5, by_use=True),
    Variant("pruned-30-int8", "int8", pruned=0.3),
    Variant("units-10-int8", "int8", units_out=0.1),
    Variant("units-25-int8", "int8", units_out=0.25),
    Variant("units-10-int4", "int4", units_out=0.1),
    Variant("layers-1-int8", "int8", layers_out=1),
    Variant("layers-3-int8", "int8", layers_out=3),
    Variant("layers-6-int8", "int8", layers_out=6),
)
FLOAT, SERVED = "float32", "int8"


class Smaller:
    """The weights of a source, made smaller as a variant says; read as they are asked for, as a source's.

    Args:
        use: on a text that does not judge the result; needed for all but plain magnitude.
    """

    def __init__(self, source: Source, variant: Variant, use: Use) -> None:
        self.path, self._source, self._variant, self._use = source.path, source, variant, use
        whole = source.shape
        self.layers = kept_layers(use.influence, variant.layers_out)
        self._units = [kept_units(source, layer, use, variant.units_out) for layer in self.layers]
        units = len(self._units[0])
        self.shape: Shape = replace(whole, layer_count=len(self.layers), feed_forward=units)

    @property
    def files(self) -> list[Path]:
        """What the model is made from."""
        return self._source.files

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self._source.has(self._of_source(name))

    def vector(self, name: str) -> Floats:
        """(n,) float32."""
        return self._source.vector(self._of_source(name))

    def matrix(self, name: str) -> Floats:
        """(outputs, inputs) float32, pruned, without what is left out."""
        found = self._source.matrix(self._of_source(name))
        if not name.startswith("blk."):
            return found
        _, layer, part, _ = name.split(".")
        if self._variant.pruned:
            norms = self._use.norms[self.layers[int(layer)], _FED_BY[part]] if self._variant.by_use else None
            found = pruned(found, self._variant.pruned, norms)
        units = self._units[int(layer)]
        if part in ("ffn_gate", "ffn_up"):
            return found[units]
        return np.ascontiguousarray(found[:, units]) if part == "ffn_down" else found

    def rotary_factors(self) -> Floats | None:
        """See the source's."""
        return self._source.rotary_factors()

    def _of_source(self, name: str) -> str:
        if not name.startswith("blk."):
            return name
        _, layer, rest = name.split(".", 2)
        return f"blk.{self.layers[int(layer)]}.{rest}"


def kept_layers(influence: NDArray[np.float64], left_out: int) -> list[int]:
    """The layers that stay, in their order: those of least influence go; the first and the last never do.

    Raises:
        ValueError: more are to go than there are between the first and the last.
    """
    count = len(influence)
    if left_out > count - 2:
        raise ValueError(f"{left_out} of {count} layers cannot go")
    between = np.arange(1, count - 1)
    order = between[np.argsort(influence[between], kind="stable")]
    gone = set(order[:left_out].tolist())
    return [layer for layer in range(count) if layer not in gone]


def kept_units(source: Source, layer: int, use: Use, share: float) -> NDArray[np.intp]:
    """(units,) indices of a layer's feed-forward units that stay, a multiple of 32 where 32 are there.

    Those go that add least: the unit's root mean square times the norm of what it writes.
    """
    count = source.shape.feed_forward
    stay = count
    if share:
        stay = max(round(count * (1 - share) / BLOCK) * BLOCK, min(BLOCK, count))
    if stay == count:
        return np.arange(count)
    written = np.linalg.norm(source.matrix(f"blk.{layer}.ffn_down.weight"), axis=0)
    order = np.argsort(-written * use.norms[layer, "gated"], kind="stable")
    return np.sort(order[:stay])


def use_of(folder: Path, windows: Sequence[Tokens]) -> Use:
    """What the converted float32 model in `folder` does on these windows of tokens.

    Raises:
        CannotCompress: there is no window.
    """
    if not windows:
        raise CannotCompress("The tokenizer makes no tokens of English or Chinese questions.")
    shape, session, inner, past = _watched(folder)
    count = shape["layer_count"]
    cosines = np.zeros(count)
    squares: dict[str, NDArray[np.float64]] = {}
    seen = 0
    for window in windows:
        ids = np.array([window], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)} | past
        found = dict(zip(inner, session.run(inner, feeds), strict=True))
        seen += len(window)
        stream = [found["embedded"], *(found[f"layer.{at}.attention_in.sum"] for at in range(1, count))]
        stream.append(found["final.sum"])
        for layer in range(count):
            before, after = stream[layer][0], stream[layer + 1][0]
            lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
            cosines[layer] += float(((before * after).sum(-1) / np.maximum(lengths, 1e-9)).sum())
        for name in inner:
            if not name.endswith(".sum") and name != "embedded":
                total = (found[name][0].astype(np.float64) ** 2).sum(0)
                squares[name] = squares.get(name, np.zeros(len(total))) + total
    norms = {}
    for name, total in squares.items():
        _, number, part = name.split(".")
        norms[int(number), part] = np.sqrt(total / seen).astype(np.float32)
    return Use(1 - cosines / seen, norms)


def _watched(
    folder: Path,
) -> tuple[dict[str, Any], onnxruntime.InferenceSession, list[str], dict[str, NDArray[np.float32]]]:
    """The graph with its insides as outputs, an empty past, and the insides' names."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    made = {name for node in graph.graph.node for name in node.output}
    wanted = ["embedded", "final.sum"]
    layers = sum(name.endswith(".gated") for name in made)
    for layer in range(layers):
        wanted += [f"layer.{layer}.{part}" for part in sorted(set(_FED_BY.values()))]
        wanted += [f"layer.{layer}.attention_in.sum"] if layer else []
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    session, about, past = session_of(folder, graph)
    return about["shape"], session, wanted, past
