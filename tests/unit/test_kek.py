"""A file keystore wraps, unwraps, rotates, and refuses to be read when others could read it."""

import os

import pytest

from weir.crypto.kek import (
    FileKekProvider,
    KekUnknown,
    KeystoreRefused,
    WrappedKey,
    data_key_context,
    pseudonym_key_context,
)
from weir.crypto.secret import Compartment, Secret, Suite
from weir.errors import IntegrityError, MissingPart

HERE = Compartment("weir.decisions", "C3")
CONTEXT = data_key_context(7, HERE, 1, Suite.AES_256_GCM)


@pytest.fixture
def keystore(tmp_path):
    return FileKekProvider.create(tmp_path / "keystore")


async def test_a_wrapped_key_unwraps_also_after_a_rotation_and_a_restart(keystore, tmp_path):
    secret = Secret(os.urandom(32))
    wrapped = await keystore.wrap(secret, CONTEXT)
    assert wrapped.kek_id == "kek-000001"
    assert bytes(secret.reveal()) not in wrapped.blob
    assert keystore.rotate() == "kek-000002" == await keystore.current_kek_id()
    assert (await keystore.wrap(secret, CONTEXT)).kek_id == "kek-000002"
    assert await FileKekProvider.create(tmp_path / "keystore").unwrap(wrapped, CONTEXT) == secret


@pytest.mark.parametrize(
    "other",
    [
        data_key_context(8, HERE, 1, Suite.AES_256_GCM),
        data_key_context(7, Compartment("weir.risk.dlq", "C3"), 1, Suite.AES_256_GCM),
        data_key_context(7, Compartment("weir.decisions", "C2"), 1, Suite.AES_256_GCM),
        data_key_context(7, HERE, 2, Suite.AES_256_GCM),
        data_key_context(7, HERE, 1, Suite.SM4_GCM),
        pseudonym_key_context("weir.decisions"),
    ],
)
async def test_a_wrapped_key_does_not_pass_for_another(keystore, other):
    wrapped = await keystore.wrap(Secret(os.urandom(32)), CONTEXT)
    with pytest.raises(IntegrityError):
        await keystore.unwrap(wrapped, other)


async def test_any_flipped_bit_or_another_kek_fails(keystore):
    wrapped = await keystore.wrap(Secret(os.urandom(32)), CONTEXT)
    keystore.rotate()
    for bit in range(8 * len(wrapped.blob)):
        changed = bytearray(wrapped.blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            await keystore.unwrap(WrappedKey(wrapped.kek_id, bytes(changed)), CONTEXT)
    with pytest.raises(IntegrityError):
        await keystore.unwrap(WrappedKey("kek-000002", wrapped.blob), CONTEXT)
    for nowhere in ("kek-000009", "../kek-000001", ""):
        with pytest.raises(KekUnknown):
            await keystore.unwrap(WrappedKey(nowhere, wrapped.blob), CONTEXT)


@pytest.mark.parametrize(("name", "mode"), [("", 0o750), ("", 0o701), ("kek-000001.key", 0o640)])
async def test_loose_permissions_are_refused_with_what_to_do(keystore, tmp_path, name, mode):
    wrapped = await keystore.wrap(Secret(os.urandom(32)), CONTEXT)
    (tmp_path / "keystore" / name).chmod(mode)
    with pytest.raises(KeystoreRefused, match=f"{mode:04o} are too open.*chmod 0[67]00") as caught:
        await keystore.unwrap(wrapped, CONTEXT)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_another_owner_is_refused(keystore, tmp_path):
    wrapped = await keystore.wrap(Secret(os.urandom(32)), CONTEXT)
    os.chown(tmp_path / "keystore" / "kek-000001.key", 12345, -1)
    with pytest.raises(KeystoreRefused, match="owned by user 12345"):
        await keystore.unwrap(wrapped, CONTEXT)


async def test_links_short_files_and_absent_keystores_are_refused(keystore, tmp_path):
    wrapped = await keystore.wrap(Secret(os.urandom(32)), CONTEXT)
    path = tmp_path / "keystore" / "kek-000001.key"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeystoreRefused):
        await keystore.unwrap(wrapped, CONTEXT)
    path.unlink()
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="32 bytes"):
        await keystore.unwrap(wrapped, CONTEXT)
    with pytest.raises(MissingPart, match="not there"):
        await FileKekProvider(tmp_path / "absent").wrap(Secret(bytes(32)), CONTEXT)


def test_files_are_private_and_nothing_else_stays_behind(keystore, tmp_path):
    keystore.rotate()
    assert sorted(p.name for p in (tmp_path / "keystore").iterdir()) == ["kek-000001.key", "kek-000002.key"]
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "keystore").iterdir()} == {0o600}
    assert (tmp_path / "keystore").stat().st_mode & 0o777 == 0o700
