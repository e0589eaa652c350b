"""`weir federate`: several banks train one risk model, and none shows another a payment."""

import json
import tempfile
import time
from datetime import UTC, datetime
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from services.training.errors import DataMissing, TrainingError
from services.training.settings import TrainingSettings
from weir.errors import ConfigError

if TYPE_CHECKING:
    from services.training.federate.plan import Plan

app = typer.Typer(help="Train one risk model among several banks.", no_args_is_help=True)

BANKS_MIN = 3
# Fewer than [training] pairs_max: tables stay whole here, and each pair is traffic in every round of pairs.
PAIRS = 16

AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]


class Aggregation(StrEnum):
    """What the coordinator may see."""

    SECURE = "secure"
    ROBUST = "robust"


Rounds = Annotated[int, typer.Option(min=1, max=100, help="Of single features.")]
RoundsPair = Annotated[
    int, typer.Option(min=0, max=100, help="After them, of pairs of features; 0 for none.")
]
Pairs = Annotated[
    int, typer.Option(min=0, max=1000, help="How many at most; each makes updates and the graph larger.")
]
Kind = Annotated[
    Aggregation, typer.Option(help="secure: sums only are seen. robust: outliers are found and left out.")
]
BanksMin = Annotated[
    int, typer.Option(min=2, help="End when fewer are left. With two, each can work out the other's update.")
]
Patience = Annotated[
    float, typer.Option(min=5, help="Seconds a bank may take for an answer; then it is out.")
]
Seed = Annotated[int, typer.Option(min=0)]


@app.command("risk")
def federate_risk(
    bank: Annotated[
        list[str], typer.Option("--bank", help="NAME=DIR, once for each of three banks or more.")
    ],
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Of single features.")] = 8,
    rounds_pair: RoundsPair = 4,
    pairs: Pairs = PAIRS,
    aggregation: Annotated[
        Aggregation, typer.Option(help="secure: sums only are seen. robust: outliers are found and left out.")
    ] = Aggregation.SECURE,
    banks_min: Annotated[
        int,
        typer.Option(min=2, help="End when fewer are left. With two, each can work out the other's update."),
    ] = 2,
    patience: Annotated[
        float, typer.Option(min=5, help="Seconds that a bank may take for one answer; then it is out.")
    ] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    compare: Annotated[
        bool, typer.Option(help="Fit local and central models too; this process then reads all banks' data.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", help="Write figures and model here, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train among banks on this machine, each in a process of its own, and compare."""
    from services.training.command import recipe_of
    from services.training.federate.plan import Plan
    from services.training.federate.processes import run_here
    from services.training.federate.trial import Trial, agreed_days

    def say(line: str) -> None:
        typer.echo(line, err=True)

    settings, folders = TrainingSettings.load(), _banks(bank)
    days = {"validation_days": settings.validation_days, "test_days": settings.test_days}
    trial = Trial.read(folders, **days) if compare else None
    plan = Plan(
        trial.pooled.split if trial else agreed_days(folders, **days),
        rounds=rounds,
        rounds_pair=rounds_pair,
        pairs_max=pairs,
        aggregation=aggregation.value,
        banks_min=banks_min,
        seed=seed,
        honest_max=settings.honest_rows_max,
    )
    say(_update_sizes(plan))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weir-federate-") as scratch:
        outcome = run_here(folders, plan, Path(scratch), patience_s=patience, say=say)
    seconds = round(time.monotonic() - began)
    say(f"{outcome.rounds} rounds took {seconds} s, the start and end of all processes with them")
    made: dict[str, Any] = {
        "aggregation": plan.aggregation,
        "banks": list(folders),
        "seconds": seconds,
        **outcome.as_dict(),
    }
    if out is not None:  # the comparison may take longer than the federation, and may be broken off
        out.write_text(json.dumps(made), encoding="utf-8")
    if outcome.rounds and trial:
        made["comparison"] = trial.compare(
            outcome.model,
            recipe_of(settings, seed, quick=False),
            honest_max=settings.honest_rows_max,
            draws=settings.bootstrap_draws,
            say=say,
        )
    if out is not None:
        out.write_text(json.dumps(made), encoding="utf-8")
    if as_json:
        shown = {name: value for name, value in made.items() if name not in ("vector", "counts")}
        typer.echo(json.dumps(shown, indent=2))
    elif "comparison" in made:
        for line in _lines(made["comparison"]):
            typer.echo(line)
    outcome.require_good()


@app.command("export")
def export_(
    result: Annotated[Path, typer.Argument(help="What `weir federate risk --out` or a coordinator wrote.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
) -> None:
    """Write the federated model as the graph that Triton serves."""
    from services.training.export import to_onnx
    from services.training.federate.rounds import Outcome

    try:
        outcome = Outcome.from_dict(json.loads(result.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataMissing(f"{result} is not there. `weir federate risk --out {result}` writes it.") from None
    except (ValueError, KeyError, TypeError):
        raise TrainingError(f"{result} is not the result of a federation.") from None
    if not outcome.rounds:
        raise TrainingError(f"{result}: no round came to an end, so there is no model to write.")
    graph = to_onnx(outcome.model, name="risk", feature_spec=outcome.layout.spec)
    onnx.write_bytes(graph.SerializeToString())
    typer.echo(f"{onnx}: {outcome.rounds} rounds, {len(outcome.layout.pairs)} pairs")


@app.command("app")
def app_(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    first_day: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Of the payments, UTC.")],
    last_day: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="Of the payments; test days end it.")
    ],
    result: Annotated[Path, typer.Option(help="Folder on the coordinator for result.json.")],
    banks: Annotated[int, typer.Option(min=BANKS_MIN)] = BANKS_MIN,
    rounds: Rounds = 8,
    rounds_pair: RoundsPair = 4,
    pairs: Pairs = PAIRS,
    aggregation: Kind = Aggregation.SECURE,
    banks_min: BanksMin = 2,
    patience: Patience = 600,
    seed: Seed = 7,
) -> None:
    """Write the Flower app with the plan that all banks agree on, for banks on machines of their own."""
    from services.training.federate.plan import Plan
    from services.training.federate.processes import write_app
    from services.training.split import by_time
    from weir.features.payments import DEFAULT

    if folder.exists():
        raise TrainingError(f"{folder} exists already. Name a new folder.")
    settings = TrainingSettings.load()
    ends = [int(day.replace(tzinfo=UTC).timestamp() * 1000) for day in (first_day, last_day)]
    split = by_time(
        np.array(ends, np.int64),
        delay_days=DEFAULT.label_delay_days,
        validation_days=settings.validation_days,
        test_days=settings.test_days,
    )
    plan = Plan(
        split, rounds, rounds_pair, pairs, aggregation.value, banks_min, seed,
        honest_max=settings.honest_rows_max, threads=settings.threads,
    )  # fmt: skip
    write_app(folder, plan, banks=banks, out=result.resolve(), patience_s=patience)
    for name, window in split.as_dict().items():
        typer.echo(f"{name:<11} {window}")
    typer.echo(_update_sizes(plan))
    typer.echo(f"{folder}: run it with `flwr run {folder} NAME`, NAME a SuperLink of Flower's config.toml.")


@app.command("split")
def split_(
    folder: Annotated[Path, typer.Argument(help="With transactions-*.parquet and labels-*.parquet.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder, with one for each bank.")],
    banks: Annotated[int, typer.Option(min=2, max=100)] = 3,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Deal one bank's accounts out to several, for trials."""
    from services.training.federate.trial import split_banks

    dealt = split_banks(folder, out, banks, seed)
    if as_json:
        typer.echo(json.dumps(dealt, indent=2))
        return
    for name, count in dealt.items():
        typer.echo(f"{out / name}: {count:,} payments")


def _banks(given: list[str]) -> dict[str, Path]:
    """Folders by name, in the order given."""
    found: dict[str, Path] = {}
    for each in given:
        name, _, folder = each.partition("=")
        if not folder or not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            raise ConfigError(f"--bank {each!r}: write NAME=DIR, the name in letters, digits, - and _.")
        if name in found:
            raise ConfigError(f"--bank: {name} is there twice. Give each bank a name of its own.")
        found[name] = Path(folder)
    if len(found) < BANKS_MIN:
        raise ConfigError(
            f"{len(found)} banks are too few: a sum hides a bank among at least {BANKS_MIN}. "
            "`weir federate split` makes some for a trial."
        )
    return found


def _update_sizes(plan: "Plan") -> str:
    """What a bank's update of a round takes at most, beside a few kB of keys: a line for a person."""
    from services.training.federate.aggregate import packed_size
    from services.training.federate.layout import Layout

    layout = plan.layout()
    with_pairs = bool(plan.rounds_pair and plan.pairs_max)
    line = f"an update takes up to {8 * packed_size(layout, with_pairs) / 1000:,.0f} kB"
    if not with_pairs:
        return line
    pairs = tuple(combinations(range(len(layout.features)), 2))[: plan.pairs_max]
    wider = 8 * packed_size(Layout(layout.features, layout.spec, pairs), False) / 1000
    return f"{line}, in a round of {len(pairs)} pairs {wider:,.0f} kB"


def _lines(made: dict[str, Any]) -> list[str]:
    test = made["test"]
    rows = [(f"bank {name} alone", figures) for name, figures in made["local"].items()]
    rows += [
        ("federated", made["federated"]),
        ("central", made["central"]),
        ("central, whole history", made["central_whole_history"]),
    ]
    lines = [
        f"Test {test['days']}: {test['rows']:,} payments, {test['frauds']:,} frauds",
        f"{'':<24}{'average precision':<28}AUC",
    ]
    for name, figures in rows:
        shown = [
            f"{each['value']:.4f} ({each['low']:.4f} to {each['high']:.4f})"
            for each in (figures["average_precision"], figures["auc_roc"])
        ]
        lines.append(f"{name:<24}{shown[0]:<28}{shown[1]}")
    share = made["share_of_average_precision"]
    lines.append(
        f"The federated model reaches {share['central']:.1%} of the central average precision, "
        f"{share['central_whole_history']:.1%} of that with the whole history."
    )
    return lines
