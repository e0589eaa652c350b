"""Where to decline and where to ask a person: by what mistakes cost, within what a team can review.

Three answers to a payment: let it pass, have a person look (abstain), decline. Costs are a bank's own:

    a fraud that passes                 its amount times `fraud_loss_share`
    an honest payment declined          `decline`, for the customer's trouble
    a payment that a person looks at    `review`; and its amount, if it is a fraud that the person misses

A threshold is chosen on the validation window and judged on the test window: chosen where it is judged, it
would flatter itself.

Sources: Elkan 2001, The foundations of cost-sensitive learning; Bahnsen et al. 2013, Cost sensitive credit
card fraud detection (each payment's own amount); Chow 1970 (abstention).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from services.training.additive import Floats
from services.training.data import AMOUNT_UNIT, DAY_MS
from services.training.errors import TrainingError

if TYPE_CHECKING:
    from services.training.baselines import Scorer
    from services.training.train import Table

_CANDIDATES = 400
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Costs:
    """What mistakes cost, in the currency of the amounts.

    fraud_loss_share: part of a fraud's amount that the bank bears, 0 to 1. decline: for an honest payment.
    review: a person's look. found: share of frauds that a person recognises, 0 to 1.
    """

    fraud_loss_share: float = 1.0
    decline: float = 60.0
    review: float = 12.0
    found: float = 0.95

    def __post_init__(self) -> None:
        if not (
            0 <= self.fraud_loss_share <= 1
            and 0 <= self.found <= 1
            and self.decline >= 0
            and self.review >= 0
        ):
            raise TrainingError(
                "Costs are not below 0; the share of loss and the share that a person finds lie in 0 to 1."
            )


@dataclass(frozen=True, slots=True)
class Judged:
    """Payments with what the model says of them.

    probability: (n,) float64, 0 to 1. is_fraud: (n,) bool. amount: (n,) float64. event_ms: (n,) int64.
    """

    probability: Floats
    is_fraud: Bools
    amount: Floats
    event_ms: NDArray[np.int64]

    @classmethod
    def of(cls, table: "Table", scorer: "Scorer", rows: Bools) -> "Judged":
        """Rows of a table, as a served version or a baseline scores them.

        What gives no probability is judged by its score, and its thresholds are scores.
        """
        payments, x = table.events.payments, table.x[rows]
        probability = scorer.probability(x)
        return cls(
            scorer.score(x) if probability is None else probability,
            table.events.is_fraud[rows],
            payments.amount[rows] / AMOUNT_UNIT,
            payments.event_ms[rows],
        )

    @property
    def days(self) -> int:
        """Calendar days (UTC) with a payment."""
        return max(len(np.unique(self.event_ms // DAY_MS)), 1)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From `decline_at` on a payment is declined, from `review_at` on a person looks, below it passes."""

    review_at: float
    decline_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What thresholds do to payments, a day, in counts and in money."""

    thresholds: Thresholds
    declined_day: float
    reviewed_day: float
    honest_declined_day: float
    frauds_stopped: float
    money_lost_day: float
    cost_day: float
    saved_day: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def outcome(judged: Judged, thresholds: Thresholds, costs: Costs) -> Outcome:
    """What they do to these payments; `saved_day` is against letting everything pass."""
    return _outcomes(judged, [thresholds], costs)[0]


def best_thresholds(judged: Judged, costs: Costs, *, reviews_day: float) -> Thresholds:
    """The cheapest thresholds that give people at most `reviews_day` payments a day.

    Both are searched over the ranks of the score, finer at its upper end; also "no review" and "no decline".
    """
    steps = candidates(judged)
    pairs = [Thresholds(low, high) for place, low in enumerate(steps) for high in steps[place:]]
    outcomes = _outcomes(judged, pairs, costs)
    allowed = [each for each in outcomes if each.reviewed_day <= reviews_day]
    # Among equally cheap ones, those that trouble the fewest customers.
    return min(allowed, key=lambda each: (each.cost_day, each.declined_day, each.reviewed_day)).thresholds


def candidates(judged: Judged) -> list[float]:
    """Scores to try as thresholds, ascending; the last is above every score."""
    ranked = np.sort(judged.probability)[::-1]
    places = np.unique(np.geomspace(1, len(ranked), _CANDIDATES // 4).astype(np.int64)) - 1
    return [*np.unique(ranked[places]).tolist(), float("inf")]


def what_if(judged: Judged, costs: Costs, chosen: Sequence[Thresholds]) -> list[Outcome]:
    """The outcomes of many thresholds: the curve to choose on."""
    return _outcomes(judged, chosen, costs)


def _outcomes(judged: Judged, chosen: Sequence[Thresholds], costs: Costs) -> list[Outcome]:
    """All of them from running sums over the payments in order of their score."""
    order = np.argsort(judged.probability, kind="stable")
    score = judged.probability[order]
    fraud = judged.is_fraud[order]
    money = np.where(fraud, judged.amount[order], 0.0) * costs.fraud_loss_share
    counts, frauds, losses = (
        np.append(0.0, np.cumsum(values.astype(np.float64))) for values in (np.ones(len(score)), fraud, money)
    )
    low = np.searchsorted(score, [each.review_at for each in chosen], side="left")
    high = np.searchsorted(score, [each.decline_at for each in chosen], side="left")
    days = judged.days
    declined = counts[-1] - counts[high]
    stopped_declined = frauds[-1] - frauds[high]
    reviewed = counts[high] - counts[low]
    seen = frauds[high] - frauds[low]
    lost = losses[low] + (losses[high] - losses[low]) * (1 - costs.found)
    honest = declined - stopped_declined
    cost = lost + honest * costs.decline + reviewed * costs.review
    stopped = (stopped_declined + seen * costs.found) / max(frauds[-1], 1)
    return [
        Outcome(
            each,
            *(
                float(values[place])
                for values in (
                    declined / days,
                    reviewed / days,
                    honest / days,
                    stopped,
                    lost / days,
                    cost / days,
                    (losses[-1] - cost) / days,
                )
            ),
        )
        for place, each in enumerate(chosen)
    ]
