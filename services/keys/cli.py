"""`weir keys`: what an administrator does with keys. Their material is never shown."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from services.keys.audit import AuditHead, verify
from services.keys.settings import KeysServiceSettings
from weir.config import KeyServiceSettings
from weir.crypto.client import CALL_TIMEOUT_S, KeyServiceClient
from weir.crypto.kek import FileKekProvider
from weir.crypto.secret import Compartment

REWRAP_TIMEOUT_S = 120.0
_ADMIN = "role-admin"

app = typer.Typer(help="Data keys, key-encryption keys and the audit log.", no_args_is_help=True)
audit_app = typer.Typer(help="The record of every hand-out and denial.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")

Answer = TypeVar("Answer")
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--role-certificate",
        help="Certificate (PEM) that names your role. Default: role-admin.crt beside ssl_certificate,"
        " else that one.",
        show_default=False,
    ),
]
CertificateKey = Annotated[
    Path | None,
    typer.Option(
        "--role-key", help="Its private key. Default: the same name, ending in .key.", show_default=False
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Default: [keys_service] data_dir.", show_default=False),
]


@app.command("list")
def list_keys(certificate: Certificate = None, key: CertificateKey = None) -> None:
    """Every data key: compartment, epoch, suite, age, and which key-encryption key wraps it."""
    keys = _asked(certificate, key, lambda client: client.list_keys(CALL_TIMEOUT_S))
    table = Table("topic", "class", "epoch", "key id", "suite", "created (UTC)", "wrapped by", "")
    for info in keys:
        table.add_row(
            info.compartment.topic,
            info.compartment.data_class,
            str(info.epoch),
            f"{info.key_id:08x}",
            info.suite.name,
            datetime.fromtimestamp(info.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            info.kek_id,
            "current" if info.current else "",
        )
    Console().print(table if keys else "No data key yet: the first one who seals in a topic makes it.")


@app.command()
def rotate(
    topic: Annotated[str, typer.Argument(help="A sealed topic, such as weir.decisions.")],
    data_class: Annotated[str, typer.Option(help="C1, C2 or C3.")] = "C3",
    certificate: Certificate = None,
    key: CertificateKey = None,
) -> None:
    """Start the next epoch: sealers move to a new data key without a pause, older ones still open."""
    compartment = Compartment(topic, data_class)
    info = _asked(certificate, key, lambda client: client.rotate(compartment, CALL_TIMEOUT_S))
    Console().print(
        f"{compartment}: epoch {info.epoch}, data key {info.key_id:08x}. "
        "Sealers take it when they next renew their key.",
        highlight=False,
    )


@app.command()
def rewrap(certificate: Certificate = None, key: CertificateKey = None) -> None:
    """Wrap every key with the newest key-encryption key; the older ones may be put away then."""
    count, kek_id = _asked(certificate, key, lambda client: client.rewrap(REWRAP_TIMEOUT_S))
    Console().print(f"{count} keys wrapped anew; all are under {kek_id}.", highlight=False)


@app.command("new-kek")
def new_kek(
    keystore: Annotated[
        Path | None,
        typer.Option("--keystore", help="Default: [keys_service] keystore_dir.", show_default=False),
    ] = None,
) -> None:
    """Make the next key-encryption key in the file keystore: where the key service runs, as its user."""
    directory = keystore if keystore is not None else KeysServiceSettings.load().keystore_dir
    kek_id = FileKekProvider(directory).rotate()
    Console().print(
        f"{kek_id} is in {directory}. Back it up, then `weir keys rewrap`.", highlight=False, soft_wrap=True
    )


@audit_app.command("verify")
def verify_audit(
    data_dir: DataDir = None,
    noted: Annotated[
        str | None,
        typer.Option("--head", help="A head noted earlier (NUMBER:SHA256) that must still be in the chain."),
    ] = None,
) -> None:
    """Check that no record was changed, removed or put in; print the head to note elsewhere."""
    directory = data_dir if data_dir is not None else KeysServiceSettings.load().data_dir
    try:
        head = verify(directory / "audit.jsonl", noted=AuditHead.parse(noted) if noted else None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--head") from error
    console = Console()
    console.print(f"{head.sequence} records, each follows from the one before.", highlight=False)
    console.print(f"head {head}", highlight=False, soft_wrap=True)


def _asked(
    certificate: Path | None, key: Path | None, ask: Callable[[KeyServiceClient], Awaitable[Answer]]
) -> Answer:
    settings = _as_role(KeyServiceSettings.load(), certificate, key)

    async def asked() -> Answer:
        client = KeyServiceClient(settings)
        try:
            return await ask(client)
        finally:
            await client.close()

    return asyncio.run(asked())


def _as_role(settings: KeyServiceSettings, certificate: Path | None, key: Path | None) -> KeyServiceSettings:
    """The settings with the certificate asked for, or the admin's when it lies beside the configured one."""
    if certificate is None and settings.ssl_certificate is not None:
        beside = settings.ssl_certificate.with_name(f"{_ADMIN}.crt")
        certificate = beside if beside.is_file() else None
    if certificate is None:
        return settings
    paths = {"ssl_certificate": certificate, "ssl_key": key or certificate.with_suffix(".key")}
    return settings.model_copy(update=paths)
