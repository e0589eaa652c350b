"""The keyed hash of identifiers, and the table from hash to row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.state.hashing import keyed_hash_columns, keyed_hash_list
from weir.state.table import find, rebuild

KEY = bytes(range(16))
# From the reference implementation's vectors.h: key 00..0f, message 00..(n - 1), n = 0, 1, 7, 8, 15, 63.
VECTORS = {
    0: 0x726FDB47DD0E0E31,
    1: 0x74F839C593DC67FD,
    7: 0xAB0200F58B01D137,
    8: 0x93F5F5799A932462,
    15: 0xA129CA6149BE45E5,
    63: 0x958A324CEB064572,
}


def test_it_is_siphash_2_4() -> None:
    hashes = keyed_hash_list([bytes(range(size)) for size in VECTORS], KEY)
    assert hashes.tolist() == list(VECTORS.values())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=30), st.binary(min_size=16, max_size=16))
def test_a_column_hashes_as_its_strings_alone(strings: list[bytes], key: bytes) -> None:
    hashes = keyed_hash_list(strings, key)
    assert hashes.tolist() == [int(keyed_hash_list([string], key)[0]) for string in strings]
    assert hashes.all()


def test_a_string_outside_its_buffer_is_refused() -> None:
    buffer = np.zeros(4, np.uint8)
    for start, length in ((0, 5), (-1, 2), (3, 2), (0, -1)):
        with pytest.raises(ValueError, match="leaves its buffer"):
            keyed_hash_columns(buffer, np.array([start]), np.array([length]), KEY)
    with pytest.raises(ValueError, match="16 bytes"):
        keyed_hash_list([b"a"], b"short")


@settings(deadline=None)
@given(st.sets(st.integers(1, 2**64 - 1), max_size=200))
def test_every_key_leads_to_its_row_and_no_other_to_any(keys: set[int]) -> None:
    """A full table and keys that differ only in bits that the slot's index ignores."""
    column = np.array(sorted(keys), np.uint64)
    slots = rebuild(column, max(column.size, 1))
    assert [find(slots, key) for key in column] == list(range(column.size))
    absent = np.array(
        [key ^ (1 << 63) for key in keys if key ^ (1 << 63) not in keys and key != 1 << 63], np.uint64
    )
    assert all(find(slots, key) == -1 for key in absent)
