"""Whether a feature knows the future: what a row's features are may not depend on what came after it.

The features of a history that ends at a moment must be those of the whole history up to there, to the bit.
What came after is every later payment, and every label that was reported later, of earlier payments too. That
is no guess from a suspicious figure: a feature that passes for every cut cannot have used the future of these
rows, whatever it computes.

Beside it, and a guess, stands each feature's own AUC: one that tells fraud nearly alone is often a label in
disguise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.training import evaluate
from services.training.data import Events
from services.training.errors import TrainingError
from weir.features.columns import Labels, Payments

Floats32 = NDArray[np.float32]
FeaturesOf = Callable[[Payments, Labels], Floats32]
CUTS = 3
# A feature that tells fraud from honest payments this well by itself.
SUSPICIOUS_AUC = 0.97


class FeatureLeaks(TrainingError):
    """A feature knows the future; no model is made with it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"{', '.join(names)}: differs when later payments and labels are taken away, so it knows the "
            "future. Compute it from what came before each payment."
        )


@dataclass(frozen=True, slots=True)
class Leaks:
    """leaking: how many rows of each feature differed. cuts_ms: where histories ended."""

    leaking: dict[str, int]
    cuts_ms: list[int]

    def require_none(self) -> None:
        """Refuse features that know the future.

        Raises:
            FeatureLeaks: there is one.
        """
        if self.leaking:
            raise FeatureLeaks(sorted(self.leaking))


def find_leaks(
    events: Events,
    features_of: FeaturesOf,
    names: Sequence[str],
    *,
    whole: Floats32 | None = None,
    seed: int = 7,
    cuts: int = CUTS,
) -> Leaks:
    """Compare features of the whole history with those of histories that end earlier.

    Args:
        features_of: (n, F) float32 of payments by rising time, and all labels that were ever reported.
        names: of the F features. whole: of all payments, where they were computed before.
    """
    if whole is None:
        whole = features_of(events.payments, events.labels)
    leaking = dict.fromkeys(names, 0)
    chosen = sorted(np.random.default_rng(seed).choice(_middle(len(whole)), cuts, replace=False).tolist())
    cut_times = []
    for row in chosen:
        at_ms = int(events.event_ms[row])
        # Payments of the same millisecond may come in either order.
        count = int(np.searchsorted(events.event_ms, at_ms, side="left"))
        cut_times.append(at_ms)
        known = events.labels.rows(np.flatnonzero(events.labels.reported_ms < at_ms))
        part = features_of(events.payments.rows(slice(0, count)), known)
        differ = ~((part == whole[:count]) | (np.isnan(part) & np.isnan(whole[:count])))
        for name, hits in zip(names, differ.sum(axis=0), strict=True):
            leaking[name] += int(hits)
    return Leaks(
        {name: count for name, count in leaking.items() if count},
        cut_times,
    )


def _middle(count: int) -> NDArray[np.intp]:
    """Rows with enough before and after them."""
    return np.arange(count // 4, max(count * 9 // 10, count // 4 + CUTS))


def suspicious(x: Floats32, is_fraud: NDArray[np.bool_], names: Sequence[str]) -> dict[str, float]:
    """Features that tell fraud nearly alone, with their AUC, 0.5 to 1: often a label in disguise."""
    found = {}
    for column, name in enumerate(names):
        known = ~np.isnan(x[:, column])
        if 0 < is_fraud[known].sum() < known.sum():
            auc = evaluate.auc_roc(x[known, column].astype(np.float64), is_fraud[known])
            if max(auc, 1 - auc) >= SUSPICIOUS_AUC:
                found[name] = round(max(auc, 1 - auc), 4)
    return found
