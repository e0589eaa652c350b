"""Figures of several windows under the same resamplings of accounts; their difference with an interval.

An account that pays in both windows is drawn for both: what it does to the two figures alike leaves their
difference. Source: Field and Welsh 2007, Bootstrapping clustered data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from services.training.evaluate import CardDays, Interval, Ranking, Sample, calibration_error
from services.training.watch.grouped import Floats
from services.training.watch.weeks import Bools, Watched

CARDS = 100
FRAUDS_MIN = 10  # fewer carry no figure
RANKING = ("auc_roc", "average_precision", "average_precision_same_rate", f"card_precision_{CARDS}")
CALIBRATION = ("calibration_error", "observed_expected")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One window's figures as they are, and in each of D draws, (D,) float64."""

    rows: int
    frauds: int
    value: Mapping[str, float]
    draws: Mapping[str, Floats]

    def interval(self, name: str) -> Interval:
        """The figure with the 2.5 % and 97.5 % points of its draws; nan where no draw has it."""
        return Interval(self.value[name], *points(self.draws[name]))


@dataclass(frozen=True, slots=True)
class Difference:
    """Later less reference (of observed_expected the ratio), its interval, and p against no difference.

    p: two-sided, by a normal curve with the draws' standard deviation: many draws would else be needed for
    the small p that a correction over many weeks asks for. sure: the interval leaves out no difference too.
    """

    value: float
    low: float
    high: float
    p: float
    sure: bool


class Figures:
    """One window's rows prepared once, so that each draw costs little."""

    def __init__(self, sample: Sample, rate: float | None = None, *, cards: bool = True) -> None:
        """Args:
        sample: whose accounts are numbered over all windows that are drawn together.
        rate: the share of fraud at which `average_precision_same_rate` is told; None for the window's own.
        """
        self.sample, self.ranking = sample, Ranking(sample.score, sample.is_fraud)
        self.cards = CardDays(sample) if cards else None
        own = float(sample.is_fraud.mean())
        self.odds = 1.0 if rate is None or own in (0, 1) else (rate / (1 - rate)) / (own / (1 - own))

    def of(self, copies: Floats | None = None) -> dict[str, float]:
        """Each figure, with every account counted as often as `copies`, (accounts,) float64, says."""
        sample = self.sample
        weight = None if copies is None else copies[sample.account]
        same = np.where(sample.is_fraud, self.odds, 1.0) * (1.0 if weight is None else weight)
        out = {
            "auc_roc": self.ranking.auc_roc(weight),
            "average_precision": self.ranking.average_precision(weight),
            "average_precision_same_rate": self.ranking.average_precision(same),
        }
        if self.cards is not None:
            out[f"card_precision_{CARDS}"] = self.cards.precision(CARDS, copies)
        if (given := sample.probability) is not None:
            out["calibration_error"] = calibration_error(given, sample.is_fraud, weight)
            expected = float(given.sum() if weight is None else given @ weight)
            observed = float(sample.is_fraud.sum() if weight is None else sample.is_fraud @ weight)
            out["observed_expected"] = observed / expected if expected > 0 else float("nan")
        return out


def samples(watched: Watched, chosen: Sequence[Bools]) -> tuple[list[Sample], int]:
    """A sample for each (n,) bool of rows, their accounts numbered over all; and how many those are."""
    account = watched.events.payments.account
    known = np.unique(account[np.logical_or.reduce(list(chosen))])
    fraud = watched.is_fraud
    made = [
        Sample(
            watched.score[rows],
            fraud[rows],
            np.searchsorted(known, account[rows]).astype(np.int64),
            watched.events.event_ms[rows],
            watched.probability[rows],
        )
        for rows in chosen
    ]
    return made, len(known)


def draw(figures: Sequence[Figures], accounts: int, *, draws: int, seed: int) -> list[Drawn]:
    """Every window's figures, whole and in `draws` resamplings of the `accounts`, the same ones for all."""
    random = np.random.default_rng(seed)
    kept: list[dict[str, list[float]]] = [{} for _ in figures]
    whole = [each.of() for each in figures]
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(draws):
            copies = np.bincount(random.integers(0, accounts, accounts), minlength=accounts).astype(
                np.float64
            )
            for each, into in zip(figures, kept, strict=True):
                for name, value in each.of(copies).items():
                    into.setdefault(name, []).append(value)
    return [
        Drawn(
            len(each.sample.score),
            int(each.sample.is_fraud.sum()),
            value,
            {name: np.array(values) for name, values in into.items()},
        )
        for each, value, into in zip(figures, whole, kept, strict=True)
    ]


def difference(reference: Drawn, later: Drawn, name: str) -> Difference:
    """How the later window differs in one figure."""
    one, two = reference.draws[name], later.draws[name]
    value_one, value_two = reference.value[name], later.value[name]
    ratio = name == "observed_expected"
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.log(two / one) if ratio else two - one
        value = float(np.log(value_two / value_one)) if ratio else value_two - value_one
    moved = moved[np.isfinite(moved)]
    low, high = points(moved)
    spread = float(moved.std(ddof=1)) if len(moved) > 1 else float("nan")
    p = float("nan")
    if np.isfinite(spread) and np.isfinite(value):
        p = float(2 * stats.norm.sf(abs(value) / spread)) if spread > 0 else float(value == 0)
    sure = bool(low > 0 or high < 0)
    if ratio:
        value, low, high = (float(np.exp(each)) for each in (value, low, high))
    return Difference(value, low, high, p, sure)


def points(draws: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points, nan left out."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
