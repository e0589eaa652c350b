"""A partition's accounts as their changelog tells them: rows, and marks of what they stand for.

    ── rows of another life, damaged ones ──┬── every row once, a part with each batch ──┬── what changes ──▶
                                          since                                        whole

A state that was made from the input owes nothing to what the changelog told before: it begins anew where it
ended, and says so in each mark. Until all its rows are there, only a table that began whole may use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weir.features.accounts import Accounts
from weir.streams import journal
from weir.streams.journal import Mark

# No account hashes to 0: the key of the partition's mark in its changelog.
MARK_KEY = bytes(8)
# Rows written beside a batch's own: about a millisecond.
_PART_ROWS = 4_096


def _none() -> NDArray[np.uint64]:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Log:
    """Where a partition's changelog began to tell of its state.

    since: the changelog's offset; what is before it tells of another state.
    keys: (n,) uint64 of the accounts that were there then, to be written in this order.
    """

    since: int = 0
    keys: NDArray[np.uint64] = field(default_factory=_none)

    def part(self, written: int) -> NDArray[np.uint64]:
        """The next keys to be written, after the first `written` ones."""
        return self.keys[written : written + _PART_ROWS]

    @staticmethod
    def anew(since: int, accounts: Accounts) -> "Log":
        """A changelog that has to tell of all these accounts."""
        return Log(since, accounts.rows.keys())


class BegunAnew(Exception):
    """The changelog began anew at `since`: what was read before it is of no use."""

    def __init__(self, since: int) -> None:
        self.since = since
        super().__init__(since)


@dataclass(slots=True)
class Replica:
    """A partition's accounts, built up from its changelog.

    mark: what they stand for; None while no mark was read.
    since: where the changelog began, as far as this knows.
    began_whole: whether they were complete before the first row was read, as a snapshot's are.
    row_count: read so far.
    ahead: (2,) int64, the clock is never before it.
    """

    accounts: Accounts
    mark: Mark | None = None
    since: int = 0
    began_whole: bool = False
    row_count: int = 0
    ahead: NDArray[np.int64] | None = None

    @staticmethod
    def of_snapshot(accounts: Accounts, mark: Mark) -> "Replica":
        """What a snapshot holds."""
        return Replica(accounts, mark, mark.since, began_whole=True, row_count=accounts.row_count)

    @property
    def is_whole(self) -> bool:
        """Whether no account is missing that the mark stands for."""
        return self.mark is None or self.began_whole or self.mark.whole

    @property
    def log(self) -> Log:
        """What the next owner of these accounts goes on with."""
        if self.mark is None or self.mark.whole:
            return Log(self.since)
        return Log.anew(self.since, self.accounts)

    def take_in(self, keys: Sequence[bytes | None], values: Sequence[bytes | None], where: str) -> None:
        """Let the next records of the changelog enter.

        Args:
            where: topic and partition, for the error.
        Raises:
            BegunAnew: build another one, from there on.
            IntegrityError: a row or the mark is damaged. StateFull: no room for a row that a window can see.
        """
        count, mark = len(keys), mark_in(keys, values, where)
        if mark is not None:
            if mark.since > self.since:
                raise BegunAnew(mark.since)
            kept = [row for row, key in enumerate(keys) if key != MARK_KEY]
            keys, values = [keys[row] for row in kept], [values[row] for row in kept]
        self.accounts.restore_rows(keys, values)
        self.row_count += count
        if mark is not None:
            self.mark = mark
            self.accounts.clock[:] = mark.clock
            self.keep_ahead()

    def keep_ahead(self) -> None:
        """Let the clock be at least what is known of later."""
        if self.ahead is not None:
            np.maximum(self.accounts.clock, self.ahead, out=self.accounts.clock)


def mark_in(keys: Sequence[bytes | None], values: Sequence[bytes | None], where: str) -> Mark | None:
    """The last mark among some records.

    Raises:
        IntegrityError: it is damaged.
    """
    marks = [row for row, key in enumerate(keys) if key == MARK_KEY]
    return journal.decode(values[marks[-1]], Mark, where) if marks else None
