"""What identifies a customer does not get past the masker, and what does not is left alone."""

import json
import random
import re
import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.domain import PLACEHOLDER, DataClass
from services.chat.evaluate.chat import MASKING_VECTORS as VECTORS
from services.chat.evaluate.pii import Example, measure, read_presidio, read_vectors
from services.chat.masking import Masker, unmask
from services.chat.masking import tagger as tagger_module
from services.chat.masking.tagger import Tagger
from weir.errors import BadInput, IntegrityError

SET = json.loads(VECTORS.read_text(encoding="utf-8"))
TEXTS = SET["texts"]
MARK = re.compile(r"«([A-Z_]+):(.*?)»", re.DOTALL)


@pytest.fixture(scope="module")
def masker() -> Masker:
    return Masker(public_numbers=SET["public_numbers"])


@pytest.mark.parametrize("marked", TEXTS)
def test_each_vector_is_masked_just_where_it_is_marked(masker, marked):
    text = MARK.sub(lambda found: found[2], marked)
    expected = [(found[1], found[2]) for found in MARK.finditer(marked)]
    masked = masker.mask(text)
    assert [(str(span.data_class), text[span.start : span.end]) for span in masked.spans] == expected
    assert unmask(masked.text, masked.values) == text
    for _, value in expected:
        assert value not in masked.text


@given(st.text(alphabet=string.printable + "卡号一二三四五六七八九零王小明\u200b４１[]_«»", max_size=200))
def test_every_text_comes_back(text):
    masker = Masker()
    masked = masker.mask(text)
    # A value that was written in two ways comes back as it was written first; where each stood is exact.
    said = iter(masked.spans)
    assert PLACEHOLDER.sub(lambda _: text[(span := next(said)).start : span.end], masked.text) == text
    for name in masked.values:
        assert PLACEHOLDER.fullmatch(name)
    assert len(masked.spans) == len(PLACEHOLDER.findall(masked.text))
    places = [(span.start, span.end) for span in masked.spans]
    assert all(start < end for start, end in places)
    assert all(one[1] <= other[0] for one, other in pairwise(places))


@pytest.mark.parametrize(
    ("text", "masked_text"),
    [
        ("Write to anna.smith@example.com. How do I pay?", "Write to [EMAIL_1]. How do I pay?"),
        ("Reach me at anna.smith@example.com please", "Reach me at [EMAIL_1] please"),
        ("It is anna @ example . com", "It is [EMAIL_1]"),
        ("my email is anna.smith@gmail. com please", "my email is [EMAIL_1] please"),
        ("anna.smith@gmail .com please", "[EMAIL_1] please"),
        ("mail anna.smith@gmail. Com is it", "mail [EMAIL_1] is it"),
        ("anna.smith@mail.example .co.uk", "[EMAIL_1]"),
        ("anna@mail. gmail. com", "[EMAIL_1]"),
        ("anna@posta. it please", "[EMAIL_1] please"),
        ("我的邮箱是anna@gmail. com谢谢", "我的邮箱是[EMAIL_1]谢谢"),
        ("reach me at a@b.c. How do I pay?", "reach me at [EMAIL_1]. How do I pay?"),
        ("reach me at a@b.com. is that fine?", "reach me at [EMAIL_1]. is that fine?"),
        ("reach me at anna@gmail. How do I pay?", "reach me at [EMAIL_1]. How do I pay?"),
    ],
)
def test_an_email_address_begins_and_ends_where_it_does(masker, text, masked_text):
    assert masker.mask(text).text == masked_text


def test_a_value_keeps_its_placeholder_through_a_conversation(masker):
    first = masker.mask("my card 4111 1111 1111 1111 and 5555 5555 5555 4444")
    again = masker.mask("it is 4111-1111-1111-1111 and 378282246310005", first.values)
    assert again.text == "it is [CARD_1] and [CARD_3]"
    assert again.values["[CARD_1]"] == "4111 1111 1111 1111"
    assert len(again.values) == 3


def test_a_new_value_never_gets_the_placeholder_of_another_though_some_are_gone(masker):
    known = {"[CARD_2]": "5555 5555 5555 4444"}
    assert masker.mask("4111 1111 1111 1111", known).text == "[CARD_3]"


def test_nobody_gets_a_value_by_typing_a_placeholder(masker):
    first = masker.mask("my card is 4111 1111 1111 1111")
    for typed in ("[CARD_1]", "［CARD_1］", "[C\u200bARD_1]"):
        again = masker.mask(f"what is {typed}?", first.values)
        assert "[CARD_1]" not in again.text
        assert unmask(again.text, again.values) == f"what is {typed}?"
    assert unmask("[CARD_9] and [NAME_1]", first.values) == "[CARD_9] and [NAME_1]"


def test_what_is_masked_shows_in_no_representation(masker):
    masked = masker.mask("my card is 4111 1111 1111 1111")
    assert "4111" not in repr(masked)


@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone",
        "مرحبا رقم بطاقتي 4111111111111111",
        "🙂" * 500,
        "\x00\x01\x02",
        "«" * 100,
        "&" * 1000,
        "[" * 1000,
    ],
)
def test_strange_text_is_taken(masker, text):
    masked = masker.mask(text)
    assert unmask(masked.text, masked.values) == text
    assert ("4111" in text) == (len(masked.spans) == 1)


def test_a_thousand_cards_are_all_masked(masker):
    chance = random.Random(3)
    cards = set()
    while len(cards) < 1000:
        digits = "4" + "".join(str(chance.randrange(10)) for _ in range(14))
        total = sum(sum(divmod(int(each) * (2 - at % 2), 10)) for at, each in enumerate(digits))
        cards.add(digits + str(-total % 10))
    masked = masker.mask("; ".join(sorted(cards)))
    assert len(masked.values) == 1000
    assert not re.search(r"\d{5}", masked.text)


@pytest.mark.parametrize(
    "unit",
    [
        "4111 1111 1111 1112 ",
        "a@",
        "one two three four ",
        "Name Is ",
        "1-",
        "住在路1号",
        "12 A St ",
        "[CARD_",
        "&#52;",
        "x.",
        "我叫王",
    ],
)
def test_a_long_hostile_text_is_done_within_the_deadline_of_a_test(masker, unit):
    """Work that grew with the square of the length would take minutes."""
    size = 60_000
    masked = masker.mask((unit * (size // len(unit) + 1))[:size])
    assert len(masked.text) <= 12 * size


def test_a_tagger_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "tagger.npz"
    whole = tagger_module.WEIGHTS.read_bytes()
    for broken in (b"", whole[:100], whole[: len(whole) // 2], bytes(reversed(whole))):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="Get the file again"):
            Tagger.load(path)


def test_figures_count_what_shows_and_what_was_too_much(masker):
    def example(marked: str) -> Example:
        from services.chat.domain import Span

        spans, text, at = [], "", 0
        for found in MARK.finditer(marked):
            text += marked[at : found.start()]
            spans.append(Span(len(text), len(text) + len(found[2]), DataClass(found[1])))
            text, at = text + found[2], found.end()
        return Example(text + marked[at:], spans)

    figures = measure(
        masker,
        [
            example("my card «CARD:4111 1111 1111 1111»"),
            example("nobody could tell that «NAME:zq» is a name"),
            example("my PIN is 1234, said somebody who did not mark it"),
            example("what does it cost?"),
        ],
    )
    assert (figures.recall(DataClass.CARD).hits, figures.recall(DataClass.NAME).hits) == (1, 0)
    assert (figures.recall().hits, figures.recall().count) == (1, 2)
    assert (figures.precision().hits, figures.precision().count) == (1, 2)
    assert (figures.left_alone.hits, figures.left_alone.count) == (1, 2)
    low, high = figures.recall().interval
    assert low == pytest.approx(0.0945, abs=1e-3)
    assert high == pytest.approx(0.9055, abs=1e-3)


def test_a_set_that_is_none_is_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "x", "spans": [[0, 1, "PERSON"]], "template_id": 3}\n{"text": 3}\n')
    with pytest.raises(BadInput, match="line 2"):
        read_presidio(path)


def test_the_vectors_are_measured_with_those_that_are_missed(masker, tmp_path):
    examples, public = read_vectors(VECTORS)
    assert len(examples) == len(TEXTS) + len(SET["missed"])
    assert public == SET["public_numbers"]
    whole = measure(masker, examples)
    assert whole.recall().hits < whole.recall().count
    assert whole.recall().value > 0.98
    assert whole.left_alone.value > 0.95
    path = tmp_path / "vectors.json"
    path.write_text('{"texts": []}')
    with pytest.raises(BadInput, match="is not JSON with texts"):
        read_vectors(path)
