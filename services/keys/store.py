"""Wrapped keys in SQLite: durable when a method returns. No plaintext key is ever written here."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weir.crypto.kek import WrappedKey
from weir.crypto.secret import Compartment, Suite
from weir.errors import IntegrityError, NeighbourUnavailable

_VERSION = 1
_SCHEMA = """
CREATE TABLE data_keys (
    key_id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    data_class TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    suite INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    kek_id TEXT NOT NULL,
    wrapped BLOB NOT NULL,
    UNIQUE (topic, data_class, epoch)
) STRICT;
CREATE TABLE pseudonym_keys (
    tenant TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    kek_id TEXT NOT NULL,
    wrapped BLOB NOT NULL
) STRICT;
"""


class StoreUnavailable(NeighbourUnavailable):
    """The database did not take or give the row: locked, full or not readable."""


class KeyTaken(Exception):
    """The key id, or the compartment's epoch, exists already: draw again."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One data key as it lies in the store: wrapped."""

    key_id: int
    compartment: Compartment
    epoch: int
    suite: Suite
    created_ms: int
    wrapped: WrappedKey


class KeyStore:
    """One connection to `keys.sqlite`; used from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._connection = path, connection

    @classmethod
    def open(cls, path: Path) -> "KeyStore":
        """The store, made when it is not there (file 0600).

        Raises:
            IntegrityError: not such a database, a damaged one, or one of a newer version.
            StoreUnavailable: it cannot be opened.
        """
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        try:
            connection = sqlite3.connect(path, isolation_level=None, timeout=5)
            connection.execute("PRAGMA journal_mode = WAL")
            # A key that was handed out must not be forgotten by a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise IntegrityError(f"{path}: version {version}, this Weir reads {_VERSION}. Upgrade Weir.")
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"{path}: {error}. Free it, or set another data_dir.") from error
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"{path}: {error}. Restore it from its backup.") from error
        if damage != "ok":
            raise IntegrityError(f"{path}: {damage}. Restore it from its backup.")
        return cls(path, connection)

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()

    def is_empty(self) -> bool:
        """True when no key of either kind is stored."""
        return not self._rows("SELECT 1 FROM data_keys UNION ALL SELECT 1 FROM pseudonym_keys LIMIT 1", ())

    def newest(self, compartment: Compartment) -> StoredKey | None:
        """The compartment's key of the highest epoch; None when it has none yet."""
        found = self._rows(
            "SELECT * FROM data_keys WHERE topic = ? AND data_class = ? ORDER BY epoch DESC LIMIT 1",
            (compartment.topic, compartment.data_class),
        )
        return _stored(found[0]) if found else None

    def by_id(self, key_id: int) -> StoredKey | None:
        """The key with this id; None when there is none."""
        found = self._rows("SELECT * FROM data_keys WHERE key_id = ?", (key_id,))
        return _stored(found[0]) if found else None

    def all_keys(self) -> list[StoredKey]:
        """Every data key, by compartment and epoch."""
        rows = self._rows("SELECT * FROM data_keys ORDER BY topic, data_class, epoch", ())
        return [_stored(row) for row in rows]

    def add(self, key: StoredKey) -> None:
        """Stores a new key; with an epoch above the newest it becomes the compartment's current one.

        Raises:
            KeyTaken: id or epoch exists.
        """
        self._write(
            "INSERT INTO data_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key.key_id,
                key.compartment.topic,
                key.compartment.data_class,
                key.epoch,
                int(key.suite),
                key.created_ms,
                key.wrapped.kek_id,
                key.wrapped.blob,
            ),
        )

    def pseudonym_key(self, tenant: str) -> WrappedKey | None:
        """The tenant's wrapped pseudonym key; None when it has none yet."""
        found = self._rows("SELECT kek_id, wrapped FROM pseudonym_keys WHERE tenant = ?", (tenant,))
        return WrappedKey(found[0][0], found[0][1]) if found else None

    def pseudonym_keys(self) -> list[tuple[str, WrappedKey]]:
        """Every tenant with its wrapped key."""
        rows = self._rows("SELECT tenant, kek_id, wrapped FROM pseudonym_keys ORDER BY tenant", ())
        return [(tenant, WrappedKey(kek_id, blob)) for tenant, kek_id, blob in rows]

    def add_pseudonym_key(self, tenant: str, wrapped: WrappedKey, created_ms: int) -> None:
        """Stores a tenant's first and only key.

        Raises:
            KeyTaken: it has one.
        """
        self._write(
            "INSERT INTO pseudonym_keys (tenant, created_ms, kek_id, wrapped) VALUES (?, ?, ?, ?)",
            (tenant, created_ms, wrapped.kek_id, wrapped.blob),
        )

    def rewrap(
        self, data_keys: Sequence[tuple[int, WrappedKey]], pseudonym_keys: Sequence[tuple[str, WrappedKey]]
    ) -> None:
        """Replaces all these wrapped keys in one transaction."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "UPDATE data_keys SET kek_id = ?, wrapped = ? WHERE key_id = ?",
                    [(wrapped.kek_id, wrapped.blob, key_id) for key_id, wrapped in data_keys],
                )
                self._connection.executemany(
                    "UPDATE pseudonym_keys SET kek_id = ?, wrapped = ? WHERE tenant = ?",
                    [(wrapped.kek_id, wrapped.blob, tenant) for tenant, wrapped in pseudonym_keys],
                )
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise self._unavailable(error) from error

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            with closing(self._connection.execute(statement, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.OperationalError as error:
            raise self._unavailable(error) from error

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.IntegrityError as error:
            raise KeyTaken from error
        except sqlite3.OperationalError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailable:
        return StoreUnavailable(f"{self._path}: {error}. Free it or make room; the key service tries again.")


def _stored(row: tuple[Any, ...]) -> StoredKey:
    # The tables are STRICT: SQLite has checked the types.
    key_id, topic, data_class, epoch, suite, created_ms, kek_id, wrapped = row
    return StoredKey(
        key_id, Compartment(topic, data_class), epoch, Suite(suite), created_ms, WrappedKey(kek_id, wrapped)
    )
