"""The SDK against a real broker and key service: publish, read back by role, refuse what was changed."""

import asyncio
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.local.pki import ensure_pki
from tests.support.decisions import decision_record, sealed_decisions, send
from tests.support.keys import running_keys_service
from weir import BadRecord, Decisions, Label, Last, Outcome, Publisher, Transaction
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings
from weir.crypto.keyring import Keyring
from weir.errors import AccessDenied, IntegrityError, NeighbourUnavailable, WeirError

DEADLINE_S = 30


@pytest.fixture(scope="module")
def keys_service(tmp_path_factory):
    pki = ensure_pki(tmp_path_factory.mktemp("pki"))
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
def topics(kafka) -> TopicSettings:
    return TopicSettings(
        transactions=kafka.make_topic("bank.transactions"),
        labels=kafka.make_topic("bank.labels"),
        decisions=kafka.make_topic("weir.decisions"),
        risk_dlq=kafka.make_topic("weir.risk.dlq"),
    )


@pytest.fixture
def kafka_settings(kafka) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)


@pytest.fixture
def decide(kafka, topics, keys_service):
    """Seals decisions as the risk worker and sends them."""

    async def decide(records, change=lambda messages: messages):
        async with await Keyring.connect(keys_service.settings("risk-worker")) as keyring:
            sealer = await keyring.sealer(topics.decisions)
            messages = change(await sealed_decisions(sealer, records))
        await send(kafka.bootstrap_servers, topics.decisions, messages)
        return messages

    return decide


@pytest.fixture
def reader(kafka_settings, topics, keys_service):
    """`Decisions.connect` for a role; from the beginning to what is there now, unless told otherwise."""

    def reader(role="reader", purpose="delivery", **arguments):
        wanted = {
            "purpose": purpose,
            "start": "beginning",
            "follow": False,
            "kafka": kafka_settings,
            "topics": topics,
            "registry": RegistrySettings(),
            "keys": keys_service.settings(role),
        }
        return Decisions.connect(**wanted | arguments)

    return reader


def transaction(index: int, account: str = "account-1") -> Transaction:
    return Transaction(
        event_id=f"e{index}",
        account_id=account,
        terminal_id="T1",
        amount=Decimal("12.50"),
        currency="EUR",
        event_time=datetime(2026, 3, 2, 9, 0, tzinfo=UTC) + timedelta(seconds=index),
        channel="POS",
    )


async def everything(kafka, topic):
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    async with consumer:
        places = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        records = []
        async with asyncio.timeout(DEADLINE_S):
            while len(records) < sum(ends.values()):
                for found in (await consumer.getmany(timeout_ms=200)).values():
                    records += found
    return records


async def test_published_transaction_stands_in_the_topic_as_the_schema_says(kafka, kafka_settings, topics):
    async with Publisher.connect(kafka=kafka_settings, topics=topics, registry=RegistrySettings()) as bank:
        raw = await bank.publish(transaction(1))
        await bank.flush()
    (record,) = await everything(kafka, topics.transactions)
    assert (record.topic, record.partition, record.offset) == (raw.topic, raw.partition, raw.offset)
    assert record.key == b"account-1"
    schema_id, payload = unframe(record.value)
    assert schema_id == 1
    assert RowCodec(load_schema("transaction")).decode(payload)["amount"] == Decimal("12.5")
    (header,) = record.headers
    assert header[0] == "traceparent"
    assert header[1].startswith(b"00-")


async def test_one_accounts_transactions_keep_their_order(kafka, kafka_settings, topics):
    accounts = [f"account-{index % 7}" for index in range(2000)]
    events = [transaction(index, account) for index, account in enumerate(accounts)]
    async with Publisher.connect(kafka=kafka_settings, topics=topics, registry=RegistrySettings()) as bank:
        assert await bank.publish_many(events) == 2000
        await bank.publish_label(
            Label("e1", "account-1", "T1", events[1].event_time, datetime.now(UTC), True, "CHARGEBACK")
        )
    codec = RowCodec(load_schema("transaction"))
    seen: dict[bytes, list[str]] = {}
    for record in sorted(await everything(kafka, topics.transactions), key=lambda each: each.offset):
        seen.setdefault(record.key, []).append(codec.decode(unframe(record.value)[1])["event_id"])
    for account in set(accounts):
        assert seen[account.encode()] == [event.event_id for event in events if event.account_id == account]
    assert len(await everything(kafka, topics.labels)) == 1


async def test_reader_gets_each_decision_opened_and_typed(decide, reader, topics):
    await decide([decision_record(index) for index in range(100)])
    async with reader() as decisions:
        seen = {decision.event_id: decision async for decision in decisions}
    assert len(seen) == 100
    last = seen["event-98"]
    assert last.outcome is Outcome.DECLINE
    assert last.amount == Decimal("1234.56")
    assert last.raw.topic == topics.decisions
    async with reader() as decisions:
        counted = [len(batch) async for batch in decisions.batches()]
    assert sum(counted) == 100


async def test_role_that_may_not_read_is_denied_in_one_line(decide, reader):
    await decide([decision_record()])
    for role, purpose in (("risk-worker", "delivery"), ("reader", "curiosity")):
        async with reader(role, purpose) as decisions:
            with pytest.raises(AccessDenied, match=role) as caught:
                await anext(decisions)
        assert "\n" not in str(caught.value)


def flipped(message, at):
    key, value, headers = message
    changed = bytearray(value)
    changed[at] ^= 1
    return key, bytes(changed), headers


@pytest.mark.parametrize("at", [17, -1, 60])
async def test_flipped_byte_is_an_integrity_error_and_the_next_decision_still_comes(decide, reader, at):
    await decide([decision_record(0), decision_record(1)], lambda all_: [flipped(all_[0], at), all_[1]])
    async with reader() as decisions:
        seen, errors = [], []
        while len(seen) + len(errors) < 2:
            try:
                seen.append((await anext(decisions)).event_id)
            except IntegrityError as error:
                errors.append(error)
    assert seen == ["event-1"]
    assert len(errors) == 1


async def test_bad_records_go_to_on_bad_and_the_rest_is_read(decide, reader):
    def damage(messages):
        key, value, headers = messages[1]
        return [
            messages[0],
            (key, value, []),  # not written by Weir
            (key, b"", headers),
            # Another record's header: moved, so it does not open.
            (messages[3][0], messages[3][1], messages[2][2]),
            messages[4],
        ]

    await decide([decision_record(index) for index in range(5)], damage)
    bad: list[BadRecord] = []
    async with reader(on_bad=bad.append) as decisions:
        seen = {decision.event_id async for decision in decisions}
    assert seen == {"event-0", "event-4"}
    assert len(bad) == 3
    assert all(isinstance(each.error, IntegrityError) for each in bad)


async def test_decision_under_another_events_id_is_refused(decide, reader):
    """Sealed by one who holds the key: the envelope is sound, the id inside is not this event's."""
    await decide([decision_record(0, event_id="another")])
    async with reader() as decisions:
        with pytest.raises(IntegrityError, match="another id"):
            await anext(decisions)


async def test_aborted_decisions_are_not_read(kafka, topics, decide, reader, keys_service):
    async with await Keyring.connect(keys_service.settings("risk-worker")) as keyring:
        sealer = await keyring.sealer(topics.decisions)
        ((key, value, headers),) = await sealed_decisions(sealer, [decision_record(7)])
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, transactional_id=kafka.unique("aborts")
    )
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topics.decisions, value, key, partition=0, headers=headers)
        await producer.abort_transaction()
    await decide([decision_record(8)])
    async with reader() as decisions:
        assert [decision.event_id async for decision in decisions] == ["event-8"]


async def test_group_goes_on_behind_what_was_worked_off(kafka, decide, reader):
    await decide([decision_record(index) for index in range(40)])
    group = kafka.unique("readers")
    seen: Counter[str] = Counter()
    async with reader(group=group) as decisions:
        for _ in range(15):
            seen[(await anext(decisions)).event_id] += 1

    async def fail_at_the_sixteenth():
        async with reader(group=group) as decisions:
            await anext(decisions)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_at_the_sixteenth()
    async with reader(group=group) as decisions:
        async for decision in decisions:
            seen[decision.event_id] += 1
    assert seen == Counter(f"event-{index}" for index in range(40))


async def test_reading_begins_where_it_is_told(kafka, topics, decide, reader):
    await decide([decision_record(index) for index in range(8)])
    records = await everything(kafka, topics.decisions)
    between = datetime.fromtimestamp(max(each.timestamp for each in records) / 1000 + 0.001, UTC)
    async with reader(start="end", follow=True) as decisions:
        await decide([decision_record(index) for index in range(8, 12)])
        async with asyncio.timeout(DEADLINE_S):
            ids = {(await anext(decisions)).event_id for _ in range(4)}
    assert ids == {"event-8", "event-9", "event-10", "event-11"}
    async with reader(start=between) as decisions:
        assert {each.event_id async for each in decisions} == ids
    async with reader(start=Last(1)) as decisions:
        assert {each.event_id async for each in decisions} == ids


async def test_find_opens_only_the_one_it_is_asked_for(decide, reader):
    """The others are damaged: opening one would raise."""
    wanted = decision_record(3)
    await decide(
        [decision_record(index) for index in range(6)],
        lambda all_: [each if index == 3 else flipped(each, -1) for index, each in enumerate(all_)],
    )
    async with reader() as decisions:
        found = await decisions.find(wanted["decision_id"])
        assert found is not None
        assert found.event_id == "event-3"
    async with reader() as decisions:
        assert await decisions.find(uuid.UUID(int=0)) is None


async def test_missing_topic_is_one_line_and_is_not_created(kafka, kafka_settings, reader):
    nowhere = TopicSettings(decisions="weir.decisions.nowhere", transactions="bank.nowhere")
    with pytest.raises(WeirError, match=r"no topic weir\.decisions\.nowhere") as caught:
        async with reader(topics=nowhere):
            pass
    assert "\n" not in str(caught.value)
    async with Publisher.connect(kafka=kafka_settings, topics=nowhere, registry=RegistrySettings()) as bank:
        with pytest.raises(WeirError, match=r"no topic bank\.nowhere"):
            await bank.publish(transaction(1))
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
        assert not {"weir.decisions.nowhere", "bank.nowhere"} & await consumer.topics()


async def test_broker_that_is_away_is_one_line(reader):
    away = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    for context in (
        reader(kafka=away),
        Publisher.connect(kafka=away, topics=TopicSettings(), registry=RegistrySettings()),
    ):
        with pytest.raises(NeighbourUnavailable, match=r"127\.0\.0\.1:1") as caught:
            async with context:
                pass
        assert "\n" not in str(caught.value)


async def test_key_service_that_is_away_loses_no_decision(decide, reader, keys_service):
    """Asked again once it is there, the same decision comes."""
    await decide([decision_record()])
    settings: KeyServiceSettings = keys_service.settings("reader")
    async with await Keyring.connect(settings) as keyring:

        class Flaky:
            away = True

            async def open(self, value, topic, envelope_header, *, purpose):
                if self.away:
                    self.away = False
                    raise NeighbourUnavailable("away")
                return await keyring.open(value, topic, envelope_header, purpose=purpose)

        async with reader(keys=Flaky()) as decisions:
            with pytest.raises(NeighbourUnavailable):
                await anext(decisions)
            assert (await anext(decisions)).event_id == "event-0"
