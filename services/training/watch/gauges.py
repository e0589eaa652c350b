"""Findings as gauges in Prometheus' text format, for the node exporter's textfile collector.

Each value is of the newest week that was judged for it. Labels are the model, its version, a feature's name,
a kind of alarm and a window: all from short, closed lists.
Source: Prometheus documentation, Exposition formats, text-based format 0.0.4.
"""

import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

from services.training.repository import write_file
from services.training.watch.run import Findings

KINDS = ("feature", "score", "fraud_rate", "performance")
LEVELS = ("", "moderate", "large")

# name: help. All are gauges.
GAUGES = {
    "weir_model_watch_as_of_seconds": "The moment the model was judged at, unix time.",
    "weir_model_watch_alarms": "Alarms in the newest week judged, by kind.",
    "weir_model_drift_psi": "Population stability index of a feature, or of the score.",
    "weir_model_drift_level": "0 not drifted, 1 moderate, 2 large; after the test.",
    "weir_model_drift_week_seconds": "First moment of the week that the drift is of, unix time.",
    "weir_model_fraud_rate": "Share of payments reported as fraud in time.",
    "weir_model_auc_roc": "AUC ROC.",
    "weir_model_average_precision": "Average precision.",
    "weir_model_observed_expected": "Frauds reported over frauds expected by the probabilities.",
    "weir_model_performance_week_seconds": "First moment of the newest week with all labels in, unix time.",
}
_FIGURES = ("auc_roc", "average_precision", "observed_expected")


def text(found: Findings) -> str:
    """The whole file; a gauge without a value is left out."""
    model = {"model": "risk", "version": found.version}
    values: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in GAUGES}
    values["weir_model_watch_as_of_seconds"].append(({}, found.now_ms / 1000))
    newest = max((each.week for each in found.drift.moved), default=None)
    judged = found.performance.weeks[-1] if found.performance and found.performance.weeks else None
    ripe = next((each for each in reversed(found.drift.rates) if np.isfinite(each.rate)), None)
    weeks = {
        "feature": newest,
        "score": newest,
        "fraud_rate": ripe.week if ripe else None,
        "performance": judged.week if judged else None,
    }
    for kind in KINDS:
        count = sum(each.kind == kind and each.week == weeks[kind] for each in found.alarms)
        values["weir_model_watch_alarms"].append(({"kind": kind}, count))
    for each in found.drift.moved:
        if each.week == newest:
            label = {"feature": each.feature}
            values["weir_model_drift_psi"].append((label, each.psi))
            values["weir_model_drift_level"].append((label, LEVELS.index(each.level)))
    if newest is not None:
        values["weir_model_drift_week_seconds"].append(({}, _seconds(newest)))
    if ripe is not None:
        for window, rate in (("reference", ripe.rate_reference), ("latest", ripe.rate)):
            values["weir_model_fraud_rate"].append(({"window": window}, rate))
    if found.performance is not None:
        windows = {"reference": found.performance.reference}
        if judged is not None:
            windows["latest"] = judged.drawn
            values["weir_model_performance_week_seconds"].append(({}, _seconds(judged.week)))
        for figure in _FIGURES:
            for window, drawn in windows.items():
                values[f"weir_model_{figure}"].append(({"window": window}, drawn.value[figure]))
    return "".join(_lines(model, values))


def write(path: Path, content: str) -> None:
    """The file, whole, at its place; a reader sees the old one or the new one.

    Raises:
        OSError: the folder is missing or full; the old file stands.
    """
    # The collector reads *.prom: the ending keeps it from the file that is not done.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_file(partial, content.encode())
        partial.chmod(0o644)  # the exporter runs as somebody else
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _lines(model: dict[str, str], values: dict[str, list[tuple[dict[str, str], float]]]) -> Iterator[str]:
    for name, series in values.items():
        known = [(labels, value) for labels, value in series if np.isfinite(value)]
        if not known:
            continue
        yield f"# HELP {name} {GAUGES[name]}\n# TYPE {name} gauge\n"
        for labels, value in known:
            told = ",".join(f'{label}="{word}"' for label, word in {**model, **labels}.items())
            yield f"{name}{{{told}}} {float(value)!r}\n"


def _seconds(day: str) -> float:
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * 86_400.0
