"""Settings: one TOML file and the environment, read once at start, validated, passed down.

The file is `$WEIR_CONFIG`, else `./weir.toml`, else the one that `weir up` writes for its own stack
(`.weir/run/weir.toml`), which also gives the sections that `./weir.toml` does not have.
`WEIR_<SECTION>_<FIELD>` in the environment wins over the files.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from weir.errors import ConfigError

OWN_CONFIG = Path("weir.toml")
EMBEDDED_CONFIG = Path(".weir/run/weir.toml")

Port = Annotated[int, Field(ge=0, le=65535)]


def config_path() -> Path | None:
    """The settings file in force, or None when there is none.

    Raises:
        ConfigError: `WEIR_CONFIG` names a file that does not exist.
    """
    named = os.environ.get("WEIR_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"WEIR_CONFIG names {path}, which is not a file. Correct it, or unset it.")
        return path
    return next((path for path in (OWN_CONFIG, EMBEDDED_CONFIG) if path.is_file()), None)


def read_config(path: Path | None) -> dict[str, Any]:
    """The file's tables; an empty dict for None.

    Raises:
        ConfigError: unreadable, or not TOML.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}. Correct the file.") from error


class WeirSettings(BaseModel):
    """One section of the settings; a subclass names its section and its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    section: ClassVar[str]

    @classmethod
    def load(cls, path: Path | None = None, **overrides: Any) -> Self:
        """This section from the file, the environment and `overrides`, each winning over the one before.

        Raises:
            ConfigError: the first field that is wrong, where it was set and what it must be.
        """
        path = path if path is not None else config_path()
        tables = read_config(path)
        if path == OWN_CONFIG and cls.section not in tables and EMBEDDED_CONFIG.is_file():
            path, tables = EMBEDDED_CONFIG, read_config(EMBEDDED_CONFIG)
        table = tables.get(cls.section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: [{cls.section}] must be a table.")
        prefix = f"WEIR_{cls.section.upper()}_"
        environment = {
            name: os.environ[prefix + name.upper()]
            for name in cls.model_fields
            if prefix + name.upper() in os.environ
        }
        try:
            return cls.model_validate(
                {**table, **environment, **overrides}, context={"path": path, "environment": environment}
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or cls.section
            top = str(first["loc"][0]) if first["loc"] else ""
            where = (
                f"{prefix}{top.upper()}"
                if top in environment
                else f"{path or 'settings'} [{cls.section}] {field}"
            )
            raise ConfigError(f"{where}: {first['msg']}. Correct it, or delete it for the default.") from None


class KafkaSettings(WeirSettings):
    """[kafka] or WEIR_KAFKA_*: how to reach the brokers."""

    section: ClassVar[str] = "kafka"

    bootstrap_servers: str = Field("localhost:9092", description="host:port, comma separated")
    security_protocol: str = Field(
        "PLAINTEXT",
        pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    )
    ssl_ca: Path | None = Field(
        None, description="whose certificates are believed (PEM); none takes the system's"
    )
    ssl_certificate: Path | None = Field(None, description="our own (PEM), for mutual TLS")
    ssl_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")
    sasl_mechanism: str = Field(
        "SCRAM-SHA-512",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
    )
    sasl_username: str | None = Field(None, description="for SASL_*")
    sasl_password: SecretStr | None = Field(None, description="for SASL_*; best in WEIR_KAFKA_SASL_PASSWORD")


class TopicSettings(WeirSettings):
    """[topics] or WEIR_TOPICS_*: the names, and how topics are made when they are missing."""

    section: ClassVar[str] = "topics"

    transactions: str = Field("bank.transactions", description="payments, from the bank")
    labels: str = Field("bank.labels", description="what came out about them, from the bank")
    decisions: str = Field("weir.decisions", description="decisions, sealed")
    risk_dlq: str = Field("weir.risk.dlq", description="dead letters of the risk service, sealed")
    risk_accounts: str = Field(
        "weir.risk.accounts", description="changelog of the account windows, by pseudonym; compacted"
    )
    risk_journal: str = Field(
        "weir.risk.journal", description="what each batch was decided on; shares the terminals' windows"
    )
    chat_messages: str = Field("bank.chat.messages", description="customers' messages and agents' replies")
    chat_replies: str = Field("weir.chat.replies", description="what customers are answered, sealed")
    chat_handovers: str = Field("weir.chat.handovers", description="conversations for a person, sealed")
    chat_audit: str = Field("weir.chat.audit", description="how each answer came about, sealed")
    chat_conversations: str = Field(
        "weir.chat.conversations", description="state of the conversations, by pseudonym, sealed; compacted"
    )
    chat_dlq: str = Field("weir.chat.dlq", description="dead letters of the chat service, sealed")
    card_commands: str = Field("weir.card.commands", description="what customers want done, sealed")
    partitions: int = Field(4, ge=1, le=10_000, description="of a topic that is made")
    replication_factor: int = Field(1, ge=1, le=16, description="of a topic that is made")


class TritonSettings(WeirSettings):
    """[triton] or WEIR_TRITON_*: how to reach the inference server (gRPC)."""

    section: ClassVar[str] = "triton"

    endpoint: str = Field("localhost:8001", description="host:port of the gRPC service")
    tls: bool = Field(False, description="encrypt the connection")
    ssl_ca: Path | None = Field(
        None, description="whose certificates are believed (PEM); none takes gRPC's own list"
    )
    ssl_certificate: Path | None = Field(None, description="our own (PEM), for mutual TLS")
    ssl_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")


class KeyServiceSettings(WeirSettings):
    """[keys] or WEIR_KEYS_*: how a client reaches the key service; its certificate names its role."""

    section: ClassVar[str] = "keys"

    endpoint: str = Field("localhost:7443", description="host:port of the gRPC service")
    tls: bool = Field(True, description="mutual TLS; false on a loopback endpoint only")
    ssl_ca: Path | None = Field(None, description="who signed the key service's certificate (PEM)")
    ssl_certificate: Path | None = Field(None, description="our own (PEM); it names the role")
    ssl_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")


class RegistrySettings(WeirSettings):
    """[registry] or WEIR_REGISTRY_*: a Schema Registry by URL, else the repository's own file."""

    section: ClassVar[str] = "registry"

    url: str | None = Field(
        None, description="of a Confluent-compatible registry; none takes schemas/registry.json"
    )
    username: str | None = Field(None, description="for basic authentication")
    password: SecretStr | None = Field(None, description="best in WEIR_REGISTRY_PASSWORD")
    ssl_ca: Path | None = Field(
        None, description="whose certificates are believed (PEM); none takes the system's"
    )


class LogSettings(WeirSettings):
    """[log] or WEIR_LOG_*: what every process writes to stderr."""

    section: ClassVar[str] = "log"

    format: str = Field("human", pattern="^(human|json)$", description="human or json")
    level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )
