"""A table as it was at one commit, read by another thread while the table goes on.

The reader copies rows as they are and then gives those that changed since the commit their copies back, which
the table keeps for it (`weir.state.undo`). So the table never waits for the reader but for moments.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from weir.errors import WeirError
from weir.state.undo import Entries, Mark, patch

if TYPE_CHECKING:
    from weir.state.rows import Rows

CHUNK_ROWS = 16_384
# What is kept for a reader at most, unless the caller says otherwise: 512 MiB of accounts.
KEPT_ROWS_MAX = 1 << 20


class SnapshotGivenUp(WeirError):
    """More rows changed during a snapshot than may be kept for it; the older snapshot stays as it is."""

    retriable = True

    def __init__(self, what: str, kept_rows_max: int) -> None:
        self.what, self.kept_rows_max = what, kept_rows_max
        super().__init__(
            f"The snapshot of the {what}s was given up: over {kept_rows_max:,} rows changed before it was "
            "written. The older one stays; use a faster disk, or allow more rows to be kept."
        )


class SnapshotClosed(WeirError):
    """A snapshot was in the way, or nobody waits for it any more; the older snapshot stays as it is."""

    retriable = True


class Pin:
    """One commit point of one table. `close` it, or use it in a `with`, on the table's own thread.

    Attributes:
        row_count: rows in use at that point.
        clock: the table's clock at that point.
        position: where the copies begin that the reader needs.
    """

    def __init__(self, rows: "Rows", point: Mark, kept_rows_max: int) -> None:
        self._rows, self.kept_rows_max = rows, kept_rows_max
        self.row_count, self.clock, self.position = point.row_count, point.clock, point.position
        self._extra: list[Entries] = []
        self._given_up = self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing needs to be kept for this reader any more; one that is still reading is stopped."""
        self._over = True
        self._rows.unpin(self)

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Every row as it was at the commit point, stamps zeroed: (n, row_bytes) uint8, valid until the next.

        Any thread may run this; the bytes are sure once the last chunk has come.

        Raises:
            SnapshotGivenUp: the table could not keep as much as this would have needed.
            SnapshotClosed: the pin was closed before the last chunk.
        """
        rows, chunk_rows = self._rows, CHUNK_ROWS
        buffer = np.empty((min(chunk_rows, self.row_count), rows.row_bytes), np.uint8)
        for first in range(0, self.row_count, chunk_rows):
            stop = min(first + chunk_rows, self.row_count)
            chunk = buffer[: stop - first]
            np.copyto(chunk, rows.used(first, stop))
            # Whatever changed a row before it was copied has kept it by the time the lock is ours.
            for log_rows, log_words in self._entries():
                patch(chunk.view(np.uint64), first, log_rows, log_words)
            self._check()
            chunk.view(np.uint32)[:, rows.stamp_at] = 0
            yield chunk

    def keep(self, entries: list[Entries]) -> None:
        """Copies that are about to be truncated; for the table alone, with its lock held."""
        # Each is of a row as it was at the commit point, or one that an older copy in the log overrules.
        self._extra += entries

    def give_up(self) -> None:
        """What the reader has read may be wrong from now on; for the table alone."""
        self._given_up = True

    def _entries(self) -> list[Entries]:
        """In the order to apply them: the oldest copy of a row last."""
        with self._rows.lock:
            return [*self._extra, *reversed(self._rows.kept_entries(self.position))]

    def _check(self) -> None:
        with self._rows.lock:
            if self._given_up:
                raise SnapshotGivenUp(self._rows.what, self.kept_rows_max)
            if self._over:
                raise SnapshotClosed(
                    f"The snapshot of the {self._rows.what}s was closed while it was written."
                )
