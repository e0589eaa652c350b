"""Key-encryption keys: what wraps data keys at rest, behind one protocol.

`FileKekProvider` keeps them in a directory of this machine. An HSM (PKCS#11) or Vault Transit takes its place
by the same protocol: nothing above it sees a KEK's material, and each call may take a network's time.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weir.crypto.secret import Compartment, Secret, Suite
from weir.errors import ConfigError, IntegrityError, MissingPart
from weir.files import sync_folder

_KEK_BYTES = 32
_IV_BYTES = 12
_FILE = re.compile(r"kek-(\d{6})\.key")


class KeystoreRefused(ConfigError):
    """The keystore is open to others, or not a keystore; nothing was read from it."""


class KekUnknown(MissingPart):
    """A wrapped key names a KEK that the provider does not hold."""

    def __init__(self, kek_id: str, where: str) -> None:
        self.kek_id = kek_id
        super().__init__(f"{where}: no key-encryption key {kek_id}. Restore the keystore from its backup.")


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A key under a key-encryption key; safe to store."""

    kek_id: str
    blob: bytes


class KekProvider(Protocol):
    """Wraps and unwraps keys. `context` is bound to the blob: another context does not unwrap."""

    async def current_kek_id(self) -> str:
        """The KEK that `wrap` uses now."""

    async def wrap(self, secret: Secret, context: bytes) -> WrappedKey:
        """`secret` under the current KEK."""

    async def unwrap(self, wrapped: WrappedKey, context: bytes) -> Secret:
        """The secret; KekUnknown or IntegrityError when it cannot be had."""


def data_key_context(key_id: int, compartment: Compartment, epoch: int, suite: Suite) -> bytes:
    """What a wrapped data key is bound to: a row cannot pass for another key's, topic's or epoch's."""
    numbers = key_id.to_bytes(4, "big") + epoch.to_bytes(4, "big") + bytes([suite])
    return b"data-key\0" + f"{compartment.topic}\0{compartment.data_class}\0".encode() + numbers


def pseudonym_key_context(tenant: str) -> bytes:
    """What a wrapped pseudonym key is bound to."""
    return b"pseudonym-key\0" + tenant.encode()


class FileKekProvider:
    """KEKs as files `kek-000001.key` of 32 bytes; the highest number wraps, all unwrap.

    Directory 0700, files 0600 (or less), owned by this process's user: anything looser is refused. The
    directory is looked at again on each use, so `rotate` in another process is seen at once.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def create(cls, directory: Path) -> "FileKekProvider":
        """A keystore with at least one KEK; an existing one is left as it is.

        Raises:
            KeystoreRefused: it exists with loose permissions, another owner, or is no directory.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        provider = cls(directory)
        if not provider.kek_ids():
            provider.rotate()
        return provider

    def kek_ids(self) -> list[str]:
        """All KEKs, oldest first.

        Raises:
            KeystoreRefused, MissingPart: the directory is not there, or not fit to hold keys.
        """
        self._check_directory()
        return sorted(path.stem for path in self._directory.iterdir() if _FILE.fullmatch(path.name))

    def rotate(self) -> str:
        """Makes the next KEK, durable before it returns, and gives its id. Older ones still unwrap."""
        existing = self.kek_ids()
        number = int(existing[-1].removeprefix("kek-")) + 1 if existing else 1
        temporary = self._directory / f".new-{os.getpid()}-{number}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                os.write(descriptor, os.urandom(_KEK_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # A link, not a rename: it fails when another process took the number, and never replaces a key.
            while True:
                kek_id = f"kek-{number:06d}"
                try:
                    os.link(temporary, self._directory / f"{kek_id}.key")
                    break
                except FileExistsError:
                    number += 1
        finally:
            temporary.unlink()
        sync_folder(self._directory)
        return kek_id

    async def current_kek_id(self) -> str:
        """The newest KEK; MissingPart when there is none."""
        kek_ids = self.kek_ids()
        if not kek_ids:
            raise MissingPart(
                f"{self._directory}: no key-encryption key in it. Make one: `weir keys new-kek`."
            )
        return kek_ids[-1]

    async def wrap(self, secret: Secret, context: bytes) -> WrappedKey:
        """AES-256-GCM: IV, ciphertext, tag; bound to the KEK's id and `context`."""
        kek_id = await self.current_kek_id()
        iv = os.urandom(_IV_BYTES)
        with self._cipher(kek_id) as cipher:
            return WrappedKey(kek_id, iv + cipher.encrypt(iv, secret.reveal(), _bound(kek_id, context)))

    async def unwrap(self, wrapped: WrappedKey, context: bytes) -> Secret:
        """The key that `wrap` was given.

        Raises:
            KekUnknown: its KEK is not in the directory.
            IntegrityError: blob or context is not what was wrapped.
        """
        iv, sealed = wrapped.blob[:_IV_BYTES], wrapped.blob[_IV_BYTES:]
        with self._cipher(wrapped.kek_id) as cipher:
            try:
                return Secret(cipher.decrypt(iv, sealed, _bound(wrapped.kek_id, context)))
            except (InvalidTag, ValueError):
                raise IntegrityError(
                    f"A key wrapped with {wrapped.kek_id} does not unwrap: it was changed, or the keystore "
                    f"{self._directory} is not the one it was wrapped with. Restore both from one backup."
                ) from None

    @contextmanager
    def _cipher(self, kek_id: str) -> Iterator[AESGCM]:
        self._check_directory()
        path = self._directory / f"{kek_id}.key"
        if not _FILE.fullmatch(path.name):
            raise KekUnknown(kek_id, str(self._directory))
        material = Secret(_read_private(path, kek_id))
        try:
            if len(material) != _KEK_BYTES:
                raise IntegrityError(f"{path}: not {_KEK_BYTES} bytes. Restore it from its backup.")
            yield AESGCM(material.reveal())
        finally:
            material.wipe()

    def _check_directory(self) -> None:
        try:
            status = self._directory.lstat()
        except FileNotFoundError:
            raise MissingPart(
                f"{self._directory}: the keystore is not there. Restore it, or set keystore_dir."
            ) from None
        if not stat.S_ISDIR(status.st_mode):
            raise KeystoreRefused(f"{self._directory}: not a directory (links are refused too).")
        _check_private(self._directory, status, 0o700)

    def __repr__(self) -> str:
        return f"FileKekProvider({str(self._directory)!r})"


def _bound(kek_id: str, context: bytes) -> bytes:
    return b"weir.kek.v1\0" + kek_id.encode() + b"\0" + context


def _check_private(path: Path, status: os.stat_result, mode: int) -> None:
    actual = stat.S_IMODE(status.st_mode)
    if actual & ~mode:
        raise KeystoreRefused(
            f"{path}: permissions {actual:04o} are too open for keys. Run `chmod {mode:04o} {path}`."
        )
    if status.st_uid != os.geteuid():
        raise KeystoreRefused(
            f"{path}: owned by user {status.st_uid}, not by {os.geteuid()} who runs this. Correct the owner."
        )


def _read_private(path: Path, kek_id: str) -> bytearray:
    try:
        # The opened file is checked, not the path, so that it cannot be exchanged in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise KekUnknown(kek_id, str(path.parent)) from None
    except OSError as error:
        raise KeystoreRefused(f"{path}: {error.strerror}. It must be a plain file of this user.") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise KeystoreRefused(f"{path}: not a plain file.")
        _check_private(path, status, 0o600)
        material = bytearray(_KEK_BYTES + 1)
        count = file.readinto(material)
        del material[count:]
        return material
