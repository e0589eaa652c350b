"""What a batch says of terminals, as its journal record carries it to the other workers."""

import numpy as np
from numpy.typing import NDArray

from weir.features.columns import Payments

_HOUR_MS = 3_600_000
_TERMINAL_BYTES, _HOUR_BYTES = 8, 4


def contributions_of(payments: Payments) -> bytes:
    """What a batch says of terminals: n hashes (u64, little endian), then n event hours (i32)."""
    hour = (payments.event_ms // _HOUR_MS).astype("<i4")
    return payments.terminal.astype("<u8", copy=False).tobytes() + hour.tobytes()


def contributions_max(record: bytes) -> int:
    """How many contributions a journal record of so many bytes has at most."""
    return len(record) // (_TERMINAL_BYTES + _HOUR_BYTES)


def split_contributions(data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """(n,) terminal hashes and (n,) hours of `contributions_of`."""
    count = len(data) // (_TERMINAL_BYTES + _HOUR_BYTES)
    terminal = np.frombuffer(data, "<u8", count)
    hour = np.frombuffer(data, "<i4", count, count * _TERMINAL_BYTES)
    return terminal.astype(np.uint64, copy=False), hour.astype(np.int32, copy=False)
