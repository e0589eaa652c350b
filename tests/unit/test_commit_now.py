"""A commit that is asked for commits what is finished by then, also while another one is under way."""

import asyncio
from types import SimpleNamespace

from weir.streams.transport import BatchConsumer

DEADLINE_S = 5.0


async def test_what_was_finished_while_a_commit_was_under_way_is_committed_by_the_next():
    """Faust's own second call would do nothing: the partition's next owner would repeat what it left."""
    consumer = BatchConsumer.__new__(BatchConsumer)
    consumer.app, consumer.loop = SimpleNamespace(client_only=False), asyncio.get_running_loop()
    consumer._commit_fut = None
    finished, committed, under_way, may_end = 1, [], asyncio.Event(), asyncio.Event()

    async def force_commit(topics, start_new_transaction=True):
        committed.append(finished)
        under_way.set()
        await may_end.wait()
        return True

    consumer.force_commit = force_commit
    first = asyncio.create_task(consumer.commit())
    async with asyncio.timeout(DEADLINE_S):
        await under_way.wait()
        finished = 2
        second = asyncio.create_task(consumer.commit())
        third = asyncio.create_task(consumer.commit())
        await asyncio.sleep(0)
        assert committed == [1]
        may_end.set()
        assert await asyncio.gather(first, second, third) == [True] * 3
    assert committed == [1, 2, 2]
