"""`weir data`: a bank's events checked, cleaned, looked at, and their features searched for leaks."""

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.command import events_of
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from services.training.prepare.contract import Finding

app = typer.Typer(help="A bank's events before a model sees them.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="With transactions-*.parquet and labels-*.parquet.")]
Memory = Annotated[int, typer.Option("--memory", min=64, help="MB to hold; the rest goes to the disk.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]


class EventsRefused(TrainingError):
    """Events from which no model can be made, or rows that break the contract."""


@app.command("validate")
def validate_(folder: Folder, memory: Memory = 1024, as_json: AsJson = False) -> None:
    """Check the events against the contract; ends with an error where a row breaks it."""
    from services.training.prepare.contract import Severity, validate
    from services.training.prepare.lake import Lake

    with Lake.of(folder, memory_mb=memory) as lake:
        findings = validate(lake, now_ms=_now_ms(), days_min=_days_min())
    if as_json:
        typer.echo(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(_line(finding))
    wrong = [finding for finding in findings if finding.severity is not Severity.WARNING]
    if any(finding.severity is Severity.STOP for finding in wrong):
        raise EventsRefused(f"{folder}: no model can be made of these events: {wrong[0].says}.")
    if wrong:
        raise EventsRefused(
            f"{folder}: rows break the contract. `weir data clean {folder} --out DIR` takes them out."
        )
    if not as_json:
        typer.echo("Every row keeps the contract.")


@app.command("collect")
def collect_(
    out: Annotated[Path, typer.Option("--out", help="A new folder.")], as_json: AsJson = False
) -> None:
    """Write the payments and labels that Kafka holds into a folder."""
    from services.training.prepare.collect import collect
    from weir.streams.neighbours import Connections

    done = asyncio.run(collect(Connections.load(), out))
    if as_json:
        typer.echo(
            json.dumps({"rows": done.rows, "unreadable": done.unreadable, "ends": done.ends}, indent=2)
        )
        return
    typer.echo(f"{out}: {done.rows['transactions']:,} payments, {done.rows['labels']:,} labels")
    for reason, count in sorted(done.unreadable.items()):
        typer.echo(f"not readable: {reason}: {count:,}, in quarantine-collect.parquet")


@app.command("clean")
def clean_(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    memory: Memory = 1024,
    as_json: AsJson = False,
) -> None:
    """Write the events that keep the contract, sorted; the others beside them with the reason."""
    from services.training.prepare.clean import clean
    from services.training.prepare.lake import Lake

    with Lake.of(folder, memory_mb=memory) as lake:
        done = clean(lake, out, now_ms=_now_ms())
    if as_json:
        typer.echo(json.dumps({"kept": done.kept, "taken_out": done.taken_out}, indent=2))
        return
    for kind, count in done.kept.items():
        out_of = done.taken_out[kind]
        typer.echo(f"{kind}: {count:,} kept, {sum(out_of.values()):,} taken out")
        for reason, rows in out_of.items():
            typer.echo(f"  {reason}: {rows:,}")


@app.command("profile")
def profile_(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("profile.html"),
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    memory: Memory = 1024,
    as_json: AsJson = False,
) -> None:
    """Look at the events: a page of counts, columns and charts, without any customer's value."""
    from services.training.prepare.contract import validate
    from services.training.prepare.lake import Lake
    from services.training.prepare.profile import profile
    from services.training.prepare.report import Language, page

    if language not in ("en", "zh"):
        raise typer.BadParameter("must be en or zh", param_hint="--language")
    with Lake.of(folder, memory_mb=memory) as lake:
        findings = validate(lake, now_ms=_now_ms(), days_min=_days_min())
        made = profile(lake, _now_ms())
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=2))
        return
    spoken: Language = "zh" if language == "zh" else "en"
    text = page(made, findings, language=spoken, fingerprint=_fingerprint(folder))
    out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: {made.whole['payments']:,} payments of {made.whole['days']} days")


@app.command("leaks")
def leaks_(folder: Folder, as_json: AsJson = False) -> None:
    """Search the features for knowledge of the future: taken away, it may change none of them."""
    from services.training.prepare.leaks import find_leaks, suspicious
    from weir.features.payments import FEATURES

    events = events_of(folder, TrainingSettings.load())
    whole = events.features()
    found = find_leaks(events, events.features_of, FEATURES, whole=whole)
    alone = suspicious(whole, events.is_fraud, FEATURES)
    if as_json:
        typer.echo(json.dumps({"leaking": found.leaking, "suspicious": alone}, indent=2))
    for name, auc in alone.items():
        typer.echo(f"look at {name}: it tells fraud by itself with an AUC of {auc:.3f}", err=as_json)
    found.require_none()
    if not as_json:
        typer.echo(f"None of {len(FEATURES)} features knows the future, at {len(found.cuts_ms)} cuts.")


@app.command("split")
def split_(folder: Folder, as_json: AsJson = False) -> None:
    """Say which days fit, choose and judge, and how many payments and frauds known by then each has."""
    from services.training.data import read_events
    from services.training.split import by_time
    from weir.features.payments import DEFAULT

    settings, events = TrainingSettings.load(), read_events(folder)
    made = by_time(
        events.event_ms,
        delay_days=DEFAULT.label_delay_days,
        validation_days=settings.validation_days,
        test_days=settings.test_days,
        warmup_days=settings.warmup_days,
    )
    known = events.known_frauds(made.test.start_ms)
    rows = []
    for name in ("train", "validation", "test"):
        window = getattr(made, name)
        chosen = window.rows(events.event_ms)
        frauds = events.is_fraud if name == "test" else known
        rows.append(
            {
                "window": name,
                "days": str(window),
                "payments": int(chosen.sum()),
                "frauds": int(frauds[chosen].sum()),
            }
        )
    if as_json:
        typer.echo(json.dumps({"fingerprint": events.fingerprint, "windows": rows}, indent=2))
        return
    typer.echo(f"fingerprint {events.fingerprint}")
    for row in rows:
        typer.echo(
            f"{row['window']:<11} {row['days']}  {row['payments']:,} payments, {row['frauds']:,} frauds"
        )


def _line(finding: "Finding") -> str:
    where = f", the first at {finding.where}" if finding.where else ""
    return f"{finding.severity:<8} {finding.table}: {finding.rule}: {finding.says} ({finding.count:,}{where})"


def _now_ms() -> int:
    return int(time.time() * 1000)


def _days_min() -> int:
    from services.training.split import TRAIN_DAYS_MIN
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    return TRAIN_DAYS_MIN + 2 * DEFAULT.label_delay_days + settings.validation_days + settings.test_days


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the files' names and bytes."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("transactions-*.parquet"), *folder.glob("labels-*.parquet")]):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
