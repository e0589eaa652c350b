"""A table on disk: one file, a version, a SHA-256 at its end, written aside and renamed.

    "WEIRSTAT" | version u32 LE | header length u32 LE | header JSON |
    frames: length u32 LE, then so many bytes | length 0 | SHA-256 (32) of every byte before it

Frames are made and read one after the other, so neither saving nor loading holds a second copy of a table. A
file is whole or it is not there: what was at its place stays until the new one is on the disk.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weir.errors import IntegrityError, MissingPart
from weir.files import sync_folder

MAGIC = b"WEIRSTAT"
VERSION = 2
FRAME_BYTES_MAX = 64 << 20

_PREFIX = struct.Struct("<8sII")
_LENGTH = struct.Struct("<I")
_HEADER_BYTES_MAX = 1 << 20


def write(path: Path, header: Mapping[str, Any], frames: Iterable[list[NDArray[np.uint8]]]) -> int:
    """Write `header` and `frames` to `path`, which appears whole or keeps what it was; the bytes written.

    Args:
        frames: each a list of pieces, which become one frame.
    Raises:
        OSError: the disk is full, or the folder may not be written. ValueError: a header or frame too large.
    """
    text = json.dumps(header).encode()
    if len(text) > _HEADER_BYTES_MAX:
        raise ValueError(f"a header of {len(text)} bytes is more than {_HEADER_BYTES_MAX}")
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    written = 0
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:

            def put(part: bytes | memoryview) -> None:
                nonlocal written
                digest.update(part)
                _write_all(file.fileno(), memoryview(part))
                written += len(part)

            put(_PREFIX.pack(MAGIC, VERSION, len(text)) + text)
            for pieces in frames:
                size = sum(piece.nbytes for piece in pieces)
                if not 0 < size <= FRAME_BYTES_MAX:
                    raise ValueError(f"a frame of {size} bytes; 1 to {FRAME_BYTES_MAX} are allowed")
                put(_LENGTH.pack(size))
                for piece in pieces:
                    put(piece.reshape(-1).view(np.uint8).data)
            put(_LENGTH.pack(0))
            _write_all(file.fileno(), memoryview(digest.digest()))
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return written + digest.digest_size


class Reader:
    """Reads what `write` wrote: the header at once, frame by frame, the checksum after the last.

    Nothing that was read is to be trusted before the last frame has been asked for and none came.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` and read its header.

        Raises:
            MissingPart: no such file. IntegrityError: not a state file, or of another version.
        """
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise MissingPart(f"{path}: no saved state there.") from error
        self._digest = hashlib.sha256()
        try:
            magic, version, header_bytes = _PREFIX.unpack(self._take(_PREFIX.size))
            if magic != MAGIC or header_bytes > _HEADER_BYTES_MAX:
                raise self.broken("it is not a state file")
            if version != VERSION:
                raise self.broken(f"it has format version {version}, this release reads {VERSION}")
            text = self._take(header_bytes)
            try:
                self.header: dict[str, Any] = json.loads(text)
            except ValueError as error:
                raise self.broken("its header is damaged") from error
            if not isinstance(self.header, dict):
                raise self.broken("its header is damaged")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Every frame, each valid until the next is asked for.

        Raises:
            IntegrityError: the file ends early, goes on too long, or its checksum does not match.
        """
        buffer = np.empty(0, np.uint8)
        while size := _LENGTH.unpack(self._take(_LENGTH.size))[0]:
            if size > FRAME_BYTES_MAX:
                raise self.broken("it is damaged")
            if size > buffer.size:
                buffer = np.empty(size, np.uint8)
            self._fill(buffer[:size].data)
            yield buffer[:size]
        expected = self._digest.digest()
        if self._file.read(len(expected) + 1) != expected:
            raise self.broken("its checksum does not match")

    def broken(self, why: str) -> IntegrityError:
        """What is wrong with this file."""
        return IntegrityError(f"{self.path}: {why}. Delete it and rebuild the state from events.")

    def _fill(self, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            count = self._file.readinto(view[filled:])
            if not count:
                raise self.broken("it ends early")
            filled += count
        self._digest.update(view)

    def _take(self, count: int) -> bytes:
        data = bytearray(count)
        self._fill(memoryview(data))
        return bytes(data)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
