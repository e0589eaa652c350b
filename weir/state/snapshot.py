"""A state on disk: one file, a version, a SHA-256 at its end, written aside and renamed.

    "WEIRSTAT" | version u32 LE | header length u32 LE | header JSON | blocks one after another | SHA-256 (32)

The checksum covers every byte before it. Blocks are streamed from and into the arrays themselves, so neither
saving nor loading holds a second copy in memory.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weir.errors import IntegrityError, MissingPart

MAGIC = b"WEIRSTAT"
VERSION = 1
_PREFIX = struct.Struct("<8sII")
_HEADER_BYTES_MAX = 1 << 20
_CHUNK_BYTES = 8 << 20


def write(path: Path, header: Mapping[str, Any], blocks: Sequence[NDArray[np.uint8]]) -> None:
    """Write `header` and C-contiguous `blocks` to `path`, which appears whole or keeps what it was.

    Raises:
        OSError: the disk is full, or the folder may not be written.
    """
    text = json.dumps({**header, "block_bytes": [block.nbytes for block in blocks]}).encode()
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            for part in (_PREFIX.pack(MAGIC, VERSION, len(text)), text):
                digest.update(part)
                file.write(part)
            for block in blocks:
                view = block.reshape(-1).data
                for at in range(0, len(view), _CHUNK_BYTES):
                    chunk = view[at : at + _CHUNK_BYTES]
                    digest.update(chunk)
                    _write_all(file.fileno(), chunk)
            file.write(digest.digest())
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


class Reader:
    """Reads what `write` wrote: the header at once, each block into an array, the checksum last."""

    def __init__(self, path: Path) -> None:
        """Open `path` and read its header, which is not to be trusted before `finish`.

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
                raise self._broken("it is not a state file")
            if version != VERSION:
                raise self._broken(f"it has format version {version}, this release reads {VERSION}")
            text = self._take(header_bytes)
            try:
                self.header: dict[str, Any] = json.loads(text)
                self._block_bytes = [int(count) for count in self.header["block_bytes"]]
            except (ValueError, KeyError, TypeError) as error:
                raise self._broken("its header is damaged") from error
            # Read once before anything is built from the header: a flipped bit must not size an array.
            self._verify(header_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read_into(self, block: NDArray[np.uint8]) -> None:
        """Fill `block` from the next block of the file.

        Raises:
            IntegrityError: the file's block has another size.
        """
        if not self._block_bytes or self._block_bytes.pop(0) != block.nbytes:
            raise self._broken("a block has another size than its header says")
        view = block.reshape(-1).data
        for at in range(0, len(view), _CHUNK_BYTES):
            chunk = view[at : at + _CHUNK_BYTES]
            filled = 0
            while filled < len(chunk):
                count = self._file.readinto(chunk[filled:])
                if not count:
                    raise self._broken("it ends early")
                filled += count
            self._digest.update(chunk)

    def finish(self) -> None:
        """Check the bytes that `read_into` gave against the checksum once more.

        Raises:
            IntegrityError: they differ.
        """
        computed = self._digest.digest()
        if self._block_bytes or self._file.read(len(computed) + 1) != computed:
            raise self._broken("its checksum does not match")

    def _verify(self, header_bytes: int) -> None:
        body = _PREFIX.size + header_bytes
        size = os.fstat(self._file.fileno()).st_size
        if size != body + sum(self._block_bytes) + self._digest.digest_size:
            raise self._broken("it has another length than its header says")
        digest = self._digest.copy()
        left = sum(self._block_bytes)
        while left:
            chunk = self._file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise self._broken("it ends early")
            digest.update(chunk)
            left -= len(chunk)
        if self._file.read(digest.digest_size) != digest.digest():
            raise self._broken("its checksum does not match")
        self._file.seek(body)

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self._broken("it ends early")
        self._digest.update(data)
        return data

    def _broken(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {why}. Delete it and rebuild the state from events.")


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
