"""`weir compress llm` and `weir compress encoder`; `services.training.compress_cli` names them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from infra.local import layout

Out = Annotated[Path, typer.Option("--out", help="Folder for the table, the plots and the variants.")]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", help="One to measure; again for more. Default all; float32 always is."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]
Rounds = Annotated[int, typer.Option(min=1, max=1000, help="Turns of each variant when speed is measured.")]


def compress_llm(
    source: Annotated[Path, typer.Option("--source", help="A GGUF file or a folder of published weights.")],
    out: Out,
    variant: Variants = None,
    keep: Annotated[
        str | None,
        typer.Option(help="A variant to put into the model repository, as `weir llm import` does."),
    ] = None,
    name: Annotated[str, typer.Option(help="With --keep: its name on Triton.")] = "llm",
    repository: Annotated[
        Path | None, typer.Option(help="With --keep: model repository; default .weir/llm/repository.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=160, help="Tokens of a conversation; None: 1,024, and of the kept one up to 4,096."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=256, help="Of the text that judges, for each language.")] = 4096,
    answers: Annotated[int, typer.Option(min=0, help="Questions answered by each variant.")] = 24,
    rounds: Rounds = 7,
    as_json: AsJson = False,
) -> None:
    """Quantise and prune a language model; size, speed, perplexity, next tokens, answers of each result."""
    from infra.compress import llm
    from infra.compress.errors import require_known
    from infra.compress.report import write
    from infra.llm.repository import Serving

    require_known([keep] if keep else [], llm.NAMES)
    plan = llm.Plan(variant or (), context or 1024, tokens, answers, rounds)
    opened = llm.Source(source)
    llm.Plan((*plan.variants, *([keep] if keep else []))).chosen(opened.weights.shape)
    disk, memory = llm.needs(opened.weights.shape, plan)
    typer.echo(f"takes {disk / 1e9:.2f} GB of disk in {out} and {memory / 1e9:.2f} GB of memory", err=True)
    with at_work() as said:
        lines = llm.compress(opened, out, plan, said)
    about = llm.about(opened, plan, lines)
    table = llm.table_text(lines)
    write(out, about, table, llm.plots(lines))
    if keep is not None:
        home = repository or layout.HOME / "llm" / "repository"
        with at_work() as said:
            said(f"keeping {keep}")
            made = llm.keep(opened, keep, home, name, context=context or 4096, serving=Serving())
        about["kept"] = str(made)
    _tell(about, table, out, keep, as_json)


def compress_encoder(
    source: Annotated[Path, typer.Option("--source", help="A packed E5, or a folder of BERT's files.")],
    out: Out,
    variant: Variants = None,
    keep: Annotated[str | None, typer.Option(help="A variant to put into the model repository.")] = None,
    name: Annotated[str, typer.Option(help="With --keep: its name on Triton.")] = "encoder",
    repository: Annotated[
        Path | None, typer.Option(help="With --keep: model repository; default .weir/encoder/repository.")
    ] = None,
    faq: Annotated[
        Path | None, typer.Option(help="JSON lines of id, question and answer, such as Ask CFPB.")
    ] = None,
    faq_rows: Annotated[int, typer.Option(min=1, help="Of that file, spread evenly.")] = 200,
    rounds: Rounds = 50,
    as_json: AsJson = False,
) -> None:
    """Quantise and prune a sentence encoder; size, speed, vectors and recall of each result."""
    from infra.compress import encoder_run
    from infra.compress.errors import require_known
    from infra.compress.report import write

    opened = encoder_run.Source(source)
    require_known([keep] if keep else [], opened.names)
    plan = encoder_run.Plan(variant or (), faq, faq_rows, rounds)
    disk, memory = opened.needs(plan.variants)
    typer.echo(f"takes {disk / 1e9:.2f} GB of disk in {out} and {memory / 1e9:.2f} GB of memory", err=True)
    with at_work() as said:
        lines = encoder_run.compress(opened, out, plan, said)
    about = encoder_run.about(opened, plan, lines)
    table = encoder_run.table_text(lines, opened.reference())
    write(out, about, table, encoder_run.plots(lines))
    if keep is not None:
        home = repository or layout.HOME / "encoder" / "repository"
        about["kept"] = str(opened.keep(keep, home, name))
    _tell(about, table, out, keep, as_json)


@contextmanager
def at_work() -> Iterator[Callable[[str], None]]:
    """Shows what is at work, on stderr, where a person watches."""
    from rich.console import Console

    with Console(stderr=True).status("opening") as status:
        yield lambda text: status.update(text)


def _tell(about: dict[str, object], table: str, out: Path, keep: str | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo(table)
    typer.echo(
        f"\nIn {out}: compress.json, compress.md, the plots, and a repository for Triton below models/."
    )
    if keep is not None:
        typer.echo(f"{keep!r} is kept in {about['kept']}.")
