"""A partition's accounts come back from its changelog or its input as the worker had them."""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.risk import reading as reading_module
from services.risk import restore as restore_module
from services.risk.policy import PolicyFile
from services.risk.reading import PaymentReading
from services.risk.restore import Restored, Restoring
from services.risk.snapshots import Snapshots
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from tests.support.slow_features import DAY_MS
from tests.support.states import START_MS, payments
from weir.codec.avro import RowCodec
from weir.codec.columns import TransactionReader
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings, TopicSettings
from weir.features.accounts import Accounts
from weir.features.spec import FEATURES
from weir.kafka.records import rows_of
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics
from weir.state.table import StateFull
from weir.streams import journal
from weir.streams.batch import BatchGroup, RecordBatch

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

    async def read_until(
        self, _: Any, topic: str, ends: Mapping[int, int], since_ms: int, __: str
    ) -> AsyncGenerator[RecordBatch, None]:
        young = [each.offset for each in self.logs[topic] if each.timestamp >= since_ms]
        if young:
            async for batch in self.read_range(_, topic, {0: young[0]}, ends, __):
                yield batch

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
    monkeypatch.setattr(restore_module, "read_until", kafka.read_until)
    return kafka


async def restored(
    tmp_path, state: RiskState, committed: int, reading: Any = None, now_ms: int = START_MS
) -> Restored:
    metrics = StreamMetrics("risk", CollectorRegistry())
    snapshots = Snapshots(tmp_path, KafkaSettings(), TOPICS.risk_accounts, client_id="me", metrics=metrics)
    restoring = Restoring(
        KafkaSettings(),
        TOPICS,
        state,
        reading,
        snapshots=snapshots,
        standbys=None,
        exact=True,
        restore_days=31,
        client_id="me",
        metrics=metrics,
        now_ms=lambda: now_ms,
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


# -- from the input ----------------------------------------------------------------------------------------

RISK = Path(reading_module.__file__).parent
TRANSACTION = RowCodec(load_schema("transaction"))
MINUTE_MS = 60_000


class DecidingWorker:
    """Reads payments as the service does, at times of its own, and tells of them as it does."""

    def __init__(self, kafka: Kafka, policy: Path) -> None:
        self.kafka, self.state, self.epoch = kafka, new_state(100), 0
        self.state.attach(0, self.state.new_accounts(), 0, {})
        in_force = PolicyFile(policy, FEATURES).in_force
        self.reading = PaymentReading(
            TransactionReader(),
            1,
            rates=Rates.of({"EUR": 1.0}),
            hash_key=bytes(16),
            policy=lambda: in_force,
            metrics=Metrics("risk", CollectorRegistry()),
            now_ms=lambda: LONG_AFTER_MS,
        )

    def read(self, at_ms: int, *events_ms: int, waited_ms: int = 0) -> None:
        """Payments of these event times, read at `at_ms` after they had waited in Kafka."""
        log = self.kafka.logs[TOPICS.transactions]
        first = len(log)
        for row, event_ms in enumerate(events_ms):
            self.kafka.add(TOPICS.transactions, b"k", payment(first + row, event_ms), at_ms - waited_ms)
        self.epoch += 1
        self.state.begin(self.epoch)
        read = self.reading(BatchGroup([RecordBatch("payments", 0, log[first:])]), self.state, at_ms)
        for output in self.state.changelog(self.epoch, [0], at_ms):
            for key, value, _ in rows_of(output):
                self.kafka.add(TOPICS.risk_accounts, key, value)
        self.state.release(self.epoch)
        for output in self.state.journal(
            read.traces, read_ms=at_ms, now_ms=at_ms, model="", policy="", degraded=""
        ):
            for _, value, _ in rows_of(output):
                self.kafka.add(TOPICS.risk_journal, None, value, at_ms)

    def take_over(self, found: Restored) -> None:
        """Go on with what was restored, as another worker would."""
        self.state = new_state(100)
        self.state.attach(0, found.accounts, found.next_offset, {}, None, found.changelog)


LONG_AFTER_MS = START_MS + 20 * DAY_MS


def payment(number: int, event_ms: int) -> bytes:
    fields = {
        "event_id": f"event-{number}",
        "account_id": f"account-{number % 5}",
        "terminal_id": "terminal",
        "amount": Decimal(number + 1),
        "currency": "EUR",
        "event_time": datetime.fromtimestamp(event_ms / 1000, UTC),
        "channel": "POS",
    }
    return frame(1, TRANSACTION.encode(fields))


@pytest.fixture
def deciding(kafka, tmp_path) -> DecidingWorker:
    """Under a policy that refuses what is over an hour old. Its changelog is damaged from the start."""
    policy = tmp_path / "policy.toml"
    text, told = (RISK / "policy.toml").read_text(), "event_age_max_s = 3_024_000"
    assert told in text
    policy.write_text(text.replace(told, "event_age_max_s = 3_600"))
    kafka.add(TOPICS.risk_accounts, b"damaged.", b"row")
    worker = DecidingWorker(kafka, policy)
    for step in range(30):
        now = START_MS + step * 50 * MINUTE_MS
        # Now and then one of the future, and one that is too old.
        worker.read(
            now, now, now - MINUTE_MS, now + (step % 3) * 4 * MINUTE_MS, now - (step % 4) * 25 * MINUTE_MS
        )
    return worker


def found_by_another(worker: DecidingWorker, tmp_path):
    """What a worker with an empty disk restores of what this one has committed."""
    committed = len(worker.kafka.logs[TOPICS.transactions])
    return restored(tmp_path, new_state(100), committed, worker.reading, LONG_AFTER_MS)


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
async def test_the_input_restores_just_what_entered_though_it_is_read_long_after(
    deciding, tmp_path, batch_rows
):
    """What was of the future then is past by now, what was new then is old: the journal tells when."""
    deciding.kafka.batch_rows = batch_rows
    found = await found_by_another(deciding, tmp_path)
    assert found.accounts.rows.content() == deciding.state.accounts[0].rows.content()
    assert found.accounts.clock.tolist() == deciding.state.accounts[0].clock.tolist()


@pytest.mark.parametrize("left", [slice(0), slice(10, None), slice(10), slice(None, None, 2)])
async def test_what_the_journal_does_not_tell_goes_by_kafkas_timestamp(deciding, tmp_path, left):
    """Here each payment was read when it came, so nothing is lost with the journal, or with a part of it."""
    deciding.kafka.batch_rows = 9
    log = deciding.kafka.logs[TOPICS.risk_journal]
    log[:] = log[left]
    found = await found_by_another(deciding, tmp_path)
    assert found.accounts.rows.content() == deciding.state.accounts[0].rows.content()


async def test_a_payment_that_waited_for_a_worker_is_judged_by_when_it_was_read(deciding, tmp_path):
    """It came in time and was too old when a worker had caught up; the next one was not."""
    late_ms = START_MS + 30 * 50 * MINUTE_MS + 120 * MINUTE_MS
    refused, taken = late_ms - 61 * MINUTE_MS, late_ms - 59 * MINUTE_MS
    before = deciding.state.accounts[0].rows.content()
    deciding.read(late_ms, refused, waited_ms=60 * MINUTE_MS)
    assert deciding.state.accounts[0].rows.content() == before
    deciding.read(late_ms, taken, waited_ms=59 * MINUTE_MS)
    assert deciding.state.accounts[0].rows.content() != before
    found = await found_by_another(deciding, tmp_path)
    assert found.accounts.rows.content() == deciding.state.accounts[0].rows.content()


async def test_a_damaged_journal_record_is_passed_over(deciding, tmp_path):
    log = deciding.kafka.logs[TOPICS.risk_journal]
    log[3].value = log[3].value[:-1] + b"?"
    found = await found_by_another(deciding, tmp_path)
    assert found.accounts.rows.content() == deciding.state.accounts[0].rows.content()


async def test_a_payment_that_could_not_be_read_then_ends_no_restore_now(deciding, tmp_path, monkeypatch):
    real = reading_module.validate

    def breaks(**columns):
        if any(each == b"event-7" for each in columns["ids"][0].to_list()):
            raise ZeroDivisionError
        return real(**columns)

    monkeypatch.setattr(reading_module, "validate", breaks)
    deciding.kafka.batch_rows = 9
    whole = await found_by_another(deciding, tmp_path)
    assert whole.accounts.row_count == 5
    assert whole.accounts.rows.content() != deciding.state.accounts[0].rows.content()
