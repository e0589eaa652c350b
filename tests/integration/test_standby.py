"""Following a changelog that another writes, taking a partition over, with a real broker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.servers import KafkaUnderTest
from weir.client.connection import TopicMissing
from weir.config import KafkaSettings
from weir.streams.standby import ChangelogTooShort, StandbyFollower

COMPACTED = {"cleanup.policy": "compact"}
DEADLINE_S = 30.0

Write = Callable[[int, dict[bytes, bytes | None]], Awaitable[None]]


class Tables:
    """What a follower's rows add up to, and how many there were."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {}
        self.refused: list[Exception] = []
        self.applied = 0
        self.changed = asyncio.Event()

    def apply(self, partition: int, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        table = self.rows.setdefault(partition, {})
        for key, value in zip(keys, values, strict=True):
            assert key is not None
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        self.applied += len(keys)
        self.changed.set()

    def refuse(self, partition: int, error: Exception) -> None:
        self.refused.append(error)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def changelog(kafka: KafkaUnderTest) -> str:
    return kafka.make_topic("accounts", partitions=3, config=COMPACTED)


@pytest.fixture
def settings(kafka: KafkaUnderTest) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)


@pytest.fixture
async def owner(kafka: KafkaUnderTest, changelog: str) -> AsyncIterator[AIOKafkaProducer]:
    """The transactional producer of whoever owns the partitions."""
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, transactional_id=f"{changelog}-owner"
    ) as producer:
        yield producer


@pytest.fixture
def write(owner: AIOKafkaProducer, changelog: str) -> Write:
    """Commit rows to a partition."""

    async def write(partition: int, rows: dict[bytes, bytes | None]) -> None:
        async with owner.transaction():
            for key, value in rows.items():
                await owner.send(changelog, value, key, partition=partition)

    return write


@pytest.fixture
async def follower(settings: KafkaSettings, changelog: str) -> AsyncIterator[tuple[StandbyFollower, Tables]]:
    tables, failures = Tables(), list[BaseException]()
    follower = StandbyFollower(settings, changelog, tables.apply, "test", failures.append, tables.refuse)
    await follower.start()
    yield follower, tables
    await follower.stop()
    assert not failures


def rows(first: int, last: int, value: bytes = b"v") -> dict[bytes, bytes | None]:
    return {b"%d" % number: value for number in range(first, last)}


async def test_a_standby_has_what_its_owner_committed_and_nothing_else(follower, write, owner, changelog):
    standby, tables = follower
    await write(0, rows(0, 10) | {b"3": None})
    await write(1, rows(0, 5))
    standby.follow({0: 0})
    await tables.until(lambda: len(tables.rows.get(0, {})) == 9)
    await owner.begin_transaction()
    await owner.send_and_wait(changelog, b"aborted", b"4", partition=0)
    await owner.abort_transaction()
    await write(0, {b"5": b"w"})
    await tables.until(lambda: tables.rows[0].get(b"5") == b"w")
    assert tables.rows == {
        0: {key: value for key, value in (rows(0, 10) | {b"5": b"w"}).items() if key != b"3"}
    }


async def test_a_promoted_partition_is_whole_and_no_longer_followed(follower, write):
    standby, tables = follower
    await write(0, rows(0, 500))
    standby.follow({0: 0, 1: 0})
    await tables.until(lambda: tables.applied == 500)
    await write(0, rows(400, 900, b"w"))
    caught = await asyncio.wait_for(standby.promote(0), DEADLINE_S)
    assert tables.rows[0] == rows(0, 400) | rows(400, 900, b"w")
    assert caught.rows <= 500
    # 500 rows, a marker, 500 rows, a marker.
    assert caught.next_offset == 1002
    assert standby.positions.keys() == {1}


async def test_a_promotion_waits_for_a_transaction_that_is_not_decided_yet(follower, write, owner, changelog):
    """The last owner's commit is answered before its markers are written: they belong to the state."""
    standby, tables = follower
    await write(0, rows(0, 10))
    standby.follow({0: 0})
    await tables.until(lambda: tables.applied == 10)
    await owner.begin_transaction()
    await owner.send_and_wait(changelog, b"last", b"0", partition=0)
    promotion = asyncio.create_task(standby.promote(0))
    done, _ = await asyncio.wait([promotion], timeout=1.0)
    assert not done
    await owner.commit_transaction()
    caught = await asyncio.wait_for(promotion, DEADLINE_S)
    assert (caught.rows, tables.rows[0][b"0"]) == (1, b"last")


async def test_what_is_followed_goes_on_when_another_partition_comes_or_goes(follower, write):
    standby, tables = follower
    await write(0, rows(0, 100))
    standby.follow({0: 0})
    await tables.until(lambda: tables.applied == 100)
    await write(1, rows(0, 50))
    standby.follow({0: 0, 1: 0})
    await tables.until(lambda: tables.applied == 150)
    standby.follow({1: 0})
    await write(0, rows(100, 110))
    await write(1, rows(50, 60))
    await tables.until(lambda: len(tables.rows[1]) == 60)
    assert tables.applied == 160
    assert standby.positions == {1: 62}
    assert standby.lag(1) == 0
    assert standby.lag(0) is None


async def test_a_promotion_that_nobody_waits_for_any_more_ends_nothing(follower, write, owner, changelog):
    """Its partition was lost while it was read to the end; the others are followed on."""
    standby, tables = follower
    await write(0, rows(0, 10))
    standby.follow({0: 0, 1: 0})
    await tables.until(lambda: tables.applied == 10)
    await owner.begin_transaction()
    await owner.send_and_wait(changelog, b"last", b"0", partition=0)
    promotion = asyncio.create_task(standby.promote(0))
    done, _ = await asyncio.wait([promotion], timeout=1.0)
    assert not done
    promotion.cancel()
    await asyncio.wait([promotion])
    await owner.commit_transaction()
    await write(1, rows(0, 5))
    await tables.until(lambda: len(tables.rows.get(1, {})) == 5 and tables.rows[0][b"0"] == b"last")
    assert standby.positions.keys() == {0, 1}


async def test_a_snapshot_of_another_log_is_refused(write, follower):
    await write(0, rows(0, 10))
    standby, _ = follower
    standby.follow({0: 5000})
    with pytest.raises(ChangelogTooShort, match="made anew"):
        await standby.promote(0)


async def test_rows_of_another_log_do_not_enter_however_long_nobody_asks(write, follower):
    """The client itself would begin again at the oldest record, and the old table would seem to be whole."""
    await write(0, rows(0, 10))
    standby, tables = follower
    standby.follow({0: 5000})
    await tables.until(lambda: bool(tables.refused))
    assert (tables.applied, standby.positions) == (0, {})
    (refused,) = tables.refused
    assert "made anew" in str(refused)


async def test_a_changelog_that_is_not_there_is_one_line(settings):
    missing = StandbyFollower(
        settings, "no-such-changelog", Tables().apply, "test", pytest.fail, Tables().refuse
    )
    with pytest.raises(TopicMissing, match="no-such-changelog"):
        await missing.start()
