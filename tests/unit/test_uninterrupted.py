"""A client that closes swallows no cancellation of whoever closes it: a loop that is to end for it ends."""

import asyncio

import pytest

from weir.kafka_options import uninterrupted


async def closes_as_aiokafka_does(steps):
    """Cancels a task of its own and awaits it: a cancellation that comes meanwhile is taken for that one."""
    own = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    own.cancel()
    try:
        await own
    except asyncio.CancelledError:
        steps.append("own task ended")
    await asyncio.sleep(0)
    steps.append("closed")


async def ticks(count):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("at", range(8))
async def test_a_cancellation_comes_out_once_the_client_has_closed(at):
    steps = []

    async def loop_for_ever():
        while True:
            await uninterrupted(closes_as_aiokafka_does(steps))
            await asyncio.Event().wait()

    task = asyncio.create_task(loop_for_ever())
    await ticks(at)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert steps in ([], ["own task ended", "closed"])


async def test_without_it_the_cancellation_is_lost():
    """So that the test above can tell."""
    steps = []
    task = asyncio.create_task(closes_as_aiokafka_does(steps))
    await ticks(2)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert steps[-1] == "closed"
    assert not task.cancelled()


async def test_what_it_returns_or_raises_is_handed_on():
    async def fails():
        raise ConnectionError("gone")

    async def succeeds():
        return 7

    assert await uninterrupted(succeeds()) == 7
    with pytest.raises(ConnectionError, match="gone"):
        await uninterrupted(fails())
