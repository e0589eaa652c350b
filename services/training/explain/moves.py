"""What could have been otherwise about a payment: levers, the features that follow from them, what is fixed.

Source: Ustun, Spangher, Liu 2019, Actionable recourse in linear classification (actionable features, their
directions and bounds).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Floats, Floats32
from services.training.errors import TrainingError
from weir.features.payments import DEFAULT, FEATURES, FeatureSpec

SHIPPED = Path(__file__).parent / "moves.toml"
_COUNTS = tuple(f"account_count_{window}" for window in ("1h", "1d", "7d", "30d"))
_CHANNELS = tuple(name for name in FEATURES if name.startswith("channel_"))
_DAY_S = 86_400.0
_IDLE_MAX_S = 30 * _DAY_S
# An empty window says how long ago the last payment was at least: all its whole buckets but the current one.
_EMPTY_IDLE_S = {"1d": 23 * 3600.0, "7d": 6 * _DAY_S, "30d": 29 * _DAY_S}


@dataclass(frozen=True, slots=True)
class Lever:
    """One thing that a person or time can move.

    features: what it sets; several are a one-hot choice. moves: down, up, or any (a choice). by: person or
    time. step: values are whole multiples of it, in the feature's unit. least, most: bounds, included.
    """

    name: str
    features: tuple[str, ...]
    moves: str
    by: str
    step: float = 1.0
    least: float = -np.inf
    most: float = np.inf


@dataclass(frozen=True)
class Quantiles:
    """Where values lie among training rows. columns: each feature's values, ascending, without nan."""

    columns: tuple[Floats32, ...]

    @classmethod
    def of(cls, x: Floats32) -> "Quantiles":
        """Of the rows of x, (n, F).

        Raises:
            TrainingError: no rows.
        """
        if not len(x):
            raise TrainingError(
                "There are no training rows to compare with. Give events of earlier days too."
            )
        return cls(tuple(np.sort(column[~np.isnan(column)]) for column in x.T))

    def at(self, feature: int, values: Floats32) -> Floats:
        """The share of training rows below each value, ties counted half, 0 to 1; nan for nan."""
        column = self.columns[feature]
        below, up_to = (np.searchsorted(column, values, side=side) for side in ("left", "right"))
        share = (below + up_to) / (2.0 * max(len(column), 1))
        return np.where(np.isnan(values) | (len(column) == 0), np.nan, share)

    def seen(self, feature: int, values: Floats32) -> NDArray[np.bool_]:
        """Which values lie between the lowest and the highest of the training rows."""
        column = self.columns[feature]
        if not len(column):
            return np.zeros(len(values), np.bool_)
        seen: NDArray[np.bool_] = (values >= column[0]) & (values <= column[-1])
        return seen


class Moves:
    """The levers of a file, over features in the model's order."""

    def __init__(self, levers: Sequence[Lever], features: Sequence[str], spec: FeatureSpec = DEFAULT) -> None:
        self.levers = tuple(levers)
        self.features = tuple(features)
        self.spec = spec

    @classmethod
    def load(cls, path: Path = SHIPPED, features: Sequence[str] = FEATURES) -> "Moves":
        """The file's levers.

        Raises:
            TrainingError: the file cannot be read, or a feature stands in none or several of its places.
        """
        try:
            told = tomllib.loads(path.read_text(encoding="utf-8"))
            levers = [_lever(name, each) for name, each in told.get("lever", {}).items()]
            named = [feature for lever in levers for feature in lever.features]
            named += [*told.get("follows", {}), *told.get("fixed", {})]
        except OSError as error:
            raise TrainingError(f"{path} cannot be read ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{path} is not a file of levers ({error}). Compare {SHIPPED.name}."
            ) from error
        wrong = sorted(set(named) ^ set(features)) or sorted(
            {name for name in named if named.count(name) > 1}
        )
        if wrong:
            raise TrainingError(
                f"{path}: {wrong[0]} must stand once, as a lever, under follows or under fixed."
            )
        return cls(levers, features)

    @cached_property
    def _at(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.features)}

    def index(self, lever: Lever) -> tuple[int, ...]:
        """The columns that it sets."""
        return tuple(self._at[name] for name in lever.features)

    def choices(self, lever: Lever, row: Floats32, model: AdditiveModel, seen: Quantiles) -> Floats32:
        """(m, d) float32: for each cell of the model that the lever reaches, its value nearest to the row's.

        Exact: within a cell nothing changes the score, so no other value can do as well from nearer. Cells
        without a training row on their side of the range are left out: nobody ever paid like that.
        """
        columns = self.index(lever)
        now = row[list(columns)]
        if np.isnan(now).any():
            return np.empty((0, len(columns)), np.float32)
        if lever.moves == "any":
            one_hot: Floats32 = np.eye(len(columns), dtype=np.float32)
            known = [bool(len(seen.columns[at]) and seen.columns[at][-1] > 0) for at in columns]
            others: Floats32 = one_hot[np.array(known) & (one_hot != now).any(axis=1)]
            return others
        (column,) = columns
        edges = self._edges(lever.name, row, model)
        edges = edges[np.isfinite(edges)]
        steps = np.floor(edges / lever.step)
        # The neighbours too: which side of an edge a multiple of the step is on is for float32 to say.
        steps = np.unique(np.concatenate([steps - 1, steps, steps + 1, [np.ceil(lever.least / lever.step)]]))
        values = (steps * lever.step)[
            (steps * lever.step >= lever.least) & (steps * lever.step <= lever.most)
        ]
        rounded = np.unique(values.astype(np.float32))
        moved = rounded < now[0] if lever.moves == "down" else rounded > now[0]
        nearest: Floats32 = rounded[moved & seen.seen(column, rounded)][:, None]
        return nearest

    def settled(self, rows: Floats32, before: Floats32, *, waited: bool = True) -> Floats32:
        """(m, F): rows with levers moved, and what follows from them made to fit.

        Where nothing moved a value stays what it was, to the bit; nan stays nan.

        Args:
            before: the rows as they were, (m, F), or (F,) for one that all were made of.
            waited: a later hour was waited for, without a payment in between.
        """
        out, at = rows.copy(), self._at
        was = np.broadcast_to(before, out.shape)
        self._hours(out, was, waited)
        lowered = [out[:, at[name]] < was[:, at[name]] for name in _COUNTS]
        fewer = np.any(lowered, axis=0)
        longer = out[:, at[_COUNTS[-1]]].copy()
        for name in reversed(_COUNTS[:-1]):
            own = out[:, at[name]].copy()
            out[:, at[name]] = np.where(fewer & (longer < own), longer, own)
            longer = np.fmin(own, longer)
        week, high = at["account_count_7d"], at["account_high_days_7d"]
        # A day with a high payment has a payment.
        fewer_days = (out[:, week] < was[:, week]) & (out[:, week] < out[:, high])
        out[fewer_days, high] = out[fewer_days, week]
        for window, least_s in _EMPTY_IDLE_S.items():
            count = at[f"account_count_{window}"]
            emptied = (out[:, count] == 0) & (was[:, count] > 0)
            out[emptied, at[f"account_amount_mean_{window}"]] = 0
            idle = at["account_idle_log_s"]
            out[emptied, idle] = np.maximum(out[emptied, idle], np.float32(np.log1p(least_s)))
        self._amounts(out, was)
        return out

    def _hours(self, out: Floats32, was: Floats32, waited: bool) -> None:
        """Another hour: night or not; if waited for, a new clock hour, longer since the last payment."""
        at = self._at
        hour = out[:, at["hour_of_day"]].astype(np.float64)
        hours = np.nan_to_num(hour - was[:, at["hour_of_day"]])
        moved, later = hours != 0, (hours > 0) & waited
        out[moved, at["is_night"]] = _is_night(hour[moved], self.spec)
        if not later.any():
            return
        out[later, at["account_count_1h"]] = 0 * was[later, at["account_count_1h"]]
        idle_s = np.expm1(was[later, at["account_idle_log_s"]].astype(np.float64)) + 3600 * hours[later]
        out[later, at["account_idle_log_s"]] = np.log1p(np.minimum(idle_s, _IDLE_MAX_S))
        known = later & (was[:, at["account_count_30d"]] > 0)
        age = np.minimum(was[known, at["account_age_days"]] + hours[known] / 24, 30)
        out[known, at["account_age_days"]] = np.maximum(out[known, at["account_age_days"]], age)

    def _amounts(self, out: Floats32, was: Floats32) -> None:
        """What the amount is, alone and against the account's mean; and what no mean leaves to be told."""
        at = self._at
        amount, mean = (out[:, at[name]].astype(np.float64) for name in ("amount", "account_amount_mean_30d"))
        other = (out[:, at["amount"]] != was[:, at["amount"]]) & ~np.isnan(was[:, at["amount"]])
        out[other, at["amount_log"]] = np.log1p(np.maximum(amount[other], 0))
        empty = out[:, at["account_count_30d"]] == 0
        emptied = empty & (was[:, at["account_count_30d"]] > 0)
        touched = other | emptied
        ratio = np.where(empty, 1.0, np.minimum(amount / np.maximum(mean, 0.01), 1000))
        score = np.where(empty, 0.0, np.clip((amount - mean) / self._deviation(was), -100, 100))
        out[touched, at["account_amount_ratio_30d"]] = ratio[touched]
        out[touched, at["account_amount_zscore_30d"]] = score[touched]
        out[emptied, at["account_highest_ratio_30d"]] = 1

    def _deviation(self, was: Floats32) -> Floats:
        """(m,) spread of each account's amounts; from the score where that tells it, else its least."""
        amount, mean, score = (
            was[:, self._at[name]].astype(np.float64)
            for name in ("amount", "account_amount_mean_30d", "account_amount_zscore_30d")
        )
        least = np.maximum(0.1 * mean, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            told = np.abs((amount - mean) / score)
        return np.where((np.abs(score) > 0) & (np.abs(score) < 100) & (told > 0), told, least)

    def _edges(self, name: str, row: Floats32, model: AdditiveModel) -> Floats:
        """Where, on the lever's own axis, any feature that it sets or that follows changes its cell."""
        at = self._at
        if name == "hour_of_day":
            return np.arange(24.0)
        if name in _COUNTS:
            return np.concatenate([edges_of(model, at[each]) for each in (*_COUNTS, "account_high_days_7d")])
        own = edges_of(model, at[name])
        if name != "amount":
            return own
        mean = float(row[at["account_amount_mean_30d"]])
        with np.errstate(over="ignore"):
            log = np.expm1(edges_of(model, at["amount_log"]))
        ratio = edges_of(model, at["account_amount_ratio_30d"]) * max(mean, 0.01)
        score = edges_of(model, at["account_amount_zscore_30d"]) * self._deviation(row[None])[0] + mean
        return np.concatenate([own, log, ratio, score])


def edges_of(model: AdditiveModel, feature: int) -> Floats:
    """All edges at which any table changes along the feature, ascending; inf too if nan is set apart."""
    found = [
        edges
        for table in model.tables
        for used, edges in zip(table.features, table.edges, strict=True)
        if used == feature
    ]
    return np.unique(np.concatenate(found)).astype(np.float64) if found else np.empty(0)


def _is_night(hour: Floats, spec: FeatureSpec) -> Floats32:
    start, end = spec.night_start_hour, spec.night_end_hour
    night = (hour >= start) & (hour < end) if start <= end else (hour >= start) | (hour < end)
    return night.astype(np.float32)


def _lever(name: str, told: Mapping[str, Any]) -> Lever:
    lever = Lever(name, **{**told, "features": tuple(told["features"])})
    if lever.moves not in ("down", "up", "any") or lever.by not in ("person", "time") or not lever.step > 0:
        raise ValueError(f"{name}: moves, by or step")
    if (lever.moves == "any") != (lever.features == _CHANNELS):
        raise ValueError(f"{name}: any is for the choice of a channel")
    return lever
