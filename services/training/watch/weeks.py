"""What is watched: a version's scores on later events, the weeks after its reference, which labels count.

A label counts if its fraud was reported within `ripe_days` of the payment, in the reference and in every week
alike: a young week's fraud rate would otherwise be low for no other reason than its age. A week is ripe when
all of its payments are older than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import numpy as np
from numpy.typing import NDArray

from services.training.data import DAY_MS, Events
from services.training.split import Window, without_known_cards
from services.training.watch.errors import WatchRefused

WEEK_MS = 7 * DAY_MS
REMEMBERED_DAYS = 38  # the longest window of a feature, and the label delay
ROWS_MIN = 200  # a week with fewer payments is too small to judge
ACCOUNTS_MIN = 30

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Week:
    """Seven whole days after the reference, or fewer at the end of the data.

    ripe: all labels that count are in. whole: the data reaches its end.
    """

    window: Window
    ripe: bool
    whole: bool

    @property
    def name(self) -> str:
        """Its first day, ISO 8601."""
        return str(self.window).split("..")[0]


@dataclass(frozen=True, slots=True)
class Watched:
    """Everything that is judged, n payments in time order.

    x: (n, F) float32. score: (n,) float64, the logit. probability: (n,) float64, 0 to 1. features: F names.
    now_ms: when it is judged; nothing later is known.
    """

    events: Events
    x: NDArray[np.float32]
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    features: tuple[str, ...]
    reference: Window
    weeks: tuple[Week, ...]
    now_ms: int
    ripe_days: int
    notes: tuple[str, ...] = field(default=())

    @property
    def is_fraud(self) -> Bools:
        """(n,) bool: frauds reported within `ripe_days` of the payment, and by now."""
        known = self.events.known_frauds(self.now_ms)
        # An honest payment is never reported: the difference of that to its time would overflow.
        age = np.where(known, self.events.reported_ms, self.events.event_ms) - self.events.event_ms
        return known & (age <= self.ripe_days * DAY_MS)

    @property
    def in_time(self) -> float:
        """Share of the reference's frauds known by now that were reported within `ripe_days`; nan if none."""
        rows = self.reference.rows(self.events.event_ms)
        known = self.events.known_frauds(self.now_ms)[rows].sum()
        return float(self.is_fraud[rows].sum() / known) if known else float("nan")

    def rows(self, window: Window) -> Bools:
        """(n,) bool: the window's payments by now."""
        return window.rows(self.events.event_ms) & (self.events.event_ms < self.now_ms)

    def judged_rows(self, window: Window) -> Bools:
        """(n,) bool: those whose account was not known to be compromised, as training judges a test week."""
        since = window.start_ms - self.ripe_days * DAY_MS - (window.end_ms - window.start_ms)
        return without_known_cards(self.events, window, since) & self.rows(window)


def window_of(text: str) -> Window:
    """A window as model.json has it, `2026-06-09..2026-06-15`, both days included.

    Raises:
        WatchRefused: it is none.
    """
    try:
        first, last = (date.fromisoformat(day) for day in text.split(".."))
    except ValueError as error:
        raise WatchRefused(f"{text!r} is no window such as 2026-06-09..2026-06-15.") from error
    start, end = (
        int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000 for day in (first, last)
    )
    return Window(start, end + DAY_MS)


def reference_of(
    event_ms: NDArray[np.int64], validation: str | None, days: int | None
) -> tuple[Window, list[str]]:
    """The window that later weeks are held against, and what a reader should know of it.

    Args:
        validation: the version's own validation window; None if it has none.
        days: take the first so many days of the data instead.
    Raises:
        WatchRefused: the data ends before a week after it began.
    """
    first, end = int(event_ms[0] // DAY_MS), int(event_ms[-1] // DAY_MS) + 1
    notes = []
    chosen = None if validation is None or days is not None else window_of(validation)
    if chosen is not None and not (first * DAY_MS <= chosen.start_ms and chosen.end_ms <= end * DAY_MS):
        notes.append(
            f"the data does not hold the version's validation window {chosen}: its first days stand in"
        )
        chosen = None
    if chosen is None:
        chosen = Window(first * DAY_MS, (first + (days or 14)) * DAY_MS)
    if chosen.start_ms < (first + REMEMBERED_DAYS) * DAY_MS:
        notes.append(
            f"the reference begins within the first {REMEMBERED_DAYS} days of the data, where features "
            "that look back are still filling: they will seem to drift; give more history"
        )
    if chosen.end_ms >= end * DAY_MS:
        raise WatchRefused(
            f"The data ends on {Window(chosen.start_ms, end * DAY_MS)}: no day after the reference."
        )
    return chosen, notes


def weeks_after(
    reference: Window, event_ms: NDArray[np.int64], *, now_ms: int, ripe_days: int, last: int | None = None
) -> tuple[Week, ...]:
    """The weeks from the reference's end to the newest payment by now, oldest first; the last may be cut.

    Args:
        last: only so many whole weeks, the newest.
    """
    before = event_ms[event_ms < now_ms]
    end = (int(before[-1] // DAY_MS) + 1) * DAY_MS if len(before) else reference.end_ms
    out = []
    for start in range(reference.end_ms, end, WEEK_MS):
        window = Window(start, min(start + WEEK_MS, end))
        ripe = window.end_ms + ripe_days * DAY_MS <= now_ms
        out.append(Week(window, ripe, start + WEEK_MS <= end))
    return tuple(out if last is None else _newest(out, last))


def _newest(weeks: Sequence[Week], last: int) -> list[Week]:
    starts = [week.window.start_ms for week in weeks if week.whole][-last:]
    return [week for week in weeks if starts and week.window.start_ms >= starts[0]]
