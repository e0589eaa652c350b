"""Batches of several partitions are taken together, in order, and never more than a group may hold."""

import asyncio
from types import SimpleNamespace

from weir.streams import BatchGroup, Gatherer, RecordBatch


def batch(
    partition: int, first: int, count: int, headers: bool = False, more_follow: bool = False
) -> RecordBatch:
    records = [
        SimpleNamespace(
            offset=first + row,
            key=b"k",
            value=b"%d-%d" % (partition, first + row),
            timestamp=1000 + row,
            headers=(("h", b"1"),) if headers else (),
        )
        for row in range(count)
    ]
    return RecordBatch("topic", partition, records, more_follow)


def taken(partition: int, first: int, count: int, more_follow: bool = False) -> SimpleNamespace:
    return SimpleNamespace(batch=batch(partition, first, count, more_follow=more_follow))


async def test_what_waits_is_taken_together_up_to_the_bound():
    gatherer = Gatherer(10, 0.0)
    for each in (taken(0, 0, 4), taken(1, 0, 5), taken(0, 4, 3)):
        await gatherer.put(each)
    first = await gatherer.take()
    assert [(each.batch.partition, each.batch.offset_first) for each in first] == [(0, 0), (1, 0)]
    assert [each.batch.offset_first for each in await gatherer.take()] == [4]


async def test_a_batch_larger_than_the_bound_is_a_group_of_its_own():
    gatherer = Gatherer(10, 0.0)
    await gatherer.put(taken(0, 0, 25))
    assert [len(each.batch) for each in await gatherer.take()] == [25]


async def test_a_full_gatherer_lets_its_producer_wait_until_a_group_is_taken():
    gatherer = Gatherer(5, 0.0)
    await gatherer.put(taken(0, 0, 5))
    waiting = asyncio.create_task(gatherer.put(taken(1, 0, 1)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await gatherer.take()
    await asyncio.wait_for(waiting, 1)


async def test_a_group_waits_for_the_rest_of_its_fetch_and_then_no_longer():
    """With a linger of a minute, so that only the fetch's last batch can be what ended the wait."""
    gatherer = Gatherer(100, 60.0)
    take = asyncio.create_task(gatherer.take())
    await gatherer.put(taken(0, 0, 1, more_follow=True))
    await asyncio.sleep(0)
    await gatherer.put(taken(1, 0, 1, more_follow=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not take.done()
    await gatherer.put(taken(2, 0, 1))
    assert len(await asyncio.wait_for(take, 1)) == 3
    await gatherer.put(taken(0, 1, 1))
    assert len(await asyncio.wait_for(gatherer.take(), 1)) == 1


async def test_a_group_does_not_wait_for_ever_for_what_was_kept_back():
    gatherer = Gatherer(100, 0.01)
    await gatherer.put(taken(0, 0, 1, more_follow=True))
    assert len(await asyncio.wait_for(gatherer.take(), 1)) == 1


async def test_a_full_group_does_not_wait_for_more():
    gatherer = Gatherer(2, 60.0)
    await gatherer.put(taken(0, 0, 2, more_follow=True))
    assert len(await asyncio.wait_for(gatherer.take(), 1)) == 1


async def test_what_was_forgotten_while_a_group_waited_is_not_taken():
    gatherer = Gatherer(100, 0.01)
    await gatherer.put(taken(0, 0, 1, more_follow=True))
    take = asyncio.create_task(gatherer.take())
    await asyncio.sleep(0)
    await gatherer.clear()
    assert await asyncio.wait_for(take, 1) == []


async def test_nothing_is_taken_when_nothing_comes_in_time():
    assert await Gatherer(10, 0.0).take(0.001) == []


def test_a_group_shows_its_batches_as_one():
    group = BatchGroup([batch(3, 10, 2), batch(1, 7, 1, headers=True)])
    assert len(group) == 3
    assert group.starts == [0, 2, 3]
    assert group.values == [b"3-10", b"3-11", b"1-7"]
    assert group.offsets == [10, 11, 7]
    assert [list(each) for each in group.headers] == [[], [], [("h", b"1")]]


def test_a_group_without_headers_says_so():
    assert BatchGroup([batch(0, 0, 2), batch(1, 0, 1)]).headers is None


async def test_a_small_group_grows_while_earlier_ones_are_on_their_way():
    """What comes meanwhile goes together, as soon as nothing is on its way."""
    on_its_way = True
    gatherer = Gatherer(100, 60.0, lambda: on_its_way)
    take = asyncio.create_task(gatherer.take())
    await gatherer.put(taken(0, 0, 3))
    gatherer.nudge()
    await asyncio.sleep(0)
    await gatherer.put(taken(0, 3, 4))
    await asyncio.sleep(0)
    assert not take.done()
    on_its_way = False
    gatherer.nudge()
    assert [each.batch.offset_first for each in await asyncio.wait_for(take, 1)] == [0, 3]


async def test_a_group_worth_its_cost_goes_whatever_is_on_its_way():
    gatherer = Gatherer(100, 60.0, lambda: True)
    take = asyncio.create_task(gatherer.take())
    await gatherer.put(taken(0, 0, 24))
    await asyncio.sleep(0)
    assert not take.done()
    await gatherer.put(taken(1, 0, 1))
    assert len(await asyncio.wait_for(take, 1)) == 2
