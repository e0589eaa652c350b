"""`weir privacy`: a budget for a bank's events, a risk model within it, and attacks that look for a leak."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.training.command import AsJson, Protocol, Seed, recipe_of, split_from, step, table_from
from services.training.errors import TrainingError
from services.training.privacy.units import PER_ACCOUNT, History, Unit
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from services.training.additive import AdditiveModel
    from services.training.fit import Recipe
    from services.training.privacy.ledger import Account
    from services.training.train import Table

app = typer.Typer(help="A risk model that gives no customer away, and its budget.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="With transactions-*.parquet and labels-*.parquet.")]
Epsilon = Annotated[float, typer.Option("--epsilon", help="Above 0; small is private.")]
OfUnit = Annotated[Unit, typer.Option("--unit", help="Whose coming or going is hidden.")]
PerAccount = Annotated[
    int, typer.Option("--per-account", min=1, help="Payments of an account that are used.")
]
Features = Annotated[
    History, typer.Option("--features", help="own: of the account alone. all: of terminals too, not covered.")
]
Delta = Annotated[float, typer.Option("--delta", help="Far below 1 over the number of accounts.")]
Quick = Annotated[bool, typer.Option("--quick", help="A coarser model beside it, within seconds.")]

CURVE = (0.5, 1.0, 2.0, 4.0, 8.0)
_CONFIDENTIAL = "Figures are measured on the events themselves: no budget covers them. Keep them in the bank."


@app.command("budget")
def budget_(
    folder: Folder, epsilon: Epsilon, delta: Delta, unit: OfUnit = Unit.ACCOUNT, as_json: AsJson = False
) -> None:
    """Set the total budget of these events, once."""
    from services.training.data import read_events
    from services.training.privacy.ledger import Budget, Ledger

    events = read_events(folder)
    units = len(set(events.payments.account.tolist())) if unit is Unit.ACCOUNT else events.payments.row_count
    if delta * units >= 1:
        raise TrainingError(
            f"A delta of {delta:g} would allow giving one {unit} away whole. "
            "Take it far below 1 over their number."
        )
    budget = Budget(unit, epsilon, delta)
    _say_account(Ledger(folder).set_budget(events.fingerprint, budget, at=_now()), folder, as_json)


@app.command("spent")
def spent_(folder: Folder, as_json: AsJson = False) -> None:
    """What models have cost, what is left, and the ledger's head to be noted elsewhere."""
    from services.training.data import read_events
    from services.training.privacy.ledger import Ledger

    _say_account(Ledger(folder).account(read_events(folder).fingerprint), folder, as_json)


@app.command("train")
def train_(
    folder: Folder,
    epsilon: Epsilon,
    unit: OfUnit = Unit.ACCOUNT,
    per_account: PerAccount = PER_ACCOUNT,
    features: Features = History.OWN,
    out: Annotated[Path, typer.Option("--out", help="A new file; what it costs stands beside it.")] = Path(
        "risk-private.onnx"
    ),
    measure: Annotated[bool, typer.Option(help="Figures on the test week, beside the usual model's.")] = True,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Reserve the cost, then train within it and write the model with what it cost."""
    from services.training.baselines import ModelScorer
    from services.training.data import read_events
    from services.training.export import to_onnx
    from services.training.privacy import run
    from services.training.privacy.ledger import BudgetRefused, Ledger
    from services.training.privacy.noise import Noise
    from weir.features.payments import DEFAULT

    settings, ledger = TrainingSettings.load(), Ledger(folder)
    _new_file(out)
    events = read_events(folder)
    split_from(events, settings, Protocol.LATER)  # too few days are no reason to have spent
    budget = ledger.account(events.fingerprint).budget
    if budget is None:
        raise BudgetRefused(
            f"{folder}: no budget for these events as they are now. "
            f"Set one with `weir privacy budget {folder} --epsilon E --delta D`."
        )
    plan = run.Plan(epsilon, budget.delta, unit, per_account, features)
    spend = ledger.reserve(events.fingerprint, unit, plan.mu, at=_now())
    with step("computing features and training"):
        table = table_from(events, settings)
        made = plan.fit(table, Noise())
        graph = to_onnx(made.model, name="risk", feature_spec=DEFAULT.id).SerializeToString(
            deterministic=True
        )
        statement: dict[str, Any] = {
            "name": "risk",
            "feature_spec": DEFAULT.id,
            "features": list(table.features),
        }
        statement["privacy"] = plan.statement(made, spend=spend)
        beside = run.write_pair(out, graph, json.dumps(statement, indent=2).encode() + b"\n")
    figures: dict[str, Any] = {}
    if measure:
        with step("training the usual model and measuring both"):
            rows = table.test_rows(DEFAULT.label_delay_days)
            for name, model in (("private", made.model), ("usual", _usual(table, settings, 7, quick))):
                figures[name] = table.measure(
                    ModelScorer(model), rows, draws=settings.bootstrap_draws, seed=7
                ).metrics
    account = ledger.account(events.fingerprint)
    if as_json:
        measured = {
            name: {key: [each.value, each.low, each.high] for key, each in metrics.items()}
            for name, metrics in figures.items()
        }
        files = {"model": str(out), "statement": str(beside), "epsilon_left": account.epsilon_left}
        typer.echo(json.dumps({**files, **statement, "not_private": measured}, indent=2))
        return
    typer.echo(
        f"{out}: epsilon {epsilon:g}, delta {budget.delta:g} for one {unit}, mu {made.mu:.4f}, "
        f"{made.releases} releases; {account.epsilon_left:.3f} left"
    )
    typer.echo(f"covers {plan.covers}")
    for name, metrics in figures.items():
        typer.echo(f"  {name:<8} AUC {metrics['auc_roc']}   AP {metrics['average_precision']}")
    if figures:
        typer.echo(_CONFIDENTIAL)


@app.command("curve")
def curve_(
    folder: Folder,
    delta: Delta = 1e-6,
    per_account: PerAccount = PER_ACCOUNT,
    features: Features = History.OWN,
    runs: Annotated[int, typer.Option(min=1, max=100, help="Models a line: noise is luck.")] = 5,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """What privacy costs in precision, on a simulated bank; writes no model."""
    from services.training.data import read_events
    from services.training.privacy import run
    from services.training.privacy.accountant import best_auc, best_rate, mu_of
    from services.training.privacy.noise import Noise

    _no_ledger(folder)
    settings = TrainingSettings.load()
    with step("computing features"):
        table = table_from(read_events(folder), settings)
    with step("training the usual model"):
        points = [run.point(table, [_usual(table, settings, 7, quick)], None, "usual model")]
        if features is History.OWN:
            recipe = recipe_of(settings, 7, quick)
            left_out = History.OWN.left_out(table.features)
            alone = _fit(table, settings, replace(recipe, left_out=(*recipe.left_out, *left_out)))
            points.append(run.point(table, [alone], None, "usual model, own features"))
    for unit in Unit:
        for epsilon in CURVE:
            with step(f"training with epsilon {epsilon:g} for one {unit}"):
                plan = run.Plan(epsilon, delta, unit, per_account, features)
                models = [plan.fit(table, Noise(seed)).model for seed in range(runs)]
                points.append(run.point(table, models, epsilon, unit.value))
    if as_json:
        typer.echo(
            json.dumps({"delta": delta, "runs": runs, "points": [p.as_dict() for p in points]}, indent=2)
        )
        return
    typer.echo(
        f"{'unit':<25} epsilon  {'average precision':<22} {'AUC':<22} best attack: AUC, TPR at 1 % FPR"
    )
    for each in points:
        shown, bound = "none", ""
        if each.epsilon is not None:
            mu = mu_of(each.epsilon, delta)
            shown, bound = f"{each.epsilon:g}", f"{best_auc(mu):.3f}, {best_rate(mu, 0.01):.3f}"
        figures = f"{_spread(each.average_precision)} {_spread(each.auc_roc)}"
        typer.echo(f"{each.unit:<25} {shown:>7}  {figures} {bound}".rstrip())


@app.command("attack")
def attack_(
    folder: Folder,
    epsilon: Epsilon = 1.0,
    delta: Delta = 1e-6,
    per_account: PerAccount = PER_ACCOUNT,
    accounts: Annotated[int, typer.Option(min=20, help="Drawn at random; half of them are members.")] = 400,
    shadows: Annotated[int, typer.Option(min=2, max=64, help="Models a kind; an even number.")] = 8,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Guess who was trained on: of an overfitted model, the usual one, and private ones."""
    from services.training.data import read_events
    from services.training.fit import Rows, plan
    from services.training.privacy import membership
    from services.training.privacy.accountant import best_auc, best_rate, mu_of
    from services.training.privacy.boost import PrivateRecipe

    settings, mu = TrainingSettings.load(), mu_of(epsilon, delta)
    with step("computing features"):
        table = table_from(read_events(folder), settings)
    chosen = table.split.train.rows(table.events.event_ms)
    known = table.events.known_frauds(table.split.test.start_ms)[chosen]
    account = table.events.payments.account[chosen]
    pool = membership.Pool.of(table.x[chosen], known, account, accounts, seed)
    recipe = recipe_of(settings, seed, True)
    own = PrivateRecipe().without(History.OWN.left_out(table.features))
    with step("training what is attacked, and the attackers' own models"):
        validation = table.known_rows(table.split.validation, honest_max=settings.honest_rows_max, seed=seed)
        inside = pool.half(seed)[pool.owner]
        made = plan(Rows.of(pool.x[inside], pool.is_fraud[inside]), validation, table.features, recipe)
        makers = {
            "overfitted": membership.overfitted(settings.threads),
            "usual": membership.usual(table.features, made, recipe),
        }
        for unit in Unit:
            makers[f"private, one {unit}"] = membership.private(table.features, mu, unit, per_account, own)
        found = membership.attack(pool, makers, shadows=shadows, draws=settings.bootstrap_draws, seed=seed)
    if as_json:
        about = {"epsilon": epsilon, "delta": delta, "rows": len(pool.is_fraud), "accounts": pool.size}
        typer.echo(json.dumps({**about, "attacks": [each.as_dict() for each in found]}, indent=2))
        return
    typer.echo(
        f"{pool.size:,} accounts, {len(pool.is_fraud):,} payments, {int(pool.is_fraud.sum()):,} frauds"
    )
    typer.echo(
        f"epsilon {epsilon:g}, delta {delta:g}: no attack on one unit does better than "
        f"AUC {best_auc(mu):.3f}, TPR {best_rate(mu, 0.01):.3f}"
    )
    typer.echo(f"{'model':<21} {'attack':<10} {'of':<8} AUC                       TPR at 1 % FPR")
    for each in found:
        typer.echo(f"{each.model:<21} {each.attack:<10} {each.of:<8} {each.auc}  {each.caught}")
    typer.echo(_CONFIDENTIAL)


def _say_account(account: "Account", folder: Path, as_json: bool) -> None:
    budget = account.budget
    if as_json:
        total = (
            None if budget is None else {"epsilon": budget.epsilon, "delta": budget.delta, "mu": budget.mu}
        )
        about = {
            "unit": None if budget is None else budget.unit.value,
            "budget": total,
            "runs": len(account.spent),
            "mu_spent": account.mu,
            "epsilon_spent": None if budget is None else account.epsilon_spent,
            "epsilon_left": account.epsilon_left,
            "ledger": {"lines": account.lines, "head": account.head},
        }
        typer.echo(json.dumps(about, indent=2))
        return
    if budget is None:
        typer.echo(
            f"{folder}: no budget for these events as they are now; {len(account.spent)} runs on earlier ones"
        )
    else:
        typer.echo(
            f"{folder}: budget epsilon {budget.epsilon:g}, delta {budget.delta:g} for one {budget.unit}; "
            f"{len(account.spent)} runs spent {account.epsilon_spent:.3f}, {account.epsilon_left:.3f} left"
        )
    typer.echo(f"ledger: {account.lines} lines, head {account.head}")


def _usual(table: "Table", settings: TrainingSettings, seed: int, quick: bool) -> "AdditiveModel":
    return _fit(table, settings, recipe_of(settings, seed, quick))


def _fit(table: "Table", settings: TrainingSettings, recipe: "Recipe") -> "AdditiveModel":
    from services.training import train as training

    return training.fit(table, recipe, honest_max=settings.honest_rows_max).model


def _new_file(out: Path) -> None:
    """Refused before anything is spent, not after."""
    if out.suffix != ".onnx":
        raise TrainingError(f"{out}: the model's file must end in .onnx.")
    if not out.parent.is_dir():
        raise TrainingError(f"{out.parent} is not a folder.")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise TrainingError(f"{path} exists. Choose another --out.")


def _no_ledger(folder: Path) -> None:
    from services.training.privacy.ledger import BudgetRefused, Ledger

    if Ledger(folder).exists:
        raise BudgetRefused(
            f"{folder} has a privacy budget: to choose an epsilon by its figures would spend it unseen. "
            "Take a simulated bank."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _spread(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
