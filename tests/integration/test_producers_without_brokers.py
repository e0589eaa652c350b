"""Our own producers while brokers are killed, stay away, come back, or give up their leadership."""

import asyncio
import itertools
from contextlib import ExitStack

import pytest

from infra.local.kafka import KafkaNode, KafkaServer, new_cluster_id
from infra.local.ports import free_port
from tests.support.producing import (
    output,
    producing,
    read_committed,
    settings_of,
    unique,
    until,
)
from tests.support.servers import READY_WITHIN_S, KafkaUnderTest, running_server
from weir.config import KafkaSettings
from weir.errors import NeighbourUnavailable
from weir.kafka.errors import (
    CommitUnknown,
    Unavailable,
)
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.offsets import stable_offsets
from weir.kafka.producer import TransactionalProducer
from weir.kafka.protocol import GroupMember


@pytest.fixture(params=[2, 1], ids=["tv2", "tv1"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def own_kafka(tmp_path_factory):
    """A broker that the test may end."""
    folder = tmp_path_factory.mktemp("own-kafka")
    with running_server(KafkaServer(folder / "data", folder / "kafka.log")) as server:
        yield server


async def _make(server: KafkaServer, topic: str) -> None:
    await asyncio.to_thread(KafkaUnderTest(server).make_topic, topic, 2)


async def _restart(server: KafkaServer) -> None:
    server.kill()
    server.start()
    await asyncio.to_thread(server.wait_ready, 90)


async def test_transactions_go_on_after_the_broker_was_killed(own_kafka, version):
    """Whatever was under way: each transaction ends once, and as its producer was told."""
    settings, topic = settings_of(own_kafka), "topic.0"
    await _make(own_kafka, "topic")
    committed: list[bytes] = []
    async with producing(settings, version, timeout_ms=60_000, deadline_s=60) as producer:
        restarting: asyncio.Task | None = None
        for turn in itertools.count():
            value = b"%d" % turn
            await producer.produce([output(topic, at, value) for at in range(2)])
            if turn == 20:
                restarting = asyncio.ensure_future(_restart(own_kafka))
            await producer.commit()
            committed.append(value)
            if restarting is not None and restarting.done() and turn > 40:
                await restarting
                break
    assert await read_committed(settings, topic, 2) == [committed] * 2


async def test_a_broker_that_stays_away_is_told_and_come_back_from(own_kafka, version):
    """Each call ends at its deadline; an abort then clears the way, and nothing of the failed one is seen."""
    settings, topic = settings_of(own_kafka), "topic.0"
    await _make(own_kafka, "topic")
    async with producing(settings, version, timeout_ms=60_000, deadline_s=1) as producer:
        await producer.produce([output(topic, 0, b"first")])
        await producer.commit()
        await producer.produce([output(topic, 0, b"second")])
        own_kafka.kill()
        with pytest.raises(CommitUnknown) as unknown:
            await producer.commit()
        assert unknown.value.retriable
        own_kafka.start()
        await asyncio.to_thread(own_kafka.wait_ready, 90)
        await _insist(producer.commit)
        own_kafka.kill()
        with pytest.raises(Unavailable):
            await producer.produce([output(topic, 0, b"lost")])
        with pytest.raises(Unavailable):
            await producer.abort()
        own_kafka.start()
        await asyncio.to_thread(own_kafka.wait_ready, 90)
        await _insist(producer.abort)
        await producer.produce([output(topic, 0, b"third")])
        await _insist(producer.commit)
    assert await read_committed(settings, topic, 2) == [[b"first", b"second", b"third"], []]


async def _insist(end) -> None:
    """As its callers do while a broker comes up: again, until it is known."""

    async def known() -> bool:
        try:
            await end()
        except NeighbourUnavailable:
            return False
        return True

    await until(known, "the end")


async def test_no_broker_is_one_line_and_can_be_tried_again(own_kafka):
    settings = settings_of(own_kafka)
    own_kafka.stop()
    producer = TransactionalProducer(settings, transactional_id="id", client_id="test", deadline_s=1)
    with pytest.raises(NeighbourUnavailable) as error:
        await producer.start()
    assert "\n" not in str(error.value)
    own_kafka.start()
    await asyncio.to_thread(own_kafka.wait_ready, 90)
    await producer.start()
    await producer.stop()


@pytest.fixture(scope="module")
def three_brokers(tmp_path_factory):
    """A cluster that goes on with two."""
    folder, cluster_id = tmp_path_factory.mktemp("three"), new_cluster_id()
    voters = {number: free_port() for number in (1, 2, 3)}
    brokers = [
        KafkaServer(
            folder / f"{number}",
            folder / f"{number}.log",
            controller_port=port,
            heap_mb=256,
            node=KafkaNode(number, 3, cluster_id, voters),
        )
        for number, port in voters.items()
    ]
    with ExitStack() as stack:
        for broker in brokers:
            broker.start()
            stack.callback(broker.stop)
        for broker in brokers:
            broker.wait_ready(READY_WITHIN_S)
        yield brokers


async def test_leaders_and_coordinators_move_in_the_middle(three_brokers, version):
    """Each broker is killed once, so that one of them coordinates: nothing is lost, nothing there twice."""
    from confluent_kafka.admin import AdminClient, NewTopic

    servers = ",".join(broker.bootstrap_servers for broker in three_brokers)
    settings, topic = KafkaSettings(bootstrap_servers=servers), unique("moved")
    new = NewTopic(topic, num_partitions=6, replication_factor=3)
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([new])[topic].result(30)
    source, group, turn = topic, unique("group"), 0
    async with producing(settings, version, timeout_ms=60_000, deadline_s=60) as producer:

        async def transact() -> None:
            nonlocal turn
            await asyncio.gather(
                producer.produce([output(topic, at, b"%d" % turn) for at in range(6)]),
                producer.send_offsets(GroupMember(group, -1, ""), {(source, 0): (turn + 1, "")}),
            )
            await producer.commit()
            turn += 1

        for broker in three_brokers:
            for _ in range(5):
                await transact()
            under_way = asyncio.ensure_future(transact())
            broker.kill()
            await under_way
            for _ in range(5):
                await transact()
            broker.start()
            await asyncio.to_thread(broker.wait_ready, READY_WITHIN_S)
        await transact()
    assert await read_committed(settings, topic, 6) == [[b"%d" % each for each in range(turn)]] * 6
    assert await stable_offsets(settings, group, [(source, 0)]) == {(source, 0): (turn, "")}


async def test_idempotent_calls_go_on_after_the_broker_was_killed(own_kafka):
    """No record is missing or there twice while the producer lives."""
    settings, topic = settings_of(own_kafka), "topic.0"
    await _make(own_kafka, "topic")
    producer = IdempotentProducer(settings, client_id="test", deadline_s=60)
    await producer.start()
    sent: list[bytes] = []
    restarting: asyncio.Task | None = None
    for turn in itertools.count():
        values = [b"%d.%d" % (turn, row) for row in range(3)]
        sent += values
        if turn == 20:
            restarting = asyncio.ensure_future(_restart(own_kafka))
        await asyncio.gather(*(producer.produce([output(topic, 0, value)]) for value in values))
        if restarting is not None and restarting.done() and turn > 40:
            await restarting
            break
    await producer.stop()
    assert await read_committed(settings, topic, 2) == [sent, []]


async def test_a_failed_call_takes_those_along_that_wait_behind_it(own_kafka):
    """And only those; what is published again afterwards is not taken for an old number."""
    settings, topic = settings_of(own_kafka), "topic.0"
    await _make(own_kafka, "topic")
    producer = IdempotentProducer(settings, client_id="test", deadline_s=1)
    await producer.start()
    await producer.produce([output(topic, 0, b"first"), output(topic, 1, b"first")])
    own_kafka.kill()
    results = await asyncio.gather(
        *(producer.produce([output(topic, 0, b"lost")]) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in results] == [Unavailable] * 3
    own_kafka.start()
    await asyncio.to_thread(own_kafka.wait_ready, 90)

    async def again() -> None:
        await producer.produce([output(topic, 0, b"second"), output(topic, 1, b"second")])

    await _insist(again)
    await producer.stop()
    first, other = await read_committed(settings, topic, 2)
    # What got no answer may have arrived all the same, and `again` may have been asked twice.
    assert (first[0], first[-1]) == (other[0], other[-1]) == (b"first", b"second")
    assert first[1:-1].count(b"lost") <= 1
    assert b"lost" not in other
