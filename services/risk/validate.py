"""Which decoded payments are fit to be decided, by column; the rest are dead letters.

A row has one reason, the first of `REASONS` that holds. Pure: time, limits and rates are passed in.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from services.risk.batch import AMOUNT_SCALE
from services.risk.policy import Limits
from services.risk.rules import currency_code
from weir.codec.columns import StringColumn
from weir.errors import ConfigError

GOOD = -1
REASONS: tuple[str, ...] = (
    "empty_id",
    "id_too_long",
    "unknown_currency",
    "negative_amount",
    "zero_amount",
    "absurd_amount",
    "event_in_future",
    "event_too_old",
)
_CODE = {reason: code for code, reason in enumerate(REASONS)}

# For the dead letter's detail; never with the value itself.
DETAILS: Mapping[str, str] = MappingProxyType(
    {
        "empty_id": "event_id, account_id or terminal_id is empty",
        "id_too_long": "an identifier is longer than the policy's limits.id_bytes_max",
        "unknown_currency": "currency is not an ISO 4217 code that [risk.rates] lists",
        "negative_amount": "amount is negative",
        "zero_amount": "amount is zero, which the policy's limits.zero_amount refuses",
        "absurd_amount": "amount is above the policy's limits.amount_max in home currency",
        "event_in_future": "event_time is further ahead than the policy's limits.future_skew_s",
        "event_too_old": "event_time is older than the policy's limits.event_age_max_s, or before 1970",
    }
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Currencies that are accepted, and what one unit is in home currency."""

    codes: NDArray[np.uint32]  # (k,) ascending
    to_home: NDArray[np.float64]  # (k,)

    @classmethod
    def of(cls, rates: Mapping[str, float]) -> Self:
        """From the settings' table.

        Raises:
            ConfigError: empty, a code that is not three capitals, or a rate that is not above zero.
        """
        for code, rate in rates.items():
            if not re.fullmatch("[A-Z]{3}", code):
                raise ConfigError(f"[risk.rates] {code}: not an ISO 4217 code. Correct it.")
            if not 0 < rate < float("inf"):
                raise ConfigError(f"[risk.rates] {code}: must be a number above 0. Correct it.")
        if not rates:
            raise ConfigError("[risk.rates] is empty. List the home currency with 1.0.")
        pairs = sorted((int(currency_code(code)), rate) for code, rate in rates.items())
        codes = np.array([code for code, _ in pairs], np.uint32)
        return cls(codes, np.array([rate for _, rate in pairs], np.float64))

    @property
    def sha256(self) -> str:
        """Changes with any currency and any rate; hexadecimal."""
        return hashlib.sha256(
            self.codes.astype("<u4").tobytes() + self.to_home.astype("<f8").tobytes()
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class Checked:
    """What validation found, and what it worked out on the way.

    reason: (n,) int8, index into REASONS, GOOD (-1) for a row fit to be decided.
    amount_home: (n,) int64 in 1/10000 of the home currency; 0 where the row is not good.
    currency: (n,) uint32, the packed code (`RiskBatch.currency`).
    """

    reason: NDArray[np.int8]
    amount_home: NDArray[np.int64]
    currency: NDArray[np.uint32]

    @property
    def good(self) -> NDArray[np.int64]:
        """Indexes of the rows fit to be decided."""
        return np.flatnonzero(self.reason == GOOD)

    def bad(self) -> list[tuple[int, str]]:
        """(row index, reason) of the others."""
        rows = np.flatnonzero(self.reason != GOOD)
        codes = self.reason[rows].tolist()
        return [(row, REASONS[code]) for row, code in zip(rows.tolist(), codes, strict=True)]


def validate(
    *,
    amount: NDArray[np.int64],
    currency: StringColumn,
    event_ms: NDArray[np.int64],
    ids: Sequence[StringColumn],
    optional_ids: Sequence[StringColumn] = (),
    now_ms: int | NDArray[np.int64],
    limits: Limits,
    rates: Rates,
) -> Checked:
    """The reason against each row, or none.

    Args:
        amount: (n,) int64 in 1/10000 of the row's own currency.
        currency: n texts.
        event_ms: (n,) ms since 1970, UTC.
        ids: columns that may be neither empty nor too long; optional_ids: only not too long.
        now_ms: the time against which the event's is held; (n,) where each has its own.
    """
    code = pack_currency(currency)
    at = np.minimum(np.searchsorted(rates.codes, code), len(rates.codes) - 1)
    known = rates.codes[at] == code
    home = np.rint(amount * np.where(known, rates.to_home[at], 1.0))

    reason = np.full(len(amount), GOOD, np.int8)
    # Later ones first, so that the first reason of the list is the one that stays.
    oldest_ms = 0 if limits.event_age_max_s is None else now_ms - limits.event_age_max_s * 1000
    reason[event_ms < np.maximum(oldest_ms, 0)] = _CODE["event_too_old"]
    reason[event_ms > now_ms + limits.future_skew_s * 1000] = _CODE["event_in_future"]
    reason[home > float(limits.amount_max * AMOUNT_SCALE)] = _CODE["absurd_amount"]
    if limits.zero_amount == "refuse":
        reason[amount == 0] = _CODE["zero_amount"]
    reason[amount < 0] = _CODE["negative_amount"]
    reason[~known] = _CODE["unknown_currency"]
    for column in (*ids, *optional_ids):
        reason[column.length > limits.id_bytes_max] = _CODE["id_too_long"]
    for column in ids:
        reason[column.length == 0] = _CODE["empty_id"]

    # Bad rows are zeroed before the cast: what is beyond int64 has no defined value there.
    return Checked(reason, np.where(reason == GOOD, home, 0.0).astype(np.int64), code)


def pack_currency(currency: StringColumn) -> NDArray[np.uint32]:
    """(n,) uint32: three bytes, big endian; 0, which is no currency, for any other length."""
    three = currency.length == 3
    if not three.any():
        return np.zeros(len(currency), np.uint32)
    # Other rows look at the first code's bytes, which are there, and are zeroed after.
    start = np.where(three, currency.start, currency.start[np.argmax(three)])
    packed = np.zeros(len(currency), np.uint32)
    for offset in range(3):
        packed = (packed << np.uint32(8)) | currency.buffer[start + offset]
    packed[~three] = 0
    return packed
