"""`python -m services.training train | evaluate | models ...`: without the rest of the command line."""

import sys

import typer

from services.training.cli import evaluate, models, train
from services.training.compress_cli import app as compress
from services.training.privacy.cli import app as privacy
from weir.errors import ExitCode, WeirError

app = typer.Typer(help="Train, measure and check models.", no_args_is_help=True)
for name, commands in (
    ("train", train),
    ("evaluate", evaluate),
    ("models", models),
    ("compress", compress),
    ("privacy", privacy),
):
    app.add_typer(commands, name=name)


def main() -> int:
    """Run the command line; an error is one line on stderr and its exit code."""
    try:
        app(prog_name="python -m services.training")
    except WeirError as error:
        typer.echo(f"weir: {error}", err=True)
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
