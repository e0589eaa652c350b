"""What a worker writes of itself, in the transaction of its decisions: what each batch had seen, its mark.

A journal record stands for one batch: the input's offsets, what the state had taken in beside them, and
under which versions it was decided. With it the batch can be decided again, bit for bit. Its `contributions`
are what the batch adds to state that workers share.

A mark stands at the end of what a batch changed in a partition's state: which input the state stands for.

    value = MessagePack array, first item the version | CRC-32 of all before (4 bytes, big endian)
"""

import zlib
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from weir.errors import IntegrityError

# 1 did not say where the changelog begins.
MARK_VERSION = 2
# 1 had neither rates nor reasons, 2 no canary. Each record is of the lowest version that says all of it, so
# that workers of an earlier release read on until the first canary decides.
JOURNAL_VERSION = 3
JOURNAL_WITHOUT_CANARY = 2
_CRC_BYTES = 4

Offsets = Mapping[int, int]  # partition to the next offset


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The state of one partition, as of a commit.

    next_offset: of the input; the records before it are in the state.
    labels: next offset of each partition of the labels topic; what is before has been learnt.
    seen: of each input partition the offset up to which its contributions had entered the shared state.
    clock: the state's own counters.
    spec: what the state's rows mean; another spec cannot use them.
    owner: which worker wrote it.
    since: the changelog's offset from which on it tells of this state; what is before tells of another.
    whole: whether it tells of every row by now.
    """

    version: int
    next_offset: int
    labels: dict[int, int]
    seen: dict[int, int]
    clock: list[int]
    spec: str
    owner: str
    since: int = 0
    whole: bool = True


class JournalRecord(msgspec.Struct, frozen=True, array_like=True):
    """One batch, as it was decided.

    offset_first, next_offset: of the input partition, whose number is the journal's partition.
    labels, seen: see `Mark`; of the moment before the batch.
    read_ms: the clock when it was read, ms since the epoch.
    model, policy: the SHA-256 of each, hexadecimal; model is empty when rules decided alone.
    degraded: why there was no model, or empty.
    contributions: of the service, in its own format.
    rates, reasons: the SHA-256 of each, hexadecimal; empty in a record of version 1, which does not say.
    canary, canary_share: the SHA-256 of the model that decided for that share of the accounts; empty without.
    """

    version: int
    offset_first: int
    next_offset: int
    labels: dict[int, int]
    seen: dict[int, int]
    read_ms: int
    model: str
    policy: str
    degraded: str
    owner: str
    contributions: bytes
    rates: str = ""
    reasons: str = ""
    canary: str = ""
    canary_share: float = 0.0


Kind = TypeVar("Kind", Mark, JournalRecord)
_NEWEST: Mapping[type[Mark] | type[JournalRecord], int] = {Mark: MARK_VERSION, JournalRecord: JOURNAL_VERSION}


def encode(record: Mark | JournalRecord) -> bytes:
    """The record's bytes."""
    body = msgspec.msgpack.encode(record)
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES)


def decode(value: bytes | None, kind: type[Kind], where: str) -> Kind:
    """The record that `encode` wrote, in this release or an earlier one.

    Args:
        where: topic, partition and offset, for the error.
    Raises:
        IntegrityError: a byte differs, or a later release wrote it.
    """
    if value is None or len(value) <= _CRC_BYTES:
        raise IntegrityError(f"{where}: not a {kind.__name__}, it is too short.")
    body, crc = value[:-_CRC_BYTES], value[-_CRC_BYTES:]
    if zlib.crc32(body).to_bytes(_CRC_BYTES) != crc:
        raise IntegrityError(f"{where}: the checksum of a {kind.__name__} does not match.")
    try:
        record = msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{where}: not a {kind.__name__} of this release.") from error
    newest = _NEWEST[kind]
    if not 1 <= record.version <= newest:
        raise IntegrityError(
            f"{where}: {kind.__name__} version {record.version}, this release reads 1 to {newest}."
        )
    return record
