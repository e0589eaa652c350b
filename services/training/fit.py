"""From features and labels to an additive model: first each feature alone, then a few pairs on what is left.

Source of the two stages: Lou et al. 2013, Accurate intelligible models with pairwise interactions. Several
fits on drawn rows are averaged (Nori et al. 2019, explainable boosting), which costs nothing at serving time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from services.training import evaluate
from services.training.additive import AdditiveModel, Calibration, Floats, Floats32, from_lightgbm
from services.training.cluster import link
from services.training.errors import TrainingError
from services.training.prune import pruned

Bools = NDArray[np.bool_]
CALIBRATION_FRAUDS_MIN = 20  # fewer fix no curve: the logit's own sigmoid then stands
PAIRS_GAIN_MIN = (
    0.005  # share of the validation log loss that pairs must save to be worth their harder reading
)


@dataclass(frozen=True, slots=True)
class Rows:
    """x: (n, F) float32. is_fraud: (n,) bool. weight: (n,) float64. target: (n,) float64 in 0..1, or None.

    `target` is what to fit where that is softer than the label: a teacher's opinion of each row.
    """

    x: Floats32
    is_fraud: Bools
    weight: Floats
    target: Floats | None = None

    @classmethod
    def of(cls, x: Floats32, is_fraud: Bools) -> "Rows":
        """Rows that weigh 1 each.

        Raises:
            TrainingError: one class only, or a feature that is infinite.
        """
        fraud_count = int(is_fraud.sum())
        if fraud_count in (0, len(is_fraud)):
            raise TrainingError(
                f"{len(is_fraud):,} rows to fit on hold {fraud_count:,} known frauds: both are needed."
            )
        if np.isinf(x).any():
            raise TrainingError("A feature is infinite. Check the amounts and times of the payments.")
        return cls(x, is_fraud, np.ones(len(is_fraud)))

    def thinned(self, honest_max: int, seed: int) -> "Rows":
        """At most `honest_max` honest rows, each weighing for those left out; every fraud stays."""
        honest = np.flatnonzero(~self.is_fraud)
        if len(honest) <= honest_max:
            return self
        kept = np.random.default_rng(seed).choice(honest, honest_max, replace=False)
        rows = np.sort(np.concatenate([kept, np.flatnonzero(self.is_fraud)]))
        weight = np.where(self.is_fraud[rows], 1.0, len(honest) / honest_max)
        return Rows(
            self.x[rows],
            self.is_fraud[rows],
            weight,
            None if self.target is None else self.target[rows],
        )

    @property
    def label(self) -> Floats:
        """(n,) float64: what a model is to fit, the target where there is one."""
        return self.is_fraud.astype(np.float64) if self.target is None else self.target


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit. The same recipe, rows and seed give the same model, to the byte."""

    seed: int = 7
    bags: int = 3
    threads: int = 0
    rounds_max: int = 1000
    patience: int = 50
    learning_rate: float = 0.08
    leaves: int = 3
    leaves_pair: int = 8
    leaf_rows_min: int = 30
    l2: float = 1.0
    bins: int = 255
    bins_pair: int = 32
    pairs_max: int = 64
    # Below it nothing is lost that the figures show, and a row takes less time.
    prune: float = 0.003
    # Rising functions of another feature: trees gain nothing from them, and reasons would be torn in two.
    left_out: tuple[str, ...] = ("amount_log",)
    # More reported fraud never speaks for a payment, however few terminals were all fraud in training.
    rising: tuple[str, ...] = (
        "account_fraud_count_30d",
        "terminal_risk_1d",
        "terminal_risk_7d",
        "terminal_risk_30d",
        "terminal_risk_since_fraud",
        "terminal_fraud_early",
        "terminal_risk_early",
    )

    def quick(self) -> "Recipe":
        """A coarser fit, within seconds: to try things out."""
        return replace(self, bags=1, rounds_max=150, learning_rate=0.15, pairs_max=min(self.pairs_max, 4))

    def as_dict(self) -> dict[str, Any]:
        """All settings that change the model; threads do not."""
        return {name: value for name, value in asdict(self).items() if name != "threads"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the validation rows decided: rounds of each stage, and the pairs, by feature index."""

    rounds: int
    pairs: tuple[tuple[int, int], ...] = ()
    rounds_pair: int = 0


def plan(train: Rows, validation: Rows, features: Sequence[str], recipe: Recipe) -> Plan:
    """Rounds by early stopping on the validation rows; pairs only if they pay there."""
    alone = _Stage(train, features, recipe, recipe.bins).fit(
        _singles(features, recipe), recipe.leaves, recipe.rounds_max, recipe.seed, validation=validation
    )
    rounds = _rounds(alone)
    if not recipe.pairs_max:
        return Plan(rounds)
    base = alone.predict(train.x, raw_score=True)
    base_validation = alone.predict(validation.x, raw_score=True)
    pairs = _promising_pairs(train, base, features, recipe)
    if not pairs:
        return Plan(rounds)
    together = _Stage(train, features, recipe, recipe.bins_pair, base).fit(
        pairs, recipe.leaves_pair, recipe.rounds_max, recipe.seed,
        validation=validation, validation_base=base_validation,
    )  # fmt: skip
    before = _log_loss(base_validation, validation)
    after = _log_loss(base_validation + together.predict(validation.x, raw_score=True), validation)
    if after > before * (1 - PAIRS_GAIN_MIN):
        return Plan(rounds)
    if len(pairs) == len(_every_pair(features, recipe)):
        # Nothing was chosen beforehand: those that no tree joined are no part of the plan.
        tables = from_lightgbm([together.dump_model()], features).tables
        pairs = [(table.features[0], table.features[1]) for table in tables if len(table.features) == 2]
    return Plan(rounds, tuple(pairs), _rounds(together))


@dataclass(frozen=True, slots=True)
class _Bags:
    """Fits on one data set that differ in their seed: trees of `groups`, from the raw score `base`."""

    groups: Sequence[Sequence[int]]
    leaves: int
    rounds: int
    bins: int
    base: Floats | None = None


@dataclass(frozen=True, slots=True)
class _Grown:
    """dump: LightGBM's own. raw: (n,) float64, its score of its training rows; (0,) if not asked for."""

    dump: Mapping[str, Any]
    raw: Floats


def grow(train: Rows, features: Sequence[str], made: Plan, recipe: Recipe) -> AdditiveModel:
    """The model that the plan describes, averaged over the bags, its reasons told against `train`.

    On a cluster that was joined, the bags are the workers'; the model is the same to the byte.
    """
    alone = _Bags(_singles(features, recipe), recipe.leaves, made.rounds, recipe.bins)
    grown = _fits(train, features, recipe, alone, scored=bool(made.pairs))
    dumps = [each.dump for each in grown]
    if made.pairs:
        base = np.mean([each.raw for each in grown], axis=0)
        together = _Bags(made.pairs, recipe.leaves_pair, made.rounds_pair, recipe.bins_pair, base)
        dumps += [each.dump for each in _fits(train, features, recipe, together, scored=False)]
    model = from_lightgbm(dumps, features, weight=1 / recipe.bags)
    # Frauds are all kept when rows are thinned, so the background is drawn back to their true share.
    share = train.weight / train.weight.max()
    drawn = np.random.default_rng(recipe.seed).random(len(share)) <= share
    model = model.explained_by(train.x[drawn])
    if recipe.prune:
        model = pruned(model, train.x, train.weight, recipe.prune)
    if not model.tables:
        raise TrainingError("No feature tells fraud from honest payments here. Give more events.")
    return model


def _fits(train: Rows, features: Sequence[str], recipe: Recipe, bags: _Bags, *, scored: bool) -> list[_Grown]:
    """A fit for each bag, in their order: here, or on the workers of a cluster."""
    cluster = link.current()
    if cluster is None or recipe.bags == 1:
        return _fit_bags(train, bags, tuple(features), recipe, scored, range(recipe.bags))
    # A worker bins the rows once for all its bags.
    count = min(cluster.thread_count, recipe.bags)
    runs = [range(first, recipe.bags, count) for first in range(count)]
    tasks = [(tuple(features), recipe, scored, run) for run in runs]
    made = cluster.each(_fit_bags, (train, bags), tasks)
    return [made[bag % count][bag // count] for bag in range(recipe.bags)]


def _fit_bags(
    train: Rows, bags: _Bags, features: Sequence[str], recipe: Recipe, scored: bool, run: Iterable[int]
) -> list[_Grown]:
    stage = _Stage(train, features, recipe, bags.bins, bags.base)
    boosters = [stage.fit(bags.groups, bags.leaves, bags.rounds, recipe.seed + bag) for bag in run]
    return [
        _Grown(
            booster.dump_model(num_iteration=-1),
            booster.predict(train.x, raw_score=True) if scored else np.empty(0),
        )
        for booster in boosters
    ]


def calibrate(model: AdditiveModel, rows: Rows) -> AdditiveModel:
    """The same model with a probability fitted on rows that it has not seen.

    Beta calibration; where its curve would not rise, Platt's scaling; with too few frauds, none.
    Source: Kull, Silva Filho, Flach 2017, Beta calibration.
    """
    if int(rows.is_fraud.sum()) < CALIBRATION_FRAUDS_MIN:
        return replace(model, calibration=Calibration())
    logit = model.logit(rows.x)
    log_p, log_q = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)

    def fitted(columns: Floats) -> tuple[Floats, float]:
        line = LogisticRegression(C=1e3, max_iter=1000).fit(columns, rows.is_fraud, rows.weight)
        return line.coef_[0], float(line.intercept_[0])

    (a, b), c = fitted(np.column_stack([log_p, -log_q]))
    if a < 0 or b < 0:
        (a,), c = fitted(logit[:, None])
        b = a = max(a, 0.0)
    return replace(model, calibration=Calibration(float(a), float(b), c))


class _Stage:
    """One LightGBM data set, binned once, and fits on it; `base` is the raw score it starts from."""

    def __init__(
        self, train: Rows, features: Sequence[str], recipe: Recipe, bins: int, base: Floats | None = None
    ) -> None:
        self.recipe = recipe
        self.shared: dict[str, Any] = {
            # The same loss in both; "binary" takes no label between 0 and 1.
            "objective": "binary" if train.target is None else "cross_entropy",
            "learning_rate": recipe.learning_rate,
            "min_data_in_leaf": recipe.leaf_rows_min,
            "lambda_l2": recipe.l2,
            "max_bin": bins,
            "monotone_constraints": [int(name in recipe.rising) for name in features],
            "num_threads": recipe.threads,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }
        # Binned now and by the first bag's seed, whichever bag comes first: many rows are binned by a sample.
        self.data = lightgbm.Dataset(
            train.x, train.label, weight=train.weight, init_score=base,
            params=self.shared | {"seed": recipe.seed}, free_raw_data=False,
        ).construct()  # fmt: skip

    def fit(
        self,
        groups: Sequence[Sequence[int]],
        leaves: int,
        rounds: int,
        seed: int,
        *,
        validation: Rows | None = None,
        validation_base: Floats | None = None,
    ) -> Any:
        parameters = self.shared | {
            "num_leaves": leaves,
            "interaction_constraints": [list(group) for group in groups],
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "seed": seed,
        }
        if validation is None:
            return lightgbm.train(parameters, self.data, rounds)
        judge = lightgbm.Dataset(
            validation.x, validation.is_fraud.astype(np.int8), weight=validation.weight,
            init_score=validation_base, reference=self.data,
        )  # fmt: skip
        stop = lightgbm.early_stopping(self.recipe.patience, verbose=False)
        metric = "binary_logloss" if self.shared["objective"] == "binary" else "cross_entropy"
        return lightgbm.train(
            parameters | {"metric": metric}, self.data, rounds, valid_sets=[judge], callbacks=[stop]
        )


def _singles(features: Sequence[str], recipe: Recipe) -> list[list[int]]:
    return [[index] for index, name in enumerate(features) if name not in recipe.left_out]


def _every_pair(features: Sequence[str], recipe: Recipe) -> list[tuple[int, int]]:
    return list(combinations([index for (index,) in _singles(features, recipe)], 2))


def _rounds(booster: Any) -> int:
    return max(int(booster.best_iteration or booster.current_iteration()), 1)


def _promising_pairs(
    train: Rows, base: Floats, features: Sequence[str], recipe: Recipe
) -> list[tuple[int, int]]:
    """The pairs that free trees of two splits use most on what single features left unexplained.

    Where `pairs_max` has room for all there are, all.
    """
    every = _every_pair(features, recipe)
    if recipe.pairs_max >= len(every):
        return every
    free = _Stage(train, features, recipe, recipe.bins_pair, base).fit(
        [[index for (index,) in _singles(features, recipe)]], 3, min(100, recipe.rounds_max), recipe.seed
    )
    gains: Counter[tuple[int, int]] = Counter()
    for tree in free.dump_model()["tree_info"]:
        gain: Counter[int] = Counter()
        _collect_gain(tree["tree_structure"], gain)
        if len(gain) == 2:
            first, second = sorted(gain)
            gains[first, second] += min(gain.values())
    return [pair for pair, _ in gains.most_common(recipe.pairs_max)]


def _collect_gain(node: Mapping[str, Any], gain: Counter[int]) -> None:
    if "split_feature" in node:
        gain[int(node["split_feature"])] += node["split_gain"]
        _collect_gain(node["left_child"], gain)
        _collect_gain(node["right_child"], gain)


def _log_loss(logit: Floats, rows: Rows) -> float:
    return evaluate.log_loss(Calibration()(logit), rows.is_fraud, rows.weight)
