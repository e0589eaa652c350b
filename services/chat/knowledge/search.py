"""Passages that answer a question: by words (BM25), by meaning (vectors), both ranks in one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
from numpy.typing import NDArray

from services.chat.asked import asked_of
from services.chat.domain import Encoder, Hit, Language, Passage
from services.chat.knowledge.errors import KnowledgeStoreAway
from services.chat.knowledge.relevance import Asked, Relevance, seen, shipped
from services.chat.knowledge.store import Content, Knowledge
from services.chat.knowledge.tokens import tokens
from services.chat.knowledge.vectors import ExactVectors, VectorIndex
from weir.inference.errors import ModelError
from weir.obs.log import get_logger

log = get_logger(__name__)

# How deep either search looks; beyond it a rank says nothing.
_DEPTH = 50
# Of reciprocal rank fusion. Source: Cormack, Clarke and Buettcher 2009.
_RANK_OFFSET = 60
# The vectors' share in it: the best of the shares tried, on both languages (see docs/how-to/knowledge.md).
_MEANING = 0.8
# A question's first words; what follows changes nothing but the time.
_QUESTION_WORDS_MAX = 200
# The title says what the passage is about: its words count this often in the index.
_TITLE_TIMES = 2


@dataclass(frozen=True, slots=True)
class Why:
    """How a passage was found: its ranks from 1, None where a search did not find it."""

    bm25_rank: int | None
    vector_rank: int | None
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    hits: best first, none under the threshold. degraded: the vectors could not be asked.
    nearest: what was looked at, under the threshold too, with why; for a person, not for an answer.
    """

    hits: Sequence[Hit]
    nearest: Sequence[tuple[Hit, Why]]
    threshold: float
    degraded: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What both searches found: rows of the language's passages, best first.

    cosines: by row; None where the vectors were not asked.
    """

    asked: Asked
    by_words: Sequence[int]
    by_meaning: Sequence[int]
    cosines: Mapping[int, float] | None
    degraded: str = ""

    @property
    def best(self) -> list[int]:
        """Both in one order."""
        return fuse(self.by_words, self.by_meaning)


class WordIndex:
    """BM25 over passages of one language. Source: Robertson and Zaragoza 2009, in Lucene's variant."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._text = [tokens(passage.text) for passage in passages]
        self._title = [tokens(passage.title) for passage in passages]
        self._valid_from = np.array([passage.valid_from_ms or -(2**62) for passage in passages], np.int64)
        self._valid_to = np.array(
            [2**62 if passage.valid_to_ms is None else passage.valid_to_ms for passage in passages], np.int64
        )
        corpus = [text + title * _TITLE_TIMES for text, title in zip(self._text, self._title, strict=True)]
        self._where: dict[str, set[int]] = {}
        for row, words in enumerate(corpus):
            for word in words:
                self._where.setdefault(word, set()).add(row)
        self._text_sets = [frozenset(words) for words in self._text]
        self._title_sets = [frozenset(words) for words in self._title]
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        if self._where:
            self._bm25.index(corpus, show_progress=False)

    def valid(self, now_ms: int) -> NDArray[np.bool_]:
        """(n,) which passages may be cited now."""
        return (self._valid_from <= now_ms) & (now_ms < self._valid_to)

    def ask(self, question: str) -> Asked:
        """The question's words against every passage."""
        asked = tokens(question)[:_QUESTION_WORDS_MAX]
        words = list(dict.fromkeys(asked))
        count = len(self.passages)
        rows = np.array([len(self._where.get(word, ())) for word in words], np.float64)
        known = [word for word in asked if word in self._where]
        return Asked(
            idf=np.log(1 + (count - rows + 0.5) / (rows + 0.5)),
            text=self._marks(words, self._text_sets),
            title=self._marks(words, self._title_sets),
            known=rows > 0,
            bm25=self._bm25.get_scores(known) if known else np.zeros(count, np.float32),
        )

    @staticmethod
    def _marks(words: list[str], sets: list[frozenset[str]]) -> NDArray[np.bool_]:
        return np.array([[word in own for word in words] for own in sets], bool).reshape(
            len(sets), len(words)
        )


class HybridRetriever:
    """Searches one version of the knowledge; the domain's `Retriever`.

    A question is answered in its own language: passages of the other are not looked at.
    """

    def __init__(
        self,
        knowledge: Knowledge | Content,
        encoder: Encoder | None = None,
        *,
        indexes: Mapping[Language, VectorIndex] | None = None,
        encoder_name: str | None = None,
        relevance: Relevance | None = None,
        relevance_min: float | None = None,
        fitted_only: bool = True,
    ) -> None:
        """encoder: for questions, the one that made the version's vectors; None searches by words alone.

        indexes: what finds passages by their vectors, where the knowledge does not bring the vectors.
        encoder_name: of `encoder`; where the version's vectors are another's, it is searched by words alone.
        fitted_only: a language for which this encoder's relevance was not fitted is searched by words alone:
        an encoder that does not know the language ruins what the words find. False is for fitting.
        """
        content = knowledge.content if isinstance(knowledge, Knowledge) else knowledge
        self._relevance = relevance or shipped()
        self._relevance_min = relevance_min
        self._encoder = encoder
        self._fitted_only = fitted_only
        self._encoder_name = content.encoder
        self._is_other = (
            encoder_name is not None and bool(content.encoder) and encoder_name != content.encoder
        )
        self._words: dict[Language, WordIndex] = {}
        self._vectors: dict[Language, VectorIndex] = dict(indexes or {})
        self._rows: dict[str, int] = {}
        languages: tuple[Language, ...] = ("en", "zh")
        for language in languages:
            rows = [row for row, passage in enumerate(content.passages) if passage.language == language]
            passages = [content.passages[row] for row in rows]
            self._words[language] = WordIndex(passages)
            self._rows |= {passage.id: row for row, passage in enumerate(passages)}
            if content.vectors is not None:
                self._vectors[language] = ExactVectors(passages, content.vectors[rows])

    async def __call__(self, question: str, language: Language, *, count: int, now_ms: int) -> Sequence[Hit]:
        """The best passages that are valid now, best first; empty when nothing answers the question."""
        return (await self.find(question, language, count=count, now_ms=now_ms)).hits

    async def find(self, question: str, language: Language, *, count: int, now_ms: int) -> Found:
        """The same, with why, and with what was nearest though it does not answer the question."""
        index = self._words[language]
        if not index.passages:
            return Found((), (), 1.0)
        looked = await self.look(question, language, now_ms=now_ms)
        best = looked.best[: max(count, 5)]
        by_vectors = looked.cosines is not None
        fitted, logistic = self._relevance.of(language, self._encoder_name if by_vectors else "")
        nearest: list[tuple[Hit, Why]] = []
        for row in best:
            features = seen(looked.asked, row, best, None if fitted == "words" else looked.cosines)
            hit = Hit(index.passages[row], logistic.probability(features))
            why = Why(_rank(looked.by_words, row), _rank(looked.by_meaning, row), features)
            nearest.append((hit, why))
        threshold = logistic.threshold if self._relevance_min is None else self._relevance_min
        nearest.sort(key=lambda pair: -pair[0].relevance)
        hits = [hit for hit, _ in nearest if hit.relevance >= threshold][:count]
        return Found(hits, nearest[:count], threshold, looked.degraded)

    async def look(self, question: str, language: Language, *, now_ms: int) -> Looked:
        """What either search found, before it is judged."""
        index, question = self._words[language], asked_of(question)
        asked = index.ask(question)
        by_words = _ranked(asked.bm25, index.valid(now_ms))
        cosines, degraded = await self._cosines(question, language, now_ms)
        by_meaning = [] if cosines is None else sorted(cosines, key=lambda row: -cosines[row])
        return Looked(asked, by_words, by_meaning, cosines, degraded)

    def passages(self, language: Language) -> Sequence[Passage]:
        """The passages of a language; a row of `look` is a place in it."""
        return self._words[language].passages

    async def _cosines(
        self, question: str, language: Language, now_ms: int
    ) -> tuple[dict[int, float] | None, str]:
        """By row, and why there are none."""
        vectors = self._vectors.get(language)
        if vectors is None or self._encoder is None:
            return None, "" if self._encoder is None and not self._vectors else "no_vectors"
        if self._is_other:
            return None, "other_encoder"
        if self._fitted_only and self._encoder_name not in self._relevance.by_language[language]:
            return None, "encoder_not_fitted"
        try:
            vector = (await self._encoder([question]))[0]
            found = await vectors.nearest(vector, count=_DEPTH, now_ms=now_ms)
        except (ModelError, KnowledgeStoreAway) as error:
            log.warning("retrieval_degraded", reason=error.degraded_reason)
            return None, error.degraded_reason
        return {self._rows[name]: cosine for name, cosine in found.items()}, ""


def fuse(by_words: Sequence[int], by_meaning: Sequence[int], weight: float = _MEANING) -> list[int]:
    """Rows by reciprocal rank fusion, best first; `weight` is that of meaning, 0 to 1."""
    points: dict[int, float] = {}
    for share, ranked in ((1 - weight, by_words), (weight, by_meaning)):
        for place, row in enumerate(ranked, 1):
            points[row] = points.get(row, 0.0) + share / (_RANK_OFFSET + place)
    return sorted(points, key=lambda row: -points[row])


def _ranked(scores: NDArray[np.float32], valid: NDArray[np.bool_]) -> list[int]:
    masked = np.where(valid, scores, 0)
    return [int(row) for row in np.argsort(-masked, kind="stable")[:_DEPTH] if masked[row] > 0]


def _rank(ranked: Sequence[int], row: int) -> int | None:
    return ranked.index(row) + 1 if row in ranked else None
