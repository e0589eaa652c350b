"""Versions of the knowledge in a folder: each immutable and checked, one of them in use.

knowledge/
  current               the name of the version in use, one line; replaced in one step
  2-1f0c9a7be301/       number and the first digits of the manifest's SHA-256
    manifest.json       what it holds, and the SHA-256 of each file
    passages.jsonl      one passage a line
    quarantine.jsonl    passages that are kept out, with the reason
    vectors.npy         (n, d) float32 of length 1, where an encoder made them
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.chat.domain import Passage
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing
from weir.files import sync_folder

_CURRENT = "current"
_FORMAT = 1
_NAME = re.compile(r"([1-9]\d{0,8})-([0-9a-f]{12})")


class DocumentEntry(msgspec.Struct, frozen=True):
    """A document as a version knows it; one taken out stays, so that its ids never mean another text.

    version: of the document: it grows when its passages change.
    """

    version: int
    sha256: str
    passages: int = 0
    owner: str = ""
    reviewed_by: str = ""


class Quarantined(msgspec.Struct, frozen=True):
    """A passage that is kept out, why, and its text for who reviews it."""

    id: str
    reason: str
    text: str

    def __repr__(self) -> str:
        return f"Quarantined({self.id!r}, {self.reason!r})"


class Manifest(msgspec.Struct, frozen=True):
    """What a version holds.

    content: SHA-256 over the passages, what is kept out and the encoder's name.
    encoder: whose vectors lie beside; empty without any.
    created_ms: ms since the epoch, UTC.
    """

    format: int
    number: int
    content: str
    created_ms: int
    encoder: str
    passages: int
    quarantined: int
    documents: dict[str, DocumentEntry]
    files: dict[str, str]


_PASSAGES = msgspec.json.Decoder(Passage)
_QUARANTINED = msgspec.json.Decoder(Quarantined)


@dataclass(frozen=True, slots=True)
class Content:
    """What a version is made of: passages, who answers for which document, what is kept out, vectors.

    vectors: (n, d) float32, a row a passage; None without an encoder.
    """

    passages: Sequence[Passage]
    documents: Mapping[str, DocumentEntry]
    quarantined: Sequence[Quarantined] = ()
    encoder: str = ""
    vectors: NDArray[np.float32] | None = None

    def sha256(self) -> str:
        """Of everything that a search depends on."""
        digest = hashlib.sha256()
        for part in (_lines(self.passages), _lines(self.quarantined), self.encoder.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """An opened version: every byte of it was checked."""

    name: str
    manifest: Manifest
    content: Content


class Store(Protocol):
    """Keeps versions and says which is in use. A database takes the folder's place by this."""

    def versions(self) -> Sequence[str]:
        """Names, oldest first."""

    def current(self) -> str | None:
        """The name of the version in use; cheap enough to ask before each question."""

    def add(self, content: Content, created_ms: int) -> str:
        """A new version's name; it is whole or not there, and not yet in use."""

    def use(self, name: str) -> None:
        """Put a version in use, in one step."""

    def open(self, name: str) -> Knowledge:
        """The version, checked."""


class FolderStore:
    """The embedded store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[str]:
        """Names of the versions that are whole, oldest first."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(names, key=_number)

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
        if not _NAME.fullmatch(name):
            raise KnowledgeBroken(self.root / _CURRENT, "names no version")
        return name

    def find(self, version: str) -> str:
        """The full name of a version given by its number or name.

        Raises:
            KnowledgeMissing: there is none.
        """
        for name in self.versions():
            if version in (name, str(_number(name))):
                return name
        raise KnowledgeMissing(f"{self.root}: no version {version[:40]}. Try `weir knowledge list`.")

    def manifest(self, name: str) -> Manifest:
        """What a version holds; its other files are not read.

        Raises:
            KnowledgeMissing: no such version.
            KnowledgeBroken: the manifest is not what the folder's name says.
        """
        folder = self.root / name
        if not folder.is_dir():
            raise KnowledgeMissing(f"{self.root}: no version {name[:40]}. Try `weir knowledge list`.")
        data = _read(folder, "manifest.json")
        matched = _NAME.fullmatch(name)
        if matched is None or hashlib.sha256(data).hexdigest()[:12] != matched[2]:
            raise KnowledgeBroken(folder, "manifest.json is not the one that was written")
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except msgspec.DecodeError as error:
            raise KnowledgeBroken(folder, f"manifest.json: {error}") from None
        if manifest.format != _FORMAT:
            raise KnowledgeBroken(folder, f"is of format {manifest.format}, this program reads {_FORMAT}")
        return manifest

    def open(self, name: str) -> Knowledge:
        """The version; each file is hashed as it is read.

        Raises:
            KnowledgeMissing: no such version.
            KnowledgeBroken: a byte differs, a file is missing, or they do not fit together.
        """
        manifest, folder = self.manifest(name), self.root / name
        files: dict[str, bytes] = {}
        for file, sha256 in manifest.files.items():
            files[file] = _read(folder, file)
            if hashlib.sha256(files[file]).hexdigest() != sha256:
                raise KnowledgeBroken(folder, f"{file} differs from its SHA-256 in the manifest")
        try:
            passages = [_PASSAGES.decode(line) for line in files["passages.jsonl"].splitlines()]
            held = [_QUARANTINED.decode(line) for line in files["quarantine.jsonl"].splitlines()]
            vectors = (
                np.load(io.BytesIO(files["vectors.npy"]), allow_pickle=False)
                if "vectors.npy" in files
                else None
            )
        except (KeyError, ValueError, msgspec.DecodeError) as error:
            raise KnowledgeBroken(folder, f"its files do not fit together ({type(error).__name__})") from None
        if len(passages) != manifest.passages or (vectors is not None and len(vectors) != len(passages)):
            raise KnowledgeBroken(folder, "its files do not fit together (lengths differ)")
        return Knowledge(
            name, manifest, Content(passages, manifest.documents, held, manifest.encoder, vectors)
        )

    def add(self, content: Content, created_ms: int) -> str:
        """Write a version beside the others; not yet in use.

        It is written under a name that no reader looks at, and renamed when all of it is on the disk.

        Raises:
            OSError: the disk is full or not writable; the other versions stay.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        files = {"passages.jsonl": _lines(content.passages), "quarantine.jsonl": _lines(content.quarantined)}
        if content.vectors is not None:
            buffer = io.BytesIO()
            np.save(buffer, content.vectors.astype(np.float32), allow_pickle=False)
            files["vectors.npy"] = buffer.getvalue()
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
        try:
            for file, data in files.items():
                _write(partial / file, data)
            for number in range(_number(names[-1]) + 1 if (names := self.versions()) else 1, 10**9):
                manifest = msgspec.json.encode(
                    Manifest(
                        format=_FORMAT,
                        number=number,
                        content=content.sha256(),
                        created_ms=created_ms,
                        encoder=content.encoder if content.vectors is not None else "",
                        passages=len(content.passages),
                        quarantined=len(content.quarantined),
                        documents=dict(sorted(content.documents.items())),
                        files={file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
                    )
                )
                name = f"{number}-{hashlib.sha256(manifest).hexdigest()[:12]}"
                # Another import may have taken the number meanwhile; the claim is a folder only one can make.
                if self._claim(number):
                    _write(partial / "manifest.json", manifest)
                    partial.chmod(0o755)
                    partial.rename(self.root / name)
                    sync_folder(self.root)
                    return name
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


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _lines(items: Sequence[Passage] | Sequence[Quarantined]) -> bytes:
    return b"".join(msgspec.json.encode(item) + b"\n" for item in items)


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
