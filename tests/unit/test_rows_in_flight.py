"""A delivery that does not answer holds reading back: no more rows are in flight than the bound."""

import asyncio
from types import SimpleNamespace

import pytest

from weir.streams.batch import RecordBatch
from weir.streams.pipeline import Pipeline

ROWS_MAX = 10
DEADLINE_S = 5.0


class Nothing:
    """A processor that reads, scores and writes nothing."""

    async def prepare(self, group):
        pass

    def read(self, epoch, group):
        return None

    def touched(self, read):
        return {}

    async def score(self, read):
        return None

    async def write(self, group, read, scored):
        return [], None

    def counted(self, group, counts, send_s):
        pass


class Held:
    """A delivery whose answers the test gives."""

    def __init__(self):
        self.futures = []

    def enqueue(self, done):
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def pipeline(held):
    return Pipeline(Nothing(), held, rows_in_flight_max=ROWS_MAX, on_failure=lambda error: None)


def batch(rows):
    records = [SimpleNamespace(offset=offset, value=b"") for offset in range(rows)]
    return SimpleNamespace(batch=RecordBatch("payments", 0, records))


def submit(pipeline, rows):
    return asyncio.create_task(pipeline.submit([batch(rows)], lambda taken: True))


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_group_that_would_go_beyond_the_bound_waits_for_a_delivery(pipeline, held):
    first, second, third = (submit(pipeline, 4) for _ in range(3))
    await turns()
    assert (first.done(), second.done(), third.done()) == (True, True, False)
    assert (pipeline.rows_in_flight, pipeline.in_flight) == (8, 2)
    held.futures[0].set_result(None)
    async with asyncio.timeout(DEADLINE_S):
        await third
    assert pipeline.rows_in_flight == 8


async def test_a_group_larger_than_the_bound_goes_alone(pipeline, held):
    small, large = submit(pipeline, 1), submit(pipeline, 3 * ROWS_MAX)
    await turns()
    assert (small.done(), large.done()) == (True, False)
    held.futures[0].set_result(None)
    async with asyncio.timeout(DEADLINE_S):
        await large
    after = submit(pipeline, 1)
    await turns()
    assert (pipeline.rows_in_flight, pipeline.in_flight, after.done()) == (ROWS_MAX, 1, False)
    held.futures[1].set_result(None)
    async with asyncio.timeout(DEADLINE_S):
        await after
    assert pipeline.rows_in_flight == 1


async def test_what_is_cancelled_is_in_flight_no_more(pipeline):
    submit(pipeline, 4)
    await turns()
    await pipeline.cancel()
    await turns()
    assert (pipeline.rows_in_flight, pipeline.in_flight) == (0, 0)
