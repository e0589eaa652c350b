"""Reads a run's topics once it is over, and one of them while it goes on: the checker's `History`."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.faults.bank import POISON_KEY, Bank, secrets
from tests.faults.checker import Batch, Decided, History, Input, Letter, Place, Row, Wire
from tests.faults.recompute import entered, expected_logits, expected_rows
from tests.support.payments import decisions_reader, letters_reader
from tests.support.risk import RiskUnderTest
from weir.client.decisions import BadRecord
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema
from weir.crypto.envelope import HEADER_NAME, RECORD_ID_BYTES
from weir.crypto.keyring import Keyring
from weir.errors import WeirError
from weir.streams import journal
from weir.streams.journal import JournalRecord, Mark

READ_DEADLINE_S = 60.0
_PAYMENTS = RowCodec(load_schema("transaction"))
TENANT = "default"
# Of the changelog: where a partition's state stands in its input; no account has this key.
MARK_KEY = bytes(8)


PaymentOf = Callable[[bytes], Mapping[str, Any]]


def payment_of(value: bytes) -> Mapping[str, Any]:
    """The payment in a value on its topic, in the repository's own schema."""
    return _PAYMENTS.decode(unframe(value)[1])


class LiveReader:
    """A `read_committed` reader of the decisions while the run goes on; what it was given is remembered.

    Attributes:
        seen: place to record id.
        arrived: when something was given (s, monotonic), and the partition, in order.
    """

    def __init__(self, servers: str, topic: str) -> None:
        self._servers, self._topic = servers, topic
        self.seen: dict[Place, bytes] = {}
        self.arrived: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Read until cancelled."""
        async with AIOKafkaConsumer(
            bootstrap_servers=self._servers, isolation_level="read_committed", retry_backoff_ms=50
        ) as consumer:
            await _assign_all(consumer, self._topic)
            while True:
                try:
                    fetched = await consumer.getmany(timeout_ms=500)
                except KafkaError:
                    continue
                now_s = time.monotonic()
                for place, records in fetched.items():
                    self.seen |= {place_of(record): record_id(record) for record in records}
                    self.arrived.append((now_s, place.partition))


async def collect(
    worker: RiskUnderTest,
    bank: Bank,
    seen_live: Mapping[Place, bytes],
    letters_may_hold: frozenset[str],
    payment_of: PaymentOf = payment_of,
) -> History:
    """Everything that the topics say, opened as an analyst; the workers must have ended."""
    topics, servers = worker.topics, worker.kafka.bootstrap_servers
    await _wait_closed(servers, [topics.decisions, topics.risk_dlq])
    unreadable: list[tuple[str, Place]] = []
    inputs = [_input(each, payment_of) for each in await read(servers, topics.transactions, committed=True)]
    decisions = await _decisions(worker, unreadable)
    letters = await _letters(worker, unreadable)
    known = entered(inputs, {each.source for each in letters})
    changelog = await read(servers, topics.risk_accounts, committed=True)
    async with await Keyring.connect(worker.keys.settings("risk-worker")) as keyring:
        hash_key = (await keyring.pseudonymizer(TENANT)).hash_key
    lying = {
        topic: await read(servers, topic, committed=False)
        for topic in (topics.decisions, topics.risk_dlq, topics.risk_accounts, topics.risk_journal)
    }
    return History(
        sent=bank.sent,
        inputs=inputs,
        decisions=decisions,
        letters=letters,
        decisions_uncommitted={place_of(each): record_id(each) for each in lying[topics.decisions]},
        seen_live=seen_live,
        committed=await committed_offsets(servers, str(worker.overrides.get("group", topics.transactions))),
        expected_logits=expected_logits(known, bank.records),
        rows=[Row(place_of(each), each.key, each.value) for each in changelog if each.key != MARK_KEY],
        expected_rows=expected_rows(known, bank.records, hash_key) if changelog else {},
        marks={
            partition: journal.decode(value, Mark, "").next_offset
            for partition, value in {e.partition: e.value for e in changelog if e.key == MARK_KEY}.items()
        },
        journal=[_batch(each) for each in await read(servers, topics.risk_journal, committed=True)],
        wire=[Wire(topic, place_of(each), _bytes(each)) for topic in lying for each in lying[topic]],
        secrets=secrets(),
        unreadable=unreadable,
        letters_may_hold=letters_may_hold,
    )


async def committed_offsets(servers: str, group: str) -> dict[int, int]:
    """Partition to the group's committed offset."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {place.partition: int(each.offset) for place, each in found.items() if each.offset >= 0}


async def end_offsets(servers: str, topics: Sequence[str], *, committed: bool) -> dict[TopicPartition, int]:
    """The offset after the last record; with `committed` before the first transaction that is still open."""
    isolation = "read_committed" if committed else "read_uncommitted"
    async with AIOKafkaConsumer(bootstrap_servers=servers, isolation_level=isolation) as consumer:
        found: dict[TopicPartition, int] = {}
        for topic in topics:
            found |= await consumer.end_offsets(await _partitions(consumer, topic))
        return found


async def read(servers: str, topic: str, *, committed: bool) -> list[ConsumerRecord]:
    """Every record of a topic as it lies there, by partition and offset; none where there is no topic."""
    isolation = "read_committed" if committed else "read_uncommitted"
    async with AIOKafkaConsumer(bootstrap_servers=servers, isolation_level=isolation) as consumer:
        partitions = await _assign_all(consumer, topic)
        ends = await consumer.end_offsets(partitions) if partitions else {}
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(READ_DEADLINE_S):
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    return sorted(found, key=place_of)


def place_of(record: ConsumerRecord) -> Place:
    """Where a record lies."""
    return Place(record.partition, record.offset)


def record_id(record: ConsumerRecord) -> bytes:
    """The id in a sealed record's header; empty when it has none."""
    return next(
        (bytes(value[-RECORD_ID_BYTES:]) for name, value in record.headers if name == HEADER_NAME), b""
    )


async def _decisions(worker: RiskUnderTest, unreadable: list[tuple[str, Place]]) -> list[Decided]:
    def bad(record: BadRecord) -> None:
        unreadable.append((record.raw.topic, Place(record.raw.partition, record.raw.offset)))

    async with decisions_reader(worker, follow=False, on_bad=bad) as reader:
        return [
            Decided(
                Place(each.raw.partition, each.raw.offset),
                Place(each.feature_ref.partition, each.feature_ref.offset),
                each.event_id,
                each.account_id,
                each.decision_id.bytes,
                each.logit,
            )
            async for each in reader
        ]


async def _letters(worker: RiskUnderTest, unreadable: list[tuple[str, Place]]) -> list[Letter]:
    found: list[Letter] = []
    async with letters_reader(worker) as reader:
        async for entry in reader.entries():
            place = Place(entry.raw.partition, entry.raw.offset)
            try:
                each = await reader.open(entry)
            except WeirError:
                unreadable.append((entry.raw.topic, place))
                continue
            source = Place(each.source.partition, each.source.offset)
            found.append(Letter(place, source, each.reason, record_id(entry.record)))
    return found


def _input(record: ConsumerRecord, payment_of: PaymentOf) -> Input:
    if record.key == POISON_KEY:
        return Input(place_of(record), decidable=False)
    payment = payment_of(record.value)
    return Input(place_of(record), str(payment["event_id"]), str(payment["account_id"]))


def _batch(record: ConsumerRecord) -> Batch:
    told = journal.decode(record.value, JournalRecord, "")
    return Batch(place_of(record), told.offset_first, told.next_offset)


def _bytes(record: ConsumerRecord) -> bytes:
    headers = b"".join(name.encode() + (value or b"") for name, value in record.headers)
    return (record.key or b"") + b"\0" + (record.value or b"") + b"\0" + headers


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    # A consumer without an assignment knows no topic.
    cluster = await consumer._client.fetch_all_metadata()
    return [TopicPartition(topic, number) for number in sorted(cluster.partitions_for_topic(topic) or ())]


async def _assign_all(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    partitions = await _partitions(consumer, topic)
    if partitions:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
    return partitions


async def _wait_closed(servers: str, topics: Sequence[str]) -> None:
    """Return once no transaction is open, so that a committed reader sees all; at most the deadline."""
    ends_s = time.monotonic() + READ_DEADLINE_S
    while await end_offsets(servers, topics, committed=True) != await end_offsets(
        servers, topics, committed=False
    ):
        if time.monotonic() > ends_s:
            return
        await asyncio.sleep(0.2)
