"""`weir up`, `down`, `status`, `logs`, `doctor`, `demo`: the embedded stack for a person at a terminal."""

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infra.local import control
from infra.local.logfile import follow, last_lines
from infra.local.progress import READY, display, table
from infra.local.stack_settings import StackPaths, StackSettings, users_config
from infra.local.state import PartPhase, Phase, StackState, is_held, read_state
from weir.errors import ExitCode, MissingPart, NeighbourUnavailable

app = typer.Typer(help="The embedded stack.", no_args_is_help=True)


@app.command()
def up(
    parts: Annotated[list[str] | None, typer.Argument(help="Only these, and what they need.")] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground/--detach", help="Stay here and stop on Ctrl-C, or go on without me.")
    ] = False,
) -> None:
    """Start the embedded stack."""
    settings, console = StackSettings.load(), Console()
    paths = settings.paths
    if is_held(paths.run):
        _already(paths, console)
        return
    control.require_setup(settings, parts or ())
    began = time.monotonic()
    with display(console) as show:
        if foreground:
            from infra.local.stack import hold_up

            asyncio.run(hold_up(settings, parts or (), show))
            return
        control.start(settings, parts or (), show)
    console.print(f"up in {time.monotonic() - began:.1f} s", highlight=False)
    _where_next(console, paths)


def _already(paths: StackPaths, console: Console) -> None:
    state = control.running(paths)
    who = f"process {state.supervisor.pid}" if state else "another process"
    if state is not None and state.phase is Phase.RUNNING:
        console.print(f"up already, held by {who}. `weir status` shows it.", highlight=False)
        return
    console.print(f"{who} is at work on this stack: waiting for it.", highlight=False)
    with display(console) as show:
        control.wait_for_other(paths, show)


def _where_next(console: Console, paths: StackPaths) -> None:
    console.print(f"settings  {paths.config}\nlogs      {paths.logs} (`weir logs -f`)", highlight=False)
    console.print(
        "next      `weir simulate`, `weir decisions tail`, `weir status`, `weir down`", highlight=False
    )
    if users_config():
        console.print(
            f"note      your own settings file comes first: WEIR_CONFIG={paths.config} for this stack",
            highlight=False,
        )


@app.command()
def down(
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Remove its data, keys, certificates and logs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop the embedded stack."""
    paths, console = StackSettings.load().paths, Console()
    if wipe and not yes:
        typer.confirm(
            f"Remove all data, keys and logs in {paths.home}? What was sealed can never be read again.",
            abort=True,
        )
    with display(console) as show:
        ended = control.stop(paths, show)
    console.print(f"stopped {', '.join(ended)}" if ended else "nothing was running", highlight=False)
    if wipe:
        gone = control.wipe(paths)
        console.print(f"removed {', '.join(str(folder) for folder in gone) or 'nothing'}", highlight=False)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what runs, where, and how it feels."""
    paths = StackSettings.load().paths
    state = control.running(paths)
    if as_json:
        typer.echo(json.dumps(_as_json(state, paths), indent=2))
    elif state is not None:
        console = Console()
        console.print(
            f"{state.phase}, supervisor {state.supervisor.pid}, settings {paths.config}", highlight=False
        )
        console.print(table(state, time.time()))
    if state is None:
        raise NeighbourUnavailable(f"no stack runs in {paths.home}.{_last(paths)} Start it with `weir up`.")
    sick = [part.name for part in state.parts if part.phase not in READY]
    if sick:
        raise NeighbourUnavailable(f"not healthy: {', '.join(sick)}. See `weir logs {sick[0]}`.")


def _last(paths: StackPaths) -> str:
    state = read_state(paths.run)
    if state is None or state.phase is Phase.STOPPED:
        return ""
    if state.phase is Phase.FAILED:
        return f" Its last start failed: {state.failure}"
    return " Its supervisor was killed; the next start cleans up."


def _as_json(state: StackState | None, paths: StackPaths) -> dict[str, Any]:
    now = time.time()
    return {
        "phase": str(state.phase) if state else str(Phase.STOPPED),
        "supervisor_pid": state.supervisor.pid if state else None,
        "config": str(paths.config),
        "logs": str(paths.logs),
        "parts": [
            {
                "name": part.name,
                "phase": str(part.phase),
                "healthy": part.phase in READY,
                "pid": part.process.pid if part.process else None,
                "uptime_seconds": round(now - part.since, 3) if part.phase is PartPhase.HEALTHY else None,
                "ports": part.ports,
                "restarts": part.restarts,
                "detail": part.detail,
            }
            for part in (state.parts if state else ())
        ],
    }


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="One part; all without it.")] = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 20,
) -> None:
    """Show the logs of the stack's parts."""
    folder = StackSettings.load().paths.logs
    found = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if name is not None and name not in found:
        raise MissingPart(f"no log of {name!r} in {folder}. There are: {', '.join(found) or 'none yet'}.")
    chosen = [found[name]] if name else list(found.values())
    width = max((len(path.stem) for path in chosen), default=0)
    for path in chosen:
        for text in last_lines(path, count):
            typer.echo(_prefixed(path, text, width, len(chosen)))
    if following:
        for path, text in follow(chosen):
            typer.echo(_prefixed(path, text, width, len(chosen)))


def _prefixed(path: Path, text: str, width: int, log_count: int) -> str:
    return text if log_count == 1 else f"{path.stem:<{width}} | {text}"


@app.command()
def doctor(
    part: Annotated[str | None, typer.Argument(help="One check, such as java, kafka, triton, keys.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and each neighbour; say what to do."""
    from infra.local.doctor import Verdict, examine

    findings = asyncio.run(examine(part))
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.secho(f"{finding.verdict.upper():<8}", fg=finding.colour, nl=False)
            typer.echo(f"{finding.name:<{width}}  {finding.text}")
    verdicts = {finding.verdict for finding in findings}
    if Verdict.MISSING in verdicts:
        raise typer.Exit(ExitCode.MISSING)
    if Verdict.AWAY in verdicts:
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long payments are sent.")] = 40.0,
    rate: Annotated[float, typer.Option(min=1, help="Payments a second.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the synthetic bank.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", envvar="WEIR_DEMO_KEEP", help="Leave the stack up afterwards.")
    ] = False,
) -> None:
    """Run a synthetic bank through the stack and watch the decisions."""
    from infra.local.demo import run

    run(seconds=seconds, rate=rate, seed=seed, keep=keep)
