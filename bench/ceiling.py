"""`python -m bench.ceiling --data DIR`: what can be found at all in the Fraud Detection Handbook's test week.

Its second kind of fraud copies cards at a terminal, whose payments look like any other: until one of them is
reported, nothing tells them. So an oracle is judged that knows every fraud but those at a terminal of which
nothing was reported when it was paid. What ranks better than it on that week has seen the future.

The kind of fraud (TX_FRAUD_SCENARIO) is read here alone, never in training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Printed

from bench import report
from services.training import split
from services.training.additive import Floats
from services.training.data import read_events
from services.training.evaluate import Sample, evaluate
from services.training.train import Table
from weir.errors import MissingPart, WeirError
from weir.features.payments import DEFAULT, FEATURES

COPIED_CARDS = 2
FIGURES = ("auc_roc", "average_precision", "card_precision_100")
DRAWS = 200


def scenarios(folder: Path) -> NDArray[np.int8]:
    """(n,) the kind of each payment's fraud, 0 for none, in order of time.

    Raises:
        MissingPart: no file has TX_FRAUD_SCENARIO.
    """
    times, kinds = [], []
    for path in sorted(folder.glob("*.parquet")):
        columns = pq.read_schema(path).names
        if "TX_FRAUD_SCENARIO" not in columns:
            continue
        table = pq.read_table(path, columns=["TX_DATETIME", "TX_FRAUD_SCENARIO"])
        times.append(table["TX_DATETIME"].to_numpy().astype("datetime64[ms]").astype(np.int64))
        kinds.append(table["TX_FRAUD_SCENARIO"].to_numpy().astype(np.int8))
    if not kinds:
        raise MissingPart(f"{folder}: no Parquet there has TX_FRAUD_SCENARIO. Name the Handbook's own data.")
    found: NDArray[np.int8] = np.concatenate(kinds)[np.argsort(np.concatenate(times), kind="stable")]
    return found


def told(x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,) whether any fraud of the payment's terminal was reported before it, early ones included."""
    reported = [x[:, FEATURES.index(name)] > 0 for name in ("terminal_risk_30d", "terminal_fraud_early")]
    found: NDArray[np.bool_] = reported[0] | reported[1]
    return found


def main(words: Sequence[str]) -> int:
    """Judge, print."""
    asked = argparse.ArgumentParser(prog="python -m bench.ceiling", description="What can be found at all.")
    asked.add_argument("--data", type=Path, required=True, help="folder of the Handbook's data (Parquet)")
    given = asked.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        events = read_events(given.data)
        table = Table(events, events.features(), FEATURES, split.handbook())
        kinds = scenarios(given.data)
        judged = table.test_rows(DEFAULT.label_delay_days)
        fraud, kind = events.is_fraud[judged], kinds[judged]
        if not np.array_equal(kind > 0, fraud):
            raise MissingPart(f"{given.data}: its labels and its scenarios are not of the same payments.")
    except WeirError as error:
        console.print(str(error))
        return int(error.exit_code)
    hidden = (kind == COPIED_CARDS) & ~told(table.x[judged])
    scores: dict[str, Floats] = {
        "who knows all": fraud.astype(np.float64),
        "who knows what is told": (fraud & ~hidden).astype(np.float64),
    }
    console.print(report.machine())
    counts = ", ".join(f"{int((kind == each).sum())} of kind {each}" for each in (1, 2, 3))
    console.print(
        f"{table.split.test}: {len(fraud):,} payments, {int(fraud.sum())} frauds: {counts}; "
        f"{int(hidden.sum())} copied cards at a terminal of which nothing was reported yet"
    )
    printed = Printed("", *FIGURES)
    accounts, times = events.payments.account[judged], events.event_ms[judged]
    for name, score in scores.items():
        metrics = evaluate(Sample.of(score, fraud, accounts, times), draws=DRAWS).metrics
        cells = (metrics[figure] for figure in FIGURES)
        printed.add_row(name, *(f"{each.value:.3f} ({each.low:.3f}-{each.high:.3f})" for each in cells))
    console.print(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
