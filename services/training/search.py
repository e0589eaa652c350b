"""A search for the teacher's and the student's settings, on weeks that all lie before the test week.

Each trial is judged by the mean average precision over a few validation weeks, each with a model of what
precedes it. First the teacher is searched for; its opinions then teach the students that are tried, and how
much they listen is searched for as well.

Everything is in one journal file, written trial by trial: a search that was killed goes on where it was, and
several processes may search side by side in one folder. On a cluster, its workers try as many at once as they
have threads, a fold a task; the journal stays here.

Source: Akiba et al. 2019, Optuna; Bergmeir and Benitez 2012 (evaluation by rolling origin).
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from services.training import evaluate
from services.training.additive import Floats
from services.training.cluster import link
from services.training.cluster.trials import Goal, run_trials
from services.training.data import DAY_MS
from services.training.errors import TrainingError
from services.training.fit import Recipe, Rows, grow, plan
from services.training.split import Window
from services.training.teacher import Lesson, TeacherRecipe, fit_teacher, opinions, rounds_of, taught
from services.training.train import Table

JOURNAL, LOCK = "journal.log", "running.lock"
FOUND = "found.json"
TRAIN_DAYS_MIN = 7

Progress = Callable[[str, int, float], None]
"""Called after each trial: which study, trials done, the best value so far."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A candidate of `tune` is judged on `validation`."""

    tune: Window
    validation: Window


def folds(table: Table, count: int) -> list[Fold]:
    """The split's own validation week and those before it, the latest first, while there is room to train."""
    split, length = table.split, table.split.validation.end_ms - table.split.validation.start_ms
    out = []
    for back in range(count):
        shift = back * length
        tune = Window(split.tune.start_ms, split.tune.end_ms - shift)
        if back and tune.end_ms - tune.start_ms < TRAIN_DAYS_MIN * DAY_MS:
            break
        out.append(Fold(tune, Window(split.validation.start_ms - shift, split.validation.end_ms - shift)))
    return out


@dataclass(frozen=True, slots=True)
class Rated:
    """The rows of one fold."""

    train: Rows
    validation: Rows


class Search:
    """One search, in a folder of its own.

    Raises:
        TrainingError: the folder holds a search on other data, other weeks or other features.
    """

    def __init__(
        self, table: Table, folder: Path, *, fold_count: int, honest_max: int, seed: int, threads: int
    ) -> None:
        self.table, self.folder, self.seed, self.threads = table, folder, seed, threads
        self.folds = folds(table, fold_count)
        self.rows = [
            Rated(
                table.known_rows(fold.tune, honest_max=honest_max, seed=seed),
                table.known_rows(fold.validation, honest_max=honest_max, seed=seed),
            )
            for fold in self.folds
        ]
        self._held: list[Any] | None = None
        self._opinions: list[Any] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with (folder / LOCK).open("w") as lock:
            if _alone(lock):
                _mend(folder / JOURNAL)
        journal = str(folder / JOURNAL)
        self.storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))

    def run(self, trials: int, *, minutes: float, progress: Progress) -> Mapping[str, Any]:
        """What was found: as `FOUND` says it. Half of the trials are the teacher's, half the student's.

        Args:
            trials: in all, those of earlier runs counted.
            minutes: no trial begins after that; what was found till then stands.
        """
        until = time.monotonic() + 60 * minutes
        teacher, student = self._study("teacher"), self._study("student")
        with (self.folder / LOCK).open("w") as lock:
            if _alone(lock):
                for study in (teacher, student):
                    self._take_up(study)
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._trials(teacher, self._teacher_goal, trials // 2, until, progress)
            if _done(teacher):
                self._trials(student, self._student_goal, trials - trials // 2, until, progress)
        if not _done(student):
            raise TrainingError(
                f"No student was tried within {minutes:g} minutes. What was done is kept in {self.folder}: "
                "call it again to go on."
            )
        return self._write(teacher, student)

    def _study(self, name: str) -> optuna.Study:
        about = {
            "fingerprint": self.table.events.fingerprint,
            "features": list(self.table.features),
            "folds": [[str(fold.tune), str(fold.validation)] for fold in self.folds],
        }
        study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            sampler=optuna.samplers.TPESampler(seed=self.seed, multivariate=True, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            direction="maximize",
            load_if_exists=True,
        )
        found = study.user_attrs.get("about")
        if found is None:
            study.set_user_attr("about", about)
            # What a person would take without a search is tried first, so a search never ends below it.
            study.enqueue_trial(_TEACHER_START if name == "teacher" else _STUDENT_START)
        elif found != about:
            raise TrainingError(
                f"{self.folder} holds a search on other events, weeks or features. Take another folder."
            )
        return study

    def _trials(
        self, study: optuna.Study, goal: Callable[[], Goal], count: int, until: float, progress: Progress
    ) -> None:
        def more(running: int) -> bool:
            return len(_done(study)) + running < count and time.monotonic() < until

        def told() -> None:
            progress(study.study_name, len(_done(study)), _best(study))

        if not more(0):
            return
        sought, cluster = goal(), link.current()
        if cluster is not None:
            run_trials(cluster, study, sought, more, told)
            return
        while more(0):
            study.optimize(sought, n_trials=1)
            told()

    def _take_up(self, study: optuna.Study) -> None:
        """What a search that was killed was at is tried anew."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(dict(trial.params))

    def _teacher_goal(self) -> Goal:
        return Goal(
            lambda trial: self._teacher(_suggest_teacher(trial)),
            _teacher_value,
            [(rows, self.table.features) for rows in self._rows_held()],
        )

    def _student_goal(self) -> Goal:
        def suggest(trial: optuna.Trial) -> tuple[Recipe, float]:
            chosen = _suggest_student(trial)
            share = chosen.pop("share")
            return replace(self._student(chosen), bags=1), share

        held = zip(self._rows_held(), self._taught(), strict=True)
        return Goal(suggest, _student_value, [(rows, self.table.features, opinion) for rows, opinion in held])

    def _rows_held(self) -> Sequence[Any]:
        """The rows of each fold; where there is a cluster, as its workers hold them."""
        cluster = link.current()
        if cluster is None:
            return self.rows
        if self._held is None:
            self._held = [cluster.share(rows) for rows in self.rows]
        return self._held

    def _taught(self) -> list[Any]:
        """The best teacher's opinion of each fold's training rows; made once a process."""
        if self._opinions is None:
            recipe, cluster = self._teacher(self._study("teacher").best_params), link.current()
            of_fold = _opinion if cluster is None else partial(cluster.submit, _opinion)
            self._opinions = [of_fold(rows, self.table.features, recipe) for rows in self._rows_held()]
        return self._opinions

    def _teacher(self, chosen: Mapping[str, Any]) -> TeacherRecipe:
        return TeacherRecipe(seed=self.seed, threads=self.threads, **chosen)

    def _student(self, chosen: Mapping[str, Any]) -> Recipe:
        return Recipe(seed=self.seed, threads=self.threads, **chosen)

    def _write(self, teacher: optuna.Study, student: optuna.Study) -> Mapping[str, Any]:
        chosen = dict(student.best_params)
        share = chosen.pop("share")
        about = {
            **student.user_attrs["about"],
            "judged_until_ms": max(fold.validation.end_ms for fold in self.folds),
            "share": share,
            "student": chosen,
            "teacher": dict(teacher.best_params),
            "average_precision": {
                "teacher": teacher.best_value,
                "student": student.best_value,
                "student_before": student.trials[0].value,
            },
            "trials": {study.study_name: _counts(study) for study in (teacher, student)},
        }
        path = self.folder / FOUND
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return about


def read_found(folder: Path, table: Table, recipe: Recipe) -> tuple[Recipe, Lesson]:
    """What a search found, as a recipe and a lesson, for training on `table`.

    Raises:
        TrainingError: there is none, it was for other features, or it has already looked at the test week.
    """
    path = folder / FOUND
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        student, teacher, share = found["student"], found["teacher"], float(found["share"])
        made = replace(recipe, **student)
        lesson = Lesson(TeacherRecipe(seed=recipe.seed, threads=recipe.threads, **teacher), share)
        features, judged_until_ms = found["features"], found["judged_until_ms"]
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error.strerror}). Make it with `weir train search`."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not what `weir train search` writes. Search again.") from error
    if features != list(table.features):
        raise TrainingError(f"{path} was found for other features than this code computes. Search again.")
    if judged_until_ms > table.split.test.start_ms:
        raise TrainingError(
            f"{path} was chosen on weeks that reach into the test week {table.split.test}: its figures would "
            "flatter. Search on earlier events, or test on later ones."
        )
    return made, lesson


_TEACHER_START = {"learning_rate": 0.05, "leaves": 31, "leaf_rows_min": 50, "columns": 0.7, "l2": 5.0}
_STUDENT_START = {
    "learning_rate": 0.08,
    "leaves": 3,
    "leaves_pair": 8,
    "leaf_rows_min": 30,
    "pairs_max": 64,
    "l2": 1.0,
    "share": 0.0,
}


def _suggest_teacher(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.15, log=True),
        "leaves": trial.suggest_int("leaves", 4, 64, log=True),
        "leaf_rows_min": trial.suggest_int("leaf_rows_min", 10, 400, log=True),
        "columns": trial.suggest_float("columns", 0.3, 1.0),
        "l2": trial.suggest_float("l2", 0.1, 50.0, log=True),
    }


def _suggest_student(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.15, log=True),
        "leaves": trial.suggest_int("leaves", 2, 6),
        "leaves_pair": trial.suggest_int("leaves_pair", 4, 16),
        "leaf_rows_min": trial.suggest_int("leaf_rows_min", 10, 400, log=True),
        "pairs_max": trial.suggest_int("pairs_max", 0, 96, step=16),
        "l2": trial.suggest_float("l2", 0.1, 50.0, log=True),
        "share": trial.suggest_float("share", 0.0, 1.0, step=0.1),
    }


def _precision(score: Floats, rows: Rows) -> float:
    return evaluate.average_precision(score, rows.is_fraud, rows.weight)


def _teacher_value(rows: Rated, features: Sequence[str], recipe: TeacherRecipe) -> float:
    rounds = rounds_of(rows.train, rows.validation, features, recipe)
    made = fit_teacher(rows.train, features, rounds, replace(recipe, bags=1))
    return _precision(made.score(rows.validation.x), rows.validation)


def _student_value(
    rows: Rated, features: Sequence[str], opinion: Floats, chosen: tuple[Recipe, float]
) -> float:
    recipe, share = chosen
    train = taught(rows.train, opinion, share)
    made = plan(train, rows.validation, features, recipe)
    return _precision(grow(train, features, made, recipe).logit(rows.validation.x), rows.validation)


def _opinion(rows: Rated, features: Sequence[str], recipe: TeacherRecipe) -> Floats:
    rounds = rounds_of(rows.train, rows.validation, features, recipe)
    return opinions(rows.train, features, rounds, recipe)


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _best(study: optuna.Study) -> float:
    values = [trial.value for trial in _done(study) if trial.state is TrialState.COMPLETE]
    return max((value for value in values if value is not None), default=float("nan"))


def _counts(study: optuna.Study) -> dict[str, int]:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return {state.name.lower(): states.count(state) for state in sorted(set(states))}


def _mend(journal: Path) -> None:
    """Without a last line that a kill cut off: what followed in it would be unreadable as well."""
    if journal.exists():
        with journal.open("r+b") as file:
            held = file.read()
            file.truncate(held.rfind(b"\n") + 1)


def _alone(lock: TextIO) -> bool:
    """Whether no other process searches in this folder: each holds the lock, shared, while it does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
