"""The numbers of a validation: measured now, on the data given, from the version as it serves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from services.training.additive import Floats
from services.training.evaluate import Report
from services.training.fit import Bools
from services.training.repository import ServedModel
from services.training.thresholds import Costs, Judged, Outcome, Thresholds, best_thresholds, outcome
from services.training.train import Table
from services.training.watch.run import watched_of
from services.training.watch.slices import Slice, slices
from weir.features.payments import DEFAULT
from weir.inference.stages import Stages

# Quantiles of the score between which calibration is told: most payments score low, so finer at the top.
CALIBRATION_AT = (0.0, 0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
FRAUDS_FEW = 100
AGREES_WITHIN = 1e-3


@dataclass(frozen=True, slots=True)
class Bin:
    """Payments between two quantiles of the score: how many, the mean probability, the share of fraud."""

    low: float
    high: float
    rows: int
    frauds: int
    expected: float
    observed: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the papers say.

    report: the test window, measured now. off: by how much the recorded figures differ most, nan for other
    data. added_up: largest difference between base plus contributions and the logit, over the test rows.
    """

    about: Mapping[str, Any]
    same_data: bool
    fingerprint: str
    window: str
    report: Report
    off: float
    bins: tuple[Bin, ...]
    slices: tuple[Slice, ...]
    thresholds: Mapping[str, Outcome]
    added_up: float
    stages: Stages | None

    def findings(self) -> list[str]:
        """What a reviewer should look at first, as words of `words`; empty where nothing stands out."""
        out = []
        if self.report.fraud_count < FRAUDS_FEW:
            out.append("few_frauds")
        if not self.same_data:
            out.append("other_data")
        elif not self.off <= AGREES_WITHIN:
            out.append("not_repeated")
        if not self.added_up <= AGREES_WITHIN:
            out.append("not_additive")
        baselines = self.about["metrics"].get("baselines", {})
        high = max((each["metrics"]["average_precision"]["high"] for each in baselines.values()), default=0.0)
        if self.same_data and self.report.metrics["average_precision"].low <= high:
            out.append("not_above_baselines")
        if any(not 0.5 <= each.expected / each.observed <= 2 for each in self._filled()):
            out.append("calibration")
        if any(each.auc_roc is None for each in self.slices):
            out.append("small_slices")
        if "simulated" in str(self.about["trained"].get("origin", "")):
            out.append("simulated")
        return out

    def _filled(self) -> list[Bin]:
        """Bins with enough frauds to tell a share from chance."""
        return [each for each in self.bins if each.frauds >= 10]

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for programs."""
        return {
            "name": self.about["name"],
            "version": self.about["version"],
            "sha256": self.about["sha256"],
            "fingerprint": self.fingerprint,
            "same_data": self.same_data,
            "window": self.window,
            "report": self.report.as_dict(),
            "recorded_figures_off_by": None if np.isnan(self.off) else self.off,
            "calibration": [asdict(each) for each in self.bins],
            "slices": [each.as_dict() for each in self.slices],
            "thresholds": {
                name: {key: None if value == np.inf else value for key, value in _flat(each).items()}
                for name, each in self.thresholds.items()
            },
            "contributions_off_by": self.added_up,
            "findings": self.findings(),
        }


def gather(
    table: Table,
    served: ServedModel,
    stages: Stages | None,
    *,
    costs: Costs,
    reviews_day: float,
    draws: int,
    seed: int,
) -> Facts:
    """Measure the version on the table's test window.

    Raises:
        TrainingError: the window holds one class only.
    """
    rows = table.test_rows(DEFAULT.label_delay_days)
    report = table.measure(served, rows, draws=draws, seed=seed)
    x, fraud = table.x[rows], table.events.is_fraud[rows]
    out = served.run(x)
    total = float(served.about["base_logit"]) + out["contributions"].astype(np.float64).sum(axis=1)
    same = served.about["trained"]["data"]["fingerprint"] == table.events.fingerprint
    recorded = served.about["metrics"]["test"]["metrics"]
    off = max(abs(report.metrics[name].value - recorded[name]["value"]) for name in report.metrics)
    watched = watched_of(table.events, served, ripe_days=DEFAULT.label_delay_days)
    return Facts(
        served.about,
        same,
        table.events.fingerprint,
        str(table.split.test),
        report,
        float(off) if same else float("nan"),
        _bins(out["probability"].ravel().astype(np.float64), fraud),
        slices(watched).single,
        _thresholds(table, served, rows, costs, reviews_day),
        float(np.abs(total - out["logit"].ravel()).max()),
        stages,
    )


def _bins(probability: Floats, fraud: Bools) -> tuple[Bin, ...]:
    order = np.argsort(probability, kind="stable")
    cuts = [round(share * len(order)) for share in CALIBRATION_AT]
    out = []
    for place, (first, last) in enumerate(pairwise(cuts)):
        if last > first:
            chosen = order[first:last]
            out.append(
                Bin(
                    CALIBRATION_AT[place],
                    CALIBRATION_AT[place + 1],
                    last - first,
                    int(fraud[chosen].sum()),
                    float(probability[chosen].mean()),
                    float(fraud[chosen].mean()),
                )
            )
    return tuple(out)


def _thresholds(
    table: Table, served: ServedModel, rows: Bools, costs: Costs, reviews_day: float
) -> Mapping[str, Outcome]:
    before = Judged.of(table, served, table.split.validation.rows(table.events.event_ms))
    after = Judged.of(table, served, rows)
    best = best_thresholds(before, costs, reviews_day=reviews_day)
    return {
        "nothing": outcome(after, Thresholds(float("inf"), float("inf")), costs),
        "chosen": outcome(after, best, costs),
    }


def _flat(each: Outcome) -> dict[str, Any]:
    about = each.as_dict()
    return {**about.pop("thresholds"), **about}
