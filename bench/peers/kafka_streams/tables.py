"""The shipped model's tables, read back from the trees of its ONNX graph."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

_LEAF = b"LEAF"


@dataclass(frozen=True, slots=True)
class Graph:
    """What the graph computes: tables of one or two features, a base, and beta calibration.

    tables: each (features, edges, shares) as in `services.training.additive.Table`, shares float32.
    """

    tables: list[tuple[tuple[int, ...], list[NDArray[np.float32]], list[NDArray[np.float32]]]]
    base_logit: float
    a: float
    b: float
    c: float


def read(path: Path) -> Graph:
    """The tables of `model.onnx`.

    Raises:
        ValueError: the graph has no such regressor, or a tree uses another number of features.
    """
    graph = onnx.load(str(path)).graph
    nodes = [node for node in graph.node if node.op_type == "TreeEnsembleRegressor"]
    if len(nodes) != 1:
        raise ValueError(f"{path.name}: {len(nodes)} tree regressors instead of one")
    attribute = {each.name: onnx.helper.get_attribute_value(each) for each in nodes[0].attribute}
    constant = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    return Graph(
        [_table(tree) for tree in _trees(attribute)],
        float(constant["base_logit"][0]),
        -float(constant["minus_a"][0]),
        float(constant["b"][0]),
        float(constant["c"][0]),
    )


@dataclass(slots=True)
class _Node:
    feature: int
    threshold: np.float32
    yes: int
    no: int
    is_leaf: bool


@dataclass(slots=True)
class _Tree:
    nodes: dict[int, _Node]
    leaves: dict[int, dict[int, float]]


def _trees(attribute: Mapping[str, Any]) -> list[_Tree]:
    trees: dict[int, _Tree] = defaultdict(lambda: _Tree({}, {}))
    for tree, node, feature, mode, threshold, yes, no in zip(
        attribute["nodes_treeids"],
        attribute["nodes_nodeids"],
        attribute["nodes_featureids"],
        attribute["nodes_modes"],
        attribute["nodes_values"],
        attribute["nodes_truenodeids"],
        attribute["nodes_falsenodeids"],
        strict=True,
    ):
        trees[tree].nodes[node] = _Node(feature, np.float32(threshold), yes, no, mode == _LEAF)
    for tree, node, target, weight in zip(
        attribute["target_treeids"],
        attribute["target_nodeids"],
        attribute["target_ids"],
        attribute["target_weights"],
        strict=True,
    ):
        trees[tree].leaves.setdefault(node, {})[target] = weight
    return [trees[tree] for tree in sorted(trees)]


def _table(tree: _Tree) -> tuple[tuple[int, ...], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    thresholds: dict[int, set[np.float32]] = defaultdict(set)
    for node in tree.nodes.values():
        if not node.is_leaf:
            thresholds[node.feature].add(node.threshold)
    features = tuple(sorted(thresholds))
    if len(features) not in (1, 2):
        raise ValueError(f"a tree uses {len(features)} features")
    edges = [np.array(sorted(thresholds[feature]), np.float32) for feature in features]
    shape = [len(axis) + 1 for axis in edges]
    shares = [np.zeros(shape, np.float32) for _ in features]

    def fill(at: int, block: tuple[slice, ...]) -> None:
        node = tree.nodes[at]
        if node.is_leaf:
            for share, feature in zip(shares, features, strict=True):
                share[block] = tree.leaves[at].get(feature, 0.0)
            return
        axis = features.index(node.feature)
        # x <= threshold are the cells up to and with the one whose upper edge it is.
        middle = int(np.searchsorted(edges[axis], node.threshold)) + 1
        start, stop = block[axis].start, block[axis].stop
        fill(node.yes, (*block[:axis], slice(start, min(middle, stop)), *block[axis + 1 :]))
        fill(node.no, (*block[:axis], slice(max(middle, start), stop), *block[axis + 1 :]))

    fill(0, tuple(slice(0, size) for size in shape))
    return features, edges, shares
