"""What the ledger can be told; `[ledger]` in weir.toml, or WEIR_LEDGER_* in the environment."""

import ssl
from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from weir.config import Port, WeirSettings
from weir.errors import ConfigError

DRIVERS = ("sqlite+aiosqlite", "mysql+asyncmy", "mariadb+asyncmy")


class LedgerSettings(WeirSettings):
    """Read once, at start."""

    section: ClassVar[str] = "ledger"

    url: SecretStr = Field(
        SecretStr("sqlite+aiosqlite:///.weir/data/ledger.db"),
        description=f"an SQLAlchemy URL of {', '.join(DRIVERS)}; with a password best in WEIR_LEDGER_URL",
    )
    ssl_ca: Path | None = Field(None, description="MySQL only: whom to believe")
    ssl_certificate: Path | None = Field(None, description="MySQL only: the ledger's own, for mutual TLS")
    ssl_key: Path | None = Field(None, description="its private key")
    group: str = Field("weir-ledger", min_length=1, description="the consumer group")
    batch_rows_max: int = Field(2000, ge=1, le=20_000, description="records of one database transaction")
    busy_timeout_ms: int = Field(2000, ge=0, le=60_000, description="SQLite only: then the back-off begins")
    retry_s_max: float = Field(5.0, gt=0, le=60, description="longest pause between attempts")
    metrics_host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    metrics_port: Port = Field(9102, description="/metrics and /healthz")

    @field_validator("url")
    @classmethod
    def _known_driver(cls, url: SecretStr) -> SecretStr:
        try:
            driver = make_url(url.get_secret_value()).drivername
        except ArgumentError:
            driver = "none"
        if driver not in DRIVERS:
            # The value may hold a password, so it is not repeated.
            raise ValueError(f"must be an SQLAlchemy URL that begins with {' or '.join(DRIVERS)}")
        return url

    def database_url(self) -> URL:
        """The URL, password included: not for a log. `str()` of it masks the password."""
        return make_url(self.url.get_secret_value())

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS to MySQL or MariaDB; None when no file is named.

        Raises:
            ConfigError: a file is missing, or is not PEM.
        """
        if self.ssl_ca is None and self.ssl_certificate is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca)
            if self.ssl_certificate is not None:
                context.load_cert_chain(self.ssl_certificate, self.ssl_key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[ledger] ssl_ca, ssl_certificate, ssl_key: {error}. They must be readable PEM files."
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
