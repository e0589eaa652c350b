"""The root of the command line: it knows every command's name and line, and imports one when it is called."""

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from weir.errors import ConfigError, MissingPart

ENTRY_POINT_GROUP = "weir.commands"

STACK, EVENTS, MODELS, SECRETS = "Local stack", "Events and decisions", "Models", "Keys"


@dataclass(frozen=True, slots=True)
class Command:
    """A command before its module is imported."""

    name: str
    help: str
    panel: str
    # `module:attribute` of a Typer app. With `inner` the command is the one of that name inside the app.
    target: str = ""
    inner: str | None = None
    # An app of one command is that command; else it stays a group, however few are in it.
    single: bool = False


# The library's own.
LIBRARY = (
    Command("decisions", "Read decisions: tail them, show one.", EVENTS, "weir.cli.decisions:app"),
    Command("dlq", "Dead letters: list, show, replay.", EVENTS, "weir.cli.dlq:app"),
    Command("topics", "Topics: end offsets, lag; create the missing.", EVENTS, "weir.cli.topics:app"),
    Command("schemas", "Schemas: check that a change breaks no reader.", EVENTS, "weir.cli.schemas:app"),
)  # fmt: skip

# What the entry points of the group bring when their packages are installed, by the entry point's name.
# The lines stand here, because reading a line from its module would cost the import of the module.
INSTALLED: dict[str, tuple[Command, ...]] = {
    "stack": (
        Command("up", "Start the embedded stack.", STACK, inner="up"),
        Command("down", "Stop the embedded stack.", STACK, inner="down"),
        Command("status", "Say what runs, where, and how it feels.", STACK, inner="status"),
        Command("logs", "Show the logs of the stack's parts.", STACK, inner="logs"),
        Command("doctor", "Check this machine and each neighbour; say what to do.", STACK, inner="doctor"),
        Command(
            "demo", "Run a synthetic bank through the stack and watch the decisions.", STACK, inner="demo"
        ),
    ),
    "simulate": (Command("simulate", "Run a synthetic bank, to files or to Kafka.", EVENTS, single=True),),
    "chat": (Command("chat", "Write to the bank as a customer, and watch the answer.", EVENTS, single=True),),
    "desk": (Command("desk", "Conversations for a person: see them, answer them.", EVENTS),),
    "replay": (Command("replay", "Decide past events again, and compare.", EVENTS, single=True),),
    "data": (Command("data", "A bank's events before a model sees them.", MODELS),),
    "train": (Command("train", "Make a model from labelled events.", MODELS),),
    "evaluate": (Command("evaluate", "Measure a model, or a baseline, on labelled events.", MODELS),),
    "watch": (Command("watch", "A served model on later events: drift, figures, retraining.", MODELS),),
    "explain": (Command("explain", "Why the risk model scores as it does.", MODELS),),
    "compress": (
        Command("compress", "A served model made smaller and faster, and what that costs.", MODELS),
    ),
    "federate": (Command("federate", "Train one risk model among several banks.", MODELS),),
    "privacy": (Command("privacy", "A risk model that gives no customer away, and its budget.", MODELS),),
    "models": (Command("models", "The models in the repository: list them, check them.", MODELS),),
    "llm": (Command("llm", "Language models for Triton.", MODELS),),
    "knowledge": (Command("knowledge", "The bank's own documents: import them, search them.", MODELS),),
    "keys": (Command("keys", "Data keys, key-encryption keys and the audit log.", SECRETS),),
}


@cache
def commands() -> dict[str, Command]:
    """Every command whose module is on this machine, in the order of the help."""
    found = [command for command in LIBRARY if _is_there(command.target)]
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    for name, known in INSTALLED.items():
        point = points.pop(name, None)
        if point is not None and _is_there(point.value):
            found += [
                Command(each.name, each.help, each.panel, point.value, each.inner, each.single)
                for each in known
            ]
    found += [
        Command(name, f"From {point.module}.", "Other", point.value)
        for name, point in sorted(points.items())
        if _is_there(point.value)
    ]
    order = {panel: index for index, panel in enumerate((STACK, EVENTS, MODELS, SECRETS))}
    found.sort(key=lambda command: order.get(command.panel, len(order)))
    return {command.name: command for command in found}


def load(command: Command) -> Any:
    """The real command behind a line of the help.

    Raises:
        MissingPart: a package that its module wants is not installed.
    """
    module, _, attribute = command.target.partition(":")
    try:
        app = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MissingPart(
            f"`weir {command.name}` wants the package {error.name}, which is not installed. "
            "Run `make setup`, or pip install 'weir[services,training,stack]'."
        ) from error
    if command.inner is not None:
        loaded: Any = get_group(app).commands[command.inner]
    elif command.single:
        loaded = get_command(app)
        loaded.params = [each for each in loaded.params if not str(each.name).endswith("_completion")]
    else:
        loaded = get_group(app)
    loaded.name = command.name
    return loaded


class LazyGroup(TyperGroup):
    """Lists stand-ins with a name and a line; the command itself is imported when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for each in commands().values():
            self.commands[each.name] = TyperCommand(each.name, help=each.help, rich_help_panel=each.panel)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands by what they are about."""
        for panel in dict.fromkeys(each.panel for each in commands().values()):
            with formatter.section(panel):
                formatter.write_dl(
                    [(each.name, each.help) for each in commands().values() if each.panel == panel]
                )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Typer's own, after the stand-in of the first word was replaced."""
        if args and args[0] in commands():
            self.commands[args[0]] = load(commands()[args[0]])
        elif args and args[0] in {command.name for known in INSTALLED.values() for command in known}:
            raise MissingPart(
                f"`weir {args[0]}` is of the services, which this installation does not hold. "
                "Clone the project, run `make setup` there, and call it in the clone."
            )
        return super().resolve_command(ctx, args)


def _is_there(target: str) -> bool:
    try:
        return find_spec(target.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weir {version('weir')} (Python {'.'.join(map(str, sys.version_info[:3]))})")
        raise typer.Exit


def _take_role(role: str | None) -> None:
    """Let this command show the certificate of `role`; the embedded stack has one for each under [roles]."""
    if role is None:
        return
    from weir.config import config_path, read_config

    path = config_path()
    roles = read_config(path).get("roles", {})
    if role not in roles:
        known = ", ".join(roles) or "none"
        raise ConfigError(
            f"{path or 'settings'}: no certificate in [roles] for {role!r}. There are: {known}."
        )
    for field, value in roles[role].items():
        os.environ[f"WEIR_KEYS_{field.upper()}"] = str(value)


def _callback(
    ctx: typer.Context,
    role: Annotated[
        str | None,
        typer.Option("--role", help="Whose certificate to show to the key service: reader, analyst, admin."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Weir decides on a bank's live events: Kafka in, models on Triton, encrypted decisions out."""
    _take_role(role)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def root() -> TyperGroup:
    """The whole command line, ready to be called."""
    app = typer.Typer(
        name="weir",
        cls=LazyGroup,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        # Rich's help costs 0.3 s of imports; whoever asks for the list wants it at once.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_callback)
    return get_group(app)
