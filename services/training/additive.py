"""The risk model as mathematics: one step function a feature, summed; so its reasons are exact.

LightGBM grows the trees under a constraint that each tree uses one feature. All trees of a feature then
add up, without any approximation, to one piecewise-constant function of that feature, and

    logit(x) = base_logit + sum over features of contribution_f(x_f)

Each contribution is centred on the rows the model was trained on. For an additive model the centred term
is the Shapley value of its feature (Lundberg and Lee 2017), so serving has nothing to estimate.

Source of the model class: Hastie and Tibshirani 1990 (generalised additive models); Lou, Caruana, Gehrke 2012
(additive models of boosted trees).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.errors import TrainingError

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]


def float32_at_or_below(threshold: Floats) -> Floats32:
    """The largest float32 not above each threshold: for every float32 x, `x <= t` is `x <= that`.

    LightGBM compares in float64, the served graph in float32. Plain rounding may round up and move a row that
    lies exactly on an edge to the other side; rounding down cannot.
    """
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
    return np.where(near.astype(np.float64) > threshold, np.nextafter(near, np.float32(-np.inf)), near)


@dataclass(frozen=True, slots=True)
class StepFunction:
    """values[i] where edges[i-1] < x <= edges[i]; the last value above all edges; `missing` where x is nan.

    edges: (k,) float32, ascending. values: (k + 1,) float64, logit units.
    """

    edges: Floats32
    values: Floats
    missing: float

    def __post_init__(self) -> None:
        if len(self.values) != len(self.edges) + 1 or not (np.diff(self.edges) > 0).all():
            raise TrainingError("A step function needs ascending edges and one more value than edges.")

    def __call__(self, x: Floats32) -> Floats:
        """The function at x, (n,) float32 to (n,) float64."""
        found = self.values[np.searchsorted(self.edges, x, side="left")]
        return np.where(np.isnan(x), self.missing, found)

    def less(self, offset: float) -> "StepFunction":
        """This function minus a constant."""
        return StepFunction(self.edges, self.values - offset, self.missing - offset)

    def without_idle_edges(self) -> "StepFunction":
        """The same function without edges at which nothing changes."""
        moves = np.diff(self.values) != 0
        return StepFunction(
            self.edges[moves], np.append(self.values[:-1][moves], self.values[-1]), self.missing
        )


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
    """The whole model: what the ONNX graph computes, in float64.

    steps: by feature index; a feature that is missing here contributes nothing.
    """

    features: tuple[str, ...]
    steps: Mapping[int, StepFunction]
    base_logit: float
    calibration: Calibration = Calibration()

    def contributions(self, x: Floats32) -> Floats:
        """(n, F) float64, logit units: how much each feature moves each row from the base."""
        out = np.zeros(x.shape, np.float64)
        for feature, step in self.steps.items():
            out[:, feature] = step(x[:, feature])
        return out

    def logit(self, x: Floats32) -> Floats:
        """(n,) float64."""
        return self.base_logit + self.contributions(x).sum(axis=1)

    def probability(self, x: Floats32) -> Floats:
        """(n,) float64, calibrated."""
        return self.calibration(self.logit(x))

    def centred_on(self, x: Floats32) -> "AdditiveModel":
        """The same logit, with contributions that average to zero over `x`; the base takes their means."""
        means = {feature: float(step(x[:, feature]).mean()) for feature, step in self.steps.items()}
        steps = {feature: step.less(means[feature]) for feature, step in self.steps.items()}
        return replace(self, steps=steps, base_logit=self.base_logit + sum(means.values()))


def from_lightgbm(dump: Mapping[str, Any], features: Sequence[str]) -> AdditiveModel:
    """The additive model that a LightGBM booster's `dump_model()` describes, with the same raw score.

    Raises:
        TrainingError: a tree uses more than one feature, or a split that is not numerical.
    """
    trees: dict[int, list[Mapping[str, Any]]] = {}
    base = 0.0
    for info in dump["tree_info"]:
        root = info["tree_structure"]
        used = sorted(_features_of(root))
        if len(used) > 1:
            names = ", ".join(features[feature] for feature in used)
            raise TrainingError(
                f"Tree {info['tree_index']} uses {names}: this model takes one feature a tree."
            )
        if used:
            trees.setdefault(used[0], []).append(root)
        else:
            base += float(root["leaf_value"])
    steps = {feature: _merged(trees[feature]).without_idle_edges() for feature in sorted(trees)}
    return AdditiveModel(tuple(features), steps, base)


def _features_of(node: Mapping[str, Any]) -> set[int]:
    if "split_feature" not in node:
        return set()
    if node["decision_type"] != "<=":
        raise TrainingError(f"Split by {node['decision_type']}: only numerical splits are exported.")
    below = _features_of(node["left_child"]) | _features_of(node["right_child"])
    return below | {int(node["split_feature"])}


def _merged(trees: Sequence[Mapping[str, Any]]) -> StepFunction:
    """The sum of single-feature trees."""
    edges = np.unique(float32_at_or_below(np.array([t for tree in trees for t in _thresholds(tree)])))
    values, missing = np.zeros(len(edges) + 1), 0.0
    for tree in trees:
        _add(tree, edges, values, 0, len(edges) + 1)
        missing += _at_missing(tree)
    return StepFunction(edges, values, missing)


def _thresholds(node: Mapping[str, Any]) -> list[float]:
    if "split_feature" not in node:
        return []
    return [float(node["threshold"]), *_thresholds(node["left_child"]), *_thresholds(node["right_child"])]


def _add(node: Mapping[str, Any], edges: Floats32, values: Floats, first: int, last: int) -> None:
    """Add the tree to `values`, whose intervals `first` to `last` (exclusive) reach `node`."""
    if first >= last:
        return
    if "split_feature" not in node:
        values[first:last] += float(node["leaf_value"])
        return
    edge = float32_at_or_below(np.array([float(node["threshold"])]))[0]
    middle = int(np.clip(np.searchsorted(edges, edge) + 1, first, last))
    _add(node["left_child"], edges, values, first, middle)
    _add(node["right_child"], edges, values, middle, last)


def _at_missing(node: Mapping[str, Any]) -> float:
    while "split_feature" in node:
        # LightGBM reads nan as 0 where no row was missing in training.
        known = node["missing_type"] == "NaN"
        left = bool(node["default_left"]) if known else float(node["threshold"]) >= 0
        node = node["left_child" if left else "right_child"]
    return float(node["leaf_value"])
