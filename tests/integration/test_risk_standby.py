"""A worker that keeps another's partitions warm goes on with them, and nobody can tell from the decisions."""

import asyncio
import re
from contextlib import ExitStack

import pytest

from tests.faults.checker import check
from tests.support.keys import running_keys_service
from tests.support.payments import until
from tests.support.risk import RiskUnderTest, risk_under_test
from tests.support.under_load import UnderLoad


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    with running_keys_service(tmp_path_factory.mktemp("keys")) as service:
        yield service


@pytest.fixture
def two(tmp_path, kafka, keys, triton):
    """Two workers of one group that keep each other's partitions warm; none has started."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(risk_under_test(tmp_path / name, kafka, keys, triton.endpoint))
            for name in ("one", "two")
        ]
        for worker in workers:
            worker.topics = workers[0].topics
            worker.overrides |= {"standby_replicas": 1, "standby_lag_max": 100, "session_timeout_s": 6.0}
        yield workers


def restored_rows(worker: RiskUnderTest, source: str) -> float | None:
    """Rows that the worker has brought here from `source`; None when nothing came from there."""
    found = re.search(rf'weir_state_restored_rows_total{{.*source="{source}"}} (\S+)', worker.metrics())
    return float(found[1]) if found else None


def near(worker: RiskUnderTest) -> dict[int, float]:
    """By partition how far behind the worker's standby is."""
    found = re.findall(r'weir_state_standby_lag_records{partition="(\d+)".*} (\S+)', worker.metrics())
    return {int(partition): float(lag) for partition, lag in found}


async def test_a_killed_workers_partition_goes_on_from_the_standby(two):
    """Its state is the standby's: every score is that of the payment's whole history."""
    one, other = two
    await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in two))
    async with UnderLoad(one, "owner killed", seed=11) as load:
        await until(lambda: near(one).keys() | near(other).keys() == {0, 1}, "each keeps the other's warm")
        await load.more()
        (kept,) = near(other)
        async with load.change():
            await asyncio.to_thread(one.kill)
            await until(lambda: other.health()["partitions"] == [0, 1], "the other has both")
        assert kept not in near(other)
        load.risk = other
    assert restored_rows(other, "standby") is not None
    assert check(await load.history(other)) == []


async def test_a_partition_moves_to_a_newcomer_once_it_is_warm_and_back_when_that_one_leaves(two):
    one, other = two
    await asyncio.to_thread(one.start)
    async with UnderLoad(one, "worker joins and leaves", seed=12) as load:
        async with load.change():
            await asyncio.to_thread(other.start)
            await until(lambda: len(other.health()["partitions"]) == 1, "the newcomer has one")
        assert restored_rows(other, "standby") is not None
        assert restored_rows(other, "changelog") is None
        moved = other.health()["partitions"]
        await until(lambda: list(near(one)) == moved, "who had it keeps it warm")
        async with load.change():
            assert await asyncio.to_thread(other.stop) == 0
            await until(lambda: one.health()["partitions"] == [0, 1], "it is back")
        assert restored_rows(one, "standby") is not None
    assert check(await load.history(one)) == []
