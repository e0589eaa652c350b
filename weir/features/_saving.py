"""A table's commit point on its way to a file, on a thread of its own."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weir.errors import IntegrityError
from weir.features.spec import FeatureSpec
from weir.state import snapshot
from weir.state.pin import Pin

Frame = list[NDArray[np.uint8]]


class Saving:
    """The table as of its last commit; `write` it on any thread, `close` it on the table's own.

    While it is open the table goes on as ever, but for eviction: rows stay where they are.

    Attributes:
        row_count: rows in it.
    """

    def __init__(
        self, pin: Pin, kind: str, spec: FeatureSpec, frame: Callable[[NDArray[np.uint8]], Frame]
    ) -> None:
        self._pin, self._kind, self._spec, self._frame = pin, kind, spec, frame
        self.row_count = pin.row_count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The table need not keep anything for this any more."""
        self._pin.close()

    def write(self, path: Path, about: Mapping[str, Any] | None = None) -> int:
        """Write the table to `path`, with `about` (plain JSON) in its header; the bytes written.

        Raises:
            SnapshotGivenUp: too much changed meanwhile.
            OSError: the disk is full, or `path` may not be written. An older file at `path` is untouched.
        """
        header = {
            "kind": self._kind,
            "spec": self._spec.id,
            "row_count": self.row_count,
            "clock": self._pin.clock.tolist(),
            "about": dict(about or {}),
        }
        return snapshot.write(path, header, self._frames())

    def _frames(self) -> Iterator[Frame]:
        for chunk in self._pin.chunks():
            yield self._frame(chunk)


class Saved:
    """A file that `Saving` wrote, being read."""

    def __init__(self, reader: snapshot.Reader, kind: str, spec: FeatureSpec) -> None:
        """Look at the header.

        Raises:
            IntegrityError: it holds another kind of table, or one of another feature spec.
        """
        header = reader.header
        if header.get("kind") != kind:
            raise reader.broken(f"it holds no {kind}")
        if header.get("spec") != spec.id:
            raise reader.broken(f"it was saved for feature spec {header.get('spec')}, not {spec.id}")
        self._reader = reader

    @property
    def row_count(self) -> int:
        """Rows in it, if it is whole; 0 if the header does not say."""
        count = self._reader.header.get("row_count")
        return count if isinstance(count, int) and count >= 0 else 0

    def finish(self, row_count: int, clock: NDArray[np.int64]) -> dict[str, Any]:
        """Take the clock over once every frame has been read and checked; what the writer put in the header.

        Raises:
            IntegrityError: it does not fit the rows that were read.
        """
        header = self._reader.header
        try:
            clock[:] = np.array(header["clock"], np.int64)
            about = dict(header["about"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._reader.broken("its header is damaged") from error
        if row_count != self.row_count:
            raise self.broken(f"it holds {row_count} rows, its header says {self.row_count}")
        return about

    def broken(self, why: str) -> IntegrityError:
        """What is wrong with the file."""
        return self._reader.broken(why)
