"""Pictures for the papers: SVG, one look, the same bytes for the same numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, RED, GREY = "#2f5d8a", "#b3261e", "#8a8f94"
_LOOK: Any = {
    "svg.hashsalt": "weir",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "legend.frameon": False,
    "savefig.bbox": "tight",
}


@contextmanager
def drawing() -> Iterator[tuple[Any, dict[str, bytes]]]:
    """Axes to draw on; at the end the second holds "svg" and "png"."""
    made: dict[str, bytes] = {}
    with rc_context(_LOOK):
        # The figure itself, without pyplot: no window, and nothing that outlives it.
        figure = Figure(figsize=(6.4, 3.6))
        FigureCanvasAgg(figure)
        yield figure.add_subplot(), made
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            held = BytesIO()
            # Without a date, the same numbers give the same file.
            figure.savefig(held, format=kind, metadata=metadata, dpi=160)
            made[kind] = held.getvalue()


@contextmanager
def picture(path: Path) -> Iterator[Any]:
    """Axes to draw on; at the end the SVG is at `path`."""
    with drawing() as (axes, made):
        yield axes
    path.write_bytes(made["svg"])


def pareto_plot(
    path: Path, points: Sequence[tuple[str, float, float, bool]], *, across: str, up: str
) -> None:
    """Name, x, y and whether nothing beats it; x on a logarithmic scale, the best ones joined by a line."""
    with picture(path) as axes:
        best = sorted((x, y) for _, x, y, chosen in points if chosen)
        axes.plot(*zip(*best, strict=True), color=BLUE, drawstyle="steps-post", linewidth=1)
        for name, x, y, chosen in points:
            axes.plot(x, y, marker="o" if chosen else "x", color=BLUE if chosen else GREY, markersize=5)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, -3), fontsize=7)
        axes.set_xscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel(up)


def cost_plot(path: Path, points: Sequence[tuple[float, float]], chosen: float) -> None:
    """Cost a day by reviews a day, with a line at what was chosen."""
    with picture(path) as axes:
        axes.plot(*zip(*sorted(points), strict=True), color=BLUE, linewidth=1.2)
        axes.axvline(chosen, color=RED, linewidth=1)
        axes.set_xscale("symlog")
        axes.set_xlabel("payments that people look at, a day")
        axes.set_ylabel("cost a day")


def calibration_plot(points: Sequence[tuple[float, float]], *, across: str, up: str) -> tuple[bytes, bytes]:
    """SVG and PNG of what was expected and what came of it, on logarithmic scales, with their diagonal."""
    with drawing() as (axes, made):
        low = min((min(pair) for pair in points), default=1e-3)
        axes.plot([low, 1], [low, 1], color=GREY, linewidth=0.8)
        axes.plot(*zip(*sorted(points), strict=True), color=BLUE, marker="o", markersize=4, linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
    return made["svg"], made["png"]
