"""Seals and opens records. The value on the wire is a Tink ciphertext, which Java, Go and C++ can read.

    value   0x01 | key id, u32 big-endian | IV, 12 bytes | ciphertext | tag, 16 bytes
    header  `weir.envelope`: 0x01 | schema id, u32 big-endian | record id, 16 bytes
    AAD     "weir.envelope.v1" NUL topic NUL | key id, u32 | schema id, u32 | record id, 16 bytes

The associated data ties a value to its topic, schema and record id: moved elsewhere, it does not open.
The suite is a property of the key, not of the wire. Source of the value's layout: Tink's wire format,
"AEAD, AES-GCM" with the TINK output prefix.
"""

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import SM4
from cryptography.hazmat.primitives.ciphers.modes import GCM

from weir.crypto._openssl import gcm_context
from weir.crypto.secret import DataKey, Suite
from weir.errors import IntegrityError, MissingPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from weir.columns import ByteColumn, Column
    from weir.crypto.columns import ColumnCipher

HEADER_NAME = "weir.envelope"
HEADER_BYTES = 21
RECORD_ID_BYTES = 16
IV_BYTES = 12
TAG_BYTES = 16
PREFIX_BYTES = 5
OVERHEAD_BYTES = PREFIX_BYTES + IV_BYTES + TAG_BYTES

_VERSION = 1
_HEADER = struct.Struct(">BI16s")
_PREFIX = struct.Struct(">BI")
_IDS = struct.Struct(">II")
_CONTEXT = b"weir.envelope.v1\0"
_IV = struct.Struct(f"{IV_BYTES}s")


class UnknownKey(IntegrityError):
    """A value names a key that the opener does not hold."""

    def __init__(self, key_id: int) -> None:
        self.key_id = key_id
        super().__init__(f"The value names data key {key_id:08x}, which is not known here.")


class Aead(Protocol):
    """Authenticated encryption as `cryptography` shapes it; the tag ends the ciphertext."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Ciphertext and tag."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Plaintext; raises InvalidTag."""


class Sm4Gcm:
    """SM4 in GCM (RFC 8998's AEAD_SM4_GCM) in the shape of `AESGCM`; about 10 µs a record."""

    def __init__(self, key: bytes) -> None:
        self._algorithm = SM4(key)

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Ciphertext and tag."""
        encryptor = Cipher(self._algorithm, GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(associated_data or b"")
        return encryptor.update(data) + encryptor.finalize() + encryptor.tag

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Plaintext; raises InvalidTag."""
        if len(data) < TAG_BYTES:
            raise InvalidTag
        decryptor = Cipher(self._algorithm, GCM(nonce, data[-TAG_BYTES:])).decryptor()
        decryptor.authenticate_additional_data(associated_data or b"")
        return decryptor.update(data[:-TAG_BYTES]) + decryptor.finalize()


def aead_of(key: DataKey) -> Aead:
    """The key's cipher, with its key schedule made once.

    Raises:
        MissingPart: this build of OpenSSL lacks the suite.
    """
    try:
        if key.suite is Suite.AES_256_GCM:
            return AESGCM(key.secret.reveal())
        cipher = Sm4Gcm(bytes(key.secret.reveal()))
        cipher.encrypt(bytes(IV_BYTES), b"", None)
    except UnsupportedAlgorithm as error:
        raise MissingPart(
            f"{key.suite.name} is not in this build of OpenSSL. Install cryptography's own wheel."
        ) from error
    return cipher


def envelope_header(schema_id: int, record_id: bytes) -> bytes:
    """The 21 bytes of the Kafka header `weir.envelope`.

    Raises:
        ValueError: `record_id` is not 16 bytes, or `schema_id` does not fit 32 bits.
    """
    if len(record_id) != RECORD_ID_BYTES or not 0 <= schema_id <= 0xFFFFFFFF:
        raise ValueError("an envelope header needs a 32-bit schema id and a record id of 16 bytes")
    return _HEADER.pack(_VERSION, schema_id, record_id)


def envelope_headers(schema_id: int, record_ids: Sequence[bytes]) -> list[bytes]:
    """`envelope_header` of many records (16 bytes each, unchecked: `seal_batch` checks them)."""
    start = _PREFIX.pack(_VERSION, schema_id)
    return [start + record_id for record_id in record_ids]


def parse_envelope_header(header: bytes) -> tuple[int, bytes]:
    """Schema id and record id (16 bytes).

    Raises:
        IntegrityError: another length, or a version other than 1.
    """
    if len(header) != HEADER_BYTES or header[0] != _VERSION:
        raise IntegrityError(f"Header {HEADER_NAME}: not {HEADER_BYTES} bytes of version {_VERSION}.")
    _, schema_id, record_id = _HEADER.unpack(header)
    return schema_id, record_id


def sealing_key_id(value: bytes) -> int:
    """Which data key sealed this value.

    Raises:
        IntegrityError: too short to be sealed, or not a Tink ciphertext.
    """
    if len(value) < OVERHEAD_BYTES or value[0] != _VERSION:
        raise IntegrityError("The value is not sealed: no Tink ciphertext of version 1.")
    return int.from_bytes(value[1:PREFIX_BYTES], "big")


def associated_data(topic: str, key_id: int, schema_id: int, record_id: bytes) -> bytes:
    """What the tag covers beside the ciphertext."""
    return _CONTEXT + topic.encode() + b"\0" + _IDS.pack(key_id, schema_id) + record_id


class Sealing:
    """Everything that sealing needs of one key, so that a new key arrives by one assignment."""

    __slots__ = ("columns", "context", "encrypt", "epoch", "key_id", "prefix")

    def __init__(self, key: DataKey) -> None:
        self.key_id, self.epoch = key.key_id, key.epoch
        self.prefix = _PREFIX.pack(_VERSION, key.key_id)
        self.encrypt = aead_of(key).encrypt
        # Now, for a caller may wipe the key; the cipher over columns is made when the first column comes.
        self.context = gcm_context(key)
        self.columns: ColumnCipher | None = None


class Sealer:
    """Seals the records of one topic with its newest data key."""

    def __init__(self, topic: str, key: DataKey) -> None:
        self.topic = topic
        self._sealing = self._checked(key)

    def _checked(self, key: DataKey) -> Sealing:
        if key.compartment.topic != self.topic:
            raise ValueError(f"data key {key.key_id:08x} belongs to {key.compartment}, not to {self.topic}")
        return Sealing(key)

    def _current(self) -> Sealing:
        """What the batch that begins now is sealed with."""
        return self._sealing

    @property
    def key_id(self) -> int:
        """The key that the next batch is sealed with."""
        return self._sealing.key_id

    @property
    def epoch(self) -> int:
        """The epoch of that key."""
        return self._sealing.epoch

    def use(self, key: DataKey) -> None:
        """Seal with `key` from the next batch on; a batch under way ends with the key it began with.

        Raises:
            ValueError: the key belongs to another topic.
        """
        self._sealing = self._checked(key)

    def seal_batch(
        self, plaintexts: Sequence[bytes], record_ids: Sequence[bytes], schema_id: int
    ) -> list[bytes]:
        """One value for each plaintext, in order, each with a fresh random IV.

        Args:
            plaintexts: Confluent-framed Avro.
            record_ids: 16 bytes each, as many as plaintexts.
            schema_id: of all of them; it must also stand in each record's header.
        Raises:
            ValueError: counts differ, or a record id is not 16 bytes.
        """
        if len(plaintexts) != len(record_ids):
            raise ValueError(f"{len(plaintexts)} plaintexts but {len(record_ids)} record ids")
        if record_ids and set(map(len, record_ids)) != {RECORD_ID_BYTES}:
            raise ValueError(f"every record id must be {RECORD_ID_BYTES} bytes")
        sealing = self._current()
        prefix, encrypt = sealing.prefix, sealing.encrypt
        context = associated_data(self.topic, sealing.key_id, schema_id, b"")
        # One system call for all IVs, and iter_unpack cuts them in C: 1.0 µs a record of 700 bytes in all.
        ivs = _IV.iter_unpack(os.urandom(IV_BYTES * len(plaintexts)))
        return [
            prefix + iv + encrypt(iv, plaintext, context + record_id)
            for (iv,), plaintext, record_id in zip(ivs, plaintexts, record_ids, strict=True)
        ]

    def seal_column(
        self, plaintexts: "Column", record_ids: "NDArray[np.uint8]", schema_id: int
    ) -> "ByteColumn":
        """`seal_batch` of a column, in a buffer of its own; of the extra `services` (numpy, numba).

        Args:
            plaintexts: Confluent-framed Avro.
            record_ids: (n, 16) uint8.
            schema_id: of all of them; it must also stand in each record's header.
        Raises:
            ValueError: counts differ, or a plaintext lies outside its buffer.
        """
        from weir.crypto import columns

        sealing = self._current()
        if sealing.columns is None:
            sealing.columns = columns.cipher_of(sealing.context, sealing.encrypt)
        context = associated_data(self.topic, sealing.key_id, schema_id, b"")
        return columns.seal(sealing.columns, sealing.prefix, context, plaintexts, record_ids)


class Opener:
    """Opens values of any topic with the data keys it was given."""

    def __init__(self) -> None:
        self._ciphers: dict[int, tuple[str, Aead]] = {}

    def add(self, key: DataKey) -> None:
        """Hold `key` from now on."""
        self._ciphers[key.key_id] = (key.compartment.topic, aead_of(key))

    def discard(self, key_id: int) -> None:
        """Hold the key no longer; no error when it was not held."""
        self._ciphers.pop(key_id, None)

    def __contains__(self, key_id: int) -> bool:
        return key_id in self._ciphers

    def open(self, value: bytes, topic: str, envelope_header: bytes) -> bytes:
        """The plaintext of a sealed value.

        Raises:
            UnknownKey: the key that the value names was not added; it carries `key_id`.
            IntegrityError: value, header or topic is not what was sealed.
        """
        schema_id, record_id = parse_envelope_header(envelope_header)
        key_id = sealing_key_id(value)
        held = self._ciphers.get(key_id)
        if held is None:
            raise UnknownKey(key_id)
        key_topic, cipher = held
        if key_topic != topic:
            raise IntegrityError(f"A value on {topic} names data key {key_id:08x}, which is another topic's.")
        context = associated_data(topic, key_id, schema_id, record_id)
        iv_end = PREFIX_BYTES + IV_BYTES
        try:
            return cipher.decrypt(value[PREFIX_BYTES:iv_end], value[iv_end:], context)
        except InvalidTag:
            raise IntegrityError(
                f"A value on {topic}, sealed with data key {key_id:08x}, does not open: "
                "it or its header was changed, or it was sealed for another record."
            ) from None
