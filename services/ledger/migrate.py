"""Brings the ledger's tables to the newest version, by Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from weir.errors import NeighbourUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = "weir-ledger-migrate"
_LOCK_WAIT_S = 60


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, with no file of its own; `connection` is what it then works on."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Applies what is missing; nothing when the tables are the newest already.

    Raises:
        NeighbourUnavailable: another ledger is at it for too long.
    """
    with _alone(connection):
        command.upgrade(configuration(connection), "head")
        connection.commit()


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """One ledger at a time: MySQL cannot put DDL into a transaction. In SQLite the transaction is enough."""
    if connection.dialect.name == "sqlite":
        yield
        return
    got = connection.scalar(text("SELECT GET_LOCK(:name, :wait_s)"), {"name": _LOCK, "wait_s": _LOCK_WAIT_S})
    if got != 1:
        raise NeighbourUnavailable(
            f"Another ledger has been migrating for {_LOCK_WAIT_S} s. Look at its log."
        )
    try:
        yield
    finally:
        connection.scalar(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK})
