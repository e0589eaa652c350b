"""A summary says what was said, within its size, and the newest first goes in."""

import random

from services.chat.conversation import Conversation, Said
from services.chat.conversation.summary import summary_of
from services.chat.conversation.value import SUMMARY_CHARS_MAX, TURNS_MAX


def test_greetings_and_repeats_are_left_out_and_the_order_stays():
    texts = [
        "Hello! My card [CARD_1] was stolen in Lisbon.",
        "Hello?",
        "It was stolen.",
        "I need a new one by Friday.",
    ]
    assert summary_of("", texts, 300).split("\n") == [
        "My card [CARD] was stolen in Lisbon.",
        "I need a new one by Friday.",
    ]


def test_chinese_is_summed_up_too():
    made = summary_of("", ["你好！", "我的银行卡在里斯本被偷了。", "请问新卡几天能寄到？", "谢谢"], 300)
    assert made.split("\n") == ["我的银行卡在里斯本被偷了。", "请问新卡几天能寄到？"]


def test_it_keeps_to_its_size_and_says_nothing_new():
    draw = random.Random(7)
    words = ("card", "fee", "transfer", "Lisbon", "salary", "rent", "pending", "refund", "limit", "branch")
    summary = ""
    said: set[str] = set()
    for _ in range(60):
        text = " ".join(draw.choices(words, k=draw.randint(1, 9))) + "."
        said.add(text)
        summary = summary_of(summary, [text], 120)
        assert len(summary) <= 120
        assert set(summary.split("\n")) <= said
    assert summary
    assert summary_of("", ["x" * 500 + " card"], 300).startswith("x")
    assert summary_of("", [], 300) == summary_of("", ["", "?!"], 300) == ""


def test_a_long_conversation_keeps_what_it_let_go_in_a_few_words():
    conversation = Conversation(customer_id="anna")
    values = {"[CARD_1]": "4111111111111111", "[IBAN_1]": "DE02120300000000202051"}
    first = Said("customer", "My card [CARD_1] was stolen in Lisbon.", 0)
    conversation = conversation.said("e", values, first, Said("bank", "I am sorry.", 0))
    for number in range(TURNS_MAX):
        turn = Said("customer", f"What about fee {number}?", number)
        conversation = conversation.said(
            f"e{number}", values, turn, Said("bank", "The fee is EUR 8.", number)
        )
    assert len(conversation.turns) == TURNS_MAX
    assert "My card [CARD] was stolen in Lisbon." in conversation.summary
    assert "EUR 8" not in conversation.summary
    assert len(conversation.summary) <= SUMMARY_CHARS_MAX
    assert not conversation.values
    whole = conversation.summed_up(turns_left_out=6, chars_max=300)
    assert "Lisbon" in whole
    assert len(whole) <= 300


def test_what_is_left_out_of_a_short_conversation_is_not_summed_up():
    conversation = Conversation(customer_id="anna")
    for number in range(5):
        turn = Said("customer", f"My card number {number} is lost.", number)
        conversation = conversation.said(f"e{number}", {}, turn)
        assert conversation.summed_up(turns_left_out=6, chars_max=300) == ""
    assert conversation.summed_up(turns_left_out=4, chars_max=300) == "My card number 0 is lost."
