"""Runs migrations on the connection that `services.ledger.migrate` hands over."""

from alembic import context

from services.ledger.models import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # The tables are made in the same transaction as the version that says so, where the database can.
    transactional_ddl=connection.dialect.name == "sqlite",
    version_table="ledger_version",
)
with context.begin_transaction():
    context.run_migrations()
