"""A BERT sentence encoder as an ONNX model: tokens in, vectors of length 1 out.

Source: the layers of BERT as published. Matrices in blocks of 4 or 8 bits stay so, in the file and in memory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from infra.encoder.errors import EncoderNotConvertible
from infra.encoder.weights import BertShape, Encoder, Weight
from infra.weights.quantise import BLOCK, Blocks
from infra.weights.safetensors import Safetensors, SafetensorsBroken

Floats = NDArray[np.float32]
_OPSET = 17  # LayerNormalization came with it
_MICROSOFT = "com.microsoft"


def read_folder(folder: Path) -> Encoder:
    """The encoder in `folder`: config.json, model.safetensors, tokenizer.json.

    Raises:
        EncoderNotConvertible: it is no BERT with GELU, or a file is missing or damaged.
    """
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    tokenizer_path = folder / "tokenizer.json"
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
        weights = Safetensors([weights_path])
    except SafetensorsBroken as error:
        raise EncoderNotConvertible(weights_path, "damaged, or of another type") from error
    try:
        tokenizer = tokenizer_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderNotConvertible(tokenizer_path, "cannot be read") from error
    return Encoder(shape, weights, tokenizer)


def convert(encoder: Encoder, source: Path, target: Path) -> None:
    """Write the encoder to `target` as ONNX; `source` is where it was read, for the error.

    Raises:
        EncoderNotConvertible: a weight is missing.
    """
    try:
        model = to_model(encoder.shape, encoder.weights)
    except KeyError as error:
        raise EncoderNotConvertible(source, f"lacks the weight {error.args[0]}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))


class _Graph:
    """Nodes and weights as they are added; each call names its result."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
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

    def floats(self, name: str) -> Floats:
        found = self._weights[name]
        return found.dense() if isinstance(found, Blocks) else found.astype(np.float32)

    def weight(self, name: str) -> str:
        return self.const(name, self.floats(name))

    def rows(self, name: str, indices: str) -> str:
        """Rows of a table; of one in blocks only those asked for are turned into floats."""
        found = self._weights[name]
        if not isinstance(found, Blocks):
            return self.add("Gather", self.weight(name), indices)
        bits, width = found.bits, found.quanta.shape[1]
        quanta = self.add("Gather", self.const(f"{name}.quanta", found.stored_quanta()), indices)
        # 16-bit floats hold the scales of 4-bit blocks as they were stored.
        held = found.scale.astype(np.float16 if bits == 4 else np.float32)
        scale = self.add("Gather", self.const(f"{name}.scale", held), indices)
        scale = self.add("Unsqueeze", self.add("Cast", scale, to=TensorProto.FLOAT), self.ints(-1))
        if bits == 4:
            high = self.add("BitShift", quanta, self.const("four", np.array(4, np.uint8)), direction="RIGHT")
            low = self.add("Mod", quanta, self.const("sixteen", np.array(16, np.uint8)))
            pair = [self.add("Unsqueeze", half, self.ints(-1)) for half in (low, high)]
            blocks = self.add("Concat", self.add("Shape", indices), self.ints(width, BLOCK), axis=0)
            quanta = self.add("Reshape", self.add("Concat", *pair, axis=-1), blocks)
        if _is_plain(found):
            zero = self.const(f"{name}.zero", found.zero[:1, :1, None].astype(np.float32))
        else:
            zero = self.add("Gather", self.const(f"{name}.zero", found.zero), indices)
            zero = self.add("Unsqueeze", self.add("Cast", zero, to=TensorProto.FLOAT), self.ints(-1))
        centred = self.add("Sub", self.add("Cast", quanta, to=TensorProto.FLOAT), zero)
        wide = self.add("Concat", self.add("Shape", indices), self.ints(-1), axis=0)
        return self.add("Reshape", self.add("Mul", centred, scale), wide)

    def dense(self, x: str, name: str) -> str:
        found = self._weights[f"{name}.weight"]
        if isinstance(found, Blocks):
            product = self._blocks_product(x, f"{name}.weight", found)
        else:
            product = self.add("MatMul", x, self.const(f"{name}.weight", self.floats(f"{name}.weight").T))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def _blocks_product(self, x: str, name: str, found: Blocks) -> str:
        outputs, blocks, _ = found.quanta.shape
        parts = [self.const(f"{name}.quanta", found.stored_quanta())]
        parts.append(self.const(f"{name}.scale", found.scale.reshape(-1)))
        if not _is_plain(found):
            parts.append(self.const(f"{name}.zero", found.stored_zero().reshape(-1)))
        # Level 4: `x` is quantised to 8 bits by blocks, integers are multiplied.
        return self.add(
            "MatMulNBits",
            *(x, *parts),
            domain=_MICROSOFT,
            K=blocks * BLOCK,
            N=outputs,
            bits=found.bits,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def norm(self, x: str, name: str, epsilon: float) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def _is_plain(blocks: Blocks) -> bool:
    """Whether its zeros are what the operator takes where none is given."""
    return bool((blocks.zero == 2 ** (blocks.bits - 1)).all())


def to_model(shape: BertShape, weights: Mapping[str, Weight]) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` INT64 [n, l] -> `embedding` FP32 [n, hidden]: the masked mean, length 1.

    Raises:
        KeyError: a weight is missing.
    """
    g, size = _Graph(weights), shape.hidden // shape.head_count
    words = g.rows("embeddings.word_embeddings.weight", "input_ids")
    length = g.add("Slice", g.add("Shape", "input_ids"), g.ints(1), g.ints(2))
    positions = g.weight("embeddings.position_embeddings.weight")
    kinds = g.const("kind", g.floats("embeddings.token_type_embeddings.weight")[0])
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
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
