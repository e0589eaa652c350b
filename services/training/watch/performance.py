"""How well the model still ranks and how right its probabilities are, week by week as labels come in.

Only ripe weeks are judged, on the rows that training judges its test week by: an account that was known to be
compromised is left out. Average precision moves with the share of fraud whatever the model does; the one that
raises an alarm is told at the reference's share, each fraud weighed for it (the prior shift of Elkan 2001,
The foundations of cost-sensitive learning).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from services.training.watch.draws import (
    CALIBRATION,
    FRAUDS_MIN,
    RANKING,
    Difference,
    Drawn,
    Figures,
    difference,
    draw,
    samples,
)
from services.training.watch.errors import WatchRefused
from services.training.watch.grouped import benjamini_hochberg
from services.training.watch.weeks import Watched

TESTED = ("auc_roc", "average_precision_same_rate", "observed_expected")


@dataclass(frozen=True, slots=True)
class FallLimits:
    """What it takes to say that a figure fell.

    fall: of a ranking figure, 0 to 1. calibration_factor: of observed over expected frauds, or its inverse.
    alpha: the false discovery rate over the tested figures of all weeks.
    """

    fall: float = 0.02
    calibration_factor: float = 1.5
    alpha: float = 0.05


@dataclass(frozen=True, slots=True)
class Judged:
    """One week's figures, how they differ from the reference's, and which of them fell.

    q: of the figures that are tested.
    """

    week: str
    drawn: Drawn
    differences: Mapping[str, Difference]
    q: Mapping[str, float]
    fallen: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        return {
            "week": self.week,
            **figures_dict(self.drawn),
            "difference": {name: clean(asdict(each)) for name, each in self.differences.items()},
            "q": clean(self.q),
            "fallen": list(self.fallen),
        }


@dataclass(frozen=True, slots=True)
class Performance:
    """The reference, the weeks that were judged, and why the others were not."""

    reference: Drawn
    weeks: tuple[Judged, ...]
    skipped: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        return {
            "reference": figures_dict(self.reference),
            "weeks": [week.as_dict() for week in self.weeks],
            "not_judged": dict(self.skipped),
        }


def performance(
    watched: Watched, limits: FallLimits | None = None, *, draws: int = 200, seed: int = 7
) -> Performance:
    """Every ripe, whole week against the reference.

    Raises:
        WatchRefused: the reference itself has too few frauds whose labels are in.
    """
    limits = limits or FallLimits()
    before = watched.judged_rows(watched.reference)
    if (found := int(watched.is_fraud[before].sum())) < FRAUDS_MIN:
        raise WatchRefused(
            f"The reference {watched.reference} has {found} frauds with labels; {FRAUDS_MIN} are needed. "
            "Take a longer one with --reference-days."
        )
    chosen, names, skipped = [before], [], {}
    for week in watched.weeks:
        rows = watched.judged_rows(week.window)
        frauds = int(watched.is_fraud[rows].sum())
        if not week.whole or not week.ripe:
            skipped[week.name] = "labels still come in" if week.whole else "not over yet"
        elif frauds < FRAUDS_MIN or frauds == int(rows.sum()):
            skipped[week.name] = f"{frauds} frauds; {FRAUDS_MIN} are needed"
        else:
            chosen.append(rows)
            names.append(week.name)
    made, accounts = samples(watched, chosen)
    rate = float(made[0].is_fraud.mean())
    drawn = draw([Figures(each, rate) for each in made], accounts, draws=draws, seed=seed)
    reference, later = drawn[0], drawn[1:]
    told = [{name: difference(reference, each, name) for name in (*RANKING, *CALIBRATION)} for each in later]
    p = [[each[name].p for name in TESTED] for each in told]
    q = benjamini_hochberg(np.array(p).ravel()).reshape(len(told), len(TESTED))
    weeks = []
    for name, each, differences, line in zip(names, later, told, q, strict=True):
        corrected = dict(zip(TESTED, map(float, line), strict=True))
        fallen = tuple(one for one in TESTED if _fell(one, differences[one], corrected[one], limits))
        weeks.append(Judged(name, each, differences, corrected, fallen))
    return Performance(reference, tuple(weeks), skipped)


def _fell(name: str, moved: Difference, q: float, limits: FallLimits) -> bool:
    if not (moved.sure and q < limits.alpha):
        return False
    if name == "observed_expected":
        factor = limits.calibration_factor
        return not 1 / factor <= moved.value <= factor
    return moved.value <= -limits.fall


def figures_dict(drawn: Drawn) -> dict[str, Any]:
    """Counts, and each figure with its interval."""
    metrics = {name: clean(asdict(drawn.interval(name))) for name in drawn.value}
    return {"rows": drawn.rows, "frauds": drawn.frauds, "metrics": metrics}


def clean(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with null for what is not finite: JSON has no other word."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }
