"""Weights of a decoder, whatever file they come from: its shape, and each matrix as float32.

GGUF is llama.cpp's format. It keeps the query and key rows of Llama models in another order than the papers
do (each pair that is rotated together stands side by side); they are put back here, so that nobody after
this needs to know.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from infra.llm.errors import NotConvertible, WeightsBroken

Floats = NDArray[np.float32]

ARCHITECTURES = ("llama", "qwen2")
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes.

    head_dim: values of one attention head. rotary_base: of the rotary position embedding.
    tied: whether the output matrix is the embedding.
    """

    architecture: str
    layer_count: int
    head_count: int
    kv_head_count: int
    hidden: int
    feed_forward: int
    head_dim: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rotary_base: float
    tied: bool

    @property
    def parameter_count(self) -> int:
        """Of all matrices; norms and biases are too few to count."""
        return self.layer_parameters + self.end_parameters

    @property
    def layer_parameters(self) -> int:
        """Of the layers' matrices."""
        qkv = self.hidden * self.head_dim * (self.head_count + 2 * self.kv_head_count)
        output = self.head_dim * self.head_count * self.hidden
        return self.layer_count * (qkv + output + 3 * self.hidden * self.feed_forward)

    @property
    def end_parameters(self) -> int:
        """Of the embedding, and of the output where that is another matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def cache_bytes(self, tokens: int) -> int:
        """What the keys and values of so many tokens take, as float32."""
        return 2 * 4 * self.layer_count * self.kv_head_count * self.head_dim * tokens


def tensor_names(shape: Shape) -> list[str]:
    """What a decoder of this shape cannot do without, by GGUF's names."""
    wanted = ["token_embd.weight", "output_norm.weight"]
    of_layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
    of_layer += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    for layer in range(shape.layer_count):
        wanted += [f"blk.{layer}.{name}.weight" for name in of_layer]
        if shape.architecture == "qwen2":
            wanted += [f"blk.{layer}.{name}.bias" for name in ("attn_q", "attn_k", "attn_v")]
    return wanted


class GgufWeights:
    """The weights in one GGUF file, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            WeightsBroken: it is no GGUF, or ends early.
            NotConvertible: another architecture, or a tensor lacks.
            OSError: it cannot be read.
        """
        self.path = path
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise WeightsBroken(path, "not a GGUF file")
        try:
            self._reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, struct.error, OverflowError) as error:
            raise WeightsBroken(path, "the file ends early, or its head is damaged") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = self._shape()
        self._require_tensors()

    def field(self, name: str, default: Any = None) -> Any:
        """A value of the file's head."""
        field = self._reader.fields.get(name)
        return default if field is None else field.contents()

    @property
    def files(self) -> list[Path]:
        """What the model is made from."""
        return [self.path]

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def vector(self, name: str) -> Floats:
        """(n,) float32."""
        return self._dense(name).reshape(-1)

    def matrix(self, name: str) -> Floats:
        """(outputs, inputs) float32, query and key rows in the order of the papers."""
        found = self._dense(name)
        if self.shape.architecture == "llama":
            if name.endswith("attn_q.weight"):
                return _halves(found, self.shape.head_count)
            if name.endswith("attn_k.weight"):
                return _halves(found, self.shape.kv_head_count)
        return found

    def rotary_factors(self) -> Floats | None:
        """(head_dim / 2,) float32 by which each frequency is divided, as Llama 3 does; None is all ones."""
        return self.vector("rope_freqs.weight") if self.has("rope_freqs.weight") else None

    def kinds(self) -> Mapping[str, int]:
        """How many matrices are stored in which quantisation."""
        found: dict[str, int] = {}
        for tensor in self._tensors.values():
            found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + 1
        return found

    def _dense(self, name: str) -> Floats:
        tensor = self._tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except (NotImplementedError, ValueError) as error:
            why = f"tensor {name} is stored as {tensor.tensor_type.name}, which is not known here"
            raise NotConvertible(self.path, why) from error

    def _shape(self) -> Shape:
        architecture = self.field("general.architecture")
        if architecture not in ARCHITECTURES:
            raise NotConvertible(self.path, f"architecture {architecture!r}")

        def number(name: str, default: float | None = None) -> float:
            value = self.field(f"{architecture}.{name}", default)
            if not isinstance(value, int | float) or value <= 0:
                raise NotConvertible(self.path, f"the head lacks {architecture}.{name}")
            return float(value)

        tokens = self.field("tokenizer.ggml.tokens")
        if not tokens:
            raise NotConvertible(self.path, "the head lacks the tokens")
        hidden, heads = int(number("embedding_length")), int(number("attention.head_count"))
        return Shape(
            architecture=architecture,
            layer_count=int(number("block_count")),
            head_count=heads,
            kv_head_count=int(number("attention.head_count_kv", heads)),
            hidden=hidden,
            feed_forward=int(number("feed_forward_length")),
            head_dim=int(number("attention.key_length", hidden // heads)),
            vocabulary=len(tokens),
            context=int(number("context_length")),
            norm_epsilon=number("attention.layer_norm_rms_epsilon"),
            rotary_base=number("rope.freq_base", 10_000.0),
            tied=not self.has("output.weight"),
        )

    def _require_tensors(self) -> None:
        if lacking := [name for name in tensor_names(self.shape) if name not in self._tensors]:
            raise NotConvertible(self.path, f"tensor {lacking[0]} lacks, and {len(lacking) - 1} more")


def _halves(rows: Floats, head_count: int) -> Floats:
    """Rows of pairs side by side (0, 1, 0, 1, …) to rows in halves (0, 0, …, 1, 1, …), head by head."""
    paired = rows.reshape(head_count, rows.shape[0] // head_count // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows.shape))
