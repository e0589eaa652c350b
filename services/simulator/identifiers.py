"""Identifiers from indexes, whole columns at once: fixed-width text, so a column is a matrix of bytes."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

ACCOUNT_DIGITS = 10
TERMINAL_DIGITS = 8
EVENT_DIGITS = 9


def account_ids(index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n, 11) bytes such as A0000000123."""
    return numbered(b"A", index, ACCOUNT_DIGITS)


def terminal_ids(index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n, 9) bytes such as T00000123."""
    return numbered(b"T", index, TERMINAL_DIGITS)


def event_ids(prefix: bytes, first: int, count: int) -> NDArray[np.uint8]:
    """(count, len(prefix) + 9) bytes: the prefix and a running number from `first`."""
    return numbered(prefix, np.arange(first, first + count), EVENT_DIGITS)


def day_prefix(start_ms: int) -> bytes:
    """What the ids of a simulated day's payments begin with, such as E20260101-."""
    return datetime.fromtimestamp(start_ms / 1000, UTC).strftime("E%Y%m%d-").encode()


def numbered(prefix: bytes, index: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    """(n, len(prefix) + digits) bytes: `prefix` and each index with leading zeros.

    Raises:
        ValueError: an index is negative or has more digits.
    """
    if index.size and not (index.min() >= 0 and index.max() < 10**digits):
        raise ValueError(f"an index does not fit {digits} digits")
    text = np.empty((index.size, len(prefix) + digits), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    rest = index.astype(np.int64)
    for column in range(text.shape[1] - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, column] = digit + ord("0")
    return text
