"""What any model must beat: three alarms a bank's rule engine starts with, and logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from services.training.fit import Rows


class Scorer(Protocol):
    """Anything that ranks rows; `probability` is None where it only ranks."""

    def score(self, x: Floats32) -> Floats:
        """(n,) float64, higher is riskier."""
        ...

    def probability(self, x: Floats32) -> Floats | None:
        """(n,) float64, 0 to 1."""
        ...


@dataclass(frozen=True, slots=True)
class ModelScorer:
    """An additive model, by its logit."""

    model: AdditiveModel

    def score(self, x: Floats32) -> Floats:
        """The logit."""
        return self.model.logit(x)

    def probability(self, x: Floats32) -> Floats:
        """The calibrated probability."""
        return self.model.probability(x)


@dataclass(frozen=True, slots=True)
class SimpleRule:
    """How many of three alarms ring; among equals the dearer payment is the riskier.

    The alarms: an amount above all but one in a thousand, five times the account's usual amount, and a
    terminal at which one in twenty payments of a week was fraud.
    """

    amount_at: int
    ratio_at: int
    risk_at: int
    amount_high: float

    @classmethod
    def fit(cls, rows: Rows, features: Sequence[str]) -> "SimpleRule":
        """The rule, whose one number is the 99.9 % point of the amounts in `rows`.

        Raises:
            TrainingError: a feature that the rule needs is not among `features`.
        """
        needed = ("amount", "account_amount_ratio_30d", "terminal_risk_7d")
        missing = [name for name in needed if name not in features]
        if missing:
            raise TrainingError(f"The simple rule needs the feature {missing[0]}, which is not there.")
        amount_at, ratio_at, risk_at = (list(features).index(name) for name in needed)
        high = float(np.quantile(rows.x[:, amount_at], 0.999))
        return cls(amount_at, ratio_at, risk_at, high)

    def score(self, x: Floats32) -> Floats:
        """Alarms, 0 to 3, and below one a share for the amount."""
        amount = np.maximum(x[:, self.amount_at].astype(np.float64), 0)
        alarms = (
            (amount > self.amount_high).astype(np.float64)
            + (x[:, self.ratio_at] >= 5)
            + (x[:, self.risk_at] >= 0.05)
        )
        total: Floats = alarms + 0.99 * amount / (amount + 1000)
        return total

    def probability(self, x: Floats32) -> None:
        """A count of alarms is no probability."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression on standardised features, missing ones taken as average."""

    mean: Floats
    scale: Floats
    weight: Floats
    bias: float

    @classmethod
    def fit(cls, rows: Rows) -> "Logistic":
        """Fitted on `rows`, with scikit-learn's default penalty."""
        mean: Floats = np.asarray(np.nanmean(rows.x, axis=0, dtype=np.float64))
        scale: Floats = np.asarray(np.nanstd(rows.x, axis=0, dtype=np.float64))
        scale = np.where(scale == 0, 1.0, scale)
        z = np.nan_to_num((rows.x - mean) / scale)
        line = LogisticRegression(max_iter=1000).fit(z, rows.is_fraud, rows.weight)
        return cls(mean, scale, line.coef_[0], float(line.intercept_[0]))

    def score(self, x: Floats32) -> Floats:
        """The logit."""
        logit: Floats = np.nan_to_num((x - self.mean) / self.scale) @ self.weight + self.bias
        return logit

    def probability(self, x: Floats32) -> Floats:
        """As it was fitted, not calibrated further."""
        share: Floats = np.exp(-np.logaddexp(0, -self.score(x)))
        return share
