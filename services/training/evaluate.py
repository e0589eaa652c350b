"""How good scores are on labelled payments: discrimination, what an analyst team would catch, calibration.

Every figure comes with a bootstrap interval over accounts: one customer's payments are not independent, so
whole accounts are drawn with replacement, never single rows. The functions are pure: arrays in, figures out.

Sources:
    Le Borgne, Siblini, Lebichot, Bontempi 2022, Reproducible Machine Learning for Credit Card Fraud
    Detection, chapter 4 (AUC ROC, average precision, card precision top-k, removal of detected cards).
    Fawcett 2006, An introduction to ROC analysis (ties).
    Nixon et al. 2019, Measuring Calibration in Deep Learning (equal-mass bins).
    Field and Welsh 2007, Bootstrapping clustered data (resampling whole clusters).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.training.errors import TrainingError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DAY_MS = 86_400_000
CALIBRATION_BINS = 15
PROBABILITY_FLOOR = 1e-7  # log loss of a certain, wrong answer stays finite


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the 2.5 % and 97.5 % points of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True, slots=True)
class Sample:
    """Scored, labelled rows.

    score: (n,) float64, higher is riskier. probability: (n,) float64 in 0..1, or None for a bare ranking.
    is_fraud: (n,) bool. account: (n,) any integer id. event_ms: (n,) int64, ms since epoch.
    """

    score: Floats
    is_fraud: Bools
    account: Ints
    event_ms: Ints
    probability: Floats | None = None

    @classmethod
    def of(
        cls,
        score: ArrayLike,
        is_fraud: ArrayLike,
        account: ArrayLike,
        event_ms: ArrayLike,
        probability: ArrayLike | None = None,
    ) -> "Sample":
        """The same rows, converted and checked once.

        Raises:
            TrainingError: lengths differ, no rows, one class only, or a score that is not finite.
        """
        columns = (
            np.asarray(score, np.float64).ravel(),
            np.asarray(is_fraud, np.bool_).ravel(),
            np.unique(np.asarray(account).ravel(), return_inverse=True)[1].astype(np.int64),
            np.asarray(event_ms, np.int64).ravel(),
        )
        given = None if probability is None else np.asarray(probability, np.float64).ravel()
        row_count = len(columns[0])
        if any(len(column) != row_count for column in columns[1:]) or (
            given is not None and len(given) != row_count
        ):
            raise TrainingError("Score, label, account and time must have one entry a row.")
        fraud_count = int(columns[1].sum())
        if fraud_count in (0, row_count):
            raise TrainingError(
                f"{row_count:,} rows hold {fraud_count:,} frauds: measuring takes both classes."
            )
        if not np.isfinite(columns[0]).all() or (given is not None and not np.isfinite(given).all()):
            raise TrainingError("A score is not finite. Check the features that the model was given.")
        return cls(*columns, given)


def auc_roc(score: Floats, is_fraud: Bools, weight: Floats | None = None) -> float:
    """Chance that a fraud scores above a genuine payment, ties counted half; 0 to 1, nan for one class."""
    return Ranking(score, is_fraud).auc_roc(weight)


def average_precision(score: Floats, is_fraud: Bools, weight: Floats | None = None) -> float:
    """Mean precision over the frauds in the order of the score, tied rows together; nan without fraud."""
    return Ranking(score, is_fraud).average_precision(weight)


class Ranking:
    """Rows sorted once by score, so that each bootstrap draw costs two cumulative sums."""

    def __init__(self, score: Floats, is_fraud: Bools) -> None:
        self.order = np.argsort(-score, kind="stable")
        ordered = score[self.order]
        self.is_fraud = is_fraud[self.order].astype(np.float64)
        self.last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # last row of each tied group

    def _cumulated(self, weight: Floats | None) -> tuple[Floats, Floats]:
        drawn = np.ones(len(self.order)) if weight is None else weight[self.order]
        total = np.cumsum(drawn)[self.last]
        fraud = np.cumsum(drawn * self.is_fraud)[self.last]
        return fraud, total - fraud

    def auc_roc(self, weight: Floats | None = None) -> float:
        """See the function of the same name."""
        fraud, genuine = self._cumulated(weight)
        if fraud[-1] <= 0 or genuine[-1] <= 0:
            return float("nan")
        area = np.trapezoid(np.append(0.0, fraud), np.append(0.0, genuine))
        return float(area / (fraud[-1] * genuine[-1]))

    def average_precision(self, weight: Floats | None = None) -> float:
        """See the function of the same name."""
        fraud, genuine = self._cumulated(weight)
        if fraud[-1] <= 0:
            return float("nan")
        precision = fraud / np.maximum(fraud + genuine, 1e-300)
        return float(np.sum(np.diff(fraud, prepend=0.0) * precision) / fraud[-1])


class CardDays:
    """The riskiest cards of each day, prepared once; `precision` then plays the days in order."""

    def __init__(self, sample: Sample) -> None:
        self.days: list[tuple[Ints, Bools]] = []
        day = sample.event_ms // DAY_MS
        for one in np.unique(day):
            rows = np.flatnonzero(day == one)
            order = np.lexsort((sample.account[rows], -sample.score[rows]))
            ranked = sample.account[rows][order]
            first = np.sort(np.unique(ranked, return_index=True)[1])
            hit = np.zeros(int(sample.account.max()) + 1, np.bool_)
            hit[sample.account[rows[sample.is_fraud[rows]]]] = True
            self.days.append((ranked[first], hit[ranked[first]]))

    def precision(self, k: int, copies: Floats | None = None) -> float:
        """Mean over days of the share of compromised cards among the `k` riskiest; found cards leave.

        copies: how often the bootstrap drew each account; a copy counts as a card of its own.
        """
        found: set[int] = set()
        daily = []
        for cards, compromised in self.days:
            drawn = np.ones(len(cards)) if copies is None else copies[cards].copy()
            if found:
                drawn[np.isin(cards, np.fromiter(found, np.int64, len(found)))] = 0
            room = np.clip(k - (np.cumsum(drawn) - drawn), 0, drawn)
            daily.append(float((room * compromised).sum()) / k)
            found.update(cards[compromised & (room > 0)].tolist())
        return float(np.mean(daily))


def card_precision(sample: Sample, k: int = 100) -> float:
    """Share of compromised cards among each day's `k` riskiest, averaged over the days, 0 to 1.

    A card counts once a day, by its highest score; it is compromised if one of its payments that day is
    fraud. A compromised card that was found is blocked: it is left out on the days after.
    Source: Le Borgne et al. 2022, section 4.4, card precision top-k.
    """
    return CardDays(sample).precision(k)


def calibration_error(
    probability: Floats, is_fraud: Bools, weight: Floats | None = None, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error over bins of equal mass: |mean probability - share of fraud|, by weight."""
    weight = np.ones(len(probability)) if weight is None else weight
    place = np.empty(len(probability), np.int64)
    place[np.argsort(probability, kind="stable")] = np.arange(len(probability)) * bins // len(probability)
    gap = np.bincount(place, weight * (probability - is_fraud), bins)
    return float(np.abs(gap).sum() / weight.sum())


def brier(probability: Floats, is_fraud: Bools, weight: Floats | None = None) -> float:
    """Mean squared error of the probability, 0 to 1."""
    return float(np.average((probability - is_fraud) ** 2, weights=weight))


def log_loss(probability: Floats, is_fraud: Bools, weight: Floats | None = None) -> float:
    """Mean negative log likelihood, in nats."""
    sure = np.clip(probability, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(np.average(-np.log(np.where(is_fraud, sure, 1 - sure)), weights=weight))


@dataclass(frozen=True, slots=True)
class Report:
    """What `evaluate` measured, ready for JSON by `as_dict`."""

    row_count: int
    fraud_count: int
    account_count: int
    metrics: Mapping[str, Interval]
    bootstrap: Mapping[str, int]

    def as_dict(self) -> dict[str, object]:
        """The report as plain values: counts, {metric: {value, low, high}}, how the intervals were made."""
        return {
            "rows": self.row_count,
            "frauds": self.fraud_count,
            "accounts": self.account_count,
            "metrics": {name: asdict(interval) for name, interval in self.metrics.items()},
            "bootstrap": dict(self.bootstrap),
        }


def evaluate(sample: Sample, *, draws: int = 200, seed: int = 7, k: int = 100) -> Report:
    """All figures with 95 % intervals from `draws` resamplings of the accounts.

    Calibration figures are there only when the sample carries probabilities.
    """
    ranking, cards = Ranking(sample.score, sample.is_fraud), CardDays(sample)
    figures: dict[str, Callable[[Floats | None, Floats | None], float]] = {
        "auc_roc": lambda weight, copies: ranking.auc_roc(weight),
        "average_precision": lambda weight, copies: ranking.average_precision(weight),
        f"card_precision_{k}": lambda weight, copies: cards.precision(k, copies),
    }
    if (given := sample.probability) is not None:
        figures |= {
            "calibration_error": lambda weight, copies: calibration_error(given, sample.is_fraud, weight),
            "brier": lambda weight, copies: brier(given, sample.is_fraud, weight),
            "log_loss": lambda weight, copies: log_loss(given, sample.is_fraud, weight),
        }
    account_count = int(sample.account.max()) + 1
    random = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(draws):
        copies = np.bincount(random.integers(0, account_count, account_count), minlength=account_count)
        drawn = copies.astype(np.float64)
        weight = drawn[sample.account]
        for name, figure in figures.items():
            values[name].append(figure(weight, drawn))
    metrics = {}
    for name, figure in figures.items():
        value = figure(None, None)
        low, high = np.nanpercentile(values[name], (2.5, 97.5)) if draws else (value, value)
        metrics[name] = Interval(value, float(low), float(high))
    return Report(
        row_count=len(sample.score),
        fraud_count=int(sample.is_fraud.sum()),
        account_count=account_count,
        metrics=metrics,
        bootstrap={"draws": draws, "seed": seed},
    )
