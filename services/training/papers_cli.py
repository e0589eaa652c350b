"""`weir models papers`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from services.training.command import AsJson, Data, Protocol, Repository, Seed, step, table_of
from services.training.settings import TrainingSettings


def papers(
    version: Annotated[str, typer.Argument(help="A version in the repository.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the papers.")],
    reviews_day: Annotated[float, typer.Option(min=0, help="Payments a day that people can look at.")] = 100,
    decline: Annotated[float, typer.Option(min=0, help="Cost of an honest payment declined.")] = 60.0,
    review: Annotated[float, typer.Option(min=0, help="Cost of a person's look.")] = 12.0,
    font: Annotated[
        Path | None, typer.Option(help="TrueType font with Chinese glyphs, to embed in the Chinese PDFs.")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    repository: Repository = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Validation report and data card, measured now: HTML and PDF, English and Chinese."""
    from services.training.papers.compose import data_card, validation_report
    from services.training.papers.facts import gather
    from services.training.papers.paper import Language, to_html, to_pdf
    from services.training.repository import ModelRepository, write_file
    from services.training.thresholds import Costs
    from weir.inference.stages import LOG, PEOPLE, read_stages

    settings = TrainingSettings.load()
    home = ModelRepository(repository or settings.repository)
    costs = Costs(decline=decline, review=review)
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
        served = home.open("risk", version, features=table.features)
    with step("measuring"):
        facts = gather(
            table,
            served,
            read_stages(home.root / "risk" / LOG, home.root / PEOPLE),
            costs=costs,
            reviews_day=reviews_day,
            draws=settings.bootstrap_draws,
            seed=seed,
        )
    about = facts.as_dict()
    out.mkdir(parents=True, exist_ok=True)
    languages: tuple[Language, Language] = ("en", "zh")
    for language in languages:
        for name, paper in (
            ("validation", validation_report(facts, costs, reviews_day, language)),
            ("data-card", data_card(facts, language)),
        ):
            write_file(out / f"{name}.{language}.html", to_html(paper).encode())
            write_file(out / f"{name}.{language}.pdf", to_pdf(paper, font))
    write_file(out / "validation.json", (json.dumps(about, indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo(f"In {out}: validation and data-card, each as .en and .zh, .html and .pdf; validation.json.")
    for finding in facts.findings():
        from services.training.papers.words import speaking

        typer.echo(f"- {speaking('en')(finding)}")
