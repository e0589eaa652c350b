"""The model as a whole on disk: JSON, CSV, Markdown and pictures."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from services.training.explain.importance import Effect, Weight
from services.training.explain.pictures import edge_text, effect_plot, weights_plot

THIN_SHARE = 0.001  # a cell with fewer of the payments than this rests on little


def write(
    folder: Path,
    about: Mapping[str, Any],
    weights: Sequence[Weight],
    effects: Sequence[Effect],
    pictures: int,
) -> list[Path]:
    """The files, as written: importance.json, partial_dependence.csv, importance.svg, a picture for each of
    the first `pictures` effects, README.md.

    Args:
        about: what was explained on what, plain values.
    Raises:
        OSError: the folder may not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "importance.json", folder / "partial_dependence.csv", folder / "importance.svg"]
    plain = {**about, "features": [asdict(weight) for weight in weights]}
    made[0].write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    with made[1].open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["feature", "above", "up_to", "mean_logit", "effect", "share_of_payments"])
        for effect in effects:
            lines.writerows(_cells(effect))
    weights_plot(made[2], weights)
    for effect in effects[:pictures]:
        made.append(folder / f"{effect.feature}.svg")
        effect_plot(made[-1], effect)
    made.append(folder / "README.md")
    made[-1].write_text(_markdown(about, weights, effects, pictures), encoding="utf-8")
    return made


def markdown_weights(weights: Sequence[Weight]) -> list[str]:
    """A Markdown table of the weights, a line each."""
    head = [
        "| feature | mean contribution, logit units | average precision lost without it |",
        "|---|---:|---:|",
    ]
    return head + [f"| `{each.feature}` | {each.contribution} | {each.permuted} |" for each in weights]


def thin_cells(effect: Effect) -> tuple[int, int]:
    """How many of its cells hold less than 1 in 1,000 payments, and none; the one for nan is not counted."""
    share = effect.share[:-1] if len(effect.edges) and not np.isfinite(effect.edges[-1]) else effect.share
    return int((share < THIN_SHARE).sum()), int((share == 0).sum())


def _cells(effect: Effect) -> list[list[str]]:
    above = ["", *(f"{edge:.9g}" for edge in effect.edges)]
    return [
        [
            effect.feature,
            above[cell] if edge_text(effect.edges, cell) != "nan" else "nan",
            f"{effect.edges[cell]:.9g}" if cell < len(effect.edges) else edge_text(effect.edges, cell),
            f"{effect.logit[cell]:.6f}",
            f"{effect.logit[cell] - effect.mean:.6f}",
            f"{effect.share[cell]:.6f}",
        ]
        for cell in range(len(effect.logit))
    ]


def _markdown(
    about: Mapping[str, Any], weights: Sequence[Weight], effects: Sequence[Effect], pictures: int
) -> str:
    lines = [
        f"# What {about['name']} {about['version']} goes by",
        "",
        f"Model `{about['sha256'][:12]}`, feature spec `{about['feature_spec']}`, data "
        f"{about['fingerprint'][:12]}. On {about['rows']:,} payments of {about['window']} with "
        f"{about['frauds']:,} frauds. Intervals are 95 %, by account, {about['draws']} draws, "
        f"seed {about['seed']}.",
        "",
        *markdown_weights(weights),
        "",
        "![importance](importance.svg)",
        "",
        "## Partial dependence",
        "",
        "Exact: the feature's own table, and the expectation of its pairs over the other feature. All of it "
        "is in `partial_dependence.csv`. A cell in which few payments lie says little, whatever its height.",
        "",
        "| feature | span, logit units | cells | with less than 1 in 1,000 payments | with none |",
        "|---|---:|---:|---:|---:|",
    ]
    for effect in effects:
        thin, empty = thin_cells(effect)
        lines.append(f"| `{effect.feature}` | {effect.span:.3f} | {len(effect.logit)} | {thin} | {empty} |")
    for effect in effects[:pictures]:
        lines += ["", f"![{effect.feature}]({effect.feature}.svg)"]
    return "\n".join(lines) + "\n"
