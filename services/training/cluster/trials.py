"""Trials of a search on a cluster: asked and told here, in the search's own journal; computed by workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from services.training.cluster.link import Cluster
from weir.errors import NeighbourUnavailable, WeirError


@dataclass(frozen=True, slots=True)
class Goal:
    """What a study maximises: the mean of `value(*fold, suggest(trial))` over its folds."""

    suggest: Callable[[optuna.Trial], Any]
    value: Callable[..., float]
    folds: Sequence[tuple[Any, ...]]

    def __call__(self, trial: optuna.Trial) -> float:
        """The mean, computed here.

        Raises:
            TrialPruned: it lies behind the others.
        """
        chosen, values = self.suggest(trial), []
        for fold in self.folds:
            values.append(self.value(*fold, chosen))
            if behind(trial, values):
                raise optuna.TrialPruned
        return float(np.mean(values))


@dataclass(slots=True)
class _Running:
    trial: optuna.Trial
    chosen: Any
    values: list[float] = field(default_factory=list)


def behind(trial: optuna.Trial, values: list[float]) -> bool:
    """Whether a trial, told of the folds so far, is to be given up."""
    trial.report(float(np.mean(values)), len(values) - 1)
    return trial.should_prune()


def run_trials(
    cluster: Cluster, study: optuna.Study, goal: Goal, more: Callable[[int], bool], told: Callable[[], None]
) -> None:
    """As many trials at once as the workers have threads; each fold is a task, so pruning waits for no other.

    Args:
        goal: its folds hold futures where workers are to hold what they mean.
        more: whether another trial may begin while so many run. told: called after each.
    Raises:
        NeighbourUnavailable: the cluster is gone; trials that ran stay open and are tried anew by the next
            search. WeirError: as `goal.value`; the trial counts as failed.
    """
    running: dict[Any, _Running] = {}

    def go_on(one: _Running) -> None:
        running[cluster.submit(goal.value, *goal.folds[len(one.values)], one.chosen)] = one

    while True:
        while len(running) < cluster.thread_count and more(len(running)):
            trial = study.ask()
            go_on(_Running(trial, goal.suggest(trial)))
        if not running:
            return
        for future in cluster.first_done(running):
            one = running.pop(future)
            try:
                one.values.append(cluster.result(future))
            except NeighbourUnavailable:
                raise
            except WeirError:
                study.tell(one.trial, state=TrialState.FAIL)
                raise
            if behind(one.trial, one.values):
                study.tell(one.trial, state=TrialState.PRUNED)
            elif len(one.values) < len(goal.folds):
                go_on(one)
                continue
            else:
                study.tell(one.trial, float(np.mean(one.values)))
            told()
