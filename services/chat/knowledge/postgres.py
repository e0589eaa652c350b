"""Versions of the knowledge in PostgreSQL, their vectors compared by pgvector.

A version and its passages are written in one transaction, the pointer to the one in use in another; a reader
sees all of a version or nothing. The vectors stay in the database: a worker holds the passages' words alone.
A large version gets an index for each language (HNSW, Malkov and Yashunin 2018); below it every vector is
compared, which is exact.
"""

import asyncio
import hashlib
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from services.chat.domain import Language
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing, KnowledgeStoreAway
from services.chat.knowledge.store import (
    Content,
    Knowledge,
    Manifest,
    checked_manifest,
    lines_of,
    manifest_of,
    name_of,
    npy_of,
    parts_of,
    read_parts,
)
from services.chat.knowledge.vectors import VectorIndex
from weir.errors import ConfigError

DRIVER = "postgresql+pg8000"
_TIMEOUT_S = 10
# Passages of one statement.
_ROWS = 500
# From so many passages of a language on an index pays; HNSW then looks at this many candidates.
INDEX_FROM, _CANDIDATES = 20_000, 200
# Held while a version takes its number. Any number that nobody else takes.
_LOCK = 7_354_211
_SAFE_NAME = re.compile(r"[0-9a-f-]+")
_MADE = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    """CREATE TABLE IF NOT EXISTS weir_knowledge_version (
        number integer PRIMARY KEY, name text NOT NULL UNIQUE,
        manifest bytea NOT NULL, held text NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS weir_knowledge_passage (
        version text NOT NULL REFERENCES weir_knowledge_version (name) ON DELETE CASCADE,
        place integer NOT NULL, id text NOT NULL, language text NOT NULL,
        valid_from_ms bigint, valid_to_ms bigint, line text NOT NULL, embedding vector,
        PRIMARY KEY (version, place))""",
    """CREATE TABLE IF NOT EXISTS weir_knowledge_current (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        name text NOT NULL REFERENCES weir_knowledge_version (name))""",
)
_NAMES = text("SELECT name FROM weir_knowledge_version ORDER BY number")
_LAST = text("SELECT coalesce(max(number), 0) FROM weir_knowledge_version")
_LINES = text("SELECT line FROM weir_knowledge_passage WHERE version = :name ORDER BY place")
_VECTORS = text("SELECT embedding::text FROM weir_knowledge_passage WHERE version = :name ORDER BY place")
_USE = text(
    """INSERT INTO weir_knowledge_current (name) VALUES (:name)
    ON CONFLICT (one) DO UPDATE SET name = excluded.name"""
)
_LOOKS_FAR = text(
    """SELECT set_config('hnsw.ef_search', :candidates, true),
    set_config('hnsw.iterative_scan', 'strict_order', true)"""
)
# The version and the language stand in the text: an index holds for these alone.
_NEAREST = """SELECT id, -({distance}) FROM weir_knowledge_passage
    WHERE version = '{version}' AND language = '{language}'
    AND (valid_from_ms IS NULL OR valid_from_ms <= :now_ms) AND (valid_to_ms IS NULL OR valid_to_ms > :now_ms)
    ORDER BY {distance} LIMIT :count"""
_DISTANCE = "embedding::vector({size}) <#> CAST(:vector AS vector({size}))"
_INSERT = text(
    """INSERT INTO weir_knowledge_passage
    SELECT :version, place, id, language, valid_from_ms, valid_to_ms, line, embedding::vector
    FROM json_to_recordset(CAST(:rows AS json)) AS given (place integer, id text, language text,
        valid_from_ms bigint, valid_to_ms bigint, line text, embedding text)"""
)


class PostgresStore:
    """The store in a database; used from any thread.

    Args:
        url: `postgresql://user:password@host:5432/database`.
        ca: whom to believe; None connects without TLS.
        index_from: passages of one language from which they get an index.

    Raises:
        ConfigError: another kind of URL, or `ca` cannot be read.
    """

    def __init__(self, url: SecretStr, ca: Path | None = None, *, index_from: int = INDEX_FROM) -> None:
        try:
            parsed = make_url(url.get_secret_value())
        except ArgumentError:
            parsed = None
        if parsed is None or parsed.drivername not in ("postgresql", DRIVER) or not parsed.host:
            # It may hold a password, so it is not repeated.
            raise ConfigError("[knowledge] database_url must be like postgresql://user@host:5432/database.")
        options: dict[str, Any] = {"timeout": _TIMEOUT_S, "application_name": "weir-knowledge"}
        if ca is not None:
            options["ssl_context"] = _context(ca)
        self._host = f"{parsed.host}:{parsed.port or 5432}/{parsed.database or ''}"
        self._index_from, self._made = index_from, False
        self._engine = create_engine(
            parsed.set(drivername=DRIVER),
            connect_args=options,
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=12,
            pool_timeout=_TIMEOUT_S,
            # A statement's values are customers' questions and the bank's texts.
            hide_parameters=True,
        )

    @property
    def where(self) -> str:
        """Host, port and database."""
        return self._host

    def close(self) -> None:
        """Disconnect."""
        self._engine.dispose()

    def versions(self) -> list[str]:
        """Names, oldest first; none before the first import.

        Raises:
            KnowledgeStoreAway: the database gave no answer.
        """
        with self._asked() as asked:
            if not self._is_made(asked):
                return []
            return [str(row[0]) for row in asked.execute(_NAMES)]

    def current(self) -> str | None:
        """The version in use; None before the first.

        Raises:
            KnowledgeStoreAway: the database gave no answer.
        """
        with self._asked() as asked:
            if not self._is_made(asked):
                return None
            row = asked.execute(text("SELECT name FROM weir_knowledge_current")).first()
        return None if row is None else str(row[0])

    def manifest(self, name: str) -> Manifest:
        """What a version holds, without reading it.

        Raises:
            KnowledgeMissing: no such version. KnowledgeBroken: another manifest than its name says.
            KnowledgeStoreAway: the database gave no answer.
        """
        with self._asked() as asked:
            return self._manifest(asked, name)[0]

    def open(self, name: str) -> Knowledge:
        """The version without its vectors; each part that is read is hashed.

        Raises:
            KnowledgeMissing: no such version. KnowledgeBroken: a byte differs, or a passage is missing.
            KnowledgeStoreAway: the database gave no answer.
        """
        with self._asked() as asked:
            manifest, held = self._manifest(asked, name)
            lines = asked.execute(_LINES, {"name": name})
            passages = b"".join(row[0].encode() + b"\n" for row in lines)
        parts = {"passages.jsonl": passages, "quarantine.jsonl": held}
        return Knowledge(name, manifest, self._read(manifest, parts))

    def indexes(self, name: str) -> dict[Language, VectorIndex]:
        """What finds the version's passages by their vectors, by language; empty without vectors.

        Raises:
            KnowledgeMissing, KnowledgeBroken, KnowledgeStoreAway: as `manifest`.
        """
        if not self.manifest(name).encoder:
            return {}
        return {language: _Nearest(self._asked, name, language) for language in get_args(Language)}

    def add(self, content: Content, created_ms: int) -> str:
        """A new version in one transaction; not yet in use.

        Raises:
            KnowledgeStoreAway: the database gave no answer, or refused; nothing of the version stays.
        """
        parts = parts_of(content)
        with self._asked() as asked:
            asked.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            for statement in _MADE if not self._is_made(asked) else ():
                asked.execute(text(statement))
            last = int(asked.execute(_LAST).scalar_one())
            manifest = manifest_of(content, parts, last + 1, created_ms)
            name = name_of(last + 1, manifest)
            asked.execute(
                text("INSERT INTO weir_knowledge_version VALUES (:number, :name, :manifest, :held)"),
                {
                    "number": last + 1,
                    "name": name,
                    "manifest": manifest,
                    "held": parts["quarantine.jsonl"].decode(),
                },
            )
            for at in range(0, len(content.passages), _ROWS):
                rows = list(_rows(content, at, min(at + _ROWS, len(content.passages))))
                asked.execute(_INSERT, {"version": name, "rows": json.dumps(rows)})
            self._make_indexes(asked, content, name)
        return name

    def use(self, name: str) -> None:
        """Let the pointer name this version, after every byte of it was checked, its vectors too.

        Raises:
            KnowledgeMissing: no such version. KnowledgeBroken: it is damaged; the pointer stays.
            KnowledgeStoreAway: the database gave no answer.
        """
        manifest = self.open(name).manifest
        with self._asked() as asked:
            if "vectors.npy" in manifest.files:
                found = asked.execute(_VECTORS, {"name": name})
                rows = [json.loads(row[0] or "[]") for row in found]
                self._read_vectors(manifest, rows)
            asked.execute(_USE, {"name": name})

    def _manifest(self, asked: Connection, name: str) -> tuple[Manifest, bytes]:
        row = None
        if self._is_made(asked):
            row = asked.execute(
                text("SELECT manifest, held FROM weir_knowledge_version WHERE name = :name"), {"name": name}
            ).first()
        if row is None:
            raise KnowledgeMissing(f"{self.where}: no version {name[:40]}. Try `weir knowledge list`.")
        try:
            return checked_manifest(name, bytes(row[0])), str(row[1]).encode()
        except ValueError as error:
            raise KnowledgeBroken(f"{self.where} {name}", str(error)) from None

    def _read(self, manifest: Manifest, parts: Mapping[str, bytes]) -> Content:
        try:
            return read_parts(manifest, parts)
        except ValueError as error:
            raise KnowledgeBroken(f"{self.where} version {manifest.number}", str(error)) from None

    def _read_vectors(self, manifest: Manifest, rows: Sequence[Sequence[float]]) -> None:
        try:
            data = npy_of(np.array(rows, np.float32))
        except ValueError:
            data = b""  # of different lengths
        if hashlib.sha256(data).hexdigest() != manifest.files["vectors.npy"]:
            raise KnowledgeBroken(
                f"{self.where} version {manifest.number}", "its vectors are not those written"
            )

    def _make_indexes(self, asked: Connection, content: Content, name: str) -> None:
        if content.vectors is None:
            return
        for language in get_args(Language):
            if sum(passage.language == language for passage in content.passages) >= self._index_from:
                asked.execute(
                    text(
                        "CREATE INDEX ON weir_knowledge_passage USING hnsw "
                        f"((embedding::vector({content.vectors.shape[1]})) vector_ip_ops) "
                        f"WHERE version = '{_safe(name)}' AND language = '{language}'"
                    )
                )

    def _is_made(self, asked: Connection) -> bool:
        """Whether the tables are there; once they are, nobody asks again."""
        if not self._made:
            found = asked.execute(text("SELECT to_regclass('weir_knowledge_current')")).scalar_one()
            self._made = found is not None
        return self._made

    @contextmanager
    def _asked(self) -> Iterator[Connection]:
        """A transaction, committed at the end."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            # The driver's words may hold what was sent.
            raise KnowledgeStoreAway(self.where, type(error).__name__) from None


class _Nearest:
    """See `VectorIndex`."""

    def __init__(self, asked: Callable[[], Any], name: str, language: Language) -> None:
        self._asked, self._name, self._language = asked, _safe(name), language

    async def nearest(self, vector: NDArray[np.float32], *, count: int, now_ms: int) -> dict[str, float]:
        """Cosines of the nearest valid passages, nearest first; `vector` is (d,) float32 of length 1.

        Raises:
            KnowledgeStoreAway: the database gave no answer.
        """
        return await asyncio.to_thread(self._find, vector, count, now_ms)

    def _find(self, vector: NDArray[np.float32], count: int, now_ms: int) -> dict[str, float]:
        distance = _DISTANCE.format(size=len(vector))
        query = text(_NEAREST.format(distance=distance, version=self._name, language=self._language))
        values = {"vector": _as_text(vector), "now_ms": now_ms, "count": count}
        with self._asked() as asked:
            # Passages that are not valid now are passed over, and others looked for in their place.
            asked.execute(_LOOKS_FAR, {"candidates": str(_CANDIDATES)})
            return {str(name): float(cosine) for name, cosine in asked.execute(query, values)}


def _rows(content: Content, start: int, end: int) -> Iterator[dict[str, object]]:
    for place in range(start, end):
        passage = content.passages[place]
        yield {
            "place": place,
            "id": passage.id,
            "language": passage.language,
            "valid_from_ms": passage.valid_from_ms,
            "valid_to_ms": passage.valid_to_ms,
            "line": lines_of([passage]).decode().removesuffix("\n"),
            "embedding": None if content.vectors is None else _as_text(content.vectors[place]),
        }


def _as_text(vector: NDArray[np.float32]) -> str:
    """As pgvector reads it; each number so that it comes back to the bit."""
    return "[" + ",".join(str(value) for value in vector.astype(np.float32)) + "]"


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError("not a version's name")
    return name


def _context(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[knowledge] database_ca: {error}. It must be a readable PEM file.") from error
