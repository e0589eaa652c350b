"""The additive model as one ONNX graph: contributions, logit and calibrated probability from one pass.

    features (n, F) ──TreeEnsembleRegressor──▶ contributions (n, F)
    contributions ──Pad, ReduceSum, + base_logit──▶ logit (n, 1) ──beta calibration──▶ probability (n, 1)

Each table of one feature, or of a pair, is one balanced tree, whose leaves write each feature's share to that
feature's own target. So the regressor's output is the contributions, and many boosted trees become a few.

The graph keeps to operator set 17, `ai.onnx.ml` 3 and IR version 8, which ONNX Runtime 1.17 reads.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from services.training.additive import AdditiveModel, Calibration, Table

OPSET, OPSET_ML, IR_VERSION = 17, 3, 8
INPUT = "features"
OUTPUTS = ("logit", "probability", "contributions")
# A row is added up in whole vector registers: else the order of its sum depends on where it lies in a batch.
_LANES = 16


@dataclass(slots=True)
class _Forest:
    """The regressor's attributes, column by column, as ONNX wants them."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    yes: list[int] = field(default_factory=list)
    no: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_node: list[int] = field(default_factory=list)
    leaf_target: list[int] = field(default_factory=list)
    leaf_value: list[float] = field(default_factory=list)

    def add(self, tree: int, table: Table) -> None:
        """One balanced tree for one table, halving its longer axis until a block of cells is all alike."""
        values = np.stack([share.astype(np.float32) for share in table.shares], axis=-1)
        node_count = 0

        def new(mode: str, feature: int, threshold: float) -> int:
            nonlocal node_count
            self.tree.append(tree)
            self.node.append(node_count)
            self.feature.append(feature)
            self.mode.append(mode)
            self.threshold.append(threshold)
            self.yes.append(0)
            self.no.append(0)
            node_count += 1
            return node_count - 1

        def grow(block: tuple[slice, ...]) -> int:
            cells = values[block]
            first = cells[(0,) * len(block)]
            if (cells == first).all():
                at = new("LEAF", 0, 0.0)
                for feature, value in zip(table.features, first, strict=True):
                    self.leaf_tree.append(tree)
                    self.leaf_node.append(at)
                    self.leaf_target.append(feature)
                    self.leaf_value.append(float(value))
                return at
            axis = int(np.argmax(cells.shape[:-1]))
            start, stop = block[axis].start, block[axis].stop
            middle = (start + stop) // 2
            # nan <= edge is false, so a missing value falls to the last cell of its axis.
            at = new("BRANCH_LEQ", table.features[axis], float(table.edges[axis][middle - 1]))
            place = len(self.tree) - 1
            self.yes[place] = grow((*block[:axis], slice(start, middle), *block[axis + 1 :]))
            self.no[place] = grow((*block[:axis], slice(middle, stop), *block[axis + 1 :]))
            return at

        grow(tuple(slice(0, size) for size in values.shape[:-1]))

    def attributes(self, target_count: int) -> dict[str, Any]:
        """Keyword arguments of the TreeEnsembleRegressor node."""
        return {
            "n_targets": target_count,
            "aggregate_function": "SUM",
            "post_transform": "NONE",
            "nodes_treeids": self.tree,
            "nodes_nodeids": self.node,
            "nodes_featureids": self.feature,
            "nodes_modes": self.mode,
            "nodes_values": self.threshold,
            "nodes_truenodeids": self.yes,
            "nodes_falsenodeids": self.no,
            "nodes_missing_value_tracks_true": [0] * len(self.tree),
            "nodes_hitrates": [1.0] * len(self.tree),
            "target_treeids": self.leaf_tree,
            "target_nodeids": self.leaf_node,
            "target_ids": self.leaf_target,
            "target_weights": self.leaf_value,
        }


def to_onnx(model: AdditiveModel, *, name: str, feature_spec: str) -> onnx.ModelProto:
    """The checked graph; its metadata carries the feature order and `feature_spec`. Same model, same bytes.

    Raises:
        onnx.checker.ValidationError: the graph is malformed, which is a defect here.
    """
    forest = _Forest()
    for tree, table in enumerate(model.tables):
        forest.add(tree, table)
    width = len(model.features)
    more, curve = calibrated(model.calibration)
    graph = helper.make_graph(
        [
            helper.make_node(
                "TreeEnsembleRegressor",
                [INPUT],
                ["contributions"],
                domain="ai.onnx.ml",
                name="reasons",
                **forest.attributes(width),
            ),
            helper.make_node("Pad", ["contributions", "pads"], ["padded"], name="pad"),
            helper.make_node("ReduceSum", ["padded", "axis"], ["moved"], keepdims=1, name="sum"),
            helper.make_node("Add", ["moved", "base_logit"], ["logit"], name="logit"),
            *more,
        ],
        name,
        *signature(width),
        initializer=[
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("pads", TensorProto.INT64, [4], [0, 0, 0, -width % _LANES]),
            constant("base_logit", model.base_logit),
            *curve,
        ],
    )
    proto = helper.make_model(
        graph,
        producer_name="weir",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)],
    )
    with_metadata(proto, model.features, feature_spec)
    onnx.checker.check_model(proto)
    return proto


def constant(label: str, value: float) -> onnx.TensorProto:
    """A float32 of its own, (1,)."""
    return helper.make_tensor(label, TensorProto.FLOAT, [1], [float(np.float32(value))])


def calibrated(calibration: Calibration) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from `logit` to `probability`, and their constants."""
    return [
        # ln p = -softplus(-logit) and ln(1 - p) = -softplus(logit): no overflow at either end.
        helper.make_node("Neg", ["logit"], ["negated"], name="negate"),
        helper.make_node("Softplus", ["negated"], ["log_p"], name="log_p"),
        helper.make_node("Softplus", ["logit"], ["log_q"], name="log_q"),
        helper.make_node("Mul", ["log_p", "minus_a"], ["a_term"], name="a_term"),
        helper.make_node("Mul", ["log_q", "b"], ["b_term"], name="b_term"),
        helper.make_node("Add", ["a_term", "b_term"], ["both"], name="both"),
        helper.make_node("Add", ["both", "c"], ["argument"], name="argument"),
        helper.make_node("Sigmoid", ["argument"], ["probability"], name="probability"),
    ], [
        constant("minus_a", -calibration.a),
        constant("b", calibration.b),
        constant("c", calibration.c),
    ]


def signature(width: int) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs, as every service asks them."""
    return [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", width])], [
        helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1]),
        helper.make_tensor_value_info("contributions", TensorProto.FLOAT, ["n", width]),
    ]


def with_metadata(proto: onnx.ModelProto, features: Sequence[str], feature_spec: str) -> None:
    """Write the feature order and spec into the graph, where they are checked against model.json."""
    helper.set_model_props(
        proto, {"weir.features": json.dumps(list(features)), "weir.feature_spec": feature_spec}
    )
