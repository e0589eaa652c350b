"""Pseudonyms: stable stand-ins for account numbers, the same for a tenant as long as its key lives."""

import base64
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weir.crypto.secret import Secret

if TYPE_CHECKING:
    from weir.columns import ByteColumn, Column
    from weir.crypto.columns import PseudonymColumns

KEY_BYTES = 32
PSEUDONYM_BYTES = 22
_MAC_BYTES = 16
_HASH_KEY_BYTES = 16
_HASH_KEY_INFO = b"weir.keyed-hash.v1"


class Pseudonymizer:
    """Turns account ids into pseudonyms: HMAC-SHA-256, first 16 bytes, base64url without padding.

    Holds the pseudonyms of the last `cache_entries_max` accounts or so, never more.
    """

    def __init__(self, tenant: str, secret: Secret, *, cache_entries_max: int = 131_072) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a pseudonym key is {KEY_BYTES} bytes")
        self.tenant = tenant
        self._secret = secret
        # Two generations in place of an LRU list: a hit costs one lookup, dropping the older half nothing.
        self._half = max(1, cache_entries_max // 2)
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._columns: PseudonymColumns | None = None
        self._hash_key = self.derive(_HASH_KEY_INFO, _HASH_KEY_BYTES)

    @property
    def hash_key(self) -> bytes:
        """16 bytes derived (HKDF-SHA-256) from the same key, for the state's keyed hash."""
        return self._hash_key

    def derive(self, info: bytes, length: int) -> bytes:
        """A key for another purpose from the same secret: HKDF-SHA-256 (RFC 5869)."""
        derived: bytes = HKDF(SHA256(), length, salt=None, info=info).derive(self._secret.reveal())
        return derived

    def of(self, account_id: bytes) -> bytes:
        """The pseudonym, 22 ASCII bytes."""
        known = self._young.get(account_id)
        return known if known is not None else self._remember(account_id)

    def of_all(self, account_ids: Iterable[bytes]) -> list[bytes]:
        """`of` each, in order."""
        get, remember = self._young.get, self._remember
        out = []
        for account_id in account_ids:
            known = get(account_id)
            if known is None:
                known = remember(account_id)
                get = self._young.get
            out.append(known)
        return out

    def of_column(self, account_ids: "Column") -> "ByteColumn":
        """`of` each of a column, with a cache of its own; of the extra `services` (numpy, numba).

        Raises:
            ValueError: a string lies outside its buffer.
        """
        from weir.crypto.columns import PseudonymColumns

        if self._columns is None:
            self._columns = PseudonymColumns(self._secret)
        return self._columns.of(account_ids)

    def _remember(self, account_id: bytes) -> bytes:
        pseudonym = self._old.get(account_id)
        if pseudonym is None:
            mac = hmac.digest(self._secret.reveal(), account_id, "sha256")
            pseudonym = base64.urlsafe_b64encode(mac[:_MAC_BYTES])[:PSEUDONYM_BYTES]
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[account_id] = pseudonym
        return pseudonym

    def __repr__(self) -> str:
        return f"Pseudonymizer(tenant={self.tenant!r})"
