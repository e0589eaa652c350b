"""The bank of a fault run: payments of a few accounts at a steady pace, honest labels, poison when asked."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

from aiokafka import AIOKafkaProducer

from tests.faults.checker import Place, Sent
from tests.support.payments import framed, label, now, payment
from weir.config import TopicSettings

PACE_S = 0.05
ACCOUNTS_A_PARTITION = 12
TERMINALS_A_PARTITION = 5
LABEL_EVERY = 25
# Long enough that none stands in random bytes by chance.
ACCOUNT, EVENT, TERMINAL = "DE00FAULTS", "event-under-faults", "terminal-under-faults"
POISON_KEY = b"poison"
# Beyond this many without an answer the bank waits for its broker.
_WAITING_MAX = 3000
_TIMEOUT_MS = 60_000

Encode = Callable[[Sequence[dict[str, Any]]], Awaitable[list[bytes]]]


async def as_today(payments: Sequence[dict[str, Any]]) -> list[bytes]:
    """Each payment as a value on its topic, in the repository's own schema."""
    return await framed("transaction", payments)


class Bank:
    """Puts payments on their topic and remembers what the broker acknowledged.

    An account, and a terminal, belongs to one partition: so the scores of a partition are a function of that
    partition's payments alone, whoever decides on them.

    Args:
        encode: what a payment's value on the topic is.

    Attributes:
        sent: everything that was sent, acknowledged or not.
        records: payment by event id.
    """

    def __init__(
        self,
        servers: str,
        topics: TopicSettings,
        seed: int,
        partitions: int,
        rate_per_s: float,
        encode: Encode = as_today,
    ) -> None:
        self._encode = encode
        self._servers, self._topics, self._partitions = servers, topics, partitions
        self._random = random.Random(seed)
        self._name = f"{seed}"
        self._rate_per_s = rate_per_s
        self._waiting: set[asyncio.Future[Any]] = set()
        self._errors: list[str] = []
        self._poison_due = 0
        self._count = 0
        self.sent: list[Sent] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.ending = False

    async def run(self) -> None:
        """Send until `ending`, then wait for the last answers."""
        loop = asyncio.get_running_loop()
        producer = await self._connect()
        try:
            due_s, debt = loop.time(), 0.0
            while not self.ending:
                debt += self._rate_per_s * PACE_S
                await self._send(producer, int(debt))
                debt -= int(debt)
                if self._errors:
                    # An idempotent producer that has given up a batch cannot go on behind it.
                    await producer.stop()
                    self._errors.clear()
                    producer = await self._connect()
                due_s += PACE_S
                await asyncio.sleep(max(due_s - loop.time(), 0))
                while len(self._waiting) > _WAITING_MAX:
                    await asyncio.wait(set(self._waiting), return_when=asyncio.FIRST_COMPLETED)
            if self._waiting:
                await asyncio.wait(set(self._waiting))
        finally:
            await producer.stop()

    def poison(self, count: int) -> None:
        """Let this many records that nobody can decide on come with the next payments."""
        self._poison_due += count

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            enable_idempotence=True,
            acks="all",
            request_timeout_ms=_TIMEOUT_MS,
            retry_backoff_ms=50,
        )
        await producer.start()
        return producer

    async def _send(self, producer: AIOKafkaProducer, count: int) -> None:
        records = [self._payment() for _ in range(count)]
        values = await self._encode([record for _, record in records])
        for (partition, record), value in zip(records, values, strict=True):
            event_id = str(record["event_id"])
            self.records[event_id] = record
            key = str(record["account_id"]).encode()
            await self._put(producer, partition, key, value, event_id, decidable=True)
            if self._poison_due:
                self._poison_due -= 1
                bad = self._random.choice(_POISONS)(self._random, value)
                await self._put(producer, partition, POISON_KEY, bad, "", decidable=False)
        marked = [
            label(record, is_fraud=False) for _, record in records if self._random.random() * LABEL_EVERY < 1
        ]
        for value in await framed("label", marked):
            await producer.send(self._topics.labels, value, b"label")

    async def _put(
        self,
        producer: AIOKafkaProducer,
        partition: int,
        key: bytes,
        value: bytes | None,
        event_id: str,
        *,
        decidable: bool,
    ) -> None:
        future = await producer.send(self._topics.transactions, value, key, partition=partition)
        self._waiting.add(future)
        future.add_done_callback(lambda done: self._answered(done, event_id, decidable))

    def _answered(self, done: "asyncio.Future[Any]", event_id: str, decidable: bool) -> None:
        self._waiting.discard(done)
        place = None
        if not done.cancelled() and (error := done.exception()) is None:
            place = Place(done.result().partition, done.result().offset)
        elif not done.cancelled():
            self._errors.append(type(error).__name__)
        self.sent.append(Sent(event_id, place, decidable))

    def _payment(self) -> tuple[int, dict[str, Any]]:
        draw = self._random
        partition = draw.randrange(self._partitions)
        self._count += 1
        amount = min(draw.lognormvariate(3.5, 1.2), 9_000.0)
        return partition, payment(
            f"{EVENT}-{self._name}-{self._count}",
            account_id=f"{ACCOUNT}{self._name}{partition:03d}{draw.randrange(ACCOUNTS_A_PARTITION):03d}",
            terminal_id=f"{TERMINAL}-{partition}-{draw.randrange(TERMINALS_A_PARTITION)}",
            amount=Decimal(f"{amount:.2f}00"),
            event_time=now(),
        )


def secrets() -> dict[str, bytes]:
    """What may not leave in the clear, in the forms in which it could."""
    words = {"an account": ACCOUNT, "an event": EVENT, "a terminal": TERMINAL}
    return {name: word.encode() for name, word in words.items()} | {
        f"{name} in hexadecimal": word.encode().hex().encode() for name, word in words.items()
    }


# What a broken producer, or a hostile one, may put on the topic; each from a sound value.
_POISONS: tuple[Callable[[random.Random, bytes], bytes | None], ...] = (
    lambda draw, value: draw.randbytes(40),
    lambda draw, value: value[: len(value) // 2],
    lambda draw, value: b"\x07" + value[1:],
    lambda draw, value: value[:1] + (0xFFFF_FF00).to_bytes(4, "big") + value[5:],
    lambda draw, value: b"",
    lambda draw, value: None,
)
