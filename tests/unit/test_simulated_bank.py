"""The synthetic bank: its seed decides all, its frauds have their rates and looks, its labels delays."""

from datetime import UTC
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiokafka.partitioner import murmur2

from services.simulator.bank import ATM, DAY_MS, ECOM, TRANSFER, Bank, Events
from services.simulator.encode import encode_labels, encode_transactions, partitions_of
from services.simulator.fraud import (
    ACCOUNT_TAKEOVER,
    CARD_TESTING,
    COMPROMISED_TERMINAL,
    KINDS,
    MULE,
    STOLEN_CARD,
    bank_day,
    labels_of,
)
from services.simulator.identifiers import account_ids, day_prefix, event_ids, numbered
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema

SETTINGS = SimulatorSettings(accounts=8_000, terminals=800, seed=7)
DAYS = 24


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank(SETTINGS)


@pytest.fixture(scope="module")
def month(bank: Bank) -> Events:
    return Events.concatenate([bank_day(bank, day) for day in range(DAYS)])


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    """Two banks of one seed, one of another; and a day made alone is the day made in its turn."""
    small = SETTINGS.model_copy(update={"accounts": 300, "terminals": 40})
    for name, settings in (("a", small), ("b", small), ("c", small.model_copy(update={"seed": 8}))):
        write_history(Bank(settings), tmp_path / name, 3)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["labels-2026-01.parquet", "transactions-2026-01.parquet", "truth-2026-01.parquet"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / files[1]).read_bytes() != (tmp_path / "c" / files[1]).read_bytes()

    in_turn, alone = Bank(small), Bank(small)
    days = [bank_day(in_turn, day) for day in range(4)]
    assert np.array_equal(days[3].event_ms, bank_day(alone, 3).event_ms)


def test_fraud_is_rare_and_of_every_kind(month: Events) -> None:
    share = np.bincount(month.fraud_kind, minlength=len(KINDS)) / len(month)
    assert 0.005 <= 1 - share[0] <= 0.01
    for kind in (STOLEN_CARD, COMPROMISED_TERMINAL, ACCOUNT_TAKEOVER, CARD_TESTING, MULE):
        assert 0.0003 <= share[kind] <= 0.004, KINDS[kind]


def test_each_kind_looks_like_itself_and_overlaps_with_honest_customers(month: Events) -> None:
    def of(kind: int) -> Events:
        return month.take(month.fraud_kind == kind)

    honest = of(0)
    assert np.median(of(STOLEN_CARD).amount) > 1.3 * np.median(honest.amount)
    assert np.quantile(honest.amount, 0.95) > np.median(of(STOLEN_CARD).amount)
    assert (np.bincount(of(COMPROMISED_TERMINAL).terminal) >= 5).any()
    assert set(of(ACCOUNT_TAKEOVER).channel.tolist()) == {TRANSFER, ECOM}
    assert np.quantile(of(CARD_TESTING).amount, 0.6) < 60_000
    assert set(of(MULE).channel.tolist()) == {TRANSFER, ATM}
    assert (honest.amount[honest.channel == ECOM] < 60_000).mean() > 0.02


def test_days_are_in_order_and_within_themselves(bank: Bank, month: Events) -> None:
    for day in (-3, 0, 5):
        events = bank_day(bank, day)
        start = bank.day_start_ms(day)
        assert events.event_ms.min() >= start
        assert events.event_ms.max() < start + DAY_MS
        assert (np.diff(events.event_ms) >= 0).all()
    assert month.account.max() < SETTINGS.accounts
    assert month.terminal.max() < SETTINGS.terminals
    assert (bank.terminal_channel[month.terminal] == month.channel).all()
    assert (month.amount >= 5_000).all()
    assert (month.amount % 100 == 0).all()
    assert ((month.counterparty >= 0) <= (month.channel == TRANSFER)).all()


def test_labels_come_late_and_not_for_every_fraud(bank: Bank) -> None:
    """Over a month: about 4 % of frauds never, most of the rest within a week, none before its payment."""
    delays, frauds, false_claims, honest = [], 0, 0, 0
    for day in range(DAYS):
        events = bank_day(bank, day)
        labels = labels_of(bank, events, day)
        is_true = events.fraud_kind[labels.row] > 0
        assert (labels.is_fraud >= is_true).all()
        assert (np.diff(labels.reported_ms) >= 0).all()
        delays.append((labels.reported_ms - events.event_ms[labels.row])[is_true])
        frauds += int((events.fraud_kind > 0).sum())
        false_claims += int((labels.is_fraud & ~is_true).sum())
        honest += int((events.fraud_kind == 0).sum())
    delay_days = np.concatenate(delays) / DAY_MS
    assert 0.93 <= delay_days.size / frauds <= 0.985
    assert 0.85 <= (delay_days <= 7).mean() <= 0.97
    assert 2.2 <= np.median(delay_days) <= 2.8
    assert delay_days.min() > 0
    assert 0 < false_claims / honest < 0.0005


def test_encoded_records_are_what_the_row_codec_writes(bank: Bank) -> None:
    """Every field of 300 payments and of a day's labels, decoded by fastavro and encoded again."""
    events = bank_day(bank, 2)
    event_id = event_ids(day_prefix(bank.day_start_ms(2)), 0, len(events))
    values = encode_transactions(bank, events, event_id, 7)
    codec = RowCodec(load_schema("transaction"))
    assert len(values) == len(events)
    for row in [*range(250), *np.flatnonzero(events.counterparty >= 0)[:50].tolist()]:
        schema_id, payload = unframe(values[row])
        decoded = codec.decode(payload)
        assert schema_id == 7
        assert codec.encode(decoded) == payload
        assert int(decoded["amount"] * 10_000) == events.amount[row]
        assert decoded["event_time"].astimezone(UTC).timestamp() * 1000 == pytest.approx(events.event_ms[row])
        assert decoded["account_id"] == f"A{events.account[row]:010d}"
        assert (decoded["counterparty_id"] is not None) == (events.counterparty[row] >= 0)
    labels = labels_of(bank, events, 2)
    codec = RowCodec(load_schema("label"))
    for index, value in enumerate(encode_labels(events, event_id, labels, 8)):
        decoded = codec.decode(unframe(value)[1])
        assert decoded["event_id"].encode() == bytes(event_id[labels.row[index]])
        assert decoded["is_fraud"] == labels.is_fraud[index]


def test_a_key_goes_where_kafka_would_send_it() -> None:
    for prefix, digits in ((b"A", 10), (b"", 1), (b"abc", 4), (b"ab", 6)):
        keys = numbered(prefix, np.arange(10), digits)
        for count in (1, 4, 13):
            expected = [(murmur2(bytes(key)) & 0x7FFFFFFF) % count for key in keys]
            assert partitions_of(keys, count).tolist() == expected


def test_identifiers_have_their_width_or_are_refused() -> None:
    assert bytes(account_ids(np.array([123]))[0]) == b"A0000000123"
    with pytest.raises(ValueError, match="does not fit"):
        numbered(b"x", np.array([100]), 2)
    with pytest.raises(ValueError, match="does not fit"):
        numbered(b"x", np.array([-1]), 2)


def test_columns_of_the_files_are_the_fields_of_the_schemas(tmp_path: Path) -> None:
    write_history(Bank(SETTINGS.model_copy(update={"accounts": 100, "terminals": 30})), tmp_path, 40)
    assert sorted(path.name for path in tmp_path.glob("transactions-*")) == [
        "transactions-2026-01.parquet",
        "transactions-2026-02.parquet",
    ]
    for kind, schema in (("transactions", "transaction"), ("labels", "label")):
        names = pq.read_schema(tmp_path / f"{kind}-2026-02.parquet").names
        assert names == [field["name"] for field in load_schema(schema)["fields"]]
