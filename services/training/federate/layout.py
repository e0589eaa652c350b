"""The common model as one vector that every bank lays out alike: the base, single features, then pairs.

    [base logit | cells of feature 0 | cells of feature 1 | ... | cells of pair 0, row by row | ...]

Edges come from `services.training.grid` and were agreed before anybody saw a payment. Pairs use every other
edge or so of the same grid: their cells are a square.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Floats, Floats32, Table
from services.training.grid import Cells, Grid

Pair = tuple[int, int]
_COARSE = (
    0.01,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    3.0,
    5.0,
    7.0,
    10.0,
    15.0,
    20.0,
    30.0,
    50.0,
    100.0,
    300.0,
    1000.0,
)


@dataclass(frozen=True)
class Layout:
    """features: F names in order. spec: the feature specification's id. pairs: indices into features."""

    features: tuple[str, ...]
    spec: str
    pairs: tuple[Pair, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """The public bins of single features."""
        return Grid.public(len(self.features))

    @cached_property
    def coarse(self) -> Grid:
        """The bins of pairs: some of the same edges, so that a fine cell lies in one coarse cell."""
        fine = self.grid.edges[0]
        chosen = np.unique(np.array([0.0, *_COARSE, np.inf], np.float32))
        return Grid((fine[np.isin(fine, chosen)],) * len(self.features))

    @cached_property
    def coarse_of(self) -> Cells:
        """(cells of a feature,) int16: the coarse cell in which each fine cell lies."""
        inside = np.searchsorted(self.coarse.edges[0], self.grid.edges[0], side="left")
        return np.append(inside, self.coarse.sizes[0] - 1).astype(np.int16)

    @cached_property
    def id(self) -> str:
        """The same for all who mean the same by each number of a vector; 16 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.features, self.spec, self.pairs)).encode())
        for edges in (self.grid.edges[0], self.coarse.edges[0]):
            digest.update(edges.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    @property
    def cell_count(self) -> int:
        """Cells of all single features."""
        return sum(self.grid.sizes)

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return 1 + self.cell_count + len(self.pairs) * self.coarse.sizes[0] ** 2

    def single(self, vector: Floats, feature: int) -> Floats:
        """A view of the feature's cells."""
        width = self.grid.sizes[0]
        return vector[1 + feature * width : 1 + (feature + 1) * width]

    def pair(self, vector: Floats, index: int) -> Floats:
        """A view of the cells of the pair of that index, (coarse cells, coarse cells)."""
        width = self.coarse.sizes[0]
        offset = 1 + self.cell_count + index * width**2
        return vector[offset : offset + width**2].reshape(width, width)

    def logit(self, vector: Floats, cells: Cells) -> Floats:
        """(n,) float64 for cells (n, F) of the fine grid."""
        total = np.full(len(cells), vector[0])
        for feature in range(len(self.features)):
            total += self.single(vector, feature)[cells[:, feature]]
        for index, (first, second) in enumerate(self.pairs):
            place = self.coarse_of[cells[:, first]], self.coarse_of[cells[:, second]]
            total += self.pair(vector, index)[place]
        return total

    def with_pairs(self, vector: Floats, pairs: Sequence[Pair]) -> tuple["Layout", Floats]:
        """The same model with room for these pairs, which are nothing yet."""
        wider = Layout(self.features, self.spec, tuple(pairs))
        return wider, np.concatenate([vector, np.zeros(wider.size - self.size)])

    def model(self, vector: Floats, counts: Floats) -> AdditiveModel:
        """The vector as a model, not calibrated; its reasons are told against the rows behind `counts`.

        counts: (cell_count,) float64, how many rows of all banks lie in each cell. Each bank calibrates its
        own copy, because their shares of fraud differ.
        """
        width, base, tables = self.grid.sizes[0], float(vector[0]), []
        mass = counts.reshape(len(self.features), width)
        mass = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1.0)
        for feature, edges in enumerate(self.grid.edges):
            values = self.single(vector, feature)
            moves, mean = np.diff(values) != 0, float(values @ mass[feature])
            base += mean
            if moves.any():
                tables.append(Table((feature,), (edges[moves],), ((values - mean)[np.append(moves, True)],)))
        for index, pair in enumerate(self.pairs):
            first, second = (self._coarse_mass(mass[feature]) for feature in pair)
            shares, mean = _shapley(self.pair(vector, index), first, second)
            base += mean
            tables.append(Table(pair, tuple(self.coarse.edges[each] for each in pair), shares))
        return AdditiveModel(self.features, tuple(tables), base)

    def mass(self, counts: Floats) -> Floats:
        """(size,) float64: the share of rows that each number of a vector moves, by (cell_count,) counts.

        For pairs as if their features were independent; 1 for the base.
        """
        alone = counts.reshape(len(self.features), -1)
        alone = alone / np.maximum(alone.sum(axis=1, keepdims=True), 1.0)
        coarse = [self._coarse_mass(each) for each in alone]
        pairs = [np.outer(coarse[first], coarse[second]).ravel() for first, second in self.pairs]
        return np.concatenate([[1.0], alone.ravel(), *pairs])

    def _coarse_mass(self, mass: Floats) -> Floats:
        return np.asarray(np.bincount(self.coarse_of, mass, self.coarse.sizes[0]), np.float64)


def with_nan(cells: NDArray[np.int16], width: int) -> Floats32:
    """Cells as LightGBM's input: float32 of the same shape, the last cell as nan, which is not above all."""
    return np.where(cells == width - 1, np.float32(np.nan), cells.astype(np.float32))


def _shapley(values: Floats, mass_0: Floats, mass_1: Floats) -> tuple[tuple[Floats, Floats], float]:
    """Each feature's share of a table of two, as `Table.explained_by` tells it; the mean by both masses."""
    alone_0, alone_1 = (values @ mass_1)[:, None], (mass_0 @ values)[None, :]
    mean = float(mass_0 @ values @ mass_1)
    return ((alone_0 - alone_1 + values - mean) / 2, (alone_1 - alone_0 + values - mean) / 2), mean
