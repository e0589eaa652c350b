"""A full state and a snapshot: room is made for the next group, and no disk ends the worker."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.risk import reading as reading_module
from services.risk import snapshots as snapshots_module
from services.risk.contributions import contributions_of
from services.risk.labels import LabelReading
from services.risk.policy import PolicyFile
from services.risk.ports import Tables
from services.risk.processor import RiskProcessor
from services.risk.reading import PaymentReading
from services.risk.snapshots import Snapshots
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from tests.support.slow_features import DAY_MS
from tests.support.states import START_MS, payments
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings
from weir.features.accounts import Accounts
from weir.features.spec import FEATURES
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics
from weir.state import snapshot as files
from weir.streams import BatchGroup, RecordBatch, journal
from weir.streams.journal import JournalRecord

RISK = Path(reading_module.__file__).parent
ROWS, LATER_MS = 6, START_MS + 60 * DAY_MS
TRANSACTION = RowCodec(load_schema("transaction"))
DEADLINE_S = 20.0


class Waiting:
    """A side input that holds what a test puts there."""

    def __init__(self) -> None:
        self.waiting: list[RecordBatch] = []

    @property
    def has_some(self) -> bool:
        return bool(self.waiting)

    def take(self) -> tuple[list[RecordBatch], dict[int, int]]:
        taken, self.waiting = self.waiting, []
        return taken, {each.partition: each.offset_last + 1 for each in taken}


def batch(topic: str, values: Sequence[bytes], offset: int = 0) -> RecordBatch:
    records = [
        SimpleNamespace(offset=offset + row, key=b"k", value=value, timestamp=LATER_MS, headers=())
        for row, value in enumerate(values)
    ]
    return RecordBatch(topic, 0, records)


def group(*numbers: int) -> BatchGroup:
    """Payments of new accounts at new terminals."""
    values = [
        {
            "event_id": f"event-{number}",
            "account_id": f"account-{number}",
            "terminal_id": f"terminal-{number}",
            "amount": Decimal(5),
            "currency": "EUR",
            "event_time": datetime.fromtimestamp(LATER_MS / 1000, UTC),
            "channel": "POS",
        }
        for number in numbers
    ]
    return BatchGroup([batch("payments", [frame(1, TRANSACTION.encode(each)) for each in values])])


async def nothing(*_: Any) -> None:
    return None


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def state() -> RiskState:
    """Full: of `ROWS` accounts and terminals only the last one can be seen by any window."""
    state = RiskState(StateTopics("accounts", "journal"), accounts_max=ROWS, terminals_max=ROWS, owner="")
    state.attach(0, state.new_accounts(), 0, {})
    state.begin(1)
    old = [(number, number, 10_000, START_MS, 0) for number in range(1, ROWS)]
    state.observe(0, payments([*old, (ROWS, ROWS, 10_000, LATER_MS, 0)]), 0, ROWS)
    state.release(1)
    assert (state.account_count, state.terminals.row_count) == (ROWS, ROWS)
    return state


@pytest.fixture
def stream_metrics(registry) -> StreamMetrics:
    return StreamMetrics("risk", registry)


@pytest.fixture
def journals() -> Waiting:
    return Waiting()


@pytest.fixture
def processor(state, registry, stream_metrics, journals) -> RiskProcessor:
    metrics, policy = Metrics("risk", registry), PolicyFile(RISK / "policy.toml", FEATURES)
    reading = PaymentReading(
        TransactionReader(),
        1,
        rates=Rates.of({"EUR": 1.0}),
        hash_key=bytes(16),
        policy=lambda: policy.in_force,
        metrics=metrics,
        now_ms=lambda: LATER_MS,
    )
    return RiskProcessor(
        state,
        reading,
        LabelReading(LabelReader(), 2, bytes(16), registry),
        score=nothing,
        write=nothing,
        restoring=nothing,
        schemas=nothing,
        labels=Waiting(),
        journal=journals,
        input_topic="payments",
        tables=Tables("rates", "reasons"),
        metrics=metrics,
        stream_metrics=stream_metrics,
        now_ms=lambda: LATER_MS,
    )


@pytest.fixture
def snapshots(monkeypatch, stream_metrics) -> Callable[[Path], Snapshots]:
    async def ends(*_: Any) -> dict[int, int]:
        return {0: 7}

    monkeypatch.setattr(snapshots_module, "end_offsets", ends)
    return lambda folder: Snapshots(
        folder, KafkaSettings(), "accounts", client_id="me", metrics=stream_metrics
    )


def snapshot_count(registry: CollectorRegistry, result: str) -> float:
    found = registry.get_sample_value("weir_state_snapshots_total", {"service": "risk", "result": result})
    return found or 0.0


async def goes_on(processor: RiskProcessor, state: RiskState, epoch: int, *numbers: int) -> None:
    """Payments of new accounts are read, within a deadline."""
    wanted = group(*numbers)
    await asyncio.wait_for(processor.prepare(wanted), DEADLINE_S)
    processor.read(epoch, wanted)
    assert state.account_count == state.terminals.row_count == 1 + len(numbers)


async def test_a_full_state_makes_room_though_a_snapshot_is_being_read(processor, state):
    """Pins of both tables are open, as while files are written."""
    with state.accounts[0].pin(), state.terminals.pin():
        await goes_on(processor, state, 2, 11, 12)


async def test_a_snapshot_that_was_in_the_way_is_given_up_and_written_later(
    processor, state, snapshots, registry, monkeypatch, tmp_path
):
    """Its writer stands before the first row while room is made."""
    at_work, go_on, real = threading.Event(), threading.Event(), files.write

    def slow(*args: Any) -> int:
        at_work.set()
        assert go_on.wait(DEADLINE_S)
        return real(*args)

    writes = snapshots(tmp_path / "state")
    await writes.write(state)
    before = writes.accounts_path(0).read_bytes()
    monkeypatch.setattr(files, "write", slow)
    writing = asyncio.create_task(writes.write(state))
    assert await asyncio.to_thread(at_work.wait, DEADLINE_S)
    with capture_logs() as logs:
        await goes_on(processor, state, 2, 11, 12)
        go_on.set()
        await asyncio.wait_for(writing, DEADLINE_S)
    assert {each["event"] for each in logs} == {"snapshot_not_written"}
    assert (snapshot_count(registry, "written"), snapshot_count(registry, "failed")) == (1, 1)
    assert writes.accounts_path(0).read_bytes() == before
    state.release(2)
    await writes.write(state)
    assert snapshot_count(registry, "written") == 2
    loaded, _ = Accounts.load(writes.accounts_path(0), rows_max=ROWS)
    assert loaded.rows.content() == state.accounts[0].rows.content()


async def test_a_snapshot_is_not_given_up_where_nothing_can_be_forgotten(processor, state):
    """A table that stays full of what windows see would otherwise never have a snapshot."""
    await goes_on(processor, state, 2, *range(11, 16))
    state.release(2)
    state.forget_expired()
    with state.terminals.pin() as saving:
        await asyncio.wait_for(processor.prepare(group(11)), DEADLINE_S)
        processor.read(3, group(11))
        assert sum(len(chunk) for chunk in saving._pin.chunks()) == ROWS


async def test_what_others_journals_bring_has_room_too(processor, state, journals):
    """No payment is here: the terminals of two batches of another worker are new."""
    others = payments([(1, 100 + number, 1, LATER_MS, 0) for number in range(ROWS - 1)])
    told = JournalRecord(1, 0, 9, {}, {}, LATER_MS, "", "", "", "other", contributions_of(others))
    journals.waiting = [batch("journal", [journal.encode(told)])]
    await asyncio.wait_for(processor.prepare(BatchGroup([])), DEADLINE_S)
    processor.read(2, BatchGroup([]))
    assert state.terminals.row_count == ROWS


def test_a_batch_whose_partition_has_gone_meanwhile_needs_no_room(state):
    state.drop(0)
    state.forget_expired()
    assert state.has_room_for(group(1))


@pytest.mark.parametrize("folder", ["file", "file/below"])
async def test_a_folder_that_cannot_be_made_is_counted_said_and_tried_again(
    state, snapshots, registry, tmp_path, folder
):
    """As on a full or read-only disk; later it can be made."""
    (tmp_path / "file").touch()
    writes = snapshots(tmp_path / folder)
    with capture_logs() as logs:
        await writes.write(state)
    assert [each["event"] for each in logs] == ["snapshot_not_written"]
    assert snapshot_count(registry, "failed") == 1
    (tmp_path / "file").unlink()
    await writes.write(state)
    assert snapshot_count(registry, "written") == 1
    assert writes.terminals_path.exists()
