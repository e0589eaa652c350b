"""A federation of real processes: Flower's server, a node for each bank; one bank is killed in mid-run."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training.data import read_events
from services.training.federate import processes
from services.training.federate.local import start
from services.training.federate.plan import Plan, Steps
from services.training.federate.processes import Federation, run_here
from services.training.federate.trial import split_banks
from services.training.split import by_time

PATIENCE_S = 25


@pytest.fixture
def banks(tmp_path) -> dict[str, Path]:
    write_history(
        Bank(SimulatorSettings(seed=5, accounts=300, terminals=60, fraud_intensity=8)), tmp_path / "all", 45
    )
    split_banks(tmp_path / "all", tmp_path / "each", 3, seed=1)
    return dict(zip("ABC", sorted((tmp_path / "each").iterdir()), strict=True))


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and its children listen."""
    return {
        connection.laddr.ip
        for each in [process, *process.children(recursive=True)]
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def remote(process: psutil.Process) -> set[str]:
    """Addresses to which a process and its children hold connections."""
    return {
        connection.raddr.ip
        for each in [process, *process.children(recursive=True)]
        for connection in each.net_connections("inet")
        if connection.raddr
    }


@pytest.mark.timeout(300)
def test_the_federation_goes_on_when_a_banks_process_is_killed_and_leaves_no_process_behind(banks, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    split = by_time(read_events(banks["A"]).event_ms, delay_days=7)
    plan = Plan(split, rounds=2, rounds_pair=0, steps=Steps(trees=20, leaf_rows_min=10))
    seen: list[psutil.Process] = []
    addresses: set[str] = set()

    def watch(federation: Federation, line: str) -> None:
        if line.startswith("round 1: the updates of 3 banks"):
            for process in federation.processes.values():
                one = psutil.Process(process.pid)
                seen.extend([one, *one.children(recursive=True)])
                addresses.update(listening(one) | remote(one))
            os.kill(federation.processes["bank-C"].pid, signal.SIGKILL)

    lines: list[str] = []
    outcome = run_here(banks, plan, folder, patience_s=PATIENCE_S, say=lines.append, watch=watch)
    log = "\n".join((folder / f"{name}.log").read_text(errors="replace") for name in ("superlink", "bank-A"))
    assert outcome.ended == "complete", (outcome.notes, log[-3000:])
    assert outcome.rounds == 2
    assert outcome.lost == {"C": 2}
    assert any("bank C is out: it gave no answer in time" in line for line in lines)
    assert outcome.vector.shape == start(Plan.layout()).shape
    assert len(outcome.votes[0]) == 2  # on round 1, with the updates of round 2
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert len(seen) >= 8  # the server, three nodes, and the executor of each
    _, alive = psutil.wait_procs(seen, timeout=10)
    assert not alive
    # Each bank's rows were read by its own node and lie in its own folder alone.
    for name in banks:
        assert len(list((folder / f"bank-{name}" / "scratch").glob("rows-*.npz"))) == 1
    assert json.loads((folder / "coordinator" / "result.json").read_text())["ended"] == "complete"


def test_a_federation_that_is_interrupted_leaves_no_process_behind(banks, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    split = by_time(read_events(banks["A"]).event_ms, delay_days=7)
    seen: list[psutil.Process] = []

    class Interrupted(Federation):
        """Ctrl-C comes when the last bank has started."""

        def start(self, name: str, *words: str) -> None:
            super().start(name, *words)
            if name == "bank-C":
                for process in self.processes.values():
                    one = psutil.Process(process.pid)
                    seen.extend([one, *one.children(recursive=True)])
                raise KeyboardInterrupt

    monkeypatch.setattr("services.training.federate.processes.Federation", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(banks, Plan(split), folder, patience_s=PATIENCE_S)
    assert len(seen) >= 4
    _, alive = psutil.wait_procs(seen, timeout=10)
    assert not alive


LIAR = """
import services.training.federate.local as local

honest = local.boost


def boost(*given):
    return 100 * honest(*given)


local.boost = boost
"""


@pytest.mark.timeout(300)
def test_a_bank_whose_own_process_lies_is_named_and_left_out(banks, tmp_path, monkeypatch):
    """Bank C runs another program than the others: its updates are a hundred times what they should be."""
    folder, evil = tmp_path / "run", tmp_path / "evil"
    folder.mkdir(mode=0o700)
    evil.mkdir()
    (evil / "sitecustomize.py").write_text(LIAR)
    honest = processes.environment

    def environment(home: Path) -> dict[str, str]:
        return honest(home) | ({"PYTHONPATH": str(evil)} if home.name == "bank-C" else {})

    monkeypatch.setattr(processes, "environment", environment)
    split = by_time(read_events(banks["A"]).event_ms, delay_days=7)
    plan = Plan(split, rounds=3, rounds_pair=0, aggregation="robust", steps=Steps(trees=20, leaf_rows_min=10))
    outcome = run_here(banks, plan, folder, patience_s=PATIENCE_S)
    assert list(outcome.outlier_rounds) == ["C"]
    assert outcome.lost.keys() == {"C"}
    assert any("bank C is out: its updates lay far off in rounds 1, 2" in line for line in outcome.notes)
    assert outcome.ended in ("complete", "no_gain")
    assert outcome.rounds >= 2
