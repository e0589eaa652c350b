"""A log file that is rotated by size, and whose end can be read and followed."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
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


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines, from the rotated file too when the newest is short."""
    lines: list[str] = []
    for each in (path.with_name(f"{path.name}.1"), path):
        if each.exists():
            lines += each.read_text(encoding="utf-8", errors="replace").splitlines()[-count:] if count else []
    return lines[-count:] if count else []


def follow(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Lines as they are written from now on, through rotations; never ends."""
    files = {path: path.open("r", encoding="utf-8", errors="replace") for path in paths}
    for file in files.values():
        file.seek(0, os.SEEK_END)
    while True:
        idle = True
        for path in paths:
            while line := files[path].readline():
                idle = False
                yield path, line.rstrip("\n")
            # Between two files of a rotation there is none for a moment.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino != os.fstat(files[path].fileno()).st_ino:
                    files[path].close()
                    files[path] = path.open("r", encoding="utf-8", errors="replace")
        if idle:
            time.sleep(_FOLLOW_POLL_S)
