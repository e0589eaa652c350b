"""What answers a question is found, by words and by meaning; what does not is not."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from services.chat.domain import Language, Passage
from services.chat.evaluate.fit_relevance import fit_starter
from services.chat.evaluate.retrieval import Figures, asked_and_refused, faq, measure, questions, starter
from services.chat.knowledge.relevance import BY_BOTH, BY_WORDS, Logistic, Relevance, shipped
from services.chat.knowledge.search import HybridRetriever, fuse
from services.chat.knowledge.store import Content
from weir.errors import BadInput
from weir.inference.errors import ModelUnavailable

NOW = 1_780_000_000_000
BY_WORD = Logistic(0.0, dict.fromkeys(BY_WORDS, 0.1), 0.0)
ANY = Relevance(
    {
        "en": {"words": BY_WORD, "stand-in": Logistic(0.0, dict.fromkeys(BY_BOTH, 0.1), 0.0)},
        "zh": {"words": BY_WORD},
    }
)


class Meanings:
    """A stand-in encoder: a text is the meanings whose words it has."""

    meanings = (("cheap", "free", "price"), ("car", "vehicle"), ("open", "hours"))

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [
            [1e-3 + sum(word in text.lower() for word in words) for words in self.meanings] for text in texts
        ]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Away:
    """An encoder whose Triton is gone."""

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise ModelUnavailable("encoder", "localhost:1", 0.1)


def passage(name: str, text: str, language: Language = "en", **more: int) -> Passage:
    return Passage(f"{name}@1#1", name, 1, language, name, text, **more)


PASSAGES = [
    passage("hours", "Branches are open from nine."),
    passage("vehicle", "We finance a vehicle."),
    passage("fees", "Cash is free."),
    passage("卡", "请立即冻结银行卡。", "zh"),
]


async def hybrid(encoder: Meanings | Away | None = None) -> HybridRetriever:
    vectors = await Meanings()([each.text for each in PASSAGES])
    return HybridRetriever(Content(PASSAGES, {}, (), "stand-in", vectors), encoder, relevance=ANY)


async def test_meaning_finds_what_no_word_does():
    found = await (await hybrid(Meanings())).find("a loan for my car", "en", count=1, now_ms=NOW)
    ((hit, why),) = found.nearest
    assert hit.passage.document == "vehicle"
    assert (why.bm25_rank, why.vector_rank) == (None, 1)
    assert found.degraded == ""


async def test_without_the_encoder_words_alone_answer_and_it_is_said():
    found = await (await hybrid(Away())).find("when are branches open", "en", count=1, now_ms=NOW)
    assert [hit.passage.document for hit in found.hits] == ["hours"]
    assert found.degraded == "model_unavailable"


async def test_an_encoder_that_was_not_fitted_for_a_language_is_not_asked_for_it():
    found = await (await hybrid(Meanings())).find("怎么冻结银行卡", "zh", count=1, now_ms=NOW)
    assert [hit.passage.document for hit in found.hits] == ["卡"]
    assert found.degraded == "encoder_not_fitted"


async def test_vectors_of_another_encoder_are_not_compared():
    vectors = await Meanings()([each.text for each in PASSAGES])
    content = Content(PASSAGES, {}, (), "stand-in", vectors)
    retriever = HybridRetriever(content, Meanings(), encoder_name="another", relevance=ANY)
    found = await retriever.find("is cash free", "en", count=1, now_ms=NOW)
    assert found.degraded == "other_encoder"
    assert [hit.passage.document for hit, _ in found.nearest] == ["fees"]


async def test_a_question_is_answered_in_its_own_language():
    retriever = await hybrid()
    assert not await retriever("冻结银行卡", "en", count=5, now_ms=NOW)


@pytest.mark.parametrize("encoder", [None, Meanings()])
async def test_a_passage_out_of_date_is_not_found(encoder):
    held = [
        passage("old", "Cash is free.", valid_to_ms=NOW),
        passage("new", "Cash costs EUR 1.", valid_from_ms=NOW),
    ]
    vectors = await Meanings()([each.text for each in held])
    retriever = HybridRetriever(Content(held, {}, (), "stand-in", vectors), encoder, relevance=ANY)
    before = await retriever("is cash free", "en", count=5, now_ms=NOW - 1)
    after = await retriever("is cash free", "en", count=5, now_ms=NOW)
    assert [hit.passage.document for hit in before] == ["old"]
    assert [hit.passage.document for hit in after] == ["new"]


@pytest.mark.parametrize(
    "question", ["", "   ", "🙂🙂", "[CARD_1]", "the of and", "zzz " * 50_000, "\ud800 card"]
)
async def test_any_question_is_taken(question):
    retriever = await hybrid()
    assert len(await retriever(question, "en", count=3, now_ms=NOW)) <= 3


async def test_no_knowledge_finds_nothing():
    found = await HybridRetriever(Content([], {})).find("Where is my card?", "en", count=3, now_ms=NOW)
    assert not found.hits
    assert not found.nearest


async def test_only_passages_without_words_find_nothing():
    retriever = HybridRetriever(Content([passage("the", "...")], {}))
    assert not await retriever("card", "en", count=3, now_ms=NOW)


async def test_off_topic_questions_find_nothing_and_plain_ones_their_passage():
    retriever = HybridRetriever(await starter())
    for question, language in (("What is the weather on Mars?", "en"), ("珠穆朗玛峰有多高", "zh")):
        assert not await retriever(question, language, count=5, now_ms=NOW)  # type: ignore[arg-type]  # a str that is a language
    hits = await retriever("How long does a transfer take to arrive?", "en", count=3, now_ms=NOW)
    assert hits[0].passage.id == "en/transfers@1#1"
    assert 0 <= hits[0].relevance <= 1


def test_ranks_are_fused_by_their_reciprocals():
    assert fuse([1, 2], [2, 1], 0.9) == [2, 1]
    assert fuse([1, 2], [], 0.9) == [1, 2]
    assert fuse([], []) == []


@pytest.mark.parametrize("language", ["en", "zh"])
async def test_every_expected_passage_of_the_judged_questions_is_there(language):
    retriever = HybridRetriever(await starter())
    places = {each.id.replace("@1#", "#") for each in retriever.passages(language)}
    judged = questions(language)
    assert {name for each in judged for name in each.expected} <= places
    assert sum(bool(each.expected) for each in judged) >= 100
    assert sum(not each.expected for each in judged) >= 50
    assert len({each.question for each in judged}) == len(judged)


async def test_words_alone_find_most_of_the_starter_set_among_five():
    """A floor well under what was measured: a change that breaks the search falls through it."""
    made = await measure()
    for language in ("en", "zh"):
        figures = made[f"starter_{language}"]
        assert isinstance(figures, dict)
        assert figures["search"]["words"]["recall@5"]["mean"] > 0.65
        assert figures["answered"]["found_wrongly"]["share"] < 0.25


async def test_a_fit_gives_weights_for_both_languages_and_judges_questions_it_left_out():
    fitted, held_out = await fit_starter(shipped())
    assert set(held_out) == {"en", "zh"}
    retriever = HybridRetriever(await starter(), relevance=fitted)
    figures = await asked_and_refused(retriever, questions("en"))
    assert figures.found_wrongly.count == held_out["en"].found_wrongly.count == 60


def test_ranks_make_recall_and_mrr():
    figures = Figures.of([1, 2, None, 10])
    assert (figures.recall_1.value, figures.recall_5.value) == (0.25, 0.5)
    assert figures.mrr.value == pytest.approx((1 + 0.5 + 0 + 0.1) / 4)
    assert figures.mrr.low < figures.mrr.value < figures.mrr.high


def test_a_question_that_stands_twice_is_asked_once_and_either_answer_is_right(tmp_path):
    path = tmp_path / "faq.jsonl"
    rows = ['{"id":"a","question":"Q?","answer":"One."}', '{"id":"b","question":"Q?","answer":"Two."}']
    path.write_text("\n".join(rows))
    content, judged = faq(path, 700, titles=False)
    assert [each.expected for each in judged] == [{"a", "b"}]
    assert [each.title for each in content.passages] == ["a", "b"]
    path.write_text("nonsense")
    with pytest.raises(BadInput):
        faq(path, 700, titles=True)
