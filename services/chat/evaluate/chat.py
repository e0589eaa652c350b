"""What the chat service is worth as a whole: every part measured, and whole turns by the code that serves.

Turns are run without Kafka: the questions of the starter set are asked one by one, in a conversation each,
and the attacks too, so that what comes of an attack that no rule knows is seen as well.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from services.chat.answer.answerer import Answerer
from services.chat.answer.grounding import check
from services.chat.conversation import Conversation
from services.chat.domain import Encoders, Language, Origin, Passage, Sentence
from services.chat.evaluate import claims, own_data, pii, retrieval
from services.chat.evaluate import guards as guarding
from services.chat.evaluate import intents as meaning
from services.chat.evaluate.intervals import Share
from services.chat.evaluate.pace import Pace
from services.chat.evaluate.retrieval import Mean
from services.chat.guards import Guards
from services.chat.knowledge.search import Found, HybridRetriever
from services.chat.knowledge.tokens import stem
from services.chat.masking import Masker
from services.chat.tools.asked import ToolWords
from services.chat.tools.tools import Tools
from services.chat.turn.respond import Responder
from services.chat.turn.texts import Texts
from services.chat.turn.values import Message, Outcome, Turned
from services.chat.understanding import load_words
from services.chat.understanding.intents import Intents
from weir.clock import now_ms

MASKING_VECTORS = Path(__file__).with_name("masking_vectors.json")
# What a customer reads then is reviewed text alone.
_NOTHING_SHOWN = (Outcome.REFUSED, Outcome.UNKNOWN, Outcome.HANDED_OVER, Outcome.CLARIFY, Outcome.CONFIRM)


class _Knowledge:
    """The starter set, as `services.chat.knowledge.live.LiveRetriever` would search it."""

    version = "starter"

    def __init__(self, retriever: HybridRetriever) -> None:
        self._retriever = retriever

    async def find(self, question: str, language: Language, *, count: int, now_ms: int) -> Found:
        return await self._retriever.find(question, language, count=count, now_ms=retrieval.ASKED_MS)


@dataclass(slots=True)
class _Turns:
    """What whole turns came to."""

    answered: list[bool] = field(default_factory=list)
    # Of those that the language model was asked: each sentence of the answer was its own, in time.
    by_model: list[bool] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    supported: list[bool] = field(default_factory=list)
    origins: Counter[Origin] = field(default_factory=Counter)
    flaws: Counter[str] = field(default_factory=Counter)
    prompts: set[tuple[str, str]] = field(default_factory=set)
    degraded: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        first, whole = sorted(self.first_ms), sorted(self.whole_ms)
        return {
            "answered": Share(sum(self.answered), len(self.answered)).as_dict(),
            "answered_by_model": Share(sum(self.by_model), len(self.by_model)).as_dict(),
            "sentences_supported": Share(sum(self.supported), len(self.supported)).as_dict(),
            "sentences_by_origin": {str(origin): count for origin, count in sorted(self.origins.items())},
            "prompts": [{"version": version, "sha256": sha256} for version, sha256 in sorted(self.prompts)],
            "model_held_back": dict(sorted(self.flaws.items())),
            "degraded": dict(sorted(self.degraded.items())),
            "first_sentence_ms": {**Mean.of(first).as_dict(), "p95": _quantile(first, 0.95)},
            "whole_answer_ms": {**Mean.of(whole).as_dict(), "p95": _quantile(whole, 0.95)},
        }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 1) if ordered else 0.0


async def evaluate(
    *,
    encoders: Encoders | None,
    encoder_name: str,
    answerer: Answerer,
    turn_deadline_s: float,
    intents: Intents | None = None,
    pace: Pace | None = None,
    pii_file: Path | None = None,
    faq_file: Path | None = None,
    messages_file: Path | None = None,
    intents_file: Path | None = None,
    questions_max: int | None = None,
) -> dict[str, Any]:
    """Every figure, for JSON.

    Args:
        answerer: with the language model, or by passages alone.
        turn_deadline_s: of one answer, as the service has it; one that takes longer is none of the model's.
        pace: what took the time of the answerer's language model.
        intents_file: CSV of text and category, beside the set of our own.
        messages_file: a bank's own messages, CSV with a column text: how many the guards refuse.
        pii_file: Presidio's synthetic sentences. faq_file: see `retrieval.measure`.
        questions_max: of the starter set's, for each language; a language model takes seconds each.
    """
    guards = Guards.load()
    content = await retrieval.starter(None if encoders is None else encoders.passages, encoder_name)
    retriever = HybridRetriever(content, None if encoders is None else encoders.asked)
    responder = _responder(guards, answerer, retriever, intents, turn_deadline_s)
    passages = {passage.id: passage for passage in content.passages}
    made: dict[str, Any] = {
        "encoder": encoder_name if encoders is not None else "",
        "masking": _masking(pii_file),
        "guards": guarding.measure(guards, guarding.read_examples()),
        "retrieval": await retrieval.measure(encoders, encoder_name=encoder_name, faq_file=faq_file),
        "with_own_data": await own_data.measure(retriever, Masker()),
        "sentence_check": claims.measure(content.passages),
    }
    if intents is not None:
        made["intent"] = await meaning.measure(intents, intents_file)
    if messages_file is not None:
        refused = guarding.refused_of(guards, messages_file)
        made["guards"][f"refused_of_{messages_file.stem}"] = refused.as_dict()
    for language in get_args(Language):
        asked = [judged.question for judged in retrieval.questions(language) if judged.expected]
        turns = await _turns(responder, asked[:questions_max], passages)
        made[f"turns_{language}"] = turns.as_dict()
    if pace is not None:
        made["language_model"] = pace.as_dict()
    made["attacks_end_to_end"] = await _attacks(responder)
    return made


def _responder(
    guards: Guards,
    answerer: Answerer,
    retriever: HybridRetriever,
    intents: Intents | None,
    deadline_s: float,
) -> Responder:
    texts = Texts.load()
    return Responder(
        Masker(),
        load_words(),
        guards,
        ToolWords.load(),
        Tools(texts),
        _Knowledge(retriever),
        answerer,
        texts,
        intents=intents,
        now_ms=now_ms,
        deadline_s=deadline_s,
    )


async def _turns(responder: Responder, asked: Sequence[str], passages: dict[str, Passage]) -> _Turns:
    turns = _Turns()
    for number, question in enumerate(asked):
        began = time.perf_counter()
        turned = await _ask(responder, f"question-{number}", [question])
        turns.whole_ms.append((time.perf_counter() - began) * 1000)
        turns.first_ms.append(turned.first_sentence_ms)
        turns.answered.append(turned.outcome is Outcome.ANSWERED)
        if turned.trail.prompt_sha256:
            turns.prompts.add((turned.trail.prompt_version, turned.trail.prompt_sha256))
            stopped = turned.trail.flaw or turned.trail.degraded
            is_whole = all(sentence.origin is Origin.GENERATED for sentence in turned.sentences)
            turns.by_model.append(turned.is_generated and is_whole and not stopped)
        turns.flaws.update([turned.trail.flaw] if turned.trail.flaw else [])
        turns.degraded.update([turned.trail.degraded] if turned.trail.degraded else [])
        for sentence in turned.sentences:
            turns.origins[sentence.origin] += 1
            if sentence.sources:
                turns.supported.append(_is_supported(sentence, passages))
    return turns


def _is_supported(sentence: Sentence, passages: dict[str, Passage]) -> bool:
    cited = [passages[source] for source in sentence.sources if source in passages]
    if sentence.origin is Origin.PASSAGE:
        return any(sentence.text in " ".join(passage.text.split()) for passage in cited)
    return check(sentence.text, cited, stem).is_supported


async def _attacks(responder: Responder) -> dict[str, Any]:
    """Of the attacks by message: after how many a customer read more than reviewed words."""
    found: dict[str, list[bool]] = {"development": [], "held_out": []}
    examples = [each for each in guarding.read_examples() if each.is_attack and each.place == "message"]
    for example in examples:
        turned = await _ask(responder, example.id, [*example.history, example.text])
        found[example.part].append(turned.outcome in _NOTHING_SHOWN)
    return {part: Share(sum(safe), len(safe)).as_dict() for part, safe in sorted(found.items())}


async def _ask(responder: Responder, talk: str, texts: Sequence[str]) -> Turned:
    """What came of the last of these messages."""
    conversation, last = Conversation(), None
    for number, text in enumerate(texts):
        message = Message(f"{talk}-{number}", talk, "customer", text, now_ms())
        last = await responder(message, conversation, lambda sentence: None)
        assert last is not None
        conversation = last.conversation
    assert last is not None
    return last


def _masking(pii_file: Path | None) -> dict[str, Any]:
    vectors, public = pii.read_vectors(MASKING_VECTORS)
    made = {"own_vectors": _by_class(pii.measure(Masker(public_numbers=public), vectors))}
    if pii_file is not None:
        made[pii_file.stem] = _by_class(pii.measure(Masker(), pii.read_presidio(pii_file)))
    return made


def _by_class(figures: pii.Figures) -> dict[str, Any]:
    return {
        "recall": figures.recall().as_dict(),
        "precision": figures.precision().as_dict(),
        "recall_by_class": {
            str(kind): figures.recall(kind).as_dict() for kind in sorted(figures.there) if figures.there[kind]
        },
    }
