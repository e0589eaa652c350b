"""What two versions say of the same payments, counted: for the place that a version has beside the champion.

Each outcome is what the thresholds in force would say of either version's probability, before costs and
rules, so the two differ by nothing but the model.
"""

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.risk.decide import Scores, by_thresholds
from services.risk.policy import Policy
from weir.codec.decision import OUTCOMES as _WORDS

OUTCOMES = tuple(word.lower() for word in _WORDS)
_LOGIT_BUCKETS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class PlaceMetrics:
    """Metrics of one place: `weir_<place>_rows_total`, `_outcomes_total`, `_logit_difference`, `_version`.

    Args:
        place: "shadow" or "canary".
        rows: what its rows are counted as, for the help text.
    """

    def __init__(self, registry: CollectorRegistry, place: str, rows: str) -> None:
        self.rows = Counter(f"weir_{place}_rows_total", rows, ["result"], registry=registry)
        self._outcomes = Counter(
            f"weir_{place}_outcomes_total",
            "Payments compared, by what the thresholds say of each version's probability.",
            ["champion", place],
            registry=registry,
        )
        self._moved = Histogram(
            f"weir_{place}_logit_difference",
            "Mean absolute difference of the two logits in a batch.",
            buckets=_LOGIT_BUCKETS,
            registry=registry,
        )
        self.version = Gauge(
            f"weir_{place}_version", f"The version in the {place}'s place; 0 without one.", registry=registry
        )

    def compared(self, champion: Scores, other: Scores, policy: Policy) -> None:
        """Adds rows that both have scored, in the same order."""
        self._moved.observe(float(np.abs(other.logit - champion.logit).mean()))
        pairs = by_thresholds(champion.probability, policy) * len(OUTCOMES) + by_thresholds(
            other.probability, policy
        )
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            first, second = divmod(int(pair), len(OUTCOMES))
            self._outcomes.labels(OUTCOMES[first], OUTCOMES[second]).inc(int(count))
