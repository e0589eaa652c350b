"""A partition's accounts come back from its changelog or its input as the worker had them."""

import random
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.risk import restore as restore_module
from services.risk.restore import Restored, Restoring
from services.risk.snapshots import Snapshots
from services.risk.state import RiskState, StateTopics
from tests.support.slow_features import DAY_MS
from tests.support.states import START_MS, payments
from weir.config import KafkaSettings, TopicSettings
from weir.features.accounts import Accounts
from weir.kafka.records import rows_of
from weir.obs.stream_metrics import StreamMetrics
from weir.state.table import StateFull
from weir.streams import journal
from weir.streams.batch import RecordBatch

TOPICS = TopicSettings()
Log = list[SimpleNamespace]


def new_state(accounts_max: int) -> RiskState:
    topics = StateTopics(TOPICS.risk_accounts, TOPICS.risk_journal)
    return RiskState(topics, accounts_max=accounts_max, terminals_max=1000, owner="me")


def record(offset: int, key: bytes | None, value: bytes | None, timestamp: int = 0) -> SimpleNamespace:
    return SimpleNamespace(offset=offset, key=key, value=value, timestamp=timestamp, headers=())


class Kafka:
    """Topics of one partition in this process; each is handed out in batches of `batch_rows`."""

    def __init__(self, batch_rows: int = 1) -> None:
        self.logs: dict[str, Log] = {
            TOPICS.risk_accounts: [],
            TOPICS.risk_journal: [],
            TOPICS.transactions: [],
        }
        self.batch_rows = batch_rows

    def add(self, topic: str, key: bytes | None, value: bytes | None, timestamp: int = 0) -> None:
        log = self.logs[topic]
        log.append(record(log[-1].offset + 1 if log else 0, key, value, timestamp))

    async def end_offsets(self, _: Any, topic: str, *__: Any, **___: Any) -> dict[int, int]:
        log = self.logs[topic]
        return {0: log[-1].offset + 1 if log else 0}

    async def read_range(
        self, _: Any, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], __: str
    ) -> AsyncIterator[RecordBatch]:
        wanted = [each for each in self.logs[topic] if starts.get(0, 0) <= each.offset < ends[0]]
        for at in range(0, len(wanted), self.batch_rows):
            yield RecordBatch(topic, 0, wanted[at : at + self.batch_rows])


@pytest.fixture
def kafka(monkeypatch) -> Kafka:
    kafka = Kafka()
    monkeypatch.setattr(restore_module, "end_offsets", kafka.end_offsets)
    monkeypatch.setattr(restore_module, "read_range", kafka.read_range)
    return kafka


async def restored(tmp_path, state: RiskState, committed: int, reading: Any = None) -> Restored:
    metrics = StreamMetrics("risk", CollectorRegistry())
    snapshots = Snapshots(tmp_path, KafkaSettings(), TOPICS.risk_accounts, client_id="me", metrics=metrics)
    restoring = Restoring(
        KafkaSettings(),
        TOPICS,
        state,
        reading,
        snapshots=snapshots,
        exact=True,
        restore_days=31,
        client_id="me",
        metrics=metrics,
        now_ms=lambda: START_MS + 400 * DAY_MS,
    )
    return await restoring(0, committed)


class Worker:
    """Decides on one partition whose table is small: forgets at the bound, and writes its changelog."""

    def __init__(self, kafka: Kafka, rows_max: int) -> None:
        self.kafka, self.rows_max, self.state = kafka, rows_max, new_state(rows_max)
        self.state.attach(0, self.state.new_accounts(), 0, {})
        self.epoch = self.offset = 0

    def pay(self, *rows: tuple[int, int]) -> None:
        """Payments of accounts, on days; the table has to be able to hold them."""
        group = SimpleNamespace(batches=[RecordBatch("payments", 0, list(rows))])
        if self.state.accounts[0].row_count + len(rows) > self.rows_max:
            self.state.forget_expired()
        self.epoch += 1
        self.state.begin(self.epoch)
        batch = payments([(who, 1, 10_000, START_MS + day * DAY_MS, 0) for who, day in rows])
        try:
            self.state.observe(0, batch, self.offset, self.offset + len(group.batches[0]))
        except StateFull:
            # The worker would end here, and another day it would not have come.
            self.state.roll_back(self.epoch)
            self.epoch += 1
            return
        self.offset += len(rows)
        for output in self.state.changelog(self.epoch, [0], 0):
            for key, value, _ in rows_of(output):
                self.kafka.add(TOPICS.risk_accounts, key, value)
        self.state.release(self.epoch)

    def seen(self) -> dict[int, bytes]:
        """The accounts that a window can see."""
        return visible(self.state.accounts[0])


def visible(accounts: Accounts) -> dict[int, bytes]:
    """The rows that no later payment finds expired."""
    old = set(accounts.rows.expired(accounts.floor_hour(), 1 << 20).tolist())
    return {key: row for key, row in accounts.rows.content().items() if key not in old}


def compacted(log: Log, share: float = 0.0, seed: int = 0) -> Log:
    """What a broker may have left: of each key the last record, and a share of the others."""
    chance = random.Random(seed)
    last = {each.key: each.offset for each in log}
    return [each for each in log if last[each.key] == each.offset or chance.random() < share]


async def test_a_table_at_its_bound_fits_again_though_the_clock_by_which_it_forgot_is_not_in_the_log(
    kafka, tmp_path
):
    """Three accounts were forgotten by the time of a payment whose row has since been written anew."""
    worker = Worker(kafka, 4)
    worker.pay((1, 8), (2, 8), (3, 8), (4, 8))
    worker.pay((4, 50))
    for late in (5, 6, 7):
        worker.pay((late, 45))
    worker.pay((4, 51))
    assert worker.state.accounts[0].evicted_total == 3
    kafka.logs[TOPICS.risk_accounts] = compacted(kafka.logs[TOPICS.risk_accounts])
    found = await restored(tmp_path, new_state(4), worker.offset)
    assert found.accounts.rows.content() == worker.state.accounts[0].rows.content()
    assert found.accounts.clock.tolist() == worker.state.accounts[0].clock.tolist()


@pytest.mark.parametrize("seed", range(80))
async def test_whatever_a_worker_could_hold_another_restores(kafka, tmp_path, seed):
    """Random payments, late ones too, at a table's bound; any compaction; with a snapshot and without."""
    chance = random.Random(seed)
    worker, day = Worker(kafka, chance.randrange(3, 7)), 100
    folder = tmp_path / "state"
    folder.mkdir()
    snapshot_at = chance.choice([None, chance.randrange(60)])
    for step in range(60):
        day += chance.choice([0, 0, 0, 0, 1, 40])
        rows = [
            (chance.choice([1, chance.randrange(1, 40)]), day - chance.choice([0, 1, 5, 30, 36]))
            for _ in range(chance.randrange(1, 3))
        ]
        worker.pay(*rows)
        if step == snapshot_at:
            save(worker, folder)
    left = compacted(kafka.logs[TOPICS.risk_accounts], chance.choice([0.0, 0.3]), seed)
    kafka.logs[TOPICS.risk_accounts] = left
    kafka.batch_rows = chance.choice([1, 2, 7, 1000])
    found = await restored(folder, new_state(worker.rows_max), worker.offset)
    assert found.accounts.row_count <= worker.rows_max
    assert found.accounts.clock.tolist() == worker.state.accounts[0].clock.tolist()
    assert visible(found.accounts) == worker.seen()


def save(worker: Worker, folder) -> None:
    mark = journal.encode(worker.state.mark(0, worker.state.positions))
    about = {"mark": mark.hex(), "changelog_offset": len(worker.kafka.logs[TOPICS.risk_accounts])}
    worker.state.accounts[0].save(folder / "accounts-0.state", about)


async def test_more_live_accounts_than_the_setting_allows_are_still_refused(kafka, tmp_path):
    worker = Worker(kafka, 5)
    worker.pay(*((number, 50) for number in range(1, 6)))
    with pytest.raises(StateFull, match="accounts_max"):
        await restored(tmp_path, new_state(4), worker.offset)
