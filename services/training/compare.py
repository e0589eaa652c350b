"""Champion and challenger on the same payments, looked at as often as one likes, until it is enough.

Whoever looks at an ordinary test each week, and stops when it says "better", is wrong far more often than the
test admits. The interval here is a confidence sequence: it holds at all looks together, so one may look after
every label. It is wider than an interval for one look, which is the price of looking.

    half width = s sqrt(2 (n r + 1) / (n r) log(sqrt(n r + 1) / alpha))

with s the standard error of the difference, n the accounts that were defrauded, and r so that it is narrowest
at `frauds_planned` of them. The standard error comes from resampling whole accounts, the same ones for both.

Sources: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2024, Time-uniform central limit theory and asymptotic
confidence sequences (equation 8 for the width, section 2.3 for r); Field and Welsh 2007 (whole clusters).
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from services.training.errors import TrainingError
from services.training.evaluate import CardDays, Floats, Ranking, Sample

ACCOUNTS_MIN = 20  # defrauded; below it the central limit has not set in


class Figure(StrEnum):
    """What is compared; higher is better."""

    AVERAGE_PRECISION = "average_precision"
    AUC_ROC = "auc_roc"
    CARD_PRECISION = "card_precision_100"


class Verdict(StrEnum):
    """What may be said now."""

    BETTER = "better"
    WORSE = "worse"
    AS_GOOD = "as good"
    NOT_YET = "not yet"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger less champion, with an interval that holds at every look.

    defrauded: accounts with a fraud among the payments. needed: about how many there would have to be for the
    interval to leave out 0 or -margin, if the difference stays what it is; None where it is enough already.
    """

    figure: str
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    alpha: float
    margin: float
    rows: int
    defrauded: int
    verdict: Verdict
    needed: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    champion: Sample,
    challenger: Sample,
    *,
    figure: Figure = Figure.AVERAGE_PRECISION,
    alpha: float = 0.05,
    margin: float = 0.01,
    frauds_planned: int = 500,
    draws: int = 200,
    seed: int = 7,
) -> Comparison:
    """The difference of one figure and what may be said of it.

    Args:
        champion, challenger: the same rows in the same order.
        alpha: probability that the interval ever leaves out the true difference, over all looks.
        margin: by how much the challenger may be worse and still count as as good.
        frauds_planned: defrauded accounts at which the interval is to be narrowest; say it before looking.
    Raises:
        TrainingError: other rows, or too few defrauded accounts.
    """
    if not np.array_equal(champion.is_fraud, challenger.is_fraud) or not np.array_equal(
        champion.account, challenger.account
    ):
        raise TrainingError("Champion and challenger must be compared on the same payments.")
    defrauded = len(np.unique(champion.account[champion.is_fraud]))
    if defrauded < ACCOUNTS_MIN:
        raise TrainingError(
            f"{defrauded} accounts with a known fraud are too few to compare on: {ACCOUNTS_MIN} are needed."
        )
    one, two = _Figure(champion, figure), _Figure(challenger, figure)
    random, count = np.random.default_rng(seed), int(champion.account.max()) + 1
    moved = np.empty(draws)
    for place in range(draws):
        copies = np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64)
        moved[place] = two.of(copies) - one.of(copies)
    first, second = one.of(None), two.of(None)
    error, value = float(np.nanstd(moved, ddof=1)), second - first
    half = half_width(error, defrauded, alpha, frauds_planned)
    low, high = value - half, value + half
    verdict = _verdict(low, high, margin)
    needed = None
    if verdict is Verdict.NOT_YET:
        needed = _needed(value, error, defrauded, alpha, margin, frauds_planned)
    return Comparison(
        figure.value, first, second, value, low, high, alpha, margin,
        len(champion.score), defrauded, verdict, needed,
    )  # fmt: skip


def half_width(error: float, count: int, alpha: float, planned: int) -> float:
    """Of the confidence sequence at `count` units, for an estimate of this standard error."""
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned
    scaled = count * rho
    return error * math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


def _verdict(low: float, high: float, margin: float) -> Verdict:
    if low > 0:
        return Verdict.BETTER
    if high < 0:
        return Verdict.WORSE
    return Verdict.AS_GOOD if low > -margin else Verdict.NOT_YET


def _needed(value: float, error: float, count: int, alpha: float, margin: float, planned: int) -> int | None:
    """By doubling: a standard error falls with the root of the count."""
    later = count
    while later < 1_000_000:
        later = math.ceil(later * 1.1)
        half = half_width(error * math.sqrt(count / later), later, alpha, planned)
        if _verdict(value - half, value + half, margin) is not Verdict.NOT_YET:
            return later
    return None


class _Figure:
    """One figure of one version, prepared for many resamplings."""

    def __init__(self, sample: Sample, figure: Figure) -> None:
        self._sample, self._figure = sample, figure
        self._ranking = Ranking(sample.score, sample.is_fraud)
        self._cards = CardDays(sample) if figure is Figure.CARD_PRECISION else None

    def of(self, copies: Floats | None) -> float:
        weight = None if copies is None else copies[self._sample.account]
        if self._cards is not None:
            return self._cards.precision(100, copies)
        if self._figure is Figure.AUC_ROC:
            return self._ranking.auc_roc(weight)
        return self._ranking.average_precision(weight)
