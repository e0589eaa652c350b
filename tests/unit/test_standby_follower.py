"""Rows reach a standby's table from where it begins, without a gap, whatever the group says meanwhile."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.support.pauses import until
from weir.config import KafkaSettings
from weir.streams import standby as standby_module
from weir.streams.standby import NotFollowed, StandbyFollower

LOG = 10


class Log:
    """A consumer of one partition whose log has ten records; a fetch is answered when the test says so."""

    def __init__(self) -> None:
        self.at, self.assigned = dict[object, int](), list[object]()
        self.answer = asyncio.Event()
        self.asked = 0

    def assign(self, tps) -> None:
        self.assigned = list(tps)

    def seek(self, tp, offset) -> None:
        self.at[tp] = offset

    async def getmany(self, timeout_ms, max_records):
        (tp,) = self.assigned
        self.asked += 1
        await self.answer.wait()
        await asyncio.sleep(0)
        at = self.at[tp]
        self.at[tp] = LOG
        return {tp: [SimpleNamespace(offset=row, key=b"%d" % row, value=b"") for row in range(at, LOG)]}

    async def position(self, tp) -> int:
        return self.at[tp]


@pytest.fixture
async def following(monkeypatch):
    log, rows, failed = Log(), list[bytes](), list[BaseException]()

    async def opened(*_):
        return log

    async def stopped(_) -> None:
        pass

    monkeypatch.setattr(standby_module, "_open", opened)
    monkeypatch.setattr(standby_module, "stop", stopped)
    follower = StandbyFollower(
        KafkaSettings(),
        "accounts",
        lambda _, keys, values: rows.extend(keys),
        "me",
        failed.append,
        lambda _, error: failed.append(error),
    )
    await follower.start()
    yield SimpleNamespace(follower=follower, log=log, rows=rows)
    await follower.stop()
    assert not failed


async def test_a_table_begun_anew_has_no_gap_though_a_fetch_for_the_old_one_is_on_its_way(following):
    follower, log = following.follower, following.log
    follower.follow({0: 7})
    await until(lambda: log.asked == 1, "a fetch is under way")
    # The group takes the standby away and gives it back, before the fetch from 7 on is answered.
    follower.follow({})
    follower.follow({0: 0})
    log.answer.set()
    await until(lambda: follower.positions == {0: LOG}, "all is read")
    assert set(following.rows) >= {b"%d" % row for row in range(LOG)}


async def test_a_partition_dropped_while_its_end_is_asked_for_is_not_promoted(following, monkeypatch):
    follower = following.follower
    asked = asyncio.get_running_loop().create_future()

    async def end(*_):
        return await asked

    monkeypatch.setattr(standby_module, "_end", end)
    follower.follow({0: 0})
    promoting = asyncio.create_task(follower.promote(0))
    await asyncio.sleep(0)
    follower.follow({})
    asked.set_result(LOG)
    with pytest.raises(NotFollowed):
        await promoting
