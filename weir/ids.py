"""Identifiers that anyone can compute again from the event: the same event gives the same decision id."""

import hashlib
import uuid
from collections.abc import Sequence

# uuid5(NAMESPACE_URL, "weir:decision"); fixed for good, since every stored decision id hangs on it.
NAMESPACE = uuid.UUID("88a7cf86-8a89-5359-9364-05ed8db49993")

ID_BYTES = 16
_DIGEST_BYTES = 20
# RFC 9562: byte 6 holds the version (5), byte 8 the variant (binary 10).
_VERSION = bytes((value & 0x0F) | 0x50 for value in range(256))
_VARIANT = bytes((value & 0x3F) | 0x80 for value in range(256))


def decision_id(tenant: str, event_id: str, kind: str) -> uuid.UUID:
    """The id of the decision of one kind on one event: UUID version 5 of tenant, kind and event.

    Raises:
        ValueError: `tenant` or `kind` holds a NUL, which separates the parts.
    """
    return uuid.UUID(bytes=decision_ids(tenant, [event_id.encode()], kind)[0])


def decision_ids(tenant: str, event_ids: Sequence[bytes], kind: str) -> list[bytes]:
    """`decision_id` of many events as 16 bytes each, in their order; `event_ids` are UTF-8.

    Raises:
        ValueError: `tenant` or `kind` holds a NUL.
    """
    return _uuid5_of_all(name_prefix(tenant, kind), event_ids)


def name_prefix(tenant: str, kind: str) -> bytes:
    """What is hashed before the event id: the namespace, then tenant and kind, each ended by a NUL.

    Raises:
        ValueError: `tenant` or `kind` holds a NUL.
    """
    if "\0" in tenant or "\0" in kind:
        raise ValueError("tenant and kind must not contain NUL")
    return NAMESPACE.bytes + f"{tenant}\0{kind}\0".encode()


def dead_letter_id(topic: str, partition: int, offset: int) -> uuid.UUID:
    """The id of the dead letter of one source record: UUID version 5 of where it lay."""
    return uuid.uuid5(NAMESPACE, f"dead-letter\0{topic}\0{partition}\0{offset}")


def _uuid5_of_all(prefix: bytes, names: Sequence[bytes]) -> list[bytes]:
    """UUID version 5 of each name; `prefix`, the namespace and what the names begin with, is hashed once."""
    start = hashlib.sha1(prefix, usedforsecurity=False)
    digests = []
    for name in names:
        state = start.copy()
        state.update(name)
        digests.append(state.digest())
    # The fixed bits are set in all digests at once: a strided translate instead of two stores a row.
    joined = bytearray(b"".join(digests))
    joined[6::_DIGEST_BYTES] = joined[6::_DIGEST_BYTES].translate(_VERSION)
    joined[8::_DIGEST_BYTES] = joined[8::_DIGEST_BYTES].translate(_VARIANT)
    whole = bytes(joined)
    return [whole[at : at + ID_BYTES] for at in range(0, len(whole), _DIGEST_BYTES)]
