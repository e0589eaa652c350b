"""From records to messages: decoded, checked, and those that cannot be worked on with their reason."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.chat.turn.values import AgentReply, Message
from weir.codec.avro import RowCodec, full_name
from weir.codec.framing import unframe
from weir.codec.schemas import Schema, fingerprint, load_schema, without_keys
from weir.errors import BadInput

ID_CHARS_MAX = 128
_AHEAD_MS_MAX = 300_000


@dataclass(frozen=True, slots=True, repr=False)
class Refused:
    """A record that goes to the dead letter topic."""

    reason: str
    detail: str


class MessageReading:
    """Decodes records of the messages' topic, whatever version wrote them.

    Args:
        known: the schema of an id, or None; it never waits.
        now_ms: ms since the epoch.
    """

    def __init__(self, known: Callable[[int], Schema | None], now_ms: Callable[[], int]) -> None:
        self._known, self._now_ms = known, now_ms
        self._readers = {
            full_name(schema): schema for schema in (load_schema("chat_message"), load_schema("agent_reply"))
        }
        self._codecs: dict[int, tuple[str, RowCodec]] = {}

    def __call__(self, value: bytes | None) -> Message | AgentReply | Refused:
        """What a record says."""
        try:
            return self._read(value)
        except BadInput as error:
            return Refused(error.reason, error.detail)

    def _read(self, value: bytes | None) -> Message | AgentReply:
        if value is None:
            raise BadInput("empty", "a record without a value")
        schema_id, payload = unframe(value)
        name, codec = self._codecs.get(schema_id) or self._learn(schema_id)
        record = codec.decode(payload)
        for field in ("event_id", "conversation_id", "customer_id", "agent_id"):
            if field in record:
                _check_id(field, record[field])
        if record["sent_time"] > self._now_ms() + _AHEAD_MS_MAX:
            raise BadInput("event_in_future", "sent_time is more than five minutes ahead")
        return _agent_reply(record) if name == "weir.v1.AgentReply" else _message(record)

    def _learn(self, schema_id: int) -> tuple[str, RowCodec]:
        writer = self._known(schema_id)
        name = full_name(writer) if writer is not None else ""
        if writer is None or name not in self._readers:
            raise BadInput("unknown_schema", f"schema id {schema_id} is no message and no agent's reply")
        reader = self._readers[name]
        same = fingerprint(writer) == fingerprint(reader)
        # Times as they lie: ms since the epoch.
        writer, reader = without_keys(writer, {"logicalType"}), without_keys(reader, {"logicalType"})
        found = self._codecs[schema_id] = (name, RowCodec(writer, None if same else reader))
        return found


def _check_id(field: str, value: str) -> None:
    if not value.strip():
        raise BadInput("empty_id", f"{field} is empty")
    if len(value) > ID_CHARS_MAX:
        raise BadInput("id_too_long", f"{field} has more than {ID_CHARS_MAX} characters")


def _message(record: dict[str, Any]) -> Message:
    return Message(
        event_id=record["event_id"],
        conversation_id=record["conversation_id"],
        customer_id=record["customer_id"],
        text=record["text"],
        sent_ms=record["sent_time"],
        account_id=record["account_id"],
        card_id=record["card_id"],
    )


def _agent_reply(record: dict[str, Any]) -> AgentReply:
    return AgentReply(
        event_id=record["event_id"],
        conversation_id=record["conversation_id"],
        agent_id=record["agent_id"],
        text=record["text"],
        sent_ms=record["sent_time"],
        closes=record["closes"],
    )
