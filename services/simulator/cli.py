"""`weir simulate`: the synthetic bank, to Parquet files or to Kafka."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from services.simulator.settings import SimulatorSettings

app = typer.Typer(help="Run a synthetic bank, to files or to Kafka.", add_completion=False)


@app.command()
def simulate(
    to_parquet: Annotated[
        Path | None, typer.Option(help="Write a history into this folder instead of sending to Kafka.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3660, help="Days of the history.")] = 60,
    start_date: Annotated[str | None, typer.Option(help="Its first day, such as 2026-01-01.")] = None,
    accounts: Annotated[int | None, typer.Option(min=10, help="Customers of the bank.")] = None,
    terminals: Annotated[int | None, typer.Option(min=20, help="Terminals that they pay at.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same bank.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Payments a second to Kafka; 0 as fast as they go.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many payments.")] = None,
    history_days: Annotated[
        int, typer.Option(min=0, max=400, help="First send so many past days, with their labels.")
    ] = 0,
    live_day: Annotated[
        int,
        typer.Option(min=0, max=3660, help="Which of the bank's days is lived now; take another each run."),
    ] = 0,
) -> None:
    """Run a synthetic bank, to files or to Kafka (until Ctrl-C, --seconds or --count)."""
    given: dict[str, Any] = {
        "accounts": accounts,
        "terminals": terminals,
        "seed": seed,
        "start_date": start_date,
        "rate": rate or None,
    }
    settings = SimulatorSettings.load(**{name: value for name, value in given.items() if value is not None})
    if to_parquet is not None:
        _to_parquet(settings, to_parquet, days)
        return
    flat_out = rate == 0
    if flat_out and seconds is None and count is None:
        raise typer.BadParameter("--rate 0 wants --seconds or --count.")
    _to_kafka(settings, seconds, count, flat_out, history_days, live_day)


def _to_parquet(settings: SimulatorSettings, folder: Path, days: int) -> None:
    from services.simulator.bank import Bank
    from services.simulator.parquet import write_history

    with _progress() as progress:
        task = progress.add_task("simulate", total=days, said="")

        def show(done: int, payments: int) -> None:
            progress.update(task, completed=done, said=f"{payments:,} payments")

        written = write_history(Bank(settings), folder, days, show)
    typer.echo(f"{written:,} payments of {days} days in {folder}")


def _to_kafka(
    settings: SimulatorSettings,
    seconds: float | None,
    count: int | None,
    flat_out: bool,
    history_days: int,
    live_day: int,
) -> None:
    from services.simulator.app import Sent, run
    from weir.config import KafkaSettings, RegistrySettings, TopicSettings

    with _progress() as progress:
        task = progress.add_task("simulate", total=count or seconds, said="")
        last = Sent()

        def show(sent: Sent) -> None:
            nonlocal last
            last = sent
            said = f"{sent.payments:,} payments, {sent.rate:,.0f}/s, {sent.labels:,} labels"
            if sent.history:
                said = f"{sent.history:,} of history, {said}"
            progress.update(task, completed=sent.payments if count else sent.seconds, said=said)

        # Ctrl-C is how a run without an end is ended; what was sent is acknowledged.
        with suppress(KeyboardInterrupt):
            asyncio.run(
                run(
                    settings,
                    KafkaSettings.load(),
                    TopicSettings.load(),
                    RegistrySettings.load(),
                    seconds=seconds,
                    count=count,
                    as_fast_as_possible=flat_out,
                    history_days=history_days,
                    live_day=live_day,
                    progress=show,
                )
            )
    typer.echo(
        f"{last.payments:,} payments in {last.seconds:.1f} s ({last.rate:,.0f}/s), "
        f"{last.labels:,} labels, {last.history:,} payments of history"
    )


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
