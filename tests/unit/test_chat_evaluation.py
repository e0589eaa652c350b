"""`weir evaluate chat` by words and passages alone: figures with their sizes, and nothing unsupported."""

from services.chat.answer.answerer import Answerer
from services.chat.evaluate.chat import evaluate
from services.chat.evaluate.command import lines_of
from services.chat.knowledge.tokens import stem


async def test_every_sentence_of_the_knowledge_that_is_shown_stands_there():
    made = await evaluate(encoder=None, encoder_name="", answerer=Answerer(stem=stem), questions_max=25)
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
