# mypy: allow-untyped-defs
"""What every row looks like outside its table: a version, whose features it holds, a body, a checksum.

    version u8 | spec tag u16 LE | body | CRC-32C u32 LE over the key's 8 bytes and all before it

The key goes beside it (a changelog record's key), so a value under another's key is refused. The body is the
version's own. Bodies of older versions are read by their own decoders: that is how a format is migrated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weir.columns import ByteColumn
from weir.errors import IntegrityError
from weir.state.crc import TABLES, crc32c
from weir.state.jit import kernel

HEAD_BYTES = 3
CRC_BYTES = 4
# What a decoder may read beyond a value's end.
_SLACK_BYTES = 16

# What was found of a value. The words are those of the error.
GOOD, SHORT, BAD_CHECKSUM, OTHER_SPEC, BAD_BODY, UNKNOWN_VERSION, BAD_KEY = range(7)
_WORDS = {
    SHORT: "it is too short to be a row",
    BAD_CHECKSUM: "its checksum does not match",
    OTHER_SPEC: "it was written for another feature spec",
    BAD_BODY: "its body is malformed",
    BAD_KEY: "its key is no entity's",
    UNKNOWN_VERSION: "its version is not one that this release reads",
}

# (values, which of them, rows to fill) -> a finding for each of them; the row's key is already in place.
Decoder = Callable[[ByteColumn, NDArray[np.int64], NDArray[np.uint8]], NDArray[np.int8]]


class RowDamaged(IntegrityError):
    """A row's bytes are not what they claim to be; `index` is its place in the batch."""

    def __init__(self, what: str, index: int, finding: int) -> None:
        self.what, self.index, self.finding, self.why = what, index, finding, _WORDS[finding]
        super().__init__(f"{what} row {index} of the batch: {self.why}. Rebuild the state from events.")

    def at(self, index: int) -> "RowDamaged":
        """The same of another place."""
        return RowDamaged(self.what, index, self.finding)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the rows of one table are read; they are always written in the newest version.

    what: the entity, for messages. row_bytes: of a row in its table. tag: of the feature spec.
    decoders: version -> how its body is read.
    """

    what: str
    row_bytes: int
    tag: int
    decoders: Mapping[int, Decoder]

    def decode(self, keys: NDArray[np.uint64], values: ByteColumn) -> NDArray[np.uint8]:
        """(n, row_bytes) uint8: every row, its key in its first 8 bytes, its stamp 0.

        Args:
            keys: (n,) never 0. values: of the same length, without nulls.
        Raises:
            RowDamaged: the first value that is not a whole row of this spec under this key.
        """
        rows = np.zeros((len(keys), self.row_bytes), np.uint8)
        rows.view(np.uint64)[:, 0] = keys
        # A decoder checks where it has come to after each few bytes, not before.
        buffer = np.concatenate([values.buffer, np.zeros(_SLACK_BYTES, np.uint8)])
        values = ByteColumn(buffer, values.start, values.length)
        found = np.zeros(len(keys), np.int8)
        versions = np.zeros(len(keys), np.uint8)
        _check(buffer, _SLACK_BYTES, values.start, values.length, keys, self.tag, TABLES, versions, found)
        # Most batches are good and of one version; of the others, each version has its decoder.
        for version in set(versions.tobytes()):
            which = np.flatnonzero((versions == version) & (found == GOOD))
            decoder = self.decoders.get(version)
            found[which] = decoder(values, which, rows) if decoder is not None else UNKNOWN_VERSION
        bad = np.flatnonzero(found)
        if bad.size:
            raise RowDamaged(self.what, int(bad[0]), int(found[bad[0]]))
        return rows


def spec_tag(spec_id: str) -> int:
    """16 bits of a feature spec's id."""
    return int(spec_id[:4], 16)


@kernel
def seal(tables, key, buffer, start, stop):
    """Write the checksum of `buffer[start:stop]` under `key` behind it; where it ends."""
    crc = _keyed_crc(tables, key, buffer, start, stop)
    for byte in range(CRC_BYTES):
        buffer[stop + byte] = np.uint8((crc >> np.uint32(8 * byte)) & np.uint32(0xFF))
    return stop + CRC_BYTES


@kernel
def _keyed_crc(tables, key, buffer, start, stop):
    # The key's bytes as they stand in a record: one step, which is the first.
    word = key ^ np.uint64(0xFFFFFFFF)
    crc = np.uint32(0xFFFFFFFF)
    for byte in range(8):
        crc ^= tables[7 - byte, (word >> np.uint64(8 * byte)) & np.uint64(0xFF)]
    return crc32c(tables, buffer, start, stop, crc)


@kernel
def _check(buffer, slack, start, length, keys, tag, tables, versions, found):
    for index in range(keys.size):
        at, stop = start[index], start[index] + length[index] - CRC_BYTES
        if length[index] < HEAD_BYTES + CRC_BYTES or at < 0 or stop + CRC_BYTES > buffer.size - slack:
            found[index] = SHORT
            continue
        crc = np.uint32(0)
        for byte in range(CRC_BYTES):
            crc |= np.uint32(buffer[stop + byte]) << np.uint32(8 * byte)
        if crc != _keyed_crc(tables, keys[index], buffer, at, stop):
            found[index] = BAD_CHECKSUM
        elif np.int64(buffer[at + 1]) | (np.int64(buffer[at + 2]) << 8) != tag:
            found[index] = OTHER_SPEC
        versions[index] = buffer[at]
