"""From labelled events to a version in the model repository: split, fit, calibrate, measure, write."""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from services.training import evaluate
from services.training.additive import AdditiveModel, Floats32
from services.training.baselines import Logistic, ModelScorer, Scorer, SimpleRule
from services.training.card import model_cards
from services.training.data import DAY_MS, Events
from services.training.errors import TrainingError
from services.training.export import to_onnx
from services.training.fit import Plan, Recipe, Rows, calibrate, grow, plan
from services.training.repository import ModelRepository
from services.training.split import Bools, Split, Window, without_known_cards
from services.training.teacher import Lesson, TeacherRecipe, rounds_of
from weir.features import payments
from weir.features.payments import DEFAULT, FEATURES, FeatureSpec

_ORIGINS = {
    "weir": "events in Weir's own layout",
    "handbook": "events in the layout of the Fraud Detection Handbook",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Events with their features, split; what every scorer here is fitted and judged on."""

    events: Events
    x: Floats32
    features: tuple[str, ...]
    split: Split

    def known_rows(self, window: Window, *, honest_max: int, seed: int) -> Rows:
        """The window's rows with the labels known when the test begins.

        Raises:
            TrainingError: one class only.
        """
        chosen = window.rows(self.events.event_ms)
        known = self.events.known_frauds(self.split.test.start_ms)
        return Rows.of(self.x[chosen], known[chosen]).thinned(honest_max, seed)

    def test_rows(self, delay_days: int) -> Bools:
        """(n,) bool: the test window without cards known to be compromised."""
        span = self.split.test.end_ms - self.split.test.start_ms
        since = self.split.test.start_ms - delay_days * DAY_MS - span
        return without_known_cards(self.events, self.split.test, since)

    def measure(self, scorer: Scorer, rows: Bools, *, draws: int, seed: int) -> evaluate.Report:
        """The scorer's figures on these rows.

        Raises:
            TrainingError: the rows hold one class only.
        """
        x, events = self.x[rows], self.events
        sample = evaluate.Sample.of(
            scorer.score(x),
            events.is_fraud[rows],
            events.payments.account[rows],
            events.event_ms[rows],
            scorer.probability(x),
        )
        return evaluate.evaluate(sample, draws=draws, seed=seed)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, the plan it was grown by, and the rows it came from."""

    model: AdditiveModel
    plan: Plan
    train: Rows
    validation: Rows


def fit(table: Table, recipe: Recipe, *, honest_max: int, lesson: Lesson | None = None) -> Trained:
    """Plan and calibrate on the validation window, grow on the training window.

    Args:
        lesson: what it learns from a teacher beside the labels; None for the labels alone.

    Raises:
        TrainingError: a window holds one class only, or no feature tells anything.
    """
    split = table.split
    validation = table.known_rows(split.validation, honest_max=honest_max, seed=recipe.seed)
    tune = table.known_rows(split.tune, honest_max=honest_max, seed=recipe.seed)
    lesson = lesson or Lesson(TeacherRecipe(seed=recipe.seed, threads=recipe.threads), 0.0)
    lesson_rounds = rounds_of(tune, validation, table.features, lesson.teacher) if lesson.share else 0
    tune = lesson.of(tune, table.features, lesson_rounds)
    made = plan(tune, validation, table.features, recipe)
    tuned = calibrate(grow(tune, table.features, made, recipe), validation)
    if split.train == split.tune:
        return Trained(tuned, made, tune, validation)
    train = table.known_rows(split.train, honest_max=honest_max, seed=recipe.seed)
    train = lesson.of(train, table.features, lesson_rounds)
    grown = grow(train, table.features, made, recipe)
    model = AdditiveModel(grown.features, grown.tables, grown.base_logit, tuned.calibration)
    return Trained(model, made, train, validation)


def baselines(table: Table, recipe: Recipe, *, honest_max: int) -> dict[str, Scorer]:
    """The simple rule and logistic regression, fitted on the same rows as the model."""
    rows = table.known_rows(table.split.train, honest_max=honest_max, seed=recipe.seed)
    return {"rule": SimpleRule.fit(rows, table.features), "logistic": Logistic.fit(rows)}


def train_risk(
    table: Table,
    recipe: Recipe,
    repository: ModelRepository,
    *,
    version: str | None,
    replace: bool,
    command: str,
    origin: str | None = None,
    lesson: Lesson | None = None,
    honest_max: int,
    draws: int,
    spec: FeatureSpec = DEFAULT,
    created: str = "",
) -> tuple[Path, Mapping[str, Any]]:
    """Train, measure, write; the version's folder and what its model.json says.

    Args:
        version: a number, or None for the next one.
        command: how to make it again, for model.json and the card.
        origin: what the data is, for the same; None to say its layout.
        lesson: what it learns from a teacher beside the labels.
        created: date of the training, ISO 8601.
    Raises:
        TrainingError: the data cannot give a model, or the version exists. OSError: nothing was written.
    """
    version = version or repository.next_version("risk")
    if not (version.isdigit() and int(version) > 0):
        raise TrainingError(f"Version {version!r} is no number. Triton serves versions 1, 2, 3 and so on.")
    trained = fit(table, recipe, honest_max=honest_max, lesson=lesson)
    test = table.test_rows(spec.label_delay_days)
    scorers = {"model": ModelScorer(trained.model), **baselines(table, recipe, honest_max=honest_max)}
    reports = {
        name: table.measure(scorer, test, draws=draws, seed=recipe.seed).as_dict()
        for name, scorer in scorers.items()
    }
    moved = np.abs(trained.model.contributions(table.x[test])).mean(axis=0)
    events, split = table.events, table.split
    windows = {"train": split.train, "validation": split.validation}
    known = events.known_frauds(split.test.start_ms)
    chosen = {name: window.rows(events.event_ms) for name, window in windows.items()}
    whole = Window(int(events.event_ms[0]), int(events.event_ms[-1]) + 1)
    about: dict[str, Any] = {
        "name": "risk",
        "version": version,
        "features": list(table.features),
        "feature_spec": spec.id,
        "base_logit": float(np.float32(trained.model.base_logit)),
        "trained": {
            "created": created,
            "command": command,
            "code_version": code_version(),
            "seed": recipe.seed,
            "recipe": recipe.as_dict(),
            **({"lesson": lesson.as_dict()} if lesson is not None and lesson.share else {}),
            "origin": origin or _ORIGINS[events.origin],
            "data": {
                "layout": events.origin,
                "fingerprint": events.fingerprint,
                "rows": events.payments.row_count,
                "frauds": int(events.is_fraud.sum()),
                "accounts": len(np.unique(events.payments.account)),
                "first_day": str(whole).split("..")[0],
                "last_day": str(whole).split("..")[1],
            },
            "split": split.as_dict(),
            "label_delay_days": spec.label_delay_days,
            "rows": {name: int(rows.sum()) for name, rows in chosen.items()},
            "frauds": {name: int((rows & known).sum()) for name, rows in chosen.items()},
            "rounds": trained.plan.rounds,
            "rounds_pair": trained.plan.rounds_pair,
            # Not the plan's: pruning leaves out those that hardly move anything.
            "pairs": [
                [table.features[index] for index in each.features]
                for each in trained.model.tables
                if len(each.features) == 2
            ],
            "calibration": asdict(trained.model.calibration),
            "importance": {
                name: round(float(weight), 6) for name, weight in zip(table.features, moved, strict=True)
            },
        },
        "metrics": {
            "test": reports.pop("model"),
            "baselines": reports,
        },
    }
    graph = to_onnx(trained.model, name="risk", feature_spec=spec.id)
    folder = repository.write(graph, about, model_cards, replace=replace)
    repository.verify("risk", version, features=FEATURES if table.features == FEATURES else None)
    return folder, about


def code_version() -> str:
    """The package's version, and a hash of the code that a model's values depend on, without its words."""
    here = Path(__file__).parent
    names = ("additive", "data", "export", "fit", "prune", "split", "teacher")
    paths = [here / f"{name}.py" for name in names]
    paths += sorted(Path(payments.__file__).parent.glob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:]
        digest.update(path.name.encode() + b"\0" + ast.dump(tree).encode())
    return f"{package_version('weir')}+{digest.hexdigest()[:12]}"
