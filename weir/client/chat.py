"""Conversations: what customers and agents write, what is answered, and what a person is handed."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from weir.client.opening import Opened
from weir.client.reader import SealedReader
from weir.client.records import Position, check_id, check_time
from weir.config import TopicSettings
from weir.errors import BadInput, IntegrityError
from weir.ids import decision_ids

TEXT_CHARS_MAX = 500_000


@dataclass(frozen=True, slots=True, repr=False)
class ChatMessage:
    """What a customer has written.

    `account_id` and `card_id` are the customer's own, where the app knows which one he speaks of.

    Raises:
        BadInput: the first field that breaks the contract; the text names the field, never its value.
    """

    event_id: str
    conversation_id: str
    customer_id: str
    text: str
    sent_time: datetime
    channel: str = "APP"
    account_id: str | None = None
    card_id: str | None = None

    def __post_init__(self) -> None:
        for field in ("event_id", "conversation_id", "customer_id"):
            check_id(field, getattr(self, field))
        _check_text(self.text)
        check_time("sent_time", self.sent_time)

    def to_avro(self) -> dict[str, Any]:
        """The record as `schemas/chat_message.avsc` has it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, repr=False)
class AgentReply:
    """What a person of the bank answers; `closes` gives the conversation back to Weir.

    Raises:
        BadInput: the first field that breaks the contract.
    """

    event_id: str
    conversation_id: str
    agent_id: str
    text: str
    sent_time: datetime
    closes: bool = False

    def __post_init__(self) -> None:
        for field in ("event_id", "conversation_id", "agent_id"):
            check_id(field, getattr(self, field))
        _check_text(self.text)
        check_time("sent_time", self.sent_time)

    def to_avro(self) -> dict[str, Any]:
        """The record as `schemas/agent_reply.avsc` has it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ReplySentence:
    """One sentence of a reply; origin: generated, passage, tool, fixed or agent."""

    text: str
    origin: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """What a customer is answered; the fields are those of `schemas/chat_reply.avsc`."""

    reply_id: uuid.UUID
    tenant: str
    event_id: str
    conversation_id: str
    customer_id: str
    outcome: str
    text: str
    sentences: tuple[ReplySentence, ...]
    language: str
    intent: str
    confidence: float
    sentiment: float
    urgency: str
    masked: Mapping[str, int]
    guard: str | None
    degraded: bool
    degraded_reason: str | None
    model: str
    prompt_version: str
    prompt_sha256: str
    knowledge_version: str
    answered_time: datetime
    first_sentence_ms: int
    traceparent: str | None
    raw: Position

    def __repr__(self) -> str:
        return f"Reply({self.reply_id}, {self.outcome}, raw={self.raw})"


@dataclass(frozen=True, slots=True)
class TranscriptTurn:
    """One turn, masked; role: customer, bank or agent."""

    role: str
    text: str
    time: datetime


@dataclass(frozen=True, slots=True, repr=False)
class HandOver:
    """A conversation for a person; the fields are those of `schemas/handover.avsc`."""

    handover_id: uuid.UUID
    tenant: str
    event_id: str
    conversation_id: str
    customer_id: str
    reason: str
    urgency: str
    language: str
    summary: str
    transcript: tuple[TranscriptTurn, ...]
    suggested: tuple[str, ...]
    handed_over_time: datetime
    raw: Position

    def __repr__(self) -> str:
        return f"HandOver({self.handover_id}, {self.reason}, raw={self.raw})"


class Replies(SealedReader[Reply]):
    """Replies as they are made: `async with Replies.connect(purpose=...) as replies`, then `async for`."""

    schema = "chat_reply"

    @staticmethod
    def topic_of(topics: TopicSettings) -> str:
        """Where replies are."""
        return topics.chat_replies

    def _typed(self, opened: Opened, raw: Position) -> Reply:
        fields = _verified(opened, raw, "reply_id", "chat")
        return Reply(
            sentences=tuple(
                ReplySentence(each["text"], each["origin"], tuple(each["sources"]))
                for each in fields.pop("sentences")
            ),
            masked={each["data_class"]: each["count"] for each in fields.pop("masked")},
            raw=raw,
            **fields,
        )


class HandOvers(SealedReader[HandOver]):
    """Conversations for a person: `async with HandOvers.connect(purpose=...) as queue`, then `async for`."""

    schema = "handover"

    @staticmethod
    def topic_of(topics: TopicSettings) -> str:
        """Where hand-overs are."""
        return topics.chat_handovers

    def _typed(self, opened: Opened, raw: Position) -> HandOver:
        fields = _verified(opened, raw, "handover_id", "handover")
        return HandOver(
            transcript=tuple(TranscriptTurn(**each) for each in fields.pop("transcript")),
            suggested=tuple(each["text"] for each in fields.pop("suggested")),
            raw=raw,
            **fields,
        )


def _verified(opened: Opened, raw: Position, id_field: str, kind: str) -> dict[str, Any]:
    """The record's fields, whose id is the one in its envelope and the one computed from its event.

    Raises:
        IntegrityError: it is another. BadInput: it has none.
    """
    fields = dict(opened.record)
    try:
        inside = uuid.UUID(str(fields.pop(id_field)))
        (computed,) = decision_ids(fields["tenant"], [fields["event_id"].encode()], kind)
    except (KeyError, ValueError):
        raise BadInput(f"bad_{kind}", f"the record at {raw} has no {id_field}.") from None
    if inside.bytes != opened.record_id or computed != opened.record_id:
        raise IntegrityError(
            f"The record at {raw} has another id than its envelope or its event. Do not use it; report it."
        )
    return fields | {id_field: inside}


def _check_text(text: object) -> None:
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX:
        raise BadInput("bad_text", f"text must be a text of at most {TEXT_CHARS_MAX:,} characters.")
