"""What the changelog of a partition's accounts says: rows, and marks of what they stand for."""

from collections.abc import Sequence

from services.risk.state import MARK_KEY
from weir.features.accounts import Accounts
from weir.streams import journal
from weir.streams.journal import Mark


def take_in(
    accounts: Accounts, keys: Sequence[bytes | None], values: Sequence[bytes | None], where: str
) -> Mark | None:
    """Let the rows among some records enter; the last mark among them.

    Args:
        where: topic and partition, for the error.
    Raises:
        IntegrityError: a row or the mark is damaged. StateFull: no room for a row that a window can see.
    """
    mark = mark_in(keys, values, where)
    if mark is not None:
        kept = [row for row, key in enumerate(keys) if key != MARK_KEY]
        keys, values = [keys[row] for row in kept], [values[row] for row in kept]
    accounts.restore_rows(keys, values)
    return mark


def mark_in(keys: Sequence[bytes | None], values: Sequence[bytes | None], where: str) -> Mark | None:
    """The last mark among some records.

    Raises:
        IntegrityError: it is damaged.
    """
    marks = [row for row, key in enumerate(keys) if key == MARK_KEY]
    return journal.decode(values[marks[-1]], Mark, where) if marks else None
