"""`weir schemas`: what CI asks before a schema may change."""

from typing import Annotated

import typer

from weir.codec import compatibility

app = typer.Typer(help="Schemas: check that a change breaks no reader.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Schemas: check that a change breaks no reader."""


@app.command()
def check(
    register: Annotated[
        bool, typer.Option("--register", help="Record changed schemas in schemas/registry.json.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Register all schemas at [registry] url.")
    ] = False,
) -> None:
    """Check each schema against every version that was ever registered; one line for each break."""
    asked = [*(["--register"] if register else []), *(["--publish"] if publish else [])]
    code = compatibility.main(asked)
    if code == 0:
        typer.echo("schemas: every version reads every other")
    raise typer.Exit(code)
