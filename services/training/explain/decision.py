"""One decision taken apart: the event found again, what each feature adds to its score, what is usual."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Calibration, Floats, Floats32
from services.training.data import DAY_MS, Events
from services.training.errors import DataMissing, TrainingError
from services.training.explain.counterfactual import Counterfactual, Search
from services.training.explain.moves import Moves, Quantiles
from weir.features.offline import time_column

if TYPE_CHECKING:
    from services.training.split import Bools

LAST_DAYS = 7
USUAL_DAYS = 30
_ID_COLUMNS = {"weir": ("event_id", "event_time"), "handbook": ("TRANSACTION_ID", "TX_DATETIME")}


class EventNotFound(DataMissing):
    """The data hold no such event, or several: then nobody can say which was meant."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision's score, taken apart.

    values: (F,) float32. contributions: (F,) float64, logit units, which add up with `base_logit` to `logit`.
    place: share of the last week's payments, this one aside, with a lower probability, 0 to 1; nan if there
    were none. quantile: (F,) float64, the share of training rows below each value. usual: (F,) float64, the
    median over the account's own payments of the 30 days before; nan if it has none. model: name, version,
    sha256 and feature_spec.
    """

    event_id: str
    model: Mapping[str, str]
    features: tuple[str, ...]
    values: Floats32
    contributions: Floats
    base_logit: float
    logit: float
    probability: float
    calibration: Calibration
    threshold: float
    place: float
    place_rows: int
    quantile: Floats
    usual: Floats
    usual_rows: int
    training_days: str
    training_rows: int
    counterfactual: Counterfactual | None

    @property
    def order(self) -> list[int]:
        """Features that move the score, strongest first; of equal ones the first."""
        strongest = np.argsort(-np.abs(self.contributions), kind="stable")
        return [int(each) for each in strongest if self.contributions[each] != 0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not known or no number is None."""
        return {
            "event_id": self.event_id,
            "model": dict(self.model),
            "base_logit": self.base_logit,
            "logit": self.logit,
            "probability": self.probability,
            "threshold": self.threshold,
            "place": {"share_below": _plain(self.place), "payments": self.place_rows, "days": LAST_DAYS},
            "training": {"days": self.training_days, "rows": self.training_rows},
            "account_rows": self.usual_rows,
            "features": [
                {
                    "feature": name,
                    "value": _plain(self.values[at]),
                    "contribution": float(self.contributions[at]),
                    "quantile": _plain(self.quantile[at]),
                    "account_median": _plain(self.usual[at]),
                }
                for at, name in enumerate(self.features)
            ],
            "counterfactual": _counterfactual(self),
        }


def explain(
    events: Events,
    x: Floats32,
    at: int,
    event_id: str,
    *,
    model: AdditiveModel,
    about: Mapping[str, Any],
    training: "Bools",
    training_days: str,
    moves: Moves,
    threshold: float,
) -> Explanation:
    """The event at row `at` of events and of their features x, (n, F).

    Args:
        training: (n,) bool, the rows to compare with.
        about: what the version's model.json says.
    Raises:
        TrainingError: no training rows, or the threshold is no probability.
    """
    seen = Quantiles.of(x[training])
    row, now = x[at], int(events.event_ms[at])
    contributions = model.contributions(row[None])[0]
    logit = model.base_logit + float(contributions.sum())
    probability = float(model.calibration(np.array([logit]))[0])
    week = (events.event_ms > now - LAST_DAYS * DAY_MS) & (events.event_ms <= now)
    week[at] = False
    own = (events.payments.account == events.payments.account[at]) & (np.arange(len(x)) < at)
    own &= events.event_ms > now - USUAL_DAYS * DAY_MS
    return Explanation(
        event_id=event_id,
        model={key: str(about[key]) for key in ("name", "version", "sha256", "feature_spec")},
        features=model.features,
        values=row,
        contributions=contributions,
        base_logit=model.base_logit,
        logit=logit,
        probability=probability,
        calibration=model.calibration,
        threshold=threshold,
        place=float((model.probability(x[week]) < probability).mean()) if week.any() else float("nan"),
        place_rows=int(week.sum()),
        quantile=np.array([seen.at(each, row[each : each + 1])[0] for each in range(len(row))]),
        usual=np.median(x[own], axis=0).astype(np.float64) if own.any() else np.full(len(row), np.nan),
        usual_rows=int(own.sum()),
        training_days=training_days,
        training_rows=int(training.sum()),
        counterfactual=Search(model, moves, seen).nearest(row, threshold),
    )


def place_of(folder: Path, event_id: str, events: Events) -> int:
    """The row of `events`, which were read from the folder, that has this id.

    Raises:
        EventNotFound: no event, or several, have it. BadInput: a file without the columns.
    """
    id_name, time_name = _ID_COLUMNS[events.origin]
    pattern = "transactions-*.parquet" if events.origin == "weir" else "*.parquet"
    found: list[tuple[int, str]] = []
    times: list[NDArray[np.int64]] = []
    start = 0
    for file in sorted(folder.glob(pattern)):
        if id_name not in pq.read_schema(file).names:
            raise EventNotFound(f"{file} has no column {id_name}, so no event can be found by its id.")
        table = pq.read_table(file, columns=[id_name, time_name])
        same = pc.equal(table[id_name].cast(pa.string()), event_id)
        found += [(start + int(each), file.name) for each in pc.indices_nonzero(same).to_numpy()]
        times.append(_ms(table[time_name]))
        start += table.num_rows
    if not found:
        raise EventNotFound(f"{folder}: no event has that id. Look at how it is written, and at the days.")
    if len(found) > 1:
        names = sorted({name for _, name in found})
        raise EventNotFound(
            f"{folder}: {len(found)} events have that id, in {', '.join(names)}. "
            "Take the copies out with `weir data clean`."
        )
    order = np.argsort(np.concatenate(times), kind="stable")
    return int(np.flatnonzero(order == found[0][0])[0])


def _ms(column: Any) -> NDArray[np.int64]:
    """Times as `read_events` reads them, in whichever of the two layouts."""
    if pa.types.is_timestamp(column.type) and column.type.tz is None:
        return np.asarray(column.to_numpy().astype("datetime64[ms]").astype(np.int64))
    return time_column(column)


def rounded_to_sum(parts: Sequence[float], total: int, digits: int) -> list[int]:
    """Each part in units of 10**-digits, rounded so that they add up to `total`, in those units.

    What rounding leaves over goes to the parts that it distorts least, one unit each (largest remainders).

    Raises:
        TrainingError: the parts do not add up to the total to begin with.
    """
    scaled = np.asarray(parts, np.float64) * 10**digits
    whole = np.rint(scaled).astype(np.int64)
    left = total - int(whole.sum())
    if abs(left) > len(whole):
        raise TrainingError("The contributions do not add up to the logit.")
    rest = scaled - whole
    for at in np.argsort(-rest if left > 0 else rest, kind="stable")[: abs(left)]:
        whole[at] += 1 if left > 0 else -1
    return [int(each) for each in whole]


def _counterfactual(told: Explanation) -> dict[str, Any] | None:
    found = told.counterfactual
    if found is None:
        return None
    moved = {name for change in found.changes for name in change.lever.features}
    return {
        "probability": found.probability,
        "distance": found.distance,
        "exact": found.exact,
        "changes": [
            {
                "lever": change.lever.name,
                "by": change.lever.by,
                "before": list(change.before),
                "after": list(change.after),
                "shift": change.shift,
            }
            for change in found.changes
        ],
        "follows": {
            name: [_plain(told.values[at]), _plain(found.row[at])]
            for at, name in enumerate(told.features)
            if name not in moved and found.row[at] != told.values[at] and not np.isnan(told.values[at])
        },
    }


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
