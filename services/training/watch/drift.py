"""Which features, scores and fraud rates moved, week by week against the reference.

The population stability index sums (q - p) ln(q / p) over bins: tenths of the reference by quantile, one bin
below and one above all that it holds, one for what is missing. A share below FLOOR counts as FLOOR, so that a
bin that was empty gives a finite index; equal quantiles share a bin.

A feature drifted when its PSI is large and the test says that chance does not make it so, after
Benjamini-Hochberg over all features and weeks. The clusters are accounts, and terminals: the weaker counts.

Sources: Siddiqi 2006, Credit Risk Scorecards (0.1 and 0.25); for the test, `grouped`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.watch.grouped import (
    Clusters,
    Compared,
    Floats,
    Ints,
    benjamini_hochberg,
    compare,
    kolmogorov_p,
    kolmogorov_smirnov,
    weakest,
)
from services.training.watch.weeks import ACCOUNTS_MIN, ROWS_MIN, Bools, Watched, Week

BINS = 10
FLOOR = 1e-4
SCORE = "score"


@dataclass(frozen=True, slots=True)
class Limits:
    """What it takes to call something drifted.

    psi, psi_large: the index from which it is moderate, and large. rate_factor: how many times the
    reference's fraud rate, or its inverse. alpha: the false discovery rate.
    """

    psi: float = 0.1
    psi_large: float = 0.25
    rate_factor: float = 1.5
    alpha: float = 0.05


@dataclass(frozen=True, slots=True)
class Bins:
    """Cells of one feature; cell i holds edges[i - 1] < x <= edges[i], then all above, then nan.

    edges: (k,) ascending, in the feature's own dtype.
    """

    edges: NDArray[Any]

    @classmethod
    def of(cls, reference: NDArray[Any], count: int = BINS) -> "Bins":
        """From the reference's values; none where all of them are missing."""
        known = reference[~np.isnan(reference)]
        if not len(known):
            return cls(known)
        inner = np.quantile(known, np.arange(1, count) / count, method="inverted_cdf")
        below = np.nextafter(known.min(), known.dtype.type(-np.inf))
        return cls(np.unique(np.concatenate([[below], inner, [known.max()]]).astype(known.dtype)))

    @property
    def count(self) -> int:
        """Cells, with the one for missing values."""
        return len(self.edges) + 2

    def cells(self, values: NDArray[Any]) -> Ints:
        """(n,) int64."""
        place = np.searchsorted(self.edges, values, side="left").astype(np.int64)
        place[np.isnan(values)] = len(self.edges) + 1
        return place


@dataclass(frozen=True, slots=True)
class Moved:
    """One feature, or the score, in one week.

    psi_chance: what to expect without drift. p, ks_p: by the tests; q, ks_q: after the correction. missing:
    shares. level: "" for not drifted, moderate or large.
    """

    feature: str
    week: str
    psi: float
    psi_chance: float
    p: float
    q: float
    ks: float
    ks_p: float
    ks_q: float
    missing_reference: float
    missing: float
    level: str = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """A week's fraud rate, 0 to 1, against the reference's; `ripe` False leaves all but the counts nan."""

    week: str
    rows: int
    frauds: int
    ripe: bool
    rate: float
    rate_reference: float
    p: float
    q: float
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """moved: every feature and the score in every week that was judged. rates: every week. skipped: why."""

    moved: tuple[Moved, ...]
    rates: tuple[Rate, ...]
    skipped: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        return {
            "features": [_plain(each) for each in self.moved],
            "fraud_rate": [_plain(each) for each in self.rates],
            "not_judged": dict(self.skipped),
        }


def psi(reference: Floats, later: Floats, floor: float = FLOOR) -> float:
    """Population stability index of two (B,) shares that each add up to 1; 0 for the same, no upper end."""
    p, q = np.maximum(reference, floor), np.maximum(later, floor)
    return float(((q - p) * np.log(q / p)).sum())


def drift(watched: Watched, limits: Limits | None = None) -> Drift:
    """Every week that is large enough against the reference; rates only where labels are in."""
    limits = limits or Limits()
    before = np.flatnonzero(watched.rows(watched.reference))
    payments, fraud = watched.events.payments, watched.is_fraud
    columns: dict[str, NDArray[Any]] = {name: watched.x[:, at] for at, name in enumerate(watched.features)}
    columns[SCORE] = watched.score
    bins = {name: Bins.of(column[before]) for name, column in columns.items()}
    ordered = {name: np.sort(column[before]) for name, column in columns.items()}
    moved, rates, skipped = [], [], {}
    for week in watched.weeks:
        after = np.flatnonzero(watched.rows(week.window))
        reason = why_not(watched, week, after)
        if reason:
            skipped[week.name] = reason
            rates.append(_bare(week, fraud[after], fraud[before]))
            continue
        rows = np.concatenate([before, after])
        clusters = [Clusters.of(ids[before], ids[after]) for ids in (payments.account, payments.terminal)]
        for name, column in columns.items():
            cells = bins[name].cells(column[rows])
            found = weakest([compare(cells, bins[name].count, each) for each in clusters])
            moved.append(_moved(name, week.name, found, ordered[name], np.sort(column[after])))
        rate = _bare(week, fraud[after], fraud[before])
        if week.ripe:
            tested = weakest([compare(fraud[rows].astype(np.int64), 2, each) for each in clusters])
            rate = replace(rate, rate=float(tested.later[1]), p=tested.p)
        else:
            skipped[week.name] = "labels still come in: its fraud rate and figures are not judged"
        rates.append(rate)
    return Drift(tuple(_judged(moved, limits)), tuple(_rated(rates, limits)), skipped)


def why_not(watched: Watched, week: Week, rows: Ints) -> str:
    """Why a week is not judged at all; empty if it is."""
    if not len(rows):
        return "no payments"
    if not week.whole:
        return "not over yet"
    accounts = len(np.unique(watched.events.payments.account[rows]))
    if len(rows) < ROWS_MIN or accounts < ACCOUNTS_MIN:
        return f"too small: {len(rows):,} payments; {ROWS_MIN} of {ACCOUNTS_MIN} accounts are needed"
    return ""


def _moved(name: str, week: str, found: Compared, before: NDArray[Any], after: NDArray[Any]) -> Moved:
    known = [part[: len(part) - int(np.isnan(part).sum())] for part in (before, after)]  # nan sorts last
    distance = kolmogorov_smirnov(*known)
    ks_p = kolmogorov_p(distance, len(known[0]), len(known[1]), found.design)
    return Moved(
        name,
        week,
        psi(found.reference, found.later),
        found.chance,
        found.p,
        1.0,
        distance,
        ks_p,
        1.0,
        float(found.reference[-1]),
        float(found.later[-1]),
    )


def _judged(moved: list[Moved], limits: Limits) -> list[Moved]:
    q = benjamini_hochberg([each.p for each in moved])
    ks_q = benjamini_hochberg([each.ks_p for each in moved])
    out = []
    for each, one, other in zip(moved, q, ks_q, strict=True):
        level = ""
        if one < limits.alpha and each.psi > limits.psi:
            level = "large" if each.psi > limits.psi_large else "moderate"
        out.append(replace(each, q=float(one), ks_q=float(other), level=level))
    return out


def _bare(week: Week, fraud: Bools, before: Bools) -> Rate:
    reference = float(before.mean()) if len(before) else float("nan")
    nan = float("nan")
    return Rate(week.name, len(fraud), int(fraud.sum()), week.ripe, nan, reference, nan, nan)


def _rated(rates: list[Rate], limits: Limits) -> list[Rate]:
    q = benjamini_hochberg([each.p for each in rates])
    out = []
    for each, one in zip(rates, q, strict=True):
        high, low = each.rate_reference * limits.rate_factor, each.rate_reference / limits.rate_factor
        drifted = bool(one < limits.alpha and not low <= each.rate <= high)
        out.append(replace(each, q=float(one), drifted=drifted))
    return out


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in asdict(record).items()
    }
