"""What federating is worth, where one process may see all: a trial with every bank's data on one machine.

Three ways on the same test days, each bank's rows with the features that this bank computes: a model of each
bank alone, the federated one, and the central one of all rows in one place. A second central model has all
banks' payments behind its features too, which federating does not share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.training import train
from services.training.additive import AdditiveModel
from services.training.baselines import ModelScorer
from services.training.data import Events, read_events
from services.training.errors import DataMissing, TrainingError
from services.training.fit import Recipe
from services.training.split import Bools, Split, by_time
from services.training.train import Table
from weir.features.payments import DEFAULT, FEATURES, Labels, Payments

KINDS = ("transactions", "labels")


@dataclass(frozen=True, slots=True)
class Trial:
    """pooled: all banks' payments; x as each bank computes it, whole as one that had all would.

    bank: (n,) int, whose payment each row is, an index into names.
    """

    names: tuple[str, ...]
    pooled: Table
    whole: Table
    bank: Any

    @classmethod
    def read(cls, folders: Mapping[str, Path], *, validation_days: int, test_days: int) -> "Trial":
        """The banks' folders, split on days that are the same for all.

        Raises:
            TrainingError, DataMissing, BadInput: a folder cannot be read, or holds too few days.
        """
        banks = [read_events(folder) for folder in folders.values()]
        own = [events.features() for events in banks]
        payments = Payments(
            *(np.concatenate([getattr(each.payments, f.name) for each in banks]) for f in fields(Payments))
        )
        order = np.argsort(payments.event_ms, kind="stable")
        pooled = Events(
            payments.rows(order),
            Labels(
                *(np.concatenate([getattr(each.labels, f.name) for each in banks]) for f in fields(Labels))
            ),
            np.concatenate([each.is_fraud for each in banks])[order],
            np.concatenate([each.reported_ms for each in banks])[order],
            banks[0].origin,
            sha256("".join(each.fingerprint for each in banks).encode()).hexdigest(),
        )
        split = by_time(
            pooled.event_ms,
            delay_days=DEFAULT.label_delay_days,
            validation_days=validation_days,
            test_days=test_days,
        )
        bank = np.repeat(np.arange(len(banks)), [each.payments.row_count for each in banks])[order]
        return cls(
            tuple(folders),
            Table(pooled, np.concatenate(own)[order], FEATURES, split),
            Table(pooled, pooled.features(), FEATURES, split),
            bank,
        )

    def compare(
        self,
        federated: AdditiveModel,
        recipe: Recipe,
        *,
        honest_max: int,
        draws: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Figures of every model on the common test rows, and the shares of the central average precision.

        Raises:
            TrainingError: a bank, or the test days, hold one class only.
        """
        test = self.pooled.test_rows(DEFAULT.label_delay_days)

        def measured(table: Table, model: AdditiveModel) -> dict[str, Any]:
            report = table.measure(ModelScorer(model), test, draws=draws, seed=recipe.seed)
            return {name: report.as_dict()["metrics"][name] for name in ("average_precision", "auc_roc")}  # type: ignore[index] # as_dict's values are plain objects

        say("fitting the local and central models for comparison")
        local = {
            name: measured(
                self.pooled, train.fit(self._of(self.bank == index), recipe, honest_max=honest_max).model
            )
            for index, name in enumerate(self.names)
        }
        central, whole = (
            measured(table, train.fit(table, recipe, honest_max=honest_max).model)
            for table in (self.pooled, self.whole)
        )
        joint = measured(self.pooled, federated)
        reached = {
            name: joint["average_precision"]["value"] / other["average_precision"]["value"]
            for name, other in (("central", central), ("central_whole_history", whole))
        }
        events = self.pooled.events
        return {
            "test": {
                "days": str(self.pooled.split.test),
                "rows": int(test.sum()),
                "frauds": int(events.is_fraud[test].sum()),
            },
            "local": local,
            "federated": joint,
            "central": central,
            "central_whole_history": whole,
            "share_of_average_precision": reached,
        }

    def _of(self, rows: Bools) -> Table:
        """The same table with one bank's rows only."""
        events = self.pooled.events
        some = replace(
            events,
            payments=events.payments.rows(np.flatnonzero(rows)),
            is_fraud=events.is_fraud[rows],
            reported_ms=events.reported_ms[rows],
        )
        return Table(some, self.pooled.x[rows], FEATURES, self.pooled.split)


def agreed_days(folders: Mapping[str, Path], *, validation_days: int, test_days: int) -> Split:
    """The windows from the first payment of any bank to the last; nothing but times is read.

    Raises:
        DataMissing: a folder without payments. TrainingError: too few days.
    """
    ends: list[int] = []
    for folder in folders.values():
        files = sorted(folder.glob("transactions-*.parquet")) or sorted(folder.glob("*.parquet"))
        for file in files:
            names = pq.read_schema(file).names
            column = "event_time" if "event_time" in names else "TX_DATETIME"
            if column not in names:
                raise TrainingError(f"{file} has no column event_time.")
            span = pc.min_max(pq.read_table(file, columns=[column])[column].cast(pa.timestamp("ms")))
            ends += [int(span[end].value) for end in ("min", "max") if span[end].is_valid]
        if not files:
            raise DataMissing(f"{folder}: no payments. Make some with `weir simulate --to-parquet`.")
    if not ends:
        raise TrainingError("The files hold no payment at all.")
    return by_time(
        np.array([min(ends), max(ends)], np.int64),
        delay_days=DEFAULT.label_delay_days,
        validation_days=validation_days,
        test_days=test_days,
    )


def split_banks(folder: Path, out: Path, banks: int, seed: int) -> dict[str, int]:
    """Payments of each bank: one bank's events, dealt out by account into `out/bank-1`, `out/bank-2` ...

    Whole accounts go to one bank, drawn by a hash of the account and `seed`; labels go with their accounts.

    Raises:
        DataMissing: no events in Weir's layout. TrainingError: `out` exists already.
    """
    files = [file for kind in KINDS for file in sorted(folder.glob(f"{kind}-*.parquet"))]
    if not any(file.name.startswith("transactions") for file in files):
        raise DataMissing(
            f"{folder}: no transactions-*.parquet. Make some with `weir simulate --to-parquet`."
        )
    if out.exists():
        raise TrainingError(f"{out} exists already. Name a new folder.")
    folders = [out / f"bank-{index + 1}" for index in range(banks)]
    for each in folders:
        each.mkdir(parents=True)
    count = np.zeros(banks, np.int64)
    for file in files:
        table = pq.read_table(file)
        if "account_id" not in table.column_names:
            raise TrainingError(f"{file} has no column account_id. Only Weir's own layout is split.")
        coded = pc.dictionary_encode(table["account_id"]).combine_chunks()
        dealt = np.array(
            [
                int(sha256(f"{seed}/{account}".encode()).hexdigest()[:8], 16) % banks
                for account in _names(coded)
            ]
        )
        owner = dealt[coded.indices.to_numpy()]
        for index, each in enumerate(folders):
            pq.write_table(table.filter(pa.array(owner == index)), each / file.name)
        if file.name.startswith("transactions"):
            count += np.bincount(owner, minlength=banks)
    return {each.name: int(number) for each, number in zip(folders, count, strict=True)}


def _names(coded: Any) -> list[str]:
    found: list[str] = coded.dictionary.to_pylist()
    return found
