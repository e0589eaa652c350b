"""One conversation as of one turn: a value, which a turn replaces by the next one.

row = MessagePack array: version, conversation without its values, the values under the customer's own key;
      all of it sealed under the topic's key before it leaves
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from services.chat.conversation.summary import summary_of
from services.chat.domain import PLACEHOLDER, Language
from weir.errors import IntegrityError

VERSION = 2
# A person or a model reads the last turns; what is older is in the bank's own records of the replies.
TURNS_MAX = 24
# As many as one turn can bring, and more; those that no kept turn names are let go anyway.
VALUES_MAX = 400
# More in a minute are too many for any setting.
SENT_MAX = 100
# A customer who sends an event again does so soon.
EVENTS_MAX = 64
# Of the turns that are not kept.
SUMMARY_CHARS_MAX = 600

Role = Literal["customer", "bank", "agent"]


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One turn; masked.

    at_ms: ms since the epoch.
    """

    role: Role
    text: str
    at_ms: int


class Conversation(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a conversation.

    customer_id: whose it is; empty before the first message.
    turns: the last ones, oldest first. events: ids of messages that were worked on, oldest first.
    values: what placeholders stand for. Personal data: never logged, sealed before it leaves.
    pending: what waits for the customer's yes, as its tool wrote it, or empty.
    with_person: whether a person answers. unanswered: questions in a row that the knowledge did not answer.
    sent_ms: when its last messages were sent, oldest first, ms since the epoch.
    touched_ms: when it was last worked on, ms since the epoch.
    summary: of the customer's turns that are not kept any more; masked.
    """

    customer_id: str = ""
    language: Language = "en"
    turns: tuple[Said, ...] = ()
    events: tuple[str, ...] = ()
    values: dict[str, str] = {}
    pending: str = ""
    with_person: bool = False
    unanswered: int = 0
    sent_ms: tuple[int, ...] = ()
    touched_ms: int = 0
    summary: str = ""

    def __repr__(self) -> str:
        return f"Conversation({len(self.turns)} turns, with_person={self.with_person})"

    def summed_up(self, *, turns_left_out: int, chars_max: int) -> str:
        """What the customer said before the last `turns_left_out` turns; for a model or a person."""
        older = self.turns[: max(len(self.turns) - turns_left_out, 0)]
        return summary_of(self.summary, [turn.text for turn in older if turn.role == "customer"], chars_max)

    def has_seen(self, event_id: str) -> bool:
        """Whether the event was worked on."""
        return event_id in self.events

    def said(self, event_id: str, values: Mapping[str, str], *turns: Said) -> "Conversation":
        """With these turns more, and the event worked on; the oldest are let go, and values with them."""
        whole = (*self.turns, *turns)
        kept, gone = whole[-TURNS_MAX:], whole[:-TURNS_MAX]
        summary = self.summary
        if gone:
            lost = [turn.text for turn in gone if turn.role == "customer"]
            summary = summary_of(summary, lost, SUMMARY_CHARS_MAX)
        named = {name for turn in kept for name in PLACEHOLDER.findall(turn.text)}
        newest = [name for name in values if name in named][-VALUES_MAX:]
        return msgspec.structs.replace(
            self,
            turns=kept,
            events=(*self.events, event_id)[-EVENTS_MAX:],
            values={name: values[name] for name in newest},
            summary=summary,
            touched_ms=max([self.touched_ms, *(turn.at_ms for turn in turns)]),
        )

    def sent(self, at_ms: int) -> "Conversation":
        """With one message more of the customer's."""
        return msgspec.structs.replace(self, sent_ms=(*self.sent_ms, at_ms)[-SENT_MAX:])

    def sent_since(self, since_ms: int) -> int:
        """How many messages of the customer's were sent after `since_ms`, of the last `SENT_MAX`."""
        return sum(at_ms > since_ms for at_ms in self.sent_ms)


class Keys(Protocol):
    """`weir.crypto.customer.CustomerKeys`."""

    def seal(self, customer_id: str, plaintext: bytes, context: bytes) -> bytes:
        """Opens for this customer and in this context alone."""

    def open(self, customer_id: str, sealed: bytes, context: bytes) -> bytes:
        """What was sealed."""


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """As it is kept; `values` is empty where there are none."""

    version: int
    conversation: Conversation
    values: bytes = b""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Row)
_VALUES = msgspec.msgpack.Decoder(dict[str, str])


def encode(conversation: Conversation, key: bytes, keys: Keys) -> bytes:
    """As it is sealed and kept, under the row's `key`."""
    values = b""
    if conversation.values:
        values = keys.seal(conversation.customer_id, _ENCODER.encode(conversation.values), key)
    return _ENCODER.encode(_Row(VERSION, msgspec.structs.replace(conversation, values={}), values))


def decode(row: bytes, key: bytes, keys: Keys, where: str) -> Conversation:
    """What `encode` wrote.

    Raises:
        IntegrityError: something else, of another customer, or of another release; `where` it was.
    """
    try:
        found = _DECODER.decode(row)
        if found.version != VERSION:
            raise IntegrityError(f"{where}: a conversation of version {found.version}, not {VERSION}.")
        if not found.values:
            return found.conversation
        values = _VALUES.decode(keys.open(found.conversation.customer_id, found.values, key))
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{where}: not a conversation of this release.") from error
    return msgspec.structs.replace(found.conversation, values=values)
