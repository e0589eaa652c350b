"""A BERT sentence encoder as an ONNX model: tokens in, vectors of length 1 out.

Source of the layout: the safetensors format (8 bytes of header length, JSON, data)
and the layers of BERT as published.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from weir.errors import WeirError

Floats = NDArray[np.float32]
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8")}
_OPSET = 17  # LayerNormalization came with it


class EncoderNotConvertible(WeirError):
    """The weights are broken, or of a kind that is not known here."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path.name}: {why}. BERT encoders with GELU are converted, from safetensors.")


@dataclass(frozen=True, slots=True)
class BertShape:
    """What config.json says of the layers."""

    layer_count: int
    head_count: int
    hidden: int
    epsilon: float


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Each tensor by its name.

    Raises:
        EncoderNotConvertible: the file ends early, is none, or holds an unknown type.
    """
    try:
        data = path.read_bytes()
        header_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_bytes])
        tensors: dict[str, NDArray[Any]] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
                values = np.frombuffer(data[start:end], _DTYPES[entry["dtype"]])
                tensors[name] = values.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderNotConvertible(path, "not whole safetensors of 32- or 16-bit floats") from error
    return tensors


def convert(folder: Path, target: Path) -> int:
    """Writes the encoder in `folder` (config.json, model.safetensors) to `target` as ONNX; its dimension.

    Raises:
        EncoderNotConvertible: it is no BERT with GELU, or a weight is missing.
    """
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        known = config["model_type"] == "bert" and config["hidden_act"] == "gelu"
        shape = BertShape(
            int(config["num_hidden_layers"]),
            int(config["num_attention_heads"]),
            int(config["hidden_size"]),
            float(config["layer_norm_eps"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderNotConvertible(config_path, "lacks an entry or cannot be read") from error
    if not known:
        raise EncoderNotConvertible(config_path, "another kind of model")
    try:
        model = to_model(shape, read_safetensors(weights_path))
    except KeyError as error:
        raise EncoderNotConvertible(weights_path, f"lacks the weight {error.args[0]}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    return shape.hidden


class _Graph:
    """Nodes and weights as they are added; each call names its result."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def const(self, name: str, values: NDArray[Any]) -> str:
        self.tensors.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def weight(self, name: str, *, transposed: bool = False) -> str:
        values: Floats = self._weights[name].astype(np.float32)
        return self.const(name, values.T if transposed else values)

    def dense(self, x: str, name: str) -> str:
        product = self.add("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def to_model(shape: BertShape, weights: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` INT64 [n, l] -> `embedding` FP32 [n, hidden]: the masked mean, length 1.

    Raises:
        KeyError: a weight is missing.
    """
    g, size = _Graph(weights), shape.hidden // shape.head_count
    words = g.add("Gather", g.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = g.add("Slice", g.add("Shape", "input_ids"), g.ints(1), g.ints(2))
    positions = g.weight("embeddings.position_embeddings.weight")
    kinds = g.const("kind", weights["embeddings.token_type_embeddings.weight"][0].astype(np.float32))
    x = g.add("Add", words, g.add("Slice", positions, g.ints(0), length, g.ints(0)))
    x = g.norm(g.add("Add", x, kinds), "embeddings.LayerNorm", shape.epsilon)
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden_keys = g.add("Sub", g.const("one", np.array([1], np.float32)), mask)
    bias = g.add("Mul", hidden_keys, g.const("far", np.array([-1e9], np.float32)))
    bias = g.add("Unsqueeze", bias, g.ints(1, 2))
    split, joined = g.ints(0, 0, shape.head_count, size), g.ints(0, 0, shape.hidden)
    for i in range(shape.layer_count):
        layer = f"encoder.layer.{i}"
        query, key, value = (
            g.add("Reshape", g.dense(x, f"{layer}.attention.self.{part}"), split)
            for part in ("query", "key", "value")
        )
        query = g.add("Transpose", query, perm=[0, 2, 1, 3])
        scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 2, 3, 1]))
        scores = g.add("Mul", scores, g.const("scale", np.array([size**-0.5], np.float32)))
        shares = g.add("Softmax", g.add("Add", scores, bias), axis=-1)
        mixed = g.add("MatMul", shares, g.add("Transpose", value, perm=[0, 2, 1, 3]))
        mixed = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        attended = g.add("Add", x, g.dense(mixed, f"{layer}.attention.output.dense"))
        x = g.norm(attended, f"{layer}.attention.output.LayerNorm", shape.epsilon)
        inner = g.dense(x, f"{layer}.intermediate.dense")
        erf = g.add("Erf", g.add("Div", inner, g.const("root2", np.array([2**0.5], np.float32))))
        inner = g.add(
            "Mul", g.add("Mul", inner, g.add("Add", erf, "one")), g.const("half", np.array([0.5], np.float32))
        )
        x = g.norm(
            g.add("Add", x, g.dense(inner, f"{layer}.output.dense")),
            f"{layer}.output.LayerNorm",
            shape.epsilon,
        )
    kept = g.add("Mul", x, g.add("Unsqueeze", mask, g.ints(2)))
    # The sum points where the mean does; length 1 makes them the same.
    total = g.add("ReduceSum", kept, g.ints(1), keepdims=0)
    norm = g.add(
        "Max", g.add("ReduceL2", total, axes=[1], keepdims=1), g.const("tiny", np.array([1e-12], np.float32))
    )
    g.add("Div", total, norm, output="embedding")
    ids, seen = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "l"])
        for name in ("input_ids", "attention_mask")
    )
    result = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", shape.hidden])
    graph = helper.make_graph(g.nodes, "encoder", [ids, seen], [result], list(g.tensors.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
