"""`weir models person | register | propose | approve | reject | undo | stages`: who says which decides."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.training.command import AsJson, Repository
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings
from weir.inference.stages import Stage

if TYPE_CHECKING:
    from services.training.stages import Signer, StageLog

Version = Annotated[str, typer.Argument(help="A version in the repository.")]
Number = Annotated[int, typer.Argument(min=0, help="Of the proposal, as `weir models stages` shows it.")]
By = Annotated[str, typer.Option("--by", help="Your name in people.toml.")]
Key = Annotated[Path, typer.Option("--key", help="Your private key.")]
Why = Annotated[str, typer.Option("--why", help="Stands in the log.")]
Model = Annotated[str, typer.Option("--model", help="Of the repository.")]


def person(
    name: Annotated[str, typer.Argument(help="Letters, digits, - and _.")],
    key: Annotated[Path, typer.Option("--key", help="New file for the private key.")],
    may: Annotated[
        str, typer.Option(help="Some of register, propose, approve; undo for a guard's own key.")
    ] = "register,propose,approve",
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for one, for the key.")] = False,
    repository: Repository = None,
) -> None:
    """Make a key, and let its owner sign steps."""
    from services.training.stages import Signer, add_person
    from weir.inference.stages import PEOPLE

    said = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
    people = _root(repository) / PEOPLE
    lines = add_person(people, Signer.create(name, key, said), tuple(each.strip() for each in may.split(",")))
    typer.echo(f"{key} is {name}'s alone: keep it. In {people}:\n\n{lines}")


def register(
    version: Version, by: By, key: Key, model: Model = "risk", repository: Repository = None
) -> None:
    """Enter a version in the log, as a candidate."""
    log, signer = opened(model, by, key, repository)
    log.register(version, signer)
    typer.echo(f"{model} {version} is a candidate.")


def propose(
    version: Version,
    to: Annotated[Stage, typer.Option(help="Where it is to go; champion for a retired one rolls back.")],
    why: Why,
    by: By,
    key: Key,
    share: Annotated[
        float | None,
        typer.Option(help="Of the accounts, up to 0.5: for these a canary is to decide.", show_default=False),
    ] = None,
    model: Model = "risk",
    repository: Repository = None,
) -> None:
    """Propose a step; another person approves it."""
    log, signer = opened(model, by, key, repository)
    number = log.propose(version, to, why, signer, share)
    typer.echo(
        f"Proposal {number}: {model} {version} to {to}. Another person: `weir models approve {number}`."
    )


def approve(number: Number, by: By, key: Key, model: Model = "risk", repository: Repository = None) -> None:
    """Take a step that another person proposed."""
    log, signer = opened(model, by, key, repository)
    waiting = log.read().open.get(number)
    log.approve(number, signer)
    if waiting is not None:
        typer.echo(f"{model} {waiting.version} is {log.read().stages[waiting.version]}.")


def reject(
    number: Number, by: By, key: Key, why: Why = "", model: Model = "risk", repository: Repository = None
) -> None:
    """Turn a proposal down."""
    log, signer = opened(model, by, key, repository)
    log.reject(number, why, signer)
    typer.echo(f"Proposal {number} is closed; nothing moved.")


def undo(
    version: Version,
    to: Annotated[Stage, typer.Option(help="champion: the one before. shadow: the canary goes back.")],
    why: Why,
    by: By,
    key: Key,
    model: Model = "risk",
    repository: Repository = None,
) -> None:
    """A guard's step back, by one signature."""
    log, signer = opened(model, by, key, repository)
    log.undo(version, to, why, signer)
    typer.echo(f"{model} {version} is {to}.")


def stages(model: Model = "risk", repository: Repository = None, as_json: AsJson = False) -> None:
    """Where each version stands, what waits for a second person, and who took which step."""
    from services.training.repository import ModelRepository
    from services.training.stages import StageLog

    log = StageLog(ModelRepository(_root(repository)), model)
    state = log.read()
    if as_json:
        about = {
            "stages": state.stages,
            "open": [
                {
                    "number": each.number,
                    "version": each.version,
                    "to": each.to,
                    "by": each.by,
                    "why": each.why,
                    **({"share": each.share} if each.share else {}),
                }
                for each in state.open.values()
            ],
            "history": [
                {name: value for name, value in entry.items() if name not in ("previous", "signature")}
                for entry in state.history
            ],
            "rollback_to": state.champion_before(),
            "log": {"lines": state.lines, "head": state.head},
        }
        typer.echo(json.dumps(about, indent=2))
        return
    if not state.lines:
        typer.echo(
            f"{log.path}: no steps yet, so the newest version decides. Begin with `weir models person`."
        )
        return
    for version in sorted(state.stages, key=int):
        back = "  (a rollback goes here)" if version == state.champion_before() else ""
        if state.stages[version] is Stage.CANARY:
            back += f"  for {state.shares.get(version, 0.0):.2%} of the accounts"
        typer.echo(f"{model} {version}  {state.stages[version]:<9}  {state.sha256[version][:12]}{back}")
    for each in state.open.values():
        typer.echo(f"waits: proposal {each.number}, {each.version} to {each.to}, by {each.by}: {each.why}")
    for entry in state.history:
        what = " ".join(
            str(entry[name]) for name in ("version", "to", "share", "proposal", "why") if name in entry
        )
        typer.echo(f"{entry['number']:>4}  {entry['at']}  {entry['by']}  {entry['act']} {what}")
    typer.echo(f"log: {state.lines} lines, head {state.head}")


def _root(repository: Path | None) -> Path:
    return repository or TrainingSettings.load().repository


def opened(model: str, by: str, key: Path, repository: Path | None) -> "tuple[StageLog, Signer]":
    """The log of a model in a repository, and who signs.

    Raises:
        TrainingError: no such model. ConfigError: the key cannot be used.
    """
    from services.training.repository import ModelRepository
    from services.training.stages import Signer, StageLog

    home = ModelRepository(_root(repository))
    if model not in home.names():
        raise TrainingError(f"{home.root} holds no model {model!r}. See `weir models list`.")
    passphrase = None
    if key.is_file() and b"ENCRYPTED" in key.read_bytes():
        passphrase = typer.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return StageLog(home, model), Signer.load(by, key, passphrase)
