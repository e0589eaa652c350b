"""The risk model as mathematics: a sum of tables over one or two features; so its reasons are exact.

LightGBM grows trees whose paths may use one feature, or one of a few chosen pairs. All leaves over the same
features add up, without any approximation, to one piecewise-constant table, and

    logit(x) = base_logit + sum over tables of value(x),   value = sum over its features of share(x)

The base is the mean logit over the rows the model was trained on, and the shares are Shapley values of the
features against those rows. With at most two features a table they have a closed form: nothing is estimated.

Sources: Hastie and Tibshirani 1990 (additive models); Lou et al. 2013 (with pairwise interactions);
Lundberg and Lee 2017, Janzing et al. 2020 (Shapley values of a model, absent features drawn from the training
rows).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.errors import TrainingError

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Node = Mapping[str, Any]
Leaf = tuple[float, tuple[tuple[Node, bool], ...]]


def float32_at_or_below(threshold: Floats) -> Floats32:
    """The largest float32 not above each threshold: for every float32 x, `x <= t` is `x <= that`.

    LightGBM compares in float64, the served graph in float32. Plain rounding may round up and move a row that
    lies exactly on an edge to the other side; rounding down cannot.
    """
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
        below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > threshold, below, near)


@dataclass(frozen=True, slots=True)
class Table:
    """A piecewise-constant function of one or two features, told as each feature's share of it.

    features: (d,) indices, ascending. edges: d arrays of float32, ascending; cell i of an axis holds
    edges[i - 1] < x <= edges[i], the last one all above and nan. A last edge of +inf sets nan apart.
    shares: d arrays of float64 in logit units, each with len(edges) + 1 cells an axis; the function is
    their sum.
    """

    features: tuple[int, ...]
    edges: tuple[Floats32, ...]
    shares: tuple[Floats, ...]

    def __post_init__(self) -> None:
        shape = tuple(len(edges) + 1 for edges in self.edges)
        if not len(self.features) == len(self.edges) == len(self.shares) or any(
            share.shape != shape for share in self.shares
        ):
            raise TrainingError("A table needs edges and a share for each feature, of one shape.")
        if any(not (np.diff(edges) > 0).all() for edges in self.edges):
            raise TrainingError("A table's edges must ascend.")

    @property
    def values(self) -> Floats:
        """The function, cell by cell."""
        total: Floats = np.sum(self.shares, axis=0)
        return total

    def cells(self, x: Floats32) -> tuple[NDArray[np.intp], ...]:
        """Where each row of x, (n, F), lies: an index array for each axis."""
        return tuple(
            np.searchsorted(edges, x[:, feature], side="left")
            for feature, edges in zip(self.features, self.edges, strict=True)
        )

    def explained_by(self, x: Floats32) -> tuple["Table", float]:
        """The same function less its mean over `x`, shared out as Shapley values; and that mean."""
        values, cells = self.values, self.cells(x)
        mean = float(values[cells].mean())
        if len(self.features) == 1:
            return Table(self.features, self.edges, (values - mean,)), mean
        mass_0, mass_1 = (
            np.bincount(cell, minlength=size) / len(x) for cell, size in zip(cells, values.shape, strict=True)
        )
        alone_0 = (values @ mass_1)[:, None]  # expectation with only the first feature known
        alone_1 = (mass_0 @ values)[None, :]
        both = values - mean
        shares = ((alone_0 - alone_1 + both) / 2, (alone_1 - alone_0 + both) / 2)
        return Table(self.features, self.edges, shares), mean


@dataclass(frozen=True, slots=True)
class Calibration:
    """Beta calibration of p = sigmoid(logit): sigmoid(a ln p - b ln(1 - p) + c); a = b is Platt's scaling.

    Source: Kull, Silva Filho, Flach 2017, Beta calibration; Platt 1999.
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, logit: Floats) -> Floats:
        """Probability, 0 to 1, of each logit."""
        argument = self.c - self.a * np.logaddexp(0, -logit) + self.b * np.logaddexp(0, logit)
        probability: Floats = np.exp(-np.logaddexp(0, -argument))
        return probability


@dataclass(frozen=True, slots=True)
class AdditiveModel:
    """The whole model: what the ONNX graph computes, in float64."""

    features: tuple[str, ...]
    tables: tuple[Table, ...]
    base_logit: float
    calibration: Calibration = Calibration()

    def contributions(self, x: Floats32) -> Floats:
        """(n, F) float64, logit units: how much each feature moves each row from the base."""
        out = np.zeros(x.shape, np.float64)
        for table in self.tables:
            cells = table.cells(x)
            for feature, share in zip(table.features, table.shares, strict=True):
                out[:, feature] += share[cells]
        return out

    def logit(self, x: Floats32) -> Floats:
        """(n,) float64."""
        total: Floats = self.base_logit + self.contributions(x).sum(axis=1)
        return total

    def probability(self, x: Floats32) -> Floats:
        """(n,) float64, calibrated."""
        return self.calibration(self.logit(x))

    def explained_by(self, x: Floats32) -> "AdditiveModel":
        """The same logit; base and contributions told against the rows `x`."""
        explained = [table.explained_by(x) for table in self.tables]
        base = self.base_logit + sum(mean for _, mean in explained)
        return AdditiveModel(self.features, tuple(table for table, _ in explained), base, self.calibration)


def from_lightgbm(
    dumps: Iterable[Mapping[str, Any]], features: Sequence[str], weight: float = 1.0
) -> AdditiveModel:
    """The model whose logit is `weight` times the sum of the boosters' raw scores, from their `dump_model()`.

    A tree is the sum of its leaves, each the leaf's value inside the box that its path describes. A leaf goes
    to the table of its path's features, so a tree may use many features as long as no path uses more than
    two.

    Raises:
        TrainingError: a path uses more than two features, or a split is not numerical.
    """
    leaves: dict[tuple[int, ...], list[Leaf]] = {}
    base = 0.0
    for dump in dumps:
        for info in dump["tree_info"]:
            for leaf in _leaves(info["tree_structure"], ()):
                used = tuple(sorted({int(node["split_feature"]) for node, _ in leaf[1]}))
                if len(used) > 2:
                    names = ", ".join(features[feature] for feature in used)
                    raise TrainingError(
                        f"Tree {info['tree_index']} joins {names}: at most two can be explained."
                    )
                if used:
                    leaves.setdefault(used, []).append(leaf)
                else:
                    base += weight * leaf[0]
    tables = tuple(_merged(used, leaves[used], weight) for used in sorted(leaves))
    return AdditiveModel(tuple(features), tables, base)


def _leaves(node: Node, path: tuple[tuple[Node, bool], ...]) -> Iterator[Leaf]:
    """Each leaf's value, with the splits above it and whether it lies to their left."""
    if "split_feature" not in node:
        yield float(node["leaf_value"]), path
        return
    if node["decision_type"] != "<=":
        raise TrainingError(f"Split by {node['decision_type']}: only numerical splits are exported.")
    yield from _leaves(node["left_child"], (*path, (node, True)))
    yield from _leaves(node["right_child"], (*path, (node, False)))


def _merged(features: tuple[int, ...], leaves: Sequence[Leaf], weight: float) -> Table:
    """The sum of leaves over the same features, without edges at which nothing changes."""
    thresholds: dict[int, set[float]] = {feature: {np.inf} for feature in features}
    for _, path in leaves:
        for node, _ in path:
            thresholds[int(node["split_feature"])].add(float(node["threshold"]))
    edges = [np.unique(float32_at_or_below(np.array(sorted(thresholds[feature])))) for feature in features]
    values = np.zeros([len(axis) + 1 for axis in edges])
    for value, path in leaves:
        box = [np.ones(size, np.bool_) for size in values.shape]
        for node, is_left in path:
            axis = features.index(int(node["split_feature"]))
            box[axis] &= _left_of(node, edges[axis]) == is_left
        values[np.ix_(*box)] += value
    for axis in range(len(features)):
        steps = np.diff(values, axis=axis)
        moves = (steps != 0).any(axis=tuple(other for other in range(values.ndim) if other != axis))
        edges[axis] = edges[axis][moves]
        values = np.compress(np.append(moves, True), values, axis=axis)
    share = weight * values / len(features)
    return Table(features, tuple(edges), (share,) * len(features))


def _left_of(node: Node, edges: Floats32) -> NDArray[np.bool_]:
    """Which cells of an axis with these edges the split sends to its left."""
    threshold = float(node["threshold"])
    left = np.append(edges <= float32_at_or_below(np.array([threshold]))[0], False)
    # The last cell is nan's. LightGBM reads nan as 0 where no row was missing in training.
    left[-1] = bool(node["default_left"]) if node["missing_type"] == "NaN" else threshold >= 0
    return left
