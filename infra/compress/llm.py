"""A language model's smaller variants, made, measured in turns, told in a table."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.compress.decoder import FLOAT, SERVED, VARIANTS, Smaller, Use, Variant, use_of
from infra.compress.errors import CannotCompress, require_known
from infra.compress.quality import (
    WINDOW,
    Answers,
    Quality,
    judging_windows,
    learning_windows,
    read_all,
    speaks_chatml,
)
from infra.compress.report import Plot, require_memory, unbeaten
from infra.compress.speed import AT_ONCE, PROMPT_TOKENS, STEPS, Speed, speeds
from infra.llm.convert import need_of, opened, require_room, sha256_of, write_converted
from infra.llm.repository import Serving, write_embedded
from infra.llm.weights import Shape
from services.chat.domain import Language
from services.chat.evaluate import retrieval
from services.chat.evaluate.intervals import Share
from weir.errors import MissingPart

CONVERTED, MODELS = "converted", "models"
NAMES = tuple(each.name for each in VARIANTS)
# ONNX Runtime keeps a second copy of some weights, laid out for its kernels.
_COPIES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; no `variants` are all that the model allows.

    tokens: of the judging text, at most, of each language. answers: 0 for none.
    """

    variants: Sequence[str] = ()
    context: int = 1024
    tokens: int = 4096
    answers: int = 24
    rounds: int = 7

    def chosen(self, shape: Shape) -> list[Variant]:
        """Float and served first: everything is compared with them.

        Raises:
            CannotCompress: there is no such variant, or the model has too few layers for it.
        """
        require_known(self.variants, NAMES)
        room = max(shape.layer_count - 2, 0)
        for each in VARIANTS:
            if each.name in self.variants and each.layers_out > room:
                raise CannotCompress(
                    f"The model has {shape.layer_count} layers, {each.layers_out} of them cannot go. "
                    "Name others by --variant."
                )
        wanted = (FLOAT, SERVED, *self.variants)
        return [
            each for each in VARIANTS if each.name in wanted or not (self.variants or each.layers_out > room)
        ]


@dataclass(frozen=True, slots=True)
class Line:
    """One variant with all that was measured of it."""

    name: str
    size: int
    parameters: int
    speed: Speed
    quality: dict[Language, Quality]
    grounded: Share | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "size": self.size,
            "parameters": self.parameters,
            "speed": self.speed.as_dict(),
            "quality": {language: each.as_dict() for language, each in self.quality.items()},
            "grounded": None if self.grounded is None else self.grounded.as_dict(),
        }


class Source:
    """An opened model, and what of it is used.

    Raises:
        MissingPart: nothing is there. NotConvertible, WeightsBroken: it is no model that is known here.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise MissingPart(f"{path} is not there. Name a GGUF file or a folder of published weights.")
        self.path = path
        self.weights, self.tokens = opened(path)

    def write(self, variant: Variant, use: Use, folder: Path, *, context: int) -> Shape:
        """Convert a variant into `folder`."""
        smaller = Smaller(self.weights, variant, use)
        write_converted(
            smaller,
            self.tokens,
            folder,
            context=min(context, smaller.shape.context),
            quantisation=variant.quantisation,
            compressed=variant.name,
        )
        return smaller.shape

    def learn(self, scratch: Path, *, context: int) -> Use:
        """What the float model does on customers' questions; its files are let go."""
        with tempfile.TemporaryDirectory(prefix=".learn-", dir=scratch) as folder:
            target = Path(folder) / FLOAT
            write_converted(
                self.weights, self.tokens, target, context=self.context(context), quantisation="float32"
            )
            length = min(WINDOW, self.context(context))
            windows = [each[:length] for each in learning_windows(self.tokens.tokenizer)]
            return use_of(target, windows)

    def context(self, wanted: int) -> int:
        """Tokens of a conversation, never more than the model was made for."""
        return min(wanted, self.weights.shape.context)


def needs(shape: Shape, plan: Plan) -> tuple[int, int]:
    """Bytes of disk and of memory, from the sizes alone; what is left out is counted as if it stayed."""
    each = [
        need_of(shape, variant.quantisation, context=plan.context, conversations=AT_ONCE)
        for variant in plan.chosen(shape)
    ]
    learning = need_of(shape, "float32", context=plan.context, conversations=1)
    used = AT_ONCE * shape.cache_bytes(PROMPT_TOKENS + 2 * STEPS)
    memory = sum(_COPIES * need.weights + used for need in each)
    return sum(need.disk for need in each) + learning.disk, max(
        memory, learning.weights + learning.converting
    )


def compress(source: Source, out: Path, plan: Plan, said: Callable[[str], None]) -> list[Line]:
    """Make and measure; the variants lie below `out` afterwards, and a repository of them for Triton.

    Args:
        said: told what is at work.
    Raises:
        CannotCompress: an unknown variant, or too few layers. MissingPart: too little disk or memory.
    """
    chosen = plan.chosen(source.weights.shape)
    disk, memory = needs(source.weights.shape, plan)
    require_room(out, disk)
    require_memory(memory)
    out.mkdir(parents=True, exist_ok=True)
    said("reading what the model does on customers' questions")
    use = source.learn(out, context=plan.context)
    folders: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for variant in chosen:
        said(f"converting {variant.name}")
        folders[variant.name] = out / CONVERTED / variant.name
        context = source.context(plan.context)
        shapes[variant.name] = source.write(variant, use, folders[variant.name], context=context)
        write_embedded(folders[variant.name], out / MODELS, f"llm-{variant.name}", Serving(AT_ONCE))
    quality, grounded = _judged(source, folders, plan, said)
    said("measuring speed, all in turns")
    speed = speeds(folders, SERVED, rounds=plan.rounds, context=source.context(plan.context))
    return [
        Line(
            each.name,
            sum(path.stat().st_size for path in folders[each.name].iterdir()),
            shapes[each.name].parameter_count,
            speed[each.name],
            quality[each.name],
            grounded[each.name],
        )
        for each in chosen
    ]


def _judged(
    source: Source, folders: dict[str, Path], plan: Plan, said: Callable[[str], None]
) -> tuple[dict[str, dict[Language, Quality]], dict[str, Share | None]]:
    tokenizer = source.tokens.tokenizer
    length = source.context(plan.context)
    windows = {
        language: [window[:length] for window in each]
        for language, each in judging_windows(tokenizer, plan.tokens).items()
    }
    answers = None
    if plan.answers and speaks_chatml(folders[FLOAT]) and length >= 1024:
        answers = Answers(tokenizer, _passages(), plan.answers)
    quality: dict[str, dict[Language, Quality]] = {}
    grounded: dict[str, Share | None] = {}
    said(f"reading with {FLOAT}")
    floor = read_all(folders[FLOAT], windows)
    if not any(floor.values()):
        raise CannotCompress(f"The tokenizer of {source.path.name} makes no tokens of English or Chinese.")
    for name, folder in folders.items():
        said(f"reading and answering with {name}")
        mine = floor if name == FLOAT else read_all(folder, windows)
        quality[name] = {each: Quality.of(mine[each], floor[each]) for each in mine}
        grounded[name] = answers(folder) if answers else None
    return quality, grounded


def _passages() -> Any:
    import asyncio

    return asyncio.run(retrieval.starter()).passages


def keep(
    source: Source, variant: str, repository: Path, name: str, *, context: int, serving: Serving
) -> Path:
    """Put a variant into a model repository, as `weir llm import` does with a whole model; where it is.

    Raises:
        CannotCompress: there is no such variant, or too few layers for it. MissingPart: too little disk.
    """
    chosen = next(each for each in Plan((variant,)).chosen(source.weights.shape) if each.name == variant)
    folder = repository.parent / f"{name}-converted"
    folder.parent.mkdir(parents=True, exist_ok=True)
    context = source.context(context)
    source.write(chosen, source.learn(folder.parent, context=context), folder, context=context)
    return write_embedded(folder, repository, name, serving)


def about(source: Source, plan: Plan, lines: Sequence[Line]) -> dict[str, Any]:
    """For JSON."""
    return {
        "source": {path.name: sha256_of(path) for path in source.weights.files},
        "stored_as": dict(source.weights.kinds()),
        "context": source.context(plan.context),
        "prompt_tokens": PROMPT_TOKENS,
        "rounds": plan.rounds,
        "variants": [line.as_dict() for line in lines],
    }


def table_text(lines: Sequence[Line]) -> str:
    """The Markdown table of all variants."""
    languages = list(lines[0].quality)
    best = unbeaten([(line.size, _same(line)) for line in lines])
    out = [
        "| variant | MB | first token, ms | tokens/s, 1 (p99 ms) | to int8 | tokens/s, 8 | to int8 | "
        + " | ".join(f"perplexity to float32, {language}" for language in languages)
        + " | "
        + " | ".join(f"same next token, {language}" for language in languages)
        + " | sentences grounded |",
        "|---|" + "---:|" * (7 + 2 * len(languages)),
    ]
    for line, chosen in zip(lines, best, strict=True):
        speed, name = line.speed, f"**{line.name}**" if chosen else line.name
        ratios = [line.quality[language].to_reference for language in languages]
        same = [line.quality[language].agreement for language in languages]
        cells = [
            f"{line.size / 1e6:,.1f}",
            f"{speed.first_ms:.0f}",
            f"{speed.one:.0f} ({speed.one_p99_ms:.1f})",
            f"{speed.one_to_reference:.2f}",
            f"{speed.many:.0f}",
            f"{speed.many_to_reference:.2f}",
            *(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in ratios),
            *(f"{each.value:.1%} ({each.low:.1%} to {each.high:.1%})" for each in same),
            "-" if line.grounded is None else f"{line.grounded.hits} of {line.grounded.count}",
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    whole = next(line for line in lines if line.name == FLOAT).quality
    said = ", ".join(
        f"{language} {whole[language].perplexity.value:.2f} of {whole[language].tokens:,} tokens"
        for language in languages
    )
    out.append(
        f"\nPerplexity of float32: {said}. Bold: no other is smaller and chooses as many of its tokens."
    )
    return "\n".join(out)


def _same(line: Line) -> float:
    """Of the first language that there is text of."""
    return next(iter(line.quality.values())).agreement.value


def plots(lines: Sequence[Line]) -> list[Plot]:
    """Against size, and against the time of a token."""
    up = f"next tokens that are float32's, {next(iter(lines[0].quality))}"
    size = [(line.name, line.size / 1e6, _same(line)) for line in lines]
    time = [(line.name, 1000 / line.speed.one, _same(line)) for line in lines]
    return [
        Plot("pareto.svg", size, "size, MB", up),
        Plot("pareto-speed.svg", time, "ms a token, one conversation, one thread", up),
    ]
