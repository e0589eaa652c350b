"""`weir replay`: past events decided again."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weir.errors import ExitCode

if TYPE_CHECKING:
    from services.risk.replay import Plan, Report
    from services.risk.replay.run import Progress

replay = typer.Typer(help="Decide past events again, and compare.", add_completion=False)


@replay.command()
def again(
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="First moment, such as 2026-11-25T10:00:00Z; default the topics' beginning."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="The moment after the last; default now.")] = None,
    partition: Annotated[
        list[int] | None, typer.Option(min=0, help="Of the payments; again for more. Default all.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Decide under this policy file, not under those of then.")
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option(help="Where the policies of then are kept; default [risk] data_dir/policies."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Score by this model in the repository, not by that of then.")
    ] = None,
    model_version: Annotated[
        str | None, typer.Option(help="Which version of --model; default the newest.")
    ] = None,
    snapshots: Annotated[
        Path | None,
        typer.Option(help="Begin with a worker's snapshots in this folder, not with the topics' beginning."),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the new decisions too, sealed, to --publish-topic.")
    ] = False,
    publish_topic: Annotated[
        str, typer.Option(help="Made when it is missing; never a live one.")
    ] = "weir.replay.decisions",
    examples: Annotated[int, typer.Option(min=0, max=1000, help="How many decisions to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Decide past events again, and compare: by the model, policy and state of then all must be the same.

    With --policy or --model it says what would differ. The live topics and groups are only read.
    """
    if model_version is not None and model is None:
        raise typer.BadParameter("--model-version wants --model.")
    from services.risk.replay import Plan

    plan = Plan(
        from_ms=0 if from_ is None else _ms("--from", from_),
        to_ms=_now_ms() if to is None else _ms("--to", to),
        partitions=tuple(partition or ()),
        policy=policy,
        policies=policies,
        model=model,
        model_version=model_version,
        snapshots=snapshots,
        publish_topic=publish_topic if publish else None,
        examples_max=examples,
    )
    if plan.from_ms >= plan.to_ms:
        raise typer.BadParameter("--from must be before --to.")
    report = _run(plan)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        for line in report.as_text():
            typer.echo(line)
    if not plan.asks_what_if and not report.same_as_then:
        raise typer.Exit(ExitCode.INTEGRITY if report.compared else ExitCode.MISSING)


def _run(plan: "Plan") -> "Report":
    from services.risk.replay import replay as decide_again
    from services.risk.settings import RiskSettings
    from weir.config import LogSettings
    from weir.obs.log import configure
    from weir.streams.neighbours import Connections

    configure(LogSettings.load(), service="replay")
    settings, to = RiskSettings.load(), Connections.load()
    with _shown() as progress:
        return asyncio.run(decide_again(plan, settings, to, progress))


def _ms(option: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is no time, such as 2026-11-25T10:00:00Z.") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{option}: {text!r} has no time zone. Append Z for UTC.")
    return round(moment.timestamp() * 1000)


def _now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)


@contextmanager
def _shown() -> Iterator["Progress"]:
    """Where the replay is, on stderr, where a person watches."""
    from rich.console import Console

    with Console(stderr=True).status("opening") as status:

        def show(partition: int, read_ms: int, compared: int) -> None:
            moment = datetime.fromtimestamp(read_ms / 1000, UTC).isoformat(timespec="seconds")
            status.update(f"partition {partition} at {moment}, {compared:,} decisions compared")

        yield show
