"""Language, urgency and mood without a model."""

from pathlib import Path

import pytest

from services.chat.domain import Urgency
from services.chat.understanding import BadWordTable, Script, language_of, load_words, script_of


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("Where is my card?", Script.LATIN, "en"),
        ("我的卡在哪里", Script.HAN, "zh"),
        ("我的 Visa 信用卡什么时候能寄到", Script.HAN, "zh"),
        ("please explain 余额 to me", Script.LATIN, "en"),
        ("где моя карта", Script.OTHER, "en"),
        ("[CARD_1] 丢了", Script.HAN, "zh"),
        ("", Script.NONE, "en"),
        ("😀😀 123", Script.NONE, "en"),
    ],
)
def test_the_script_of_most_letters_decides_the_language(text: str, script: Script, language: str) -> None:
    assert (script_of(text), language_of(text)) == (script, language)


@pytest.mark.parametrize(
    ("text", "urgency"),
    [
        ("My card was STOLEN!", Urgency.EMERGENCY),
        ("I didn’t make this payment", Urgency.EMERGENCY),
        ("我的卡被盗刷了", Urgency.EMERGENCY),
        ("I want to make a complaint", Urgency.HIGH),
        ("我要投诉", Urgency.HIGH),
        ("what is the exchange rate", Urgency.NORMAL),
        ("", Urgency.NORMAL),
    ],
)
def test_fraud_in_progress_comes_before_a_complaint(text: str, urgency: Urgency) -> None:
    assert load_words().urgency(text) is urgency


@pytest.mark.parametrize(
    ("text", "sentiment"),
    [
        ("thank you, great", 1.0),
        ("this is terrible", -1.0),
        ("not very helpful", -1.0),
        ("我很满意", 1.0),
        ("我不满意", -1.0),
        ("the card arrived", 0.0),
    ],
)
def test_a_negation_turns_the_mood(text: str, sentiment: float) -> None:
    assert load_words().sentiment(text) == sentiment


def test_a_megabyte_is_read_in_part() -> None:
    words, text = load_words(), "x " * 500_000 + "stolen"
    assert (language_of(text), words.urgency(text), words.sentiment(text)) == ("en", Urgency.NORMAL, 0.0)


@pytest.mark.parametrize(
    "content", ["[emergency", "[emergency]\nen = ['stolen']\n", "[emergency]\nen = []\nzh = ['盗']\n"]
)
def test_a_table_that_lacks_words_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "words.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadWordTable):
        load_words(path)
