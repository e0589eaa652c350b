"""Whether what workers have counted is reason enough to step back. Pure: no clock, no file, no network.

A guard looks again and again, so an ordinary interval would sooner or later step in for nothing. Each share
here has to be above its limit with the whole of a confidence sequence, which holds at all looks together.
What fails, fails by the call, with all of its payments: so failures are judged by calls. Payments of one
account are not independent of each other, so with few accounts the rest is a little narrow.

Source: Waudby-Smith et al. 2024, as in `services/training/compare.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.training.compare import half_width
from services.training.guard.settings import GuardSettings

_SEVERITY = {"approve": 0, "review": 1, "decline": 2}
# A confidence sequence is narrowest at this many times the count at which judging begins.
_PLANNED = 10


@dataclass(slots=True)
class Counted:
    """What workers counted since a version took its place.

    decided, fell_back: a canary's batches. rows: its payments. outcomes: those that it decided, by what the
    thresholds say of the champion's and of its own probability. calls, seconds: answered calls to Triton and
    the time they took, of champion and canary. decisions, degraded: payments of all accounts.
    """

    decided: int = 0
    fell_back: int = 0
    rows: int = 0
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: int = 0
    degraded: int = 0


def fails(seen: Counted, limits: GuardSettings) -> str | None:
    """That the champion has to decide in the canary's place too often; None where not, or not surely."""
    batches = seen.decided + seen.fell_back
    if batches < limits.calls_min or not _surely_above(
        seen.fell_back, 0, batches, limits.fell_back_max, limits.alpha, limits.calls_min
    ):
        return None
    return (
        f"{seen.fell_back:,} of its {batches:,} batches ({seen.fell_back / batches:.2%}) were decided by the "
        f"champion in its place, limit {limits.fell_back_max:.2%}"
    )


def canary_reasons(seen: Counted, limits: GuardSettings) -> list[str]:
    """Why what the canary says is reason enough to take it back, a line each; none is no reason."""
    reasons = []
    compared = sum(seen.outcomes.values())
    if compared >= limits.rows_min:
        for what, least, limit in (
            ("declined", _SEVERITY["decline"], limits.declined_more_max),
            ("not approved", _SEVERITY["review"], limits.reviewed_more_max),
        ):
            more, fewer = _moved(seen.outcomes, least)
            if _surely_above(more, fewer, compared, limit, limits.alpha, limits.rows_min):
                reasons.append(
                    f"of {compared:,} payments {more:,} were {what} by it and not by the champion, {fewer:,} "
                    f"the other way round: {(more - fewer) / compared:.2%} more, limit {limit:.2%}"
                )
    mean = {who: seen.seconds[who] / calls for who, calls in seen.calls.items() if calls >= limits.calls_min}
    if len(mean) == 2 and mean["canary"] > limits.slower_max * mean["champion"]:
        reasons.append(
            f"an answered call to it takes {1000 * mean['canary']:.1f} ms, to the champion "
            f"{1000 * mean['champion']:.1f} ms: more than {limits.slower_max:g} times as long"
        )
    return reasons


def degrades(seen: Counted, limits: GuardSettings) -> str | None:
    """That rules decide too often under this champion; None where they do not, or nobody can say yet."""
    if seen.decisions < limits.rows_min or not _surely_above(
        seen.degraded, 0, seen.decisions, limits.degraded_max, limits.alpha, limits.rows_min
    ):
        return None
    return (
        f"{seen.degraded:,} of {seen.decisions:,} payments ({seen.degraded / seen.decisions:.2%}) were "
        f"decided by rules alone, limit {limits.degraded_max:.2%}"
    )


def _moved(outcomes: Mapping[tuple[str, str], int], least: int) -> tuple[int, int]:
    """Payments that the canary alone, and that the champion alone, treats at least so severely."""
    more = fewer = 0
    for (champion, canary), count in outcomes.items():
        more += count * (_SEVERITY[champion] < least <= _SEVERITY[canary])
        fewer += count * (_SEVERITY[canary] < least <= _SEVERITY[champion])
    return more, fewer


def _surely_above(more: int, fewer: int, count: int, limit: float, alpha: float, begins: int) -> bool:
    """Whether (more - fewer) / count is above the limit with all of its confidence sequence.

    Args:
        begins: at how many judging begins.
    """
    mean = (more - fewer) / count
    variance = max((more + fewer) / count - mean**2, 0.0)
    # Where all or none moved, the data say nothing of the spread: one the other way is assumed.
    error = math.sqrt(max(variance, 1 / count) / count)
    return mean - half_width(error, count, alpha, _PLANNED * begins) > limit
