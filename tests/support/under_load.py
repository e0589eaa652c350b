"""A bank that pays and a reader that reads while something is changed, and what the topics say afterwards."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Self

from tests.faults.bank import Bank, Encode, as_today
from tests.faults.checker import History
from tests.faults.history import LiveReader, PaymentOf, collect, payment_of, read
from tests.support.payments import settled, until
from tests.support.risk import RiskUnderTest
from weir.client.records import Decision
from weir.streams import journal
from weir.streams.journal import JournalRecord

RATE_PER_S = 400.0
# Decisions before the first change, and after each one.
_CALM = 500


class UnderLoad:
    """Payments come in for as long as the block lasts, and are all decided when it ends.

    Args:
        what: is changed; for the printed line.
        encode: what a payment's value on the topic is.
    """

    def __init__(self, risk: RiskUnderTest, what: str, seed: int, encode: Encode = as_today) -> None:
        servers, topics = risk.kafka.bootstrap_servers, risk.topics
        self.risk, self._what = risk, what
        self.bank = Bank(servers, topics, seed, risk.partitions, RATE_PER_S, encode)
        self.live = LiveReader(servers, topics.decisions)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self.live.run())
        self._paying = asyncio.create_task(self.bank.run())
        await self.more(_CALM)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Not cancelled: what Kafka took must stand in `sent`.
        self.bank.ending = True
        await self._paying
        try:
            if kind is None:
                await settled(self.risk)
                wanted = len(self.bank.records)
                await until(lambda: len(self.live.seen) >= wanted, "the reader has seen them all")
        finally:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def more(self, count: int = _CALM) -> None:
        """Return once a reader has been given so many decisions more."""
        wanted = len(self.live.seen) + count
        await until(lambda: len(self.live.seen) >= wanted, f"{count} decisions more")

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Something is changed in the block; prints how long a reader then had to wait at most."""
        begun_s = time.monotonic()
        yield
        done_s = time.monotonic()
        await self.more()
        during, before = (
            self.longest_gaps_ms(begun_s, time.monotonic()),
            self.longest_gaps_ms(float("-inf"), begun_s),
        )
        print(
            f"{self._what}: took {done_s - begun_s:.1f} s; longest time without a decision, by partition: "
            f"{_listed(during)} ms; before it {_listed(before)} ms"
        )

    def longest_gaps_ms(self, from_s: float, to_s: float) -> dict[int, float]:
        """By partition the longest time between two arrivals of decisions at the reader, in this time."""
        arrivals: dict[int, list[float]] = defaultdict(list)
        for at_s, partition in self.live.arrived:
            arrivals[partition].append(at_s)
        return {
            partition: max(
                (after - before for before, after in pairwise(found) if after >= from_s and before <= to_s),
                default=float("inf"),
            )
            * 1000
            for partition, found in sorted(arrivals.items())
        }

    async def history(self, *workers: RiskUnderTest, payment_of: PaymentOf = payment_of) -> History:
        """End the workers in order; all that the topics say then."""
        for worker in workers:
            assert await asyncio.to_thread(worker.stop) == 0, worker.log_text()[-4000:]
        return await collect(self.risk, self.bank, self.live.seen, frozenset(), payment_of)


async def mixtures(risk: RiskUnderTest, decisions: Sequence[Decision]) -> list[str]:
    """Batches of which not all decisions name the model and the policy that their journal record names."""
    records = await read(risk.kafka.bootstrap_servers, risk.topics.risk_journal, committed=True)
    batches: dict[int, list[JournalRecord]] = defaultdict(list)
    for each in records:
        batches[each.partition].append(journal.decode(each.value, JournalRecord, "the journal"))
    batch_of = {
        (partition, offset): batch
        for partition, found in batches.items()
        for batch in found
        for offset in range(batch.offset_first, batch.next_offset)
    }
    wrong = []
    for each in decisions:
        batch = batch_of[each.feature_ref.partition, each.feature_ref.offset]
        if (each.model_sha256, each.policy_sha256) != (batch.model, batch.policy):
            wrong.append(f"{each.raw}: of a batch from {batch.offset_first}")
    return wrong


def in_order(decisions: Sequence[Decision]) -> dict[int, list[Decision]]:
    """Each partition's decisions, as they lie."""
    found: dict[int, list[Decision]] = defaultdict(list)
    for each in sorted(decisions, key=lambda each: each.raw.offset):
        found[each.raw.partition].append(each)
    return found


def runs(values: Sequence[str]) -> list[str]:
    """The values without immediate repetitions."""
    return [value for at, value in enumerate(values) if not at or value != values[at - 1]]


def _listed(gaps: dict[int, float]) -> str:
    return ", ".join(f"{gap:.0f}" for gap in gaps.values())
