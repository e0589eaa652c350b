"""What goes into a turn and what comes out of it; none of it is in a log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from services.chat.conversation import Conversation, Said
from services.chat.domain import Hit, MaskedText, Sentence, Understanding, Urgency


class Outcome(StrEnum):
    """What became of a message; the words of `schemas/chat_reply.avsc`."""

    ANSWERED = "ANSWERED"
    CLARIFY = "CLARIFY"  # nothing to answer in it
    CONFIRM = "CONFIRM"  # something is done once the customer says yes
    DONE = "DONE"
    REFUSED = "REFUSED"
    UNKNOWN = "UNKNOWN"  # the knowledge does not say
    HANDED_OVER = "HANDED_OVER"
    AGENT = "AGENT"  # a person's words


class Reason(StrEnum):
    """Why a person takes over; the words of `schemas/handover.avsc`."""

    ASKED = "asked"
    EMERGENCY = "emergency"
    COMPLAINT = "complaint"
    GUARD = "guard"
    UNKNOWN = "unknown"
    CONTINUED = "continued"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, repr=False)
class Message:
    """A customer's message as it came.

    sent_ms: when, ms since the epoch. account_id, card_id: the customer's own, where the app has said which.
    """

    event_id: str
    conversation_id: str
    customer_id: str
    text: str
    sent_ms: int
    account_id: str | None = None
    card_id: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class AgentReply:
    """A person's reply as it came."""

    event_id: str
    conversation_id: str
    agent_id: str
    text: str
    sent_ms: int
    closes: bool


@dataclass(frozen=True, slots=True, repr=False)
class Freeze:
    """The customer's card is frozen by the bank's card system; None: all of his cards."""

    card_id: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Dispute:
    """The customer says that a payment was not his: a label.

    paid_ms: when it was, ms since the epoch.
    """

    event_id: str
    account_id: str
    terminal_id: str
    paid_ms: int


Effect = Freeze | Dispute


@dataclass(frozen=True, slots=True, repr=False)
class Handed:
    """To a person."""

    reason: Reason
    urgency: Urgency
    summary: str
    transcript: Sequence[Said]
    suggested: Sequence[Sentence] = ()


@dataclass(slots=True, repr=False)
class Trail:
    """How it came about, for the audit; filled on the way.

    guard: id of the rule that fired, or empty. tool, tool_outcome: asked, done, declined, failed.
    """

    masked: MaskedText = field(default_factory=lambda: MaskedText(""))
    hits: Sequence[Hit] = ()
    flaw: str = ""
    thought: str = ""
    guard: str = ""
    tool: str = ""
    tool_outcome: str = ""
    degraded: str = ""
    prompt_version: str = ""
    prompt_sha256: str = ""
    knowledge_version: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Turned:
    """All that becomes of one message.

    sentences: as the customer reads them, his own data put back.
    first_sentence_ms: from the beginning of the turn to the first sentence.
    """

    conversation: Conversation
    outcome: Outcome
    sentences: Sequence[Sentence]
    understanding: Understanding
    trail: Trail
    handed: Handed | None = None
    effects: Sequence[Effect] = ()
    first_sentence_ms: int = 0
    is_generated: bool = False
