"""A model with fewer cells that says nearly the same: fewer nodes in its trees, less time and room.

Neighbouring cells of a table are joined, the cheapest first, while the logit moves by less than a tolerance
over the payments; a table that hardly moves anything goes altogether. What is left is as additive as before.
Where a model rises with a feature it still does, but for what the tolerance moves in a table of two.

Source: Ward 1963, Hierarchical grouping to optimize an objective function (joining what costs least first).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.training.additive import AdditiveModel, Floats, Floats32, Table


def pruned(model: AdditiveModel, x: Floats32, weight: Floats, tolerance: float) -> AdditiveModel:
    """The model with cells joined while each table's root mean square change over `x` is below `tolerance`.

    Args:
        tolerance: logit units, for a table.
    """
    tables, base = [], model.base_logit
    for table in model.tables:
        smaller = _joined(table, x, weight, tolerance)
        if all(len(edges) == 0 for edges in smaller.edges):
            base += float(smaller.values.ravel()[0])
        else:
            tables.append(smaller)
    return replace(model, tables=tuple(tables), base_logit=base)


def _joined(table: Table, x: Floats32, weight: Floats, tolerance: float) -> Table:
    """Slices along the axes are joined, the cheapest first, until the tolerance is used up."""
    shape = tuple(len(edges) + 1 for edges in table.edges)
    mass = np.zeros(shape)
    np.add.at(mass, table.cells(x), weight / weight.sum())
    # A cell that nobody was in yet still counts for something: the next payment may be there.
    mass = np.maximum(mass, 1e-7)
    edges, shares = list(table.edges), list(table.shares)
    left = tolerance**2
    while True:
        best: tuple[float, int, int] | None = None
        for axis in range(len(edges)):
            costs = _costs(mass, shares, axis)
            if len(costs) and (best is None or costs.min() < best[0]):
                best = float(costs.min()), axis, int(costs.argmin())
        if best is None or best[0] > left:
            return Table(table.features, tuple(edges), tuple(shares))
        cost, axis, at = best
        left -= cost
        shares = [_join(share * mass, axis, at) / _join(mass, axis, at) for share in shares]
        mass = _join(mass, axis, at)
        edges[axis] = np.delete(edges[axis], at)


def _costs(mass: Floats, shares: Sequence[Floats], axis: int) -> Floats:
    """How much the squared change, over the payments, grows when a slice is joined with the next."""
    low, high = _neighbours(mass, axis)
    harmonic = low * high / (low + high)
    other = tuple(each for each in range(mass.ndim) if each != axis)
    total = np.zeros(mass.shape[axis] - 1)
    for share in shares:
        first, second = _neighbours(share, axis)
        total += (harmonic * (second - first) ** 2).sum(axis=other)
    return total


def _neighbours(values: Floats, axis: int) -> tuple[Floats, Floats]:
    count = values.shape[axis]
    return values.take(range(count - 1), axis), values.take(range(1, count), axis)


def _join(values: Floats, axis: int, at: int) -> Floats:
    """Slices `at` and `at + 1` added up into one."""
    return np.add.reduceat(values, [each for each in range(values.shape[axis]) if each != at + 1], axis=axis)
