"""Record batches, as aiokafka's own reader sees them, its checksum included."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.columns import ByteColumn
from weir.kafka._crc32c import by_instruction, by_tables, crc32c, has_instruction
from weir.kafka.record_batch import ProduceBatch, batches_of, from_columns, from_lists
from weir.kafka.records import ColumnOutput, HeaderColumns
from weir.streams.output import Output

NULLABLE = st.none() | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(st.text(max_size=12), NULLABLE), max_size=4)
STAMP_MS = st.integers(-1, 2**52)
ROW = st.tuples(NULLABLE, NULLABLE, HEADERS, STAMP_MS)

Row = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]], int]


def read(batches: Sequence[ProduceBatch]) -> list[tuple[Any, ...]]:
    """Every record that a consumer would see; the checksums are right."""
    wire = MemoryRecords(b"".join(batch.data.tobytes() for batch in batches))
    seen, batch_count = [], 0
    while wire.has_next():
        batch = wire.next_batch()
        assert batch.validate_crc()
        assert batch.compression_type == 0
        records = list(batch)
        assert [record.offset for record in records] == list(range(len(records)))
        assert batch.next_offset == len(records) == batches[batch_count].record_count
        for each in records:
            seen.append((each.key, each.value, [tuple(header) for header in each.headers], each.timestamp))
            assert each.timestamp_type == 0
        batch_count += 1
    assert batch_count == len(batches)
    return seen


def stamped(batches: list[ProduceBatch], **changes: Any) -> list[ProduceBatch]:
    for batch in batches:
        batch.stamp(
            **{"producer_id": 7, "producer_epoch": 2, "sequence": 0, "transactional": True, **changes}
        )
    return batches


@settings(deadline=None)
@given(st.lists(ROW, max_size=30), st.integers(1500, 4000))
def test_lists_come_back_as_they_went_in(rows: list[Row], bytes_max: int) -> None:
    """Nulls, empty values, headers, any timestamps; in as many batches as the limit asks for, in order."""
    keys, values, headers, stamps = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    batches = stamped(from_lists(keys, values, headers, stamps, bytes_max=bytes_max))
    assert read(batches) == [(key, value, list(head), ms) for key, value, head, ms in rows]
    assert all(len(batch.data) <= bytes_max for batch in batches)


@settings(deadline=None)
@given(st.lists(st.tuples(NULLABLE, NULLABLE), max_size=30), HEADERS, STAMP_MS, st.integers(1500, 4000))
def test_columns_say_what_lists_say(
    rows: list[tuple[bytes | None, bytes | None]], headers: list[tuple[str, bytes]], ms: int, bytes_max: int
) -> None:
    """The two ways in give the same bytes."""
    keys, values = [key for key, _ in rows], [value for _, value in rows]
    by_column = ColumnOutput("t", 0, ByteColumn.from_list(keys), ByteColumn.from_list(values), ms, headers)
    batches = stamped(batches_of(by_column, bytes_max=bytes_max))
    lists = stamped(from_lists(keys, values, [headers] * len(rows), ms, bytes_max=bytes_max))
    assert [batch.data.tobytes() for batch in batches] == [batch.data.tobytes() for batch in lists]
    assert read(batches) == [(key, value, headers, ms) for key, value in rows]


@settings(deadline=None)
@given(st.lists(st.tuples(NULLABLE, HEADERS), max_size=30), st.integers(1500, 4000))
def test_columns_of_headers_say_what_lists_of_them_say(
    rows: list[tuple[bytes | None, list[tuple[str, bytes | None]]]], bytes_max: int
) -> None:
    """Each record has headers of its own, or none."""
    values, headers = [value for value, _ in rows], [head for _, head in rows]
    pairs = [pair for head in headers for pair in head]
    names = sorted({name for name, _ in pairs})
    columns = HeaderColumns(
        np.cumsum([0, *map(len, headers)]),
        np.array([names.index(name) for name, _ in pairs], np.int64),
        names,
        ByteColumn.from_list([value for _, value in pairs]),
    )
    column = ByteColumn.from_list(values)
    by_column = stamped(from_columns(None, column, 5, headers=columns, bytes_max=bytes_max))
    lists = stamped(from_lists([None] * len(rows), values, headers, 5, bytes_max=bytes_max))
    assert [batch.data.tobytes() for batch in by_column] == [batch.data.tobytes() for batch in lists]


@pytest.mark.parametrize(
    "wrong",
    [
        HeaderColumns(np.array([0, 1]), np.array([0]), ["a"], ByteColumn.from_list([b"x"])),
        HeaderColumns(np.array([0, 1, 2]), np.array([0]), ["a"], ByteColumn.from_list([b"x"])),
        HeaderColumns(np.array([0, 1, 0]), np.array([0]), ["a"], ByteColumn.from_list([b"x"])),
        HeaderColumns(np.array([0, 1, 1]), np.array([1]), ["a"], ByteColumn.from_list([b"x"])),
        HeaderColumns(np.array([0, 1, 1]), np.array([0, 0]), ["a"], ByteColumn.from_list([b"x"])),
    ],
)
def test_columns_of_headers_that_do_not_fit_are_refused(wrong: HeaderColumns) -> None:
    with pytest.raises(ValueError, match="headers' columns do not fit"):
        from_columns(None, ByteColumn.from_list([b"a", b"b"]), 5, headers=wrong)


@pytest.mark.parametrize("row_count", [1, 2, 63, 64, 65, 8192, 8193, 20_000])
def test_offsets_of_every_width_are_read(row_count: int) -> None:
    column = ByteColumn.from_list([b"%d" % row for row in range(row_count)])
    seen = read(stamped(from_columns(None, column, np.arange(row_count) * 1_000_003, bytes_max=2**24)))
    assert [value for _, value, _, _ in seen] == column.to_list()
    assert [ms for *_, ms in seen] == [row * 1_000_003 for row in range(row_count)]
    assert {key for key, *_ in seen} == {None}


def test_a_batch_is_full_to_the_last_byte() -> None:
    """The limit is what the whole batch takes on the wire; one byte less opens another batch."""
    values: list[bytes | None] = [bytes(700)] * 10
    nothing: list[bytes | None] = [None] * 10
    (whole,) = from_lists(nothing, values, [()] * 10, 0)
    assert len(from_lists(nothing, values, [()] * 10, 0, bytes_max=len(whole.data))) == 1
    assert [
        batch.record_count
        for batch in from_lists(nothing, values, [()] * 10, 0, bytes_max=len(whole.data) - 1)
    ] == [9, 1]


def test_what_is_larger_than_a_batch_is_one_of_its_own() -> None:
    values = [b"small", bytes(200_000), b"small again", b"and more"]
    batches = from_lists([None] * 4, values, [()] * 4, 0, bytes_max=100_000)
    assert [batch.record_count for batch in batches] == [1, 1, 2]
    (large,) = from_columns(None, ByteColumn.from_list([bytes(2_000_000)]), 0)
    assert len(large.data) > 2_000_000


def test_the_producer_is_in_the_header_of_each_batch() -> None:
    (batch,) = stamped(
        from_lists([b"k"], [b"v"], [()], 5),
        producer_id=2**40 + 3,
        producer_epoch=32_000,
        sequence=2**31 - 2,
        transactional=False,
    )
    wire = MemoryRecords(batch.data.tobytes()).next_batch()
    assert (wire.producer_id, wire.producer_epoch, wire.base_sequence) == (2**40 + 3, 32_000, 2**31 - 2)
    assert not wire.is_transactional
    assert wire.validate_crc()
    # Stamped anew, nothing of the old stamp is left.
    batch.stamp(1, 0, 0, transactional=True)
    again = MemoryRecords(batch.data.tobytes()).next_batch()
    assert (again.producer_id, again.base_sequence, again.is_transactional) == (1, 0, True)
    assert again.validate_crc()


def test_columns_that_point_outside_are_refused() -> None:
    """Before a compiled loop reads there."""
    buffer, inside = np.zeros(10, np.uint8), np.array([0], np.int64)
    for start, length in ((8, 3), (-1, 1), (0, -2)):
        column = ByteColumn(buffer, np.array([start], np.int64), np.array([length], np.int64))
        with pytest.raises(ValueError, match="outside its buffer"):
            from_columns(None, column, 0)
        with pytest.raises(ValueError, match="outside its buffer"):
            from_columns(column, ByteColumn(buffer, inside, inside), 0)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        from_lists([b"k"], [b"v", b"w"], [(), ()], 0)
    with pytest.raises(ValueError, match="as many"):
        from_lists([b"k"], [b"v"], [(), ()], 0)
    with pytest.raises(ValueError, match="as many"):
        from_lists([b"k"], [b"v"], [()], [1, 2])
    with pytest.raises(ValueError, match="as many"):
        from_columns(None, ByteColumn.from_list([b"v", b"w"]), np.array([1]))


def test_an_output_of_lists_is_taken_as_it_is() -> None:
    output = Output("t", 0, [None], [b"v"], [[("h", b"x")]], 12)
    assert read(stamped(batches_of(output))) == [(None, b"v", [("h", b"x")], 12)]


CHECKSUMS = [by_tables, by_instruction] if has_instruction() else [by_tables]


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 9))
def test_checksum_is_that_of_aiokafka(data: bytes, start: int) -> None:
    """Each way that this processor can go, from any byte on."""
    start = min(start, len(data))
    column = np.frombuffer(data, np.uint8)
    assert {each(column, start, len(data)) for each in CHECKSUMS} == {calc_crc32c(data[start:])}


def test_checksum_by_tables_where_numba_compiles_for_another_processor() -> None:
    """As a build for a whole fleet is: the instruction may be missing on the machine that runs it."""
    script = (
        "from weir.kafka import _crc32c as crc, record_batch as rb;"
        "from aiokafka.record.util import calc_crc32c;"
        "assert crc.crc32c is crc.by_tables;"
        "(batch,) = rb.from_lists([b'k'], [b'v' * 1000], [()], 0); batch.stamp(1, 0, 0, transactional=False);"
        "wire = batch.data.tobytes(); assert int.from_bytes(wire[17:21], 'big') == calc_crc32c(wire[21:])"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checksum_of_the_standard() -> None:
    """RFC 3720, B.4: 32 bytes of zeros, and 0 to 31; and the check value of the catalogue."""
    for data, crc in ((bytes(32), 0x8A9136AA), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)):
        assert crc32c(np.frombuffer(data, np.uint8), 0, len(data)) == crc
