"""`weir llm`: a published language model to a Triton model repository; what it needs; whether it answers."""

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.llm.backends import GPU_BACKENDS_NOTE, Backend
from infra.local import layout

if TYPE_CHECKING:
    from infra.llm.graph import Quantisation

app = typer.Typer(help="Language models for Triton.", no_args_is_help=True)

Source = Annotated[
    str, typer.Argument(help="A GGUF file or a folder of published weights; a name for a GPU.")
]
Context = Annotated[int | None, typer.Option(min=16, help="Tokens of a conversation; None: up to 4,096.")]
Conversations = Annotated[int, typer.Option(min=1, max=1024, help="At once.")]
Quantise = Annotated[
    str,
    typer.Option(
        "--quantisation", help="int8, int4, int4-small or float32; for a GPU as its server names it."
    ),
]


@app.command("memory")
def memory(
    source: Source,
    context: Context = None,
    conversations: Conversations = 8,
    quantisation: Quantise = "int8",
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Say what a model takes on the disk and in memory, before anything is converted."""
    from infra.llm.convert import need_of, open_weights

    weights = open_weights(Path(source))
    length = context or min(weights.shape.context, 4096)
    need = need_of(weights.shape, _quantisation(quantisation), context=length, conversations=conversations)
    if as_json:
        about = {
            "disk": need.disk,
            "converting": need.converting,
            "weights": need.weights,
            "cache": need.cache,
        }
        typer.echo(
            json.dumps({"parameters": weights.shape.parameter_count, "stored_as": weights.kinds(), **about})
        )
        return
    stored = ", ".join(f"{kind} ({count})" for kind, count in sorted(weights.kinds().items()))
    typer.echo(f"{weights.shape.parameter_count / 1e6:,.0f} million parameters, {weights.shape.architecture}")
    typer.echo(f"stored as   {stored}")
    typer.echo(f"served as   {quantisation}, {_gb(need.disk)} on the disk")
    typer.echo(f"converting  {_gb(need.converting)} of memory")
    typer.echo(
        f"serving     {_gb(need.serving)}: {_gb(need.weights)} of weights, {_gb(need.cache)} for "
        f"{conversations} conversations of {length:,} tokens"
    )


@app.command("import")
def import_(
    source: Source,
    name: Annotated[str, typer.Option(help="The model's name on Triton.")] = "llm",
    backend: Annotated[Backend, typer.Option(help="Who serves it.")] = Backend.EMBEDDED,
    repository: Annotated[
        Path | None, typer.Option(help="Triton model repository; default .weir/llm/repository.")
    ] = None,
    context: Context = None,
    conversations: Conversations = 8,
    quantisation: Quantise = "int8",
    threads: Annotated[int, typer.Option(min=1, help="Of the embedded server, for this model.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="That share the model.")] = 1,
) -> None:
    """Put a model into a model repository; GGUF or safetensors are converted for the embedded server."""
    from infra.llm.backends import GpuServing, write_tensorrt_llm, write_vllm
    from infra.llm.convert import convert
    from infra.llm.repository import Serving, write_embedded

    repository = repository or layout.HOME / "llm" / "repository"
    if backend is not Backend.EMBEDDED:
        unsaid = "" if quantisation == "int8" else quantisation
        serving = GpuServing(context=context or 8192, quantisation=unsaid, gpus=gpus)
        if backend is Backend.VLLM:
            made = write_vllm(source, repository, name, serving)
        else:
            made = write_tensorrt_llm(Path(source), repository, name, serving)
        typer.echo(f"{made}: {GPU_BACKENDS_NOTE}. After the start: `weir llm smoke --name {name}`")
        return
    memory(source, context, conversations, quantisation)
    began = time.monotonic()
    folder = repository.parent / f"{name}-converted"
    convert(Path(source), folder, context=context, quantisation=_quantisation(quantisation))
    made = write_embedded(folder, repository, name, Serving(conversations, threads=threads))
    took = f"{time.monotonic() - began:.0f} s"
    typer.echo(f"{made}: converted in {took}. After the start: `weir llm smoke --name {name}`")


@app.command("smoke")
def smoke(
    name: Annotated[str, typer.Option(help="The model's name on Triton.")] = "llm",
    prompt: Annotated[str, typer.Option(help="What it is asked.")] = "What is a savings account?",
    tokens_max: Annotated[int, typer.Option("--tokens", min=1)] = 32,
    template: Annotated[str, typer.Option(help="chatml, llama3, deepseek, or none.")] = "chatml",
) -> None:
    """Ask the served model one thing, and say how fast it answered."""
    from weir.config import TritonSettings
    from weir.inference.generation import Generation

    async def ask() -> None:
        began, first, text = time.monotonic(), 0.0, ""
        async with Generation(TritonSettings.load(), name) as generation:
            count = 0
            async for piece in generation(_asked(prompt, template), tokens_max=tokens_max):
                first = first or time.monotonic() - began
                text, count = text + piece, count + 1
        took = time.monotonic() - began
        typer.echo(text.strip())
        typer.echo(f"first piece after {first:.2f} s, {count} pieces in {took:.2f} s")

    asyncio.run(ask())


@app.command("card")
def card(
    evaluation: Annotated[Path, typer.Argument(help="What `weir evaluate chat --generate --json` printed.")],
    model: Annotated[str, typer.Option(help="What it is, such as SmolLM2-135M-Instruct, int8.")],
    name: Annotated[str, typer.Option(help="Its name on Triton.")] = "llm",
) -> None:
    """Print the model's card, which decides whether its own sentences are shown."""
    from infra.llm.card import card_of, read

    typer.echo(card_of(read(evaluation), name, model), nl=False)


_TURNS = {
    "chatml": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "deepseek": "<｜User｜>{prompt}<｜Assistant｜>",
    "none": "{prompt}",
}


def _asked(prompt: str, template: str) -> str:
    if template not in _TURNS:
        raise typer.BadParameter(f"{template}: it is one of {', '.join(_TURNS)}.")
    return _TURNS[template].format(prompt=prompt)


def _quantisation(name: str) -> "Quantisation":
    from infra.llm.graph import BITS

    for known in BITS:
        if name == known:
            return known
    raise typer.BadParameter(f"{name}: the embedded server takes {', '.join(BITS)}.")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
