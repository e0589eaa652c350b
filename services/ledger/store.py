"""The ledger's database: SQLite, MariaDB or MySQL. The first writer of a decision wins."""

import sqlite3
import ssl
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Table, bindparam, event, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.ledger.models import Refused, StoredDecision, decision, refused
from services.ledger.settings import LedgerSettings
from weir.errors import AccessDenied, ConfigError, NeighbourUnavailable, WeirError

# MySQL and MariaDB: wrong password, no right to the database, no such database.
_DENIED = (1044, 1045, 1142)
_UNKNOWN_DATABASE = 1049
_TLS_WANTED = 3159
_READS = {"weir_reads": True}
_DECISION_FIELDS = tuple(StoredDecision.__dataclass_fields__)
_REFUSED_FIELDS = tuple(Refused.__dataclass_fields__)
_VALUES = attrgetter(*_DECISION_FIELDS)
_REFUSED_VALUES = attrgetter(*_REFUSED_FIELDS)


class DatabaseAway(NeighbourUnavailable):
    """The database is locked, full or gone; nothing of the transaction was stored."""


class RowRefused(WeirError):
    """The database takes this batch under no circumstances: a row of it breaks the table."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch: new rows, and those the ledger already had."""

    new_count: int
    duplicate_count: int


class Ledger:
    """The tables behind `url`; `await Ledger.open(settings)`, or `async with`."""

    def __init__(self, engine: AsyncEngine, where: str) -> None:
        self._engine, self.where = engine, where
        self._insert_decision = _insert_first(engine, decision, _DECISION_FIELDS)
        self._insert_refused = _insert_first(engine, refused, _REFUSED_FIELDS)

    @classmethod
    async def open(cls, settings: LedgerSettings) -> Self:
        """The ledger, its tables brought to the newest version.

        Raises:
            DatabaseAway: locked, full or gone; trying again may help.
            AccessDenied, ConfigError: the database refuses, or is not there.
        """
        from services.ledger.migrate import upgrade

        engine, where = make_engine(settings)
        try:
            with in_words(where):
                async with engine.connect() as connection:
                    await connection.run_sync(upgrade)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, where)

    async def close(self) -> None:
        """Gives the connections back."""
        await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def put(self, decisions: Sequence[StoredDecision], refusals: Sequence[Refused] = ()) -> Stored:
        """Stores both in one transaction; a decision or a place that is already there keeps its first row.

        Raises:
            DatabaseAway: nothing was stored; trying again may help.
            RowRefused: nothing was stored; a row breaks the table.
        """
        first: dict[bytes, StoredDecision] = {}
        for row in decisions:
            first.setdefault(row.decision_id, row)
        with in_words(self.where):
            async with self._engine.begin() as connection:
                known = await _known(connection, list(first))
                fresh = [row for key, row in first.items() if key not in known]
                # Two ledgers may store the same at the same time: the statement decides, not `known`.
                if fresh:
                    await connection.exec_driver_sql(self._insert_decision, list(map(_VALUES, fresh)))
                if refusals:
                    await connection.exec_driver_sql(
                        self._insert_refused, list(map(_REFUSED_VALUES, refusals))
                    )
        return Stored(len(fresh), len(decisions) - len(fresh))

    async def get(self, decision_id: uuid.UUID) -> StoredDecision | None:
        """The stored decision with this id.

        Raises:
            DatabaseAway: no answer.
        """
        found = await self._read(select(decision).where(decision.c.decision_id == decision_id.bytes))
        return found[0] if found else None

    async def recent(
        self, count: int = 50, *, outcome: str | None = None, account_pseudonym: bytes | None = None
    ) -> list[StoredDecision]:
        """The `count` stored last, newest first; of one outcome or one account (by pseudonym) when given.

        Raises:
            DatabaseAway: no answer.
        """
        query = select(decision).order_by(decision.c.row_id.desc()).limit(count)
        if outcome is not None:
            query = query.where(decision.c.outcome == outcome)
        if account_pseudonym is not None:
            query = query.where(decision.c.account_pseudonym == account_pseudonym)
        return await self._read(query)

    async def refusals(self, count: int = 50) -> list[Refused]:
        """The `count` records refused last, newest first.

        Raises:
            DatabaseAway: no answer.
        """
        async with self._reading() as connection:
            found = await connection.execute(select(refused).order_by(refused.c.row_id.desc()).limit(count))
            return [Refused(**_without_row_id(row)) for row in found.mappings()]

    async def check(self) -> None:
        """Returns when the database answers.

        Raises:
            DatabaseAway: it does not.
        """
        async with self._reading() as connection:
            await connection.execute(select(decision.c.row_id).limit(1))

    async def _read(self, query: Any) -> list[StoredDecision]:
        async with self._reading() as connection:
            found = await connection.execute(query)
            return [_stored(row) for row in found.mappings()]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with in_words(self.where):
            async with self._engine.connect() as connection:
                await connection.execution_options(**_READS)
                yield connection


def make_engine(settings: LedgerSettings) -> tuple[AsyncEngine, str]:
    """An engine for the URL, and the address as it may be shown.

    Raises:
        ConfigError: SQLite's folder cannot be made, or the TLS files are wrong.
    """
    url = settings.database_url()
    where = url.render_as_string(hide_password=True)
    # Parameters hold ciphertext and pseudonyms: they stay out of every error.
    if url.get_backend_name() == "sqlite":
        _make_folder(url)
        engine = create_async_engine(
            url, hide_parameters=True, connect_args={"timeout": settings.busy_timeout_ms / 1000}
        )
        _tune_sqlite(engine, settings.busy_timeout_ms)
        return engine, where
    context = settings.ssl_context()
    arguments: dict[str, Any] = {"connect_timeout": 5, "charset": "utf8mb4"}
    if context is not None:
        arguments["ssl"] = context
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_recycle=1800,
        # A decision that was committed by another ledger a moment ago must be seen.
        isolation_level="READ COMMITTED",
        connect_args=arguments,
    )
    return engine, where


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """Inside, what the database raises becomes one of our errors.

    Raises:
        DatabaseAway: trying again may help.
        AccessDenied, ConfigError, RowRefused: it does not.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseAway(f"{where}: no free connection. The database is slow or away.") from error
    except DBAPIError as error:
        raise _in_words(error, where) from error
    except OSError as error:
        raise DatabaseAway(
            f"{where}: {error.strerror or type(error).__name__}. Start the database."
        ) from error


def _in_words(error: DBAPIError, where: str) -> WeirError:
    code = error.orig.args[0] if error.orig is not None and error.orig.args else None
    if code in _DENIED:
        return AccessDenied(f"{where}: the database refuses this user. Check [ledger] url.")
    if code == _TLS_WANTED:
        return AccessDenied(f"{where}: the database wants TLS. Set [ledger] ssl_ca.")
    if (failed := _tls_failure(error)) is not None:
        return AccessDenied(f"{where}: TLS failed ({failed}). Check [ledger] ssl_ca.")
    if code == _UNKNOWN_DATABASE:
        return ConfigError(f"{where}: there is no such database. Create it, or correct [ledger] url.")
    if isinstance(error, OperationalError) or error.connection_invalidated or _is_interface(error):
        # SQLite's own words hold no value of a row ("database is locked", "database or disk is full").
        said = str(code) if isinstance(error.orig, sqlite3.Error) else f"error {code}"
        return DatabaseAway(f"{where}: {said}. The ledger tries again.")
    return RowRefused(f"{where}: a row does not fit its table ({type(error).__name__}).")


def _tls_failure(error: BaseException | None) -> str | None:
    """Why the database's certificate is not believed, when that is behind the error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.reason or type(error).__name__
        error = error.__cause__ or error.__context__
    return None


def _is_interface(error: DBAPIError) -> bool:
    return type(error).__name__ == "InterfaceError"


def _make_folder(url: URL) -> None:
    if url.database in (None, "", ":memory:"):
        raise ConfigError("[ledger] url names no file. A ledger in memory keeps nothing.")
    folder = Path(str(url.database)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}. The ledger wants a folder it may write to; correct [ledger] url."
        ) from error


def _tune_sqlite(engine: AsyncEngine, busy_timeout_ms: int) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # Transactions begin by our own hand, below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={busy_timeout_ms:d}")
        cursor.execute("PRAGMA journal_mode=WAL")
        # Kafka's offset is committed after the row, so the row must survive a power cut: synced.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that begins as a reader cannot wait for the lock when it turns into a writer.
        reads = connection.get_execution_options().get("weir_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _insert_first(engine: AsyncEngine, table: Table, fields: tuple[str, ...]) -> str:
    """SQL that inserts `fields` and leaves a row alone that is already there.

    Rendered once and run on tuples: SQLAlchemy's own binding costs three times what SQLite's insert does.
    """
    values: dict[str, Any] = {name: bindparam(name) for name in fields}
    statement: Any
    if engine.dialect.name == "sqlite":
        statement = sqlite.insert(table).values(values).on_conflict_do_nothing()
    else:
        # INSERT IGNORE would also swallow values that do not fit; this passes over duplicates only.
        statement = mysql.insert(table).values(values).on_duplicate_key_update(topic=table.c.topic)
    compiled = statement.compile(dialect=engine.dialect)
    if tuple(compiled.positiontup or ()) != fields:
        raise AssertionError("the statement's parameters are not in the order of the fields")
    return str(compiled)


async def _known(connection: AsyncConnection, ids: list[bytes]) -> set[bytes]:
    if not ids:
        return set()
    found = await connection.execute(select(decision.c.decision_id).where(decision.c.decision_id.in_(ids)))
    return {bytes(value) for value in found.scalars()}


def _stored(row: Any) -> StoredDecision:
    fields = _without_row_id(row)
    return StoredDecision(**fields)


def _without_row_id(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "row_id"}
