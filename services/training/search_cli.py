"""`weir train search`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from services.training.command import AsJson, Data, Protocol, Seed, step, table_of
from services.training.settings import TrainingSettings


def search(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the search; one that has begun there goes on.")
    ],
    trials: Annotated[int, typer.Option(min=2, help="In all; half the teacher's, half the student's.")] = 40,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no trial after that.")] = 60.0,
    weeks: Annotated[int, typer.Option(min=1, max=8, help="Validation weeks that judge a trial.")] = 2,
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Search the settings of teacher and student on weeks before the test week; killed, it can go on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from services.training.search import FOUND, Search

    settings = TrainingSettings.load()
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
    work = Search(
        table,
        out,
        fold_count=weeks,
        honest_max=settings.honest_rows_max,
        seed=seed,
        threads=settings.threads,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("best average precision {task.fields[best]:.4f}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = {
            "teacher": bar.add_task("teacher", total=trials // 2, best=float("nan")),
            "student": bar.add_task("student", total=trials - trials // 2, best=float("nan")),
        }
        found = work.run(
            trials,
            minutes=minutes,
            progress=lambda name, done, best: bar.update(shown[name], completed=done, best=best),
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    figures = found["average_precision"]
    typer.echo(
        f"Over {len(work.folds)} validation weeks, the last {work.folds[0].validation}: teacher "
        f"{figures['teacher']:.4f}, student {figures['student']:.4f} (before the search "
        f"{figures['student_before']:.4f})."
    )
    typer.echo(f"{out / FOUND}: use it with `weir train risk --data {data} --search {out}`.")
