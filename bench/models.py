"""`python -m bench.models --data DIR`: our recipe beside what a bank would try first, on the same rows.

    rule, logistic    as `weir evaluate risk` has them
    random forest     scikit-learn, 200 trees
    network           scikit-learn, two layers of 64, standardised features
    xgboost           XGBoost, rounds chosen on the validation window
    boosting          LightGBM without the bounds that make reasons exact: what exact reasons cost
    recipe            the additive model that `weir train risk` makes; beside it with more pairs of features

The rows are those of a protocol of `weir evaluate risk`: fitted on what was known, judged later. Rounds of
boosting are chosen on the validation window, the rest as the libraries have it. Each is fitted with several
seeds; told is the median seed with its bootstrap interval over accounts, and the range of the seeds.

Where no model has seen the validation window (`later`), money is told too: what each saves a day against
letting everything pass, with the thresholds that were cheapest for it on the validation window within
`--reviews-day`, at the costs of `weir evaluate thresholds`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import xgboost
from rich.console import Console
from rich.table import Table as Printed
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import report
from services.training import split
from services.training.additive import Floats, Floats32
from services.training.baselines import Logistic, ModelScorer, Scorer, SimpleRule
from services.training.data import read_events
from services.training.evaluate import Interval
from services.training.fit import Recipe, Rows
from services.training.split import Bools
from services.training.thresholds import Costs, Judged, best_thresholds, outcome
from services.training.train import Table, fit
from weir.errors import WeirError
from weir.features.payments import DEFAULT, FEATURES

HONEST_MAX = 300_000
DRAWS = 200
FIGURES = ("average_precision", "auc_roc", "card_precision_100")


@dataclass(frozen=True, slots=True)
class Outside:
    """A classifier of another library; its scores are probabilities."""

    predict: Callable[[Floats32], Floats]

    def score(self, x: Floats32) -> Floats:
        """Probability, 0 to 1."""
        return self.predict(x)

    def probability(self, x: Floats32) -> Floats:
        """The same."""
        return self.predict(x)


def _forest(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    made = RandomForestClassifier(200, min_samples_leaf=5, n_jobs=-1, random_state=seed)
    made.fit(train.x, train.is_fraud, train.weight)
    return Outside(lambda x: np.asarray(made.predict_proba(x)[:, 1], np.float64))


def _network(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    # It takes no weights: the honest rows are drawn, so only the order of its scores is comparable.
    made = make_pipeline(
        StandardScaler(), MLPClassifier((64, 64), max_iter=30, early_stopping=True, random_state=seed)
    ).fit(train.x, train.is_fraud)
    return Outside(lambda x: np.asarray(made.predict_proba(x)[:, 1], np.float64))


def _xgboost(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    parameters: dict[str, Any] = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "learning_rate": 0.05,
        "max_depth": 5,
        "subsample": 0.7,
        "colsample_bytree": 0.7,
        "tree_method": "hist",
        "seed": seed,
    }
    tune = table.known_rows(table.split.tune, honest_max=HONEST_MAX, seed=seed)
    judge = xgboost.DMatrix(validation.x, validation.is_fraud, weight=validation.weight)
    tuned = xgboost.train(
        parameters,
        xgboost.DMatrix(tune.x, tune.is_fraud, weight=tune.weight),
        1000,
        evals=[(judge, "validation")],
        early_stopping_rounds=50,
        verbose_eval=False,
    )
    whole = xgboost.DMatrix(train.x, train.is_fraud, weight=train.weight)
    made = xgboost.train(parameters, whole, tuned.best_iteration + 1)
    return Outside(lambda x: np.asarray(made.inplace_predict(x), np.float64))


def _boosting(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    parameters: dict[str, Any] = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 50,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "metric": "binary_logloss",
        "verbosity": -1,
        "seed": seed,
    }
    tune = table.known_rows(table.split.tune, honest_max=HONEST_MAX, seed=seed)
    data = lightgbm.Dataset(tune.x, tune.is_fraud.astype(np.int8), weight=tune.weight)
    judge = lightgbm.Dataset(
        validation.x, validation.is_fraud.astype(np.int8), weight=validation.weight, reference=data
    )
    stop = lightgbm.early_stopping(50, verbose=False)
    tuned = lightgbm.train(parameters, data, 1000, valid_sets=[judge], callbacks=[stop])
    whole = lightgbm.Dataset(train.x, train.is_fraud.astype(np.int8), weight=train.weight)
    made = lightgbm.train(parameters, whole, max(tuned.best_iteration, 1))
    return Outside(lambda x: np.asarray(made.predict(x), np.float64))


def _recipe_of(pairs: int) -> Callable[[Table, Rows, Rows, int], Scorer]:
    return lambda table, train, validation, seed: ModelScorer(
        fit(table, Recipe(seed=seed, pairs_max=pairs), honest_max=HONEST_MAX).model
    )


def _logistic(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    return Logistic.fit(train)


def _rule(table: Table, train: Rows, validation: Rows, seed: int) -> Scorer:
    return SimpleRule.fit(train, table.features)


WAYS: dict[str, Callable[[Table, Rows, Rows, int], Scorer]] = {
    "rule": _rule,
    "logistic": _logistic,
    "random forest": _forest,
    "network": _network,
    "xgboost": _xgboost,
    "boosting": _boosting,
    "recipe": _recipe_of(Recipe().pairs_max),
    "recipe, 16 pairs": _recipe_of(16),
    "recipe, all pairs": _recipe_of(len(FEATURES) ** 2),
}


def saved_day(table: Table, scorer: Scorer, judged: Bools, reviews_day: float) -> float:
    """Money saved a day in the judged rows, by the thresholds that the validation window chose."""
    costs = Costs()
    before = Judged.of(table, scorer, table.split.validation.rows(table.events.event_ms))
    best = best_thresholds(before, costs, reviews_day=reviews_day)
    return outcome(Judged.of(table, scorer, judged), best, costs).saved_day


def measure(
    table: Table, seeds: Sequence[int], ways: Sequence[str], reviews_day: float | None
) -> list[list[str]]:
    """A row for each way: the median seed's figures with their intervals, and the range of the seeds.

    Args:
        reviews_day: what people can look at a day, for the money; None for no money.
    """
    judged = table.test_rows(DEFAULT.label_delay_days)
    found: dict[str, list[Mapping[str, Interval]]] = {name: [] for name in ways}
    saved: dict[str, list[float]] = {name: [] for name in ways}
    for seed in seeds:
        train = table.known_rows(table.split.train, honest_max=HONEST_MAX, seed=seed)
        validation = table.known_rows(table.split.validation, honest_max=HONEST_MAX, seed=seed)
        for name, made in found.items():
            scorer = WAYS[name](table, train, validation, seed)
            made.append(table.measure(scorer, judged, draws=DRAWS, seed=seed).metrics)
            if reviews_day is not None:
                saved[name].append(saved_day(table, scorer, judged, reviews_day))
    rows = []
    for name, made in found.items():
        cells = [name]
        for figure in FIGURES:
            values = [each[figure].value for each in made]
            middle = statistics.median_low(values)
            told = made[values.index(middle)][figure]
            cells.append(f"{told.value:.3f} ({told.low:.3f}-{told.high:.3f})")
            cells.append(f"{min(values):.3f}-{max(values):.3f}")
        if money := saved[name]:
            cells.append(f"{statistics.median_low(money):,.0f}")
            cells.append(f"{min(money):,.0f}-{max(money):,.0f}")
        rows.append(cells)
    return rows


def main(words: Sequence[str]) -> int:
    """Fit, judge, print."""
    asked = argparse.ArgumentParser(prog="python -m bench.models", description="Models on the same rows.")
    asked.add_argument("--data", type=Path, required=True, help="folder of labelled events (Parquet)")
    asked.add_argument("--protocol", choices=("later", "handbook", "preceding"), default="later")
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument(
        "--reviews-day", type=float, default=200, help="for the money: what people can look at"
    )
    asked.add_argument("--only", default="; ".join(WAYS), help="some of: " + "; ".join(WAYS))
    given = asked.parse_args(words)
    # A file is no narrow terminal: figures are not to be cut off in it.
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        events = read_events(given.data)
        protocols: dict[str, Callable[[], split.Split]] = {
            "later": lambda: split.by_time(events.event_ms, delay_days=DEFAULT.label_delay_days),
            "handbook": split.handbook,
            "preceding": lambda: split.handbook_preceding(int(events.event_ms[0])),
        }
        parts = protocols[given.protocol]()
        table = Table(events, events.features(), FEATURES, parts)
        # A model that has met the validation window would choose its thresholds on what it remembers.
        money = parts.train == parts.tune
        rows = measure(
            table,
            range(7, 7 + given.seeds),
            [each.strip() for each in given.only.split(";")],
            given.reviews_day if money else None,
        )
    except WeirError as error:
        console.print(str(error))
        return int(error.exit_code)
    console.print(report.machine())
    printed = Printed(
        title=f"{given.protocol}: fitted on {parts.train}, judged on {parts.test}, {given.seeds} seeds"
    )
    printed.add_column("model")
    for figure in ("average precision", "AUC ROC", "card precision@100"):
        printed.add_column(f"{figure}, median (95 %)", justify="right")
        printed.add_column("seeds", justify="right")
    if money:
        printed.add_column(f"saved a day, {given.reviews_day:g} reviews", justify="right")
        printed.add_column("seeds", justify="right")
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
