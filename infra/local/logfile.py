"""A log file that is rotated by size, and whose end can be read and followed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BYTES_MAX = 10 * 1024 * 1024
FILE_COUNT = 3
_FOLLOW_POLL_S = 0.2


class RotatingLog:
    """Appends bytes to `path`; at `bytes_max` it becomes `path.1`, and the oldest of `file_count` goes.

    A full disk loses lines, counted in `lost_bytes`; it never stops who writes.
    """

    def __init__(self, path: Path, *, bytes_max: int = BYTES_MAX, file_count: int = FILE_COUNT) -> None:
        self.path, self.bytes_max, self.file_count = path, bytes_max, file_count
        self.lost_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = self._open()

    def _open(self) -> BinaryIO:
        return open(self.path, "ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append, rotating first when it would grow over the limit."""
        try:
            if self._file is None:
                self._file = self._open()
            if self._file.tell() and self._file.tell() + len(data) > self.bytes_max:
                self._rotate()
            self._file.write(data)
        except OSError:
            self.lost_bytes += len(data)

    def _rotate(self) -> None:
        self.close()
        for index in range(self.file_count - 1, 0, -1):
            older = self._numbered(index)
            newer = self.path if index == 1 else self._numbered(index - 1)
            if newer.exists():
                newer.replace(older)
        self._file = self._open()

    def _numbered(self, index: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{index}")

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def follow(path: Path) -> Iterator[str]:
    """Lines as they are written from now on, through rotations; '' when there is nothing new for a moment."""
    file = path.open("r", encoding="utf-8", errors="replace")
    file.seek(0, os.SEEK_END)
    while True:
        line = file.readline()
        if line:
            yield line.rstrip("\n")
            continue
        try:
            if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = path.open("r", encoding="utf-8", errors="replace")
                continue
        except FileNotFoundError:
            pass  # between two files of a rotation
        yield ""
        time.sleep(_FOLLOW_POLL_S)
