"""Bins that are agreed before anybody has seen a payment: the same for every bank, and they tell nothing.

Bins from quantiles would give away something of the data they were cut from, and would differ from bank to
bank. These come from round numbers alone, finer where they are small, so they cost no privacy and no round of
talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.training.additive import Floats, Floats32, Table

Cells = NDArray[np.int16]

_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_DECADES = range(-3, 5)


def round_numbers() -> Floats32:
    """Edges of every feature: 0, and both signs of 1, 1.5, 2, 3, 5, 7 times a power of ten; then infinity.

    Above the last finite edge and for nan there is a cell each.
    """
    steps = np.array([step * 10.0**decade for decade in _DECADES for step in _STEPS])
    finite = np.concatenate([-steps[steps >= 1][::-1], [0.0], steps])
    return np.append(finite, np.inf).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """Edges of each feature, F arrays of float32, ascending, the last one infinite, so that nan has its cell.

    Cell i of a feature holds edges[i - 1] < x <= edges[i]; the last cell holds nan.
    """

    edges: tuple[Floats32, ...]

    @classmethod
    def public(cls, feature_count: int) -> "Grid":
        """The same round numbers for every feature."""
        return cls((round_numbers(),) * feature_count)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells of each feature."""
        return tuple(len(edges) + 1 for edges in self.edges)

    def cells(self, x: Floats32) -> Cells:
        """(n, F) int16: the cell of each value of x, (n, F)."""
        out = np.empty(x.shape, np.int16)
        for feature, edges in enumerate(self.edges):
            out[:, feature] = np.searchsorted(edges, x[:, feature], side="left")
        return out

    def table(self, features: Sequence[int], values: Floats) -> Table:
        """The function that has `values` in the cells of these one or two features, shared out evenly."""
        used = tuple(features)
        return Table(used, tuple(self.edges[each] for each in used), (values / len(used),) * len(used))
