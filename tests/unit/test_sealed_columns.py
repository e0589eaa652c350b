"""Ids, pseudonyms and seals of columns are those of the plain path, whatever the strings hold."""

import base64
import hmac
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.codec.columns import StringColumn
from weir.columns import ByteColumn
from weir.crypto import Compartment, DataKey, Opener, Pseudonymizer, Sealer, Secret, Suite
from weir.crypto import columns as sealing
from weir.crypto._openssl import gcm_context
from weir.crypto.envelope import envelope_header
from weir.errors import IntegrityError
from weir.ids import decision_ids

TOPIC = "weir.decisions"
# Around the ends of a block and of a cached line, and the empty one.
LENGTHS = [0, 1, 16, 17, 18, 19, 39, 40, 41, 55, 56, 63, 64, 65, 119, 120, 121, 1000]
texts = st.lists(st.binary(max_size=80), max_size=8)


def key(suite: Suite = Suite.AES_256_GCM) -> DataKey:
    secret = Secret(bytes(range(suite.key_bytes)))
    return DataKey(0x01020304, Compartment(TOPIC, "C3"), 1, suite, secret)


def ids(count: int) -> np.ndarray:
    return np.arange(16 * count, dtype=np.uint32).astype(np.uint8).reshape(count, 16)


def hmacs(secret: bytes, names: list[bytes]) -> list[bytes]:
    return [base64.urlsafe_b64encode(hmac.digest(secret, name, "sha256")[:16])[:22] for name in names]


@settings(deadline=None)
@given(texts, st.sampled_from(["default", "", "租户"]))
def test_an_id_is_the_uuid_that_python_computes(names: list[bytes], tenant: str) -> None:
    column = sealing.decision_id_column(tenant, StringColumn.from_list(names), "payment_fraud")
    assert [row.tobytes() for row in column] == decision_ids(tenant, names, "payment_fraud")


@settings(deadline=None)
@given(texts, st.binary(min_size=32, max_size=32))
def test_a_pseudonym_is_the_hmac_that_python_computes(names: list[bytes], secret: bytes) -> None:
    pseudonyms = Pseudonymizer("bank", Secret(secret))
    column = StringColumn.from_list(names)
    for _ in range(2):  # computed, then remembered
        assert pseudonyms.of_column(column).to_list() == hmacs(secret, names)
    assert pseudonyms.of_all(names) == hmacs(secret, names)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_string_of_any_length_is_hashed_whole(length: int) -> None:
    names = [os.urandom(length), b"another", os.urandom(length)]
    column = StringColumn.from_list(names)
    found = sealing.decision_id_column("bank", column, "kind")
    assert [row.tobytes() for row in found] == decision_ids("bank", names, "kind")
    assert sealing.PseudonymColumns(Secret(bytes(32))).of(column).to_list() == hmacs(bytes(32), names)


def test_a_full_cache_of_pseudonyms_forgets_and_stays_right() -> None:
    small = sealing.PseudonymColumns(Secret(bytes(32)), cache_rows=2)
    names = [b"account-%d" % (number % 7) for number in range(50)]
    assert small.of(StringColumn.from_list(names)).to_list() == hmacs(bytes(32), names)
    assert small.computed_total > 7
    large = sealing.PseudonymColumns(Secret(bytes(32)))
    large.of(StringColumn.from_list(names))
    assert large.computed_total == 7


@pytest.mark.parametrize("suite", list(Suite))
@settings(deadline=None)
@given(values=texts)
def test_a_sealed_column_opens_as_a_sealed_batch_does(suite: Suite, values: list[bytes]) -> None:
    sealer, opener, record_ids = Sealer(TOPIC, key(suite)), Opener(), ids(len(values))
    opener.add(key(suite))
    column = sealer.seal_column(ByteColumn.from_list(values), record_ids, 7).to_list()
    batch = sealer.seal_batch(values, [each.tobytes() for each in record_ids], 7)
    for sealed, again, value, record_id in zip(column, batch, values, record_ids, strict=True):
        assert sealed is not None
        assert len(sealed) == len(again)
        header = envelope_header(7, record_id.tobytes())
        assert opener.open(sealed, TOPIC, header) == opener.open(again, TOPIC, header) == value
        with pytest.raises(IntegrityError):
            opener.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), TOPIC, header)


@settings(deadline=None)
@given(texts, st.binary(max_size=200))
def test_openssl_seals_byte_for_byte_as_the_plain_cipher(values: list[bytes], context: bytes) -> None:
    """Of the same IVs; where this Python has no OpenSSL to call, the plain cipher stands against itself."""
    plain = Sealer(TOPIC, key())._sealing.encrypt
    ivs, record_ids = os.urandom(12 * len(values)), ids(len(values))
    column = StringColumn.from_list(values)
    by_row = sealing.PlainColumnCipher(plain).seal(b"front", ivs, context, column, record_ids)
    by_loop = sealing.cipher_of(gcm_context(key()), plain).seal(b"front", ivs, context, column, record_ids)
    assert by_row.to_list() == by_loop.to_list()


def test_this_python_has_an_openssl_to_call_or_is_known_not_to() -> None:
    """Python's own ssl module says whether it is linked with a library that can be asked by name."""
    linked = subprocess.run(
        [sys.executable, "-c", "import _ssl, ctypes; ctypes.CDLL(_ssl.__file__).EVP_EncryptUpdate"],
        check=False,
        capture_output=True,
    )
    context = gcm_context(key())
    assert (context is not None) == (linked.returncode == 0)
    assert isinstance(sealing.cipher_of(context, bytes.join), sealing.NativeColumnCipher) == (
        context is not None
    )
    assert gcm_context(key(Suite.SM4_GCM)) is None


def test_a_key_may_be_wiped_as_soon_as_its_sealer_is_made() -> None:
    passing, opener = key(), Opener()
    opener.add(key())
    sealer = Sealer(TOPIC, passing)
    passing.secret.wipe()
    [sealed] = sealer.seal_column(ByteColumn.from_list([b"a"]), ids(1), 7).to_list()
    assert sealed is not None
    assert opener.open(sealed, TOPIC, envelope_header(7, ids(1).tobytes())) == b"a"


def test_every_record_has_an_iv_of_its_own() -> None:
    sealed = Sealer(TOPIC, key()).seal_column(ByteColumn.from_list([b""] * 2000), ids(2000), 1).to_list()
    assert len({value[5:17] for value in sealed if value is not None}) == 2000


def test_a_new_key_seals_from_the_next_column_on() -> None:
    sealer, column = Sealer(TOPIC, key()), ByteColumn.from_list([b"a"])
    before = sealer.seal_column(column, ids(1), 1).to_list()[0]
    other = DataKey(9, Compartment(TOPIC, "C3"), 2, Suite.AES_256_GCM, Secret(b"k" * 32))
    sealer.use(other)
    after = sealer.seal_column(column, ids(1), 1).to_list()[0]
    assert before is not None
    assert after is not None
    assert (before[1:5], after[1:5]) == (b"\1\2\3\4", b"\0\0\0\t")


def outside() -> ByteColumn:
    return ByteColumn(np.zeros(4, np.uint8), np.array([0, 2]), np.array([4, 3]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Sealer(TOPIC, key()).seal_column(outside(), ids(2), 1),
        lambda: Sealer(TOPIC, key(Suite.SM4_GCM)).seal_column(outside(), ids(2), 1),
        lambda: sealing.decision_id_column("bank", outside(), "kind"),
        lambda: Pseudonymizer("bank", Secret(bytes(32))).of_column(outside()),
    ],
)
def test_what_lies_outside_its_buffer_is_not_read(call) -> None:
    with pytest.raises(ValueError, match="outside its buffer"):
        call()


def test_columns_that_do_not_fit_are_refused() -> None:
    column = ByteColumn.from_list([b"a", b"b"])
    for wrong in (ids(1), ids(2)[:, :15], ids(2).astype(np.int8)):
        with pytest.raises(ValueError, match="record ids"):
            Sealer(TOPIC, key()).seal_column(column, wrong, 1)
    with pytest.raises(ValueError, match="NUL"):
        sealing.decision_id_column("a\0b", column, "kind")
    with pytest.raises(ValueError, match="power of two"):
        sealing.PseudonymColumns(Secret(bytes(32)), cache_rows=3)
