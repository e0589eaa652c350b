"""`weir watch`: a served model on later events, and whether to train again."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.command import AsJson, Data, Quick, Repository, Seed, events_of, recipe_of, step
from services.training.settings import TrainingSettings
from services.training.watch.errors import AlarmRaised, RetrainRefused, WatchRefused

if TYPE_CHECKING:
    from services.training.watch.run import Alarm

app = typer.Typer(help="A served model on later events: drift, figures, retraining.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="The version that serves.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        help="Know nothing from this moment (UTC) on, such as 2026-06-30; default all that is there.",
    ),
]
RipeDays = Annotated[
    int, typer.Option("--ripe-days", min=0, max=180, help="A label counts if reported within so many days.")
]
ReferenceDays = Annotated[
    int | None,
    typer.Option(min=7, help="Hold against the data's first days, not the version's validation window."),
]
Psi = Annotated[float, typer.Option(min=0, help="From which PSI drift is moderate.")]
PsiLarge = Annotated[float, typer.Option(min=0, help="From which PSI it is large.")]
Alpha = Annotated[float, typer.Option(min=0, max=1, help="False discovery rate of all tests together.")]


@app.callback()
def _watch() -> None:
    """A served model on later events: drift, figures, retraining."""


@app.command("risk")
def watch_risk(
    data: Data,
    model: Model,
    reference_days: ReferenceDays = None,
    as_of: AsOf = None,
    ripe_days: RipeDays = 14,
    weeks: Annotated[int | None, typer.Option(min=1, help="Judge only so many newest weeks.")] = None,
    psi: Psi = 0.1,
    psi_large: PsiLarge = 0.25,
    rate_factor: Annotated[float, typer.Option(min=1, help="From how many times the fraud rate.")] = 1.5,
    fall: Annotated[float, typer.Option(min=0, max=1, help="From which fall of a ranking figure.")] = 0.02,
    alpha: Alpha = 0.05,
    groups: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of account_id, group: never a feature.")
    ] = None,
    decline_at: Annotated[float, typer.Option(min=0, max=1, help="For --groups: decline from.")] = 0.5,
    review_at: Annotated[float, typer.Option(min=0, max=1, help="For --groups: a person from.")] = 0.05,
    group_accounts: Annotated[int, typer.Option(min=10, help="Smaller groups are not shown.")] = 100,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for watch.json and watch.html.")] = None,
    language: Annotated[str, typer.Option(help="Of the page: en or zh.")] = "en",
    metrics_file: Annotated[
        Path | None, typer.Option(help="Gauges for the node exporter, such as weir_model.prom.")
    ] = None,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help="End with an error if an alarm stands.")
    ] = False,
    repository: Repository = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Drift, figures and slices week by week against the reference, each with a test."""
    from services.training.repository import ModelRepository, write_file
    from services.training.watch import gauges
    from services.training.watch.drift import Limits
    from services.training.watch.fairness import fairness, read_groups
    from services.training.watch.page import page
    from services.training.watch.performance import FallLimits
    from services.training.watch.run import watch, watched_of
    from services.training.watch.table import lines
    from weir.features.payments import FEATURES

    if language not in ("en", "zh"):
        raise typer.BadParameter("must be en or zh", param_hint="--language")
    if psi_large < psi:
        raise typer.BadParameter("may not lie below --psi", param_hint="--psi-large")
    if metrics_file is not None and not metrics_file.parent.is_dir():
        raise WatchRefused(f"{metrics_file.parent} is no folder: --metrics-file wants one that is there.")
    settings = TrainingSettings.load()
    served = ModelRepository(repository or settings.repository).open("risk", model, features=FEATURES)
    with step("reading events, computing features, scoring"):
        events = events_of(data, settings)
        people = None if groups is None else read_groups(groups, events.origin)
        watched = watched_of(
            events,
            served,
            reference_days=reference_days,
            as_of_ms=_moment(as_of),
            ripe_days=ripe_days,
            last=weeks,
        )
    with step("judging"):
        fair = None
        if people is not None:
            fair = fairness(
                watched,
                people,
                decline_at=decline_at,
                review_at=review_at,
                accounts_min=group_accounts,
                draws=settings.bootstrap_draws,
                seed=seed,
            )
        found = watch(
            watched,
            served,
            limits=Limits(psi, psi_large, rate_factor, alpha),
            falls=FallLimits(fall=fall, alpha=alpha),
            draws=settings.bootstrap_draws,
            seed=seed,
            fairness=fair,
        )
    about = json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "watch.json", (about + "\n").encode())
        write_file(out / "watch.html", page(found, "zh" if language == "zh" else "en").encode())
    if metrics_file is not None:
        gauges.write(metrics_file, gauges.text(found))
    if as_json:
        typer.echo(about)
    else:
        for line in lines(found):
            typer.echo(line)
    if fail_on_alarm and found.alarms:
        raise AlarmRaised(
            f"risk {model}: {_in_one_line(found.alarms)}. See `weir watch risk`, without this flag."
        )


@app.command("retrain")
def watch_retrain(
    data: Data,
    model: Model,
    every_days: Annotated[
        int | None, typer.Option(min=1, help="Train when the newest version is so many days behind.")
    ] = None,
    on_drift: Annotated[
        bool, typer.Option("--on-drift", help="Train when an alarm stands that no version has seen.")
    ] = False,
    reference_days: ReferenceDays = None,
    as_of: AsOf = None,
    ripe_days: RipeDays = 14,
    psi: Psi = 0.1,
    psi_large: PsiLarge = 0.25,
    alpha: Alpha = 0.05,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="No log of stages, but each service pins its version.")
    ] = False,
    quick: Quick = False,
    repository: Repository = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Train a candidate when it is time, hold it against the served version; never promote it."""
    from services.training.repository import ModelRepository
    from services.training.watch.drift import Limits
    from services.training.watch.retrain import REPORT_TEXT, alone, due, require_unserved, retrain
    from services.training.watch.run import watch, watched_of
    from weir.features.payments import FEATURES

    if every_days is None and not on_drift:
        raise RetrainRefused("Say when to train: --every-days N, --on-drift, or both.")
    settings = TrainingSettings.load()
    home = ModelRepository(repository or settings.repository)
    served = home.open("risk", model, features=FEATURES)
    require_unserved(home, model, pinned=pinned)
    with alone(home):
        with step("reading events"):
            events = events_of(data, settings)
        now_ms = _moment(as_of) or int(events.event_ms[-1]) + 1
        alarms = None
        if on_drift:
            with step("looking for drift"):
                watched = watched_of(
                    events, served, reference_days=reference_days, as_of_ms=now_ms, ripe_days=ripe_days
                )
                limits = Limits(psi=psi, psi_large=psi_large, alpha=alpha)
                alarms = watch(
                    watched, served, limits=limits, draws=settings.bootstrap_draws, seed=seed
                ).alarms
        reasons = due(home, now_ms=now_ms, every_days=every_days, alarms=alarms)
        if not reasons.reasons:
            typer.echo(json.dumps({"trained": False}) if as_json else "Nothing to do: no reason to train.")
            return
        words = ["weir", "watch", "retrain", "--data", str(data), "--model", model, "--seed", str(seed)]
        words += ["--as-of", _text(now_ms), "--ripe-days", str(ripe_days), "--every-days", "1", "--pinned"]
        with step("training a candidate and holding it against the served version"):
            folder, report = retrain(
                events,
                served,
                home,
                recipe_of(settings, seed, quick),
                settings,
                reasons,
                now_ms=now_ms,
                ripe_days=ripe_days,
                command=shlex.join(words + ["--quick"] * quick),
                seed=seed,
            )
    if as_json:
        typer.echo(json.dumps({"trained": True, "folder": str(folder), **report}, indent=2))
        return
    typer.echo((folder / REPORT_TEXT).read_text(encoding="utf-8"))
    typer.echo(f"In {folder}. Version {model} is untouched.")


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("must be such as 2026-06-30", param_hint="--as-of") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _text(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _in_one_line(alarms: "tuple[Alarm, ...]", most: int = 5) -> str:
    told = list(dict.fromkeys(f"{alarm.what} ({alarm.week})" for alarm in reversed(alarms)))
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return f"{len(alarms)} alarms: {', '.join(told[:most])}{more}"
