"""`weir decisions`: read what was decided, opened by this machine's role."""

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer

from weir.client.decisions import BadRecord, Decisions, Last, Start
from weir.client.records import Decision, Outcome
from weir.errors import BadInput, IntegrityError, MissingPart

app = typer.Typer(help="Read decisions: tail them, show one.", no_args_is_help=True)

_COLOUR = {Outcome.APPROVE: "green", Outcome.REVIEW: "yellow", Outcome.DECLINE: "red"}
_CENT = Decimal("0.01")
# Transaction markers and other partitions take part of the last records; what is too much is cut off.
_LAST_MARGIN = 2


class Lang(StrEnum):
    """The languages that reasons are written in."""

    EN = "en"
    ZH = "zh"


PurposeOption = Annotated[
    str, typer.Option(help="Why you read: the key service decides by it and keeps it in its audit record.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
LangOption = Annotated[Lang, typer.Option(help="Language of the reasons.")]
RevealOption = Annotated[bool, typer.Option("--reveal", help="Show account numbers too.")]


@app.command()
def tail(
    count: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the latest to begin with.")
    ] = 10,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest.")] = False,
    outcome: Annotated[Outcome | None, typer.Option(help="Only these.", case_sensitive=False)] = None,
    as_json: JsonOption = False,
    lang: LangOption = Lang.EN,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Wait for more.")] = True,
    reveal: RevealOption = False,
    purpose: PurposeOption = "investigation",
) -> None:
    """Show the latest decisions with their reasons, and those to come."""
    show = _printer(as_json, lang, reveal)
    asyncio.run(_tail(count, from_beginning, outcome, follow, purpose, show))


@app.command()
def show(
    decision_id: Annotated[uuid.UUID, typer.Argument(help="The decision's id.")],
    as_json: JsonOption = False,
    lang: LangOption = Lang.EN,
    reveal: RevealOption = False,
    purpose: PurposeOption = "investigation",
) -> None:
    """Show one decision, from as far back as the topic keeps them; only this one is opened."""
    found = asyncio.run(_find(decision_id, purpose))
    if found is None:
        raise MissingPart(f"No decision {decision_id} in the topic. Ask the ledger for older ones.")
    _printer(as_json, lang, reveal)(found)


async def _tail(
    count: int,
    from_beginning: bool,
    outcome: Outcome | None,
    follow: bool,
    purpose: str,
    show: Callable[[Decision], None],
) -> None:
    def wanted(decision: Decision) -> bool:
        return outcome is None or decision.outcome is outcome

    start: Start = "beginning" if from_beginning or outcome is not None else Last(count * _LAST_MARGIN + 10)
    latest: list[Decision] = []
    async with Decisions.connect(purpose=purpose, start=start, follow=False, on_bad=_say_bad) as decisions:
        # What is there already comes first and in the order of time, over all partitions.
        async for batch in decisions.batches():
            found = filter(wanted, batch)
            if from_beginning:
                for decision in found:
                    show(decision)
            else:
                latest += found
                latest.sort(key=lambda each: (each.decided_time, each.raw.partition, each.raw.offset))
                del latest[: max(0, len(latest) - count)]
        for decision in latest:
            show(decision)
        if not follow:
            return
        decisions.follow()
        async for decision in decisions:
            if wanted(decision):
                show(decision)


async def _find(decision_id: uuid.UUID, purpose: str) -> Decision | None:
    async with Decisions.connect(purpose=purpose, start="beginning", follow=False) as decisions:
        return await decisions.find(decision_id)


def _say_bad(bad: BadRecord) -> None:
    if not isinstance(bad.error, IntegrityError | BadInput):
        # A role that may not read one may not read the next: say it once and stop.
        raise bad.error
    typer.echo(f"weir: passed over {bad.raw}: {bad.error}", err=True)


def _printer(as_json: bool, lang: Lang, reveal: bool) -> Callable[[Decision], None]:
    if as_json:
        return lambda decision: typer.echo(json.dumps(as_dict(decision, reveal=reveal), ensure_ascii=False))
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return lambda decision: console.print(as_text(decision, lang, reveal=reveal), markup=True)


def as_dict(decision: Decision, *, reveal: bool) -> dict[str, Any]:
    """The decision as JSON has it; the account number only when asked for, money as text."""
    fields = dataclasses.asdict(decision)
    if not reveal:
        del fields["account_id"]
    fields |= {
        "decision_id": str(decision.decision_id),
        "amount": f"{decision.amount:f}",
        "event_time": decision.event_time.isoformat(timespec="milliseconds"),
        "decided_time": decision.decided_time.isoformat(timespec="milliseconds"),
    }
    return fields


def as_text(decision: Decision, lang: Lang, *, reveal: bool) -> str:
    """The decision as a person reads it, in Rich's markup: a line, and one for each reason."""
    from rich.markup import escape

    colour = _COLOUR[decision.outcome]
    risk = (
        "[magenta]degraded[/]"
        if decision.probability is None
        else f"fraud {decision.probability * 100:5.1f} %"
    )
    cents = decision.amount.quantize(_CENT)
    amount = f"{cents if cents == decision.amount else decision.amount:,f}"
    account = f"  account {escape(decision.account_id)}" if reveal else ""
    lines = [
        f"{decision.decided_time:%Y-%m-%d %H:%M:%S}  [bold {colour}]{decision.outcome:<7}[/]  {risk}  "
        f"{amount:>12} {escape(decision.currency)}  at {escape(decision.terminal_id)}{account}  "
        f"[dim]{decision.decision_id}[/]"
    ]
    lines += [
        f"    {reason.contribution:+6.2f}  {escape(reason.text(lang.value))}" for reason in decision.reasons
    ]
    if decision.rules:
        lines.append(f"    [dim]rules {escape(', '.join(decision.rules))}[/]")
    return "\n".join(lines)
