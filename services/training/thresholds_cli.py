"""`weir evaluate thresholds`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from services.training.command import AsJson, Data, Protocol, Repository, step, table_of
from services.training.settings import TrainingSettings


def thresholds(
    data: Data,
    model: Annotated[str, typer.Option(help="A version in the repository.")],
    reviews_day: Annotated[float, typer.Option(min=0, help="Payments a day that people can look at.")] = 100,
    decline: Annotated[float, typer.Option(min=0, help="Cost of an honest payment declined.")] = 60.0,
    review: Annotated[float, typer.Option(min=0, help="Cost of a person's look.")] = 12.0,
    fraud_loss_share: Annotated[float, typer.Option(min=0, max=1, help="Of a fraud's amount.")] = 1.0,
    found: Annotated[float, typer.Option(min=0, max=1, help="Frauds that a person recognises.")] = 0.95,
    plot: Annotated[Path | None, typer.Option(help="SVG of cost and reviews by threshold.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """The cheapest thresholds within a review team's capacity, and what others would do."""
    from services.training.repository import ModelRepository
    from services.training.thresholds import (
        Costs,
        Judged,
        Thresholds,
        best_thresholds,
        candidates,
        outcome,
        what_if,
    )
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    costs = Costs(fraud_loss_share, decline, review, found)
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
    served = ModelRepository(repository or settings.repository).open("risk", model, features=table.features)

    with step("choosing"):
        before = Judged.of(table, served, table.split.validation.rows(table.events.event_ms))
        after = Judged.of(table, served, table.test_rows(DEFAULT.label_delay_days))
        best = best_thresholds(before, costs, reviews_day=reviews_day)
        steps = [each for each in candidates(before) if each <= best.decline_at]
        curve = what_if(after, costs, [Thresholds(each, best.decline_at) for each in steps])
    lines = {
        "chosen": outcome(after, best, costs),
        "no person": outcome(after, Thresholds(best.decline_at, best.decline_at), costs),
        "half the reviews": outcome(
            after, best_thresholds(before, costs, reviews_day=reviews_day / 2), costs
        ),
        "twice the reviews": outcome(
            after, best_thresholds(before, costs, reviews_day=reviews_day * 2), costs
        ),
    }
    if plot is not None:
        from services.training.plots import cost_plot

        cost_plot(plot, [(each.reviewed_day, each.cost_day) for each in curve], lines["chosen"].reviewed_day)
    if as_json:
        about = {
            "model": model,
            "chosen_on": str(table.split.validation),
            "judged_on": str(table.split.test),
            **{name: each.as_dict() for name, each in lines.items()},
            "curve": [each.as_dict() for each in curve],
        }
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo(f"Chosen on {table.split.validation}, judged on {table.split.test}.\n")
    typer.echo(
        "| | review from | decline from | reviews a day | declined a day | honest among them "
        "| frauds stopped | cost a day | saved a day |"
    )
    typer.echo("|---" + "|---:" * 8 + "|")
    for name, each in lines.items():
        at = each.thresholds
        typer.echo(
            f"| {name} | {_at(at.review_at)} | {_at(at.decline_at)} | {each.reviewed_day:,.1f} "
            f"| {each.declined_day:,.1f} | {each.honest_declined_day:,.1f} | {each.frauds_stopped:.1%} "
            f"| {each.cost_day:,.0f} | {each.saved_day:,.0f} |"
        )
    typer.echo("\nFor the policy file, with a new `version`:\n")
    decline_at, review_at = min(best.decline_at, 1.0), min(best.review_at, 1.0)
    typer.echo(f"[thresholds]\nreview_at = {review_at:.6f}\ndecline_at = {decline_at:.6f}")


def _at(threshold: float) -> str:
    return f"{threshold:.4f}" if threshold <= 1 else "never"
