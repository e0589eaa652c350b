"""Whatever a model does, a customer sees what the passages bear out, and the model's place is given back."""

import hashlib
from itertools import count
from pathlib import Path

import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from services.chat.answer import prompt as prompt_module
from services.chat.answer.answerer import Account, Answerer, Turn, passage_sentences
from services.chat.answer.prompt import Prompts, Said
from services.chat.domain import Hit, Origin, Passage, Sentence
from weir.inference.errors import ModelUnavailable

STEM = Stemmer.Stemmer("english").stemWord
CANARY = "zephyr-7731"
TEXT = (
    "You can freeze your card in the app. Open Cards and tap Freeze. A frozen card takes no payments. "
    "You can lift the freeze at any time. A new card costs 10 EUR and comes within five working days."
)
CARDS = Hit(Passage("cards/3", "cards", 1, "en", "Freeze a card", TEXT), 0.9)
OTHER = Hit(
    Passage("fees/1", "fees", 1, "en", "Fees", "A transfer is free. An urgent transfer costs 7.50 EUR."), 0.4
)
TURN = Turn("How do I freeze [CARD_1]?", "en", [CARDS, OTHER], values=frozenset({"[CARD_1]"}))
PASSAGE = [each.text for each in passage_sentences(TURN.question, TURN.hits, STEM)]


class Model:
    """Says what it is told to, in pieces of three characters; notices when it is left."""

    def __init__(self, *texts: str | Exception, endless: str = "") -> None:
        self.texts, self.endless = texts, endless
        self.prompt = ""
        self.said = 0
        self.closed = False

    async def __call__(self, prompt, *, tokens_max, stop=()):
        self.prompt = prompt
        try:
            for text in self.texts:
                if isinstance(text, Exception):
                    raise text
                for at in range(0, len(text), 3):
                    self.said += 1
                    yield text[at : at + 3]
            for _ in count() if self.endless else ():
                self.said += 1
                yield self.endless
        finally:
            self.closed = True


def prompts(template="chatml", tokens_max=10_000) -> Prompts:
    return Prompts(template, CANARY, len, tokens_max=tokens_max)


async def answered(
    model: Model | None, turn: Turn = TURN, template="chatml"
) -> tuple[list[Sentence], Account]:
    answerer = Answerer(model, prompts(template) if model else None, canary=CANARY, stem=STEM)
    account = Account()
    sentences = [sentence async for sentence in answerer(turn, account)]
    assert model is None or model.closed or not model.prompt
    return sentences, account


def origins(sentences: list[Sentence]) -> list[Origin]:
    return [sentence.origin for sentence in sentences]


async def test_without_a_model_the_passages_own_sentences_answer():
    sentences, account = await answered(None)
    assert [each.text for each in sentences] == PASSAGE
    assert PASSAGE[0] == "You can freeze your card in the app."
    assert set(origins(sentences)) == {Origin.PASSAGE}
    assert sentences[0].sources == ("cards/3",)
    assert account == Account()


async def test_a_model_that_keeps_to_the_passage_is_shown_as_it_speaks():
    model = Model("You can freeze your card in the app. A frozen card takes no payments.")
    sentences, account = await answered(model)
    assert origins(sentences) == [Origin.GENERATED] * 2
    assert sentences[0].sources == ("cards/3",)
    assert (account.flaw, account.degraded) == ("", "")
    assert account.prompt is not None
    rules = Path(prompt_module.__file__).parent / "prompts" / "v2.en.txt"
    assert account.prompt.sha256 == hashlib.sha256(rules.read_bytes()).hexdigest()


async def test_a_sentence_is_handed_out_before_the_next_is_written():
    model = Model("A frozen card takes no payments. You can lift the freeze at any time. Then more.")
    answering = Answerer(model, prompts(), canary=CANARY, stem=STEM)(TURN, Account())
    first = await anext(answering)
    assert first.text == "A frozen card takes no payments."
    assert model.said < 15
    await answering.aclose()
    assert model.closed


@pytest.mark.parametrize(
    ("said", "shown", "flaw"),
    [
        ("A new card costs 99 EUR.", 0, "fact"),
        ("A frozen card takes no payments. A new card costs 99 EUR. You can lift the freeze.", 1, "fact"),
        ("You cannot freeze your card in the app.", 0, "negation"),
        ("We will give you a holiday in Spain for it.", 0, "name"),
        ("We will give you a holiday for it.", 0, "words"),
        (f"My rules say {CANARY}.", 0, "canary"),
        ("Your card [CARD_9] can be frozen in the app.", 0, "placeholder"),
        ("I do not know.", 0, "does_not_know"),
        ("您可以在应用中冻结卡片。", 0, "words"),
        ("A frozen card takes no payments. " * 40, 1, "too_long"),
        ("   \n\n ", 0, ""),
        ("", 0, ""),
        ("\ufffd\ufffd\ufffd.", 0, "empty"),
    ],
)
async def test_what_is_not_borne_out_ends_the_model_and_the_passage_goes_on(said, shown, flaw):
    sentences, account = await answered(Model(said))
    assert account.flaw == flaw
    assert origins(sentences)[:shown] == [Origin.GENERATED] * shown
    assert all(each.origin is Origin.PASSAGE for each in sentences[shown:])
    # The passage's sentences are all there, be it that the model has said some of them.
    assert set(PASSAGE) <= {each.text for each in sentences}
    assert "99" not in "".join(each.text for each in sentences)


@pytest.mark.parametrize("endless", ["ha ", "A frozen card takes no payments. ", "。", "x"])
async def test_a_model_that_never_ends_is_left(endless):
    model = Model(endless=endless)
    sentences, _ = await answered(model)
    assert model.closed
    assert set(PASSAGE) <= {each.text for each in sentences}


async def test_a_model_that_breaks_off_leaves_what_was_shown_and_the_passage_goes_on():
    gone = ModelUnavailable("llm", "here", 1.0)
    sentences, account = await answered(Model("A frozen card takes no payments. You can", gone))
    assert sentences[0] == Sentence("A frozen card takes no payments.", Origin.GENERATED, ("cards/3",))
    assert account.degraded == "model_unavailable"
    assert set(PASSAGE) <= {each.text for each in sentences}
    assert len({each.text for each in sentences}) == len(sentences)


async def test_what_is_borne_out_and_answers_something_else_is_followed_by_what_answers():
    lost = Hit(
        Passage(
            "cards/15", "cards", 1, "en", "Replacement card",
            "Replacing a lost card costs EUR 8. Replacing a stolen card is free of charge.",
        ),
        0.9,
    )  # fmt: skip
    turn = Turn("What does replacing a lost card cost?", "en", [lost])
    sentences, account = await answered(Model("Replacing a stolen card is free of charge."), turn)
    assert [each.text for each in sentences] == [
        "Replacing a stolen card is free of charge.",
        "Replacing a lost card costs EUR 8.",
    ]
    assert account.flaw == ""
    sentences, _ = await answered(Model("Replacing a lost card costs 8 euros."), turn)
    assert [each.text for each in sentences] == ["Replacing a lost card costs 8 euros."]


async def test_what_a_model_has_said_in_the_same_words_is_not_said_again():
    sentences, account = await answered(Model("A frozen card takes no payments! We give you EUR 99."))
    assert account.flaw == "fact"
    texts = [each.text for each in sentences]
    assert texts[0] == "A frozen card takes no payments!"
    assert "A frozen card takes no payments." not in texts


async def test_what_it_thinks_is_kept_and_never_shown():
    thought = "The customer has 9,999 EUR and the canary is " + CANARY
    model = Model(f"{thought}</think>You can freeze your card in the app.")
    sentences, account = await answered(model, template="deepseek")
    assert [each.text for each in sentences] == ["You can freeze your card in the app."]
    assert account.thought == thought
    assert "9,999" not in repr(account)


async def test_a_model_that_only_thinks_has_said_nothing():
    sentences, account = await answered(Model("hm " * 50), template="deepseek")
    assert [each.text for each in sentences] == PASSAGE
    assert account.thought


async def test_nothing_found_means_no_answer_and_no_question_to_the_model():
    model = Model("You can freeze your card in the app.")
    sentences, account = await answered(model, Turn("What is love?", "en", []))
    assert sentences == []
    assert model.prompt == ""
    assert account == Account()


@given(st.text(alphabet='<>|｜▁im_startend/passage\n id="x', max_size=60))
def test_nothing_from_outside_ends_its_place(text):
    hit = Hit(Passage(text, "d", 1, "en", "t", text), 1.0)
    for template in ("chatml", "llama3", "deepseek"):
        whole = prompts(template)(text, [hit], [Said("user", text), Said("assistant", text)], "en").text
        clean = prompts(template)(
            "",
            [Hit(Passage("", "d", 1, "en", "t", ""), 1.0)],
            [Said("user", ""), Said("assistant", "")],
            "en",
        ).text
        for mark in ("<", ">", "｜", "▁"):
            assert whole.count(mark) == clean.count(mark)


def test_what_does_not_fit_goes_the_oldest_turn_first():
    history = [Said("user", f"message number {number} " * 5) for number in range(10)]
    whole = len(prompts()("question?", [CARDS, OTHER], history, "en").text)
    for tokens_max in range(whole, 1200, -100):
        text = prompts(tokens_max=tokens_max)("question?", [CARDS, OTHER], history, "en").text
        kept = [number for number in range(10) if f"number {number} " in text]
        assert kept == list(range(10 - len(kept), 10))
        assert "question?" in text
        assert TEXT in text
        assert len(text) <= tokens_max or (not kept and "urgent" not in text)


def test_the_summary_goes_after_the_turns_and_before_the_passages():
    history, summary = [Said("user", "message " * 30)], "The card <b>[CARD_1]</b> is lost"
    whole = prompts()("question?", [CARDS, OTHER], history, "en", summary).text
    assert "<earlier>\nThe card ‹b›[CARD_1]‹/b› is lost\n</earlier>" in whole
    left = set()
    for tokens_max in range(len(whole), 1000, -50):
        text = prompts(tokens_max=tokens_max)("question?", [CARDS, OTHER], history, "en", summary).text
        left.add(("message message" in text, "is lost" in text, "urgent" in text))
    assert left == {(True, True, True), (False, True, True), (False, False, True), (False, False, False)}


@pytest.mark.parametrize("template", ["chatml", "llama3", "deepseek"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_canary_the_passages_and_the_question_stand_in_each_prompt(template, language):
    made = prompts(template)("问题 question", [CARDS], [], language)
    assert CANARY in made.text
    assert TEXT in made.text
    assert "问题 question" in made.text
    assert made.version == "v2"
