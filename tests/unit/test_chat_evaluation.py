"""`weir evaluate chat` by words and passages alone: figures with their sizes, and nothing unsupported."""

import pytest

from services.chat.answer.answerer import Answerer
from services.chat.evaluate import intents as meaning
from services.chat.evaluate.chat import evaluate
from services.chat.evaluate.command import lines_of
from services.chat.evaluate.pace import Pace
from services.chat.knowledge.tokens import stem
from services.training.intents import read_labelled
from weir.errors import BadInput


async def test_every_sentence_of_the_knowledge_that_is_shown_stands_there():
    made = await evaluate(encoders=None, encoder_name="", answerer=Answerer(stem=stem), questions_max=25)
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
