"""A state made from the input begins its changelog anew; what that told before never mixes with it."""

import random

import pytest

from services.risk import changelog as changelog_module
from services.risk.changelog import MARK_KEY
from services.risk.state import RiskState
from tests.unit.test_risk_restore import (
    MINUTE_MS,
    RISK,
    START_MS,
    TOPICS,
    DecidingWorker,
    Kafka,
    compacted,
    found_by_another,
    kafka,
    restored,
    save,
)
from weir.streams import journal
from weir.streams.journal import Mark

__all__ = ["kafka"]  # the fixture

NOW_MS = START_MS + 10 * 60 * MINUTE_MS


@pytest.fixture
def worker(kafka: Kafka, monkeypatch) -> DecidingWorker:
    """Five accounts have paid, an account a batch; two rows are written beside what changes."""
    monkeypatch.setattr(changelog_module, "_PART_ROWS", 2)
    worker = DecidingWorker(kafka, RISK / "policy.toml")
    for step in range(5):
        worker.read(NOW_MS + step, NOW_MS + step)
    return worker


def pay(worker: DecidingWorker, count: int) -> None:
    """So many payments, each a batch, of one account after the other."""
    for _ in range(count):
        worker.read(NOW_MS + 1000, NOW_MS + 1000)


def rows(state: RiskState) -> dict[int, bytes]:
    return state.accounts[0].rows.content()


async def test_a_topic_that_was_made_anew_is_used_once_it_tells_of_every_account(worker, kafka, tmp_path):
    kafka.logs[TOPICS.risk_accounts].clear()
    found = await found_by_another(worker, tmp_path)
    assert found.changelog.keys.size == 5
    worker.take_over(found)
    for whole in (False, False, True):
        pay(worker, 1)
        mark = newest_mark(kafka)
        assert (mark.since, mark.whole) == (0, whole)
        again = await found_by_another(worker, tmp_path)
        assert again.accounts.rows.content() == rows(worker.state)
        # From the input: the changelog has to be told of all. Else it has told.
        assert again.changelog.keys.size == (0 if whole else 5)


def newest_mark(kafka: Kafka) -> Mark:
    value = next(each.value for each in reversed(kafka.logs[TOPICS.risk_accounts]) if each.key == MARK_KEY)
    return journal.decode(value, Mark, "")


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
async def test_accounts_of_before_the_groups_offset_was_set_back_do_not_come_back(
    worker, kafka, tmp_path, batch_rows
):
    """Somebody has set the group back to the second payment: three accounts have not paid yet."""
    kafka.batch_rows = batch_rows
    ahead = len(kafka.logs[TOPICS.risk_accounts])
    del kafka.logs[TOPICS.transactions][2:]
    found = await found_by_another(worker, tmp_path)
    assert (found.accounts.row_count, found.changelog.since) == (2, ahead)
    worker.take_over(found)
    pay(worker, 1)
    assert newest_mark(kafka).whole
    again = await found_by_another(worker, tmp_path)
    assert again.accounts.row_count == 3
    assert again.accounts.rows.content() == rows(worker.state)
    assert (again.changelog.since, again.changelog.keys.size) == (ahead, 0)


async def test_a_damaged_row_is_in_the_way_until_every_account_has_been_written_again(
    worker, kafka, tmp_path
):
    kafka.add(TOPICS.risk_accounts, b"damaged.", b"row")
    worker.take_over(await found_by_another(worker, tmp_path))
    pay(worker, 3)
    found = await found_by_another(worker, tmp_path)
    assert (found.changelog.since, found.changelog.keys.size) == (11, 0)
    assert found.accounts.rows.content() == rows(worker.state)


async def test_a_snapshot_is_whole_though_the_changelog_is_not_and_one_of_before_is_not_used(
    worker, kafka, tmp_path
):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    save(worker, before)
    kafka.add(TOPICS.risk_accounts, b"damaged.", b"row")
    worker.take_over(await found_by_another(worker, tmp_path))
    pay(worker, 1)
    save(worker, after)
    pay(worker, 1)
    assert not newest_mark(kafka).whole
    committed = len(kafka.logs[TOPICS.transactions])
    for folder, source in ((after, "changelog"), (before, "input")):
        state = RiskState(worker.state._topics, accounts_max=100, terminals_max=100, owner="another")
        found = await restored(folder, state, committed, worker.reading, NOW_MS)
        assert found.accounts.rows.content() == rows(worker.state), source
        # The next one without the snapshot has to find all of them, too.
        assert found.changelog.keys.size == 5
        assert (found.changelog.since > 11) == (source == "input")


async def test_what_a_rolled_back_group_has_written_is_written_again(worker, kafka, tmp_path):
    kafka.logs[TOPICS.risk_accounts].clear()
    worker.take_over(await found_by_another(worker, tmp_path))
    state = worker.state
    for epoch in (1001, 1002):
        state.begin(epoch)
        state._touched(0)
        state.changelog(epoch, [0], 0)
    assert state.mark(0, state.positions).whole is False
    state.roll_back(1001)
    worker.epoch = 2000
    pay(worker, 3)
    found = await found_by_another(worker, tmp_path)
    assert found.changelog.keys.size == 0
    assert found.accounts.rows.content() == rows(state)


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_befalls_the_changelog_the_next_worker_has_what_the_last_one_had(
    kafka, tmp_path, monkeypatch, seed
):
    """Topics made anew while nobody decides, damaged rows, compaction and snapshots in any order."""
    chance = random.Random(seed)
    monkeypatch.setattr(changelog_module, "_PART_ROWS", chance.choice([1, 2, 3]))
    worker = DecidingWorker(kafka, RISK / "policy.toml")
    folder = tmp_path / "state"
    folder.mkdir()
    at = NOW_MS
    for _ in range(60):
        at += chance.randrange(1, 20 * MINUTE_MS)
        worker.read(at, *(at for _ in range(chance.randrange(1, 3))))
        step = chance.randrange(12)
        match step:
            case 0:
                kafka.logs[TOPICS.risk_accounts].clear()
                (folder / "accounts-0.state").unlink(missing_ok=True)
            case 1:
                kafka.add(TOPICS.risk_accounts, chance.randbytes(8), b"no row")
            case 2 | 3:
                save(worker, folder)
            case 4:
                log = kafka.logs[TOPICS.risk_accounts]
                kafka.logs[TOPICS.risk_accounts] = compacted(log, 0.3, seed)
        if step == 0 or not chance.randrange(4):
            kafka.batch_rows = chance.choice([1, 2, 7, 1000])
            committed = len(kafka.logs[TOPICS.transactions])
            own = folder if chance.randrange(2) else tmp_path
            state = RiskState(worker.state._topics, accounts_max=100, terminals_max=100, owner="another")
            found = await restored(own, state, committed, worker.reading, at)
            assert found.accounts.rows.content() == rows(worker.state)
            worker.take_over(found)
