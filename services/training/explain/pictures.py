"""Pictures of the model as a whole: what weighs how much, each feature's shape and what it rests on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.training.additive import Floats
from services.training.explain.importance import Effect, Weight
from services.training.plots import BLUE, GREY, RED, picture

_TICKS_MAX = 9
_WEIGHTS_MAX = 20


def weights_plot(path: Path, weights: Sequence[Weight]) -> None:
    """The heaviest features' mean |contribution| with its interval, heaviest on top; at most 20."""
    shown = list(weights[:_WEIGHTS_MAX])[::-1]
    with picture(path) as axes:
        values = [weight.contribution for weight in shown]
        at = range(len(shown))
        axes.barh(at, [each.value for each in values], color=BLUE, height=0.6)
        axes.hlines(at, [each.low for each in values], [each.high for each in values], color=RED, linewidth=1)
        axes.set_axisbelow(True)
        axes.set_yticks(at, [weight.feature for weight in shown], fontsize=6)
        axes.set_xlabel("mean |contribution|, logit units, with 95 % interval by account")


def effect_plot(path: Path, effect: Effect) -> None:
    """The mean logit over the feature's cells, with the share of payments in each cell as bars behind.

    Cells are drawn equally wide, so that none is too thin to see; the axis names upper edges. A cell without
    a payment is hatched in grey: there the model says something that nothing supports.
    """
    count = len(effect.logit)
    with picture(path) as axes:
        behind = axes.twinx()
        behind.bar(np.arange(count), effect.share, width=1.0, color=GREY, alpha=0.35, linewidth=0)
        behind.set_ylabel("share of payments (bars)")
        behind.grid(visible=False)
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        for cell in np.flatnonzero(effect.share == 0):
            axes.axvspan(
                cell - 0.5, cell + 0.5, facecolor="none", edgecolor=GREY, alpha=0.5, hatch="///", linewidth=0
            )
        axes.stairs(effect.logit, np.arange(count + 1) - 0.5, color=BLUE, baseline=None, linewidth=1.4)
        axes.axhline(effect.mean, color=RED, linewidth=0.8, linestyle="--")
        ticks = np.unique(np.linspace(0, count - 1, min(count, _TICKS_MAX)).astype(int))
        axes.set_xticks(ticks, [edge_text(effect.edges, cell) for cell in ticks], fontsize=7)
        axes.set_xlabel(f"{effect.feature}: cells of the model by upper edge (hatched: no payment)")
        axes.set_ylabel("mean logit (line)")


def edge_text(edges: Floats, cell: int) -> str:
    """A cell's upper edge; `more` for all above a finite last one, `nan` for the cell set apart."""
    if cell < len(edges):
        # LightGBM writes 1e-35 for an edge at zero.
        edge = 0.0 if abs(edges[cell]) < 1e-30 else float(edges[cell])
        return f"{edge:.4g}" if np.isfinite(edge) else "more"
    return "nan" if len(edges) and not np.isfinite(edges[-1]) else "more, nan"
