"""Where the model works worst: its figures by slice, alone and two crossed, over the ripe weeks together.

A slice with fewer than FRAUDS_MIN frauds or honest payments is counted and nothing is claimed of it. `worst`
is what a test calls worse than all payments together, after Benjamini-Hochberg over every slice that was
looked at: a search through hundreds of slices always finds one that looks bad.

Intervals come from each account's influence on the figure, summed and squared: no draws, so that hundreds of
slices cost seconds.

Sources:
    Obuchowski 1997, Nonparametric analysis of clustered ROC curve data (placements summed by cluster).
    Chung et al. 2019, Slice Finder (the search, and the control of false discoveries).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from services.training.data import AMOUNT_UNIT
from services.training.evaluate import Interval, Sample, average_precision
from services.training.watch.draws import samples
from services.training.watch.grouped import Floats, benjamini_hochberg
from services.training.watch.performance import clean
from services.training.watch.weeks import Bools, Watched
from weir.features.payments import CHANNELS

FRAUDS_MIN = 30
CROSSED_MAX = 0.95  # a crossing that keeps more than this of one side says nothing new
_AMOUNTS = (10, 50, 200, 1000)
_AGES = (7, 30)  # the feature ends at 30 days
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice's payments; the figures are None where it is too small to claim anything.

    against: its AUC less that of all payments. q: of that, after the correction; nan if too small.
    """

    name: str
    rows: int
    frauds: int
    auc_roc: Interval | None = None
    average_precision: float = float("nan")
    observed_expected: Interval | None = None
    against: Interval | None = None
    q: float = float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        if self.auc_roc is None or self.observed_expected is None or self.against is None:
            return {"slice": self.name, "rows": self.rows, "frauds": self.frauds, "too_small": True}
        intervals = {name: clean(asdict(getattr(self, name))) for name in ("auc_roc", "observed_expected")}
        about = {"slice": self.name, "rows": self.rows, "frauds": self.frauds, **intervals}
        alone = clean({"average_precision": self.average_precision, "q": self.q})
        return {**about, **alone, "auc_against_all": clean(asdict(self.against))}


@dataclass(frozen=True, slots=True)
class Slices:
    """Each slice of one kind, and the worst of all, the lowest AUC first.

    looked_at: how many slices were tested, crossed ones included.
    """

    single: tuple[Slice, ...]
    worst: tuple[Slice, ...]
    looked_at: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "slices": [each.as_dict() for each in self.single],
            "worst": [each.as_dict() for each in self.worst],
            "looked_at": self.looked_at,
            "frauds_min": FRAUDS_MIN,
        }


def kinds(watched: Watched) -> Mapping[str, tuple[NDArray[np.int64], tuple[str, ...]]]:
    """For each kind of slice: (n,) int64, the slice of each payment, and the slices' names.

    Amounts and hours (UTC) are in fixed bands; a terminal's volume of seven days in thirds of the reference.
    Kinds whose feature the model does not have are left out.
    """
    payments, features = watched.events.payments, watched.features
    hour = (payments.event_ms // 3_600_000 % 24).astype(np.int64)
    out = {
        "channel": (payments.channel.astype(np.int64), CHANNELS),
        "amount": (_band(payments.amount / AMOUNT_UNIT, _AMOUNTS), _names(_AMOUNTS, "")),
        "hour": (hour // 6, ("0-5 h", "6-11 h", "12-17 h", "18-23 h")),
    }
    if "account_age_days" in features:
        age = watched.x[:, features.index("account_age_days")]
        out["account age"] = (_band(age, _AGES), _names(_AGES, " days"))
    if "terminal_count_7d" in features:
        volume = watched.x[:, features.index("terminal_count_7d")]
        thirds = np.nanquantile(volume[watched.rows(watched.reference)], (1 / 3, 2 / 3))
        out["terminal volume"] = (_band(volume, thirds), ("low", "middle", "high"))
    return out


def slices(watched: Watched, *, alpha: float = 0.05) -> Slices:
    """Slices of the whole, ripe weeks; empty where no week is ripe or they hold too few frauds."""
    rows = np.zeros(len(watched.score), np.bool_)
    for week in watched.weeks:
        if week.ripe and week.whole:
            rows |= watched.judged_rows(week.window)
    (sample,), accounts = samples(watched, [rows])
    everything = np.ones(len(sample.score), np.bool_)
    if not _enough(sample, everything):
        return Slices((), (), 0)
    cut = {name: (place[rows], names) for name, (place, names) in kinds(watched).items()}
    single = {
        f"{kind} {name}": place == at
        for kind, (place, names) in cut.items()
        for at, name in enumerate(names)
        if (place == at).any()
    }
    tested = {name: mask for name, mask in single.items() if _enough(sample, mask)}
    for (one, first), (two, second) in combinations(dict(tested).items(), 2):
        both = first & second
        if _enough(sample, both) and both.sum() <= CROSSED_MAX * min(first.sum(), second.sum()):
            tested[f"{one}, {two}"] = both
    whole = auc_influence(sample, everything, accounts)
    judged = {name: _judge(name, sample, mask, accounts, whole) for name, mask in tested.items()}
    q = benjamini_hochberg([p for _, p in judged.values()])
    done = {
        name: replace(each, q=float(one)) for (name, (each, _)), one in zip(judged.items(), q, strict=True)
    }
    told = [
        done.get(name) or Slice(name, int(mask.sum()), int(sample.is_fraud[mask].sum()))
        for name, mask in single.items()
    ]
    worse = [each for each in done.values() if each.against and each.against.value < 0 and each.q < alpha]
    worse.sort(key=lambda each: each.auc_roc.value if each.auc_roc else 1.0)
    return Slices(tuple(told), tuple(worse), len(done))


def auc_influence(sample: Sample, mask: Bools, accounts: int) -> tuple[float, Floats]:
    """AUC of the masked rows, and each account's influence on it, (accounts,) float64, adding up to 0."""
    score, fraud, account = sample.score[mask], sample.is_fraud[mask], sample.account[mask]
    bad, good = np.sort(score[fraud]), np.sort(score[~fraud])
    above = _rank(good, score[fraud]) / len(good)  # share of honest payments that each fraud outranks
    below = 1 - _rank(bad, score[~fraud]) / len(bad)
    auc = float(above.mean())
    influence = _sums(account[fraud], (above - auc) / len(bad), accounts)
    influence += _sums(account[~fraud], (below - auc) / len(good), accounts)
    return auc, influence


def _judge(
    name: str, sample: Sample, mask: Bools, accounts: int, whole: tuple[float, Floats]
) -> tuple[Slice, float]:
    auc, influence = auc_influence(sample, mask, accounts)
    fraud, account, given = sample.is_fraud[mask], sample.account[mask], sample.probability
    probability = np.full(len(fraud), np.nan) if given is None else given[mask]
    expected = float(probability.sum())
    ratio = float(fraud.sum()) / expected if expected > 0 else float("nan")
    part = _sums(account, (fraud - ratio * probability) / expected, accounts)
    apart, spread = auc - whole[0], _spread(influence - whole[1])
    p = float(2 * stats.norm.sf(abs(apart) / spread)) if spread > 0 else float(apart == 0)
    made = Slice(
        name,
        len(fraud),
        int(fraud.sum()),
        Interval(auc, max(auc - _Z * _spread(influence), 0.0), min(auc + _Z * _spread(influence), 1.0)),
        average_precision(sample.score[mask], fraud),
        Interval(ratio, max(ratio - _Z * _spread(part), 0.0), ratio + _Z * _spread(part)),
        Interval(apart, apart - _Z * spread, apart + _Z * spread),
    )
    return made, p


def _sums(account: NDArray[np.int64], values: Floats, accounts: int) -> Floats:
    return np.asarray(np.bincount(account, values, accounts), np.float64)


def _spread(influence: Floats) -> float:
    return float(np.sqrt((influence**2).sum()))


def _rank(ordered: Floats, values: Floats) -> Floats:
    """How many of `ordered` lie below each value, ties counted half."""
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / 2


def _enough(sample: Sample, mask: Bools) -> bool:
    frauds = int(sample.is_fraud[mask].sum())
    return min(frauds, int(mask.sum()) - frauds) >= FRAUDS_MIN


def _band(values: NDArray[Any], borders: Any) -> NDArray[np.int64]:
    return np.searchsorted(np.asarray(borders), values, side="right").astype(np.int64)


def _names(borders: tuple[int, ...], unit: str) -> tuple[str, ...]:
    between = (f"{low} to {high}{unit}" for low, high in pairwise(borders))
    return (f"below {borders[0]}{unit}", *between, f"from {borders[-1]}{unit}")
