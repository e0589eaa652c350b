"""What the model goes by as a whole: each feature's weight, and the shape of what it adds.

The effect of a feature needs no sampling in an additive model: its own tables, plus the expectation of its
pairs over the other feature, are the partial dependence. Intervals draw whole accounts, as `evaluate` does.

Sources: Friedman 2001, Greedy function approximation (partial dependence); Breiman 2001, Random forests;
Fisher, Rudin, Dominici 2019, All models are wrong (permutation importance).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from services.training.evaluate import Interval, Ranking
from services.training.explain.moves import edges_of

Bools = NDArray[np.bool_]
PERMUTATIONS = 5


@dataclass(frozen=True, slots=True)
class Weight:
    """A feature's mean |contribution|, in logit units, and what average precision loses without it."""

    feature: str
    contribution: Interval
    permuted: Interval


@dataclass(frozen=True, slots=True)
class Effect:
    """A feature's partial dependence, cell by cell.

    edges: (m,) float64, ascending; cell i holds edges[i - 1] < x <= edges[i]; a last edge of inf sets nan
    apart.
    logit: (m + 1,) float64, the mean logit if every row had a value of that cell. share: (m + 1,) float64,
    how much of the payments lies in each cell; they sum to 1. mean: the mean logit of the rows as they are.
    """

    feature: str
    edges: Floats
    logit: Floats
    share: Floats
    mean: float

    @property
    def span(self) -> float:
        """Between the highest and the lowest cell that holds a payment, in logit units."""
        held = self.logit[self.share > 0]
        return float(held.max() - held.min())


def weights(
    model: AdditiveModel, x: Floats32, is_fraud: Bools, account: NDArray[np.uint64], *, draws: int, seed: int
) -> list[Weight]:
    """Each feature that has a table, heaviest contribution first; 95 % intervals by account.

    Permutation importance is average precision less the mean of `PERMUTATIONS` shuffles of that one column,
    so it counts what a feature adds to others that say nearly the same as little.

    Raises:
        TrainingError: the rows hold one class only.
    """
    fraud_count = int(is_fraud.sum())
    if fraud_count in (0, len(x)):
        raise TrainingError(f"{len(x):,} rows hold {fraud_count:,} frauds: measuring takes both classes.")
    random = np.random.default_rng(seed)
    owner = np.unique(account, return_inverse=True)[1]
    accounts = int(owner.max()) + 1
    copies = [np.bincount(random.integers(0, accounts, accounts), minlength=accounts) for _ in range(draws)]
    drawn = [each.astype(np.float64)[owner] for each in copies]
    size = np.bincount(owner, minlength=accounts)
    moved = np.abs(model.contributions(x))
    logit = model.logit(x)
    plain = Ranking(logit, is_fraud)
    before = np.array([plain.average_precision(weight) for weight in drawn])
    out = []
    for feature in sorted({feature for table in model.tables for feature in table.features}):
        by_account = np.bincount(owner, moved[:, feature], accounts)
        means = [float(each @ by_account) / float(each @ size) for each in copies]
        shuffled = [
            Ranking(logit + _shuffled(model, x, feature, random.permutation(len(x))), is_fraud)
            for _ in range(PERMUTATIONS)
        ]
        lost = plain.average_precision() - float(np.mean([each.average_precision() for each in shuffled]))
        after = [
            shuffled[number % PERMUTATIONS].average_precision(weight) for number, weight in enumerate(drawn)
        ]
        out.append(
            Weight(
                model.features[feature],
                _interval(float(moved[:, feature].mean()), means),
                _interval(lost, before - np.array(after)),
            )
        )
    return sorted(out, key=lambda weight: -weight.contribution.value)


def effects(model: AdditiveModel, x: Floats32) -> list[Effect]:
    """The partial dependence of each feature that has a table, over the rows x, (n, F); widest span first.

    Raises:
        TrainingError: no rows.
    """
    if not len(x):
        raise TrainingError("There are no payments to average over.")
    mean = float(model.logit(x).mean())
    used = sorted({feature for table in model.tables for feature in table.features})
    return sorted((_effect(model, x, feature, mean) for feature in used), key=lambda effect: -effect.span)


def _effect(model: AdditiveModel, x: Floats32, feature: int, mean: float) -> Effect:
    edges = edges_of(model, feature)
    # A value of each cell: its upper edge, which belongs to it; above the last one, nan or all that is more.
    values = np.append(edges, np.nan).astype(np.float32)
    logit = np.full(len(values), mean)
    for table in model.tables:
        if feature not in table.features:
            continue
        axis = table.features.index(feature)
        along = np.searchsorted(table.edges[axis], values, side="left")
        cells, whole = table.cells(x), table.values
        if whole.ndim == 1:
            expected = whole
        else:
            mass = np.bincount(cells[1 - axis], minlength=whole.shape[1 - axis]) / len(x)
            expected = np.moveaxis(whole, axis, 0) @ mass
        logit += expected[along] - whole[cells].mean()
    cell = np.searchsorted(edges.astype(np.float32), x[:, feature], side="left")
    share = np.bincount(cell, minlength=len(values)) / len(x)
    return Effect(model.features[feature], edges, logit, share, mean)


def _shuffled(model: AdditiveModel, x: Floats32, feature: int, order: NDArray[np.int64]) -> Floats:
    """(n,) what the logit moves by when the column is shuffled so."""
    out, other = np.zeros(len(x)), x.copy()
    other[:, feature] = x[order, feature]
    for table in model.tables:
        if feature in table.features:
            values = table.values
            out += values[table.cells(other)] - values[table.cells(x)]
    return out


def _interval(value: float, draws: Sequence[float] | Floats) -> Interval:
    low, high = np.nanpercentile(draws, (2.5, 97.5)) if len(draws) else (value, value)
    return Interval(value, float(low), float(high))
