"""What thresholds do to groups of customers: who is declined or reviewed, and how often rightly.

The group comes from a file of its own and never from the events: no feature knows it. Figures are by payment,
intervals by account. A group with fewer than `accounts_min` accounts is not shown, and there is no line for
all groups together, from which a missing one could be worked out.

The four-fifths rule holds each group's share of payments that go through against the largest one. Where
almost all go through, that ratio is near 1 whatever happens to the others, so the ratio of shares that are
stopped stands beside it.

Sources:
    US Equal Employment Opportunity Commission 1978, Uniform Guidelines, 29 CFR 1607.4 D (four fifths).
    Hardt, Price, Srebro 2016, Equality of opportunity (true and false positive rates by group).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.training.errors import DataMissing
from services.training.evaluate import Interval
from services.training.watch.draws import points
from services.training.watch.errors import WatchRefused
from services.training.watch.grouped import Floats
from services.training.watch.performance import clean
from services.training.watch.weeks import Watched
from weir.errors import BadInput
from weir.features.offline import hash_column

ACCOUNTS_MIN = 100
FOUR_FIFTHS = 0.8
UNKNOWN = "(not in the file)"
RATES = (
    "declined",
    "reviewed",
    "false_positive_rate",
    "true_positive_rate",
    "precision",
    "selection_ratio",
    "stopped_ratio",
)


@dataclass(frozen=True, slots=True)
class Groups:
    """account: (n,) uint64, as `Events` has them, ascending. group: (n,) int64 into `names`."""

    account: NDArray[np.uint64]
    group: NDArray[np.int64]
    names: tuple[str, ...]

    def of(self, accounts: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(m,) int64: each account's group; len(names) where the file does not have it."""
        place = np.searchsorted(self.account, accounts)
        place[place == len(self.account)] = 0
        return np.where(self.account[place] == accounts, self.group[place], len(self.names))


@dataclass(frozen=True, slots=True)
class GroupRates:
    """One group: rates 0 to 1, with intervals; nan where nothing is there to divide by.

    below_four_fifths: its selection ratio is below 0.8 with its whole interval.
    """

    group: str
    accounts: int
    rows: int
    frauds: int
    rates: Mapping[str, Interval]
    below_four_fifths: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        return {
            "group": self.group,
            "accounts": self.accounts,
            "rows": self.rows,
            "frauds": self.frauds,
            "rates": {name: clean(asdict(each)) for name, each in self.rates.items()},
            "below_four_fifths": self.below_four_fifths,
        }


@dataclass(frozen=True, slots=True)
class Fairness:
    """The groups that are large enough, and how many are not."""

    decline_at: float
    review_at: float
    groups: tuple[GroupRates, ...]
    not_shown: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "decline_at": self.decline_at,
            "review_at": self.review_at,
            "groups": [each.as_dict() for each in self.groups],
            "groups_not_shown": self.not_shown,
        }


def read_groups(path: Path, layout: str) -> Groups:
    """The file's account_id and group; CSV, or Parquet by its ending.

    Args:
        layout: `Events.origin`: the Handbook's accounts are its customer numbers.
    Raises:
        BadInput: not such a file, a column is missing, or an account is there twice.
        DataMissing: no such file.
    """
    if not path.is_file():
        raise DataMissing(f"{path} is no file. --groups takes CSV or Parquet with account_id and group.")
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["account_id", "group"])
        else:
            text = {name: pa.string() for name in ("account_id", "group")}
            table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=text))
            table = table.select(list(text))
    except (pa.ArrowInvalid, KeyError) as error:
        raise BadInput("bad_groups", f"{path} must be CSV or Parquet with account_id and group") from error
    if table["account_id"].null_count or table["group"].null_count or not table.num_rows:
        raise BadInput("bad_groups", f"{path}: every line needs an account_id and a group")
    if layout == "handbook":
        try:
            numbers = pc.cast(table["account_id"], pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise BadInput("bad_groups", f"{path}: account_id must be the Handbook's CUSTOMER_ID") from error
        account = numbers.astype(np.uint64) + np.uint64(1)
    else:
        account = hash_column(pc.cast(table["account_id"], pa.string()))
    encoded = pc.cast(table["group"], pa.string()).combine_chunks().dictionary_encode()
    order = np.argsort(account, kind="stable")
    account, group = account[order], encoded.indices.to_numpy().astype(np.int64)[order]
    if (account[1:] == account[:-1]).any():
        raise BadInput("bad_groups", f"{path}: an account_id is there twice")
    return Groups(account, group, tuple(encoded.dictionary.to_pylist()))


def fairness(
    watched: Watched,
    groups: Groups,
    *,
    decline_at: float,
    review_at: float,
    accounts_min: int = ACCOUNTS_MIN,
    draws: int = 200,
    seed: int = 7,
) -> Fairness:
    """Rates over the whole, ripe weeks at these thresholds of the calibrated probability.

    Raises:
        WatchRefused: the thresholds are in the wrong order, no week is ripe, or no group is large enough.
    """
    if not 0 <= review_at <= decline_at <= 1:
        raise WatchRefused("--review-at may not lie above --decline-at, and both lie in 0 to 1.")
    chosen = np.zeros(len(watched.score), np.bool_)
    for week in watched.weeks:
        if week.ripe and week.whole:
            chosen |= watched.rows(week.window)
    if not chosen.any():
        raise WatchRefused("No week is ripe: groups are compared where the labels are in.")
    code, account = np.unique(watched.events.payments.account[chosen], return_inverse=True)
    group = groups.of(code)
    counts = _counts(watched, chosen, account.ravel(), len(code), decline_at, review_at)
    size = np.bincount(group, minlength=len(groups.names) + 1)
    shown = np.flatnonzero(size >= accounts_min)
    if not len(shown):
        raise WatchRefused(f"No group has {accounts_min} accounts that pay in the ripe weeks.")
    members = np.stack([group == each for each in shown]).astype(np.float64)  # (G, accounts)
    whole = members @ counts
    best = int(np.nanargmax(1 - whole[:, 1:3].sum(axis=1) / whole[:, 0]))
    rates = _rates(whole, best)
    random = np.random.default_rng(seed)
    drawn: dict[str, list[Floats]] = {name: [] for name in RATES}
    for _ in range(draws):
        copies = np.bincount(random.integers(0, len(code), len(code)), minlength=len(code))
        for name, values in _rates(members @ (counts * copies[:, None]), best).items():
            drawn[name].append(values)
    names = (*groups.names, UNKNOWN)
    out = []
    for at, number in enumerate(shown):
        told = {
            name: Interval(float(rates[name][at]), *points(np.array(drawn[name])[:, at])) for name in RATES
        }
        below = bool(told["selection_ratio"].high < FOUR_FIFTHS)
        rows, frauds = int(whole[at, 0]), int(whole[at, 3])
        out.append(GroupRates(names[number], int(size[number]), rows, frauds, told, below))
    return Fairness(decline_at, review_at, tuple(out), int((size > 0).sum()) - len(shown))


def _counts(
    watched: Watched,
    chosen: NDArray[np.bool_],
    account: NDArray[np.int64],
    accounts: int,
    decline_at: float,
    review_at: float,
) -> Floats:
    """(accounts, 5): payments, declined, reviewed, frauds, frauds that were declined or reviewed."""
    probability, fraud = watched.probability[chosen], watched.is_fraud[chosen]
    declined = probability >= decline_at
    reviewed = (probability >= review_at) & ~declined
    columns: Sequence[Any] = (
        np.ones(len(fraud)),
        declined,
        reviewed,
        fraud,
        fraud & (declined | reviewed),
    )
    return np.stack(
        [np.bincount(account, np.asarray(column, np.float64), accounts) for column in columns], axis=1
    )


def _rates(counts: Floats, best: int) -> dict[str, Floats]:
    rows, declined, reviewed, frauds, caught = counts.T
    stopped = declined + reviewed
    with np.errstate(invalid="ignore", divide="ignore"):
        through = 1 - stopped / rows
        return {
            "declined": declined / rows,
            "reviewed": reviewed / rows,
            "false_positive_rate": (stopped - caught) / (rows - frauds),
            "true_positive_rate": caught / frauds,
            "precision": caught / stopped,
            "selection_ratio": through / through[best],
            "stopped_ratio": (stopped / rows) / (stopped[best] / rows[best]),
        }
