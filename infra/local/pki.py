"""A certificate authority for this machine's own stack: a client certificate a role, one for the key server.

For trials on loopback; a bank brings its own certificates by the ssl_* settings. Certificates name
127.0.0.1, ::1 and localhost only. All files are 0600, the directory 0700.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROLES = (
    "risk-worker",
    "chat-worker",
    "ledger",
    "reader",
    "agent-desk",
    "card-system",
    "analyst",
    "replay",
    "admin",
    "monitor",
)

CA_DAYS = 3650
LEAF_DAYS = 90
RENEW_BEFORE_DAYS = 30
# A certificate begins a little in the past: clocks differ.
_SKEW = timedelta(minutes=5)

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Pki:
    """Where everything lies."""

    ca: Path
    keys_server: Identity
    roles: Mapping[str, Identity]


def ensure_pki(directory: Path, roles: Sequence[str] = ROLES, *, now: Now = lambda: datetime.now(UTC)) -> Pki:
    """What is missing, damaged, of another authority or within 30 days of its end is made; the rest stays.

    Args:
        directory: made when missing.
        roles: each gets a client certificate with the URI `weir://role/<role>`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    with _one_at_a_time(directory / ".lock"):
        authority = _Authority.ensure(_identity(directory, "ca"), now())
        server = _identity(directory, "keys-server")
        authority.ensure_leaf(server, "weir keys", _SERVER_NAMES, ExtendedKeyUsageOID.SERVER_AUTH, now())
        clients = {role: _identity(directory, f"role-{role}") for role in roles}
        for role, identity in clients.items():
            names = [x509.UniformResourceIdentifier(f"weir://role/{role}")]
            authority.ensure_leaf(identity, f"weir {role}", names, ExtendedKeyUsageOID.CLIENT_AUTH, now())
    return Pki(directory / "ca.crt", server, clients)


_SERVER_NAMES: list[x509.GeneralName] = [
    x509.DNSName("localhost"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.IPAddress(ip_address("::1")),
]


class _Authority:
    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def ensure(cls, identity: Identity, now: datetime) -> "_Authority":
        held = _load(identity)
        if held is not None and not _ends_soon(held[0], now):
            return cls(*held)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Weir local authority")])
        certificate = (
            _builder(name, name, key, now, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _save(identity, certificate, key)
        return cls(certificate, key)

    def ensure_leaf(
        self,
        identity: Identity,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: datetime,
    ) -> None:
        held = _load(identity)
        if held is not None and self._is_ours(held[0], names) and not _ends_soon(held[0], now):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(subject, self._certificate.subject, key, now, LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        _save(identity, certificate, key)

    def _is_ours(self, certificate: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
            held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
            return False
        return list(held) == list(names)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _identity(directory: Path, name: str) -> Identity:
    return Identity(directory / f"{name}.crt", directory / f"{name}.key")


def _ends_soon(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc > now or certificate.not_valid_after_utc - now < timedelta(
        days=RENEW_BEFORE_DAYS
    )


def _load(identity: Identity) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """Certificate and key, or None when a file is missing, damaged, open to others, or not the other's."""
    try:
        if identity.key.stat().st_mode & 0o077:
            return None
        certificate = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
        key = load_pem_private_key(identity.key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return certificate, key


def _save(identity: Identity, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    # The key first: a certificate without its key is seen as damaged and made again.
    _write(identity.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _write(identity.certificate, certificate.public_bytes(Encoding.PEM))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
