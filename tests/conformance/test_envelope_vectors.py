"""The envelope's bytes are those of the vectors, to the last one; SM4-GCM is RFC 8998's."""

import json
import os

import pytest

from tests.conformance.make_envelope_vectors import VECTORS, vectors
from weir.crypto import (
    Compartment,
    DataKey,
    Opener,
    Sealer,
    Secret,
    Suite,
    envelope_header,
    parse_envelope_header,
)
from weir.crypto.envelope import Sm4Gcm, associated_data
from weir.errors import IntegrityError

CASES = json.loads(VECTORS.read_text(encoding="utf-8"))
each_vector = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['suite']}-{c['key_id']:08x}")


def key_of(case, topic=None):
    return DataKey(
        case["key_id"],
        Compartment(topic or case["topic"], "C3"),
        1,
        Suite[case["suite"]],
        Secret(bytes.fromhex(case["key"])),
    )


def test_the_vectors_in_the_file_are_those_that_the_script_makes():
    assert vectors() == CASES


@each_vector
def test_a_vector_opens(case):
    opener = Opener()
    opener.add(key_of(case))
    value, header = bytes.fromhex(case["value"]), bytes.fromhex(case["header"])
    assert opener.open(value, case["topic"], header).hex() == case["plaintext"]


@each_vector
def test_sealing_with_the_vectors_iv_gives_its_bytes(case, monkeypatch):
    record_id = bytes.fromhex(case["record_id"])
    sealer = Sealer(case["topic"], key_of(case))
    monkeypatch.setattr(os, "urandom", lambda count: bytes.fromhex(case["iv"]))
    [value] = sealer.seal_batch([bytes.fromhex(case["plaintext"])], [record_id], case["schema_id"])
    assert value.hex() == case["value"]
    assert envelope_header(case["schema_id"], record_id).hex() == case["header"]
    assert parse_envelope_header(bytes.fromhex(case["header"])) == (case["schema_id"], record_id)
    bound = associated_data(case["topic"], case["key_id"], case["schema_id"], record_id)
    assert bound.hex() == case["associated_data"]


@each_vector
def test_a_vector_does_not_open_under_another_topic_or_header(case):
    value, header = bytes.fromhex(case["value"]), bytes.fromhex(case["header"])
    other_topic, other_header = Opener(), Opener()
    other_topic.add(key_of(case, topic="elsewhere"))
    other_header.add(key_of(case))
    with pytest.raises(IntegrityError):
        other_topic.open(value, "elsewhere", header)
    with pytest.raises(IntegrityError):
        other_header.open(value, case["topic"], header[:-1] + bytes([header[-1] ^ 1]))


def test_sm4_gcm_is_that_of_rfc_8998():
    """RFC 8998, appendix A.1."""
    cipher = Sm4Gcm(bytes.fromhex("0123456789ABCDEFFEDCBA9876543210"))
    plaintext = b"".join(bytes([b]) * 8 for b in b"\xaa\xbb\xcc\xdd\xee\xff\xee\xaa")
    sealed = cipher.encrypt(
        bytes.fromhex("00001234567800000000ABCD"),
        plaintext,
        bytes.fromhex("FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2"),
    )
    assert sealed.hex().upper() == (
        "17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735"
        "D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D"
        "83DE3541E4C2B58177E065A9BF7B62EC"
    )
