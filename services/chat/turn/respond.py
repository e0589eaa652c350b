"""What a message is answered, and everything else that becomes of it.

    message ─ readable? ─ mask ─ with a person? ─ our question? ─ guard ─ tool? ─ urgent? ─ knowledge ─ answer
                 │                    │               │             │      │        │           │
                 ▼                    ▼               ▼             ▼      ▼        ▼           ▼
              clarify             passed on      done, left     refused   its   a person     unknown
                                                                         words

Knows neither Kafka nor Triton; models and knowledge are asked through the ports of `services.chat.domain`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import msgspec

from services.chat.answer.answerer import Account, Answerer, Turn, passage_sentences
from services.chat.answer.prompt import Said as Prompted
from services.chat.conversation import Conversation, Said
from services.chat.domain import Hit, Language, Origin, Sentence, Understanding, Urgency
from services.chat.guards import Action, Guards, Threat
from services.chat.knowledge.search import Found
from services.chat.masking import Masker, unmask
from services.chat.tools.asked import ToolWords
from services.chat.tools.bank import Customer
from services.chat.tools.tools import Tools, Used
from services.chat.turn.texts import Texts
from services.chat.turn.values import AgentReply, Handed, Message, Outcome, Reason, Trail, Turned
from services.chat.understanding import Script, WordTable, language_of, script_of
from weir.errors import BadInput
from weir.inference.errors import ModelError
from weir.obs.log import get_logger

log = get_logger("weir.chat.turn")

_HITS_MAX = 3
_MINUTE_MS = 60_000
# Of the conversation, for the model and the guards; the prompt's budget takes from it what fits.
_HISTORY_TURNS = 6
# So often in a row without an answer, and a person takes over.
_UNANSWERED_MAX = 2
_SUMMARY_CHARS_MAX = 300
# Why a search went by words alone though nothing was away: the knowledge or the language has no vectors.
_BY_DESIGN = ("", "no_vectors", "encoder_not_fitted")
_TEXT_OF_THREAT = {Threat.ADVICE: "refused_advice", Threat.OTHER_CUSTOMER: "refused_other"}

Show = Callable[[Sentence], None]


class Knowledge(Protocol):
    """`services.chat.knowledge.live.LiveRetriever`."""

    @property
    def version(self) -> str | None:
        """Which version is in use."""

    async def find(self, question: str, language: Language, *, count: int, now_ms: int) -> Found:
        """What was found, and what was away."""


class IntentsOf(Protocol):
    """`services.chat.understanding.intents`."""

    async def __call__(self, texts: Sequence[str]) -> Sequence[tuple[str, float]]:
        """A label, empty out of scope, and its probability, for each text."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one customer may ask of the service.

    text_chars_max: of a message. messages_per_minute_max: of a conversation.
    """

    text_chars_max: int = 4_000
    messages_per_minute_max: int = 12


class Responder:
    """Answers messages.

    Args:
        intents: None leaves the intent open.
        deadline_s: of one turn; then a person takes over.
        now_ms: ms since the epoch. clock: seconds, monotonic.
    """

    def __init__(
        self,
        masker: Masker,
        words: WordTable,
        guards: Guards,
        tool_words: ToolWords,
        tools: Tools,
        knowledge: Knowledge,
        answerer: Answerer,
        texts: Texts,
        *,
        intents: IntentsOf | None = None,
        limits: Limits | None = None,
        deadline_s: float = 25.0,
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._masker, self._words, self._guards = masker, words, guards
        self._tool_words, self._tools = tool_words, tools
        self._knowledge, self._answerer, self._texts = knowledge, answerer, texts
        self._intents, self._limits, self._deadline_s = intents, limits or Limits(), deadline_s
        self._now_ms, self._clock = now_ms, clock

    async def __call__(self, message: Message, before: Conversation, show: Show) -> Turned | None:
        """All that becomes of the message; None when it was worked on already.

        Args:
            show: is given each sentence as soon as the customer may read it.
        Raises:
            BadInput: `another_customer`: the conversation is not this customer's.
        """
        if before.has_seen(message.event_id):
            return None
        if before.customer_id and before.customer_id != message.customer_id:
            raise BadInput("another_customer", "the conversation belongs to another customer")
        before = msgspec.structs.replace(before, customer_id=message.customer_id).sent(message.sent_ms)
        return await _Answering(self, message, before, show).turned()

    def agent(self, reply: AgentReply, before: Conversation) -> Turned | None:
        """A person's reply goes to the customer; None when it did already.

        Raises:
            BadInput: `unknown_conversation`: no customer has written in it.
        """
        if before.has_seen(reply.event_id):
            return None
        if not before.customer_id:
            raise BadInput("unknown_conversation", "no message of a customer came before this reply")
        sentences = [Sentence(reply.text, Origin.AGENT)] if reply.text.strip() else []
        if reply.closes:
            sentences.append(self._texts("back", before.language))
        masked = self._masker.mask(reply.text[: self._limits.text_chars_max], before.values)
        said = Said("agent", masked.text, self._now_ms())
        after = before.said(reply.event_id, masked.values, *([said] if reply.text.strip() else []))
        after = msgspec.structs.replace(after, with_person=not reply.closes, unanswered=0)
        understanding = Understanding(before.language, "", 0.0)
        return Turned(after, Outcome.AGENT, sentences, understanding, Trail(masked=masked))


class _Answering:
    """One message on its way."""

    def __init__(self, to: Responder, message: Message, before: Conversation, show: Show) -> None:
        self.to, self.message, self.before, self._show = to, message, before, show
        self.trail = Trail()
        self._began_s, self._first_s = to._clock(), 0.0
        self.shown: list[Sentence] = []
        # The same, still masked.
        self._said: list[str] = []
        # What the conversation keeps of the answer, where that is not what was shown.
        self.noted = ""
        self.pending = ""
        self.used: Used | None = None
        self.is_generated = False
        self.understanding = Understanding(before.language, "", 0.0)

    def say(self, sentence: Sentence) -> None:
        """The customer reads it now, his own data put back."""
        if not self.shown:
            self._first_s = self.to._clock()
        text = unmask(sentence.text, self.trail.masked.values)
        shown = Sentence(text, sentence.origin, sentence.sources)
        self._said.append(sentence.text)
        self.shown.append(shown)
        self._show(shown)

    def fixed(self, name: str) -> None:
        self.say(self.to._texts(name, self.understanding.language))

    async def turned(self) -> Turned:
        try:
            async with asyncio.timeout(self.to._deadline_s):
                outcome, reason = await self._outcome()
        except TimeoutError:
            log.warning("turn_deadline_passed", waited_s=self.to._deadline_s)
            # What was shown stands.
            self.trail.degraded = "deadline"
            self.fixed("handed_over")
            outcome, reason = Outcome.HANDED_OVER, Reason.UNKNOWN
        masked, now_ms = self.trail.masked, self.to._now_ms()
        answer = self.noted or " ".join(self._said)
        # What was not read is no turn: a flood would push the conversation out.
        turns = [Said("customer", masked.text, now_ms), Said("bank", answer, now_ms)] if masked.text else []
        values = masked.values or self.before.values
        after = self.before.said(self.message.event_id, values, *(turn for turn in turns if turn.text))
        after = msgspec.structs.replace(
            after,
            language=self.understanding.language,
            pending=self.pending,
            with_person=self.before.with_person or reason is not None,
            unanswered=self.before.unanswered + 1 if outcome is Outcome.UNKNOWN else 0,
        )
        return Turned(
            after,
            outcome,
            self.shown,
            self.understanding,
            self.trail,
            self._handed(reason, after) if reason is not None else None,
            self.used.effects if self.used is not None else (),
            round((self._first_s - self._began_s) * 1000) if self.shown else 0,
            self.is_generated,
        )

    async def _outcome(self) -> tuple[Outcome, Reason | None]:
        to, text, before = self.to, self.message.text, self.before
        if len(text) > to._limits.text_chars_max:
            self.fixed("too_long")
            return Outcome.CLARIFY, None
        if before.sent_since(self.message.sent_ms - _MINUTE_MS) > to._limits.messages_per_minute_max:
            self.fixed("too_fast")
            return Outcome.CLARIFY, None
        self.trail.masked = masked = to._masker.mask(text, before.values)
        await self._understand(masked.text)
        if before.with_person and not before.pending:
            self.fixed("passed_on")
            return Outcome.HANDED_OVER, Reason.CONTINUED
        if not any(letter.isalnum() for letter in text):
            self.fixed("empty")
            return Outcome.CLARIFY, None
        if before.pending and (found := self._confirmed(masked.text)) is not None:
            return found
        return await self._asked(masked.text)

    async def _asked(self, text: str) -> tuple[Outcome, Reason | None]:
        to, before = self.to, self.before
        history = [turn.text for turn in before.turns[-_HISTORY_TURNS:] if turn.role == "customer"]
        verdict = to._guards.message(text, history)
        if verdict.action is not Action.ALLOW:
            self.trail.guard = verdict.rule
            if verdict.action is Action.HAND_OVER:
                self.fixed("handed_over")
                return Outcome.HANDED_OVER, Reason.GUARD
            self.fixed(
                _TEXT_OF_THREAT.get(verdict.threat, "refused") if verdict.threat is not None else "refused"
            )
            return Outcome.REFUSED, None
        if (asked := to._tool_words(text)) is not None:
            customer = Customer(self.message.customer_id, self.message.account_id, self.message.card_id)
            used = await to._tools.use(asked, customer, self.understanding.language)
            return self._use(asked.name, used)
        if self.understanding.urgency is Urgency.EMERGENCY:
            return await self._emergency(text)
        return await self._known(text)

    def _confirmed(self, text: str) -> tuple[Outcome, Reason | None] | None:
        """What the customer's yes or no has done; None when it is neither, and nothing waits any more."""
        to, language = self.to, self.understanding.language
        if to._tool_words.is_yes(text):
            return self._use(*to._tools.confirmed(self.before.pending, language))
        if to._tool_words.is_no(text):
            return self._use(*to._tools.declined(self.before.pending, language))
        if self.before.with_person:
            self.fixed("passed_on")
            return Outcome.HANDED_OVER, Reason.CONTINUED
        return None

    def _use(self, name: str, used: Used) -> tuple[Outcome, Reason | None]:
        self.used, self.pending, self.noted = used, used.pending, used.noted
        self.trail.tool, self.trail.tool_outcome = name, used.word
        for sentence in used.sentences:
            self.say(sentence)
        if used.reason is Reason.ASKED:
            self.fixed("handed_over")
        return used.outcome, used.reason

    async def _emergency(self, text: str) -> tuple[Outcome, Reason | None]:
        """A person at once; meanwhile what the knowledge says, and the offer to freeze the card."""
        self.fixed("emergency")
        await self._find(text)
        for sentence in self._allowed(passage_sentences(text, self.trail.hits)):
            self.say(sentence)
        customer = Customer(self.message.customer_id, self.message.account_id, self.message.card_id)
        offered = self.to._tools.offer_freeze(customer, self.understanding.language)
        self.trail.tool, self.trail.tool_outcome, self.pending = "freeze_card", "asked", offered.pending
        for sentence in offered.sentences:
            self.say(sentence)
        return Outcome.HANDED_OVER, Reason.EMERGENCY

    async def _known(self, text: str) -> tuple[Outcome, Reason | None]:
        """What the bank's knowledge says, in a model's words or its own."""
        await self._find(text)
        language, account = self.understanding.language, Account()
        history = [
            Prompted("user" if turn.role == "customer" else "assistant", turn.text)
            for turn in self.before.turns[-_HISTORY_TURNS:]
        ]
        summary = self.before.summed_up(turns_left_out=_HISTORY_TURNS, chars_max=_SUMMARY_CHARS_MAX)
        turn = Turn(text, language, self.trail.hits, history, summary, frozenset(self.trail.masked.values))
        try:
            async with aclosing(self.to._answerer(turn, account)) as sentences:
                async for sentence in sentences:
                    for good in self._allowed([sentence]):
                        self.is_generated = self.is_generated or good.origin is Origin.GENERATED
                        self.say(good)
        finally:
            # A turn that its deadline cuts short has been asked of the model too.
            self._trace(account)
        if self.shown:
            return Outcome.ANSWERED, None
        if self.understanding.urgency is Urgency.HIGH:
            self.fixed("handed_over")
            return Outcome.HANDED_OVER, Reason.COMPLAINT
        if self.before.unanswered + 1 >= _UNANSWERED_MAX:
            self.fixed("handed_over")
            return Outcome.HANDED_OVER, Reason.UNKNOWN
        self.fixed("unknown")
        return Outcome.UNKNOWN, None

    def _trace(self, account: Account) -> None:
        self.trail.flaw, self.trail.thought = account.flaw, account.thought
        self.trail.degraded = self.trail.degraded or account.degraded
        if account.prompt is not None:
            self.trail.prompt_version, self.trail.prompt_sha256 = (
                account.prompt.version,
                account.prompt.sha256,
            )

    async def _find(self, text: str) -> None:
        to, language = self.to, self.understanding.language
        found = await to._knowledge.find(text, language, count=_HITS_MAX, now_ms=to._now_ms())
        hits: list[Hit] = []
        for hit in found.hits:
            verdict = to._guards.passage(hit.passage.text)
            if verdict.action is Action.ALLOW:
                hits.append(hit)
            else:
                self.trail.guard = self.trail.guard or verdict.rule
        self.trail.hits = hits
        if found.degraded not in _BY_DESIGN:
            self.trail.degraded = found.degraded
        self.trail.knowledge_version = to._knowledge.version or ""

    def _allowed(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        """Those that may be shown."""
        allowed = []
        for sentence in sentences:
            verdict = self.to._guards.sentence(sentence.text)
            if verdict.action is Action.ALLOW:
                allowed.append(sentence)
            else:
                self.trail.guard = self.trail.guard or verdict.rule
        return allowed

    async def _understand(self, text: str) -> None:
        to = self.to
        script = script_of(text)
        language = self.before.language if script is Script.NONE else language_of(text)
        intent, confidence = "", 0.0
        if to._intents is not None and script is not Script.NONE:
            try:
                ((intent, confidence),) = await to._intents([text])
            except ModelError as error:
                self.trail.degraded = error.degraded_reason
                log.warning("intent_degraded", reason=error.degraded_reason)
        self.understanding = Understanding(
            language, intent, confidence, to._words.sentiment(text), to._words.urgency(text)
        )

    def _handed(self, reason: Reason, after: Conversation) -> Handed:
        question = self.trail.masked.text
        suggested = passage_sentences(question, self.trail.hits) if self.trail.hits else []
        transcript = after.turns[-2:] if reason is Reason.CONTINUED else after.turns
        # The question last; before it what led to it.
        asked = question[:_SUMMARY_CHARS_MAX]
        earlier = self.before.summed_up(turns_left_out=0, chars_max=_SUMMARY_CHARS_MAX)
        summary = "\n".join(part for part in (earlier, asked) if part)
        return Handed(reason, self.understanding.urgency, summary, transcript, self._allowed(suggested))
