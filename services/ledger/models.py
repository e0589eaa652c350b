"""The ledger's tables, and one row of each as the service has it."""

from dataclasses import dataclass, field

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql

from weir.crypto.envelope import envelope_header

# SQLite counts rows only in a column that is exactly INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")
_Bytes16 = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
_Key = LargeBinary(64).with_variant(mysql.VARBINARY(64), "mysql", "mariadb")
_Blob = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")

metadata = MetaData()

# InnoDB keeps rows in the order of the primary key: a counter appends, a random id would split pages.
decision = Table(
    "decision",
    metadata,
    Column("row_id", _RowId, primary_key=True, autoincrement=True),
    Column("decision_id", _Bytes16, nullable=False, unique=True),
    # In the clear, for queries; null when this role may not open the record.
    Column("tenant", String(64)),
    Column("kind", String(64)),
    Column("outcome", String(16)),
    Column("degraded", Boolean),
    Column("probability", Double),
    Column("model_version", String(64)),
    Column("policy_version", String(64)),
    Column("event_ms", BigInteger),
    Column("decided_ms", BigInteger),
    # Where it came from, and what it takes to open it again.
    Column("account_pseudonym", _Key),
    Column("topic", String(249), nullable=False),
    Column("kafka_partition", Integer, nullable=False),
    Column("kafka_offset", BigInteger, nullable=False),
    Column("kafka_ms", BigInteger, nullable=False),
    Column("schema_id", BigInteger, nullable=False),
    Column("key_id", BigInteger, nullable=False),
    Column("ciphertext", _Blob, nullable=False),
    Column("stored_ms", BigInteger, nullable=False),
    Index("ix_decision_account", "account_pseudonym", "event_ms"),
)

refused = Table(
    "refused",
    metadata,
    Column("row_id", _RowId, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),
    Column("kafka_partition", Integer, nullable=False),
    Column("kafka_offset", BigInteger, nullable=False),
    Column("kafka_ms", BigInteger, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("detail", String(512), nullable=False),
    Column("record_key", _Blob),
    Column("value", _Blob),
    # The Kafka headers as JSON, contents in hexadecimal.
    Column("headers", _Blob, nullable=False),
    Column("refused_ms", BigInteger, nullable=False),
    UniqueConstraint("topic", "kafka_partition", "kafka_offset", name="uq_refused_place"),
)


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """One decision at rest: sealed, with the few columns in the clear that a query needs.

    `decision_id` is the UUID's 16 bytes; times are milliseconds since the epoch.
    `outcome` and the other clear columns are None when the ledger's role may not open the record.
    """

    decision_id: bytes
    tenant: str | None
    kind: str | None
    outcome: str | None
    degraded: bool | None
    probability: float | None
    model_version: str | None
    policy_version: str | None
    event_ms: int | None
    decided_ms: int | None
    account_pseudonym: bytes | None = field(repr=False)
    topic: str
    kafka_partition: int
    kafka_offset: int
    kafka_ms: int
    schema_id: int
    key_id: int
    ciphertext: bytes = field(repr=False)
    stored_ms: int

    def envelope_header(self) -> bytes:
        """The record's `weir.envelope` header: what opens `ciphertext` beside the key and the topic."""
        return envelope_header(self.schema_id, self.decision_id)


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is no decision, whole: nothing that reached the ledger is lost."""

    topic: str
    kafka_partition: int
    kafka_offset: int
    kafka_ms: int
    reason: str
    detail: str
    record_key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: bytes = field(repr=False)
    refused_ms: int
