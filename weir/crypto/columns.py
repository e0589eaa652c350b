"""Ids, pseudonyms and seals of whole columns: no Python object a record. Of the extra `services`.

`weir.ids`, `weir.crypto.pseudonym` and `Sealer.seal_batch` do the same one by one, and are the reference that
the tests hold this against.
"""

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import astuple
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from weir.columns import ByteColumn, Column
from weir.crypto import _gcm_kernels as gcm
from weir.crypto import _hash_kernels as kernels
from weir.crypto._openssl import GcmContext, gcm_context
from weir.crypto.envelope import HEADER_BYTES, envelope_header
from weir.crypto.secret import Compartment, DataKey, Secret, Suite
from weir.ids import name_prefix

IV_BYTES = gcm.IV_BYTES
ID_BYTES = kernels.ID_BYTES
PSEUDONYM_BYTES = kernels.PSEUDONYM_BYTES
# 8 MiB: twice as many lines as the accounts that pay in some seconds of full load.
CACHE_ROWS = 131_072

Encrypt = Callable[[bytes, bytes, bytes], bytes]


def decision_id_column(tenant: str, event_ids: Column, kind: str) -> NDArray[np.uint8]:
    """(n, 16) `weir.ids.decision_id` of each event.

    Raises:
        ValueError: `tenant` or `kind` holds a NUL, or a string lies outside its buffer.
    """
    prefix = np.frombuffer(name_prefix(tenant, kind), np.uint8)
    out = np.empty((len(event_ids.start), ID_BYTES), np.uint8)
    if not kernels.uuid5_rows(prefix, *_arrays(event_ids), out):
        raise ValueError("an event id lies outside its buffer")
    return out


def fixed_column(rows: NDArray[np.uint8]) -> ByteColumn:
    """(n, w) uint8 as a column of n strings of w bytes."""
    count, width = rows.shape
    return ByteColumn(
        np.ascontiguousarray(rows).reshape(-1), np.arange(count) * width, np.full(count, width, np.int64)
    )


def envelope_header_column(schema_id: int, record_ids: NDArray[np.uint8]) -> ByteColumn:
    """`weir.crypto.envelope.envelope_header` of many records; record_ids: (n, 16) uint8."""
    head = np.frombuffer(envelope_header(schema_id, bytes(ID_BYTES)), np.uint8)[:-ID_BYTES]
    headers = np.empty((len(record_ids), HEADER_BYTES), np.uint8)
    headers[:, :-ID_BYTES] = head
    headers[:, -ID_BYTES:] = record_ids
    return fixed_column(headers)


class PseudonymColumns:
    """`Pseudonymizer.of` over columns; remembers the accounts that it met last, never more than its cache."""

    def __init__(self, secret: Secret, *, cache_rows: int = CACHE_ROWS) -> None:
        """`cache_rows` must be a power of two."""
        if cache_rows < 1 or cache_rows & (cache_rows - 1):
            raise ValueError(f"cache_rows must be a power of two, not {cache_rows}")
        self._inner, self._outer = np.empty(8, np.uint32), np.empty(8, np.uint32)
        kernels.hmac_states(np.frombuffer(secret.reveal(), np.uint8), self._inner, self._outer)
        self._cache = np.zeros((cache_rows, kernels.CACHE_ROW_BYTES), np.uint8)
        self.computed_total = 0

    def of(self, account_ids: Column) -> ByteColumn:
        """The pseudonyms, 22 ASCII bytes each.

        Raises:
            ValueError: a string lies outside its buffer.
        """
        out = np.empty((len(account_ids.start), PSEUDONYM_BYTES), np.uint8)
        computed = kernels.pseudonym_rows(self._inner, self._outer, self._cache, *_arrays(account_ids), out)
        if computed < 0:
            raise ValueError("an account id lies outside its buffer")
        self.computed_total += computed
        return fixed_column(out)


class ColumnCipher(Protocol):
    """One key's cipher over columns."""

    def seal(
        self, prefix: bytes, ivs: bytes, context: bytes, plaintexts: Column, record_ids: NDArray[np.uint8], /
    ) -> ByteColumn:
        """Prefix, IV (12 bytes of `ivs` a row), ciphertext, tag; `context` and the id are authenticated."""


class PlainColumnCipher:
    """Row by row, by `cryptography`: any suite, and any Python."""

    def __init__(self, encrypt: Encrypt) -> None:
        self._encrypt = encrypt

    def seal(
        self, prefix: bytes, ivs: bytes, context: bytes, plaintexts: Column, record_ids: NDArray[np.uint8], /
    ) -> ByteColumn:
        """See `ColumnCipher`."""
        whole, ids, encrypt = plaintexts.buffer.data, record_ids.tobytes(), self._encrypt
        sealed = []
        for row, (start, length) in enumerate(
            zip(plaintexts.start.tolist(), plaintexts.length.tolist(), strict=True)
        ):
            if start < 0 or length < 0 or start + length > len(whole):
                raise ValueError("a plaintext lies outside its buffer")
            iv = ivs[IV_BYTES * row : IV_BYTES * (row + 1)]
            record_id = ids[ID_BYTES * row : ID_BYTES * (row + 1)]
            sealed.append(
                prefix + iv + encrypt(iv, bytes(whole[start : start + length]), context + record_id)
            )
        return ByteColumn.from_list(sealed)


class NativeColumnCipher:
    """By OpenSSL from a compiled loop, the interpreter's lock released."""

    def __init__(self, context: GcmContext) -> None:
        self._context = context
        self._functions = np.array(astuple(context.functions), np.int64)
        self._one_at_a_time = threading.Lock()

    def seal(
        self, prefix: bytes, ivs: bytes, context: bytes, plaintexts: Column, record_ids: NDArray[np.uint8], /
    ) -> ByteColumn:
        """See `ColumnCipher`."""
        buffer, start, length = _arrays(plaintexts)
        count = len(start)
        size = max(0, int(length.sum())) + count * (len(prefix) + IV_BYTES + gcm.TAG_BYTES)
        out = np.empty(size, np.uint8)
        out_start, out_length = np.empty(count, np.int64), np.empty(count, np.int64)
        ids = np.ascontiguousarray(record_ids).view()
        ids.flags.writeable = False
        with self._one_at_a_time:
            left = gcm.seal_rows(
                self._functions,
                self._context.address,
                out,
                out_start,
                out_length,
                np.frombuffer(prefix, np.uint8),
                np.frombuffer(ivs, np.uint8).reshape(count, IV_BYTES),
                np.frombuffer(bytearray(context + bytes(ID_BYTES)), np.uint8),
                ids,
                buffer,
                start,
                length,
                np.empty(1, np.int32),
            )
        if left == gcm.OUTSIDE:
            raise ValueError("a plaintext lies outside its buffer")
        if left:
            raise RuntimeError(f"OpenSSL did not seal row {count + left} of {count}")
        return ByteColumn(out, out_start, out_length)


@functools.cache
def _openssl_agrees() -> bool:
    """Whether OpenSSL seals as `cryptography` does; asked once, with a key of its own."""
    material, iv, record_id = os.urandom(32), os.urandom(IV_BYTES), os.urandom(ID_BYTES)
    context = gcm_context(DataKey(0, Compartment("", ""), 0, Suite.AES_256_GCM, Secret(material)))
    if context is None:
        return False
    ids = np.frombuffer(record_id, np.uint8).reshape(1, ID_BYTES)
    try:
        sealed = NativeColumnCipher(context).seal(b"", iv, b"context", ByteColumn.from_list([material]), ids)
    except RuntimeError:
        return False
    return sealed.to_list() == [iv + AESGCM(material).encrypt(iv, material, b"context" + record_id)]


def cipher_of(context: GcmContext | None, encrypt: Encrypt) -> ColumnCipher:
    """A key's fastest cipher over columns, of its context in OpenSSL (if there is one) and its plain one."""
    if context is not None and _openssl_agrees():
        return NativeColumnCipher(context)
    return PlainColumnCipher(encrypt)


def seal(
    cipher: ColumnCipher, prefix: bytes, context: bytes, plaintexts: Column, record_ids: NDArray[np.uint8]
) -> ByteColumn:
    """Each plaintext sealed under a fresh random IV, in order.

    Raises:
        ValueError: counts differ, ids are not 16 bytes, or a plaintext lies outside its buffer.
    """
    count = len(plaintexts.start)
    if record_ids.shape != (count, ID_BYTES) or record_ids.dtype != np.uint8:
        raise ValueError(f"record ids must be uint8 ({count}, {ID_BYTES}), not {record_ids.shape}")
    # One system call for all IVs.
    return cipher.seal(prefix, os.urandom(IV_BYTES * count), context, plaintexts, record_ids)


def _arrays(column: Column) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """One type for every caller: a writable buffer would have the loops compiled a second time."""
    buffer = np.ascontiguousarray(column.buffer).view()
    buffer.flags.writeable = False
    return buffer, np.ascontiguousarray(column.start, np.int64), np.ascontiguousarray(column.length, np.int64)
