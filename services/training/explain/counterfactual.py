"""The least that would have to be otherwise for a payment to score below a threshold.

Fewest levers first; among as many levers the smallest sum of shifts, each measured in the distribution of
the training rows, so that an amount and a count can be compared. The model is constant within cells, so with
one and two levers every reachable cell is tried: what is found is the smallest there is, and nothing found is
proof. With three, the pairs that lower the score most are extended by each third lever, then each change is
made as small as the others allow; that is a search, not a proof.

Sources: Wachter, Mittelstadt, Russell 2018, Counterfactual explanations without opening the black box;
Ustun, Spangher, Liu 2019, Actionable recourse in linear classification.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from services.training.explain.moves import Lever, Moves, Quantiles

LEVERS_MAX = 3
_CHUNK_ROWS = 65_536
_STARTS = 32  # pairs that a third lever is tried on


@dataclass(frozen=True, slots=True)
class Change:
    """A lever, its values before and after, (d,) in the feature's unit; `shift` in quantiles, 0 to 1."""

    lever: Lever
    before: tuple[float, ...]
    after: tuple[float, ...]
    shift: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The changes, the row that they give, (F,) float32, its probability, and the sum of the shifts.

    exact: no smaller change of as many levers exists, and none of fewer.
    """

    changes: tuple[Change, ...]
    row: Floats32
    probability: float
    distance: float
    exact: bool


@dataclass(slots=True)
class _Options:
    """A lever's reachable values, nearest first, and how far each is."""

    lever: Lever
    columns: tuple[int, ...]
    values: Floats32
    shift: Floats


@dataclass(slots=True)
class _Best:
    """The nearest row below the threshold so far; and the lowest rows of all, to go on from."""

    distance: float = np.inf
    row: Floats32 | None = None
    picks: tuple[tuple[int, int], ...] = ()
    lowest: list[tuple[float, tuple[tuple[int, int], ...]]] = field(default_factory=list)


class Search:
    """Counterfactuals of one model against one set of training rows."""

    def __init__(self, model: AdditiveModel, moves: Moves, training: Quantiles) -> None:
        self.model, self.moves, self.training = model, moves, training

    def nearest(self, row: Floats32, threshold: float, levers_max: int = LEVERS_MAX) -> Counterfactual | None:
        """The smallest change that brings the row, (F,) float32, below `threshold`; None if there is none.

        A row that is below already needs none, and has no changes.

        Raises:
            TrainingError: the threshold is no probability above 0.
        """
        if not 0 < threshold <= 1:
            raise TrainingError(f"A threshold is above 0 and at most 1, not {threshold:g}.")
        now = float(self.model.probability(row[None])[0])
        if now < threshold:
            return Counterfactual((), row, now, 0.0, True)
        options = [option for lever in self.moves.levers if len((option := self._options(lever, row)).values)]
        best = _Best()
        for size in range(1, min(levers_max, 2, len(options)) + 1):
            best.lowest = []
            for group in combinations(range(len(options)), size):
                self._try(options, group, row, threshold, best)
            if best.row is not None:
                return self._told(options, best, row, exact=True)
        if levers_max > 2 and len(options) > 2:
            self._greedy(options, row, threshold, best)
            if best.row is not None:
                return self._told(options, best, row, exact=False)
        return None

    def _options(self, lever: Lever, row: Floats32) -> _Options:
        columns = self.moves.index(lever)
        values = self.moves.choices(lever, row, self.model, self.training)
        if lever.moves == "any":
            # A choice has no order: a channel that few use is farther away than one that many use.
            share = np.array([float(np.mean(self.training.columns[at] > 0)) for at in columns])
            shift = 1 - values @ share
        else:
            shift = np.abs(self.training.at(columns[0], values[:, 0]) - self._here(columns[0], row))
        # Of values that no training row parts, the one nearest to the row's own.
        order = np.lexsort((np.abs(values - row[list(columns)]).sum(axis=1), shift))
        return _Options(lever, columns, values[order], shift[order])

    def _here(self, column: int, row: Floats32) -> float:
        return float(self.training.at(column, row[column : column + 1])[0])

    def _rows(self, options: list[_Options], group: Sequence[int], picks: Floats, row: Floats32) -> Floats32:
        """The row with, for each line of picks, (m, k) places, these values of the group's levers."""
        rows = np.repeat(row[None], len(picks), axis=0)
        for at, number in enumerate(group):
            rows[:, list(options[number].columns)] = options[number].values[picks[:, at]]
        return self.moves.settled(rows, row)

    def _try(
        self,
        options: list[_Options],
        group: Sequence[int],
        row: Floats32,
        threshold: float,
        best: _Best,
        fixed: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """All values of the group's levers, with those of `fixed` at theirs; the best is kept."""
        held = dict(fixed)
        sizes = [1 if number in held else len(options[number].values) for number in group]
        total = int(np.prod(sizes))
        for start in range(0, total, _CHUNK_ROWS):
            places = np.unravel_index(np.arange(start, min(start + _CHUNK_ROWS, total)), sizes)
            picks = np.column_stack(
                [
                    np.full(len(place), held[number]) if number in held else place
                    for number, place in zip(group, places, strict=True)
                ]
            )
            far = sum(options[number].shift[picks[:, at]] for at, number in enumerate(group))
            rows = self._rows(options, group, picks, row)
            probability = self.model.probability(rows)
            low = int(np.argmin(probability))
            best.lowest.append((float(probability[low]), _picked(group, picks[low])))
            below = np.flatnonzero(probability < threshold)
            if len(below):
                near = below[np.argmin(far[below])]
                if far[near] < best.distance:
                    best.distance, best.row = float(far[near]), rows[near]
                    best.picks = _picked(group, picks[near])

    def _greedy(self, options: list[_Options], row: Floats32, threshold: float, best: _Best) -> None:
        starts = sorted(best.lowest)[:_STARTS]
        best.lowest = []
        for _, pair in starts:
            taken = [number for number, _ in pair]
            for third in range(len(options)):
                if third not in taken:
                    self._try(options, [*taken, third], row, threshold, best, pair)
        while best.row is not None:
            before, picks = best.distance, best.picks
            for free, _ in picks:
                held = tuple(pick for pick in best.picks if pick[0] != free)
                self._try(options, [number for number, _ in picks], row, threshold, best, held)
            if best.distance >= before:
                return

    def _told(self, options: list[_Options], best: _Best, row: Floats32, *, exact: bool) -> Counterfactual:
        if best.row is None:
            raise TrainingError("No change was found.")
        changes = []
        for number, pick in best.picks:
            option = options[number]
            before, after = (
                tuple(map(float, each)) for each in (row[list(option.columns)], option.values[pick])
            )
            changes.append(Change(option.lever, before, after, float(option.shift[pick])))
        changes.sort(key=lambda change: -change.shift)
        probability = float(self.model.probability(best.row[None])[0])
        return Counterfactual(tuple(changes), best.row, probability, best.distance, exact)


def _picked(group: Sequence[int], places: Floats) -> tuple[tuple[int, int], ...]:
    return tuple((number, int(place)) for number, place in zip(group, places, strict=True))
