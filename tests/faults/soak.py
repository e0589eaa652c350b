"""`make soak SEEDS=n`: random schedules on three brokers, a line each, a table at the end.

python -m tests.faults.soak --seeds 20         twenty seeds, drawn and printed
python -m tests.faults.soak --fault-seed 7     that one again, its schedule and every finding shown
"""

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from infra.local import layout
from tests.faults.checker import Finding
from tests.faults.play import Outcome, play
from tests.faults.schedule import Kind, Schedule
from tests.support.cluster import Cluster, running_cluster
from weir.streams.engine_app import AT_LEAST_ONCE, EXACTLY_ONCE

_SEEDS_END = 1_000_000
_KEPT = layout.LOGS / "faults"


@dataclass
class Tally:
    """What all runs came to."""

    runs: int = 0
    inputs: int = 0
    decisions: int = 0
    seconds: float = 0.0
    faults: Counter[Kind] = field(default_factory=Counter)
    bad_faults: Counter[Kind] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    bad_seeds: list[int] = field(default_factory=list)

    def add(self, schedule: Schedule, outcome: Outcome | None) -> None:
        """One run; None for one that broke off."""
        self.runs += 1
        kinds = {each.kind for each in schedule.faults}
        self.faults.update(kinds)
        if outcome is not None:
            self.inputs += len(outcome.history.inputs)
            self.decisions += len(outcome.history.decisions)
            self.seconds += outcome.seconds
            self.findings.update({str(anomaly) for anomaly in outcome.anomalies})
        if outcome is None or outcome.findings:
            self.bad_seeds.append(schedule.seed)
            self.bad_faults.update(kinds)

    def __str__(self) -> str:
        lines = [
            f"{self.runs} runs, {self.inputs} payments, {self.decisions} decisions, "
            f"{self.seconds:.0f} s; {len(self.bad_seeds)} runs with findings",
            f"{'fault':20} {'runs':>5} {'with findings':>14}",
            *(f"{kind:20} {self.faults[kind]:5} {self.bad_faults[kind]:14}" for kind in sorted(self.faults)),
        ]
        lines += [f"{name:30} in {count} runs" for name, count in self.findings.most_common()]
        if self.bad_seeds:
            lines.append(f"again: python -m tests.faults.soak --fault-seed {self.bad_seeds[0]}")
        return "\n".join(lines)


def main() -> int:
    """0 when nothing was found; 1 otherwise."""
    arguments = _arguments()
    # A broken link is what these runs are about: aiokafka's own lines about each would hide ours.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seeds = [arguments.fault_seed]
    if arguments.fault_seed is None:
        seeds = random.SystemRandom().sample(range(_SEEDS_END), arguments.seeds)
    tally = Tally()
    try:
        _all(seeds, arguments, tally)
    except KeyboardInterrupt:
        print("interrupted")
    print(f"\n{tally}")
    return 1 if tally.bad_seeds else 0


def _all(seeds: list[int], arguments: argparse.Namespace, tally: Tally) -> None:
    """Run every seed; a cluster that may be broken is followed by a fresh one."""
    number = 0
    while number < len(seeds):
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-soak-"))
            cluster = stack.enter_context(running_cluster(Path(folder), arguments.brokers))
            if not cluster.has_disks:
                print("disks are not filled: only root mounts a file system of its own")
            if not cluster.has_clocks:
                print("brokers' clocks are not set: it takes a C compiler")
            whole = True
            while whole and number < len(seeds):
                schedule = Schedule.from_seed(
                    seeds[number],
                    broker_count=arguments.brokers,
                    has_disks=cluster.has_disks,
                    has_clocks=cluster.has_clocks,
                )
                whole = _one(cluster, schedule, tally, arguments.guarantee)
                number += 1


def _one(cluster: Cluster, schedule: Schedule, tally: Tally, wanted: str) -> bool:
    """Run one schedule and print its line; False when the cluster may be broken after it."""
    begun_s = time.monotonic()
    try:
        outcome = asyncio.run(play(cluster, schedule, guarantee=wanted))
    except Exception:  # noqa: BLE001 - a run that breaks off is a result, and the next one goes on
        print(f"{schedule}\n  broke off after {time.monotonic() - begun_s:.0f} s\n{traceback.format_exc()}")
        tally.add(schedule, None)
        _keep(cluster, schedule.seed)
        return False
    tally.add(schedule, outcome)
    print(summary(outcome), flush=True)
    if outcome.findings:
        print(f"{outcome}\n  logs: {_keep(cluster, schedule.seed)}", flush=True)
    return True


def summary(outcome: Outcome) -> str:
    """One line: seed, faults, events, decisions, findings, seconds."""
    history = outcome.history
    faults = "+".join(each.kind for each in outcome.schedule.faults)
    return (
        f"seed {outcome.schedule.seed:6}  {faults:60}  {len(history.inputs):5} events  "
        f"{len(history.decisions):5} decisions  {outcome.degraded_count:5} degraded  "
        f"{len(history.letters):4} dead letters  {_found(outcome.findings)}  {outcome.seconds:5.1f} s"
    )


def _found(findings: list[Finding]) -> str:
    return (
        "nothing found" if not findings else "FOUND " + ", ".join(sorted({each.anomaly for each in findings}))
    )


def _keep(cluster: Cluster, seed: int) -> Path:
    """Copy the logs of a run with findings to where they outlive it."""
    kept = _KEPT / f"seed-{seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    newest = max(cluster.folder.glob("run-*"), key=lambda path: path.stat().st_mtime, default=None)
    for log in [*cluster.folder.glob("*.log"), *(newest.glob("*/risk.log") if newest else ())]:
        shutil.copy(log, kept / f"{log.parent.name}-{log.name}")
    return kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many random seeds")
    parser.add_argument("--fault-seed", type=int, default=None, help="this seed alone")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--guarantee", choices=(EXACTLY_ONCE, AT_LEAST_ONCE), default=EXACTLY_ONCE)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
