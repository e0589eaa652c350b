"""Every policy that was ever in force, by its SHA-256: so that a decision can be made again under it."""

import hashlib
import os
import tempfile
from pathlib import Path

from weir.errors import IntegrityError, MissingPart
from weir.obs.log import get_logger

log = get_logger("weir.risk.archive")


class PolicyArchive:
    """A folder of policy files, each named by the SHA-256 of its bytes; nothing in it is ever deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, data: bytes) -> None:
        """Keep these bytes, if they are not kept yet. A policy rules all the same when the disk is full."""
        path = self._path(hashlib.sha256(data).hexdigest())
        if path.exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=self._folder, prefix=".policy.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(aside).rename(path)
            except BaseException:  # told onwards; only the half-written file must not stay
                Path(aside).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.error("policy_not_kept", file=path.name, error=error.strerror)

    def read(self, sha256: str) -> bytes:
        """The bytes that were kept.

        Raises:
            MissingPart: they were not. IntegrityError: they were changed since.
        """
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingPart(
                f"{path}: no such policy. Copy it from the data_dir of the worker that had it, or name it."
            ) from None
        except OSError as error:
            raise MissingPart(f"{path}: {error.strerror}. Correct its rights.") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(f"{path} was changed since it was kept. Copy it from another worker.")
        return data

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.toml"
