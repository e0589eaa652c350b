"""`weir explain`: one decision for a reviewer, the model as a whole, how steady its reasons are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.command import (
    AsJson,
    Data,
    Protocol,
    Quick,
    Repository,
    Seed,
    events_of,
    recipe_of,
    split_from,
    step,
    table_of,
)
from services.training.errors import ModelBroken, TrainingError
from services.training.explain.words import Language, read_reasons, reason, speaking
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from services.training.additive import AdditiveModel
    from services.training.explain.decision import Explanation
    from services.training.explain.stability import Agreement

app = typer.Typer(help="Why the risk model scores as it does.", no_args_is_help=True)

Model = Annotated[str, typer.Option("--model", help="A version in the repository.")]
# `review_at` of the policy that is shipped: below it, the model alone would approve.
Threshold = Annotated[float, typer.Option("--threshold", help="On the probability; your policy's review_at.")]
THRESHOLD = 0.05


@app.command("decision")
def decision_(
    data: Data,
    model: Model,
    event: Annotated[str, typer.Option("--event", help="The event's id, as it is in the data.")],
    lang: Annotated[str, typer.Option("--lang", help="en or zh.")] = "en",
    out: Annotated[Path | None, typer.Option("--out", help="An HTML page for a reviewer.")] = None,
    threshold: Threshold = THRESHOLD,
    reasons: Annotated[Path | None, typer.Option(help="Reviewed texts; default the risk service's.")] = None,
    moves: Annotated[Path | None, typer.Option(help="What can be moved (TOML); default as shipped.")] = None,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Say why one payment scored as it did, and what would have to be otherwise."""
    from services.training.explain.decision import explain, place_of
    from services.training.explain.moves import SHIPPED, Moves
    from services.training.explain.page import page

    if lang not in ("en", "zh"):
        raise typer.BadParameter("must be en or zh", param_hint="--lang")
    language: Language = "zh" if lang == "zh" else "en"
    settings, texts, levers = TrainingSettings.load(), read_reasons(reasons), Moves.load(moves or SHIPPED)
    opened, about = _opened(repository or settings.repository, model)
    with step("reading events and computing features"):
        events = events_of(data, settings)
        at = place_of(data, event, events)
        x = events.features()
    try:
        window = split_from(events, settings, Protocol.LATER).train
        training, days = window.rows(events.event_ms), str(window)
    except TrainingError:  # too few days to train on: then all that came before is what there is to compare
        training = events.event_ms < events.event_ms[at]
        days = "all earlier days" if language == "en" else "此前所有日期"
    with step("explaining"):
        told = explain(
            events,
            x,
            at,
            event,
            model=opened,
            about=about,
            training=training,
            training_days=days,
            moves=levers,
            threshold=threshold,
        )
    if out is not None:
        out.write_text(page(told, texts, language), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(told.as_dict(), indent=2, allow_nan=False))
    elif out is not None:
        typer.echo(f"{out}: probability {told.probability:.4f}")
    else:
        for line in _lines(told, texts, language):
            typer.echo(line)


@app.command("model")
def model_(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="A folder for the files.")],
    pictures: Annotated[int, typer.Option(min=0, help="Features that get a picture, widest first.")] = 12,
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    seed: Seed = 7,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Say what the model goes by: importance and partial dependence on the test window."""
    from services.training.explain.importance import effects, weights
    from services.training.explain.report import markdown_weights, write
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    opened, about = _opened(repository or settings.repository, model)
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
    rows = table.test_rows(DEFAULT.label_delay_days)
    x, fraud, account = table.x[rows], table.events.is_fraud[rows], table.events.payments.account[rows]
    with step("measuring"):
        heavy = weights(opened, x, fraud, account, draws=settings.bootstrap_draws, seed=seed)
        shapes = effects(opened, x)
    what = {
        **{key: str(about[key]) for key in ("name", "version", "sha256", "feature_spec")},
        "window": str(table.split.test),
        "rows": len(x),
        "frauds": int(fraud.sum()),
        "fingerprint": table.events.fingerprint,
        "draws": settings.bootstrap_draws,
        "seed": seed,
    }
    made = write(out, what, heavy, shapes, pictures)
    if as_json:
        typer.echo((out / "importance.json").read_text(encoding="utf-8").rstrip())
        return
    for line in markdown_weights(heavy):
        typer.echo(line)
    typer.echo(f"\n{len(made)} files in {out}")


@app.command("stability")
def stability_(
    data: Data,
    model: Model,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Models of other seeds to train.")] = 5,
    versions: Annotated[
        list[str] | None,
        typer.Option("--against", help="A version to compare with, in place of trained ones."),
    ] = None,
    quick: Quick = False,
    threshold: Threshold = THRESHOLD,
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """Say how steady the reasons are: under other models, and under small changes of a payment."""
    from services.training.explain.moves import Moves
    from services.training.explain.stability import agreement, under_nudges
    from services.training.train import fit
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    root = repository or settings.repository
    opened, _ = _opened(root, model)
    first = opened
    others = {f"version {each}": _opened(root, each)[0] for each in versions or ()}
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
    if not versions and seeds:
        grown = {}
        for seed in range(1, seeds + 2):
            with step(f"training with seed {seed}"):
                recipe = recipe_of(settings, seed, quick)
                grown[seed] = fit(table, recipe, honest_max=settings.honest_rows_max).model
        # Against each other: the served one was perhaps trained on other days, and would show those too.
        first = grown.pop(1)
        others = {f"seed {seed}, against seed 1": each for seed, each in grown.items()}
    x = table.x[table.test_rows(DEFAULT.label_delay_days)]
    stopped = opened.probability(x) >= threshold
    moves = Moves.load()
    lines: dict[str, Agreement | None] = {}
    for which, rows, held in (("all", x, stopped), ("stopped", x[stopped], stopped[stopped])):
        if not len(rows):
            continue
        lines |= {
            f"{which}: {name}": agreement(first, each, rows, rows, held) for name, each in others.items()
        }
        lines |= {f"{which}: {name}": each for name, each in under_nudges(opened, rows, moves, held).items()}
    if as_json:
        plain = {name: each and each.as_dict() for name, each in lines.items()}
        typer.echo(json.dumps({"model": model, "threshold": threshold, "lines": plain}, indent=2))
        return
    typer.echo(f"On {table.split.test}; stopped: probability {threshold:g} or more.\n")
    typer.echo(
        "| rows | payments | same first reason | same first three | rank correlation | logit moves by up to |"
    )
    typer.echo("|---" + "|---:" * 5 + "|")
    for name, each in lines.items():
        if each is not None:
            typer.echo(
                f"| {name} | {each.rows:,} | {each.first:.1%} | {each.three:.1%} | {each.order:.3f} "
                f"| {each.moved:.3f} |"
            )


def _opened(root: Path, version: str) -> "tuple[AdditiveModel, Mapping[str, Any]]":
    """The version's tables and its model.json, after every check.

    Raises:
        ModelMissing, ModelBroken: as `ModelRepository.open`, or its features are not this code's.
    """
    import onnx

    from services.training.imported import from_onnx
    from services.training.repository import ModelRepository
    from weir.features.payments import FEATURE_SPEC, FEATURES

    served = ModelRepository(root).open("risk", version, features=FEATURES)
    if served.about["feature_spec"] != FEATURE_SPEC:
        raise ModelBroken(
            served.folder, "its feature_spec is not this code's, so its rows cannot be made again"
        )
    return from_onnx(onnx.load(str(served.folder / "model.onnx"))), served.about


def _lines(told: "Explanation", texts: "Mapping[str, Mapping[str, str]]", language: Language) -> list[str]:
    from services.training.explain.page import change_text, number, terms

    say = speaking(language)
    shown, total = terms(told)
    width = max(len(name) for name in told.features)
    out = [f"{say('score')}: {told.probability:.4f}", f"{shown[0]:>9}  {say('base')}"]
    for value, at in zip(shown[1:], told.order, strict=True):
        text = reason(texts, told.features[at], float(told.contributions[at]), language)
        is_now = number(float(told.values[at]), say)
        out.append(f"{value:>9}  {told.features[at]:<{width}}  {is_now:>10}  {text}".rstrip())
    out += [f"{total:>9}  logit", ""]
    found = told.counterfactual
    if found is None:
        return [*out, say("no_way")]
    if not found.changes:
        return [*out, say("already")]
    out.append(say("would").format(probability=f"{found.probability:.4f}"))
    for change in found.changes:
        name, before, after = change_text(change, say)
        out.append(f"  {name}: {before} → {after} ({say(change.lever.by)})")
    return [*out, say("exact" if found.exact else "search")]
