"""What a caller publishes and reads: frozen records, checked once. No personal value shows in a `repr`."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from weir.errors import BadInput

# The schemas carry money as decimal(19, 4).
AMOUNT_SCALE = 4
AMOUNT_MAX = Decimal(10) ** (19 - AMOUNT_SCALE)
ID_CHARS_MAX = 128

_CURRENCY = re.compile(r"[A-Z]{3}\Z")
_COUNTRY = re.compile(r"[A-Z]{2}\Z")
_MERCHANT_CATEGORY = re.compile(r"[0-9]{4}\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Channel(StrEnum):
    """Where a payment was made."""

    POS = "POS"
    ECOM = "ECOM"
    ATM = "ATM"
    TRANSFER = "TRANSFER"
    OTHER = "OTHER"


class LabelSource(StrEnum):
    """Who said whether a payment was fraud."""

    CHARGEBACK = "CHARGEBACK"
    ANALYST = "ANALYST"
    CUSTOMER = "CUSTOMER"
    OTHER = "OTHER"


class Outcome(StrEnum):
    """What was decided."""

    APPROVE = "APPROVE"
    REVIEW = "REVIEW"
    DECLINE = "DECLINE"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands in Kafka."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True, repr=False)
class Transaction:
    """One payment, as the bank publishes it.

    `amount` is in units of `currency`, with at most 4 decimal places; `event_time` knows its time zone and is
    kept to the millisecond.

    Raises:
        BadInput: the first field that breaks the contract; the text names the field, never its value.
    """

    event_id: str
    account_id: str
    terminal_id: str
    amount: Decimal
    currency: str
    event_time: datetime
    channel: Channel | str = Channel.POS
    merchant_category: str | None = None
    country: str | None = None
    counterparty_id: str | None = None

    def __post_init__(self) -> None:
        check_id("event_id", self.event_id)
        check_id("account_id", self.account_id)
        check_id("terminal_id", self.terminal_id)
        _check_amount(self.amount)
        _check_pattern("currency", self.currency, _CURRENCY, "three capital letters (ISO 4217), such as EUR")
        check_time("event_time", self.event_time)
        _check_member("channel", self.channel, Channel)
        if self.merchant_category is not None:
            _check_pattern(
                "merchant_category", self.merchant_category, _MERCHANT_CATEGORY, "four digits (ISO 18245)"
            )
        if self.country is not None:
            _check_pattern("country", self.country, _COUNTRY, "two capital letters (ISO 3166-1)")
        if self.counterparty_id is not None:
            check_id("counterparty_id", self.counterparty_id)

    def __repr__(self) -> str:
        return f"Transaction(account_id=***, channel={str(self.channel)!r})"

    def to_avro(self) -> dict[str, Any]:
        """The record as `schemas/transaction.avsc` has it."""
        return {
            "event_id": self.event_id,
            "account_id": self.account_id,
            "terminal_id": self.terminal_id,
            "amount": self.amount,
            "currency": self.currency,
            "event_time": self.event_time,
            "channel": str(self.channel),
            "merchant_category": self.merchant_category,
            "country": self.country,
            "counterparty_id": self.counterparty_id,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Label:
    """What the bank learned about one earlier payment: fraud, or not.

    `event_time` is the payment's own, `reported_time` when the bank was told.

    Raises:
        BadInput: the first field that breaks the contract.
    """

    event_id: str
    account_id: str
    terminal_id: str
    event_time: datetime
    reported_time: datetime
    is_fraud: bool
    source: LabelSource | str = LabelSource.ANALYST

    def __post_init__(self) -> None:
        check_id("event_id", self.event_id)
        check_id("account_id", self.account_id)
        check_id("terminal_id", self.terminal_id)
        check_time("event_time", self.event_time)
        check_time("reported_time", self.reported_time)
        if self.reported_time < self.event_time:
            raise BadInput("bad_time", "reported_time is before event_time. A label follows its payment.")
        if not isinstance(self.is_fraud, bool):
            raise BadInput("bad_type", "is_fraud must be True or False.")
        _check_member("source", self.source, LabelSource)

    def __repr__(self) -> str:
        return f"Label(account_id=***, source={str(self.source)!r})"

    def to_avro(self) -> dict[str, Any]:
        """The record as `schemas/label.avsc` has it."""
        return {
            "event_id": self.event_id,
            "account_id": self.account_id,
            "terminal_id": self.terminal_id,
            "event_time": self.event_time,
            "reported_time": self.reported_time,
            "is_fraud": self.is_fraud,
            "source": str(self.source),
        }


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a score is what it is: one feature's share, as a reviewed text.

    `contribution` is in logit units; a positive one speaks for fraud.
    """

    code: str
    feature: str
    contribution: float
    text_en: str
    text_zh: str

    def text(self, lang: str = "en") -> str:
        """The reviewed text in `lang`: "en" or "zh".

        Raises:
            BadInput: another language.
        """
        if lang == "en":
            return self.text_en
        if lang == "zh":
            return self.text_zh
        raise BadInput("unknown_language", "reasons are written in en and zh. Take one of them.")


@dataclass(frozen=True, slots=True)
class FeatureRef:
    """Which event, and which definition of the features, a decision was computed from."""

    topic: str
    partition: int
    offset: int
    feature_spec: str


@dataclass(frozen=True, slots=True)
class Timings:
    """What each stage took, in microseconds, for the batch that the decision was part of."""

    queue_us: int
    decode_us: int
    features_us: int
    model_us: int
    decide_us: int


@dataclass(frozen=True, slots=True, repr=False)
class Decision:
    """One decision, opened and verified.

    Money is `Decimal`, times are UTC. `score`, `probability` and `logit` are None when the decision is
    `degraded` (made by the declared rules, without a model). `raw` is its place in Kafka.
    """

    decision_id: uuid.UUID
    tenant: str
    event_id: str
    account_id: str
    kind: str
    outcome: Outcome
    score: float | None
    probability: float | None
    logit: float | None
    base_logit: float | None
    reasons: tuple[Reason, ...]
    rules: tuple[str, ...]
    amount: Decimal
    currency: str
    terminal_id: str
    event_time: datetime
    decided_time: datetime
    model_name: str
    model_version: str
    model_sha256: str
    policy_version: str
    policy_sha256: str
    feature_ref: FeatureRef
    timings: Timings
    degraded: bool
    degraded_reason: str | None
    traceparent: str | None
    raw: Position

    def __repr__(self) -> str:
        return f"Decision({self.decision_id}, {self.outcome}, account_id=***, raw={self.raw})"

    @classmethod
    def from_avro(cls, record: Mapping[str, Any], raw: Position) -> "Decision":
        """The decision that `schemas/decision.avsc` describes, as decoded by the codec.

        Raises:
            BadInput: "bad_decision", when a field is missing or has another type.
        """
        fields = dict(record)
        try:
            return cls(
                decision_id=uuid.UUID(str(fields.pop("decision_id"))),
                outcome=Outcome(fields.pop("outcome")),
                reasons=tuple(Reason(**reason) for reason in fields.pop("reasons")),
                rules=tuple(fields.pop("rules")),
                feature_ref=FeatureRef(**fields.pop("feature_ref")),
                timings=Timings(**fields.pop("timings")),
                raw=raw,
                **fields,
            )
        except (KeyError, TypeError, ValueError):
            # The original error would repeat values of the record.
            raise BadInput(
                "bad_decision", f"the record at {raw} is no decision that this version knows."
            ) from None


def to_ms(time: datetime) -> int:
    """Milliseconds since the epoch, rounded down; exact, unlike `timestamp() * 1000`."""
    return (time - _EPOCH) // _MS


def from_ms(ms: int) -> datetime:
    """The UTC time `ms` milliseconds after the epoch."""
    return _EPOCH + ms * _MS


def check_id(field: str, value: object) -> None:
    """Raises BadInput: it is no id."""
    if not isinstance(value, str) or not value.strip():
        raise BadInput("missing_field", f"{field} must be a text that is not empty.")
    if len(value) > ID_CHARS_MAX or not value.isprintable():
        raise BadInput("bad_id", f"{field} must be at most {ID_CHARS_MAX} printable characters.")


def _check_amount(value: object) -> None:
    if not isinstance(value, Decimal):
        raise BadInput(
            "bad_type", 'amount must be a Decimal, such as Decimal("12.50"): a float cannot hold cents.'
        )
    if not value.is_finite() or value < 0 or value >= AMOUNT_MAX:
        raise BadInput("bad_amount", "amount must be from 0 to below 10^15.")
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -AMOUNT_SCALE:
        raise BadInput("bad_amount", f"amount has more than {AMOUNT_SCALE} decimal places.")


def check_time(field: str, value: object) -> None:
    """Raises BadInput: it is no time, or has no time zone."""
    if not isinstance(value, datetime):
        raise BadInput("bad_type", f"{field} must be a datetime.")
    if value.utcoffset() is None:
        raise BadInput("bad_time", f"{field} has no time zone. Give one, such as datetime.now(UTC).")


def _check_pattern(field: str, value: object, pattern: re.Pattern[str], must: str) -> None:
    if not isinstance(value, str) or not pattern.match(value):
        raise BadInput(f"bad_{field}", f"{field} must be {must}.")


def _check_member(field: str, value: object, members: type[StrEnum]) -> None:
    if value not in list(members):
        raise BadInput(f"bad_{field}", f"{field} must be one of {', '.join(members)}.")
