"""`python -m bench.compress_language --models OUT/models`: what `weir compress llm|encoder` made, on Triton.

Each variant is asked through the client that the chat worker uses, in turns and in an order drawn anew each
time, so that what else the machine does meets all alike. A language model answers 1 and 8 prompts at once; an
encoder reads 1 and 32 questions a call, tokens being cut by the client. Ratios are to the variant as served,
of the same turn.
"""

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench import report
from bench.llm import NUMBERS, PAGE, PROMPT, QUESTION
from infra.local.triton import TritonServer
from services.chat.evaluate import retrieval
from weir.config import TritonSettings
from weir.errors import MissingPart, WeirError
from weir.inference.encoder import TritonEncoder
from weir.inference.generation import Generation

LLM, ENCODER = "llm-", "encoder-"
SERVED = {LLM: "llm-int8", ENCODER: "encoder-int4"}
SIZES = {LLM: (1, 8), ENCODER: (1, 32)}
ANSWER_TOKENS = 32
READY_WITHIN_S = 180.0

# Texts at once to microseconds, one figure a call.
Asked = Callable[[Sequence[str]], Awaitable[list[float]]]


def chosen(models: Path, wanted: Sequence[str]) -> tuple[str, list[str]]:
    """The kind of the models in a repository, and the names to be asked, the served one first.

    Raises:
        MissingPart: the served one, or a wanted one, is not there.
    """
    there = {path.parent.name for path in models.glob("*/config.pbtxt")}
    kind = next((each for each in (LLM, ENCODER) if SERVED[each] in there), None)
    if kind is None:
        raise MissingPart(
            f"{models} holds neither {' nor '.join(SERVED.values())}. Make it with `weir compress`."
        )
    names = [kind + each for each in wanted] or sorted(name for name in there if name.startswith(kind))
    if lacking := sorted(set(names) - there):
        raise MissingPart(f"{models} holds no {lacking[0]}. There are: {', '.join(sorted(there))}.")
    return kind, [SERVED[kind], *(name for name in names if name != SERVED[kind])]


def asked_of(kind: str, name: str, models: Path, settings: TritonSettings, stack: AsyncExitStack) -> Asked:
    """What asks one variant; closed with the stack."""
    if kind == ENCODER:
        encoder = TritonEncoder(
            settings, name, models / name / "tokenizer.json", rows_max=64, deadline_s=60.0
        )
        stack.push_async_callback(encoder.close)

        async def read(texts: Sequence[str]) -> list[float]:
            began = time.perf_counter_ns()
            await encoder(texts)
            return [(time.perf_counter_ns() - began) / 1000]

        return read
    generation = Generation(settings, name, first_deadline_s=120.0, next_deadline_s=60.0)
    stack.push_async_callback(generation.close)
    text = (models / name / "config.pbtxt").read_text(encoding="utf-8")
    folder = Path(text.partition('"folder"')[2].split('"')[1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    async def answer(texts: Sequence[str]) -> list[float]:
        began = time.perf_counter_ns()

        async def one(prompt: str) -> int:
            said = [piece async for piece in generation(prompt, tokens_max=ANSWER_TOKENS)]
            return len(tokenizer.encode("".join(said), add_special_tokens=False).ids)

        counts = await asyncio.gather(*map(one, texts))
        # A variant may end sooner than another: a token of all is what is compared.
        return [(time.perf_counter_ns() - began) / 1000 / max(sum(counts), 1)]

    return answer


def texts_of(kind: str, size: int, random: np.random.Generator) -> list[str]:
    """Prompts of which no two begin alike, or questions of the starter set."""
    if kind == LLM:
        numbers = random.choice(np.array(NUMBERS), size, replace=False)
        return [PROMPT.format(number=number, page=PAGE, question=QUESTION) for number in numbers]
    questions = [each.question for each in retrieval.questions("en")]
    return [questions[int(at)] for at in random.integers(0, len(questions), size)]


async def measure(
    kind: str, names: Sequence[str], models: Path, server: TritonServer, rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Microseconds by variant and texts at once: of a call to an encoder, of a token of a language model."""
    settings = TritonSettings.load(endpoint=server.endpoint)
    took: dict[str, dict[int, list[float]]] = {name: {size: [] for size in SIZES[kind]} for name in names}
    random = np.random.default_rng(7)
    async with AsyncExitStack() as stack:
        asks = {name: asked_of(kind, name, models, settings, stack) for name in names}
        for turn in range(rounds + 1):
            for size in SIZES[kind]:
                texts = texts_of(kind, size, random)
                for name in random.permutation(list(names)).tolist():
                    found = await asks[name](texts)
                    if turn:  # the first round lays out memory
                        took[name][size] += found
    return took


def rows_of(kind: str, took: dict[str, dict[int, list[float]]]) -> list[dict[str, object]]:
    """A row for each variant, the fastest at one text first."""
    served = SERVED[kind]
    rows: list[dict[str, object]] = []
    for name, times in sorted(took.items(), key=lambda each: float(np.median(each[1][SIZES[kind][0]]))):
        row: dict[str, object] = {"variant": name}
        for size in SIZES[kind]:
            mine, floor = np.array(times[size]), np.array(took[served][size])
            p50, p99 = np.percentile(mine, [50, 99])
            row[str(size)] = {
                "p50_us": float(p50),
                "p99_us": float(p99),
                # A token's time is of all answers together; a call's is of its rows.
                "rate": float(1e6 / p50 if kind == LLM else size * 1e6 / p50),
                "to_served": float(np.median(floor / mine)),
            }
        rows.append(row)
    return rows


def table(kind: str, rows: Sequence[dict[str, object]], rounds: int) -> Table:
    """What a person reads."""
    of, rate = ("a token", "tokens/s") if kind == LLM else ("a call", "questions/s")
    shown = Table(title=f"Variants on Triton through gRPC, {rounds} rounds, in turns")
    shown.add_column("variant")
    for size in SIZES[kind]:
        for column in (f"{size}: p50 µs {of}", "p99 µs", rate, "to served"):
            shown.add_column(column, justify="right")
    for row in rows:
        cells = []
        for size in SIZES[kind]:
            figures = row[str(size)]
            assert isinstance(figures, dict)
            cells += [f"{figures[name]:,.0f}" for name in ("p50_us", "p99_us", "rate")]
            cells.append(f"{figures['to_served']:.2f}")
        shown.add_row(str(row["variant"]), *cells)
    return shown


def main(words: Sequence[str]) -> int:
    """Serve, ask, print."""
    asked = argparse.ArgumentParser(
        prog="python -m bench.compress_language", description="Variants on Triton."
    )
    asked.add_argument("--models", type=Path, required=True, help="what `weir compress` wrote below models/")
    asked.add_argument("--variant", action="append", default=[], help="only this one; again for more")
    asked.add_argument("--rounds", type=int, default=20, help="turns of each variant at each size")
    asked.add_argument("--json", action="store_true", help="for programs")
    given = asked.parse_args(words)
    if given.rounds < 1:
        asked.error("--rounds is 1 or more")
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        kind, names = chosen(given.models, given.variant)
        with TemporaryDirectory() as folder:
            # Others are not loaded: each takes memory of its own.
            wanted = Path(folder) / "wanted"
            for name in names:
                shutil.copytree(given.models / name, wanted / name)
            server = TritonServer(wanted, Path(folder) / "triton.log", staged=Path(folder) / "models")
            server.start()
            try:
                server.wait_ready(READY_WITHIN_S)
                took = asyncio.run(measure(kind, names, given.models, server, given.rounds))
            finally:
                server.stop()
    except WeirError as error:
        console.print(str(error))
        return int(error.exit_code)
    rows = rows_of(kind, took)
    if given.json:
        console.print_json(json.dumps({"machine": report.machine(), "rounds": given.rounds, "rows": rows}))
        return 0
    console.print(report.machine())
    console.print(table(kind, rows, given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
