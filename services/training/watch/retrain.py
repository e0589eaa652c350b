"""Whether to train again, and the candidate held against the served version. It never promotes.

The data ends `ripe_days` before now, so that the labels of the later week that judges are in. Candidate and
served version are judged on that same week, under the same resamplings of accounts. A version appears with
one rename, its report inside; a lock keeps a second run out, and a killed run leaves a folder that begins
with a dot, which the next run takes away.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from services.training.command import table_from
from services.training.data import DAY_MS, Events
from services.training.evaluate import Sample
from services.training.fit import Recipe
from services.training.repository import ModelRepository, ServedModel, write_file
from services.training.settings import TrainingSettings
from services.training.split import Window
from services.training.train import Table, train_risk
from services.training.watch.draws import Difference, Drawn, Figures, difference, draw
from services.training.watch.errors import RetrainRefused
from services.training.watch.performance import clean, figures_dict
from services.training.watch.run import Alarm
from services.training.watch.table import markdown
from services.training.watch.weeks import window_of
from weir.features.payments import DEFAULT
from weir.files import sync_folder
from weir.inference.stages import LOG, PEOPLE, Stage, read_stages

REPORT, REPORT_TEXT = "RETRAIN.json", "RETRAIN.md"
_STAGING = ".retrain."


@dataclass(frozen=True, slots=True)
class Due:
    """Why to train now; no reason, and nothing is to be done. since_ms: what the newest version has seen."""

    reasons: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    since_ms: int


@dataclass(frozen=True, slots=True)
class Held:
    """Candidate and served version on one window, and candidate less served, figure by figure.

    Of observed_expected the difference is a ratio.
    """

    window: Window
    candidate: Drawn
    served: Drawn
    differences: Mapping[str, Difference]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; nan is null."""
        return {
            "window": str(self.window),
            "candidate": figures_dict(self.candidate),
            "served": figures_dict(self.served),
            "difference": {name: clean(asdict(each)) for name, each in self.differences.items()},
        }


@contextmanager
def alone(repository: ModelRepository) -> Iterator[None]:
    """The right to train into this repository, for the length of the block; the kernel frees it after a kill.

    Raises:
        RetrainRefused: another run has it. OSError: the folder may not be written.
    """
    home = repository.root / "risk"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".retrain.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RetrainRefused(
                f"{home}: another `weir watch retrain` is at work. Wait for its end."
            ) from error
        for left in home.glob(f"{_STAGING}*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def require_unserved(repository: ModelRepository, version: str, *, pinned: bool) -> None:
    """Nothing, if a new version in this repository does not by itself come to decide.

    Raises:
        RetrainRefused: services would take the newest version, or another one is champion than the one named.
        IntegrityError, ConfigError: the log of stages is not what was signed.
    """
    stages = read_stages(repository.root / "risk" / LOG, repository.root / PEOPLE)
    if stages is None:
        if not pinned:
            raise RetrainRefused(
                "Without a log of stages a service takes the newest version, the candidate, when it starts. "
                "Pin [risk] model_version and say --pinned, or see `weir models stages`."
            )
    elif (champion := stages.at(Stage.CHAMPION)) != version:
        raise RetrainRefused(f"Version {version} does not serve: the champion is {champion or 'none'}.")


def due(
    repository: ModelRepository,
    *,
    now_ms: int,
    every_days: int | None,
    alarms: Sequence[Alarm] | None,
) -> Due:
    """Whether the schedule or drift asks for a candidate.

    A candidate counts as training, promoted or not: the same drift does not train every night.

    Args:
        alarms: of the served version; None if drift is no reason.
    Raises:
        ModelBroken: a version's model.json cannot be read.
    """
    seen = max((_seen(repository, version) for version in repository.versions("risk")), default=0)
    age, reasons = (now_ms - seen) / DAY_MS, []
    if every_days is not None and age >= every_days:
        reasons.append(f"the newest version has seen nothing of the last {age:.0f} days")
    new = tuple(each for each in alarms or () if _week_end(each) > seen)
    if new:
        reasons.append(f"{len(new)} alarms that no version was trained after")
    return Due(tuple(reasons), new, seen)


def until(events: Events, *, now_ms: int, ripe_days: int) -> Events:
    """The payments whose labels are in at `now_ms`, with what was reported by then.

    Raises:
        RetrainRefused: nothing is that old.
    """
    end = int(np.searchsorted(events.event_ms, now_ms - ripe_days * DAY_MS, side="left"))
    if not end:
        raise RetrainRefused(f"No payment is {ripe_days} days old: no label counts yet.")
    labels = events.labels.rows(np.flatnonzero(events.labels.reported_ms <= now_ms))
    known = events.known_frauds(now_ms)
    reported_ms = np.where(known, events.reported_ms, np.iinfo(np.int64).max)
    return replace(
        events,
        payments=events.payments.rows(slice(0, end)),
        labels=labels,
        is_fraud=known[:end],
        reported_ms=reported_ms[:end],
    )


def hold(table: Table, served: ServedModel, candidate: ServedModel, *, draws: int, seed: int) -> Held:
    """Both versions on the table's later week, cards known to be compromised left out.

    Raises:
        TrainingError: the week holds no fraud.
    """
    rows = table.test_rows(DEFAULT.label_delay_days)
    events, x = table.events, table.x[rows]
    pair = [
        Sample.of(
            each.score(x),
            events.is_fraud[rows],
            events.payments.account[rows],
            events.event_ms[rows],
            each.probability(x),
        )
        for each in (served, candidate)
    ]
    accounts = int(pair[0].account.max()) + 1
    one, two = draw([Figures(sample) for sample in pair], accounts, draws=draws, seed=seed)
    # On the same rows the share of fraud is the same: the figure for that says nothing more.
    names = [name for name in one.value if name != "average_precision_same_rate"]
    kept = [Drawn(e.rows, e.frauds, {n: e.value[n] for n in names}, e.draws) for e in (one, two)]
    moved = {name: difference(one, two, name) for name in names}
    return Held(table.split.test, kept[1], kept[0], moved)


def retrain(
    events: Events,
    served: ServedModel,
    repository: ModelRepository,
    recipe: Recipe,
    settings: TrainingSettings,
    reasons: Due,
    *,
    now_ms: int,
    ripe_days: int,
    command: str,
    seed: int,
) -> tuple[Path, dict[str, Any]]:
    """A candidate as a new version, with RETRAIN.json and RETRAIN.md inside; its folder, and the report.

    To be called within `alone`.

    Raises:
        RetrainRefused: the served version learnt from the week that would judge it. TrainingError: the data
        gives no model. OSError: the disk is full. The repository is then as it was.
    """
    table = table_from(until(events, now_ms=now_ms, ripe_days=ripe_days), settings)
    _require_unseen(table.split.test, served)
    home, version = repository.root / "risk", repository.next_version("risk")
    staging = home / f"{_STAGING}{os.getpid()}.partial"
    try:
        made = ModelRepository(staging)
        folder, _ = train_risk(
            table,
            recipe,
            made,
            version=version,
            replace=False,
            command=command,
            honest_max=settings.honest_rows_max,
            draws=settings.bootstrap_draws,
            created=datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat(),
        )
        candidate = made.open("risk", version, features=table.features)
        held = hold(table, served, candidate, draws=settings.bootstrap_draws, seed=seed)
        report = {
            "candidate_version": version,
            "served_version": str(served.about["version"]),
            "as_of": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(),
            "as_of_ms": now_ms,
            "reasons": list(reasons.reasons),
            "alarms": [asdict(alarm) for alarm in reasons.alarms],
            **held.as_dict(),
            "bootstrap": {"draws": settings.bootstrap_draws, "seed": seed},
            "promoted": False,
        }
        write_file(folder / REPORT, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
        write_file(folder / REPORT_TEXT, report_text(report, held).encode())
        sync_folder(folder)
        target = home / version
        os.rename(folder, target)
        sync_folder(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target, report


def report_text(report: Mapping[str, Any], held: Held) -> str:
    """The report as Markdown."""
    rows = [
        [
            name,
            str(held.served.interval(name)),
            str(held.candidate.interval(name)),
            ("x" if name == "observed_expected" else "")
            + f"{each.value:.4f} ({each.low:.4f} to {each.high:.4f})",
            f"{each.p:.2g}",
        ]
        for name, each in held.differences.items()
    ]
    head = (
        "figure",
        f"served {report['served_version']}",
        f"candidate {report['candidate_version']}",
        "difference",
        "p",
    )
    alarms = [[each["week"], each["kind"], each["what"], each["says"]] for each in report["alarms"]]
    why = "\n".join(f"- {reason}" for reason in report["reasons"])
    drifted = markdown(("week", "kind", "what", "finding"), alarms) if alarms else "No alarm was new."
    return f"""\
# Candidate {report["candidate_version"]} for risk {report["served_version"]}

Trained as of {report["as_of"]}, because:

{why}

{drifted}

## On the same later week

{held.window}: {held.served.rows:,} payments, {held.served.frauds:,} frauds. In brackets 95 % intervals over
{report["bootstrap"]["draws"]} resamplings of whole accounts, the same ones for both.

{markdown(head, rows)}

The difference is candidate less served; of observed_expected it is the ratio of the two.

It is not promoted: a person decides.
"""


def _require_unseen(judging: Window, served: ServedModel) -> None:
    learnt = served.about["trained"].get("split", {})
    for name in ("train", "validation"):
        if name in learnt and window_of(learnt[name]).end_ms > judging.start_ms:
            raise RetrainRefused(
                f"Version {served.about['version']} learnt from {learnt[name]}, which is not before the week "
                f"{judging} that would judge it. Wait for later events."
            )


def _seen(repository: ModelRepository, version: int) -> int:
    """Up to the end of which day a version knew the world: that of its retraining, or its last window's."""
    path = repository.root / "risk" / str(version) / REPORT
    if path.exists():
        try:
            moment = int(json.loads(path.read_text(encoding="utf-8"))["as_of_ms"])
            return -(-moment // DAY_MS) * DAY_MS
        except (ValueError, KeyError, TypeError) as error:
            raise RetrainRefused(f"{path} cannot be read. Restore it, or move the version away.") from error
    windows = repository.about("risk", str(version))["trained"].get("split", {})
    return max((window_of(text).end_ms for text in windows.values()), default=0)


def _week_end(alarm: Alarm) -> int:
    return window_of(f"{alarm.week}..{alarm.week}").start_ms + 7 * DAY_MS
