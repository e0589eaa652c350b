"""Versions of the knowledge in a folder.

knowledge/
  current               the name of the version in use, one line; replaced in one step
  2-1f0c9a7be301/       number and the first digits of the manifest's SHA-256
    manifest.json       what it holds, and the SHA-256 of each file
    passages.jsonl      one passage a line
    quarantine.jsonl    passages that are kept out, with the reason
    vectors.npy         (n, d) float32 of length 1, where an encoder made them
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from services.chat.domain import Language
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing
from services.chat.knowledge.store import (
    NAME,
    Content,
    Knowledge,
    Manifest,
    checked_manifest,
    manifest_of,
    name_of,
    number_of,
    parts_of,
    read_parts,
)
from services.chat.knowledge.vectors import VectorIndex
from weir.files import sync_folder

_CURRENT = "current"


class FolderStore:
    """The embedded store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    def versions(self) -> list[str]:
        """Names of the versions that are whole, oldest first."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(names, key=number_of)

    def current(self) -> str | None:
        """The name in the pointer; None before the first import.

        Raises:
            KnowledgeBroken: the pointer names no version.
        """
        try:
            name = (self.root / _CURRENT).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise KnowledgeBroken(self.root / _CURRENT, f"can't be read ({type(error).__name__})") from None
        if not NAME.fullmatch(name):
            raise KnowledgeBroken(self.root / _CURRENT, "names no version")
        return name

    def manifest(self, name: str) -> Manifest:
        """What a version holds; its other files are not read.

        Raises:
            KnowledgeMissing: no such version.
            KnowledgeBroken: the manifest is not what the folder's name says.
        """
        folder = self.root / name
        if not folder.is_dir():
            raise KnowledgeMissing(f"{self.root}: no version {name[:40]}. Try `weir knowledge list`.")
        try:
            return checked_manifest(name, _read(folder, "manifest.json"))
        except ValueError as error:
            raise KnowledgeBroken(folder, str(error)) from None

    def open(self, name: str) -> Knowledge:
        """The version; each file is hashed as it is read.

        Raises:
            KnowledgeMissing: no such version.
            KnowledgeBroken: a byte differs, a file is missing, or they do not fit together.
        """
        manifest, folder = self.manifest(name), self.root / name
        files = {file: _read(folder, file) for file in manifest.files}
        try:
            return Knowledge(name, manifest, read_parts(manifest, files))
        except ValueError as error:
            raise KnowledgeBroken(folder, str(error)) from None

    def indexes(self, name: str) -> dict[Language, VectorIndex]:
        """None: the vectors come with the version, and are compared in memory."""
        return {}

    def close(self) -> None:
        """It holds nothing."""

    def add(self, content: Content, created_ms: int) -> str:
        """Write a version beside the others; not yet in use.

        It is written under a name that no reader looks at, and renamed when all of it is on the disk.

        Raises:
            OSError: the disk is full or not writable; the other versions stay.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        parts = parts_of(content)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
        try:
            for file, data in parts.items():
                _write(partial / file, data)
            for number in range(number_of(names[-1]) + 1 if (names := self.versions()) else 1, 10**9):
                manifest = manifest_of(content, parts, number, created_ms)
                # Another import may have taken the number meanwhile; the claim is a folder only one can make.
                if self._claim(number):
                    _write(partial / "manifest.json", manifest)
                    partial.chmod(0o755)
                    partial.rename(self.root / name_of(number, manifest))
                    sync_folder(self.root)
                    return name_of(number, manifest)
            raise KnowledgeMissing(f"{self.root}: no number is left for a version.")
        except BaseException:  # told onwards: no half of a version stays, whatever ended it
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _claim(self, number: int) -> bool:
        try:
            (self.root / f".number-{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def use(self, name: str) -> None:
        """Let the pointer name this version, after every byte of it was checked.

        Raises:
            KnowledgeMissing: no such version.
            KnowledgeBroken: it is damaged; the pointer stays.
        """
        self.open(name)
        descriptor, temporary = tempfile.mkstemp(prefix=".current-", dir=self.root)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(name.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.root / _CURRENT)
        except BaseException:  # told onwards: the pointer stays as it was, whatever ended this
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(temporary)
            raise
        sync_folder(self.root)


def _read(folder: Path, file: str) -> bytes:
    if "/" in file or file.startswith("."):
        raise KnowledgeBroken(folder, "its manifest names a file outside of it")
    try:
        return (folder / file).read_bytes()
    except OSError as error:
        raise KnowledgeBroken(folder, f"{file} can't be read ({type(error).__name__})") from None


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
