"""Versions of the knowledge: what they hold, and what keeps them.

A version is immutable; its name is its number and the first digits of its manifest's SHA-256. The manifest
holds the SHA-256 of each of its parts, so whoever opens one knows that it is what was written. One is in use.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.chat.domain import Language, Passage
from services.chat.knowledge.errors import KnowledgeMissing
from services.chat.knowledge.vectors import VectorIndex

FORMAT = 1
NAME = re.compile(r"([1-9]\d{0,8})-([0-9a-f]{12})")


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
        for part in (lines_of(self.passages), lines_of(self.quarantined), self.encoder.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """An opened version: every byte of it was checked."""

    name: str
    manifest: Manifest
    content: Content


class Store(Protocol):
    """Keeps versions and says which is in use: a folder, or a database.

    where: for a person, without a secret.
    """

    @property
    def where(self) -> str: ...  # noqa: D102 - said there

    def versions(self) -> Sequence[str]:
        """Names, oldest first."""

    def current(self) -> str | None:
        """The name of the version in use; cheap enough to ask before each question."""

    def manifest(self, name: str) -> Manifest:
        """What a version holds, without reading it."""

    def add(self, content: Content, created_ms: int) -> str:
        """A new version's name; it is whole or not there, and not yet in use."""

    def use(self, name: str) -> None:
        """Put a version in use, in one step, after every byte of it was checked."""

    def open(self, name: str) -> Knowledge:
        """The version, checked."""

    def indexes(self, name: str) -> Mapping[Language, VectorIndex]:
        """What finds the version's passages by their vectors; empty where `open` brings the vectors."""

    def close(self) -> None:
        """Let go of what it holds."""


def parts_of(content: Content) -> dict[str, bytes]:
    """What a version is written as, by the names that its manifest gives."""
    parts = {"passages.jsonl": lines_of(content.passages), "quarantine.jsonl": lines_of(content.quarantined)}
    if content.vectors is not None:
        parts["vectors.npy"] = npy_of(content.vectors)
    return parts


def manifest_of(content: Content, parts: Mapping[str, bytes], number: int, created_ms: int) -> bytes:
    """The manifest of a version with this number."""
    return msgspec.json.encode(
        Manifest(
            format=FORMAT,
            number=number,
            content=content.sha256(),
            created_ms=created_ms,
            encoder=content.encoder if content.vectors is not None else "",
            passages=len(content.passages),
            quarantined=len(content.quarantined),
            documents=dict(sorted(content.documents.items())),
            files={file: hashlib.sha256(data).hexdigest() for file, data in parts.items()},
        )
    )


def name_of(number: int, manifest: bytes) -> str:
    """The version's name."""
    return f"{number}-{hashlib.sha256(manifest).hexdigest()[:12]}"


def checked_manifest(name: str, data: bytes) -> Manifest:
    """The manifest of the version of this name.

    Raises:
        ValueError: it is another one, or of another format; the text says which.
    """
    matched = NAME.fullmatch(name)
    if matched is None or hashlib.sha256(data).hexdigest()[:12] != matched[2]:
        raise ValueError("its manifest is not the one that was written")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ValueError(f"its manifest: {error}") from None
    if manifest.format != FORMAT:
        raise ValueError(f"is of format {manifest.format}, this program reads {FORMAT}")
    return manifest


def read_parts(manifest: Manifest, parts: Mapping[str, bytes]) -> Content:
    """What the parts hold; each is hashed. Vectors are left out where their part is not given.

    Raises:
        ValueError: a byte differs, or they do not fit together; the text says which.
    """
    for part, data in parts.items():
        if hashlib.sha256(data).hexdigest() != manifest.files.get(part):
            raise ValueError(f"{part} differs from its SHA-256 in the manifest")
    try:
        passages = [_PASSAGES.decode(line) for line in parts["passages.jsonl"].splitlines()]
        held = [_QUARANTINED.decode(line) for line in parts["quarantine.jsonl"].splitlines()]
        vectors = None
        if "vectors.npy" in parts:
            vectors = np.load(io.BytesIO(parts["vectors.npy"]), allow_pickle=False)
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        raise ValueError(f"its files do not fit together ({type(error).__name__})") from None
    if len(passages) != manifest.passages or (vectors is not None and len(vectors) != len(passages)):
        raise ValueError("its files do not fit together (lengths differ)")
    return Content(passages, manifest.documents, held, manifest.encoder, vectors)


def npy_of(vectors: NDArray[np.float32]) -> bytes:
    """The vectors as a file of numpy's."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(vectors, np.float32), allow_pickle=False)
    return buffer.getvalue()


def find_in(store: Store, version: str) -> str:
    """The full name of a version of the store, given by its number or name.

    Raises:
        KnowledgeMissing: there is none.
    """
    for name in store.versions():
        if version in (name, str(number_of(name))):
            return name
    raise KnowledgeMissing(f"{store.where}: no version {version[:40]}. Try `weir knowledge list`.")


def number_of(name: str) -> int:
    """The number in a version's name."""
    return int(name.partition("-")[0])


def lines_of(items: Sequence[Passage] | Sequence[Quarantined]) -> bytes:
    """One a line, as JSON."""
    return b"".join(msgspec.json.encode(item) + b"\n" for item in items)
