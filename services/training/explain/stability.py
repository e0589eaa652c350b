"""How steady the reasons are: under models of other seeds, and under small changes of the payment.

A reason is what the risk service would give: of a payment that is stopped the features that raise its score,
strongest first; of one that passes the strongest either way.

Sources: Alvarez-Melis and Jaakkola 2018, On the robustness of interpretability methods; Visani et al. 2022,
Statistical stability indices for LIME (the same reasons when the explanation is made again).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from services.training.explain.moves import Moves

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
REASONS = 3
NUDGES = ("amount +1 %", "amount -1 %", "hour +1", "hour -1")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of rows explained twice: how often the reasons are the same.

    first: share whose first reason is the same. three: share whose first three are the same set. order: mean
    rank correlation of all contributions, by size (Spearman, -1 to 1; nan where a row has no two sizes).
    moved: largest change of a logit.
    """

    rows: int
    first: float
    three: float
    order: float
    moved: float

    def as_dict(self) -> dict[str, float | None]:
        """Plain values; None for what no row could tell."""
        return {name: None if np.isnan(value) else value for name, value in asdict(self).items()}


def reasons(contributions: Floats, stopped: Bools, count: int = REASONS) -> Ints:
    """(n, count) the features that are given as reasons, strongest first; -1 where there are no more.

    Of equal contributions the feature that comes first is listed first.
    """
    weight = np.where(stopped[:, None], contributions, np.abs(contributions))
    order = np.argsort(-weight, axis=1, kind="stable")[:, :count]
    strong = np.take_along_axis(weight, order, axis=1) > 0
    return np.where(strong, order, -1)


def agreement(
    one: AdditiveModel, other: AdditiveModel, x: Floats32, y: Floats32, stopped: Bools
) -> Agreement:
    """Model `one` on the rows x against `other` on the rows y, both (n, F), row by row.

    Args:
        stopped: (n,) bool, the rows that a decision holds up, whose reasons are what raises the score.
    Raises:
        TrainingError: no rows.
    """
    if not len(x):
        raise TrainingError("There are no payments whose reasons could be compared.")
    mine, others = one.contributions(x), other.contributions(y)
    logit, other_logit = one.base_logit + mine.sum(axis=1), other.base_logit + others.sum(axis=1)
    left, right = reasons(mine, stopped), reasons(others, stopped)
    ranks = [rankdata(np.abs(each), axis=1) for each in (mine, others)]
    a, b = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    told = scale > 0
    order = float(((a * b).sum(axis=1)[told] / scale[told]).mean()) if told.any() else float("nan")
    return Agreement(
        len(x),
        float((left[:, 0] == right[:, 0]).mean()),
        float((np.sort(left, axis=1) == np.sort(right, axis=1)).all(axis=1).mean()),
        order,
        float(np.abs(logit - other_logit).max()),
    )


def nudged(x: Floats32, how: str, moves: Moves) -> tuple[Floats32, NDArray[np.int64]]:
    """The rows that can be changed so, with what follows from the change; and which rows of x they are.

    An hour is moved within its day, and only the night follows from it: the windows are those of the payment.

    Raises:
        TrainingError: no such change.
    """
    if how not in NUDGES:
        raise TrainingError(f"There is no change {how!r}; try one of {', '.join(NUDGES)}.")
    what, step = how.split(" ", 1)
    column = moves.features.index("amount" if what == "amount" else "hour_of_day")
    out, old = x.copy(), x[:, column]
    if what == "amount":
        out[:, column] = (old.astype(np.float64) * (1 + float(step.removesuffix(" %")) / 100)).round(2)
        rows = np.flatnonzero((out[:, column] != old) & ~np.isnan(old))
    else:
        out[:, column] += float(step)
        rows = np.flatnonzero((out[:, column] >= 0) & (out[:, column] <= 23))
    return moves.settled(out[rows], x[rows], waited=False), rows


def under_nudges(
    model: AdditiveModel, x: Floats32, moves: Moves, stopped: Bools
) -> Mapping[str, Agreement | None]:
    """For each small change, the reasons after it against those before; None if no row can be changed so."""
    out: dict[str, Agreement | None] = {}
    for how in NUDGES:
        changed, rows = nudged(x, how, moves)
        out[how] = agreement(model, model, x[rows], changed, stopped[rows]) if len(rows) else None
    return out
