"""What a worker keeps warm for others: whole, or not used at all."""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from services.risk import standby as standby_module
from services.risk.changelog import MARK_KEY, Log, Replica
from services.risk.standby import Standbys
from services.risk.state import RiskState, StateTopics
from tests.support.pauses import until
from tests.unit.test_risk_restore import START_MS, payments, rows_of
from weir.config import KafkaSettings
from weir.obs.stream_metrics import StreamMetrics
from weir.state.table import StateFull
from weir.streams.standby import Caught, ChangelogTooShort, NotFollowed

TOPICS = StateTopics("accounts", "journal")


class Follower:
    """Instead of a broker: the test hands rows over and says how far behind the follower is."""

    def __init__(self, settings, topic, apply, client_id, on_failure, on_refused) -> None:
        self.on_refused = on_refused
        self.apply, self.positions, self.lags = apply, dict[int, int](), dict[int, int]()
        self.end: Caught | Exception = Caught(7, 3)
        self.gate: asyncio.Future[None] | None = None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def follow(self, starts) -> None:
        self.positions = dict(starts)
        if self.gate is not None and not self.gate.done():
            self.gate.set_exception(NotFollowed())

    def lag(self, partition):
        return self.lags.get(partition) if partition in self.positions else None

    async def promote(self, partition):
        if partition not in self.positions:
            raise NotFollowed
        if self.gate is not None:
            await self.gate
        if isinstance(self.end, Exception):
            raise self.end
        del self.positions[partition]
        return self.end


@pytest.fixture
async def kept(monkeypatch):
    """Standbys that run, their follower, their metrics, and how often the group was asked for a round."""
    monkeypatch.setattr(standby_module, "StandbyFollower", Follower)
    monkeypatch.setattr(standby_module, "_CHECK_S", 0.01)
    monkeypatch.setattr(standby_module, "_ASK_AGAIN_S", 0.05)
    registry, asked = CollectorRegistry(), list[int]()

    async def near() -> None:
        asked.append(1)

    standbys = Standbys(
        KafkaSettings(),
        "accounts",
        "me",
        begin=lambda partition, since: (
            Replica(new_state().new_accounts(), since=since),
            since or 40 + partition,
        ),
        lag_max=10,
        metrics=StreamMetrics("risk", registry),
        on_failure=lambda error: pytest.fail(str(error)),
        on_near=near,
    )
    running = asyncio.create_task(standbys.run())
    yield SimpleNamespace(standbys=standbys, follower=standbys._follower, asked=asked, registry=registry)
    running.cancel()
    await asyncio.wait([running])


def new_state() -> RiskState:
    state = RiskState(TOPICS, accounts_max=1000, terminals_max=1000, owner="other")
    state.attach(0, state.new_accounts(), 0, {})
    return state


def written(
    count: int, changelog: Log | None = None
) -> tuple[RiskState, list[bytes | None], list[bytes | None]]:
    """A worker's state after so many payments of as many accounts, and what its changelog says."""
    state = new_state()
    state.attach(0, state.new_accounts(), 0, {}, None, changelog)
    state.begin(1)
    batch = payments([(who, 1, 10_000, START_MS, 0) for who in range(1, count + 1)])
    state.observe(0, batch, 0, count)
    (output,) = state.changelog(1, [0], 0)
    rows = list(rows_of(output))
    return state, [key for key, _, _ in rows], [value for _, value, _ in rows]


async def test_what_is_taken_is_what_the_changelog_says(kept):
    state, keys, values = written(20)
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    kept.follower.apply(0, keys, values)
    assert kept.standbys.positions == {0: 20}
    kept.standbys.tell([], [0])
    warm = await kept.standbys.take(0)
    assert warm.accounts.rows.content() == state.accounts[0].rows.content()
    assert (warm.mark.next_offset, warm.row_count) == (20, 3)
    assert kept.standbys.positions == {}
    assert await kept.standbys.take(0) is None


async def test_a_partition_between_two_owners_stays_warm_and_one_that_is_named_no_more_goes(kept):
    kept.standbys.tell([0, 1], [])
    await until(lambda: kept.follower.positions == {0: 40, 1: 41}, "it is followed")
    kept.standbys.tell([1], [], settled=False)
    assert kept.follower.positions == {0: 40, 1: 41}
    kept.standbys.tell([1], [])
    assert kept.follower.positions == {1: 41}
    assert await kept.standbys.take(0) is None


async def test_a_damaged_row_drops_the_standby_and_the_partition_is_restored_as_without_one(kept):
    _, keys, values = written(5)
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    flipped = bytearray(values[0] or b"")
    flipped[-1] ^= 1
    kept.follower.apply(0, keys, [bytes(flipped), *values[1:]])
    assert kept.follower.positions == {}
    assert await kept.standbys.take(0) is None
    # What is still on its way of it is passed over.
    kept.follower.apply(0, keys, values)


async def test_a_mark_that_is_damaged_drops_the_standby(kept):
    _, keys, values = written(5)
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    assert keys[-1] == MARK_KEY
    kept.follower.apply(0, keys, [*values[:-1], b"no mark at all"])
    assert await kept.standbys.take(0) is None


async def test_another_log_is_refused(kept):
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    kept.follower.end = ChangelogTooShort("accounts", 0, 40, 3)
    assert await kept.standbys.take(0) is None
    assert kept.follower.positions == {}


async def test_what_is_lost_while_it_is_read_to_the_end_is_not_taken(kept):
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    kept.follower.gate = asyncio.get_running_loop().create_future()
    kept.standbys.tell([], [0])
    taking = asyncio.create_task(kept.standbys.take(0))
    await asyncio.sleep(0)
    kept.standbys.tell([], [])
    assert await asyncio.wait_for(taking, 5) is None


async def test_the_group_is_asked_while_a_partition_waits_and_all_that_is_told_is_near(kept):
    kept.standbys.tell([0, 1], [], awaited=True)
    await until(lambda: kept.follower.positions == {0: 40, 1: 41}, "it is followed")
    kept.follower.lags = {0: 3, 1: 11}
    lag = {"service": "risk", "partition": "1"}
    await until(
        lambda: kept.registry.get_sample_value("weir_state_standby_lag_records", lag) == 11, "the lag is told"
    )
    assert not kept.asked
    kept.follower.lags = {0: 3, 1: 10}
    # The round that follows may still find the standby too far behind what it knows of the owner.
    await until(lambda: len(kept.asked) == 3, "the group is asked again")
    kept.standbys.tell([0, 1], [])
    asked = len(kept.asked)
    for again in (5, 4):
        kept.follower.lags = {0: 2, 1: again}
        await until(
            lambda again=again: (
                kept.registry.get_sample_value("weir_state_standby_lag_records", lag) == again
            ),
            "the lag is told",
        )
    assert len(kept.asked) == asked
    kept.standbys.tell([0], [])
    assert kept.registry.get_sample_value("weir_state_standby_lag_records", lag) is None


async def test_a_changelog_that_begins_anew_is_followed_from_there(kept):
    """What came before is of another state; of that which came with the news nothing is lost."""
    _, keys, values = written(20)
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    kept.follower.apply(0, keys, values)
    other, keys, values = written(7, Log(1000))
    kept.follower.apply(0, keys, values)
    await until(lambda: kept.follower.positions == {0: 1000}, "it is followed from there")
    kept.follower.apply(0, keys, values)
    warm = await kept.standbys.take(0)
    assert warm.accounts.rows.content() == other.accounts[0].rows.content()
    assert warm.is_whole
    assert (warm.log.since, warm.log.keys.size) == (1000, 0)


async def test_one_that_was_read_to_the_end_for_nobody_is_not_kept(kept):
    """Its partition was lost in the very moment; it is neither warm nor followed, and may begin anew."""
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    kept.follower.gate = asyncio.get_running_loop().create_future()
    taking = asyncio.create_task(kept.standbys.take(0))
    await asyncio.sleep(0)
    del kept.follower.positions[0]
    taking.cancel()
    await asyncio.wait([taking])
    assert taking.cancelled()
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")


async def test_another_log_is_dropped_as_soon_as_it_is_seen(kept):
    kept.standbys.tell([0], [])
    await until(lambda: kept.follower.positions == {0: 40}, "it is followed")
    del kept.follower.positions[0]
    kept.follower.on_refused(0, ChangelogTooShort("accounts", 0, 40, 3))
    assert kept.standbys.positions == {}
    assert await kept.standbys.take(0) is None


async def test_a_snapshot_that_there_is_no_room_for_ends_no_worker(kept):
    def full(partition, since):
        raise StateFull("account", 1000)

    kept.standbys._begin, begin = full, kept.standbys._begin
    kept.standbys.tell([0], [])
    await until(lambda: not kept.standbys._wanted, "it is refused")
    kept.standbys._begin = begin
    kept.standbys.tell([1], [])
    await until(lambda: kept.follower.positions == {1: 41}, "it is followed")
