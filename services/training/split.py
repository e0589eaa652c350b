"""Which rows fit, which tune, which judge: always in this order of time, with the label delay in between.

    warm-up │ train │ delay │ validation │ delay │ test

The delay before the test is what a bank lives with: when the test begins, frauds of the last days are not
known yet. The delay before the validation makes it as hard as the test.

The warm-up is nothing by default. A model that never met an account without a past takes a cold start for a
wave of fraud: fitted without the first 30 days, it gave the first day a mean probability of 31 %.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from services.training.data import DAY_MS, Events
from services.training.errors import TrainingError

TRAIN_DAYS_MIN = 7
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """From `start_ms` to `end_ms`, the end excluded."""

    start_ms: int
    end_ms: int

    def rows(self, event_ms: NDArray[np.int64]) -> Bools:
        """(n,) bool."""
        return (event_ms >= self.start_ms) & (event_ms < self.end_ms)

    def __str__(self) -> str:
        first, last = (
            datetime.fromtimestamp(ms / 1000, UTC).date().isoformat()
            for ms in (self.start_ms, self.end_ms - 1)
        )
        return f"{first}..{last}"


@dataclass(frozen=True, slots=True)
class Split:
    """The windows of one training; `tune` fits the candidate that the validation window judges.

    In the usual split `tune` is `train`. The Handbook's fixes the training week, so it tunes on an earlier
    one.
    """

    tune: Window
    validation: Window
    train: Window
    test: Window

    def as_dict(self) -> dict[str, str]:
        """First and last day of each window."""
        return {name: str(getattr(self, name)) for name in ("tune", "validation", "train", "test")}


def by_time(
    event_ms: NDArray[np.int64],
    *,
    delay_days: int,
    validation_days: int = 7,
    test_days: int = 7,
    warmup_days: int = 0,
) -> Split:
    """The last `test_days` whole days judge; the rest as the module says. A short history warms up less.

    Raises:
        TrainingError: fewer than a week is left for training.
    """
    first, end = int(event_ms[0] // DAY_MS), int(event_ms[-1] // DAY_MS) + 1
    test = end - test_days
    validation = test - delay_days - validation_days
    train_end = validation - delay_days
    room = train_end - first
    if room < TRAIN_DAYS_MIN:
        needed = TRAIN_DAYS_MIN + 2 * delay_days + validation_days + test_days
        raise TrainingError(f"{end - first} days of payments are too few: at least {needed} are needed.")
    start = first + min(warmup_days, room - max(TRAIN_DAYS_MIN, room // 2))
    train = _window(start, train_end)
    return Split(train, _window(validation, validation + validation_days), train, _window(test, end))


def handbook() -> Split:
    """The Handbook's week: train 2018-07-25..31, test 2018-08-08..14, tuned two weeks earlier on the same
    plan.

    Source: Le Borgne et al. 2022, section 5.3 (prequential validation).
    """
    day = int(datetime(2018, 7, 25, tzinfo=UTC).timestamp()) * 1000 // DAY_MS
    train = _window(day, day + 7)
    return Split(_window(day - 14, day - 7), train, train, _window(day + 14, day + 21))


def handbook_preceding(first_ms: int) -> Split:
    """The Handbook's test week, judged by a model of everything that precedes it.

    Trained from the first payment to 2018-07-31, whose labels are known when 2018-08-08 begins; rounds and
    pairs are chosen on 2018-07-25..31 by a candidate of what was known a delay before that.
    """
    plan, first = handbook(), first_ms // DAY_MS * DAY_MS
    tune = Window(first, plan.train.start_ms - 7 * DAY_MS)
    return Split(tune, plan.train, Window(first, plan.train.end_ms), plan.test)


def without_known_cards(events: Events, test: Window, known_from_ms: int) -> Bools:
    """(n,) bool: rows of `test` whose account had no fraud since `known_from_ms` reported before that day.

    Source: Le Borgne et al. 2022, `get_train_test_set`: a card known to be compromised is blocked, not
    scored.
    """
    rows = test.rows(events.event_ms)
    account = events.payments.account
    recent = events.is_fraud & (events.event_ms >= known_from_ms)
    for day_ms in range(test.start_ms, test.end_ms, DAY_MS):
        today = Window(day_ms, day_ms + DAY_MS).rows(events.event_ms)
        blocked = np.unique(account[recent & (events.reported_ms < day_ms)])
        rows &= ~(today & np.isin(account, blocked))
    return rows


def _window(first_day: int, end_day: int) -> Window:
    return Window(first_day * DAY_MS, end_day * DAY_MS)
