"""A served graph read back as the mathematics it came from: tables, base, calibration.

What is compressed, explained or compared is then the very model that serves, with no other file to keep in
step with it.
"""

import json
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from services.training.additive import AdditiveModel, Calibration, Floats32, Table
from services.training.errors import TrainingError


def from_onnx(proto: onnx.ModelProto) -> AdditiveModel:
    """The model whose `to_onnx` is this graph; float32 values, so its logits are the graph's to rounding.

    Raises:
        TrainingError: the graph is not one that `to_onnx` writes.
    """
    try:
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        features = tuple(str(name) for name in _json_list(metadata["weir.features"]))
        (forest,) = [node for node in proto.graph.node if node.op_type == "TreeEnsembleRegressor"]
        attributes = {each.name: helper.get_attribute_value(each) for each in forest.attribute}
        values = {
            each.name: float(numpy_helper.to_array(each).ravel()[0]) for each in proto.graph.initializer
        }
        tables = tuple(_tables(attributes))
        calibration = Calibration(-values["minus_a"], values["b"], values["c"])
        return AdditiveModel(features, tables, values["base_logit"], calibration)
    except (KeyError, ValueError, IndexError) as error:
        raise TrainingError("The graph is not one that `weir train risk` writes.") from error


def _json_list(text: str) -> list[Any]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(text)
    return found


def _tables(attributes: dict[str, Any]) -> list[Table]:
    """A table for each tree; its cells are walked down the tree all at once."""
    tree = np.asarray(attributes["nodes_treeids"])
    leaf_tree, leaf_node = (np.asarray(attributes[f"target_{name}"]) for name in ("treeids", "nodeids"))
    leaf_feature = np.asarray(attributes["target_ids"])
    leaf_value = np.asarray(attributes["target_weights"], np.float64)
    columns = {
        name: np.asarray(attributes[f"nodes_{name}"])
        for name in ("featureids", "values", "truenodeids", "falsenodeids")
    }
    branch = np.array([mode == b"BRANCH_LEQ" for mode in attributes["nodes_modes"]])
    out = []
    for number in np.unique(tree):
        nodes = np.flatnonzero(tree == number)
        mine = {name: column[nodes] for name, column in columns.items()}
        inner = branch[nodes]
        leaves = leaf_tree == number
        shares: dict[int, np.ndarray[Any, np.dtype[np.float64]]] = defaultdict(lambda: np.zeros(len(nodes)))  # noqa: B023 - used within this turn of the loop
        for node, feature, value in zip(
            leaf_node[leaves], leaf_feature[leaves], leaf_value[leaves], strict=True
        ):
            shares[int(feature)][node] = value
        used = tuple(sorted(shares))
        edges = tuple(_edges(mine["values"][inner & (mine["featureids"] == feature)]) for feature in used)
        cells = np.indices([len(axis) + 1 for axis in edges])
        at = np.zeros(cells.shape[1:], np.int64)
        while (going := inner[at]).any():
            left = np.zeros(at.shape, np.bool_)
            for axis, feature in enumerate(used):
                # The cell i lies at or below the edge i, and the last one above all of them.
                border = np.searchsorted(edges[axis], mine["values"][at], side="left")
                left |= (mine["featureids"][at] == feature) & (cells[axis] <= border)
            at = np.where(going, np.where(left, mine["truenodeids"][at], mine["falsenodeids"][at]), at)
        out.append(Table(used, edges, tuple(shares[feature][at] for feature in used)))
    return out


def _edges(thresholds: np.ndarray[Any, Any]) -> Floats32:
    return np.unique(thresholds.astype(np.float32))
