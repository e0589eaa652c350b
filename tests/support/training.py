"""A small bank with much fraud, and what training makes of it; made once a test run."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training import split
from services.training.data import read_events
from services.training.train import Table
from weir.features.payments import DEFAULT, FEATURES


def small_bank(folder: Path, *, days: int = 50, seed: int = 5) -> Path:
    """A folder of events in Weir's layout."""
    settings = SimulatorSettings(seed=seed, accounts=500, terminals=80, fraud_intensity=6)
    write_history(Bank(settings), folder, days)
    return folder


@cache
def small_table() -> Table:
    """That bank's events with their features, split as `weir train risk` does."""
    events = read_events(small_bank(Path(mkdtemp(prefix="weir-bank-"))))
    parts = split.by_time(events.event_ms, delay_days=DEFAULT.label_delay_days)
    return Table(events, events.features(), FEATURES, parts)
