"""What a masked message asks is found as if the customer's own data did not stand in it."""

import pytest

from services.chat.asked import asked_of
from services.chat.evaluate import own_data
from services.chat.evaluate.retrieval import starter
from services.chat.knowledge.search import HybridRetriever
from services.chat.masking import Masker

MASKER = Masker()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (
            "How much does a transfer abroad cost? My IBAN is [IBAN_1]",
            "How much does a transfer abroad cost?",
        ),
        ("My card number is [CARD_1]. How do I pay?", "How do I pay?"),
        ("Hi, my name is [NAME_1]. can i pay abroad", "can i pay abroad"),
        ("I'm [NAME_1], account [ACCOUNT_1]. Can I sign up? Thanks", "Can I sign up?"),
        ("what does it cost my iban is [IBAN_1] thanks", "what does it cost"),
        ("can i pay You can reach me at [EMAIL_1] or [PHONE_1].", "can i pay."),
        ("怎么开户我的IBAN是[IBAN_1]", "怎么开户"),
        ("我是[NAME_1]，卡号[CARD_1]，怎么投诉？", "怎么投诉？"),
        ("你好，怎么投诉？谢谢！", "怎么投诉？"),
    ],
)
def test_data_that_is_only_given_is_left_out(text, asked):
    assert asked_of(text) == asked


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("How do I freeze [CARD_1]?", "How do I freeze card?"),
        ("My card [CARD_1] is lost. What do I do?", "My card is lost. What do I do?"),
        ("Can I send money to [NAME_1] at [IBAN_1]?", "Can I send money to someone at account?"),
        ("怎么冻结[CARD_1]？", "怎么冻结卡？"),
        ("冻结我的卡[CARD_1]", "冻结我的卡"),
        ("你们的电话是[PHONE_1]吗", "你们的电话是手机号吗"),
        ("你们的电话是[PHONE_1]，对吗？", "你们的电话是手机号，对吗？"),
        ("电话是[PHONE_1]和[PHONE_2]是吗？", "电话是手机号和手机号是吗？"),
    ],
)
def test_data_that_is_spoken_of_becomes_the_word_for_it(text, asked):
    assert asked_of(text) == asked


@pytest.mark.parametrize(
    "text", ["What does a card cost?", "Thanks", "怎么投诉", "", "Is a personal loan free?"]
)
def test_a_message_without_data_is_as_it_was(text):
    assert asked_of(text) in (text, "Thanks")


@pytest.mark.parametrize("text", ["[CARD_1]", "[CARD_1] [NAME_1]", "😀 [CARD_1]"])
def test_data_alone_asks_nothing(text):
    assert asked_of(text) == ""


@pytest.mark.parametrize(
    "unit", ["my card number ", "[CARD_1], ", "reach me at ", "thanks ", "my " * 3, "你好，"]
)
def test_a_long_message_is_read_within_the_deadline_of_a_test(unit):
    assert isinstance(asked_of((unit * 4_000)[:4_000]), str)


async def test_a_question_finds_the_same_passage_beside_the_customers_own_data():
    figures = await own_data.measure(HybridRetriever(await starter()), MASKER)
    for language in ("en", "zh"):
        assert figures[language]["same_seen"]["share"] > 0.97, language
        assert figures[language]["same_other"]["share"] > 0.7, language
        assert figures[language]["right_alone"]["count"] > 150


async def test_a_fee_is_found_though_an_account_number_stands_in_the_question():
    retriever = HybridRetriever(await starter())
    masked = MASKER.mask("How much does a transfer abroad cost? My IBAN is DE89 3704 0044 0532 0130 00").text
    assert "DE89" not in masked
    found = [
        (await retriever.find(text, "en", count=3, now_ms=own_data.ASKED_MS)).nearest[0][0]
        for text in ("How much does a transfer abroad cost?", masked)
    ]
    assert found[0] == found[1]
