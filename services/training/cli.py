"""`weir train`, `weir evaluate`, `weir models`."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.training import intent_cli, search_cli, thresholds_cli
from services.training.command import (
    AsJson,
    Data,
    Protocol,
    Quick,
    Repository,
    Seed,
    recipe_of,
    step,
    table_of,
)
from services.training.compare_cli import compare
from services.training.errors import ModelBroken, TrainingError
from services.training.export_cli import export
from services.training.guard.cli import guard
from services.training.papers_cli import papers
from services.training.settings import TrainingSettings
from services.training.stages_cli import approve, person, propose, register, reject, stages, undo
from weir.inference.stages import Stage

if TYPE_CHECKING:
    from services.training.baselines import Scorer
    from services.training.fit import Recipe
    from services.training.repository import ModelRepository
    from services.training.train import Table

train = typer.Typer(help="Make a model from labelled events.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure a model, or a baseline, on labelled events.", no_args_is_help=True)
models = typer.Typer(help="The models in the repository: list them, check them.", no_args_is_help=True)


@train.callback()
def _train() -> None:
    """Make a model from labelled events."""


@evaluate.callback()
def _evaluate() -> None:
    """Measure a model, or a baseline, on labelled events."""


@train.command("risk")
def train_risk(
    data: Data,
    version: Annotated[str | None, typer.Option(help="Version to write; default the next one.")] = None,
    seed: Seed = 7,
    quick: Quick = False,
    origin: Annotated[
        str | None, typer.Option(help="What the data is and where it comes from, for the model card.")
    ] = None,
    searched: Annotated[
        Path | None, typer.Option("--search", help="Folder of `weir train search`: use what it found.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a version that exists.")] = False,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Train the payment fraud model and put it into the model repository."""
    from services.training import train as training
    from services.training.card import figures_table
    from services.training.prepare.leaks import find_leaks
    from services.training.repository import ModelRepository
    from weir.features.payments import FEATURES

    settings = TrainingSettings.load()
    with step("reading events and computing features"):
        table = table_of(data, settings, Protocol.LATER)
    with step("looking for features that know the future"):
        find_leaks(table.events, table.events.features_of, FEATURES, whole=table.x).require_none()
    recipe, lesson = recipe_of(settings, seed, quick), None
    if searched is not None:
        from services.training.search import read_found

        recipe, lesson = read_found(searched, table, recipe)
    with step("fitting and measuring"):
        folder, about = training.train_risk(
            table,
            recipe,
            ModelRepository(repository or settings.repository),
            version=version,
            replace=replace,
            command=_command(data, seed, quick, searched),
            origin=origin,
            lesson=lesson,
            honest_max=settings.honest_rows_max,
            draws=settings.bootstrap_draws,
            created=datetime.now(UTC).date().isoformat(),
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **about}, indent=2))
        return
    metrics = about["metrics"]
    typer.echo(f"risk version {about['version']} in {folder}\n")
    typer.echo(figures_table({**metrics["baselines"], "model": metrics["test"]}))


train.command("intent")(intent_cli.train_intent)
train.command("search")(search_cli.search)
evaluate.command("intent")(intent_cli.evaluate_intent)
evaluate.command("thresholds")(thresholds_cli.thresholds)


@evaluate.command("chat")
def evaluate_chat(
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the language model on Triton write, as [chat] names it.")
    ] = False,
    pii: Annotated[
        Path | None, typer.Option(help="Presidio's synthetic sentences, JSON lines; beside our own.")
    ] = None,
    faq: Annotated[
        Path | None, typer.Option(help="JSON lines of id, question, answer to search too.")
    ] = None,
    messages: Annotated[
        Path | None, typer.Option(help="A bank's own messages, CSV with a column text: how many are refused.")
    ] = None,
    intents: Annotated[
        Path | None, typer.Option(help="CSV of text and category, such as BANKING77's test; beside our own.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Of the starter set, for each language; default all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Masking, guards, intents, retrieval and whole turns of the chat service, with sizes and intervals."""
    import asyncio

    from services.chat.evaluate.command import evaluate_chat as run
    from services.chat.evaluate.command import lines_of

    made = asyncio.run(
        run(
            generate=generate,
            pii_file=pii,
            faq_file=faq,
            messages_file=messages,
            intents_file=intents,
            questions_max=questions,
        )
    )
    if as_json:
        typer.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return
    for line in lines_of(made):
        typer.echo(line)


@evaluate.command("risk")
def evaluate_risk(
    model: Annotated[
        str,
        typer.Option(help="A version, baseline:rule, baseline:logistic, or fresh (fitted now, not kept)."),
    ],
    data: Data,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="later: the last week. handbook: its weeks. preceding: its test week, all before it."
        ),
    ] = Protocol.LATER,
    seed: Seed = 7,
    quick: Quick = False,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """AUC, average precision, card precision@100 and calibration, each with its interval."""
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
    with step("scoring"):
        scorer = _scorer(model, table, settings, recipe_of(settings, seed, quick), repository)
        rows = table.test_rows(DEFAULT.label_delay_days)
        report = table.measure(scorer, rows, draws=settings.bootstrap_draws, seed=seed)
    if as_json:
        about = {
            "model": model,
            "protocol": protocol.value,
            "window": str(table.split.test),
            "fingerprint": table.events.fingerprint,
        }
        typer.echo(json.dumps({**about, **report.as_dict()}, indent=2))
        return
    typer.echo(
        f"{model} on {table.split.test}: {report.row_count:,} payments, {report.fraud_count:,} frauds, "
        f"{report.account_count:,} accounts"
    )
    for name, interval in report.metrics.items():
        typer.echo(f"  {name:<20} {interval}")


for _step in (person, register, propose, approve, reject, undo, stages, guard, compare, papers, export):
    models.command(_step.__name__)(_step)


@models.command("list")
def list_models(repository: Repository = None, as_json: AsJson = False) -> None:
    """Every version in the repository, with its figures on the later week."""
    from services.training.repository import ModelRepository

    home = ModelRepository(repository or TrainingSettings.load().repository)
    found: list[dict[str, Any]] = []
    for name in home.names():
        for version in home.versions(name):
            about = home.about(name, str(version))
            figures = about["metrics"].get("test", {}).get("metrics", {})
            found.append(
                {
                    "name": name,
                    "version": str(version),
                    "sha256": about["sha256"],
                    "feature_spec": about["feature_spec"],
                    "created": about["trained"].get("created", ""),
                    **{key: figure["value"] for key, figure in figures.items()},
                }
            )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo(f"No models in {home.root}. Make one with `weir train risk --data DIR`.")
    for each in found:
        typer.echo(
            f"{each['name']} {each['version']}  {each['created']}  features {each['feature_spec']}  "
            f"sha256 {each['sha256'][:12]}  AUC {each.get('auc_roc', float('nan')):.3f}  "
            f"AP {each.get('average_precision', float('nan')):.3f}"
        )


@models.command("verify")
def verify_models(
    name: Annotated[str | None, typer.Argument(help="A model; default all of them.")] = None,
    version: Annotated[str | None, typer.Argument(help="A version of it; default all of them.")] = None,
    repository: Repository = None,
) -> None:
    """Checksums, signatures and feature order agree, and a row can be scored."""
    from services.training.repository import ModelRepository
    from weir.features.payments import FEATURE_SPEC, FEATURES

    home = ModelRepository(repository or TrainingSettings.load().repository)
    chosen = [
        (each, found)
        for each in ([name] if name else home.names())
        for found in ([version] if version else map(str, home.versions(each)))
    ]
    if not chosen:
        raise TrainingError(
            f"{home.root} holds no model to check. Make one with `weir train risk --data DIR`."
        )
    for each, found in chosen:
        served = home.verify(each, found, features=FEATURES if each == "risk" else None)
        if each == "risk" and served.about["feature_spec"] != FEATURE_SPEC:
            spec = served.about["feature_spec"]
            raise ModelBroken(
                served.folder, f"made for feature spec {spec}, this code computes {FEATURE_SPEC}"
            )
        typer.echo(f"{each} {found}: whole, sha256 {served.about['sha256'][:12]}")
    for each in {each for each, _ in chosen}:
        _verify_stages(home, each)


def _verify_stages(home: "ModelRepository", name: str) -> None:
    """The log of stages is whole, and names versions that are what was registered."""
    from services.training.stages import StageLog

    state = StageLog(home, name).read()
    for version, expected in state.sha256.items():
        if home.about(name, version)["sha256"] != expected:
            raise ModelBroken(home.root / name / version, "not the model that was registered")
    if state.lines:
        typer.echo(f"{name}: {state.lines} signed steps, champion {state.at(Stage.CHAMPION) or 'none'}")


def _scorer(
    model: str, table: "Table", settings: TrainingSettings, recipe: "Recipe", repository: Path | None
) -> "Scorer":
    from services.training import train as training
    from services.training.baselines import ModelScorer
    from services.training.repository import ModelRepository

    if model == "fresh":
        return ModelScorer(training.fit(table, recipe, honest_max=settings.honest_rows_max).model)
    if model.startswith("baseline:"):
        known = training.baselines(table, recipe, honest_max=settings.honest_rows_max)
        if (name := model.removeprefix("baseline:")) not in known:
            raise TrainingError(f"No baseline {name!r}. There are: {', '.join(known)}.")
        return known[name]
    home = ModelRepository(repository or settings.repository)
    return home.open("risk", model, features=table.features)


def _command(data: Path, seed: int, quick: bool, searched: Path | None) -> str:
    """What a person would type to make the same model again."""
    words = ["weir", "train", "risk", "--data", str(data), "--seed", str(seed)]
    words += [] if searched is None else ["--search", str(searched)]
    return shlex.join(words + ["--quick"] * quick)
