"""The audit record of every hand-out and every denial: one JSON object a line, each chained to the last.

A line's `previous` is the SHA-256 of the line before it, so a line that is changed, removed or put between
shows in `verify`. Lines cut off the end do not show in the file alone: note the head elsewhere (`weir keys
audit verify` prints it), and verify against it. A record is on disk before what it tells of happens.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from weir.errors import IntegrityError, MissingPart, NeighbourUnavailable
from weir.files import sync_folder

GENESIS = "0" * 64


class AuditUnavailable(NeighbourUnavailable):
    """The record could not be made durable, so what it tells of was not done."""


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last record: its number (0 for none) and its line's SHA-256 in hex."""

    sequence: int
    digest: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> "AuditHead":
        """Reads what `str` wrote; ValueError for anything else."""
        sequence, _, digest = text.partition(":")
        if len(digest) != len(GENESIS) or not sequence.isdigit():
            raise ValueError("a head is NUMBER:SHA256")
        return cls(int(sequence), digest)


class AuditLog:
    """Appends records to one file; one process at a time holds it."""

    def __init__(self, path: Path, descriptor: int, head: AuditHead, length: int) -> None:
        self._path, self._descriptor, self._head, self._length = path, descriptor, head, length

    @classmethod
    def open(cls, path: Path, *, now: datetime) -> "AuditLog":
        """The log, verified whole, ready for the next record.

        A last line without an end was being written when the process died: what it told of was not done.
        It is cut off, and a record says so.

        Raises:
            IntegrityError: the chain is broken.
            NeighbourUnavailable: another process holds the file.
        """
        created = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head, whole_bytes, torn_bytes = _scan(path, None)
        except BlockingIOError:
            os.close(descriptor)
            raise NeighbourUnavailable(
                f"{path}: another key service holds it. Stop that one, or set another data_dir."
            ) from None
        except IntegrityError:
            os.close(descriptor)
            raise
        if created:
            sync_folder(path.parent)
        log = cls(path, descriptor, head, whole_bytes)
        if torn_bytes:
            os.ftruncate(descriptor, whole_bytes)
            log.append(now=now, event="torn_record_removed", byte_count=torn_bytes)
        return log

    @property
    def head(self) -> AuditHead:
        """The last durable record."""
        return self._head

    def append(self, *, now: datetime, **fields: str | int) -> AuditHead:
        """Writes one record; it is durable when this returns.

        Raises:
            AuditUnavailable: it could not be written (disk full, ...); the log is as it was.
        """
        record = {
            "sequence": self._head.sequence + 1,
            "time": now.isoformat(timespec="milliseconds"),
            "previous": self._head.digest,
            **fields,
        }
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
        data = memoryview(line + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._length)
            raise AuditUnavailable(
                f"{self._path}: no audit record could be written ({error.strerror}), so no key is given. "
                "Make room, or correct the file."
            ) from error
        self._length += len(line) + 1
        self._head = AuditHead(self._head.sequence + 1, hashlib.sha256(line).hexdigest())
        return self._head

    def close(self) -> None:
        """Releases the file."""
        os.close(self._descriptor)


def verify(path: Path, *, noted: AuditHead | None = None) -> AuditHead:
    """Checks every record's place in the chain; gives the head.

    Args:
        path: the log; it may be in use.
        noted: a head noted earlier, which must still be in the chain.
    Raises:
        IntegrityError: the first line that does not fit, or `noted` is not in the chain.
        MissingPart: no such file.
    """
    return _scan(path, noted)[0]


def _scan(path: Path, noted: AuditHead | None) -> tuple[AuditHead, int, int]:
    """Head, bytes of whole lines, bytes of a torn last line."""
    head, length = AuditHead(0, GENESIS), 0
    seen = noted is None or noted == head
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise MissingPart(f"{path}: no audit log there. Set data_dir to the key service's.") from None
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                return _seen(path, head, seen, noted), length, len(line)
            record = _parse(path, head, line)
            if record.get("sequence") != head.sequence + 1 or record.get("previous") != head.digest:
                raise IntegrityError(
                    f"{path} line {head.sequence + 1}: does not follow from the line before it: "
                    "a record was changed, removed or put in."
                )
            head = AuditHead(head.sequence + 1, hashlib.sha256(line[:-1]).hexdigest())
            seen = seen or head == noted
            length += len(line)
    return _seen(path, head, seen, noted), length, 0


def _seen(path: Path, head: AuditHead, seen: bool, noted: AuditHead | None) -> AuditHead:
    if not seen:
        raise IntegrityError(f"{path}: the noted head {noted} is not in the chain: records were cut off.")
    return head


def _parse(path: Path, head: AuditHead, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise IntegrityError(f"{path} line {head.sequence + 1}: not a JSON object.")
    return record
