"""What becomes of turns, as records: replies, hand-overs, effects, audit, state, dead letters; all sealed."""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka.partitioner import murmur2

from services.chat.conversation import Conversation, encode
from services.chat.domain import Language
from services.chat.reading import Refused
from services.chat.turn.values import AgentReply, Dispute, Freeze, Handed, Message, Turned
from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.config import TopicSettings
from weir.crypto.customer import CustomerKeys
from weir.crypto.envelope import HEADER_NAME, envelope_header
from weir.ids import decision_ids
from weir.obs import trace
from weir.streams.batch import RecordBatch
from weir.streams.dead_letter import DeadLetterWriter, dead_letter
from weir.streams.output import Output

REPLY, HANDOVER, COMMAND = "chat", "handover", "card-command"
SERVICE = "chat"
# A state row is not Avro.
NO_SCHEMA = 0
_POSITIVE = 0x7FFFFFFF

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


class ReadySealer(Protocol):
    """`weir.crypto.keyring.LiveSealer`."""

    async def ready(self) -> None:
        """Returns when batches can be sealed."""

    def seal_batch(
        self, plaintexts: Sequence[bytes], record_ids: Sequence[bytes], schema_id: int
    ) -> list[bytes]:
        """One value for each plaintext."""


@dataclass(frozen=True, slots=True, repr=False)
class Work:
    """One record of the input, and what became of it.

    row: within `batch`. key: the conversation's, by pseudonym; None where the record names none.
    turned: None of a message that was worked on before.
    """

    batch: RecordBatch
    row: int
    record: Message | AgentReply | Refused
    key: bytes | None
    turned: Turned | None


class Sealed:
    """Encodes and seals the records of one topic."""

    def __init__(self, topic: str, partitions: int, schema: str, schema_id: int, sealer: ReadySealer) -> None:
        self.topic, self.partitions = topic, partitions
        self._schema_id, self._sealer = schema_id, sealer
        self._codec = RowCodec(load_schema(schema))

    async def ready(self) -> None:
        """Returns when records can be sealed."""
        await self._sealer.ready()

    def record(
        self, key: bytes, record_id: bytes, record: Mapping[str, Any], traceparent: str | None
    ) -> Record:
        """Key, value and headers."""
        framed = frame(self._schema_id, self._codec.encode(dict(record)))
        (value,) = self._sealer.seal_batch([framed], [record_id], self._schema_id)
        headers = [(HEADER_NAME, envelope_header(self._schema_id, record_id))]
        if traceparent is not None:
            headers.append((trace.TRACEPARENT, traceparent.encode("ascii")))
        return key, value, headers


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where everything goes.

    label_schema_id: labels leave in the clear, on the bank's own topic, of so many partitions.
    """

    replies: Sealed
    handovers: Sealed
    commands: Sealed
    audit: Sealed
    labels_partitions: int
    label_schema_id: int
    dlq_partitions: int


class ReplyWriting:
    """Makes what is published of a group.

    Args:
        customers: the keys of what placeholders stand for.
        model: the language model's name, for replies that show its sentences.
    """

    def __init__(
        self,
        tenant: str,
        topics: TopicSettings,
        outlets: Outlets,
        state: ReadySealer,
        dlq: ReadySealer,
        dead_letters: DeadLetterWriter,
        *,
        customers: CustomerKeys,
        model: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._tenant, self._topics, self._outlets = tenant, topics, outlets
        self._state, self._dlq, self._dead_letters = state, dlq, dead_letters
        self._customers, self._model, self._now_ms = customers, model, now_ms
        self._label = RowCodec(load_schema("label"))

    async def __call__(self, works: Sequence[Work], gone: Sequence[tuple[int, bytes]]) -> list[Output]:
        """The outputs of one group; `gone` are conversations to be forgotten, by partition."""
        now_ms, outlets = self._now_ms(), self._outlets
        for sealer in (
            outlets.replies,
            outlets.handovers,
            outlets.commands,
            outlets.audit,
            self._state,
            self._dlq,
        ):
            await sealer.ready()
        out = _Outputs(now_ms)
        rows: dict[tuple[int, bytes], Conversation | None] = dict.fromkeys(gone)
        for work in works:
            if isinstance(work.record, Refused):
                self._refused(out, work, work.record, now_ms)
            elif work.key is not None and work.turned is not None:
                rows[work.batch.partition, work.key] = work.turned.conversation
                self._turned(out, work, work.key, work.record, work.turned, now_ms)
        self._rows(out, rows)
        return out.all()

    def _turned(
        self,
        out: "_Outputs",
        work: Work,
        key: bytes,
        record: Message | AgentReply,
        turned: Turned,
        now_ms: int,
    ) -> None:
        outlets, parent, partition = self._outlets, _traceparent(work), work.batch.partition
        common = {"tenant": self._tenant, "conversation_id": record.conversation_id}
        event = common | {"event_id": record.event_id, "customer_id": turned.conversation.customer_id}
        reply_id = self._id(record.event_id, REPLY)
        reply = event | self._reply(turned, reply_id, parent, now_ms)
        out.put(outlets.replies, partition, outlets.replies.record(key, reply_id, reply, parent))
        audit = common | _audit(turned, reply_id, now_ms)
        out.put(outlets.audit, partition, outlets.audit.record(key, reply_id, audit, parent))
        if turned.handed is not None:
            handed_id = self._id(record.event_id, HANDOVER)
            handed = event | _handed(turned.handed, turned.understanding.language, handed_id, now_ms)
            out.put(outlets.handovers, partition, outlets.handovers.record(key, handed_id, handed, parent))
        for effect in turned.effects:
            if isinstance(effect, Freeze):
                command_id = self._id(record.event_id, COMMAND)
                command = event | {
                    "command_id": _text(command_id),
                    "card_id": effect.card_id,
                    "command": "FREEZE",
                    "requested_time": now_ms,
                }
                out.put(
                    outlets.commands, partition, outlets.commands.record(key, command_id, command, parent)
                )
            else:
                self._dispute(out, effect, parent, now_ms)

    def _reply(self, turned: Turned, reply_id: bytes, parent: str | None, now_ms: int) -> dict[str, Any]:
        trail, understanding = turned.trail, turned.understanding
        masked = Counter(span.data_class.value for span in trail.masked.spans)
        return {
            "reply_id": _text(reply_id),
            "outcome": turned.outcome.value,
            "text": " ".join(sentence.text for sentence in turned.sentences),
            "sentences": [
                {"text": each.text, "origin": each.origin.value, "sources": list(each.sources)}
                for each in turned.sentences
            ],
            "language": understanding.language,
            "intent": understanding.intent,
            "confidence": understanding.confidence,
            "sentiment": understanding.sentiment,
            "urgency": understanding.urgency.value,
            "masked": [{"data_class": name, "count": count} for name, count in sorted(masked.items())],
            "guard": trail.guard or None,
            "degraded": bool(trail.degraded),
            "degraded_reason": trail.degraded or None,
            "model": self._model if turned.is_generated else "",
            "prompt_version": trail.prompt_version,
            "prompt_sha256": trail.prompt_sha256,
            "knowledge_version": trail.knowledge_version,
            "answered_time": now_ms,
            "first_sentence_ms": turned.first_sentence_ms,
            "traceparent": parent,
        }

    def _dispute(self, out: "_Outputs", dispute: Dispute, parent: str | None, now_ms: int) -> None:
        """A label as the bank itself would publish it: in the clear, keyed by account."""
        label = {
            "event_id": dispute.event_id,
            "account_id": dispute.account_id,
            "terminal_id": dispute.terminal_id,
            "event_time": dispute.paid_ms,
            "reported_time": now_ms,
            "is_fraud": True,
            "source": "CUSTOMER",
        }
        key = dispute.account_id.encode()
        headers = [(trace.TRACEPARENT, parent.encode("ascii"))] if parent is not None else []
        value = frame(self._outlets.label_schema_id, self._label.encode(label))
        # As Kafka's own producers choose it, so that an account's labels keep their order.
        partition = (murmur2(key) & _POSITIVE) % self._outlets.labels_partitions
        out.add(self._topics.labels, partition, (key, value, headers))

    def _refused(self, out: "_Outputs", work: Work, refused: Refused, now_ms: int) -> None:
        batch, row = work.batch, work.row
        letter = dead_letter(
            batch.topic,
            batch.partition,
            batch.offsets[row],
            batch.timestamps_ms[row],
            batch.keys[row],
            batch.values[row],
            batch.headers[row] if batch.headers is not None else (),
            refused.reason,
            refused.detail,
            SERVICE,
            now_ms,
        )
        ((value, headers),) = self._dead_letters.write([letter])
        partition = batch.partition % self._outlets.dlq_partitions
        out.add(self._topics.chat_dlq, partition, (None, value, headers))

    def _rows(self, out: "_Outputs", rows: Mapping[tuple[int, bytes], Conversation | None]) -> None:
        """The state: the newest row of each conversation that the group has changed, or that it is gone."""
        for (partition, key), conversation in rows.items():
            value, headers = None, list[tuple[str, bytes]]()
            if conversation is not None:
                record_id = row_id(key)
                (value,) = self._state.seal_batch(
                    [encode(conversation, key, self._customers)], [record_id], NO_SCHEMA
                )
                headers = [(HEADER_NAME, envelope_header(NO_SCHEMA, record_id))]
            out.add(self._topics.chat_conversations, partition, (key, value, headers))

    def _id(self, event_id: str, kind: str) -> bytes:
        return decision_ids(self._tenant, [event_id.encode()], kind)[0]


class _Outputs:
    """Records by topic and partition, in the order in which they came."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._records: dict[tuple[str, int], list[Record]] = {}

    def put(self, outlet: Sealed, partition: int, record: Record) -> None:
        self.add(outlet.topic, partition % outlet.partitions, record)

    def add(self, topic: str, partition: int, record: Record) -> None:
        self._records.setdefault((topic, partition), []).append(record)

    def all(self) -> list[Output]:
        return [
            Output(
                topic,
                partition,
                keys=[key for key, _, _ in records],
                values=[value for _, value, _ in records],
                headers=[headers for _, _, headers in records],
                timestamps_ms=self._now_ms,
            )
            for (topic, partition), records in self._records.items()
        ]


def row_id(key: bytes) -> bytes:
    """The 16 bytes in the envelope of a conversation's row: UUID version 5 of its key."""
    return decision_ids("", [key], "conversation")[0]


def _audit(turned: Turned, reply_id: bytes, now_ms: int) -> dict[str, Any]:
    trail = turned.trail
    return {
        "reply_id": _text(reply_id),
        "question": trail.masked.text,
        "passages": [{"id": hit.passage.id, "relevance": hit.relevance} for hit in trail.hits],
        "flaw": trail.flaw,
        "thought": trail.thought,
        "guard": trail.guard or None,
        "tool": trail.tool or None,
        "tool_outcome": trail.tool_outcome or None,
        "audited_time": now_ms,
    }


def _handed(handed: Handed, language: Language, handed_id: bytes, now_ms: int) -> dict[str, Any]:
    return {
        "handover_id": _text(handed_id),
        "reason": handed.reason.value,
        "urgency": handed.urgency.value,
        "language": language,
        "summary": handed.summary,
        "transcript": [
            {"role": said.role, "text": said.text, "time": said.at_ms} for said in handed.transcript
        ],
        "suggested": [{"text": each.text, "sources": list(each.sources)} for each in handed.suggested],
        "handed_over_time": now_ms,
    }


def _traceparent(work: Work) -> str | None:
    headers = work.batch.headers
    context = trace.from_headers(headers[work.row]) if headers is not None else None
    return context.child().traceparent if context is not None else None


def _text(record_id: bytes) -> str:
    return str(uuid.UUID(bytes=record_id))
