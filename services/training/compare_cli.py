"""`weir models compare`."""

import json
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.command import AsJson, Data, Repository, Seed, events_of, step
from services.training.compare import Figure, Verdict
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from services.training.repository import ServedModel

_SAYS = {
    Verdict.BETTER: "The challenger is better. It is enough: propose it.",
    Verdict.WORSE: "The challenger is worse. It is enough: retire it.",
    Verdict.AS_GOOD: "The challenger is at most {margin:g} worse. It is enough, if as good is good enough.",
    Verdict.NOT_YET: "Not enough yet.",
}


def compare(
    champion: Annotated[str, typer.Argument(help="The version that decides.")],
    challenger: Annotated[str, typer.Argument(help="The version that might.")],
    data: Data,
    figure: Annotated[Figure, typer.Option(help="What is compared.")] = Figure.AVERAGE_PRECISION,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Of being wrong at any look.")] = 0.05,
    margin: Annotated[float, typer.Option(min=0, help="So much worse is still as good.")] = 0.01,
    planned: Annotated[int, typer.Option(min=1, help="Defrauded accounts to plan for.")] = 500,
    repository: Repository = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Compare two versions on payments that neither has learnt from; look as often as you like."""
    from services.training.compare import compare as compared
    from services.training.data import DAY_MS
    from services.training.evaluate import Sample
    from services.training.repository import ModelRepository
    from services.training.split import Window
    from weir.features.payments import DEFAULT, FEATURES

    settings = TrainingSettings.load()
    home = ModelRepository(repository or settings.repository)
    one, two = (home.open("risk", version, features=FEATURES) for version in (champion, challenger))
    with step("reading events and computing features"):
        events = events_of(data, settings)
        x = events.features()
    # Neither may have learnt from what judges, and a payment whose label may still come does not judge.
    first_ms = max(_learnt_until_ms(one), _learnt_until_ms(two), int(events.event_ms[0]))
    end_ms = (int(events.event_ms[-1]) // DAY_MS + 1) * DAY_MS - DEFAULT.label_delay_days * DAY_MS
    window = Window(first_ms, end_ms)
    rows = window.rows(events.event_ms) if first_ms < end_ms else None
    if rows is None or not rows.any():
        raise TrainingError(
            f"{data} has no payments that neither {champion} nor {challenger} has learnt from and whose "
            "labels are in. Collect later ones with `weir data collect`."
        )
    with step("scoring and comparing"):
        samples = [
            Sample.of(
                model.score(x[rows]),
                events.is_fraud[rows],
                events.payments.account[rows],
                events.event_ms[rows],
            )
            for model in (one, two)
        ]
        found = compared(
            *samples,
            figure=figure,
            alpha=alpha,
            margin=margin,
            frauds_planned=planned,
            draws=settings.bootstrap_draws,
            seed=seed,
        )
    if as_json:
        about = {"champion": champion, "challenger": challenger, "window": str(window)}
        typer.echo(json.dumps({"versions": about, **found.as_dict()}, indent=2))
        return
    typer.echo(
        f"{window}: {found.rows:,} payments, {found.defrauded:,} accounts defrauded\n"
        f"{found.figure}: champion {champion} {found.champion:.4f}, challenger {challenger} "
        f"{found.challenger:.4f}, difference {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}, "
        f"at every look together {1 - alpha:.0%})\n" + _SAYS[found.verdict].format(margin=margin)
    )
    if found.verdict is Verdict.NOT_YET:
        typer.echo(
            f"If the difference stays what it is, about {found.needed:,} defrauded accounts are enough."
            if found.needed
            else "At this difference no amount of payments would be."
        )


def _learnt_until_ms(model: "ServedModel") -> int:
    """The end of the last window that a version was fitted or calibrated on."""
    windows = model.about["trained"]["split"]
    days = [windows[name].split("..")[1] for name in ("tune", "validation", "train")]
    return (max(date.fromisoformat(day) for day in days) - date(1970, 1, 1)).days * 86_400_000 + 86_400_000
