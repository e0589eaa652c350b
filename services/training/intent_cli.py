"""`weir train intent`, `weir evaluate intent`."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from services.training.intents import Questions

Data = Annotated[Path, typer.Option("--data", help="Folder with a train.csv of text and category.")]
Strange = Annotated[
    Path | None,
    typer.Option("--out-of-scope", help="JSON lines of text and intent; of these `oos`."),
]
Test = Annotated[Path | None, typer.Option("--test", help="CSV of text and category, kept apart.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]


def train_intent(
    data: Data,
    out_of_scope: Strange = None,
    test: Test = None,
    repository: Annotated[
        Path | None, typer.Option(help="Triton model repository; default the one that ships.")
    ] = None,
    origin: Annotated[str, typer.Option(help="What the data is and its licence, for the card.")] = "",
    as_json: AsJson = False,
) -> None:
    """Train the intents' head over the encoder that [knowledge] names, and put it into a model repository."""
    from services.chat.understanding.intents import SHIPPED
    from services.training import intents

    head, figures = intents.train(*_read(data, out_of_scope, test))
    folder = intents.write(head, figures, repository or SHIPPED, origin)
    _say({"folder": str(folder), **figures}, as_json=as_json)


def evaluate_intent(
    data: Data, out_of_scope: Strange = None, test: Test = None, as_json: AsJson = False
) -> None:
    """Accuracy, calibration and rejection of a head fitted on folds; nothing is kept."""
    from services.training import intents

    _say(intents.train(*_read(data, out_of_scope, test))[1], as_json=as_json)


def _read(
    data: Path, out_of_scope: Path | None, test: Path | None
) -> "tuple[Questions, Questions | None, Questions | None]":
    from services.chat.knowledge.encoding import opened
    from services.chat.knowledge.settings import KnowledgeSettings
    from services.training import intents
    from weir.config import TritonSettings
    from weir.errors import ConfigError

    rows = intents.read_questions(data)
    strange = intents.read_out_of_scope(out_of_scope) if out_of_scope is not None else None
    apart = intents.read_labelled(test) if test is not None else None

    async def run() -> "tuple[Questions, Questions | None, Questions | None]":
        async with opened(KnowledgeSettings.load(), TritonSettings.load()) as encoders:
            if encoders is None:
                raise ConfigError("[knowledge] names no encoder. Set it, or start the embedded stack.")
            encoder = encoders.asked
            return (
                await intents.encoded(rows, encoder),
                await intents.encoded(strange, encoder) if strange is not None else None,
                await intents.encoded(apart, encoder) if apart is not None else None,
            )

    return asyncio.run(run())


def _say(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        if isinstance(value, dict) and "share" not in value:
            _say({f"{name}.{key}": part for key, part in value.items()}, as_json=False)
        elif isinstance(value, dict):
            between = f"{value['low']:.4f}-{value['high']:.4f}"
            typer.echo(f"{name}: {value['share']:.4f} ({between}, n={value['count']})")
        else:
            typer.echo(f"{name}: {value}")
