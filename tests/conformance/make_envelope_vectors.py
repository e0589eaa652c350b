"""Writes `envelope_vectors.json`: `python tests/conformance/make_envelope_vectors.py`.

The bytes are put together here by hand, from the wire format in docs/concepts/encryption.md and with no part
of `weir`, so that the vectors also serve who writes another implementation. Keys and IVs are fixed: never
use them for anything else.
"""

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import SM4
from cryptography.hazmat.primitives.ciphers.modes import GCM

VECTORS = Path(__file__).with_name("envelope_vectors.json")


def fixed(label: str, count: int) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_128(f"weir envelope vector {label}".encode()).digest(count)


def encrypt(suite: str, key: bytes, iv: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    if suite == "AES_256_GCM":
        return AESGCM(key).encrypt(iv, plaintext, associated_data)
    encryptor = Cipher(SM4(key), GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(associated_data)
    return encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag


def vector(suite: str, number: int, topic: str, key_id: int, schema_id: int, plaintext: bytes) -> dict:
    label = f"{suite} {number}"
    key = fixed(f"key {label}", 32 if suite == "AES_256_GCM" else 16)
    iv, record_id = fixed(f"iv {label}", 12), fixed(f"record {label}", 16)
    associated_data = (
        b"weir.envelope.v1"
        + b"\x00"
        + topic.encode("utf-8")
        + b"\x00"
        + key_id.to_bytes(4, "big")
        + schema_id.to_bytes(4, "big")
        + record_id
    )
    sealed = encrypt(suite, key, iv, plaintext, associated_data)
    return {
        "suite": suite,
        "topic": topic,
        "key_id": key_id,
        "key": key.hex(),
        "schema_id": schema_id,
        "record_id": record_id.hex(),
        "iv": iv.hex(),
        "plaintext": plaintext.hex(),
        "associated_data": associated_data.hex(),
        "header": (b"\x01" + schema_id.to_bytes(4, "big") + record_id).hex(),
        "value": (b"\x01" + key_id.to_bytes(4, "big") + iv + sealed).hex(),
    }


def vectors() -> list[dict]:
    framed = b"\x00" + (3).to_bytes(4, "big") + fixed("avro", 300)
    cases = [
        ("weir.decisions", 0x00000001, 3, framed),
        ("weir.decisions", 0xFFFFFFFF, 0xFFFFFFFF, b""),
        ("weir.risk.dlq", 0x7F0A10C3, 4, b"\x00"),
        ("风险.决策", 0x80000000, 0, fixed("one block", 16)),
    ]
    return [
        vector(suite, number, *case)
        for suite in ("AES_256_GCM", "SM4_GCM")
        for number, case in enumerate(cases)
    ]


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=2) + "\n", encoding="utf-8")
