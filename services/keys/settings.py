"""What the key service is told at its start."""

from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from weir.config import Port, WeirSettings
from weir.crypto.secret import Suite

_POLICY = Path(__file__).resolve().parents[2] / "infra" / "policy.toml"


class KeysServiceSettings(WeirSettings):
    """[keys_service] or WEIR_KEYS_SERVICE_*: the server; its clients read [keys]."""

    section: ClassVar[str] = "keys_service"

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(7443, description="gRPC; 0 takes a free one and logs it")
    ssl_ca: Path | None = Field(None, description="who signs clients' certificates (PEM)")
    ssl_certificate: Path | None = Field(None, description="this server's certificate (PEM)")
    ssl_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")
    insecure_loopback_role: str | None = Field(
        None, description="no TLS: every caller on this machine has this role; for trials on loopback only"
    )
    keystore_dir: Path = Field(Path(".weir/keystore"), description="key-encryption keys, 0700")
    data_dir: Path = Field(Path(".weir/data/keys"), description="wrapped data keys and the audit log")
    policy_file: Path = Field(_POLICY, description="who may do what; read at start")
    cache_seconds: int = Field(300, ge=1, le=86_400, description="how long clients may keep a key")
    data_key_age_max_s: int = Field(
        43_200,
        ge=60,
        le=31_536_000,
        # Random IVs: at most 2^32 records a key (NIST SP 800-38D); in 12 hours that is 99,000 a second.
        description="an older data key is replaced when a sealer next asks",
    )
    suite: Suite = Field(Suite.AES_256_GCM, description="of new data keys: AES_256_GCM or SM4_GCM")
    metrics_host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    metrics_port: Port = Field(9103, description="/metrics and /healthz")

    @field_validator("suite", mode="before")
    @classmethod
    def _suite_by_name(cls, value: object) -> object:
        if isinstance(value, str):
            if value not in Suite.__members__:
                raise ValueError(f"must be one of {', '.join(Suite.__members__)}")
            return Suite[value]
        return value

    @model_validator(mode="after")
    def _tls_or_loopback(self) -> Self:
        files = (self.ssl_ca, self.ssl_certificate, self.ssl_key)
        if self.insecure_loopback_role is not None:
            if any(files):
                raise ValueError("insecure_loopback_role means no TLS: delete it, or the ssl_* settings")
            if not _is_loopback(self.host):
                raise ValueError(
                    "insecure_loopback_role needs a loopback host: keys would travel in the clear"
                )
        elif not all(files):
            raise ValueError("set ssl_ca, ssl_certificate and ssl_key: keys are handed out over mutual TLS")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
