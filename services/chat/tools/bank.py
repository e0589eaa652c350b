"""The bank's own records about a customer, read through an HTTP interface of the bank's.

    GET {url}/customers/{customer_id}/balance   {"amount": "1204.50", "currency": "EUR"}
    GET {url}/customers/{customer_id}/payments  a list, the newest first, of
        {"event_id", "account_id", "terminal_id", "amount", "currency", "time_ms"}

Both with `account_id` as a query where the app has said which. The bank answers for its customer alone.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from weir.errors import NeighbourUnavailable

Answer = TypeVar("Answer")

_ANSWER_BYTES_MAX = 1_000_000


class Balance(msgspec.Struct, frozen=True):
    """amount: in units of `currency` (ISO 4217)."""

    amount: Decimal
    currency: str


class Payment(msgspec.Struct, frozen=True):
    """A payment of the customer's; time_ms: ms since the epoch."""

    event_id: str
    account_id: str
    terminal_id: str
    amount: Decimal
    currency: str
    time_ms: int


@dataclass(frozen=True, slots=True, repr=False)
class Customer:
    """Whose records; what the app has said of him."""

    customer_id: str
    account_id: str | None = None
    card_id: str | None = None


class BankAway(NeighbourUnavailable):
    """The bank's interface gave no answer that can be used."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"The bank's interface at {url}: {why}. See [chat] bank_url.")


class Bank(Protocol):
    """What tools ask."""

    async def balance(self, customer: Customer) -> Balance:
        """Raises BankAway."""

    async def payments(self, customer: Customer) -> list[Payment]:
        """The newest first. Raises BankAway."""


class HttpBank:
    """See the module.

    Args:
        deadline_s: for one answer; a customer waits for it.
    """

    def __init__(self, url: str, *, deadline_s: float = 2.0) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.AsyncClient(timeout=deadline_s, follow_redirects=False)

    async def balance(self, customer: Customer) -> Balance:
        """Of the customer's account.

        Raises:
            BankAway: no answer in time, or not one.
        """
        return await self._get(customer, "balance", Balance)

    async def payments(self, customer: Customer) -> list[Payment]:
        """The newest first.

        Raises:
            BankAway: no answer in time, or not one.
        """
        return await self._get(customer, "payments", list[Payment])

    async def _get(self, customer: Customer, what: str, kind: type[Answer]) -> Answer:
        # The id is never part of an error: it is personal.
        address = f"{self._url}/customers/{quote(customer.customer_id, safe='')}/{what}"
        query = {"account_id": customer.account_id} if customer.account_id is not None else {}
        try:
            answer = await self._client.get(address, params=query)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BankAway(self._url, type(error).__name__) from None
        if answer.status_code != httpx.codes.OK or len(answer.content) > _ANSWER_BYTES_MAX:
            raise BankAway(self._url, f"status {answer.status_code}")
        try:
            return msgspec.json.decode(answer.content, type=kind, strict=False)
        except msgspec.DecodeError:
            raise BankAway(self._url, f"its answer is not a {what}") from None

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
