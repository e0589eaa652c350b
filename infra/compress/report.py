"""What is written of variants, whatever model they are of: the table, the plot, and what they need before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from weir.errors import MissingPart

TABLE, MARKDOWN = "compress.json", "compress.md"


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure's name and axes; points are name, cost, quality."""

    name: str
    points: Sequence[tuple[str, float, float]]
    across: str
    up: str


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (cost, quality) whether no other costs as little and is as good."""
    return [
        not any(other != (cost, quality) and other[0] <= cost and other[1] >= quality for other in points)
        for cost, quality in points
    ]


def require_memory(need: int) -> None:
    """Nothing, where `need` bytes of memory are free.

    Raises:
        MissingPart: fewer are.
    """
    free = psutil.virtual_memory().available
    if free < need:
        raise MissingPart(
            f"Measuring takes about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. "
            "Name fewer variants by --variant."
        )


def write(out: Path, about: Mapping[str, Any], markdown: str, plots: Sequence[Plot]) -> None:
    """The table for programs and for people, and the plots, into `out`."""
    from services.training.plots import pareto_plot

    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (out / MARKDOWN).write_text(markdown + "\n", encoding="utf-8")
    for plot in plots:
        best = unbeaten([(cost, quality) for _, cost, quality in plot.points])
        points = [(*point, chosen) for point, chosen in zip(plot.points, best, strict=True)]
        pareto_plot(out / plot.name, points, across=plot.across, up=plot.up)
