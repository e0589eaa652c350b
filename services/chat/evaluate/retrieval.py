"""How well the knowledge is found: recall and MRR, and what is found though nothing answers.

Two sets: the starter knowledge with questions of our own (`questions_en.jsonl`, `questions_zh.jsonl`), and
any file of questions with their answers, such as Ask CFPB. A passage that a question expects is named by
document and place, which are the same in both languages.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from services.chat.domain import Encoder, Encoders, Language
from services.chat.evaluate.intervals import Share
from services.chat.knowledge.importer import read_folder
from services.chat.knowledge.passages import passages_of
from services.chat.knowledge.read import Block, Read
from services.chat.knowledge.search import HybridRetriever, Looked
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content
from services.chat.knowledge.vectors import encode
from weir.errors import BadInput

By = Literal["words", "meaning", "both"]
_HERE = Path(__file__).parent
STARTER = _HERE.parent / "knowledge" / "starter"
# The starter set's documents are valid from 2026-01-01; questions are asked after that.
ASKED_MS = 1_780_000_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A question, and what answers it; nothing does where `expected` is empty."""

    question: str
    language: Language
    expected: frozenset[str]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], *, seed: int = 7, draws: int = 1000) -> "Mean":
        """Of one value a question."""
        array = np.asarray(values, np.float64)
        if not len(array):
            return cls(0.0, 0.0, 1.0, 0)
        rows = np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))
        low, high = np.quantile(array[rows].mean(axis=1), [0.025, 0.975])
        return cls(float(array.mean()), float(low), float(high), len(array))

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return {
            "mean": round(self.value, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the questions that have an answer."""

    recall_1: Mean
    recall_5: Mean
    mrr: Mean

    @classmethod
    def of(cls, ranks: Sequence[int | None]) -> "Figures":
        """From the rank of the first right passage, 1 is best; None is not found."""
        return cls(
            Mean.of([float(rank is not None and rank <= 1) for rank in ranks]),
            Mean.of([float(rank is not None and rank <= 5) for rank in ranks]),
            Mean.of([1 / rank if rank else 0.0 for rank in ranks]),
        )

    def as_dict(self) -> dict[str, dict[str, float | int]]:
        """For JSON."""
        return {
            "recall@1": self.recall_1.as_dict(),
            "recall@5": self.recall_5.as_dict(),
            "mrr": self.mrr.as_dict(),
        }


def questions(language: Language) -> list[Judged]:
    """The project's own questions about the starter knowledge."""
    lines = (_HERE / f"questions_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Judged(row["question"], language, frozenset(f"{language}/{expected}" for expected in row["expected"]))
        for row in rows
    ]


async def starter(encoder: Encoder | None = None, encoder_name: str = "") -> Content:
    """The starter knowledge as it is imported."""
    content, _ = read_folder(STARTER, {}, KnowledgeSettings.model_validate({}))
    if encoder is None:
        return content
    vectors = await encode(encoder, content.passages)
    return Content(content.passages, content.documents, content.quarantined, encoder_name, vectors)


def faq(path: Path, chars_max: int, *, titles: bool) -> tuple[Content, list[Judged]]:
    """Questions with their answers as knowledge: the answer is divided into passages.

    titles: whether the question is their title; without it only what the answer says can be found.
    Where a question stands twice with different answers, either is right.

    Raises:
        BadInput: not JSON lines with id, question and answer.
    """
    passages = []
    documents: dict[str, set[str]] = defaultdict(set)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            blocks = tuple(Block(part) for part in row["answer"].split("\n") if part.strip())
            read = Read(blocks, {"title": row["question"] if titles else row["id"], "language": "en"})
            passages += [passage for passage, _ in passages_of(read, row["id"], 1, chars_max) if passage.text]
            documents[row["question"]].add(row["id"])
    except (OSError, ValueError, KeyError):
        raise BadInput("bad_set", f"{path} holds no questions and answers") from None
    judged = [Judged(question, "en", frozenset(names)) for question, names in documents.items()]
    return Content(passages, {}), judged


def places(passage_id: str) -> tuple[str, str]:
    """A passage's document, and its document with the place: what a question may expect."""
    document, _, place = passage_id.rpartition("@")
    return document, f"{document}#{place.partition('#')[2].partition('.')[0]}"


async def look(retriever: HybridRetriever, judged: Sequence[Judged]) -> list[Looked]:
    """Every question asked."""
    return [await retriever.look(each.question, each.language, now_ms=ASKED_MS) for each in judged]


def ranks(
    retriever: HybridRetriever, judged: Sequence[Judged], looked: Sequence[Looked], by: By
) -> list[int | None]:
    """The rank of the first right passage for each question that has an answer."""
    made: list[int | None] = []
    for each, found in zip(judged, looked, strict=True):
        if each.expected:
            rows = {"words": found.by_words, "meaning": found.by_meaning, "both": found.best}[by]
            names = [retriever.passages(each.language)[row].id for row in rows]
            right = [bool(each.expected.intersection(places(name))) for name in names]
            made.append(right.index(True) + 1 if True in right else None)
    return made


@dataclass(frozen=True, slots=True)
class Refusals:
    """Nothing found and something found, both ways of being wrong together.

    found_wrongly: of questions that nothing answers, those to which passages came.
    missed: of questions with an answer, those to which nothing came.
    wrong_first: of questions with an answer to which something came, those whose first passage was another.
    """

    found_wrongly: Share
    missed: Share
    wrong_first: Share

    def as_dict(self) -> dict[str, dict[str, float | int]]:
        """For JSON."""
        return {
            "found_wrongly": self.found_wrongly.as_dict(),
            "missed": self.missed.as_dict(),
            "wrong_first": self.wrong_first.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Top:
    """The best passage of a question as a logistic judges it: of a question without any it is 0, False."""

    probability: float
    right: bool
    answerable: bool


def refusals(tops: Sequence[Top], threshold: float) -> Refusals:
    """With this threshold."""
    answerable = [top for top in tops if top.answerable]
    shown = [top for top in answerable if top.probability >= threshold]
    other = [top for top in tops if not top.answerable]
    return Refusals(
        Share(sum(top.probability >= threshold for top in other), len(other)),
        Share(len(answerable) - len(shown), len(answerable)),
        Share(sum(not top.right for top in shown), len(shown)),
    )


def chosen_threshold(tops: Sequence[Top], *, seed: int = 7, draws: int = 50) -> float:
    """Where being wrong is rarest: found though nothing answers, missed, another passage first.

    The first counts twice: a customer believes it, while a miss goes to a person. The curve is flat, and one
    question can move its lowest point far: the median over bootstrap resamples is taken.
    """
    grid = [round(0.02 * step, 2) for step in range(1, 50)]

    def wrong(drawn: Sequence[Top], threshold: float) -> float:
        figures = refusals(drawn, threshold)
        other = (figures.missed.hits + figures.wrong_first.hits) / max(figures.missed.count, 1)
        return 2 * figures.found_wrongly.value + other

    random = np.random.default_rng(seed)
    lowest: list[float] = []
    for _ in range(draws):
        drawn = [tops[int(row)] for row in random.integers(0, len(tops), len(tops))]
        lowest.append(min(grid, key=lambda threshold: wrong(drawn, threshold)))
    return float(np.median(lowest))


async def report(
    retriever: HybridRetriever, judged: Sequence[Judged], *, vectors: bool
) -> dict[str, dict[str, object]]:
    """Recall and MRR by each way of searching that the retriever has."""
    looked = await look(retriever, judged)
    ways: tuple[By, ...] = ("words", "meaning", "both") if vectors else ("words",)
    return {way: dict(Figures.of(ranks(retriever, judged, looked, way)).as_dict()) for way in ways}


async def asked_and_refused(retriever: HybridRetriever, judged: Sequence[Judged]) -> Refusals:
    """As the retriever with its own weights and threshold answers."""
    tops: list[Top] = []
    threshold = 0.5
    for each in judged:
        found = await retriever.find(each.question, each.language, count=5, now_ms=ASKED_MS)
        threshold = found.threshold
        best = found.nearest[0][0] if found.nearest else None
        right = best is not None and bool(each.expected.intersection(places(best.passage.id)))
        tops.append(Top(best.relevance if best else 0.0, right, bool(each.expected)))
    return refusals(tops, threshold)


async def measure(
    encoders: Encoders | None = None,
    *,
    encoder_name: str = "",
    faq_file: Path | None = None,
) -> dict[str, object]:
    """Every figure, for JSON: the starter set by language, and the file of questions where one is given.

    encoders: without one only words are searched.
    """
    settings = KnowledgeSettings.model_validate({})
    passages, asked = (None, None) if encoders is None else (encoders.passages, encoders.asked)
    content = await starter(passages, encoder_name)
    retriever = HybridRetriever(content, asked)
    made: dict[str, object] = {"encoder": encoder_name if passages is not None else ""}
    languages: tuple[Language, ...] = ("en", "zh")
    for language in languages:
        judged = questions(language)
        made[f"starter_{language}"] = {
            "passages": len(retriever.passages(language)),
            "search": await report(retriever, judged, vectors=passages is not None),
            "answered": (await asked_and_refused(retriever, judged)).as_dict(),
        }
    if faq_file is not None:
        for name, titles in (("faq", True), ("faq_answers_only", False)):
            content, judged = faq(faq_file, settings.passage_chars_max, titles=titles)
            if passages is not None:
                content = replace(
                    content, encoder=encoder_name, vectors=await encode(passages, content.passages)
                )
            retriever = HybridRetriever(content, asked)
            made[name] = {
                "passages": len(content.passages),
                "search": await report(retriever, judged, vectors=passages is not None),
            }
    return made
