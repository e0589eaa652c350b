"""A served version judged on a folder of later events: everything together, and what raises an alarm."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from services.training.data import Events
from services.training.repository import ServedModel
from services.training.split import Window
from services.training.watch.drift import SCORE, Drift, Limits, drift
from services.training.watch.errors import WatchRefused
from services.training.watch.fairness import Fairness
from services.training.watch.performance import FallLimits, Performance, performance
from services.training.watch.slices import Slices, slices
from services.training.watch.weeks import Watched, reference_of, weeks_after
from weir.features.payments import FEATURE_SPEC, FEATURES

RIPE_DAYS = 14


@dataclass(frozen=True, slots=True)
class Alarm:
    """kind: feature, score, fraud_rate or performance. what: the feature or figure. week: its first day."""

    kind: str
    what: str
    week: str
    says: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found; `performance` is None where the reference has too few frauds: see `notes`."""

    version: str
    sha256: str
    fingerprint: str
    reference: Window
    now_ms: int
    ripe_days: int
    in_time: float
    drift: Drift
    performance: Performance | None
    slices: Slices
    fairness: Fairness | None
    alarms: tuple[Alarm, ...]
    weeks: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "model": {"name": "risk", "version": self.version, "sha256": self.sha256},
            "fingerprint": self.fingerprint,
            "reference": str(self.reference),
            "as_of": datetime.fromtimestamp(self.now_ms / 1000, UTC).isoformat(),
            "ripe_days": self.ripe_days,
            "reported_in_time": None if np.isnan(self.in_time) else self.in_time,
            "weeks": [{"week": name, "ripe": ripe} for name, ripe in self.weeks.items()],
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "drift": self.drift.as_dict(),
            "performance": None if self.performance is None else self.performance.as_dict(),
            "slices": self.slices.as_dict(),
            "fairness": None if self.fairness is None else self.fairness.as_dict(),
            "notes": list(self.notes),
        }


def watched_of(
    events: Events,
    served: ServedModel,
    *,
    reference_days: int | None = None,
    as_of_ms: int | None = None,
    ripe_days: int = RIPE_DAYS,
    last: int | None = None,
) -> Watched:
    """The events scored by the version, with its reference and the weeks after it.

    Args:
        as_of_ms: nothing later is known; None for the newest payment.
        last: judge only so many whole weeks, the newest.
    Raises:
        WatchRefused: the version was made for other features, or no day lies after the reference.
    """
    if served.about["feature_spec"] != FEATURE_SPEC:
        raise WatchRefused(
            f"Version {served.about['version']} is of feature spec {served.about['feature_spec']}, this code "
            f"computes {FEATURE_SPEC}. Watch it with the code that serves it, or train again."
        )
    now_ms = int(events.event_ms[-1]) + 1 if as_of_ms is None else as_of_ms
    seen = events.event_ms[events.event_ms < now_ms]
    if not len(seen):
        raise WatchRefused("No payment lies before --as-of.")
    x = events.features()
    validation = served.about["trained"].get("split", {}).get("validation")
    reference, notes = reference_of(seen, validation, reference_days)
    weeks = weeks_after(reference, seen, now_ms=now_ms, ripe_days=ripe_days, last=last)
    out = served.run(x)
    score, probability = (out[name].ravel().astype(np.float64) for name in ("logit", "probability"))
    return Watched(events, x, score, probability, FEATURES, reference, weeks, now_ms, ripe_days, tuple(notes))


def watch(
    watched: Watched,
    served: ServedModel,
    *,
    limits: Limits | None = None,
    falls: FallLimits | None = None,
    draws: int = 200,
    seed: int = 7,
    fairness: Fairness | None = None,
) -> Findings:
    """Drift, performance and slices, with the alarms."""
    limits, falls, notes = limits or Limits(), falls or FallLimits(), list(watched.notes)
    moved = drift(watched, limits)
    judged: Performance | None = None
    try:
        judged = performance(watched, falls, draws=draws, seed=seed)
    except WatchRefused as error:
        notes.append(str(error))
    return Findings(
        version=str(served.about["version"]),
        sha256=str(served.about["sha256"]),
        fingerprint=watched.events.fingerprint,
        reference=watched.reference,
        now_ms=watched.now_ms,
        ripe_days=watched.ripe_days,
        in_time=watched.in_time,
        drift=moved,
        performance=judged,
        slices=slices(watched, alpha=limits.alpha),
        fairness=fairness,
        alarms=alarms(moved, judged),
        weeks={week.name: week.ripe and week.whole for week in watched.weeks},
        notes=tuple(notes),
    )


def alarms(moved: Drift, judged: Performance | None) -> tuple[Alarm, ...]:
    """What drifted and what fell, oldest week first."""
    out = [
        Alarm(
            "score" if each.feature == SCORE else "feature",
            each.feature,
            each.week,
            f"PSI {each.psi:.3f} ({each.level}), {each.psi_chance:.3f} by chance, q {each.q:.2g}",
        )
        for each in moved.moved
        if each.level
    ]
    out += [
        Alarm(
            "fraud_rate",
            "fraud_rate",
            each.week,
            f"{each.rate:.3%} of payments, {each.rate_reference:.3%} in the reference, q {each.q:.2g}",
        )
        for each in moved.rates
        if each.drifted
    ]
    for week in judged.weeks if judged else ():
        for name in week.fallen:
            moved_by, sign = week.differences[name], "x" if name == "observed_expected" else "by "
            says = f"{sign}{moved_by.value:.3f} ({moved_by.low:.3f} to {moved_by.high:.3f})"
            out.append(Alarm("performance", name, week.week, f"{says}, q {week.q[name]:.2g}"))
    return tuple(sorted(out, key=lambda alarm: (alarm.week, alarm.kind, alarm.what)))
