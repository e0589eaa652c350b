"""What the commands of training share: their options, and how a folder becomes a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.errors import TrainingError
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from services.training.data import Events
    from services.training.fit import Recipe
    from services.training.split import Split
    from services.training.train import Table

Data = Annotated[Path, typer.Option("--data", help="Folder of labelled events (Parquet).")]
Repository = Annotated[Path | None, typer.Option(help="Model repository; default from the settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]
Seed = Annotated[int, typer.Option(min=0)]
Quick = Annotated[bool, typer.Option("--quick", help="A coarser fit within seconds, to try things out.")]


class Protocol(StrEnum):
    """Which rows judge."""

    LATER = "later"
    HANDBOOK = "handbook"
    PRECEDING = "preceding"


def table_of(data: Path, settings: TrainingSettings, protocol: Protocol) -> "Table":
    """The folder's events with their features, split as the protocol says.

    Raises:
        DataMissing, BadInput, TrainingError: as `events_of` and `table_from`.
    """
    return table_from(events_of(data, settings), settings, protocol)


def events_of(data: Path, settings: TrainingSettings) -> "Events":
    """The folder's events, whose features are a cluster's to compute where the settings name one.

    Its workers read the folder while this process does.

    Raises:
        DataMissing, BadInput, TrainingError: as `read_events`.
        ConfigError, MissingPart, NeighbourUnavailable: as `services.training.cluster.link.join`.
    """
    from services.training.cluster.link import join
    from services.training.data import read_events

    if (cluster := join(settings)) is not None and data.is_dir():
        from services.training.cluster.features import begin

        begin(cluster, data.absolute())
    return read_events(data)


def table_from(events: "Events", settings: TrainingSettings, protocol: Protocol = Protocol.LATER) -> "Table":
    """Events that are read, with their features, split as the protocol says.

    Raises:
        TrainingError: too few days, or the protocol's test week is not there. Of a cluster: as `table_of`.
    """
    from services.training.cluster.link import join
    from services.training.train import Table
    from weir.features.payments import FEATURES

    join(settings)
    parts = split_from(events, settings, protocol)
    return Table(events, events.features(), FEATURES, parts)


def split_from(events: "Events", settings: TrainingSettings, protocol: Protocol) -> "Split":
    """The windows of a protocol. Errors as `table_from`."""
    from services.training import split
    from weir.features.payments import DEFAULT

    if protocol is Protocol.LATER:
        return split.by_time(
            events.event_ms,
            delay_days=DEFAULT.label_delay_days,
            validation_days=settings.validation_days,
            test_days=settings.test_days,
            warmup_days=settings.warmup_days,
        )
    handbook = protocol is Protocol.HANDBOOK
    parts = split.handbook() if handbook else split.handbook_preceding(int(events.event_ms[0]))
    if not parts.test.rows(events.event_ms).any():
        raise TrainingError(f"There are no payments in {parts.test}, the Handbook's test week.")
    return parts


def recipe_of(settings: TrainingSettings, seed: int, quick: bool) -> "Recipe":
    """The recipe that the settings name."""
    from services.training.fit import Recipe

    recipe = Recipe(
        seed=seed,
        bags=settings.bags,
        threads=settings.threads,
        pairs_max=settings.pairs_max,
        prune=settings.prune,
    )
    return recipe.quick() if quick else recipe


@contextmanager
def step(what: str) -> Iterator[None]:
    """Shows that something long is at work, on stderr, where a person watches."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what):
        yield
