"""A teacher: as many features together as it likes, so it may see more, and its reasons are not exact.

It never serves. It is what the additive student is measured against, and what it can learn from: a teacher's
opinion of a payment tells more than the bare label, above all of frauds that nobody reported and of honest
payments that look like fraud. A teacher's opinion of rows that it was fitted on is mostly memory, so the
student learns from opinions on rows that the teacher had not seen.

Sources: Hinton, Vinyals, Dean 2015, Distilling the knowledge in a neural network; Tan, Caruana, Hooker, Lou
2018, Distill-and-compare (additive students); Breiman 1996, Stacked regressions (opinions out of fold).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightgbm
import numpy as np

from services.training.additive import Floats, Floats32
from services.training.cluster import link
from services.training.fit import Recipe, Rows

FOLDS = 4


@dataclass(frozen=True, slots=True)
class TeacherRecipe:
    """How to fit one. The same recipe, rows and seed give the same teacher."""

    seed: int = 7
    bags: int = 3
    threads: int = 0
    rounds_max: int = 1500
    patience: int = 50
    learning_rate: float = 0.05
    leaves: int = 31
    leaf_rows_min: int = 50
    columns: float = 0.7
    l2: float = 5.0
    rising: tuple[str, ...] = Recipe().rising

    def as_dict(self) -> dict[str, Any]:
        """All settings that change the model; threads do not."""
        return {name: value for name, value in asdict(self).items() if name != "threads"}


@dataclass(frozen=True, slots=True)
class Teacher:
    """The mean of a few boosters' raw scores."""

    boosters: tuple[Any, ...]

    def score(self, x: Floats32) -> Floats:
        """(n,) float64, logit units, not calibrated."""
        total: Floats = np.mean([booster.predict(x, raw_score=True) for booster in self.boosters], axis=0)
        return total

    def probability(self, x: Floats32) -> Floats:
        """(n,) float64, 0 to 1, not calibrated."""
        share: Floats = np.exp(-np.logaddexp(0, -self.score(x)))
        return share


def rounds_of(train: Rows, validation: Rows, features: Sequence[str], recipe: TeacherRecipe) -> int:
    """How many rounds are best on the validation rows."""
    data = _data(train)
    judge = lightgbm.Dataset(
        validation.x, validation.is_fraud.astype(np.float64), weight=validation.weight, reference=data
    )
    stop = lightgbm.early_stopping(recipe.patience, verbose=False)
    made = lightgbm.train(
        _parameters(features, recipe), data, recipe.rounds_max, valid_sets=[judge], callbacks=[stop]
    )
    return max(int(made.best_iteration), 1)


def fit_teacher(train: Rows, features: Sequence[str], rounds: int, recipe: TeacherRecipe) -> Teacher:
    """A teacher of that many rounds, averaged over its bags."""
    data = _data(train)
    return Teacher(
        tuple(
            lightgbm.train(_parameters(features, replace(recipe, seed=recipe.seed + bag)), data, rounds)
            for bag in range(recipe.bags)
        )
    )


def opinions(rows: Rows, features: Sequence[str], rounds: int, recipe: TeacherRecipe) -> Floats:
    """(n,) float64, 0 to 1: what a teacher thinks of each row that it has not seen.

    The rows lie in order of time. They are cut into blocks; a block's opinions come from a teacher of the
    others, which has met neither the payments nor most of the fraud waves in it. On a cluster that was
    joined, each block is a task of its own.
    """
    cluster = link.current()
    tasks = [(tuple(features), rounds, replace(recipe, bags=1), fold) for fold in range(FOLDS)]
    if cluster is None:
        return np.concatenate([_opinions_of_block(rows, *task) for task in tasks])
    return np.concatenate(cluster.each(_opinions_of_block, (rows,), tasks))


def _opinions_of_block(
    rows: Rows, features: Sequence[str], rounds: int, recipe: TeacherRecipe, fold: int
) -> Floats:
    inside = np.arange(len(rows.x)) * FOLDS // len(rows.x) == fold
    others = Rows(rows.x[~inside], rows.is_fraud[~inside], rows.weight[~inside])
    return fit_teacher(others, features, rounds, recipe).probability(rows.x[inside])


def taught(rows: Rows, opinion: Floats, share: float) -> Rows:
    """The same rows, to be fitted to `share` of the opinion and 1 - `share` of the label."""
    if not share:
        return rows
    return replace(rows, target=share * opinion + (1 - share) * rows.is_fraud)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a student learns beside the labels: `share`, 0 to 1, of this teacher's opinion."""

    teacher: TeacherRecipe
    share: float

    def of(self, rows: Rows, features: Sequence[str], rounds: int) -> Rows:
        """The rows with the teacher's opinion in their target."""
        if not self.share:
            return rows
        return taught(rows, opinions(rows, features, rounds, self.teacher), self.share)

    def as_dict(self) -> dict[str, Any]:
        """For model.json."""
        return {"share": self.share, "teacher": self.teacher.as_dict()}


def _data(rows: Rows) -> Any:
    return lightgbm.Dataset(rows.x, rows.is_fraud.astype(np.float64), weight=rows.weight, free_raw_data=False)


def _parameters(features: Sequence[str], recipe: TeacherRecipe) -> dict[str, Any]:
    return {
        "objective": "binary",
        "metric": "binary_logloss",
        "learning_rate": recipe.learning_rate,
        "num_leaves": recipe.leaves,
        "min_data_in_leaf": recipe.leaf_rows_min,
        "feature_fraction": recipe.columns,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": recipe.l2,
        "monotone_constraints": [int(name in recipe.rising) for name in features],
        "num_threads": recipe.threads,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
        "seed": recipe.seed,
    }
