"""A worker that keeps another's partitions warm goes on with them, and nobody can tell from the decisions."""

import asyncio
import re
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from confluent_kafka import Producer

from tests.faults.checker import check
from tests.support.payments import until
from tests.support.risk import RiskUnderTest, risk_under_test
from tests.support.states import payments
from tests.support.under_load import UnderLoad
from weir.features.accounts import Accounts
from weir.features.terminals import Terminals, observe

FLUSH_S = 60.0
# Rows that may still be missing of a changelog that a worker follows at this pace.
TAIL_MAX = 2_000


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


def filled(worker: RiskUnderTest, accounts_each: int) -> set[bytes]:
    """Give each partition's changelog so many accounts that have paid once; their keys."""
    ways = {"bootstrap.servers": worker.kafka.bootstrap_servers, "enable.idempotence": True}
    producer = Producer({**ways, "queue.buffering.max.messages": 2 * accounts_each + 1000})
    now_ms, written = time.time_ns() // 1_000_000, set[bytes]()
    for partition in range(worker.partitions):
        accounts, terminals = Accounts(rows_max=accounts_each), Terminals(rows_max=10)
        first = 1 + partition * accounts_each
        who = range(first, first + accounts_each)
        observe(accounts, terminals, payments([(each, 1, 10_000, now_ms, 0) for each in who]))
        keys, values = accounts.encode_rows(np.arange(accounts.row_count))
        for key, value in zip(keys.to_list(), values.to_list(), strict=True):
            producer.produce(worker.topics.risk_accounts, value, key, partition)
        written |= {key for key in keys.to_list() if key is not None}
    assert producer.flush(FLUSH_S) == 0
    return written


@pytest.mark.parametrize("accounts_each", [50_000])
async def test_a_killed_workers_partition_goes_on_from_the_standby(two, accounts_each):
    """Its state is the standby's, all but the tail: every score is that of the payment's whole history."""
    old = filled(two[0], accounts_each)
    for worker in two:
        worker.overrides["accounts_max"] = 4 * accounts_each
    one, other = two
    await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in two))
    async with UnderLoad(one, "owner killed", seed=11) as load:
        await until(lambda: near(one).keys() | near(other).keys() == {0, 1}, "each keeps the other's warm")
        await load.more()
        (kept,) = near(other)
        await until(lambda: near(other)[kept] < TAIL_MAX, "it has caught up")
        async with load.change():
            await asyncio.to_thread(one.kill)
            await until(lambda: other.health()["partitions"] == [0, 1], "the other has both")
        assert kept not in near(other)
        load.risk = other
    read = restored_rows(other, "standby")
    assert read is not None
    assert read < TAIL_MAX
    assert other.health()["accounts"] >= len(old)
    history = await load.history(other)
    rows = [row for row in history.rows if row.key not in old]
    assert check(replace(history, rows=rows)) == []


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
