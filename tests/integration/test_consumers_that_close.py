"""A real consumer that closes swallows no cancellation: a worker that is told to stop waits for no task."""

import asyncio

from weir.client.connection import stop
from weir.config import KafkaSettings
from weir.streams.history import open_consumer, partitions

DEADLINE_S = 10.0
TICKS = 12


async def cancelled_while_closing(settings, topic, close, at):
    """Whether a task is cancelled whose consumer began to close `at` turns of the loop ago."""
    consumer = await open_consumer(settings, "closing")
    consumer.assign(await partitions(consumer, topic))
    await consumer.getmany(timeout_ms=1)
    task = asyncio.create_task(close(consumer))
    for _ in range(at):
        await asyncio.sleep(0)
    over = task.done()
    task.cancel()
    await asyncio.wait([task], timeout=DEADLINE_S)
    assert task.done()
    return over or task.cancelled()


async def test_a_cancellation_while_a_consumer_closes_is_not_lost(kafka):
    """At each turn of the loop that closing takes."""
    settings, topic = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers), kafka.make_topic()
    ours = [await cancelled_while_closing(settings, topic, stop, at) for at in range(TICKS)]
    assert all(ours)
    # aiokafka's own loses some: the test can tell.
    theirs = [
        await cancelled_while_closing(settings, topic, lambda consumer: consumer.stop(), at)
        for at in range(TICKS)
    ]
    assert not all(theirs)
