"""The first tables: decisions at rest, and records that were refused."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_MYSQL: Any = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB"}


def upgrade() -> None:
    """Makes both tables."""
    op.create_table(
        "decision",
        sa.Column("row_id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column(
            "decision_id",
            sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb"),
            nullable=False,
            unique=True,
        ),
        sa.Column("tenant", sa.String(64)),
        sa.Column("kind", sa.String(64)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("degraded", sa.Boolean),
        sa.Column("probability", sa.Double),
        sa.Column("model_version", sa.String(64)),
        sa.Column("policy_version", sa.String(64)),
        sa.Column("event_ms", sa.BigInteger),
        sa.Column("decided_ms", sa.BigInteger),
        sa.Column(
            "account_pseudonym", sa.LargeBinary(64).with_variant(mysql.VARBINARY(64), "mysql", "mariadb")
        ),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("kafka_ms", sa.BigInteger, nullable=False),
        sa.Column("schema_id", sa.BigInteger, nullable=False),
        sa.Column("key_id", sa.BigInteger, nullable=False),
        sa.Column("ciphertext", _BLOB, nullable=False),
        sa.Column("stored_ms", sa.BigInteger, nullable=False),
        **_MYSQL,
    )
    op.create_index("ix_decision_account", "decision", ["account_pseudonym", "event_ms"])
    op.create_table(
        "refused",
        sa.Column("row_id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("kafka_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.String(512), nullable=False),
        sa.Column("record_key", _BLOB),
        sa.Column("value", _BLOB),
        sa.Column("headers", _BLOB, nullable=False),
        sa.Column("refused_ms", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("topic", "kafka_partition", "kafka_offset", name="uq_refused_place"),
        **_MYSQL,
    )


def downgrade() -> None:
    """Drops both tables, with all that is in them."""
    op.drop_table("refused")
    op.drop_table("decision")
