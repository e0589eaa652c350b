"""One record that breaks a batch leaves it alone: the others are decided, each partition's in its place."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.risk import reading as reading_module
from services.risk import writing as writing_module
from services.risk.decide import ModelRef, Scores
from services.risk.policy import PolicyFile
from services.risk.ports import Tables
from services.risk.processor import RiskProcessor
from services.risk.reading import PaymentReading
from services.risk.reasons import ReasonTable
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from services.risk.writing import Canaried, DecisionWriting, Names, Scored
from weir.codec.avro import RowCodec
from weir.codec.columns import TransactionReader
from weir.codec.decision import DecisionWriter
from weir.codec.framing import frame, unframe
from weir.codec.schemas import load_schema
from weir.columns import ByteColumn
from weir.crypto.envelope import HEADER_NAME, envelope_header
from weir.crypto.pseudonym import Pseudonymizer
from weir.crypto.secret import Secret
from weir.features.spec import FEATURES
from weir.ids import decision_id
from weir.kafka.records import rows_of
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics
from weir.streams import BatchGroup, RecordBatch, journal
from weir.streams.dead_letter import DeadLetterWriter
from weir.streams.journal import JournalRecord

RISK = Path(reading_module.__file__).parent
NOW_MS = 1_790_000_000_000
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRANSACTION = RowCodec(load_schema("transaction"))
DECISION = RowCodec(load_schema("decision"))
LETTER = RowCodec(load_schema("dead_letter"))


class InTheClear:
    """A sealer that seals nothing, so that a unit test can look inside."""

    async def ready(self, deadline_s=None):
        return None

    def seal_batch(self, plaintexts, record_ids, schema_id):
        return list(plaintexts)

    def seal_column(self, plaintexts, record_ids, schema_id):
        return ByteColumn.from_list(plaintexts.to_list())


def value(number: int, event_ms: int = NOW_MS) -> bytes:
    payment = {
        "event_id": f"event-{number}",
        "account_id": f"account-{number % 3}",
        "terminal_id": "terminal-1",
        "amount": Decimal(number + 1),
        "currency": "EUR",
        "event_time": datetime.fromtimestamp(event_ms / 1000, UTC),
        "channel": "POS",
    }
    return frame(1, TRANSACTION.encode(payment))


def group(*batches: tuple[int, list[bytes]], traced: frozenset[int] = frozenset()) -> BatchGroup:
    """Batches by partition; `traced` are the rows of each whose records belong to a trace."""
    made = []
    for partition, values in batches:
        records = [
            SimpleNamespace(
                offset=100 + row,
                key=b"k",
                value=each,
                timestamp=NOW_MS,
                headers=[("traceparent", TRACE)] if row in traced else (),
            )
            for row, each in enumerate(values)
        ]
        made.append(RecordBatch("bank.transactions", partition, records))
    return BatchGroup(made)


@pytest.fixture
def metrics():
    return Metrics("risk", CollectorRegistry())


@pytest.fixture
def parts(metrics):
    """Reading, writing, and the state of two partitions."""
    policy = PolicyFile(RISK / "policy.toml", FEATURES)
    reading = PaymentReading(
        TransactionReader(),
        1,
        rates=Rates.of({"EUR": 1.0}),
        hash_key=bytes(16),
        policy=lambda: policy.in_force,
        metrics=metrics,
        now_ms=lambda: NOW_MS,
    )
    reasons = ReasonTable.load(RISK / "reasons.toml", FEATURES)
    writing = DecisionWriting(
        Names("default", "spec", "weir.decisions", 2, "weir.risk.dlq", 2, 3),
        DecisionWriter(load_schema("decision"), 3, reasons.texts),
        DeadLetterWriter(InTheClear(), 4),
        sealer=InTheClear(),
        dlq_sealer=InTheClear(),
        pseudonymizer=Pseudonymizer("default", Secret(bytes(32))),
        metrics=metrics,
        now_ms=lambda: NOW_MS,
    )
    state = RiskState(StateTopics("accounts", "journal"), accounts_max=1000, terminals_max=1000, owner="")
    for partition in (0, 1):
        state.attach(partition, state.new_accounts(), 0, {})
    return reading, writing, state


@pytest.fixture
def halves(parts):
    reading, writing, state = parts
    return lambda group: reading(group, state), writing


def scored(count: int) -> Scored:
    contributions = np.zeros((count, len(FEATURES)), np.float32)
    contributions[:, 0] = 1.5
    logit = np.full(count, -3.5, np.float32)
    return Scored(
        Scores(logit, np.full(count, 0.01, np.float32), contributions, -5.0, ModelRef("risk", "1", "00")),
        "",
        7,
    )


def events(outputs, topic: str, codec: RowCodec) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for output in outputs:
        if output.topic == topic:
            decoded = [codec.decode(unframe(each)[1]) for _, each, _ in rows_of(output)]
            found.setdefault(output.partition, []).extend(decoded)
    return found


async def test_each_partition_of_a_group_gets_its_own_decisions(halves):
    reading, writing = halves
    both = group((0, [value(0), value(1)]), (1, [value(2)]))
    outputs, counts = await writing(both, reading(both), scored(3))
    found = events(outputs, "weir.decisions", DECISION)
    assert {p: [d["event_id"] for d in each] for p, each in found.items()} == {
        0: ["event-0", "event-1"],
        1: ["event-2"],
    }
    assert found[1][0]["feature_ref"] == {
        "topic": "bank.transactions",
        "partition": 1,
        "offset": 100,
        "feature_spec": "spec",
    }
    assert [d["feature_ref"]["offset"] for d in found[0]] == [100, 101]
    assert found[0][0]["reasons"][0]["contribution"] == 1.5
    assert sum(counts.decisions.values()) == 3


@pytest.mark.parametrize("of_canary", [[1, 3], [0, 1, 2, 3], [2]])
async def test_each_decision_names_the_version_that_made_it_and_stays_in_its_place(halves, of_canary):
    reading, writing = halves
    both = group((0, [value(0), value(1)]), (1, [value(2), value(3)]))
    rows = np.array(of_canary)
    theirs = scored(len(rows)).scores
    theirs = replace(theirs, logit=theirs.logit + 1, base_logit=-4.0, model=ModelRef("risk", "2", "ff"))
    answer = replace(scored(4), canary=Canaried(rows, theirs, 0.5))
    outputs, counts = await writing(both, reading(both), answer)
    made = events(outputs, "weir.decisions", DECISION)
    # In the order in which they came, as if one version had made them all.
    assert [(each["event_id"], each["model_version"], each["logit"]) for each in made[0] + made[1]] == [
        (f"event-{row}", "2", -2.5) if row in of_canary else (f"event-{row}", "1", -3.5) for row in range(4)
    ]
    known = Pseudonymizer("default", Secret(bytes(32)))
    for output in outputs:
        for key, framed, headers in rows_of(output):
            decision = DECISION.decode(unframe(framed)[1])
            assert key == known.of(decision["account_id"].encode())
            assert dict(headers)[HEADER_NAME] == envelope_header(3, decision["decision_id"].bytes)
            assert decision["decision_id"] == decision_id("default", decision["event_id"], "payment_fraud")
    assert sum(counts.decisions.values()) == 4


async def test_a_row_of_a_canary_that_breaks_the_deciding_leaves_the_others_alone(halves, monkeypatch):
    reading, writing = halves
    real = writing_module.decide

    def breaks(batch, *rest):
        if (batch.amount == 20_000).any():
            raise ZeroDivisionError
        return real(batch, *rest)

    monkeypatch.setattr(writing_module, "decide", breaks)
    batch = group((0, [value(0), value(1), value(2), value(3)]))
    theirs = replace(scored(2).scores, model=ModelRef("risk", "2", "ff"))
    answer = replace(scored(4), canary=Canaried(np.array([1, 2]), theirs, 0.5))
    outputs, _ = await writing(batch, reading(batch), answer)
    made = {
        each["event_id"]: each["model_version"] for each in events(outputs, "weir.decisions", DECISION)[0]
    }
    assert made == {"event-0": "1", "event-2": "2", "event-3": "1"}
    letters = events(outputs, "weir.risk.dlq", LETTER)
    assert [(each["reason"], each["offset"]) for each in letters[0]] == [("not_decided", 101)]


@pytest.mark.parametrize("traced", [frozenset(), frozenset({1}), frozenset({0, 1})])
async def test_a_decision_bears_its_accounts_pseudonym_its_id_and_its_step_of_the_trace(halves, traced):
    reading, writing = halves
    both = group((0, [value(0), value(1)]), (1, [value(2), value(3)]), traced=traced)
    outputs, _ = await writing(both, reading(both), scored(4))
    known = Pseudonymizer("default", Secret(bytes(32)))
    for output in outputs:
        for row, (key, framed, headers) in enumerate(rows_of(output)):
            decision = DECISION.decode(unframe(framed)[1])
            assert key == known.of(decision["account_id"].encode())
            assert dict(headers)[HEADER_NAME] == envelope_header(3, decision["decision_id"].bytes)
            assert decision["decision_id"] == decision_id("default", decision["event_id"], "payment_fraud")
            assert [name for name, _ in headers[1:]] == ["traceparent"] * (row in traced)
            if row in traced:
                assert dict(headers)["traceparent"] == decision["traceparent"].encode()
                assert decision["traceparent"][:36] == TRACE[:36].decode()
                assert decision["traceparent"] != TRACE.decode()


async def test_a_partition_of_bad_records_alone_has_letters_and_no_decisions(halves):
    reading, writing = halves
    both = group((0, [b"garbage", value(1)]), (1, [b""]))
    outputs, _ = await writing(both, reading(both), scored(1))
    assert [d["event_id"] for d in events(outputs, "weir.decisions", DECISION)[0]] == ["event-1"]
    letters = events(outputs, "weir.risk.dlq", LETTER)
    assert [(each["reason"], each["offset"], each["value"]) for each in letters[0]] == [
        ("not_framed", 100, b"garbage")
    ]
    assert [each["reason"] for each in letters[1]] == ["empty"]


async def test_a_record_that_breaks_the_reading_is_found_and_left_out(halves, monkeypatch):
    reading, writing = halves
    real = reading_module.validate

    def breaks(**columns):
        if any(each == b"event-1" for each in columns["ids"][0].to_list()):
            raise ZeroDivisionError
        return real(**columns)

    monkeypatch.setattr(reading_module, "validate", breaks)
    batch = group((0, [value(0), value(1), value(2)]))
    read = reading(batch)
    assert [(each.row, each.reason) for each in read.bad] == [(1, "not_decided")]
    outputs, _ = await writing(batch, read, scored(2))
    assert [d["event_id"] for d in events(outputs, "weir.decisions", DECISION)[0]] == ["event-0", "event-2"]
    assert [each["offset"] for each in events(outputs, "weir.risk.dlq", LETTER)[0]] == [101]


async def test_a_record_that_breaks_the_deciding_is_found_and_left_out(halves, monkeypatch):
    reading, writing = halves
    real, calls = writing_module.decide, itertools.count()

    def breaks(batch, *rest):
        next(calls)
        if (batch.amount == 20_000).any():
            raise ZeroDivisionError
        return real(batch, *rest)

    monkeypatch.setattr(writing_module, "decide", breaks)
    batch = group((0, [value(0), value(1)]), (1, [value(2)]))
    outputs, counts = await writing(batch, reading(batch), scored(3))
    found = events(outputs, "weir.decisions", DECISION)
    assert {p: [d["event_id"] for d in each] for p, each in found.items()} == {0: ["event-0"], 1: ["event-2"]}
    letters = events(outputs, "weir.risk.dlq", LETTER)
    assert [(each["reason"], each["offset"]) for each in letters[0]] == [("not_decided", 101)]
    assert sum(counts.decisions.values()) == 2
    assert next(calls) == 4


async def test_without_scores_a_decision_says_that_it_is_degraded_and_is_no_approval(halves):
    reading, writing = halves
    batch = group((0, [value(0)]))
    outputs, _ = await writing(batch, reading(batch), Scored(None, "model_unavailable", 0))
    (decision,) = events(outputs, "weir.decisions", DECISION)[0]
    assert (decision["degraded"], decision["degraded_reason"]) == (True, "model_unavailable")
    assert decision["score"] is decision["probability"] is decision["logit"] is None
    assert decision["outcome"] == "REVIEW"


class Nothing:
    """A side input in which nothing waits."""

    waiting = ()

    def take(self):
        return [], {}

    def rewind(self, positions):
        return None


async def test_a_group_that_is_done_again_is_counted_once_when_it_is_durable(parts, metrics):
    """Rolled back after it was written; then read, written and delivered: one letter and one late payment."""
    reading, writing, state = parts

    async def no_model(read):
        return Scored(None, "model_unavailable", 0)

    processor = RiskProcessor(
        state,
        reading,
        None,
        no_model,
        writing,
        None,
        schemas=no_model,
        labels=Nothing(),
        journal=Nothing(),
        input_topic="bank.transactions",
        tables=Tables("rates", "reasons"),
        metrics=metrics,
        stream_metrics=StreamMetrics("risk", metrics.registry),
        now_ms=lambda: NOW_MS,
    )
    late_ms = NOW_MS - 2 * 3_600_000
    both = group((0, [value(0), b"garbage", value(3, late_ms)]), (1, [value(2, late_ms)]))
    names = {
        "weir_dlq_records_total": {"service": "risk", "reason": "not_framed"},
        "weir_late_events_total": {"service": "risk"},
        "weir_decisions_total": {"service": "risk", "outcome": "review", "basis": "degraded"},
    }

    def counted():
        return [metrics.registry.get_sample_value(name, labels) or 0 for name, labels in names.items()]

    for epoch in (1, 2):
        read = processor.read(epoch, both)
        outputs, counts = await processor.write(both, read, await processor.score(read))
        told = [value for each in outputs if each.topic == "journal" for _, value, _ in rows_of(each)]
        found = [journal.decode(value, JournalRecord, "") for value in told]
        assert {(each.rates, each.reasons) for each in found} == {("rates", "reasons")}
        assert counted() == [0, 0, 0]
        if epoch == 1:
            processor.roll_back(1)
    processor.release(2)
    processor.counted(both, counts, 0.1)
    assert counted() == [1, 1, 3]
