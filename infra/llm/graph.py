"""A decoder as an ONNX graph: keys and values in the caller's buffers, logits of the last token.

    input_ids ─▶ embedding ─▶ layers: norm, attention (rotary), norm, gated feed forward ─▶ norm ─▶ logits

    input_ids                     INT64 [batch, sequence]
    attention_mask                INT64 [batch, total]: 1 for each token, these included, from the left
    past_key_values.<i>.key       FP32 [batch, kv heads, buffer, head]; `present.<i>.key` is the same buffer
    logits                        FP32 [batch, 1, vocabulary]: of each row's last token

Weights are written to the data file one by one, so that a model larger than memory can be converted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from infra.llm.weights import Floats, Shape
from infra.weights.quantise import BLOCK, Bits, Blocks, to_int4, to_int4_offset, to_int8

# int4 has an offset a block and leaves the embedding, which a tied output is too, in 8 bits. int4-small has
# whole zeros and 4 bits everywhere.
Quantisation = Literal["float32", "int8", "int4", "int4-small"]
# Bits of the layers' matrices, and of the embedding and the output; None is float32.
BITS: Mapping[Quantisation, tuple[Bits | None, Bits | None]] = {
    "float32": (None, None),
    "int8": (8, 8),
    "int4": (4, 8),
    "int4-small": (4, 4),
}

_MICROSOFT = "com.microsoft"
_OPSET, _IR = 21, 10
# Where ONNX Runtime maps the file, each array begins at a page.
_ALIGN = 4096
_SMALL_BYTES = 1024
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class Weights(Protocol):
    """Where the matrices come from; see `infra.llm.weights`."""

    @property
    def shape(self) -> Shape: ...  # noqa: D102 - said there

    def has(self, name: str) -> bool: ...  # noqa: D102 - said there

    def vector(self, name: str) -> Floats: ...  # noqa: D102 - said there

    def matrix(self, name: str) -> Floats: ...  # noqa: D102 - said there

    def rotary_factors(self) -> Floats | None: ...  # noqa: D102 - said there


class DataFile:
    """The arrays of a model, beside its graph."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Write an array; what the graph says of it.

        Small ones stand in the graph itself, which asks them for shapes.
        """
        if array.nbytes <= _SMALL_BYTES:
            return numpy_helper.from_array(np.ascontiguousarray(array), name)
        self._file.write(bytes(-self._file.tell() % _ALIGN))
        offset = self._file.tell()
        data = np.ascontiguousarray(array)
        self._file.write(data.data)
        tensor = TensorProto(name=name, data_type=_TYPES[data.dtype], dims=data.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._path.name, "offset": str(offset), "length": str(data.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor


class GraphBuilder:
    """Builds one graph.

    Args:
        context: tokens of a conversation at most; the rotary tables are as long.
    """

    def __init__(self, weights: Weights, data: DataFile, *, context: int, quantisation: Quantisation) -> None:
        self._weights, self._data, self._context = weights, data, context
        self._layer_bits, self._end_bits = BITS[quantisation]
        self._offsets = quantisation == "int4"
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[TensorProto] = []
        self._summed: set[str] = set()

    def build(self) -> onnx.ModelProto:
        """The graph, its arrays in the data file."""
        shape = self._weights.shape
        self._sequence_lengths()
        self._rotary_tables()
        embedding = self._embedding()
        hidden, residual = "embedded", ""
        for layer in range(shape.layer_count):
            hidden, residual = self._layer(layer, hidden, residual)
        last, _ = self._norm("output_norm.weight", hidden, residual, "final")
        self._logits(self._last_token(last), embedding)
        return self._model()

    # -- parts ---------------------------------------------------------------------------------------------

    def _sequence_lengths(self) -> None:
        """What the attention asks for: the last position of each row, and the longest row's length."""
        self._constant("one", np.array([1], np.int64))
        self._constant("axis_one", np.array([1], np.int64))
        self._constant("index_one", np.array(1, np.int64))
        if self._offsets:
            self._constant("block_axis", np.array([-1], np.int64))
        self._node("ReduceSum", ["attention_mask", "axis_one"], "lengths", keepdims=0)
        self._node("Sub", ["lengths", "one"], "last_position")
        self._node("Cast", ["last_position"], "seqlens_k", to=TensorProto.INT32)
        self._node("Shape", ["attention_mask"], "mask_shape")
        self._node("Gather", ["mask_shape", "index_one"], "total_64")
        self._node("Cast", ["total_64"], "total", to=TensorProto.INT32)

    def _rotary_tables(self) -> None:
        shape = self._weights.shape
        exponent = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
        frequency = 1.0 / shape.rotary_base**exponent
        if (factors := self._weights.rotary_factors()) is not None:
            frequency = frequency / factors
        angle = np.outer(np.arange(self._context), frequency)
        self._constant("cos", np.cos(angle).astype(np.float32))
        self._constant("sin", np.sin(angle).astype(np.float32))

    def _embedding(self) -> Blocks | None:
        """Looks the tokens up; the blocks, which a tied output uses again."""
        shape, matrix = self._weights.shape, self._weights.matrix("token_embd.weight")
        if self._end_bits is None:
            self._constant("embedding", matrix)
            self._node("Gather", ["embedding", "input_ids"], "embedded", axis=0)
            return None
        blocks = to_int8(matrix) if self._end_bits == 8 else to_int4(matrix)
        self._constant("embedding.quanta", blocks.stored_quanta())
        self._constant("embedding.scale", blocks.scale)
        self._constant("embedding.zero", blocks.stored_zero())
        width = shape.hidden * blocks.bits // 8
        self._constant("embedding.shape", np.array([shape.vocabulary, width], np.int64))
        self._node("Reshape", ["embedding.quanta", "embedding.shape"], "embedding.rows")
        self._node(
            "GatherBlockQuantized",
            ["embedding.rows", "input_ids", "embedding.scale", "embedding.zero"],
            "embedded",
            _MICROSOFT,
            bits=blocks.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        return blocks

    def _layer(self, layer: int, hidden: str, residual: str) -> tuple[str, str]:
        shape, block, at = self._weights.shape, f"blk.{layer}.", f"layer.{layer}."
        normed, residual = self._norm(f"{block}attn_norm.weight", hidden, residual, f"{at}attention_in")
        names = [f"{block}attn_{which}" for which in "qkv"]
        packed = self._layer_product(normed, [f"{name}.weight" for name in names], f"{at}qkv")
        if self._weights.has(f"{names[0]}.bias"):
            bias = np.concatenate([self._weights.vector(f"{name}.bias") for name in names])
            packed = self._node("Add", [packed, self._constant(f"{at}bias", bias)], f"{at}qkv_biased")
        past, present = f"past_key_values.{layer}", f"present.{layer}"
        self._node(
            "GroupQueryAttention",
            [packed, "", "", f"{past}.key", f"{past}.value", "seqlens_k", "total", "cos", "sin"],
            [f"{at}attention", f"{present}.key", f"{present}.value"],
            _MICROSOFT,
            num_heads=shape.head_count,
            kv_num_heads=shape.kv_head_count,
            scale=shape.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )
        attended = self._layer_product(f"{at}attention", [f"{block}attn_output.weight"], f"{at}attended")
        normed, residual = self._norm(f"{block}ffn_norm.weight", attended, residual, f"{at}forward_in")
        gate = self._layer_product(normed, [f"{block}ffn_gate.weight"], f"{at}gate")
        up = self._layer_product(normed, [f"{block}ffn_up.weight"], f"{at}up")
        open_gate = self._node("Sigmoid", [gate], f"{at}gate_open")
        gated = self._node("Mul", [self._node("Mul", [gate, open_gate], f"{at}silu"), up], f"{at}gated")
        return self._layer_product(gated, [f"{block}ffn_down.weight"], f"{at}forward"), residual

    def _norm(self, name: str, hidden: str, residual: str, out: str) -> tuple[str, str]:
        """The root mean square norm of `hidden` plus what has run past it; and that sum."""
        weight, epsilon = (
            self._constant(name, self._weights.vector(name)),
            self._weights.shape.norm_epsilon,
        )
        if not residual:
            self._node(
                "SimplifiedLayerNormalization", [hidden, weight], out, axis=-1, epsilon=epsilon, stash_type=1
            )
            return out, hidden
        self._node(
            "SkipSimplifiedLayerNormalization",
            [residual, hidden, weight],
            [out, "", "", f"{out}.sum"],
            _MICROSOFT,
            epsilon=epsilon,
        )
        return out, f"{out}.sum"

    def _last_token(self, hidden: str) -> str:
        """(batch, 1, hidden): of each row its last token; rows of a first call may differ in length."""
        self._constant("last_axis", np.array([-1], np.int64))
        self._node("Shape", ["input_ids"], "ids_shape")
        self._node("Gather", ["ids_shape", "index_one"], "sequence")
        self._node("Sub", ["sequence", "index_one"], "sequence_last")
        self._node("Min", ["last_position", "sequence_last"], "last_index")
        self._node("Unsqueeze", ["last_index", "axis_one"], "last_indices")
        self._node("Unsqueeze", ["last_indices", "last_axis"], "last_gather")
        return self._node("GatherND", [hidden, "last_gather"], "last_hidden", batch_dims=1)

    def _logits(self, hidden: str, embedding: Blocks | None) -> None:
        shape = self._weights.shape
        if not shape.tied:
            self._product(hidden, ["output.weight"], "logits", self._end_bits)
        elif embedding is None:
            self._node("Transpose", ["embedding"], "embedding.columns", perm=[1, 0])
            self._node("MatMul", [hidden, "embedding.columns"], "logits")
        else:
            names = ["embedding.quanta", "output.scale", "output.zero"]
            self._constant(names[1], embedding.scale.reshape(-1))
            self._constant(names[2], embedding.stored_zero().reshape(-1))
            sizes = shape.hidden, shape.vocabulary
            self._blocks_product(hidden, names, "logits", sizes, embedding.bits)

    def _layer_product(self, left: str, names: Sequence[str], out: str) -> str:
        return self._product(left, names, out, self._layer_bits)

    def _product(self, left: str, names: Sequence[str], out: str, bits: Bits | None) -> str:
        """`left` times the transpose of the matrices, one beside the other."""
        matrix = np.concatenate([self._weights.matrix(name) for name in names])
        outputs, inputs = matrix.shape
        if bits is None:
            return self._node("MatMul", [left, self._constant(f"{out}.weight", matrix.T)], out)
        if bits == 8:
            blocks = to_int8(matrix)
        else:
            blocks = to_int4_offset(matrix) if self._offsets else to_int4(matrix)
        parts = [
            self._constant(f"{out}.quanta", blocks.stored_quanta()),
            self._constant(f"{out}.scale", blocks.scale.reshape(-1)),
        ]
        if blocks.offset is None:
            parts.append(self._constant(f"{out}.zero", blocks.stored_zero().reshape(-1)))
            return self._blocks_product(left, parts, out, (inputs, outputs), bits)
        self._blocks_product(left, parts, f"{out}.centred", (inputs, outputs), bits)
        offset = self._constant(f"{out}.offset", blocks.offset.T)
        moved = self._node("MatMul", [self._block_sums(left, inputs), offset], f"{out}.moved")
        return self._node("Add", [f"{out}.centred", moved], out)

    def _block_sums(self, left: str, inputs: int) -> str:
        """(batch, sequence, inputs / 32): the sum of each block of `left`; made once for all products."""
        sums, blocks = f"{left}.sums", f"blocks.{inputs}"
        if sums not in self._summed:
            if blocks not in self._summed:
                self._constant(blocks, np.array([0, 0, inputs // BLOCK, BLOCK], np.int64))
            self._node("Reshape", [left, blocks], f"{left}.blocks")
            self._node("ReduceSum", [f"{left}.blocks", "block_axis"], sums, keepdims=0)
            self._summed |= {sums, blocks}
        return sums

    def _blocks_product(
        self, left: str, parts: Sequence[str], out: str, size: tuple[int, int], bits: Bits
    ) -> str:
        # Level 4: the left side is quantised to 8 bits too, block by block, and integers are multiplied.
        sizes = {"K": size[0], "N": size[1], "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        return self._node("MatMulNBits", [left, *parts], out, _MICROSOFT, **sizes)

    # -- pieces --------------------------------------------------------------------------------------------

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._arrays.append(self._data.add(name, array))
        return name

    def _node(
        self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], domain: str = "", **options: Any
    ) -> str:
        named = [outputs] if isinstance(outputs, str) else list(outputs)
        self._nodes.append(
            helper.make_node(kind, inputs, named, name=f"{named[0]}/{kind}", domain=domain, **options)
        )
        return named[0]

    def _model(self) -> onnx.ModelProto:
        shape = self._weights.shape
        value = helper.make_tensor_value_info

        def cache(name: str, length: str) -> onnx.ValueInfoProto:
            return value(name, TensorProto.FLOAT, ["batch", shape.kv_head_count, length, shape.head_dim])

        sides = [f"{layer}.{side}" for layer in range(shape.layer_count) for side in ("key", "value")]
        inputs = [
            value("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            value("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *(cache(f"past_key_values.{side}", "past") for side in sides),
        ]
        outputs = [
            value("logits", TensorProto.FLOAT, ["batch", 1, shape.vocabulary]),
            *(cache(f"present.{side}", "present") for side in sides),
        ]
        graph = helper.make_graph(self._nodes, shape.architecture, inputs, outputs, self._arrays)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
