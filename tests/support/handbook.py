"""Events in the layout of the Fraud Detection Handbook."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.training.data import DAY_MS


def sleeping_bank(folder: Path, seed: int = 3) -> Path:
    """The Handbook's layout; half of the customers and terminals rest for seven weeks, and wake."""
    random = np.random.default_rng(seed)
    count, days = 9_000, 120
    customer, terminal = random.integers(0, 60, count), random.integers(0, 24, count)
    moment = random.integers(0, days * DAY_MS, count)
    rests = (moment > 30 * DAY_MS) & (moment < 80 * DAY_MS) & ((customer % 2 == 0) | (terminal % 2 == 0))
    moment = np.sort(np.where(rests, moment % (30 * DAY_MS), moment))
    table = pa.table(
        {
            "TRANSACTION_ID": np.arange(count),
            "TX_DATETIME": np.datetime64("2018-04-01", "ms") + moment.astype("timedelta64[ms]"),
            "CUSTOMER_ID": customer,
            "TERMINAL_ID": terminal,
            "TX_AMOUNT_CENTS": random.integers(1, 30_000, count),
            "TX_FRAUD": (random.random(count) < 0.05).astype(np.int8),
        }
    )
    folder.mkdir()
    for at in range(0, count, 4_000):
        pq.write_table(table.slice(at, 4_000), folder / f"{at:05}.parquet", row_group_size=700)
    return folder
