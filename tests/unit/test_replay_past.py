"""A partition followed alone, by the journal, has the state of then for each batch; random plays."""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from services.risk import reading as reading_module
from services.risk.labels import LabelReading
from services.risk.policy import PolicyFile
from services.risk.reading import PaymentReading
from services.risk.replay.past import Past, Readers
from services.risk.replay.start import Sizes, from_nothing, from_snapshot
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.errors import IntegrityError, MissingPart
from weir.features.spec import FEATURES
from weir.obs.metrics import Metrics
from weir.streams import BatchGroup, RecordBatch, journal
from weir.streams.journal import JournalRecord

RISK = Path(reading_module.__file__).parent
NOW_MS = 1_790_000_000_000
TOPICS = StateTopics("accounts", "journal")
SIZES = Sizes(1000, 1000)
TRANSACTION, LABEL = RowCodec(load_schema("transaction")), RowCodec(load_schema("label"))


class Log:
    """A topic in this process, as `TopicReader` reads one."""

    def __init__(self, topic, records, starts=None):
        self.topic, self.records = topic, records
        self.at = dict.fromkeys(records, 0) | {
            number: next(
                (i for i, each in enumerate(records[number]) if each.offset >= offset), len(records[number])
            )
            for number, offset in (starts or {}).items()
            if number in records
        }
        self.oldest = {number: each[0].offset if each else 0 for number, each in records.items()}

    async def peek(self, partition):
        at, records = self.at.get(partition, 0), self.records.get(partition, [])
        return records[at] if at < len(records) else None

    def pop(self, partition):
        self.at[partition] = self.at.get(partition, 0) + 1

    async def before(self, partition, offset):
        taken = []
        while (record := await self.peek(partition)) is not None and record.offset < offset:
            taken.append(record)
            self.pop(partition)
        return taken

    async def seek(self, partition, offset):
        records = self.records[partition]
        self.at[partition] = next(
            (i for i, each in enumerate(records) if each.offset >= offset), len(records)
        )


def record(topic, partition, offset, value):
    return SimpleNamespace(
        topic=topic, partition=partition, offset=offset, key=b"k", value=value, timestamp=NOW_MS, headers=()
    )


def reading(policy=None):
    policy = policy or PolicyFile(RISK / "policy.toml", FEATURES)
    return PaymentReading(
        TransactionReader(),
        1,
        rates=Rates.of({"EUR": 1.0}),
        hash_key=bytes(16),
        policy=lambda: policy.in_force,
        metrics=Metrics("risk", CollectorRegistry()),
        now_ms=lambda: NOW_MS,
    )


def label_reading():
    return LabelReading(LabelReader(), 2, bytes(16), CollectorRegistry())


class Worker:
    """What one worker does to its state, without Kafka: batches, labels, the others' journals."""

    def __init__(self, logs, partitions, features):
        self.logs, self.features = logs, features
        self.state = RiskState(TOPICS, accounts_max=1000, terminals_max=1000, owner="")
        self.reading, self.label_reading = reading(), label_reading()
        self.read_to = defaultdict(int)
        for partition in partitions:
            self.state.attach(partition, self.state.new_accounts(), 0, {})

    def learn(self, partition, upto=None):
        labels = self.logs["labels"][partition]
        at = self.state.positions.labels.get(partition, 0)
        part = [each for each in labels if at <= each.offset < (len(labels) if upto is None else upto)]
        if part:
            found, rows = self.label_reading([each.value for each in part], [each.timestamp for each in part])
            offsets = reading_module.np.array([each.offset for each in part])[rows]
            self.state.learn(found, partition, offsets, part[-1].offset + 1)

    def enter(self, partition):
        kept = self.logs["journal"][partition]
        for each in kept[self.read_to[partition] :]:
            self.state.enter(partition, journal.decode(each.value, JournalRecord, ""))
        self.read_to[partition] = len(kept)

    def decide(self, partition, values):
        payments = self.logs["transactions"][partition]
        first = payments[-1].offset + 1 if payments else 0
        records = [record("transactions", partition, first + row, value) for row, value in enumerate(values)]
        payments += records
        read = self.reading(BatchGroup([RecordBatch("transactions", partition, records)]), self.state)
        for told in self.state.journal(
            read.traces, read_ms=NOW_MS, now_ms=NOW_MS, model="", policy="", degraded="x"
        ):
            kept = self.logs["journal"][partition]
            (value,) = told.values.to_list()
            # Transaction markers leave holes.
            kept.append(record("journal", partition, 3 * len(kept), value))
        self.features[partition].append(read.features.tobytes())


def payment(chance, number):
    moment = datetime.fromtimestamp(NOW_MS / 1000, UTC) - timedelta(days=chance.choice((0, 0, 1, 9, 12)))
    return {
        "event_id": f"event-{number}",
        "account_id": f"account-{number % 2}-{chance.randrange(5)}",
        "terminal_id": f"terminal-{chance.randrange(4)}",
        "amount": Decimal(chance.randrange(1, 900)),
        "currency": "EUR",
        "event_time": moment - timedelta(minutes=chance.randrange(600)),
        "channel": "POS",
    }


def value_of(payment):
    return frame(1, TRANSACTION.encode(payment))


def label_of(payment):
    return frame(
        2,
        LABEL.encode(
            {
                **{name: payment[name] for name in ("event_id", "account_id", "terminal_id", "event_time")},
                "reported_time": payment["event_time"] + timedelta(days=1),
                "is_fraud": True,
                "source": "CHARGEBACK",
            }
        ),
    )


def played(seed, folder=None):
    """Two workers decide on a partition each, then one on both; the logs, each batch's features, and where
    a snapshot of partition 0's worker was taken."""
    chance = random.Random(seed)
    logs = {"transactions": {0: [], 1: []}, "labels": {0: [], 1: []}, "journal": {0: [], 1: []}}
    features = {0: [], 1: []}
    workers = {0: Worker(logs, [0], features), 1: Worker(logs, [1], features)}
    known, taken_at = [], None
    for step in range(120):
        if step == 80:
            # Partition 1 moves: its accounts come with what they have learnt, its journal first.
            new, old = workers[0], workers[1].state
            new.enter(1)
            for number, offset in old.positions.labels.items():
                new.learn(number, offset)
            for number, offset in new.state.positions.labels.items():
                workers[1].learn(number, offset)
            new.state.attach(1, old.accounts[1], old.positions.inputs[1], old.positions.labels)
            workers[1] = new
        if step == 60 and folder is not None:
            taken_at = len(features[0])
            save(workers[0].state, folder, logs)
        partition = chance.randrange(2)
        worker, deed = workers[partition], chance.random()
        if deed < 0.5:
            payments = [
                payment(chance, 2 * chance.randrange(500) + partition) for _ in range(chance.randrange(1, 6))
            ]
            known += payments
            values = [value_of(each) for each in payments]
            if chance.random() < 0.1:
                values.insert(0, b"no payment")
            worker.decide(partition, values)
        elif deed < 0.7 and known:
            number = chance.randrange(2)
            log = logs["labels"][number]
            log.append(record("labels", number, len(log), label_of(chance.choice(known))))
        elif deed < 0.85:
            worker.learn(chance.randrange(2))
        else:
            worker.enter(1 - partition)
    return logs, features, taken_at


def save(state, folder, logs):
    positions = state.positions
    mark = journal.encode(state.mark(0, positions))
    state.accounts[0].save(folder / "accounts-0.state", {"mark": mark.hex(), "changelog_offset": 0})
    kept = {name: {str(n): at for n, at in getattr(positions, name).items()} for name in ("seen", "labels")}
    state.terminals.save(folder / "terminals.state", {"positions": kept | {"journal": {}}})


async def followed(partition, logs, state=None):
    """Each batch's features, as the partition alone gives them; and what was noted."""
    state = state or from_nothing(partition, TOPICS, SIZES)
    begun_at = state.positions.inputs[partition]
    notes, found = [], []
    readers = Readers(
        Log("transactions", logs["transactions"], {partition: begun_at}),
        Log("labels", logs["labels"], state.positions.labels),
        Log("journal", logs["journal"]),
    )

    async def schemas(values):
        return None

    past = Past(partition, state, readers, reading(), label_reading(), schemas, notes.append)
    while (kept := await past.next_record()) is not None:
        if kept.next_offset <= begun_at:
            continue
        reread = await past.batch(kept)
        found.append(None if reread is None else (reread.read.features.tobytes(), reread.same_state))
    return found, notes


@pytest.mark.parametrize("seed", range(25))
async def test_each_partition_alone_has_the_state_of_then(seed):
    logs, features, _ = played(seed)
    for partition in (0, 1):
        found, notes = await followed(partition, logs)
        assert found == [(each, True) for each in features[partition]]
        assert not notes


@pytest.mark.parametrize("seed", range(5))
async def test_a_snapshot_is_as_good_as_the_beginning(seed, tmp_path):
    logs, features, taken_at = played(seed, tmp_path)
    found, notes = await followed(0, logs, from_snapshot(tmp_path, 0, TOPICS, SIZES))
    assert found == [(each, True) for each in features[0][taken_at:]]
    assert not notes


@pytest.mark.parametrize(("topic", "count"), [("labels", None), ("journal", 1)])
async def test_what_is_left_out_is_found_in_some_play(topic, count):
    """The check can fail: without a partition's labels, or without the first batch of the other partition."""
    wrong = 0
    for seed in range(8):
        logs, features, _ = played(seed)
        del logs[topic][1][:count]
        found, _ = await followed(0, logs)
        wrong += found != [(each, True) for each in features[0]]
    assert wrong


async def test_payments_that_the_topic_has_lost_are_said_and_the_rest_goes_on():
    logs, features, _ = played(3)
    first = journal.decode(logs["journal"][0][0].value, JournalRecord, "")
    logs["transactions"][0] = [each for each in logs["transactions"][0] if each.offset >= first.next_offset]
    found, notes = await followed(0, logs)
    assert found[0] is None
    assert None not in found[1:]
    assert len(found) == len(features[0])
    assert any("begins at" in note for note in notes)


async def test_payments_without_a_journal_are_said():
    logs, features, _ = played(4)
    del logs["journal"][0][1]
    found, notes = await followed(0, logs)
    assert len(found) == len(features[0]) - 1
    assert any("have no journal" in note for note in notes)


async def test_payments_that_entered_otherwise_than_then_are_found():
    logs, _, _ = played(5)
    kept = logs["journal"][0][0]
    told = journal.decode(kept.value, JournalRecord, "")
    other = msgspec.structs.replace(told, contributions=b"")
    logs["journal"][0][0] = record("journal", 0, kept.offset, journal.encode(other))
    found, _ = await followed(0, logs)
    assert [same for _, same in found] == [False] + [True] * (len(found) - 1)


def test_accounts_and_terminals_of_two_commits_are_refused(tmp_path):
    played(1, tmp_path)
    (tmp_path / "of another").mkdir()
    played(2, tmp_path / "of another")
    (tmp_path / "of another" / "terminals.state").replace(tmp_path / "terminals.state")
    with pytest.raises(IntegrityError, match="one commit"):
        from_snapshot(tmp_path, 0, TOPICS, SIZES)
    with pytest.raises(MissingPart):
        from_snapshot(tmp_path, 1, TOPICS, SIZES)
