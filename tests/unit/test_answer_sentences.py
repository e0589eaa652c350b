"""Sentences and thoughts come out the same however the text is cut."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.answer.sentences import SENTENCE_CHARS_MAX, SentenceStream, sentences_of
from weir.inference.thinking import ThinkingSplitter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 2.50 EUR. That is all.", ["It costs 2.50 EUR.", "That is all."]),
        (
            "Ask Mr. Jones, e.g. at 9 a.m. on Monday. He knows!",
            ["Ask Mr. Jones, e.g. at 9 a.m. on Monday.", "He knows!"],
        ),
        (
            "See https://bank.example/fees.html. Then call.",
            ["See https://bank.example/fees.html.", "Then call."],
        ),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("转账免费。大额转账收0.1%的手续费！", ["转账免费。", "大额转账收0.1%的手续费！"]),
        ("“可以。”他说。", ["“可以。”", "他说。"]),
        ("1. Open the app.\n2. Tap Freeze.", ["1. Open the app.", "2. Tap Freeze."]),
        ("- one\n- two\n", ["- one", "- two"]),
        ("Wait... what?! Yes", ["Wait...", "what?!", "Yes"]),
        ("In 2024. Then", ["In 2024.", "Then"]),
        ("no end at all", ["no end at all"]),
        ("  \n\n ", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    assert sentences_of(text) == expected


@given(st.text(alphabet="ab.!?。！\n \"'12”Mr", max_size=120), st.integers(0, 2**32))
def test_however_a_text_is_cut_the_sentences_are_the_same(text, seed):
    chance, stream, found, at = random.Random(seed), SentenceStream(), [], 0
    while at < len(text):
        size = chance.randrange(1, 6)
        found += stream.push(text[at : at + size])
        at += size
    assert found + stream.finish() == sentences_of(text)
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("unit", ["word ", "x", "好", "1.", "Mr. "])
def test_a_text_without_an_end_is_handed_out_all_the_same(unit):
    stream, found = SentenceStream(), []
    for _ in range(3000):
        found += stream.push(unit)
    assert found
    assert max(map(len, found + stream.finish())) <= SENTENCE_CHARS_MAX


def thought_and_said(pieces: list[str], begins_inside: bool) -> tuple[str, str]:
    splitter = ThinkingSplitter(begins_inside=begins_inside)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(part.thought for part in parts), "".join(part.said for part in parts)


@pytest.mark.parametrize(
    ("text", "begins_inside", "expected"),
    [
        ("<think>hm</think>Yes.", False, ("hm", "Yes.")),
        ("hm</think>Yes.", True, ("hm", "Yes.")),
        ("Yes.", False, ("", "Yes.")),
        ("never ends", True, ("never ends", "")),
        ("<think>a<think>b</think>c</think>d", False, ("abc", "d")),
        ("a</think>b", False, ("", "ab")),
        ("1 < 2 <thin", False, ("", "1 < 2 <thin")),
        ("<think>x</thin", False, ("x</thin", "")),
        ("a<think>b</think>c<think>d</think>e", False, ("bd", "ace")),
        ("", True, ("", "")),
    ],
)
def test_what_is_thought_is_never_said_however_it_is_cut(text, begins_inside, expected):
    assert thought_and_said([text], begins_inside) == expected
    assert thought_and_said(list(text), begins_inside) == expected
    for seed in range(20):
        chance, pieces, at = random.Random(seed), [], 0
        while at < len(text):
            size = chance.randrange(1, 9)
            pieces.append(text[at : at + size])
            at += size
        assert thought_and_said(pieces, begins_inside) == expected
