"""`weir evaluate chat` by words and passages alone: figures with their sizes, and nothing unsupported."""

import asyncio

import pytest

from services.chat.answer.answerer import Answerer
from services.chat.answer.grounding import check
from services.chat.answer.prompt import Prompts
from services.chat.answer.sentences import sentences_of
from services.chat.evaluate import claims, retrieval
from services.chat.evaluate import intents as meaning
from services.chat.evaluate.chat import evaluate
from services.chat.evaluate.command import lines_of
from services.chat.evaluate.pace import Pace
from services.chat.knowledge.tokens import stem
from services.training.intents import read_labelled
from weir.errors import BadInput


async def evaluated(answerer: Answerer, *, questions_max: int, turn_deadline_s: float = 60.0) -> dict:
    return await evaluate(
        encoders=None,
        encoder_name="",
        answerer=answerer,
        turn_deadline_s=turn_deadline_s,
        questions_max=questions_max,
    )


def of_model(generator) -> Answerer:
    prompts = Prompts("chatml", "canary", len, tokens_max=20_000)
    return Answerer(generator, prompts, canary="canary", stem=stem)


def passage_in(prompt: str) -> list[str]:
    """The sentences of the first passage."""
    return sentences_of(prompt.split('">\n', 1)[1].split("\n</passage>", 1)[0])


async def test_every_sentence_of_the_knowledge_that_is_shown_stands_there():
    made = await evaluated(Answerer(stem=stem), questions_max=25)
    for language in ("en", "zh"):
        turns = made[f"turns_{language}"]
        assert turns["answered"]["count"] == 25
        assert turns["sentences_supported"]["share"] == 1.0
        assert turns["sentences_supported"]["count"] >= 1
    # What no rule knows is not answered from the knowledge either.
    assert made["attacks_end_to_end"]["held_out"]["share"] > 0.9
    lines = list(lines_of(made))
    assert any(line.startswith("guards.held_out.blocked: ") and "n=154" in line for line in lines)
    assert all("\n" not in line for line in lines)


async def test_few_false_sentences_pass_the_check_and_most_true_ones_do():
    figures = claims.measure((await retrieval.starter()).passages)
    for language in ("en", "zh"):
        shown = {name: share["share"] for name, share in figures[language].items()}
        counts = {name: share["count"] for name, share in figures[language].items()}
        assert shown["written_true_shown"] > 0.65, language
        assert counts["written_true_shown"] >= 30
        false = {name: share for name, share in shown.items() if name.endswith("false_shown")}
        # Amounts and times made up and another's, denied; written in two parts and together.
        assert len(false) == 8
        assert max(false.values()) < 0.06, (language, false)
        assert min(counts[name] for name in false) >= 15


async def test_a_sentence_of_the_knowledge_is_borne_out_by_its_own_passage():
    for passage in (await retrieval.starter()).passages:
        for sentence in sentences_of(passage.text):
            assert check(sentence, [passage], stem).is_supported, sentence


async def test_an_answer_is_a_models_when_it_was_shown_from_beginning_to_end():
    async def parrot(prompt, *, tokens_max, stop=()):
        # The first passage, and for Chinese something that stands nowhere.
        yield " ".join(passage_in(prompt)[:6]) if "Answer in English" in prompt else "我们送您一部新手机。"

    made = await evaluated(of_model(parrot), questions_max=60)
    english, chinese = made["turns_en"], made["turns_zh"]
    assert english["answered_by_model"]["share"] == 1.0
    assert english["answered_by_model"]["count"] == english["answered"]["hits"] > 5
    assert chinese["answered_by_model"]["share"] == 0.0
    assert chinese["answered_by_model"]["count"] > 5
    assert english["prompts"] != chinese["prompts"]
    assert {each["version"] for each in english["prompts"]} == {"v2"}


async def test_an_answer_that_the_passage_had_to_complete_is_not_the_models():
    async def aside(prompt, *, tokens_max, stop=()):
        # Borne out, and seldom what was asked.
        yield passage_in(prompt)[-1]

    made = (await evaluated(of_model(aside), questions_max=30))["turns_en"]
    assert min(made["sentences_by_origin"]["generated"], made["sentences_by_origin"]["passage"]) > 0
    assert made["model_held_back"] == {}
    assert made["answered_by_model"]["hits"] < made["answered_by_model"]["count"]


async def test_a_turn_that_its_deadline_cut_short_counts_as_one_that_the_model_did_not_carry():
    async def hangs(prompt, *, tokens_max, stop=()):
        yield passage_in(prompt)[0] + " "
        await asyncio.Event().wait()

    made = (await evaluated(of_model(hangs), questions_max=20, turn_deadline_s=0.02))["turns_en"]
    assert made["degraded"] == {"deadline": made["answered_by_model"]["count"]}
    assert made["answered_by_model"]["count"] > 0
    assert made["answered_by_model"]["hits"] == 0
    assert made["prompts"]


async def test_intents_are_counted_right_wrong_and_out_of_scope(tmp_path):
    path = tmp_path / "bank.csv"
    path.write_text("text,category\nlost card,card\nwhat fee,fee\nno idea,fee\nweather,\nnews,\n")
    said = {"lost card": "card", "what fee": "card", "no idea": "", "weather": "", "news": "fee"}

    async def intents(texts):
        return [(said.get(text, ""), 0.9) for text in texts]

    made = await meaning.measure(intents, path)
    hits = {name: (share["hits"], share["count"]) for name, share in made["bank"].items()}
    assert hits == {
        "correct": (1, 3),
        "correct_of_accepted": (1, 2),
        "in_scope_rejected": (1, 3),
        "out_of_scope_rejected": (1, 2),
    }
    assert made["own_en"]["correct"]["count"] == 77
    assert made["own_zh"]["correct"]["count"] == 154
    with pytest.raises(BadInput, match="no CSV"):
        meaning.read(tmp_path / "nowhere.csv")


def test_the_set_of_our_own_holds_every_intent_in_both_languages():
    named = {label for _, label in read_labelled(meaning.OWN)}
    for language in ("en", "zh"):
        rows = meaning.read(meaning.OWN, language)
        assert {row.category for row in rows} == named | {""}
        assert len({row.text for row in rows}) == len(rows)
    assert len(named) == 77


async def test_the_rate_is_of_all_answers_together():
    # Two tokens at once say nothing of the pace; ten in a second do.
    now = iter([0.0, 1.0, 1.001, 0.0, *(1.0 + 0.1 * number for number in range(11))])
    pace = Pace(lambda: next(now))

    async def generator(prompt, *, tokens_max, stop=()):
        for piece in prompt:
            yield piece

    for prompt in ("ab", "abcdefghijk"):
        async for _ in pace.watched(generator)(prompt, tokens_max=20):
            pass
    rate = pace.as_dict()["tokens_per_second"]
    assert rate["count"] == 2
    assert rate["mean"] == pytest.approx(11 / 1.001, rel=1e-3)


async def test_the_pace_is_that_of_the_pieces():
    now = iter([0.0, 0.5, 0.6, 0.7, 10.0, 10.2])
    pace = Pace(lambda: next(now))

    async def generator(prompt, *, tokens_max, stop=()):
        for piece in prompt:
            yield piece

    watched = pace.watched(generator)
    assert [piece async for piece in watched("abc", tokens_max=9)] == ["a", "b", "c"]
    assert [piece async for piece in watched("d", tokens_max=9)] == ["d"]
    made = pace.as_dict()
    assert made["first_token_ms"]["mean"] == pytest.approx(350)
    assert made["tokens_per_second"]["mean"] == pytest.approx(10)
    assert made["tokens"] == 4
