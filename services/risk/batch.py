"""What goes into a decision and what comes out: columns, checked once."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

APPROVE, REVIEW, DECLINE = 0, 1, 2
OUTCOMES: tuple[Literal["approve"], Literal["review"], Literal["decline"]] = ("approve", "review", "decline")
REASONS_MAX = 4
AMOUNT_SCALE = 10_000  # amounts are int64 in 1/10000, as decimal(19, 4) in the schema


@dataclass(frozen=True, slots=True)
class RiskBatch:
    """Payments of one batch.

    features: (n, F) float32, in the model's order.
    amount: (n,) int64 in 1/10000 of the home currency.
    channel: (n,) int8, index into `weir.features.spec.CHANNELS`.
    currency: (n,) uint32, three ASCII letters, big endian (`rules.currency_code`).

    Raises:
        ValueError: a length, a shape or a type that does not fit.
    """

    features: NDArray[np.float32]
    amount: NDArray[np.int64]
    channel: NDArray[np.int8]
    currency: NDArray[np.uint32]

    def __post_init__(self) -> None:
        n = len(self.amount)
        _expect("features", self.features, np.float32, (n, self.features.shape[-1]))
        _expect("amount", self.amount, np.int64, (n,))
        _expect("channel", self.channel, np.int8, (n,))
        _expect("currency", self.currency, np.uint32, (n,))

    @property
    def row_count(self) -> int:
        """Payments in the batch."""
        return len(self.amount)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model that gave the scores."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The model's answer for a batch: `logit == base_logit + contributions.sum(axis=1)`.

    logit, probability: (n,) float32; (n, 1), as Triton gives them, is taken too.
    contributions: (n, F) float32, logit units.

    Raises:
        ValueError: a length, a shape or a type that does not fit.
    """

    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    contributions: NDArray[np.float32]
    base_logit: float
    model: ModelRef

    def __post_init__(self) -> None:
        for name in ("logit", "probability"):
            column = getattr(self, name)
            if column.ndim == 2 and column.shape[1] == 1:
                object.__setattr__(self, name, column[:, 0])
        n = len(self.logit)
        _expect("logit", self.logit, np.float32, (n,))
        _expect("probability", self.probability, np.float32, (n,))
        _expect("contributions", self.contributions, np.float32, (n, self.contributions.shape[-1]))

    def rows(self, part: NDArray[np.intp]) -> "Scores":
        """The answer for some of the rows."""
        return replace(
            self,
            logit=self.logit[part],
            probability=self.probability[part],
            contributions=self.contributions[part],
        )

    def sum_error(self) -> float:
        """How far, at most, a row's contributions are from adding up to its logit; logit units."""
        if not len(self.logit):
            return 0.0
        total = self.base_logit + self.contributions.sum(axis=1, dtype=np.float64)
        return float(np.abs(total - self.logit).max())


@dataclass(frozen=True, slots=True)
class RiskDecisions:
    """A decision for each row.

    outcome: (n,) int8, 0 approve, 1 review, 2 decline.
    score, probability, logit: (n,) float64; nan in every row when degraded.
    reason_index: (n, 4) int16 into `reasons.ReasonTable.texts`, strongest first, -1 for none.
    reason_contribution: (n, 4) float64, logit units, 0 for none.
    rules_fired: (n,) uint64; bit k: `rule_ids[k]` fired.
    by_rule: (n,) bool: a rule raised the outcome above the model's (or the degraded default's).
    """

    outcome: NDArray[np.int8]
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    logit: NDArray[np.float64]
    base_logit: float | None
    reason_index: NDArray[np.int16]
    reason_contribution: NDArray[np.float64]
    rules_fired: NDArray[np.uint64]
    rule_ids: tuple[str, ...]
    by_rule: NDArray[np.bool_]
    model: ModelRef | None
    degraded: bool
    degraded_reason: str | None

    def counts(self) -> dict[tuple[str, str], int]:
        """Rows by (outcome, basis), for `Metrics.decided`; combinations without a row are left out."""
        if self.degraded:
            found = np.bincount(self.outcome, minlength=3)
            return {(OUTCOMES[i], "degraded"): int(found[i]) for i in range(3) if found[i]}
        found = np.bincount(self.outcome + 3 * self.by_rule.astype(np.int8), minlength=6)
        return {(OUTCOMES[i % 3], ("model", "rule")[i // 3]): int(found[i]) for i in range(6) if found[i]}


def _expect(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, not {array.dtype} {array.shape}")
