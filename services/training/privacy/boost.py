"""An additive risk model that gives no one payment, or no one account, away: DP explainable boosting.

Everything that the model holds comes from two kinds of release, each with Gaussian noise:

    counts      once: frauds, honest rows, and for every feature how many rows lie in each of its cells
    leaf sums   rounds x features times: in each leaf of a random tree the sum of gradients and of curvatures

Base, tables and the background that reasons are told against are computed from those releases alone. There is
nothing else: bins are public round numbers, no row is weighted by its class, no round stops early, no
calibration is fitted, and the settings below were chosen on simulated banks.

A row's gradient is y - p and its curvature p (1 - p), p being what the model so far says. Stretched by 3.3
the curvature still fits into the same ball, (y - p)^2 + 3.3^2 p^2 (1 - p)^2 <= 1 for all p, so that Newton's
step costs no more noise than the gradient alone. A row lies in one leaf, so a release moves by at most 1 in
L2 when a row comes or goes, and by at most K when an account of at most K rows does. An honest row's gradient
is near 0, so few accounts come near K: what an account adds to the leaves of one tree is shrunk to an L2 of
`clip`, and the noise is for min(K, clip); of its frauds no more than that count. Other counts are not shrunk
and their noise is for K.

Sources:
    Nori, Caruana, Bu, Shen, Kulkarni 2021, Accuracy, interpretability, and differential privacy via
    explainable boosting, ICML (cyclic boosting of random trees with Gaussian noise; composition by GDP).
    Friedman, Hastie, Tibshirani 2000, Additive logistic regression (Newton's step).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from services.training.grid import Cells, Grid
from services.training.privacy.noise import Noise, on_lattice
from services.training.privacy.units import Unit

Bools = NDArray[np.bool_]
CURVATURE_STRETCH = 3.3  # the largest that fits is 3.330, at p = 0.38


@dataclass(frozen=True, slots=True)
class PrivateRecipe:
    """How to boost; every value is fixed before the data is seen.

    rounds: times that each feature is boosted. cuts: of a random tree. learning_rate: share of Newton's step.
    counts_share: of mu^2, for the counts. pull: how strongly noise holds a step back, in standard deviations
    of a leaf's noise. floor: standard deviations of its noise above which a count shows a cell filled. clip:
    the L2 that an account's part of a release is shrunk to. left_out: features that are not used, by name.
    """

    rounds: int = 16
    cuts: int = 3
    learning_rate: float = 0.6
    counts_share: float = 0.1
    pull: float = 1.0
    floor: float = 3.0
    clip: float = 2.0
    left_out: tuple[str, ...] = ("amount_log",)

    def without(self, names: Iterable[str]) -> "PrivateRecipe":
        """The same without these features too."""
        return replace(self, left_out=(*self.left_out, *names))

    def as_dict(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Protected:
    """Rows to learn from, at most K of one account where the unit is the account.

    x: (n, F) float32. is_fraud: (n,) bool. owner: (n,) int64 from 0, whose row it is; None where each row is
    a unit. most: how many rows come or go with one unit.
    """

    x: Floats32
    is_fraud: Bools
    unit: Unit
    owner: NDArray[np.int64] | None = None
    most: int = 1

    @classmethod
    def of(
        cls,
        x: Floats32,
        is_fraud: Bools,
        account: NDArray[np.uint64],
        unit: Unit,
        per_account: int,
        noise: Noise,
    ) -> "Protected":
        """All rows where the unit is the payment; else at most `per_account` of each account, at random.

        Raises:
            TrainingError: fewer than one payment an account.
        """
        if unit is Unit.PAYMENT:
            return cls(x, is_fraud, unit)
        if per_account < 1:
            raise TrainingError(f"At least 1 payment of an account must be used, not {per_account}.")
        kept = at_most(account, per_account, noise)
        owner = np.unique(account[kept], return_inverse=True)[1].astype(np.int64)
        return cls(x[kept], is_fraud[kept], unit, owner, per_account)

    def class_counts(self, clip: float) -> Floats:
        """(2,) frauds and honest rows; of an owner's frauds no more than `clip` count."""
        frauds = float(self.is_fraud.sum())
        honest = len(self.is_fraud) - frauds
        if self.owner is not None:
            frauds = float(np.minimum(np.bincount(self.owner, self.is_fraud), clip).sum())
        return np.array([frauds, honest])

    def leaf_sums(self, leaf: NDArray[np.intp], columns: Floats, leaf_count: int, clip: float) -> Floats:
        """(2, leaf_count) sums of the columns, (2, n); an owner's part is shrunk to an L2 of `clip`."""
        if self.owner is None:
            return np.stack([np.bincount(leaf, column, leaf_count) for column in columns])
        size = int(self.owner.max()) + 1
        key = self.owner * leaf_count + leaf
        parts = np.stack([np.bincount(key, column, size * leaf_count) for column in columns])
        parts = parts.reshape(2, size, leaf_count)
        norm = np.sqrt((parts**2).sum(axis=(0, 2)))
        shrunk = np.minimum(1.0, clip * (1 - 1e-9) / np.maximum(norm, 1e-300))
        sums: Floats = on_lattice(parts * shrunk[None, :, None]).sum(axis=1)
        return sums


@dataclass(frozen=True, slots=True)
class PrivateModel:
    """A model and what it costs.

    mu: of all releases together, for the unit. clip: the L2 by which a unit can move a leaf sum. is_private:
    False where a seed makes the noise known. rows: the noisy number of rows. noise_counts, noise_leaf:
    standard deviations. releases: how many there were. All may be told with the model.
    """

    model: AdditiveModel
    mu: float
    clip: float
    is_private: bool
    rows: float
    noise_counts: float
    noise_leaf: float
    releases: int


def at_most(account: NDArray[np.uint64], most: int, noise: Noise) -> NDArray[np.intp]:
    """Ascending row numbers: of each account `most` rows drawn at random without replacement, or all it has.

    What is drawn of one account depends on no other's rows: a draw for each row orders them.
    """
    order = np.lexsort((noise.uniform(len(account)), account))
    ordered = account[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(account) else order
    rank = np.arange(len(account)) - np.repeat(first, np.diff(np.append(first, len(account))))
    return np.sort(order[rank < most])


def boost(
    rows: Protected, features: Sequence[str], mu: float, recipe: PrivateRecipe, noise: Noise
) -> PrivateModel:
    """The additive model, mu-GDP for the unit of `rows` against one unit more or less.

    Args:
        features: F names. mu: above 0; inf for no noise at all, to see what the noise costs.
    Raises:
        TrainingError: mu is not above 0, no feature is left, no row, or a feature is infinite.
    """
    used = [index for index, name in enumerate(features) if name not in recipe.left_out]
    if not mu > 0 or not used:
        raise TrainingError("Private boosting needs a mu above 0 and at least one feature.")
    if not len(rows.x):
        raise TrainingError("There are no payments to learn from.")
    if np.isinf(rows.x).any():
        raise TrainingError("A feature is infinite. Check the amounts and times of the payments.")
    grid = Grid.public(len(features))
    cells = np.ascontiguousarray(grid.cells(rows.x).T)
    releases = recipe.rounds * len(used)
    reach = rows.most
    clip = min(float(rows.most), recipe.clip)
    noise_counts = reach * math.sqrt(len(used) + 2) / (mu * math.sqrt(recipe.counts_share))
    noise_leaf = clip * math.sqrt(releases) / (mu * math.sqrt(1 - recipe.counts_share))
    noise_frauds = noise_counts * clip / reach  # an account has few, so they bear less noise for the same mu
    drawn = np.concatenate([noise.gaussian(noise_frauds, 1), noise.gaussian(noise_counts, 1)])
    fraud, honest = np.maximum(rows.class_counts(clip) + drawn, 1.0)
    start = math.log(fraud / honest)
    counts = {
        index: np.bincount(cells[index], minlength=grid.sizes[index])
        + noise.gaussian(noise_counts, grid.sizes[index])
        for index in used
    }
    values = _boosted(rows, clip, cells, counts, start, noise_counts, noise_leaf, recipe, noise)
    tables, base = [], start
    for index in used:
        mass = np.maximum(counts[index] - 2 * noise_counts, 0.0)
        mean = float(values[index] @ mass / mass.sum()) if mass.sum() > 0 else 0.0
        base += mean
        tables.append(grid.table((index,), values[index] - mean))
    return PrivateModel(
        AdditiveModel(tuple(features), tuple(tables), base),
        mu,
        clip,
        noise.is_private,
        float(fraud + honest),
        noise_counts,
        noise_leaf,
        releases + len(used) + 2,
    )


def _boosted(
    rows: Protected,
    clip: float,
    cells: Cells,
    counts: dict[int, Floats],
    start: float,
    noise_counts: float,
    noise_leaf: float,
    recipe: PrivateRecipe,
    noise: Noise,
) -> dict[int, Floats]:
    """The value of each feature's cells, in logit units, after all rounds; cells is (F, n)."""
    logit = np.full(len(rows.is_fraud), start)
    values = {index: np.zeros(len(count)) for index, count in counts.items()}
    for _ in range(recipe.rounds):
        for index, count in counts.items():
            leaf_of = _random_leaves(count, recipe.floor * noise_counts, recipe.cuts, noise)
            leaf_count = int(leaf_of[-1]) + 1
            share = np.exp(-np.logaddexp(0, -logit))
            gradient = on_lattice(rows.is_fraud - share)
            curvature = on_lattice(CURVATURE_STRETCH * share * (1 - share))
            leaf = leaf_of[cells[index]]
            sums = rows.leaf_sums(leaf, np.stack([gradient, curvature]), leaf_count, clip)
            force, stiff = sums + noise.gaussian(noise_leaf, 2 * leaf_count).reshape(2, leaf_count)
            held = np.maximum(stiff / CURVATURE_STRETCH, 0.0) + recipe.pull * noise_leaf + 1.0
            step = recipe.learning_rate * force / held
            values[index] += step[leaf_of]
            logit += step[leaf]
    return values


def _random_leaves(count: Floats, floor: float, cuts: int, noise: Noise) -> NDArray[np.intp]:
    """(cells,) each cell's leaf, rising: cut at random between cells that the noisy counts show filled."""
    filled = np.flatnonzero(count > floor)
    if len(filled) < 2:
        return np.zeros(len(count), np.intp)
    chosen = 1 + (noise.uniform(cuts) * (len(filled) - 1)).astype(np.intp)
    return np.searchsorted(np.unique(filled[chosen]), np.arange(len(count)), side="right")
