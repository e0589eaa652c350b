"""What the coordinator does with updates that it sees, and what it refuses. Pure: arrays in, arrays out.

Sources: McMahan et al. 2017 (weighted averaging). Yin et al. 2018, Byzantine-robust distributed learning
(coordinate-wise median and trimmed mean). Sun et al. 2019, Can you really backdoor federated learning? (norms
clipped).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.training.additive import Floats
from services.training.federate.errors import UpdateRefused
from services.training.federate.layout import Layout

Vote = Literal["first", "better", "same", "worse", "alone"]

UPDATE_MAX = 1e6  # logits; what is above has overflowed somewhere
WORSE_BY, BETTER_BY = 0.01, 0.001  # shares of the validation loss
ERRORS = 2.0  # standard errors
FAR = 3.0  # times the others' median distance: an outlier
CLIP = 2.0  # times the median norm: longer updates are cut down to it
TRIMMED_FROM = 5  # banks; fewer leave nothing to trim, and the median stands


@dataclass(frozen=True, slots=True)
class Parts:
    """One bank's words of a round, or the sum of several banks'.

    weight: rows. update: (layout.size,) in logits; in a sum, times the weight. counts: (cell_count,).
    gains: (pairs,) or empty.
    """

    weight: float
    update: Floats
    counts: Floats
    gains: Floats

    def packed(self) -> Floats:
        """One float64 vector, update and gains times the weight: a sum of vectors is one of parts."""
        return np.concatenate(
            [[self.weight], self.weight * self.update, self.counts, self.weight * self.gains]
        )


def packed_size(layout: Layout, with_gains: bool) -> int:
    """Numbers in a packed vector."""
    count = len(layout.features)
    return 1 + layout.size + layout.cell_count + with_gains * (count * (count - 1) // 2)


def unpacked(values: Floats, layout: Layout, with_gains: bool) -> Parts:
    """The mean update of one or more banks, from their vector or the sum of their vectors.

    Raises:
        UpdateRefused: wrong length, a number that is not finite or beyond all logits, or a weight or count
            below 0.
    """
    expected = packed_size(layout, with_gains)
    if values.shape != (expected,):
        raise UpdateRefused(f"{values.size:,} numbers came, an update here has {expected:,}.")
    if not np.isfinite(values).all():
        raise UpdateRefused("The update holds numbers that are not finite.")
    weight, rest = float(values[0]), values[1:]
    update, counts, gains = np.split(rest, [layout.size, layout.size + layout.cell_count])
    if weight <= 0 or (counts < 0).any():
        raise UpdateRefused("The update claims to come from fewer than no rows.")
    if np.abs(update).max() > UPDATE_MAX * weight:
        raise UpdateRefused(f"The update moves a logit by more than {UPDATE_MAX:,.0f}.")
    return Parts(weight, update / weight, counts, gains / weight)


def clipped(updates: Floats) -> Floats:
    """(banks, n): rows longer than twice the median length, cut down to that."""
    length = np.linalg.norm(updates, axis=1)
    allowed = CLIP * float(np.median(length))
    kept: Floats = updates * np.minimum(1.0, allowed / np.maximum(length, 1e-300))[:, None]
    return kept


def robust_mean(updates: Floats) -> Floats:
    """(n,): the coordinate-wise median of (banks, n); from five banks on a mean without a fifth at each end.

    Up to half of the banks, or that fifth, may send anything at all and stay within what honest ones sent.
    With two banks it is their mean and guards against nothing.
    """
    count = len(updates)
    if count < TRIMMED_FROM:
        middle: Floats = np.median(updates, axis=0)
        return middle
    cut = count // 5
    kept: Floats = np.sort(updates, axis=0)[cut : count - cut].mean(axis=0)
    return kept


def outliers(updates: Floats, mass: Floats) -> NDArray[np.bool_]:
    """(banks,): whose update lies more than three times as far from the median as the others' do, in median.

    Distance is the root mean square of logits moved, each cell weighed by its share of rows, (n,) `mass`:
    what a bank makes of cells that hardly occur is chance. Two banks cannot be told apart: nobody is one.
    """
    if len(updates) < 3:
        return np.zeros(len(updates), np.bool_)
    distance = np.sqrt(((updates - np.median(updates, axis=0)) ** 2) @ mass)
    others = np.array([np.median(np.delete(distance, index)) for index in range(len(distance))])
    far: NDArray[np.bool_] = distance > FAR * np.maximum(others, 1e-12)
    return far


def vote(before: Floats | None, now: Floats, weight: Floats) -> Vote:
    """What a bank says of a new model by the losses of its own validation rows; before is None at first.

    before, now: (n,) nats. Worse is more than 1 % and more than two standard errors of the difference: a
    bank with few rows shall not vote by chance.
    """
    if before is None:
        return "first"
    with np.errstate(invalid="ignore"):
        gap = float(np.average(now - before, weights=weight))
        error = float(np.sqrt(np.sum((weight * (now - before - gap)) ** 2)) / weight.sum())
    mean = float(np.average(before, weights=weight))
    if not gap <= max(WORSE_BY * mean, ERRORS * error):
        return "worse"
    return "better" if gap < -BETTER_BY * mean else "same"


def majority(votes: Mapping[int, str] | Iterable[str], word: Vote) -> bool:
    """Whether more than half say so."""
    said: Sequence[str] = list(votes.values() if isinstance(votes, Mapping) else votes)
    return sum(each == word for each in said) * 2 > len(said)
