"""The additive model as tensor operators alone: for TensorRT and other engines that know no trees.

    x (n, F) ──Gather──▶ (n, T) for both axes of a table ──compare with edges, add up──▶ cells (n, T)
    cells ──Gather──▶ shares (n, T) of the first and of the second feature ──one-hot──▶ contributions (n, F)

Each comparison of each table is made at once, which suits a GPU; on a CPU trees are faster. The outputs and
the metadata are those of `export.to_onnx`, so the same client asks either. With 8 bits the shares are stored
as int8 with a scale and a middle for each table and axis, and computed in float32.

Source of the way: Nakandala et al. 2020, A tensor compiler for unified machine learning prediction serving
(trees as matrix operations); here tables, which are smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from services.training.additive import AdditiveModel, Floats, Table
from services.training.export import INPUT, IR_VERSION, OPSET, calibrated, signature, with_metadata
from services.training.repository import MAX_BATCH_ROWS, tensor_lines

Backend = Literal["onnxruntime", "onnxruntime-tensorrt", "tensorrt"]
BACKENDS: tuple[Backend, ...] = ("onnxruntime", "onnxruntime-tensorrt", "tensorrt")


@dataclass(frozen=True, slots=True)
class _Packed:
    """T tables side by side; a table of one feature has a second axis of one cell.

    feature: (2, T) int64. edges: (2, T, E) float32, filled up with inf. missing: (2, T) int64, the cell of
    nan. stride, offset: (T,) int64. table_of: (C,) int64, the table of each share. shares: (2, C) float64.
    """

    feature: NDArray[np.int64]
    edges: NDArray[np.float32]
    missing: NDArray[np.int64]
    stride: NDArray[np.int64]
    offset: NDArray[np.int64]
    shares: Floats
    table_of: NDArray[np.int64]


def to_tensors(
    model: AdditiveModel, *, name: str, feature_spec: str, bits: Literal[8, 32] = 32
) -> onnx.ModelProto:
    """The checked graph; the same model gives the same bytes.

    Args:
        bits: of a stored share: 32 for float32, 8 for int8.
    """
    packed, width, tables = _pack(model.tables), len(model.features), len(model.tables)
    constants: dict[str, NDArray[Any]] = {
        "features_0": packed.feature[0],
        "features_1": packed.feature[1],
        "edges_0": packed.edges[0][None],
        "edges_1": packed.edges[1][None],
        "missing_0": packed.missing[0][None],
        "missing_1": packed.missing[1][None],
        "stride": packed.stride[None],
        "offset": packed.offset[None],
        "last": np.array([2], np.int64),
        "one": np.array([1], np.int64),
        "base_logit": np.array([model.base_logit], np.float32),
    }
    nodes = []
    for axis in (0, 1):
        onehot = np.zeros((tables, width), np.float32)
        onehot[np.arange(tables), packed.feature[axis]] = 1
        constants[f"onehot_{axis}"] = onehot
        nodes += [
            helper.make_node("Gather", [INPUT, f"features_{axis}"], [f"x_{axis}"], axis=1),
            helper.make_node("Unsqueeze", [f"x_{axis}", "last"], [f"column_{axis}"]),
            helper.make_node("Less", [f"edges_{axis}", f"column_{axis}"], [f"above_{axis}"]),
            helper.make_node("Cast", [f"above_{axis}"], [f"counted_{axis}"], to=TensorProto.INT64),
            helper.make_node("ReduceSum", [f"counted_{axis}", "last"], [f"known_{axis}"], keepdims=0),
            helper.make_node("IsNaN", [f"x_{axis}"], [f"nan_{axis}"]),
            helper.make_node("Where", [f"nan_{axis}", f"missing_{axis}", f"known_{axis}"], [f"cell_{axis}"]),
        ]
    nodes += [
        helper.make_node("Mul", ["cell_0", "stride"], ["row"]),
        helper.make_node("Add", ["row", "cell_1"], ["inside"]),
        helper.make_node("Add", ["inside", "offset"], ["place"]),
    ]
    for axis in (0, 1):
        nodes += _shares(packed, axis, bits, constants)
        nodes.append(helper.make_node("MatMul", [f"share_{axis}", f"onehot_{axis}"], [f"moved_{axis}"]))
    nodes += [
        helper.make_node("Add", ["moved_0", "moved_1"], ["contributions"]),
        helper.make_node("ReduceSum", ["contributions", "one"], ["moved"], keepdims=1),
        helper.make_node("Add", ["moved", "base_logit"], ["logit"]),
    ]
    more, curve = calibrated(model.calibration)
    graph = helper.make_graph(
        [*nodes, *more],
        name,
        *signature(width),
        initializer=[*(numpy_helper.from_array(value, label) for label, value in constants.items()), *curve],
    )
    proto = helper.make_model(
        graph, producer_name="weir", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    with_metadata(proto, model.features, feature_spec)
    onnx.checker.check_model(proto)
    return proto


def gpu_config(name: str, feature_count: int, backend: Backend) -> str:
    """`config.pbtxt` for a GPU, checked against Triton's own schema.

    `onnxruntime-tensorrt` has ONNX Runtime hand the graph to TensorRT when it is loaded; `tensorrt` serves a
    plan that `trtexec` makes on the machine that serves it.
    """
    engine = "tensorrt" if backend == "tensorrt" else "onnxruntime"
    file = "model.plan" if backend == "tensorrt" else "model.onnx"
    faster = ""
    if backend == "onnxruntime-tensorrt":
        faster = """\
optimization { execution_accelerators { gpu_execution_accelerator : [ {
  name : "tensorrt"
  parameters { key: "precision_mode" value: "FP32" }
} ] } }
"""
    text = f"""\
# Written by `weir models export`. TF32 would round shares to 10 bits: serve with NVIDIA_TF32_OVERRIDE=0.
name: "{name}"
backend: "{engine}"
default_model_filename: "{file}"
{tensor_lines(feature_count)}
instance_group [ {{ count: 1 kind: KIND_GPU }} ]
dynamic_batching {{
  preferred_batch_size: [ 256, 1024, 4096 ]
  max_queue_delay_microseconds: 0
}}
version_policy {{ latest {{ num_versions: 2 }} }}
{faster}"""
    text_format.Parse(text, model_config_pb2.ModelConfig())
    return text


def plan_command(feature_count: int) -> str:
    """What makes `model.plan` of `model.onnx`, to be run where it is served."""
    shapes = " ".join(
        f"--{kind}Shapes={INPUT}:{rows}x{feature_count}"
        for kind, rows in (("min", 1), ("opt", 256), ("max", MAX_BATCH_ROWS))
    )
    return f"trtexec --onnx=model.onnx --saveEngine=model.plan {shapes} --noTF32"


def _shares(
    packed: _Packed, axis: int, bits: int, constants: dict[str, NDArray[Any]]
) -> list[onnx.NodeProto]:
    """Nodes from `place` to `share_<axis>`, (n, T) float32."""
    values = packed.shares[axis]
    if bits == 32:
        constants[f"shares_{axis}"] = values.astype(np.float32)
        return [helper.make_node("Gather", [f"shares_{axis}", "place"], [f"share_{axis}"])]
    levels, middle, scale = _levels(values, packed.table_of, len(packed.offset))
    constants[f"shares_{axis}"] = levels.astype(np.int8)
    constants[f"scale_{axis}"] = scale.astype(np.float32)[None]
    constants[f"middle_{axis}"] = middle.astype(np.float32)[None]
    return [
        helper.make_node("Gather", [f"shares_{axis}", "place"], [f"level_{axis}"]),
        helper.make_node("Cast", [f"level_{axis}"], [f"level_f_{axis}"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"level_f_{axis}", f"scale_{axis}"], [f"scaled_{axis}"]),
        helper.make_node("Add", [f"scaled_{axis}", f"middle_{axis}"], [f"share_{axis}"]),
    ]


def with_int8_shares(model: AdditiveModel) -> AdditiveModel:
    """The model that `to_tensors` with 8 bits computes."""
    tables = []
    for table in model.tables:
        shares = []
        for share in table.shares:
            levels, middle, scale = _levels(share.ravel(), np.zeros(share.size, np.int64), 1)
            shares.append((middle[0] + levels * scale[0]).reshape(share.shape))
        tables.append(Table(table.features, table.edges, tuple(shares)))
    return replace(model, tables=tuple(tables))


def _levels(values: Floats, table_of: NDArray[np.int64], tables: int) -> tuple[Floats, Floats, Floats]:
    """Whole numbers from -127 to 127 for the values, and each table's middle and step."""
    low, high = np.full(tables, np.inf), np.full(tables, -np.inf)
    np.minimum.at(low, table_of, values)
    np.maximum.at(high, table_of, values)
    middle, scale = (low + high) / 2, np.maximum((high - low) / 254, 1e-12)
    return np.rint((values - middle[table_of]) / scale[table_of]), middle, scale


def _pack(tables: Sequence[Table]) -> _Packed:
    count = len(tables)
    most = max((len(edges) for table in tables for edges in table.edges), default=1)
    feature, missing = np.zeros((2, count), np.int64), np.zeros((2, count), np.int64)
    edges = np.full((2, count, max(most, 1)), np.inf, np.float32)
    stride, sizes = np.ones(count, np.int64), np.zeros(count, np.int64)
    shares: list[list[Floats]] = [[], []]
    for place, table in enumerate(tables):
        shape = table.shares[0].shape
        stride[place], sizes[place] = (shape[1] if len(shape) == 2 else 1), int(np.prod(shape))
        for axis, (index, axis_edges) in enumerate(zip(table.features, table.edges, strict=True)):
            feature[axis, place] = index
            edges[axis, place, : len(axis_edges)] = axis_edges
            missing[axis, place] = len(axis_edges)
        shares[0].append(table.shares[0].ravel())
        second = table.shares[1].ravel() if len(shape) == 2 else np.zeros(sizes[place])
        shares[1].append(second)
    offset = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return _Packed(
        feature,
        edges,
        missing,
        stride,
        offset,
        np.stack([np.concatenate(each) for each in shares]),
        np.repeat(np.arange(count), sizes),
    )
