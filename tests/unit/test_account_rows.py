"""The changelog's rows: exact, small, refused when damaged, read from older versions."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.states import START_MS, frauds_of, payments, random_payments, whole
from weir.columns import ByteColumn
from weir.errors import IntegrityError
from weir.features import _account_rows as account_rows
from weir.features import _layout as layout
from weir.features.accounts import Accounts
from weir.features.spec import FeatureSpec
from weir.features.terminals import Terminals, observe
from weir.state.crc import TABLES, crc32c
from weir.state.row_format import BAD_BODY, GOOD, RowDamaged, RowFormat, spec_tag

SPEC = FeatureSpec()
TAG = spec_tag(SPEC.id)


def format_of(delay: int) -> RowFormat:
    return RowFormat("account", layout.account_bytes(delay), TAG, account_rows.decoders(delay))


def filled(count: int = 60_000, accounts: int = 2_000) -> Accounts:
    table, terminals = Accounts(rows_max=10_000), Terminals(rows_max=1_000)
    batch = random_payments(3, count, accounts=accounts, terminals=100, days=33)
    observe(table, terminals, batch)
    table.learn(frauds_of(batch, 40))
    return table


def records(table: Accounts) -> tuple[list[bytes | None], list[bytes | None]]:
    keys, values = table.encode_rows(np.arange(table.row_count))
    return keys.to_list(), values.to_list()


def crc(data: bytes) -> int:
    return int(crc32c(TABLES, np.frombuffer(data, np.uint8), 0, len(data), 0))


def test_the_checksum_is_crc_32c() -> None:
    """RFC 3720, appendix B.4."""
    assert crc(b"123456789") == 0xE3069283
    assert crc(bytes(32)) == 0x8A9136AA
    assert crc(bytes([0xFF] * 32)) == 0x62A8AB43
    assert crc(bytes(range(32))) == 0x46DD794E


def test_restored_rows_are_the_encoded_ones_byte_for_byte() -> None:
    table = filled()
    keys, values = records(table)
    restored = Accounts(rows_max=10_000, rows_start=1)
    assert restored.restore_rows(keys, values) == table.row_count
    assert restored.rows.content() == table.rows.content()
    assert restored.watermark_ms == table.watermark_ms


def test_a_typical_account_is_small() -> None:
    """One payment a day for a month, and a stranger with three: bytes on the wire."""
    busy, rare = filled(60_000, 2_000), filled(6_000, 2_000)
    assert np.mean([len(value) for value in records(busy)[1]]) < 130
    assert np.mean([len(value) for value in records(rare)[1]]) < 45


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """Rows of any bytes at all, most of them zero, but for what lies behind the last field."""
    delay = draw(st.sampled_from([0, 7, 30]))
    row_bytes = layout.account_bytes(delay)
    block = np.zeros((draw(st.integers(1, 4)), row_bytes), np.uint8)
    for row in block:
        row[:8] = np.frombuffer(struct.pack("<Q", draw(st.integers(1, 2**64 - 1))), np.uint8)
        # Newest time, newest and first hour: the hours are signed, the time may be that of no event.
        row[8:24] = np.frombuffer(draw(st.binary(min_size=16, max_size=16)), np.uint8)
        if draw(st.booleans()):
            row[8:16] = 0xFF
        size = layout.A_FRAUD_U8 + layout.ring_days(delay) - 28
        for _ in range(draw(st.integers(0, 12))):
            value = draw(st.binary(min_size=1, max_size=8))
            at = draw(st.integers(0, size - len(value)))
            row[28 + at : 28 + at + len(value)] = np.frombuffer(value, np.uint8)
    # A sum and its square as they arise, so that what can be computed back occurs.
    for cents, count in draw(st.lists(st.tuples(st.integers(0, 2**26), st.integers(0, 40)), max_size=5)):
        floats, counts = block.view(np.float32), block.view(np.uint16)
        day, row = draw(st.integers(0, 29)), draw(st.integers(0, len(block) - 1))
        unit = draw(st.sampled_from([100.0, 10_000.0]))
        floats[row, layout.A_DAY_SUM_F32 + day] = cents / unit
        floats[row, layout.A_DAY_SQUARE_F32 + day] = (cents / unit) ** 2 / draw(
            st.sampled_from([1, 1.5, 3.7])
        )
        counts[row, layout.A_DAY_COUNT_U16 + day] = count
    return delay, block


@settings(deadline=None, max_examples=300)
@given(blocks())
def test_any_row_comes_back_byte_for_byte(drawn: tuple[int, np.ndarray]) -> None:
    """NaN, infinities, negative zero, saturated counts, hours before 1970."""
    delay, block = drawn
    values = account_rows.encode(block, np.arange(len(block)), delay, TAG)
    assert values.length.max() <= account_rows.ROW_BYTES_MAX
    keys = block.view(np.uint64)[:, 0]
    decoded = format_of(delay).decode(keys, values)
    assert np.array_equal(decoded, block)


def test_the_largest_row_fits_its_budget() -> None:
    block = np.full((1, layout.account_bytes(30)), 0xAB, np.uint8)
    block[0, 24:28] = 0
    block[0, layout.A_FRAUD_U8 + layout.ring_days(30) :] = 0
    values = account_rows.encode(block, np.arange(1), 30, TAG)
    assert values.length[0] <= account_rows.ROW_BYTES_MAX
    assert np.array_equal(format_of(30).decode(block.view(np.uint64)[:, 0], values), block)


def test_any_flipped_bit_is_refused_and_placed() -> None:
    """Every bit of a value and of its key; a value cut short; under another's key; of another spec."""
    table = filled(3_000, 60)
    keys, values = records(table)
    place = 41
    value, key = values[place], keys[place]
    assert value is not None
    assert key is not None

    def refused(key: bytes, value: bytes) -> RowDamaged:
        with pytest.raises(RowDamaged) as caught:
            Accounts(rows_max=100).restore_rows(
                [*keys[:place], key, *keys[place + 1 :]], [*values[:place], value, *values[place + 1 :]]
            )
        assert caught.value.index == place
        assert isinstance(caught.value, IntegrityError)
        return caught.value

    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(key, bytes(flipped))
    for bit in range(64):
        flipped = bytearray(key)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(bytes(flipped), value)
    for size in (0, 3, 7, len(value) - 1):
        refused(key, value[:size])
    assert "checksum" in str(refused(key, values[3] or b""))
    assert "no entity" in str(refused(bytes(8), value))
    assert "no entity" in str(refused(b"short", value))


def test_a_row_of_another_spec_is_named_so() -> None:
    keys, values = records(filled(100, 10))
    other = Accounts(FeatureSpec(label_delay_days=3), rows_max=100)
    with pytest.raises(RowDamaged, match="row 0 of the batch: it was written for another feature spec"):
        other.restore_rows(keys, values)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120), st.integers(1, 2**64 - 1), st.sampled_from([0, 7, 30]))
def test_no_body_breaks_the_decoder(body: bytes, key: int, delay: int) -> None:
    """Whatever lies under a good checksum is a row or is refused; nothing is read beyond its end."""
    head = bytes([account_rows.VERSION]) + struct.pack("<H", TAG)
    value = head + body + struct.pack("<I", crc(struct.pack("<Q", key) + head + body))
    keys = np.array([key], np.uint64)
    decoder, finding = format_of(delay), None
    try:
        rows = decoder.decode(keys, ByteColumn.from_list([value]))
    except RowDamaged as error:
        finding = error.finding
    if finding is None:
        again = account_rows.encode(rows, np.arange(1), delay, TAG)
        assert np.array_equal(decoder.decode(keys, again), rows)
    else:
        assert finding == BAD_BODY


def test_an_older_version_is_read_by_its_own_decoder() -> None:
    """A made-up version 0: hour, newest time and today's count only; both versions in one batch."""

    def decode_0(values: ByteColumn, which: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = np.empty(which.size, np.int8)
        for place, row in enumerate(which.tolist()):
            start = int(values.start[row])
            hour, newest, count = struct.unpack("<iqH", values.buffer[start + 3 : start + 17].tobytes())
            ints, counts = rows.view(np.int32), rows.view(np.uint16)
            ints[row, layout.A_HOUR_I32] = ints[row, layout.A_FIRST_I32] = hour
            rows.view(np.int64)[row, layout.A_NEWEST_I64] = newest
            counts[row, layout.A_DAY_COUNT_U16 + hour // 24 % 30] = count
            found[place] = GOOD
        return found

    new = Accounts(rows_max=100)
    observe(new, Terminals(rows_max=100), payments([(7, 1, 10_000, START_MS, 0)]))
    (new_key,), (new_value,) = records(new)
    hour = START_MS // 3_600_000
    head = b"\0" + struct.pack("<HiqH", TAG, hour, START_MS + 5, 3)
    old_key = struct.pack("<Q", 9)
    old_value = head + struct.pack("<I", crc(old_key + head))

    table = Accounts(rows_max=100)
    with pytest.raises(RowDamaged, match="row 1 of the batch: its version is not one"):
        table.restore_rows([new_key, old_key], [new_value, old_value])
    table.format = RowFormat("account", 512, TAG, {0: decode_0, **account_rows.decoders(7)})
    assert table.restore_rows([new_key, old_key], [new_value, old_value]) == 2
    assert table.rows.content()[7] == new.rows.content()[7]
    features = observe(table, Terminals(rows_max=100), payments([(9, 1, 10_000, START_MS + 3_600_000, 0)]))
    assert features[0, 12] == 3  # account_count_30d
    # Written again it is of the newest version.
    assert {value[0] for value in records(table)[1] if value} == {account_rows.VERSION}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), max_size=60), st.integers(1, 30))
def test_a_changelog_restores_what_its_last_records_say(steps: list[tuple[int, int]], cut: int) -> None:
    """Accounts written again and again and forgotten in between, read in batches cut anywhere."""
    live, terminals = Accounts(rows_max=20), Terminals(rows_max=20)
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    for at, (account, what) in enumerate(steps):
        name = np.array([account], np.uint64)
        if what == 0:
            columns = live.tombstones(name)
            live.evict(name)
        else:
            observe(live, terminals, payments([(account, 1, 10_000 * at, START_MS + at * 3_600_000, 0)]))
            columns = live.encode_rows(live.rows.find(name))
        keys += columns[0].to_list()
        values += columns[1].to_list()
    restored = Accounts(rows_max=20, rows_start=1)
    for at in range(0, len(keys), cut):
        restored.restore_rows(keys[at : at + cut], values[at : at + cut])
    assert restored.rows.content() == live.rows.content()
    assert whole(restored)[1] == list(range(restored.row_count))
