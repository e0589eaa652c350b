"""Our own producers against a real broker, by transaction version 2 and by version 1."""

import asyncio

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr

from infra.local.kafka import KafkaSecurity, KafkaServer
from tests.support.producing import (
    NOW_MS,
    joined,
    output,
    producing,
    read_committed,
    settings_of,
    unique,
    until,
)
from tests.support.servers import KafkaUnderTest, running_server
from weir.client.connection import TopicDenied, TopicMissing
from weir.columns import ByteColumn
from weir.config import KafkaSettings
from weir.errors import AccessDenied
from weir.kafka.errors import (
    CommitUnknown,
    Fenced,
    NotMember,
    OffsetsPending,
    PartitionMissing,
    RecordTooLarge,
    TransactionAborted,
)
from weir.kafka.fencing import fence
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.offsets import stable_offsets
from weir.kafka.producer import Stage, TransactionalProducer
from weir.kafka.protocol import GroupMember
from weir.kafka.records import ColumnOutput
from weir.streams.output import Output


@pytest.fixture(params=[2, 1], ids=["tv2", "tv1"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


async def test_a_commit_is_seen_and_an_abort_is_not(kafka, version):
    """Over several partitions, several times, under one id."""
    topic, settings = kafka.make_topic(), settings_of(kafka)
    async with producing(settings, version) as producer:
        for turn in range(6):
            await producer.produce([output(topic, at, b"%d" % turn) for at in range(4)])
            await (producer.abort() if turn % 3 == 1 else producer.commit())
    assert await read_committed(settings, topic) == [[b"0", b"2", b"3", b"5"]] * 4


async def test_columns_arrive_as_lists_do(kafka, version):
    """Keys, values, headers and timestamps, in as many batches as the limit asks for, in order."""
    topic, settings = kafka.make_topic(partitions=1), settings_of(kafka)
    values = [b"%05d" % row for row in range(5000)]
    stamps = NOW_MS + np.arange(5000)
    columns = ByteColumn.from_list(values)
    async with producing(settings, version, batch_bytes_max=20_000) as producer:
        await producer.produce([ColumnOutput(topic, 0, columns, columns, stamps, [("h", b"x")])])
        await producer.produce([Output(topic, 0, values, values, [[("h", b"x")]] * 5000, stamps.tolist())])
        await producer.commit()
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    seen: list[tuple[object, ...]] = []

    async def read() -> bool:
        for records in (await consumer.getmany(timeout_ms=50)).values():
            seen.extend((each.key, each.value, each.headers, each.timestamp) for each in records)
        return len(seen) >= 10_000

    try:
        await until(read, "reading")
    finally:
        await consumer.stop()
    rows = [(value, value, (("h", b"x"),), NOW_MS + row) for row, value in enumerate(values)]
    assert seen == rows * 2


async def test_offsets_are_part_of_the_transaction(kafka, version):
    """Committed with the records, and not with an aborted one; sent while the records are."""
    source, topic, settings = kafka.make_topic(), kafka.make_topic(), settings_of(kafka)
    group = unique("group")
    places = [(source, at) for at in range(4)]
    async with joined(settings, source, group) as member, producing(settings, version) as producer:
        for turn, end in enumerate((producer.commit, producer.abort, producer.commit, producer.abort)):
            offsets = {place: (10 * turn + at, f"turn {turn}") for at, place in enumerate(places[:3])}
            await asyncio.gather(
                producer.produce([output(topic, 0, b"%d" % turn)]), producer.send_offsets(member, offsets)
            )
            await end()

        async def ended() -> bool:
            try:
                await stable_offsets(settings, group, places)
            except OffsetsPending:
                return False
            return True

        await until(ended, "the last abort's markers")
        found = await producer.stable_offsets(group, places)
    assert found == {
        **{place: (20 + at, "turn 2") for at, place in enumerate(places[:3])},
        places[3]: (None, ""),
    }
    assert (await read_committed(settings, topic))[0] == [b"0", b"2"]


async def test_offsets_are_not_told_while_a_transaction_may_change_them(kafka, version):
    source, settings, group = kafka.make_topic(), settings_of(kafka), unique("group")
    async with producing(settings, version) as producer:
        await producer.send_offsets(GroupMember(group, -1, ""), {(source, 0): (7, "")})
        with pytest.raises(OffsetsPending):
            await stable_offsets(settings, group, [(source, 0)])
        await producer.commit()

        async def told() -> bool:
            try:
                return await stable_offsets(settings, group, [(source, 0)]) == {(source, 0): (7, "")}
            except OffsetsPending:
                return False

        await until(told, "the committed offset")


@pytest.mark.parametrize("call", ["produce", "send_offsets", "commit"])
async def test_a_second_holder_of_the_id_fences_the_first(kafka, version, call):
    """The first's open transaction is aborted, and whatever it tries next is refused; the second works."""
    topic, source, settings, name = kafka.make_topic(), kafka.make_topic(), settings_of(kafka), unique("id")
    async with producing(settings, version, name) as first:
        await first.produce([output(topic, 0, b"lost")])
        async with producing(settings, version, name) as second:
            calls = {
                "produce": lambda: first.produce([output(topic, 0, b"late")]),
                "send_offsets": lambda: first.send_offsets(
                    GroupMember(unique("group"), -1, ""), {(source, 0): (1, "")}
                ),
                "commit": first.commit,
            }
            with pytest.raises(Fenced) as error:
                await calls[call]()
            assert not error.value.retriable
            assert first.stage is Stage.FENCED
            for refused in (first.commit(), first.abort(), first.produce([output(topic, 1, b"late")])):
                with pytest.raises(Fenced):
                    await refused
            await second.produce([output(topic, 0, b"kept")])
            await second.commit()
    assert await read_committed(settings, topic) == [[b"kept"], [], [], []]


async def test_fencing_ends_what_its_holder_left_open(kafka, version):
    """Without becoming a producer: readers go on at once, and the holder cannot commit any more."""
    topic, settings, name = kafka.make_topic(), settings_of(kafka), unique("id")
    async with producing(settings, version, name) as holder:
        await holder.produce([output(topic, 0, b"lost")])
        await fence(settings, name)
        assert await read_committed(settings, topic) == [[], [], [], []]
        with pytest.raises(Fenced):
            await holder.commit()


async def test_a_transaction_that_takes_too_long_is_refused(kafka, version):
    """The broker aborts it by itself; its producer may not go on as if nothing had been."""
    folder_settings = settings_of(kafka)
    topic = kafka.make_topic()
    async with producing(folder_settings, version, timeout_ms=200) as producer:
        await producer.produce([output(topic, 0, b"slow")])
        # The broker looks for such transactions every 10 s.
        assert await read_committed(folder_settings, topic) == [[], [], [], []]
        with pytest.raises((Fenced, TransactionAborted)):
            await producer.commit()
    assert await read_committed(folder_settings, topic) == [[], [], [], []]


async def test_another_generation_may_not_commit_offsets(kafka, version):
    """Nor a member that the group does not know; the transaction is aborted, and the producer goes on."""
    source, topic, settings, group = (
        *(kafka.make_topic(), kafka.make_topic()),
        settings_of(kafka),
        unique("group"),
    )
    async with joined(settings, source, group) as member, producing(settings, version) as producer:
        strangers = (
            GroupMember(group, member.generation + 1, member.member_id),
            GroupMember(group, member.generation, "nobody"),
        )
        for stranger in strangers:
            await producer.produce([output(topic, 0, b"lost")])
            with pytest.raises(NotMember, match=group):
                await producer.send_offsets(stranger, {(source, 0): (5, "")})
            with pytest.raises(TransactionAborted):
                await producer.commit()
            await producer.abort()
        await producer.produce([output(topic, 0, b"kept")])
        await producer.send_offsets(member, {(source, 0): (6, "")})
        await producer.commit()
    assert (await read_committed(settings, topic))[0] == [b"kept"]


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_an_end_whose_answer_is_lost_is_known_all_the_same(kafka, version, end):
    """The socket is closed with the request on its way, each time at another moment."""
    topic, settings = kafka.make_topic(partitions=1), settings_of(kafka)
    turns = 12
    async with producing(settings, version) as producer:
        for turn in range(turns):
            await producer.produce([output(topic, 0, b"%d" % turn)])
            ending = asyncio.ensure_future(getattr(producer, end)())
            await _break_coordination(producer, ending, delay_s=turn * 0.0002)
            await ending
            assert producer.stage is Stage.READY
        await producer.produce([output(topic, 0, b"last")])
        await producer.commit()
    kept = [b"%d" % turn for turn in range(turns)] if end == "commit" else []
    assert await read_committed(settings, topic, 1) == [[*kept, b"last"]]


async def _break_coordination(
    producer: TransactionalProducer, ending: asyncio.Future, delay_s: float
) -> None:
    """Close the connection to the coordinator while it owes an answer."""
    connections = producer._link.client._conns

    def owing():
        return [conn for (_, kind), conn in connections.items() if kind == 1 and conn._requests]

    while not ending.done() and not owing():  # noqa: ASYNC110 - it is told by nothing
        await asyncio.sleep(0)
    if delay_s:
        await asyncio.sleep(delay_s)
    for connection in owing():
        connection.close()


async def test_a_commit_that_was_cancelled_is_asked_again(kafka, version):
    """Whoever waited for it is gone; the next call says how it ended, and an abort is refused until then."""
    topic, settings = kafka.make_topic(partitions=1), settings_of(kafka)
    async with producing(settings, version) as producer:
        for turn in range(5):
            await producer.produce([output(topic, 0, b"%d" % turn)])
            ending = asyncio.ensure_future(producer.commit())
            while producer.stage is not Stage.COMMITTING:  # noqa: ASYNC110 - it is told by nothing
                await asyncio.sleep(0)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            with pytest.raises(CommitUnknown):
                await producer.abort()
            with pytest.raises(CommitUnknown):
                await producer.produce([output(topic, 0, b"too early")])
            await producer.commit()
    assert await read_committed(settings, topic, 1) == [[b"%d" % turn for turn in range(5)]]


async def test_a_call_that_is_cancelled_leaves_nothing_behind(kafka, version):
    """Cancelled at its caller, or by the abort itself: none of its records is in the next transaction."""
    topic, settings = kafka.make_topic(partitions=1), settings_of(kafka)
    async with producing(settings, version, batch_bytes_max=500) as producer:
        for turn in range(10):
            calls = [
                asyncio.ensure_future(producer.produce([output(topic, 0, *[b"lost %d" % turn * 20] * 30)]))
                for _ in range(2)
            ]
            await asyncio.sleep(0.001 * (turn % 4))
            if turn % 2:
                calls[0].cancel()
            await producer.abort()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(
                isinstance(each, TransactionAborted | asyncio.CancelledError | None) for each in results
            )
            await producer.produce([output(topic, 0, b"%d" % turn)])
            await producer.commit()
    assert await read_committed(settings, topic, 1) == [[b"%d" % turn for turn in range(10)]]


async def test_two_producers_take_turns_200_times(kafka, version):
    """The next transaction is produced while the last one ends; its end begins after that."""
    source, topic, settings, group = (
        *(kafka.make_topic(), kafka.make_topic()),
        settings_of(kafka),
        unique("group"),
    )
    turns = 200
    async with (
        joined(settings, source, group) as member,
        producing(settings, version) as even,
        producing(settings, version) as odd,
    ):
        ending: asyncio.Task | None = None
        for turn in range(turns):
            producer = (even, odd)[turn % 2]
            await asyncio.gather(
                producer.produce([output(topic, at, b"%d" % turn) for at in range(4)]),
                producer.send_offsets(member, {(source, 0): (turn + 1, "")}),
            )
            if ending is not None:
                await ending
            ending = asyncio.ensure_future(producer.commit())
        assert ending is not None
        await ending
        assert await read_committed(settings, topic) == [[b"%d" % turn for turn in range(turns)]] * 4
        assert await stable_offsets(settings, group, [(source, 0)]) == {(source, 0): (turns, "")}


async def test_epochs_that_run_out_are_renewed(kafka):
    """Version 2 takes an epoch a transaction and has 32,767 of them: the end brings another id then."""
    topic, settings = kafka.make_topic(partitions=1), settings_of(kafka)
    async with producing(settings) as producer:
        first = producer.identity
        for turn in range(3):
            await producer.produce([output(topic, 0, b"%d" % turn)])
            await producer.commit()
        assert producer.identity.producer_id == first.producer_id
        assert producer.identity.epoch == first.epoch + 3


async def test_nothing_to_commit_is_committed(kafka, version):
    """And an abort of nothing is one."""
    settings = settings_of(kafka)
    async with producing(settings, version) as producer:
        await producer.commit()
        await producer.abort()
        await producer.produce([])
        await producer.send_offsets(GroupMember("none", -1, ""), {})
        await producer.commit()
        assert producer.stage is Stage.READY


async def test_a_topic_that_is_not_there_is_told(kafka, version):
    """Or a partition; and after the abort the producer goes on. The topic is not created."""
    topic, settings = kafka.make_topic(), settings_of(kafka)
    async with producing(settings, version) as producer:
        for error, missing in ((TopicMissing, ("no.such.topic", 0)), (PartitionMissing, (topic, 4))):
            with pytest.raises(error, match=missing[0]):
                await producer.produce([output(topic, 0, b"lost"), output(*missing, b"lost")])
            await producer.abort()
        await producer.produce([output(topic, 0, b"kept")])
        await producer.commit()
    assert (await read_committed(settings, topic))[0] == [b"kept"]


async def test_what_is_too_large_is_told(kafka, version):
    """By the broker, for the topic; the rest of the transaction is aborted."""
    settings = settings_of(kafka)
    topic = kafka.make_topic(config={"max.message.bytes": "10000"})
    async with producing(settings, version) as producer:
        await producer.produce([output(topic, 0, b"first")])
        await producer.commit()
        with pytest.raises(RecordTooLarge, match=topic):
            await producer.produce([output(topic, 0, bytes(20_000))])
        await producer.abort()
    assert await read_committed(settings, topic) == [[b"first"], [], [], []]


PASSWORD = "right-horse-7"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A broker on which user risk may do nothing yet, with its topics."""
    folder = tmp_path_factory.mktemp("guarded")
    security = KafkaSecurity(
        "SASL_PLAINTEXT", scram_users={"risk": PASSWORD}, acl_super_users=("User:admin",)
    )
    with running_server(KafkaServer(folder / "data", folder / "kafka.log", security=security)) as server:
        yield KafkaUnderTest(server)


def _allow(kafka: KafkaUnderTest, kind: str, name: str, *operations: str) -> None:
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        AdminClient,
        ResourcePatternType,
        ResourceType,
    )

    admin = AdminClient({"bootstrap.servers": kafka.server.internal_bootstrap_servers})
    rules = [
        AclBinding(
            ResourceType[kind],
            name,
            ResourcePatternType.LITERAL,
            "User:risk",
            "*",
            AclOperation[operation],
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]
    for future in admin.create_acls(rules).values():
        future.result(30)


async def test_each_right_that_is_missing_is_named(guarded, version):
    """The id, the topic, the group; with them granted one by one the transaction goes through."""
    topic, source = guarded.make_topic("out"), guarded.make_topic("in")
    settings = KafkaSettings(
        bootstrap_servers=guarded.bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_username="risk",
        sasl_password=SecretStr(PASSWORD),
    )
    name, group = unique("id"), unique("group")
    offsets, member = {(source, 0): (3, "")}, GroupMember(group, -1, "")
    with pytest.raises(AccessDenied, match=name):
        async with producing(settings, version, name):
            pass
    with pytest.raises(AccessDenied, match=group):
        await stable_offsets(settings, group, [(source, 0)])
    _allow(guarded, "TRANSACTIONAL_ID", name, "WRITE", "DESCRIBE")
    async with producing(settings, version, name) as producer:
        with pytest.raises(TopicDenied, match=topic):
            await producer.produce([output(topic, 0, b"lost")])
        await producer.abort()
        with pytest.raises(AccessDenied, match=group):
            await producer.send_offsets(member, offsets)
        await producer.abort()
        _allow(guarded, "TOPIC", topic, "WRITE", "DESCRIBE")
        _allow(guarded, "TOPIC", source, "READ", "DESCRIBE")
        _allow(guarded, "GROUP", group, "READ")
        await producer.produce([output(topic, 0, b"kept")])
        await producer.send_offsets(member, offsets)
        await producer.commit()

        async def told() -> bool:
            try:
                return await producer.stable_offsets(group, [(source, 0)]) == {(source, 0): (3, "")}
            except OffsetsPending:
                return False

        await until(told, "the committed offset")


async def test_calls_that_overlap_keep_each_partitions_order(kafka):
    """Idempotent: many calls at once, some over two partitions, in batches so small that each has several."""
    topic, settings = kafka.make_topic(), settings_of(kafka)
    producer = IdempotentProducer(settings, client_id="test", batch_bytes_max=200)
    await producer.start()
    sent: list[list[bytes]] = [[], [], [], []]
    calls = []
    for call in range(60):
        outputs = []
        for at in {call % 4, call * 7 % 4}:
            values = [b"%d.%d" % (call, row) for row in range(call % 9 + 1)]
            sent[at] += values
            outputs.append(output(topic, at, *values))
        calls.append(producer.produce(outputs))
    await asyncio.gather(*calls)
    await producer.stop()
    assert await read_committed(settings, topic) == sent
