"""What is sealed opens only where it was sealed for; any change is noticed; keys show nowhere."""

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.crypto import (
    Compartment,
    DataKey,
    Opener,
    Pseudonymizer,
    Sealer,
    Secret,
    Suite,
    UnknownKey,
    envelope_header,
    envelope_headers,
    parse_envelope_header,
)
from weir.crypto.envelope import OVERHEAD_BYTES, sealing_key_id
from weir.errors import IntegrityError

TOPIC = "weir.decisions"
RECORD_ID = bytes(range(16))


def data_key(suite=Suite.AES_256_GCM, key_id=0xC0FFEE01, topic=TOPIC, epoch=1):
    return DataKey(key_id, Compartment(topic, "C3"), epoch, suite, Secret(os.urandom(suite.key_bytes)))


def opener_of(*keys):
    opener = Opener()
    for key in keys:
        opener.add(key)
    return opener


@pytest.mark.parametrize("suite", list(Suite))
def test_what_is_sealed_opens(suite):
    key = data_key(suite)
    plaintexts = [b"", b"x", os.urandom(700)]
    ids = [os.urandom(16) for _ in plaintexts]
    values = Sealer(TOPIC, key).seal_batch(plaintexts, ids, 7)
    opener = opener_of(key)
    headers = envelope_headers(7, ids)
    assert headers == [envelope_header(7, i) for i in ids]
    assert [opener.open(v, TOPIC, h) for v, h in zip(values, headers, strict=True)] == plaintexts
    assert [len(v) - len(p) for v, p in zip(values, plaintexts, strict=True)] == [OVERHEAD_BYTES] * 3


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))
def test_open_of_seal_gives_the_plaintext_back(plaintext, schema_id, record_id):
    key = data_key()
    [value] = Sealer(TOPIC, key).seal_batch([plaintext], [record_id], schema_id)
    assert opener_of(key).open(value, TOPIC, envelope_header(schema_id, record_id)) == plaintext


@pytest.mark.parametrize("suite", list(Suite))
def test_any_flipped_bit_fails(suite):
    """Every bit of the value and of the header, one at a time."""
    key = data_key(suite)
    [value] = Sealer(TOPIC, key).seal_batch([b"approve"], [RECORD_ID], 7)
    header = envelope_header(7, RECORD_ID)
    opener = opener_of(key)
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            opener.open(bytes(changed), TOPIC, header)
    for bit in range(8 * len(header)):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            opener.open(value, TOPIC, bytes(changed))


@pytest.mark.parametrize("kept", range(OVERHEAD_BYTES + 6))
def test_a_truncated_value_is_an_integrity_error(kept):
    key = data_key()
    [value] = Sealer(TOPIC, key).seal_batch([b"approve"], [RECORD_ID], 7)
    with pytest.raises(IntegrityError):
        opener_of(key).open(value[:kept], TOPIC, envelope_header(7, RECORD_ID))


def test_a_value_does_not_open_on_another_topic():
    """Also when the other topic's key happens to have the same material and id."""
    key = data_key()
    [value] = Sealer(TOPIC, key).seal_batch([b"approve"], [RECORD_ID], 7)
    elsewhere = DataKey(key.key_id, Compartment("weir.risk.dlq", "C3"), 1, key.suite, key.secret)
    for held in (key, elsewhere):
        with pytest.raises(IntegrityError):
            opener_of(held).open(value, "weir.risk.dlq", envelope_header(7, RECORD_ID))


def test_the_wrong_key_fails_and_an_unknown_key_is_named():
    key, other = data_key(), data_key()
    [value] = Sealer(TOPIC, key).seal_batch([b"approve"], [RECORD_ID], 7)
    with pytest.raises(IntegrityError, match="does not open"):
        opener_of(other).open(value, TOPIC, envelope_header(7, RECORD_ID))
    with pytest.raises(UnknownKey) as caught:
        Opener().open(value, TOPIC, envelope_header(7, RECORD_ID))
    assert caught.value.key_id == key.key_id == sealing_key_id(value)


def test_a_new_key_takes_over_at_the_next_batch_and_the_old_one_still_opens():
    first, second = data_key(key_id=1, epoch=1), data_key(key_id=2, epoch=2)
    sealer, opener = Sealer(TOPIC, first), opener_of(first, second)
    before = sealer.seal_batch([b"a"], [RECORD_ID], 1)
    sealer.use(second)
    after = sealer.seal_batch([b"b"], [RECORD_ID], 1)
    assert (sealer.key_id, sealer.epoch) == (2, 2)
    header = envelope_header(1, RECORD_ID)
    assert [opener.open(v, TOPIC, header) for v in before + after] == [b"a", b"b"]
    with pytest.raises(ValueError, match="belongs to"):
        sealer.use(data_key(topic="weir.risk.dlq"))


def test_every_record_has_its_own_iv():
    values = Sealer(TOPIC, data_key()).seal_batch([b""] * 2000, [RECORD_ID] * 2000, 1)
    assert len({v[5:17] for v in values}) == 2000


def test_a_batch_of_unequal_counts_or_short_ids_is_refused():
    sealer = Sealer(TOPIC, data_key())
    with pytest.raises(ValueError, match="record ids"):
        sealer.seal_batch([b"a", b"b"], [RECORD_ID], 1)
    with pytest.raises(ValueError, match="16 bytes"):
        sealer.seal_batch([b"a", b"b"], [RECORD_ID, b"short"], 1)
    assert sealer.seal_batch([], [], 1) == []


def test_a_header_is_21_bytes_and_reads_back():
    header = envelope_header(2**32 - 1, RECORD_ID)
    assert len(header) == 21
    assert parse_envelope_header(header) == (2**32 - 1, RECORD_ID)
    with pytest.raises(ValueError, match="16 bytes"):
        envelope_header(1, b"")


def test_key_material_shows_in_no_text_and_does_not_pickle():
    material = b"\x00secret-secret-secret-secret-0001"[:32]
    key = DataKey(1, Compartment(TOPIC, "C3"), 1, Suite.AES_256_GCM, Secret(material))
    for shown in (repr(key), str(key), f"{key.secret}", repr(Pseudonymizer("bank", key.secret))):
        assert "secret-secret" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_wiped_secret_holds_zeros():
    secret = Secret(b"x" * 32)
    held = secret.reveal()
    secret.wipe()
    assert len(secret) == 0
    assert not held


@given(st.lists(st.binary(max_size=8), max_size=60))
def test_pseudonyms_are_stable_whatever_the_cache_holds(account_ids):
    small, large = (Pseudonymizer("bank", Secret(bytes(32)), cache_entries_max=n) for n in (2, 1000))
    assert small.of_all(account_ids) == large.of_all(account_ids) == [small.of(a) for a in account_ids]
    assert len(small._young) + len(small._old) <= 2


def test_pseudonyms_are_22_characters_and_differ_by_key():
    one, two = Pseudonymizer("bank", Secret(bytes(32))), Pseudonymizer("bank", Secret(b"\1" * 32))
    # HMAC-SHA-256 with 32 zero bytes over "DE89", first 16 bytes, base64url.
    assert one.of(b"DE89") == b"n7mG68uSQS_Aa_f9Wbb72A"
    assert len(one.of(b"DE89")) == 22
    assert one.of(b"DE89") != two.of(b"DE89")
    assert len(one.hash_key) == 16
    assert one.hash_key != two.hash_key
