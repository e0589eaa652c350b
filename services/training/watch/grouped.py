"""Tests that know that payments of one account, or at one terminal, are not independent.

A difference of two windows is judged against what whole clusters do to it: the delete-one jackknife of every
cluster gives the covariance of the difference, and the quadratic form of a chi-square is referred to a scaled
F distribution of the same two moments.

Sources:
    Yurdakul and Naranjo 2020, Statistical properties of the population stability index (PSI is, without
    drift, about a chi-square times (1/n + 1/m), for independent rows).
    Rao and Scott 1981, The analysis of categorical data from complex sample surveys (the weighted sum of
    chi-squares that clusters make of it; scaled to the first two moments).
    MacKinnon, Nielsen, Webb 2023, Fast and reliable jackknife and bootstrap methods for cluster-robust
    inference (delete-one jackknife). Kish 1965, Survey Sampling (effective number of clusters).
    Benjamini and Hochberg 1995, Controlling the false discovery rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Rows of a reference window and of a later one by the cluster that each belongs to.

    code: (n + m,) int64, 0 to `count` - 1, the reference's n rows first. reference, later: (count,) float64,
    each cluster's share of the window's rows.
    """

    code: Ints
    reference: Floats
    later: Floats
    reference_rows: int

    @classmethod
    def of(cls, reference: ArrayLike, later: ArrayLike) -> "Clusters":
        """From the ids of the two windows' rows, any integers; a cluster may be in both."""
        before, after = np.asarray(reference), np.asarray(later)
        code = np.unique(np.concatenate([before, after]), return_inverse=True)[1].astype(np.int64)
        count, row_count = int(code.max(initial=-1)) + 1, len(before)
        sizes = [np.bincount(part, minlength=count) for part in (code[:row_count], code[row_count:])]
        one, two = (size / max(size.sum(), 1) for size in sizes)
        return cls(code, one, two, row_count)

    @property
    def count(self) -> int:
        """Clusters in either window."""
        return len(self.reference)

    @property
    def effective(self) -> float:
        """Kish's effective number, of the window where that is smaller; 1 where one cluster has all rows."""
        return float(min(1 / max((part**2).sum(), 1e-300) for part in (self.reference, self.later)))


@dataclass(frozen=True, slots=True)
class Compared:
    """Shares of the reference and the later window by cell, and how the difference stands against chance.

    p: chance of so large a difference without drift, 0 to 1. chance: the PSI to expect without drift.
    design: how many times larger that is than for independent rows, at least 1.
    """

    reference: Floats
    later: Floats
    p: float
    chance: float
    design: float


def compare(cell: Ints, cell_count: int, clusters: Clusters) -> Compared:
    """Whether the later window's cells have other shares than the reference's.

    Args:
        cell: (n + m,) int64, in the order of `clusters.code`, 0 to `cell_count` - 1.
    """
    first = clusters.reference_rows
    n, m = first, len(cell) - first
    p = np.bincount(cell[:first], minlength=cell_count) / n
    q = np.bincount(cell[first:], minlength=cell_count) / m
    alive = (p + q) > 0
    middle = ((p + q) / 2)[alive]
    distance = float(((q - p)[alive] ** 2 / middle).sum())
    # A cluster that is a whole window has no estimate without it; it then speaks for itself alone.
    without = [1 / np.maximum(1 - share, 1e-9) for share in (clusters.reference, clusters.later)]
    weight = np.concatenate([without[0][clusters.code[:first]] / n, -without[1][clusters.code[first:]] / m])
    place = clusters.code * cell_count + cell
    flat: Floats = np.asarray(np.bincount(place, weight, clusters.count * cell_count), np.float64)
    moved = flat.reshape(clusters.count, cell_count)
    moved = moved - np.outer(clusters.reference * without[0], p)
    moved += np.outer(clusters.later * without[1], q)
    scaled = moved[:, alive] / np.sqrt(middle)
    covariance = scaled.T @ scaled * (clusters.count - 1) / max(clusters.count, 1)
    mean, square = float(np.trace(covariance)), float((covariance**2).sum())
    independent = float((((p * (1 - p)) / n + (q * (1 - q)) / m)[alive] / middle).sum())
    design = max(mean / independent, 1.0) if independent > 0 else 1.0
    if mean <= 1e-15:
        return Compared(p, q, 1.0 if distance <= 1e-12 else 0.0, 0.0, design)
    chance_p = float(stats.f.sf(distance / mean, mean**2 / square, max(clusters.effective - 1, 1.0)))
    return Compared(p, q, chance_p, mean, design)


def weakest(several: Sequence[Compared]) -> Compared:
    """The comparison with the largest p: of clusterings that may each be the one that matters."""
    return max(several, key=lambda each: (each.p, each.design))


def kolmogorov_smirnov(reference: Floats, later: Floats) -> float:
    """The largest distance of the two windows' distribution functions, 0 to 1; nan where one is empty.

    Args:
        reference, later: without nan, each ascending.
    """
    if not (len(reference) and len(later)):
        return float("nan")
    at = np.concatenate([reference, later])
    one, two = (np.searchsorted(part, at, side="right") / len(part) for part in (reference, later))
    return float(np.abs(one - two).max())


def kolmogorov_p(distance: float, n: int, m: int, design: float) -> float:
    """Chance of such a distance without drift, rows counted for as many as `design` leaves of them; 0 to 1.

    An approximation, and on the safe side where values are tied.
    """
    if not np.isfinite(distance):
        return float("nan")
    return float(stats.kstwobign.sf(distance * np.sqrt(n * m / (n + m) / design)))


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """(n,) float64: the false discovery rate at which each p would still be found; nan stays nan."""
    given = np.asarray(p, np.float64)
    out = np.full(given.shape, np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    raised = given[order] * len(order) / np.arange(1, len(order) + 1)
    out[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return out
