"""`python -m bench.llm`: what Triton costs a language model, for 1, 2, 4 and 8 conversations at once.

The floor is the same engine and batcher in this process, with nobody between: the same weights, threads,
prompts and tokens. Through Triton the client is the one that the chat worker has. Both in one run, one after
the other for each number of conversations. What is done around an answer stands below. onnxruntime-genai, the
peer that comes to mind, is not measured here.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench import report
from infra.local import layout
from infra.local.triton import TritonServer
from services.chat.answer.grounding import check
from services.chat.domain import Passage
from services.chat.guards import Guards
from services.chat.masking import Masker
from weir.config import TritonSettings
from weir.errors import MissingPart
from weir.inference.generation import Generation

CONVERSATIONS = (1, 2, 4, 8)
TOKENS = 64
QUESTION = "What does a replacement card cost, and how long does it take to arrive?"
PROMPT = (
    "<|im_start|>user\n{text} Please answer at length, number {number}.<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One way, with so many conversations at once; seconds."""

    conversations: int
    tokens_s: float
    first_s: float


def prompts(count: int) -> list[str]:
    """As many different ones."""
    return [PROMPT.format(text=QUESTION, number=number) for number in range(count)]


class Floor:
    """The engine without a server; its modules are served from a folder, with no package around them."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(layout.ROOT / "infra" / "triton" / "python_llm"))
        batching, engine, text = map(import_module, ("batching", "engine", "text"))
        self._request, self._sampling = batching.Request, text.Sampling
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._batcher = batching.Batcher(
            engine.Engine(folder, rows_max=max(CONVERSATIONS)), self._tokenizer, waiting_max=64
        )

    def __call__(self, count: int) -> Measured:
        """Tokens a second, and the median time to the first text."""
        began = time.perf_counter()
        first: list[float] = []
        pieces = [0] * count
        left = count

        def shown(at: int) -> Callable[[str, str | None], None]:
            def show(text: str, reason: str | None) -> None:
                nonlocal left
                if text and not pieces[at]:
                    first.append(time.perf_counter() - began)
                pieces[at] += bool(text)
                left -= reason is not None

            return show

        for at, prompt in enumerate(prompts(count)):
            tokens = self._tokenizer.encode(prompt, add_special_tokens=False).ids
            self._batcher.submit(self._request(tokens, TOKENS, self._sampling(), (), shown(at)))
        while left:
            self._batcher.advance()
        return Measured(count, sum(pieces) / (time.perf_counter() - began), statistics.median(first))


async def served(generation: Generation, count: int) -> Measured:
    """Through Triton, by the worker's own client."""
    began = time.perf_counter()
    first: list[float] = []

    async def ask(prompt: str) -> int:
        pieces = 0
        async for piece in generation(prompt, tokens_max=TOKENS):
            if not pieces:
                first.append(time.perf_counter() - began)
            pieces += bool(piece)
        return pieces

    pieces = await asyncio.gather(*map(ask, prompts(count)))
    return Measured(count, sum(pieces) / (time.perf_counter() - began), statistics.median(first))


def around() -> dict[str, float]:
    """Milliseconds of what is done around an answer of one sentence."""
    masker, guards = Masker(), Guards.load()
    passage = Passage("p", "p", 1, "en", "Replacement", "A replacement card costs EUR 8. It takes five days.")
    parts: dict[str, Callable[[], object]] = {
        "mask": lambda: masker.mask(QUESTION),
        "guard the message": lambda: guards.message(QUESTION),
        "guard a sentence": lambda: guards.sentence("A replacement card costs EUR 8."),
        "check a sentence": lambda: check("A replacement card costs EUR 8.", [passage]),
    }
    found = {}
    for name, part in parts.items():
        part()
        began = time.perf_counter()
        for _ in range(100):
            part()
        found[name] = (time.perf_counter() - began) * 10
    return found


async def measure(folder: Path, scratch: Path) -> list[tuple[Measured, Measured]]:
    """Floor and Triton for each number of conversations."""
    floor = Floor(folder)
    server = TritonServer(layout.LLM_MODELS, scratch / "triton.log", staged=scratch / "models")
    found = []
    with server:
        async with Generation(TritonSettings.load(endpoint=server.endpoint), "llm") as generation:
            await served(generation, 1)
            floor(1)
            for count in CONVERSATIONS:
                found.append((floor(count), await served(generation, count)))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.llm", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    folder = layout.MODELS / "llm-converted"
    if not folder.is_dir():
        raise MissingPart(f"No language model in {folder}. Run `make setup`.")
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(measure(folder, Path(scratch)))
    parts = around()
    console = Console()
    if options.json:
        rows = [{"floor": asdict(one), "triton": asdict(other)} for one, other in found]
        console.print_json(json.dumps({"machine": report.machine(), "rows": rows, "around_ms": parts}))
        return
    console.print(report.machine(), highlight=False)
    table = Table(title=f"SmolLM2-135M, int8, one thread; {TOKENS} tokens an answer at most")
    for column in ("conversations", "engine tokens/s", "Triton tokens/s", "Triton / engine", "first text s"):
        table.add_column(column, justify="right")
    for one, other in found:
        table.add_row(
            str(one.conversations),
            f"{one.tokens_s:.0f}",
            f"{other.tokens_s:.0f}",
            f"{other.tokens_s / one.tokens_s:.2f}",
            f"{one.first_s:.2f}, {other.first_s:.2f}",
        )
    console.print(table)
    for name, milliseconds in parts.items():
        console.print(f"{name}: {milliseconds:.2f} ms", highlight=False)


if __name__ == "__main__":
    main()
