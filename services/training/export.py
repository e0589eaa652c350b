"""The additive model as one ONNX graph: contributions, logit and calibrated probability from one pass.

    features (n, F) ──TreeEnsembleRegressor──▶ contributions (n, F)
    contributions ──ReduceSum, + base_logit──▶ logit (n, 1) ──beta calibration──▶ probability (n, 1)

Each feature's step function is one balanced tree of depth at most 9, whose leaves write to that feature's own
target. So the regressor's output is the contributions, and hundreds of boosted trees become F small ones.

The graph keeps to operator set 17, `ai.onnx.ml` 3 and IR version 8, which ONNX Runtime 1.17 reads.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from services.training.additive import AdditiveModel, StepFunction

OPSET, OPSET_ML, IR_VERSION = 17, 3, 8
INPUT = "features"
OUTPUTS = ("logit", "probability", "contributions")


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

    def add(self, tree: int, feature: int, step: StepFunction) -> None:
        """One balanced tree for one step function; node 0 sets missing values apart."""
        nodes = 0

        def new(mode: str, threshold: float) -> int:
            nonlocal nodes
            for column, value in zip(
                (self.tree, self.node, self.feature, self.mode, self.threshold, self.yes, self.no),
                (tree, nodes, feature, mode, threshold, 0, 0),
                strict=True,
            ):
                column.append(value)  # type: ignore[attr-defined]
            nodes += 1
            return nodes - 1

        def leaf(value: float) -> int:
            at = new("LEAF", 0.0)
            self.leaf_tree.append(tree)
            self.leaf_node.append(at)
            self.leaf_target.append(feature)
            self.leaf_value.append(float(np.float32(value)))
            return at

        def grow(first: int, last: int) -> int:
            """Nodes for the values `first` to `last` (inclusive)."""
            if first == last:
                return leaf(step.values[first])
            middle = (first + last) // 2
            return branch(float(step.edges[middle]), (first, middle), (middle + 1, last))

        def branch(threshold: float, low: tuple[int, int], high: tuple[int, int] | None) -> int:
            at = new("BRANCH_LEQ", threshold)
            place = len(self.tree) - 1
            self.yes[place] = grow(*low)
            self.no[place] = leaf(step.missing) if high is None else grow(*high)
            return at

        branch(float("inf"), (0, len(step.edges)), None)  # nan <= inf is false, everything else is true

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
    for tree, (feature, step) in enumerate(sorted(model.steps.items())):
        forest.add(tree, feature, step)
    width = len(model.features)

    def constant(label: str, value: float) -> onnx.TensorProto:
        return helper.make_tensor(label, TensorProto.FLOAT, [1], [float(np.float32(value))])

    calibration = model.calibration
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
            helper.make_node("ReduceSum", ["contributions", "axis"], ["moved"], keepdims=1, name="sum"),
            helper.make_node("Add", ["moved", "base_logit"], ["logit"], name="logit"),
            # ln p = -softplus(-logit) and ln(1 - p) = -softplus(logit): no overflow at either end.
            helper.make_node("Neg", ["logit"], ["negated"], name="negate"),
            helper.make_node("Softplus", ["negated"], ["log_p"], name="log_p"),
            helper.make_node("Softplus", ["logit"], ["log_q"], name="log_q"),
            helper.make_node("Mul", ["log_p", "minus_a"], ["a_term"], name="a_term"),
            helper.make_node("Mul", ["log_q", "b"], ["b_term"], name="b_term"),
            helper.make_node("Add", ["a_term", "b_term"], ["both"], name="both"),
            helper.make_node("Add", ["both", "c"], ["argument"], name="argument"),
            helper.make_node("Sigmoid", ["argument"], ["probability"], name="probability"),
        ],
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", width])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("contributions", TensorProto.FLOAT, ["n", width]),
        ],
        initializer=[
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            constant("base_logit", model.base_logit),
            constant("minus_a", -calibration.a),
            constant("b", calibration.b),
            constant("c", calibration.c),
        ],
    )
    proto = helper.make_model(
        graph,
        producer_name="weir",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)],
    )
    helper.set_model_props(
        proto, {"weir.features": json.dumps(list(model.features)), "weir.feature_spec": feature_spec}
    )
    onnx.checker.check_model(proto)
    return proto
