"""The columnar reader reads what the row codec reads, and refuses everything else by name."""

import io
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.codec import LABEL, LABEL_ID, TRANSACTION, TRANSACTION_ID, plain_records
from weir.codec import FileRegistry, RowCodec, Schema, frame, load_schema
from weir.codec.columns import (
    REASONS,
    ColumnReader,
    Columns,
    LabelReader,
    StringColumn,
    TransactionReader,
)
from weir.codec.registry import fetch_unknown
from weir.codec.schemas import without_keys
from weir.errors import BadInput, ConfigError, NeighbourUnavailable

PLAIN = without_keys(load_schema("transaction"), {"logicalType"})
LOGICAL = {"logicalType"}
WIDE: Schema = {
    "type": "record",
    "name": "Wide",
    "fields": [
        {"name": "b", "type": "boolean"},
        {"name": "i", "type": ["int", "null"]},
        {"name": "l", "type": "long"},
        {"name": "f", "type": "float"},
        {"name": "d", "type": ["null", "double"]},
        {"name": "s", "type": ["string", "null"]},
        {"name": "y", "type": "bytes"},
        {"name": "e", "type": ["null", {"type": "enum", "name": "E", "symbols": ["A", "B", "C"]}]},
    ],
}
reader = TransactionReader()
wide_reader = ColumnReader(WIDE)
rows = RowCodec(load_schema("transaction"))
plain = RowCodec(PLAIN)
good = frame(TRANSACTION_ID, rows.encode(TRANSACTION))


def as_records(columns: Columns, of: ColumnReader) -> list[dict[str, Any]]:
    """The columns as plain records: enum symbols, decimals as unscaled ints, None where not present."""
    out: list[dict[str, Any]] = []
    for i in range(columns.row_count):
        record: dict[str, Any] = {}
        for name, ints in columns.ints.items():
            record[name] = of.enums[name][ints[i]] if name in of.enums else int(ints[i])
        for name, floats in columns.floats.items():
            record[name] = float(floats[i])
        for name, strings in columns.strings.items():
            record[name] = strings[i]
        for name, present in columns.present.items():
            record[name] = record[name] if present[i] else None
        out.append(record)
    return out


def expected(record: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """A plain record as `as_records` gives it."""
    out = dict(record)
    for name, value in record.items():
        if name == "amount":
            out[name] = int.from_bytes(value, "big", signed=True)
        elif isinstance(value, str) and name not in ("channel", "e"):
            out[name] = value.encode()
        elif name == "f" and value is not None:
            out[name] = float(np.float32(value))
    return {field["name"]: out[field["name"]] for field in schema["fields"]}


@settings(deadline=None)
@given(st.lists(plain_records(PLAIN), max_size=5))
def test_columns_hold_what_the_row_codec_wrote(records: list[dict[str, Any]]) -> None:
    values = [frame(TRANSACTION_ID, plain.encode(record)) for record in records]
    columns, poison = reader.read(values, TRANSACTION_ID)
    wanted = [expected(record, PLAIN) for record in records]
    # decimal(19) still bounds an int64 from below: -2**63 alone has no positive twin
    lowest = [record["amount"] == -(2**63) for record in wanted]
    assert poison == [(i, "overflow") for i, is_lowest in enumerate(lowest) if is_lowest]
    assert as_records(columns, reader) == [
        r for r, is_lowest in zip(wanted, lowest, strict=True) if not is_lowest
    ]
    assert columns.row.tolist() == [i for i, is_lowest in enumerate(lowest) if not is_lowest]


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "b": st.booleans(),
                "i": st.none() | st.integers(-(2**31), 2**31 - 1),
                "l": st.integers(-(2**63), 2**63 - 1),
                "f": st.floats(width=32, allow_nan=False),
                "d": st.none() | st.floats(allow_nan=False),
                "s": st.none() | st.text(),
                "y": st.binary(),
                "e": st.none() | st.sampled_from("ABC"),
            }
        )
    )
)
def test_every_flat_type_is_read(records: list[dict[str, Any]]) -> None:
    codec = RowCodec(WIDE)
    columns, poison = wide_reader.read([frame(9, codec.encode(record)) for record in records], 9)
    assert poison == []
    found = as_records(columns, wide_reader)
    wanted = [expected({**r, "b": int(r["b"])}, WIDE) for r in records]
    assert found == wanted


def test_a_label_is_read() -> None:
    values = [frame(LABEL_ID, RowCodec(load_schema("label")).encode(LABEL))] * 3
    columns, poison = LabelReader().read(values, LABEL_ID)
    assert poison == []
    assert columns.ints["is_fraud"].tolist() == [1, 1, 1]
    assert columns.ints["reported_time"][0] == int(LABEL["reported_time"].timestamp() * 1000)
    assert columns.strings["account_id"].to_list() == [LABEL["account_id"].encode()] * 3


def test_an_empty_batch_has_no_rows() -> None:
    columns, poison = reader.read([], TRANSACTION_ID)
    assert (columns.row_count, poison, len(columns.ints["amount"])) == (0, [], 0)


def test_a_record_cut_at_any_byte_is_refused_and_its_neighbours_are_read() -> None:
    for end in range(len(good)):
        columns, poison = reader.read([good, good[:end], good], TRANSACTION_ID)
        assert poison == [(1, "truncated" if end else "empty")]
        assert columns.row.tolist() == [0, 2]
        assert columns.strings["event_id"].to_list() == [TRANSACTION["event_id"].encode()] * 2


def one_string(payload: bytes) -> str:
    """The reason for which a record of one string is refused."""
    schema: Schema = {"type": "record", "name": "One", "fields": [{"name": "s", "type": "string"}]}
    _, poison = ColumnReader(schema).read([frame(1, payload)], 1)
    return poison[0][1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"\x01" + good[1:], "not_framed"),
        (b'{"event_id": "1"}', "not_framed"),
        (frame(999, good[5:]), "unknown_schema"),
        (good + b"\x00", "trailing_bytes"),
        (good.replace(b"evt-", b"ev\xff-"), "bad_utf8"),
        (good.replace(b"evt-", b"\xed\xa0\x80-"), "bad_utf8"),
        (good.replace(b"evt-", b"\xc0\xaf-1"), "bad_utf8"),
    ],
)
def test_bad_records_are_named(value: bytes | None, reason: str) -> None:
    columns, poison = reader.read([good, value], TRANSACTION_ID)
    assert poison == [(1, reason)]
    assert columns.row_count == 1


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff" * 10 + b"\x01", "overflow"),
        (b"\xff" * 9 + b"\x02", "overflow"),
        (b"\xfe" + b"\xff" * 8 + b"\x01", "truncated"),  # a length of 2**63 - 1
        (b"\x01", "overflow"),  # a length of -1
        (b"\x80", "truncated"),
        (b"\x04a", "truncated"),
        (b"\x02\xe4", "bad_utf8"),
    ],
)
def test_lengths_that_lie_are_named(payload: bytes, reason: str) -> None:
    assert one_string(payload) == reason


@pytest.mark.parametrize("digits", [b"\x7f" + b"\xff" * 8, b"\x80" + b"\x00" * 8, b"\x01" + b"\x00" * 20])
def test_an_amount_beyond_int64_is_refused(digits: bytes) -> None:
    value = frame(TRANSACTION_ID, plain.encode({**plain.decode(good[5:]), "amount": digits}))
    assert reader.read([value], TRANSACTION_ID)[1] == [(0, "overflow")]


@pytest.mark.parametrize("digits", [b"\xff" * 20 + b"\xfe", b"\xfe"])
def test_an_amount_may_be_sign_extended(digits: bytes) -> None:
    value = frame(TRANSACTION_ID, plain.encode({**plain.decode(good[5:]), "amount": digits}))
    columns, _ = reader.read([value], TRANSACTION_ID)
    assert columns.ints["amount"].tolist() == [-2]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=120), max_size=8))
def test_random_bytes_never_pass_for_a_record(noise: list[bytes]) -> None:
    """Framed noise could be a record by chance; then the row codec agrees."""
    values = [frame(TRANSACTION_ID, payload) for payload in noise]
    columns, poison = reader.read([*values, good], TRANSACTION_ID)
    assert columns.row[-1] == len(values)
    assert {reason for _, reason in poison} <= set(REASONS)
    assert sorted([*columns.row.tolist(), *(i for i, _ in poison)]) == list(range(len(values) + 1))
    for index in columns.row.tolist()[:-1]:
        plain.decode(noise[index])


@settings(deadline=None, max_examples=400)
@given(plain_records(PLAIN), st.data())
def test_a_damaged_record_is_read_as_the_row_codec_reads_it_or_refused(
    record: dict[str, Any], data: st.DataObject
) -> None:
    payload = bytearray(plain.encode(record))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(payload)
    columns, poison = reader.read([frame(TRANSACTION_ID, damaged)], TRANSACTION_ID)
    try:
        read = plain.decode(damaged)
    except BadInput:
        assert len(poison) == 1
        return
    if not poison:
        assert as_records(columns, reader) == [expected(read, PLAIN)]
        return
    # fastavro lets pass: a negative symbol or branch, a number of more than 64 bits, an amount of any size
    size = len(read["amount"])
    assert plain.encode(read) != damaged or size == 0 or size >= 8


def evolved() -> Schema:
    """Transaction with one field more."""
    schema = load_schema("transaction")
    field = {"name": "device_id", "type": ["null", "string"], "default": None}
    schema["fields"].insert(2, field)
    return schema


def test_records_of_another_version_are_read_in_their_place() -> None:
    newer = RowCodec(evolved())
    theirs = frame(7, newer.encode({**TRANSACTION, "event_id": "newer", "device_id": "phone"}))
    columns, poison = TransactionReader({7: evolved()}.get).read([good, theirs, b"", good], TRANSACTION_ID)
    assert poison == [(2, "empty")]
    assert columns.row.tolist() == [0, 1, 3]
    assert columns.strings["event_id"].to_list() == [b"evt-0001", b"newer", b"evt-0001"]
    assert columns.ints["amount"].tolist() == [1_285_000] * 3


MORE: list[dict[str, Any]] = [
    {"name": "fee", "type": {"type": "bytes", "logicalType": "decimal", "precision": 19, "scale": 6}},
    {"name": "device", "type": ["string", "null"], "default": ""},
    {"name": "risk", "type": "double"},
    {"name": "share", "type": ["null", "float"]},
    {"name": "tries", "type": "int"},
    {"name": "pin", "type": "boolean"},
    {"name": "entry", "type": {"type": "enum", "name": "Entry", "symbols": ["CHIP", "STRIPE"]}},
]
MORE_OF = st.fixed_dictionaries(
    {
        "fee": st.binary(max_size=20),
        "device": st.none() | st.text(max_size=20),
        "risk": st.floats(allow_nan=False),
        "share": st.none() | st.floats(width=32, allow_nan=False),
        "tries": st.integers(-(2**31), 2**31 - 1),
        "pin": st.booleans(),
        "entry": st.sampled_from(["CHIP", "STRIPE"]),
    }
)


def encoded(record: dict[str, Any], schema: Schema) -> bytes:
    """The record's bytes in a version that need not have all its fields."""
    return RowCodec(schema).encode({field["name"]: record[field["name"]] for field in schema["fields"]})


@st.composite
def versions(draw: st.DrawFn) -> Schema:
    """Transaction with some fields more, in some order, without some that may be null."""
    schema = load_schema("transaction")
    left_out = draw(st.sets(st.sampled_from(["merchant_category", "country", "counterparty_id"])))
    fields = [field for field in schema["fields"] if field["name"] not in left_out]
    schema["fields"] = draw(st.permutations(fields + draw(st.lists(st.sampled_from(MORE), unique_by=id))))
    return schema


PAYMENTS = plain_records(PLAIN).filter(lambda r: int.from_bytes(r["amount"], "big", signed=True) != -(2**63))


@settings(deadline=None)
@given(versions(), st.lists(st.tuples(PAYMENTS, MORE_OF, st.booleans()), min_size=1, max_size=8))
def test_records_of_another_version_are_read_as_the_row_codec_reads_them_and_by_the_compiled_loop(
    version: Schema, records: list[tuple[dict[str, Any], dict[str, Any], bool]]
) -> None:
    written = without_keys(version, LOGICAL)
    resolving = RowCodec(written, PLAIN)
    batch, wanted = [], []
    for record, more, is_newer in records:
        payload = encoded(record | more, written) if is_newer else plain.encode(record)
        batch.append(frame(7 if is_newer else TRANSACTION_ID, payload))
        wanted.append(expected((resolving if is_newer else plain).decode(payload), PLAIN))
    ours = TransactionReader({7: version}.get)
    with pytest.MonkeyPatch.context() as patch:
        # What reads one by one.
        patch.setattr(ColumnReader, "_resolved", None)
        columns, poison = ours.read(batch, TRANSACTION_ID)
    assert poison == []
    assert columns.row.tolist() == list(range(len(batch)))
    assert as_records(columns, ours) == wanted


@settings(deadline=None)
@given(versions(), MORE_OF, st.data())
def test_another_version_cut_or_continued_is_poison(
    version: Schema, more: dict[str, Any], data: st.DataObject
) -> None:
    record = plain.decode(rows.encode(TRANSACTION))
    theirs = frame(7, encoded(record | more, without_keys(version, LOGICAL)))
    cut = data.draw(st.integers(5, len(theirs) - 1))
    batch = [theirs[:cut], theirs, theirs + b"x"]
    columns, poison = TransactionReader({7: version}.get).read(batch, TRANSACTION_ID)
    assert [row for row, _ in poison] == [0, 2]
    assert columns.row.tolist() == [1]


def test_a_version_that_a_field_has_changed_in_is_read_one_by_one() -> None:
    """A default that is not null is more than the compiled loop can fill in."""
    other = load_schema("transaction")
    other["fields"] = [each for each in other["fields"] if each["name"] != "currency"]
    ours = load_schema("transaction")
    next(each for each in ours["fields"] if each["name"] == "currency")["default"] = "EUR"
    theirs = frame(7, encoded(TRANSACTION, other))
    columns, poison = ColumnReader(ours, {7: other}.get).read([good, theirs], TRANSACTION_ID)
    assert poison == []
    assert columns.strings["currency"].to_list() == [b"CNY", b"EUR"]


def test_a_symbol_of_a_newer_version_is_read_as_the_default() -> None:
    newer = load_schema("transaction")
    next(f for f in newer["fields"] if f["name"] == "channel")["type"]["symbols"].append("QR")
    theirs = frame(7, RowCodec(newer).encode({**TRANSACTION, "channel": "QR"}))
    ours = TransactionReader({7: newer}.get)
    columns, poison = ours.read([theirs], TRANSACTION_ID)
    assert poison == []
    assert ours.enums["channel"][columns.ints["channel"][0]] == "OTHER"


def test_a_reader_of_a_newer_version_fills_the_default() -> None:
    columns, poison = ColumnReader(evolved(), FileRegistry.read().known).read([good], 7)
    assert poison == []
    assert columns.present["device_id"].tolist() == [False]


def test_another_version_in_pieces_is_poison_alone() -> None:
    theirs = frame(7, RowCodec(evolved()).encode({**TRANSACTION, "device_id": None}))
    columns, poison = TransactionReader({7: evolved()}.get).read([theirs[:-3], theirs, theirs + b"x"], 1)
    assert poison == [(0, "truncated"), (2, "trailing_bytes")]
    assert columns.row.tolist() == [1]


def test_a_known_schema_of_another_record_is_unknown_here() -> None:
    label = frame(LABEL_ID, RowCodec(load_schema("label")).encode(LABEL))
    _, poison = TransactionReader(FileRegistry.read().known).read([label], TRANSACTION_ID)
    assert poison == [(0, "unknown_schema")]


def test_a_version_whose_decimal_has_another_scale_is_unknown() -> None:
    other = load_schema("transaction")
    next(f for f in other["fields"] if f["name"] == "amount")["type"]["scale"] = 2
    theirs = frame(7, RowCodec(other).encode({**TRANSACTION, "amount": Decimal("1.25")}))
    _, poison = TransactionReader({7: other}.get).read([theirs], TRANSACTION_ID)
    assert poison == [(0, "unknown_schema")]


class SlowRegistry(FileRegistry):
    """Knows only what was asked for; counts the questions."""

    def __init__(self, held: dict[int, Schema], away: bool = False) -> None:
        super().__init__({}, "test")
        self.held, self.away, self.asked = held, away, 0

    async def schema_of(self, schema_id: int) -> Schema:
        self.asked += 1
        if self.away:
            raise NeighbourUnavailable("registry is away")
        if schema_id in self.held:
            self._by_id[schema_id] = self.held[schema_id]
        return await super().schema_of(schema_id)


async def test_ids_that_are_not_at_hand_are_asked_for() -> None:
    registry = SlowRegistry({7: evolved()})
    theirs = frame(7, RowCodec(evolved()).encode({**TRANSACTION, "device_id": None}))
    ours = TransactionReader(registry.known)
    batch = [good, theirs, frame(8, b"")]
    await fetch_unknown(registry, batch)
    columns, poison = ours.read(batch, TRANSACTION_ID)
    assert poison == [(2, "unknown_schema")]
    assert columns.row.tolist() == [0, 1]


async def test_made_up_ids_cannot_make_us_ask_without_end() -> None:
    registry = SlowRegistry({})
    noise = [frame(1000 + i, b"") for i in range(500)]
    await fetch_unknown(registry, noise)
    _, poison = TransactionReader(registry.known).read(noise, TRANSACTION_ID)
    assert len(poison) == 500
    assert registry.asked <= 8


async def test_a_registry_that_is_away_is_an_error_and_not_poison() -> None:
    registry = SlowRegistry({}, away=True)
    with pytest.raises(NeighbourUnavailable):
        await fetch_unknown(registry, [frame(7, b"")])


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "array", "items": "string"},
        {"type": "map", "values": "string"},
        ["null", "string", "long"],
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
    ],
)
def test_a_schema_that_is_not_flat_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError):
        ColumnReader({"type": "record", "name": "R", "fields": [{"name": "f", "type": kind}]})


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=20), st.data())
def test_a_string_column_gives_back_its_strings(values: list[bytes], data: st.DataObject) -> None:
    column = StringColumn.from_list(values)
    assert column.to_list() == values
    assert [column[i] for i in range(len(column))] == values
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), np.bool_)
    assert column.take(mask).to_list() == [v for v, keep in zip(values, mask, strict=True) if keep]


def test_taken_rows_keep_their_index_in_the_batch() -> None:
    columns, _ = reader.read([good, b"", good, good], TRANSACTION_ID)
    taken = columns.take(np.array([2, 0]))
    assert (taken.row_count, taken.row.tolist()) == (2, [3, 0])
    assert taken.strings["currency"].to_list() == [b"CNY"] * 2


@settings(deadline=None)
@given(st.binary(max_size=8))
def test_utf8_is_what_python_holds_for_utf8(text: bytes) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "bytes", text)
    try:
        text.decode()
    except UnicodeDecodeError:
        assert one_string_reader.read([frame(1, out.getvalue())], 1)[1] == [(0, "bad_utf8")]
    else:
        assert one_string_reader.read([frame(1, out.getvalue())], 1)[1] == []


one_string_reader = ColumnReader(
    {"type": "record", "name": "One", "fields": [{"name": "s", "type": "string"}]}
)
