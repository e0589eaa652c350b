"""`python -m bench.llm`: what Triton costs a language model, for 1, 2, 4 and 8 conversations at once.

Ways to the same answers, of the same weights on one thread, by the likeliest token:

    engine   our engine and batcher in this process, with nobody between: the floor
    Triton   the same in the embedded Triton, asked by the client that the chat worker has
    genai    onnxruntime-genai alone in a process, all prompts in one batch from the start: its best case

In each round every way has its turn for each number of conversations, and the next round begins with another
way. A ratio is of two turns of one round. No two prompts of a run begin alike, so that no way finds a
beginning computed. Time to the first token is the customer's: waiting and the prompt are in it.

onnxruntime-genai is in no environment of the project: make one (`pip install onnxruntime-genai`) and name its
Python by --genai. Without it that row is left out.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from bench import report
from infra.local import layout
from infra.local.triton import TritonServer
from services.chat.answer.grounding import check
from services.chat.answer.sentences import sentences_of
from services.chat.domain import Passage
from services.chat.guards import Guards
from services.chat.masking import Masker
from weir.config import TritonSettings
from weir.errors import MissingPart, WeirError
from weir.inference.generation import Generation

CONVERSATIONS = (1, 2, 4, 8)
THREADS = 1
TOKENS_MAX = 64
PAGE = (
    "A lost card is blocked at once and for good. A replacement card costs EUR 8 and arrives within five "
    "working days. Payments that were made before the block are shown in the app; who does not recognise one "
    "can dispute it there within thirteen months."
)
QUESTION = "Explain each sentence of this page at length, one after the other."
PROMPT = (
    "<|im_start|>user\n{number}. A bank's page says: {page} {question}<|im_end|>\n<|im_start|>assistant\n"
)
# Three digits, a token each: all prompts are of one length.
NUMBERS = range(100, 1000)
ENGINE, TRITON, GENAI = "engine", "Triton", "genai"
_TIMES = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """One way's answers to some conversations at once; seconds. `queue_s` is None where nobody counts it."""

    texts: tuple[str, ...]
    seconds: float
    first_s: tuple[float, ...]
    queue_s: float | None = None


Way = Callable[[Sequence[str]], Turn]


class Engine:
    """The engine without a server; its modules are served from a folder, with no package around them."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        sys.path.insert(0, str(layout.ROOT / "infra" / "triton" / "python_llm"))
        batching, engine, text = map(import_module, ("batching", "engine", "text"))
        self._request, self._sampling, self._tokenizer = batching.Request, text.Sampling, tokenizer
        self._queue_s: list[float] = []
        self._batcher = batching.Batcher(
            engine.Engine(folder, rows_max=max(CONVERSATIONS), threads=THREADS),
            tokenizer,
            waiting_max=max(CONVERSATIONS),
            measured=self._queue_s.append,
        )

    def __call__(self, prompts: Sequence[str]) -> Turn:
        """All of them submitted at once."""
        self._queue_s.clear()
        texts, first = [""] * len(prompts), [0.0] * len(prompts)
        began = time.perf_counter()

        def shown(at: int) -> Callable[[str, str | None], None]:
            def show(text: str, reason: str | None) -> None:
                if text and not texts[at]:
                    first[at] = time.perf_counter() - began
                texts[at] += text

            return show

        for at, prompt in enumerate(prompts):
            tokens = self._tokenizer.encode(prompt, add_special_tokens=False).ids
            self._batcher.submit(self._request(tokens, TOKENS_MAX, self._sampling(), (), shown(at)))
        while not self._batcher.is_idle:
            self._batcher.advance()
        seconds = time.perf_counter() - began
        return Turn(tuple(texts), seconds, tuple(first), statistics.mean(self._queue_s))


class Served:
    """The model on Triton, asked as the chat worker asks it."""

    def __init__(self, server: TritonServer) -> None:
        self._server, self._runner = server, asyncio.Runner()
        self._generation = Generation(TritonSettings.load(endpoint=server.endpoint), "llm")

    def close(self) -> None:
        """Disconnect."""
        self._runner.run(self._generation.close())
        self._runner.close()

    def __call__(self, prompts: Sequence[str]) -> Turn:
        """All of them asked at once."""
        before = self._queue_s()
        texts, seconds, first = self._runner.run(self._ask_all(prompts))
        return Turn(texts, seconds, first, (self._queue_s() - before) / len(prompts))

    async def _ask_all(self, prompts: Sequence[str]) -> tuple[tuple[str, ...], float, tuple[float, ...]]:
        began = time.perf_counter()

        async def ask(prompt: str) -> tuple[str, float]:
            text, first_s = "", 0.0
            async for piece in self._generation(prompt, tokens_max=TOKENS_MAX):
                first_s = first_s or time.perf_counter() - began
                text += piece
            return text, first_s

        answers = await asyncio.gather(*map(ask, prompts))
        seconds = time.perf_counter() - began
        return tuple(text for text, _ in answers), seconds, tuple(first for _, first in answers)

    def _queue_s(self) -> float:
        lines = httpx.get(self._server.metrics_url).text.splitlines()
        name = "weir_llm_queue_seconds_total"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


class GenAi:
    """onnxruntime-genai in a process of its own; what goes through its pipe is not in its times."""

    def __init__(self, python: Path, folder: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        program = layout.ROOT / "bench" / "peers" / "genai.py"
        self._process = subprocess.Popen(
            [python, program, folder, str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = str(self._line()["version"])

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def __call__(self, prompts: Sequence[str]) -> Turn:
        """All of them in one batch."""
        tokens = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": tokens, "tokens_max": TOKENS_MAX}) + "\n")
        self._process.stdin.flush()
        found = self._line()
        texts = tuple(self._tokenizer.decode(each) for each in found["tokens"])
        return Turn(texts, found["seconds"], (found["first_s"],) * len(prompts))

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise WeirError(f"onnxruntime-genai ended with status {status}. Its last lines stand above.")
        return dict(json.loads(line))


def rounds_of(ways: dict[str, Way], count: int) -> list[dict[int, dict[str, Turn]]]:
    """Each round's turns, by the number of conversations and the way."""
    names, numbers = list(ways), iter(NUMBERS)

    def prompts(conversations: int) -> list[str]:
        return [
            PROMPT.format(number=next(numbers), page=PAGE, question=QUESTION) for _ in range(conversations)
        ]

    warm = prompts(2)
    for way in ways.values():
        way(warm)
    found = []
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        turns: dict[int, dict[str, Turn]] = {}
        for conversations in CONVERSATIONS:
            asked = prompts(conversations)
            turns[conversations] = {name: ways[name](asked) for name in order}
        found.append(turns)
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies in 95 of 100 cases, by drawing the rounds again."""
    drawn = np.random.default_rng(7).choice(np.asarray(values), (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(
    rounds: Sequence[dict[int, dict[str, Turn]]], tokens_of: Callable[[str], int]
) -> list[dict[str, Any]]:
    """A row for each number of conversations and way: medians of the rounds.

    `to_engine` is tokens a second as a ratio to the engine's of that round; `same` how many answers of all
    are word for word the engine's.
    """
    rows = []
    for conversations in CONVERSATIONS:
        turns = [each[conversations] for each in rounds]
        rates = {
            name: [sum(map(tokens_of, turn[name].texts)) / turn[name].seconds for turn in turns]
            for name in turns[0]
        }
        for name, rate in rates.items():
            mine = [turn[name] for turn in turns]
            ratios = [one / floor for one, floor in zip(rate, rates[ENGINE], strict=True)]
            low, high = interval(ratios)
            queues = [turn.queue_s for turn in mine if turn.queue_s is not None]
            same = [
                text == floor
                for turn in turns
                for text, floor in zip(turn[name].texts, turn[ENGINE].texts, strict=True)
            ]
            rows.append(
                {
                    "conversations": conversations,
                    "way": name,
                    "rounds": len(rounds),
                    "tokens_s": statistics.median(rate),
                    "to_engine": {"value": statistics.median(ratios), "low": low, "high": high},
                    "first_s": statistics.median(statistics.median(turn.first_s) for turn in mine),
                    "first_worst_s": statistics.median(max(turn.first_s) for turn in mine),
                    "queue_s": statistics.median(queues) if queues else None,
                    "answer_s": statistics.median(turn.seconds for turn in mine),
                    "same": sum(same),
                    "answers": len(same),
                }
            )
    return rows


def around(answer: str) -> dict[str, float]:
    """Milliseconds of what is done around an answer: before it, and for all of its sentences."""
    masker, guards = Masker(), Guards.load()
    passage = Passage("page", "page", 1, "en", "Replacement", PAGE)
    sentences = sentences_of(answer)
    parts: dict[str, Callable[[], object]] = {
        "mask the message": lambda: masker.mask(QUESTION),
        "guard the message": lambda: guards.message(QUESTION),
        "guard the sentences": lambda: [guards.sentence(sentence) for sentence in sentences],
        "check the sentences": lambda: [check(sentence, [passage]) for sentence in sentences],
    }
    found = {}
    for name, part in parts.items():
        part()
        began = time.perf_counter()
        for _ in range(_TIMES):
            part()
        found[name] = (time.perf_counter() - began) * 1000 / _TIMES
    return found


@contextmanager
def theatre(python: Path | None, tokenizer: Tokenizer) -> Iterator[tuple[dict[str, Way], str | None]]:
    """Every way, ready to be asked, and the version of onnxruntime-genai."""
    folder = layout.LLM_CONVERTED
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        with TritonServer(layout.LLM_MODELS, staged / "triton.log", staged=staged / "models") as server:
            served = Served(server)
            peer = GenAi(python, folder, tokenizer) if python else None
            ways: dict[str, Way] = {ENGINE: Engine(folder, tokenizer), TRITON: served}
            try:
                yield ways | ({GENAI: peer} if peer else {}), peer.version if peer else None
            finally:
                served.close()
                if peer:
                    peer.close()


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What a person reads."""
    shown = Table(
        title=f"SmolLM2-135M, int8, {THREADS} thread, {TOKENS_MAX} tokens an answer; "
        f"medians of {rows[0]['rounds']} rounds"
    )
    columns = ("at once", "way", "tokens/s", "/ engine (95 %)", "first s", "worst s", "queue s", "same text")
    for column in columns:
        shown.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        ratio = row["to_engine"]
        shown.add_row(
            str(row["conversations"]),
            row["way"],
            f"{row['tokens_s']:.0f}",
            f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{row['first_s']:.2f}",
            f"{row['first_worst_s']:.2f}",
            "-" if row["queue_s"] is None else f"{row['queue_s']:.2f}",
            f"{row['same']} of {row['answers']}",
        )
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.llm", description=str(__doc__).splitlines()[0])
    rounds_max = len(NUMBERS[2:]) // sum(CONVERSATIONS)
    parser.add_argument(
        "--rounds", type=int, default=5, help=f"1 to {rounds_max}; an interval wants 5 or more"
    )
    parser.add_argument("--genai", type=Path, help="the Python of an environment with onnxruntime-genai")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    if not 1 <= options.rounds <= rounds_max:
        parser.error(f"--rounds is from 1 to {rounds_max}")
    if not (layout.LLM_CONVERTED.is_dir() and layout.LLM_MODELS.is_dir()):
        raise MissingPart(f"No language model in {layout.MODELS}. Run `make setup`.")
    machine = report.machine()
    tokenizer = Tokenizer.from_file(str(layout.LLM_CONVERTED / "tokenizer.json"))
    with theatre(options.genai, tokenizer) as (ways, version):
        rounds = rounds_of(ways, options.rounds)
    rows = summary(rounds, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))
    parts = around(rounds[0][1][ENGINE].texts[0])
    answer_s = next(row["answer_s"] for row in rows if row["way"] == TRITON)
    console = Console(width=110)
    if options.json:
        found = {"machine": machine, "genai": version, "threads": THREADS, "rows": rows}
        console.print_json(json.dumps(found | {"around_ms": parts, "around_times": _TIMES}))
        return
    console.print(machine, highlight=False)
    console.print(table(rows))
    console.print(f"Around one answer, of {answer_s:.2f} s through Triton:", highlight=False)
    for name, milliseconds in parts.items():
        share = milliseconds / 10 / answer_s
        console.print(f"  {name}: {milliseconds:.2f} ms, {share:.2f} %", highlight=False)
    said = (
        f"onnxruntime-genai {version}" if version else "onnxruntime-genai was not asked: name it by --genai"
    )
    console.print(said, highlight=False)


if __name__ == "__main__":
    main()
