"""The tools: what each is asked with, whether it changes anything, and what it does.

A tool that changes something only ever asks first; what it will do then is kept with the conversation, and
done by the customer's yes in the message that follows. Its effect is a record in the reply's transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.chat.domain import Language, Origin, Sentence
from services.chat.tools.asked import Asked
from services.chat.tools.bank import Bank, BankAway, Customer, Payment
from services.chat.turn.texts import Texts
from services.chat.turn.values import Dispute, Effect, Freeze, Outcome, Reason
from weir.obs.log import get_logger

log = get_logger("weir.chat.tools")

_SHOWN_MAX = 5


class TalkToPerson(msgspec.Struct, frozen=True, tag="person"):
    """A person takes the conversation over."""


class ReadBalance(msgspec.Struct, frozen=True, tag="balance"):
    """The balance of the customer's account."""


class LastPayments(msgspec.Struct, frozen=True, tag="last_payments"):
    """The customer's newest payments."""


class FreezeCard(msgspec.Struct, frozen=True, tag="freeze_card"):
    """Freeze the card that the app has named, or all of the customer's."""

    card_id: str | None = None


class DisputePayment(msgspec.Struct, frozen=True, tag="dispute_payment"):
    """Report this payment of the customer's as not made by him; time_ms: ms since the epoch."""

    event_id: str
    account_id: str
    terminal_id: str
    time_ms: int


# What waits for a yes.
Pending = FreezeCard | DisputePayment
_PENDING = msgspec.json.Decoder(Pending)


def schemas() -> dict[str, dict[str, Any]]:
    """By tool the JSON Schema of what it is asked with; `x-confirmed` says that it asks first."""
    found = {}
    for kind in (TalkToPerson, ReadBalance, LastPayments, FreezeCard, DisputePayment):
        schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
        asks_first = kind in (FreezeCard, DisputePayment)
        found[str(kind.__struct_config__.tag)] = {**schema, "x-confirmed": asks_first}
    return found


@dataclass(frozen=True, slots=True, repr=False)
class Used:
    """What came of a tool.

    word: for the audit: asked, done, declined, failed. pending: what the next yes does, or empty.
    noted: what the conversation keeps of it; a balance is not for models.
    """

    outcome: Outcome
    sentences: Sequence[Sentence]
    word: str
    pending: str = ""
    noted: str = ""
    reason: Reason | None = None
    effects: Sequence[Effect] = ()


class Tools:
    """Uses tools for a customer.

    Args:
        bank: None where the bank offers no interface: what needs it goes to a person.
    """

    def __init__(self, texts: Texts, bank: Bank | None = None) -> None:
        self._texts, self._bank = texts, bank

    async def use(self, asked: Asked, customer: Customer, language: Language) -> Used:
        """Do what was asked, or ask for a yes."""
        try:
            match asked.name:
                case "person":
                    return Used(Outcome.HANDED_OVER, [], "done", reason=Reason.ASKED)
                case "freeze_card":
                    return self.offer_freeze(customer, language)
                case "balance":
                    return await self._balance(customer, language)
                case "last_payments":
                    return await self._payments(customer, language)
                case "dispute_payment":
                    return await self._dispute(customer, language, asked.which)
                case other:
                    raise ValueError(f"no tool {other!r}")
        except BankAway as error:
            log.warning("tool_failed", tool=asked.name, error=str(error))
            return self._failed(language)

    def offer_freeze(self, customer: Customer, language: Language) -> Used:
        """Ask whether the card shall be frozen."""
        return self._confirm("confirm_freeze", language, FreezeCard(customer.card_id))

    def confirmed(self, pending: str, language: Language) -> tuple[str, Used]:
        """The customer said yes: the tool's name, and what came of it."""
        asked: Pending = _PENDING.decode(pending)
        match asked:
            case FreezeCard(card_id):
                said, effect = self._texts("frozen", language, Origin.TOOL), Freeze(card_id)
                return "freeze_card", Used(Outcome.DONE, [said], "done", noted=said.text, effects=[effect])
            case DisputePayment():
                said = self._texts("disputed", language, Origin.TOOL)
                label = Dispute(asked.event_id, asked.account_id, asked.terminal_id, asked.time_ms)
                return "dispute_payment", Used(Outcome.DONE, [said], "done", noted=said.text, effects=[label])

    def declined(self, pending: str, language: Language) -> tuple[str, Used]:
        """The customer said no."""
        tag = _PENDING.decode(pending).__struct_config__.tag
        said = self._texts("declined", language, Origin.TOOL)
        return str(tag), Used(Outcome.DONE, [said], "declined", noted=said.text)

    def _confirm(self, text: str, language: Language, pending: Pending, **words: object) -> Used:
        said = self._texts(text, language, Origin.TOOL, **words)
        # Amount and date are not for models.
        noted = f"({text})" if words else said.text
        return Used(
            Outcome.CONFIRM, [said], "asked", pending=msgspec.json.encode(pending).decode(), noted=noted
        )

    def _failed(self, language: Language) -> Used:
        said = self._texts("tool_failed", language)
        return Used(Outcome.HANDED_OVER, [said], "failed", noted=said.text, reason=Reason.TOOL)

    async def _balance(self, customer: Customer, language: Language) -> Used:
        if self._bank is None:
            return self._failed(language)
        found = await self._bank.balance(customer)
        words = {"amount": f"{found.amount:,.2f}", "currency": found.currency}
        said = self._texts("balance", language, Origin.TOOL, **words)
        return Used(Outcome.DONE, [said], "done", noted="(balance)")

    async def _payments(self, customer: Customer, language: Language) -> Used:
        if self._bank is None:
            return self._failed(language)
        found = (await self._bank.payments(customer))[:_SHOWN_MAX]
        return Used(Outcome.DONE, self._listed(found, language), "done", noted="(last payments)")

    async def _dispute(self, customer: Customer, language: Language, which: int | None) -> Used:
        if self._bank is None:
            return self._failed(language)
        found = (await self._bank.payments(customer))[:_SHOWN_MAX]
        if which is None or not 1 <= which <= len(found):
            sentences = self._listed(found, language)
            if found:
                sentences.append(self._texts("which_payment", language, Origin.TOOL))
            return Used(Outcome.CLARIFY, sentences, "asked", noted="(last payments)")
        payment = found[which - 1]
        pending = DisputePayment(payment.event_id, payment.account_id, payment.terminal_id, payment.time_ms)
        return self._confirm("confirm_dispute", language, pending, **_said(payment))

    def _listed(self, payments: Sequence[Payment], language: Language) -> list[Sentence]:
        if not payments:
            return [self._texts("no_payments", language, Origin.TOOL)]
        lines = [
            self._texts("payment", language, Origin.TOOL, number=number, **_said(payment))
            for number, payment in enumerate(payments, 1)
        ]
        return [self._texts("payments", language, Origin.TOOL), *lines]


def _said(payment: Payment) -> dict[str, str]:
    day = datetime.fromtimestamp(payment.time_ms / 1000, UTC)
    return {
        "amount": f"{payment.amount:,.2f}",
        "currency": payment.currency,
        "date": f"{day:%Y-%m-%d}",
    }
