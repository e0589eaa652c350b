"""A sentence encoder's smaller variants, made, measured in turns, told in a table."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.compress.encoder import (
    FLOAT,
    SERVED,
    Variant,
    float_bytes,
    made,
    tokens_max,
    variant_bytes,
    variants_of,
    zeros_of,
)
from infra.compress.encoder_quality import Found, Kept, Speed, Task, found, opened, speeds, tasks
from infra.compress.errors import require_known
from infra.compress.report import Plot, require_memory, unbeaten
from infra.encoder.errors import EncoderNotConvertible
from infra.encoder.repository import read_encoder, write_opened
from infra.llm.convert import require_room, sha256_of
from weir.errors import MissingPart

MODELS = "models"
# ONNX Runtime keeps a second copy of some weights, laid out for its kernels.
_COPIES = 2
# The largest matrix as float32, and what is made of it on the way to blocks.
_WORKING = 5
# The interpreter with its libraries, and what ONNX Runtime keeps between calls.
_ALONE = 800_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; no `variants` are all. faq: questions with answers, and how many of them."""

    variants: Sequence[str] = ()
    faq: Path | None = None
    faq_rows: int = 200
    rounds: int = 50


@dataclass(frozen=True, slots=True)
class Line:
    """One variant with all that was measured of it. zeros: share of the layers' weights that are 0."""

    name: str
    size: int
    zeros: float
    speed: Speed
    kept: dict[str, Kept]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "size": self.size,
            "zeros": self.zeros,
            "speed": self.speed.as_dict(),
            "quality": {name: each.as_dict() for name, each in self.kept.items()},
        }


class Source:
    """An encoder that is read.

    Raises:
        MissingPart: nothing is there. EncoderNotConvertible: it is no encoder that is known here.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise MissingPart(f"{path} is not there. Name a packed E5 or a folder of published weights.")
        self.path = path
        self.encoder = read_encoder(path)
        try:
            self.variants = variants_of(self.encoder)
        except (ValueError, KeyError, TypeError) as error:
            raise EncoderNotConvertible(path, "its tokenizer.json is damaged") from error
        self.names = tuple(each.name for each in self.variants)

    def chosen(self, wanted: Sequence[str]) -> list[Variant]:
        """Float and served first: everything is compared with them.

        Raises:
            CannotCompress: there is no such variant.
        """
        require_known(wanted, self.names)
        return [each for each in self.variants if not wanted or each.name in (FLOAT, SERVED, *wanted)]

    def write(self, variant: Variant, repository: Path, name: str) -> tuple[Path, float]:
        """Put a variant into a repository; where it is, and the share of its layers' weights that are 0."""
        smaller = made(self.encoder, variant)
        return write_opened(smaller, self.path, repository, name=name), zeros_of(smaller.weights)

    def needs(self, wanted: Sequence[str]) -> tuple[int, int]:
        """Bytes of disk and of memory that measuring takes, from the sizes alone."""
        each = [variant_bytes(self.encoder, variant) for variant in self.chosen(wanted)]
        whole = float_bytes(self.encoder)
        return sum(each), _ALONE + max(_COPIES * sum(each), _WORKING * whole)

    def reference(self) -> str:
        """The variant that speeds are ratios to: what the project serves, where the source allows it."""
        return SERVED if SERVED in self.names else FLOAT

    def keep(self, variant: str, repository: Path, name: str) -> Path:
        """Put a variant into a model repository, where the set-up puts the whole one; where it is.

        Raises:
            CannotCompress: there is no such variant. MissingPart: too little disk.
        """
        require_known([variant], self.names)
        chosen = next(each for each in self.variants if each.name == variant)
        require_room(repository, variant_bytes(self.encoder, chosen))
        return self.write(chosen, repository, name)[0]


def compress(source: Source, out: Path, plan: Plan, said: Callable[[str], None]) -> list[Line]:
    """Make and measure; the variants are a repository for Triton below `out` afterwards.

    Args:
        said: told what is at work.
    Raises:
        CannotCompress: an unknown variant. MissingPart: too little disk or memory. BadInput: the FAQ file
            holds no questions and answers.
    """
    chosen = source.chosen(plan.variants)
    disk, memory = source.needs(plan.variants)
    require_room(out, disk)
    require_memory(memory)
    work = asyncio.run(tasks(plan.faq, plan.faq_rows))
    length = tokens_max(source.encoder)
    models: dict[str, Path] = {}
    zeros: dict[str, float] = {}
    for variant in chosen:
        said(f"converting {variant.name}")
        written = source.write(variant, out / MODELS, f"encoder-{variant.name}")
        models[variant.name], zeros[variant.name] = written
    kept: dict[str, dict[str, Kept]] = {}
    reference: dict[str, Found] = {}
    for name, model in models.items():
        said(f"searching with {name}")
        mine = asyncio.run(_found(model, length, work))
        reference = reference or mine
        kept[name] = {task: Kept.of(each, reference[task]) for task, each in mine.items()}
    said("measuring speed, all in turns")
    questions = [source.encoder.asked + each.question for each in work[0].judged]
    speed = speeds(models, questions, source.reference(), tokens_max=length, rounds=plan.rounds)
    return [
        Line(name, (model / "1" / "model.onnx").stat().st_size, zeros[name], speed[name], kept[name])
        for name, model in models.items()
    ]


async def _found(model: Path, length: int, work: Sequence[Task]) -> dict[str, Found]:
    encoders = opened(model, length)
    return {task.name: await found(encoders, task) for task in work}


def about(source: Source, plan: Plan, lines: Sequence[Line]) -> dict[str, Any]:
    """For JSON."""
    folder = source.path / "model.safetensors"
    file = folder if source.path.is_dir() else source.path
    return {
        "source": {file.name: sha256_of(file)},
        "reference": source.reference(),
        "rounds": plan.rounds,
        "variants": [line.as_dict() for line in lines],
    }


def table_text(lines: Sequence[Line], reference: str) -> str:
    """The Markdown table of all variants."""
    names = list(lines[0].kept)
    best = unbeaten([(line.size, _quality(line)) for line in lines])
    out = [
        f"| variant | MB | µs, 1 question (p99) | to {reference} | µs, 32 (p99) | to {reference} | "
        + " | ".join(f"recall@5, {name}" for name in names)
        + " | cosine, en | first 5 same, en |",
        "|---|" + "---:|" * (7 + len(names)),
    ]
    for line, chosen in zip(lines, best, strict=True):
        speed, english = line.speed, line.kept["starter_en"]
        recalls = [line.kept[name].recall for name in names]
        cells = [
            f"{line.size / 1e6:,.1f}",
            f"{speed.one_p50_us:,.0f} ({speed.one_p99_us:,.0f})",
            f"{speed.one_to_reference:.2f}",
            f"{speed.many_p50_us:,.0f} ({speed.many_p99_us:,.0f})",
            f"{speed.many_to_reference:.2f}",
            *(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in recalls),
            f"{english.cosine.value:.4f}",
            f"{english.top_same.value:.1%} ({english.top_same.low:.1%} to {english.top_same.high:.1%})",
        ]
        out.append(f"| {f'**{line.name}**' if chosen else line.name} | {' | '.join(cells)} |")
    counts = ", ".join(f"{name} {lines[0].kept[name].recall.count}" for name in names)
    out.append(f"\nQuestions: {counts}. Bold: no other is smaller and finds as many of {FLOAT}'s passages.")
    return "\n".join(out)


def _quality(line: Line) -> float:
    return line.kept["starter_en"].top_same.value


def plots(lines: Sequence[Line]) -> list[Plot]:
    """Against size, and against the time of a question."""
    up = f"first 5 passages that are {FLOAT}'s, English"
    size = [(line.name, line.size / 1e6, _quality(line)) for line in lines]
    time = [(line.name, line.speed.one_p50_us / 1000, _quality(line)) for line in lines]
    return [
        Plot("pareto.svg", size, "size of model.onnx, MB", up),
        Plot("pareto-speed.svg", time, "ms a question, one thread", up),
    ]
