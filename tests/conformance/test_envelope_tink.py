"""Google's own Tink reads what we seal, and we open what Tink seals, with keys of either side's making."""

import os

import pytest
import tink
from tink import aead, secret_key_access
from tink.proto import aes_gcm_pb2, tink_pb2

from weir.crypto import Compartment, DataKey, Opener, Sealer, Secret, Suite, envelope_header
from weir.crypto.envelope import associated_data, sealing_key_id
from weir.errors import IntegrityError

TOPIC = "weir.decisions"
SCHEMA_ID = 3
RECORD_ID = bytes(range(16))
PLAINTEXTS = [b"", b"approve", os.urandom(700), os.urandom(100_000)]
TYPE_URL = "type.googleapis.com/google.crypto.tink.AesGcmKey"

aead.register()


def tink_aead(*keys):
    """Tink's primitive over our keys; the last one is its primary."""
    keyset = tink_pb2.Keyset(primary_key_id=keys[-1].key_id)
    for key in keys:
        material = aes_gcm_pb2.AesGcmKey(version=0, key_value=bytes(key.secret.reveal()))
        keyset.key.append(
            tink_pb2.Keyset.Key(
                key_data=tink_pb2.KeyData(
                    type_url=TYPE_URL,
                    value=material.SerializeToString(),
                    key_material_type=tink_pb2.KeyData.SYMMETRIC,
                ),
                status=tink_pb2.ENABLED,
                key_id=key.key_id,
                output_prefix_type=tink_pb2.TINK,
            )
        )
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(aead.Aead)


def data_key(key_id, epoch=1):
    return DataKey(key_id, Compartment(TOPIC, "C3"), epoch, Suite.AES_256_GCM, Secret(os.urandom(32)))


def bound(key):
    return associated_data(TOPIC, key.key_id, SCHEMA_ID, RECORD_ID)


@pytest.mark.parametrize("key_id", [1, 0x7F0A10C3, 0x80000000, 0xFFFFFFFF])
def test_tink_reads_what_we_seal(key_id):
    key = data_key(key_id)
    primitive = tink_aead(key)
    values = Sealer(TOPIC, key).seal_batch(PLAINTEXTS, [RECORD_ID] * len(PLAINTEXTS), SCHEMA_ID)
    assert [primitive.decrypt(value, bound(key)) for value in values] == PLAINTEXTS


@pytest.mark.parametrize("key_id", [1, 0x7F0A10C3, 0x80000000, 0xFFFFFFFF])
def test_we_open_what_tink_seals(key_id):
    key = data_key(key_id)
    opener, primitive = Opener(), tink_aead(key)
    opener.add(key)
    header = envelope_header(SCHEMA_ID, RECORD_ID)
    for plaintext in PLAINTEXTS:
        value = primitive.encrypt(plaintext, bound(key))
        assert sealing_key_id(value) == key_id
        assert opener.open(value, TOPIC, header) == plaintext


def test_we_open_what_a_key_of_tinks_own_making_seals():
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    serialized = tink.proto_keyset_format.serialize(handle, secret_key_access.TOKEN)
    held = tink_pb2.Keyset.FromString(serialized).key[0]
    material = aes_gcm_pb2.AesGcmKey.FromString(held.key_data.value).key_value
    key = DataKey(held.key_id, Compartment(TOPIC, "C3"), 1, Suite.AES_256_GCM, Secret(material))
    opener = Opener()
    opener.add(key)
    value = handle.primitive(aead.Aead).encrypt(b"approve", bound(key))
    assert opener.open(value, TOPIC, envelope_header(SCHEMA_ID, RECORD_ID)) == b"approve"


def test_after_a_rotation_tink_reads_both_epochs_from_one_keyset():
    first, second = data_key(1, epoch=1), data_key(2, epoch=2)
    sealer = Sealer(TOPIC, first)
    [old] = sealer.seal_batch([b"old"], [RECORD_ID], SCHEMA_ID)
    sealer.use(second)
    [new] = sealer.seal_batch([b"new"], [RECORD_ID], SCHEMA_ID)
    primitive = tink_aead(first, second)
    assert [primitive.decrypt(old, bound(first)), primitive.decrypt(new, bound(second))] == [b"old", b"new"]


def test_both_refuse_a_flipped_bit_and_other_associated_data():
    key = data_key(7)
    opener, primitive = Opener(), tink_aead(key)
    opener.add(key)
    [value] = Sealer(TOPIC, key).seal_batch([b"approve"], [RECORD_ID], SCHEMA_ID)
    for bit in range(0, 8 * len(value), 3):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(tink.TinkError):
            primitive.decrypt(bytes(changed), bound(key))
        with pytest.raises(IntegrityError):
            opener.open(bytes(changed), TOPIC, envelope_header(SCHEMA_ID, RECORD_ID))
    with pytest.raises(tink.TinkError):
        primitive.decrypt(value, bound(key)[:-1] + b"\xff")
