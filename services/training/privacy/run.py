"""A private model of a folder's events: which rows, which features, what it costs, what may be told of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.training import evaluate
from services.training.additive import AdditiveModel
from services.training.baselines import ModelScorer
from services.training.errors import TrainingError
from services.training.privacy.accountant import mu_of
from services.training.privacy.boost import PrivateModel, PrivateRecipe, Protected, boost
from services.training.privacy.noise import Noise
from services.training.privacy.units import PER_ACCOUNT, History, Unit
from services.training.split import Split, Window
from services.training.train import Table
from weir.features.payments import DEFAULT

_RECIPE = PrivateRecipe()


@dataclass(frozen=True, slots=True)
class Plan:
    """One private training, fixed before the data is seen."""

    epsilon: float
    delta: float
    unit: Unit = Unit.ACCOUNT
    per_account: int = PER_ACCOUNT
    history: History = History.OWN
    recipe: PrivateRecipe = _RECIPE

    def __post_init__(self) -> None:
        mu_of(self.epsilon, self.delta)
        if self.per_account < 1:
            raise TrainingError(f"At least 1 payment of an account must be used, not {self.per_account}.")

    @property
    def mu(self) -> float:
        """The cost to one unit."""
        return mu_of(self.epsilon, self.delta)

    @property
    def covers(self) -> str:
        """What exactly the guarantee is about, for a person."""
        if self.unit is Unit.PAYMENT:
            return "one row of the training table; what other rows' features remember of it is not covered"
        if self.history is History.OWN:
            return "one account: all its payments, their labels, and what its features remember of both"
        return (
            "one account's rows of the training table; what terminals' features remember of it is not covered"
        )

    def fit(self, table: Table, noise: Noise) -> PrivateModel:
        """The model, from every row whose label is known when the test begins: nothing is kept for tuning.

        Raises:
            TrainingError: a feature is infinite.
        """
        chosen = learning(table.split).rows(table.events.event_ms)
        known = table.events.known_frauds(table.split.test.start_ms)[chosen]
        account = table.events.payments.account[chosen]
        rows = Protected.of(table.x[chosen], known, account, self.unit, self.per_account, noise)
        return boost(
            rows, table.features, self.mu, self.recipe.without(self.history.left_out(table.features)), noise
        )

    def statement(self, made: PrivateModel, *, spend: str | None) -> dict[str, Any]:
        """What may be told with the model: no exact count, figure or fingerprint of the data is in it.

        Args:
            spend: the ledger's id of the run.
        """
        return {
            "private": made.is_private,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "mu": made.mu,
            "unit": self.unit.value,
            "neighbours": f"one {self.unit.value} more or less",
            "covers": self.covers,
            "per_account": self.per_account if self.unit is Unit.ACCOUNT else None,
            "mechanism": "Gaussian noise on counts and on leaf sums of cyclic boosting; public bins; mu-GDP",
            "releases": made.releases,
            "noise": {"counts": made.noise_counts, "leaf": made.noise_leaf, "clip": made.clip},
            "noisy_rows": round(made.rows),
            "calibration": "none",
            "recipe": self.recipe.without(self.history.left_out(made.model.features)).as_dict(),
            "spend": spend,
        }


def learning(split: Split) -> Window:
    """The training and the validation window with the days between: a private model is not tuned on them."""
    return Window(split.train.start_ms, split.validation.end_ms)


@dataclass(frozen=True, slots=True)
class Point:
    """What noise costs: figures on the test week over several runs, mean, lowest and highest."""

    epsilon: float | None
    unit: str
    average_precision: tuple[float, float, float]
    auc_roc: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("mean", "lowest", "highest")
        return {
            "epsilon": self.epsilon,
            "unit": self.unit,
            "average_precision": dict(zip(names, self.average_precision, strict=True)),
            "auc_roc": dict(zip(names, self.auc_roc, strict=True)),
        }


def point(table: Table, models: Sequence[AdditiveModel], epsilon: float | None, unit: str) -> Point:
    """The figures of these models on the test week; nothing about them is private."""
    rows = table.test_rows(DEFAULT.label_delay_days)
    x, is_fraud = table.x[rows], table.events.is_fraud[rows]
    rankings = [evaluate.Ranking(ModelScorer(model).score(x), is_fraud) for model in models]
    precision = np.array([ranking.average_precision() for ranking in rankings])
    area = np.array([ranking.auc_roc() for ranking in rankings])
    return Point(epsilon, unit, _spread(precision), _spread(area))


def write_pair(out: Path, graph: bytes, statement: bytes) -> Path:
    """The model at `out` and its statement beside it, `.json`; the statement's path.

    Raises:
        OSError: the disk fails; neither file is there under its name, or the statement alone.
    """
    beside = out.with_suffix(".json")
    for path, content in ((beside, statement), (out, graph)):
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    return beside


def _spread(values: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float, float]:
    return float(values.mean()), float(values.min()), float(values.max())
