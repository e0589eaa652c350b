"""A sentence that a passage does not bear out is never shown: made up, turned round, or with more in it."""

import pytest
import Stemmer

from services.chat.answer.facts import Fact, facts_in
from services.chat.answer.grounding import Flaw, check
from services.chat.domain import Passage

STEM = Stemmer.Stemmer("english").stemWord

EN = (
    "A transfer within the euro area is free and arrives on the next working day. "
    "An urgent transfer costs 7.50 EUR and arrives within 20 minutes. "
    "Transfers above 10,000 EUR must be confirmed by phone before 16:00. "
    "You cannot cancel an instant transfer. "
    "The rate for savings is 2.5 % a year, paid on 31 December. "
    "Lost cards are replaced free of charge within five working days; an express card costs 25 EUR. "
    "Call +49 30 1234567 or write to help@bank.example."
)
ZH = (
    "境内转账免费，下一个工作日到账。加急转账每笔收费五十元，二十分钟内到账。"
    "单笔超过五万元的转账须在16点前电话确认。实时转账不能撤销。"
    "储蓄年利率为百分之二点五，每年12月31日付息。丢失的卡免费补办，五个工作日内寄出；加急补卡收费200元。"
)
FEES = Passage("fees/1", "fees", 1, "en", "Transfers and cards", EN)
OTHER = Passage(
    "loans/4",
    "loans",
    1,
    "en",
    "Loans",
    "A loan is paid back within 84 months. Its rate is 6.9 %. Early repayment is free. "
    "A late instalment costs EUR 5. An instalment in advance, or one that was put off, is free of charge.",
)
HAN = Passage("fees/1", "fees", 1, "zh", "转账与卡", ZH)

SUPPORTED = [
    "A transfer within the euro area is free.",
    "A transfer within the euro area arrives on the next working day.",
    "An urgent transfer costs €7.50.",
    "An urgent transfer costs 7.5 euros and arrives within 20 minutes.",
    "Transfers above EUR 10,000 must be confirmed by phone before 4 p.m.",
    "You cannot cancel an instant transfer.",
    "You can't cancel an instant transfer.",
    "The rate for savings is 2.5 percent a year.",
    "The savings rate is 2.5% a year, paid on December 31.",
    "Lost cards are replaced free of charge within 5 working days.",
    "An express card costs 25 EUR.",
    "A transfer within the euro area costs nothing.",
    "A transfer within the euro area is free of charge.",
    "Write to help@bank.example.",
    "境内转账免费。",
    "加急转账每笔收费50元。",
    "加急转账每笔收费五十元，20分钟内到账。",
    "单笔超过50,000元的转账须在16:00前电话确认。",
    "实时转账不能撤销。",
    "储蓄年利率为2.5%。",
    "每年12月31日付息。",
    "加急补卡收费200元。",
]
UNSUPPORTED = [
    ("An urgent transfer costs 5 EUR.", Flaw.FACT),
    ("An urgent transfer costs 7.50 USD.", Flaw.FACT),
    ("An urgent transfer costs 25 EUR.", Flaw.FACT),
    ("An urgent transfer arrives within 5 minutes.", Flaw.FACT),
    ("On 1,500 EUR you earn 37.50 EUR of savings a year.", Flaw.FACT),
    ("The rate for savings is 25 % a year.", Flaw.FACT),
    ("The rate for savings is paid on 30 December.", Flaw.FACT),
    ("You can cancel an instant transfer.", Flaw.NEGATION),
    ("A transfer within the euro area is not free.", Flaw.NEGATION),
    ("Transfers above 10,000 EUR need not be confirmed by phone.", Flaw.NEGATION),
    ("A transfer within the euro area is free, and we give you a bonus and a voucher for it.", Flaw.WORDS),
    ("Our branch in Paris is open on Sunday.", Flaw.NAME),
    ("Ask for Wilhelmina when you call about transfers.", Flaw.NAME),
    ("Write to help@bank.evil.", Flaw.FACT),
    ("See https://bank.example/login for transfers.", Flaw.FACT),
    ("Crypto is a great investment.", Flaw.WORDS),
    ("Well, well.", Flaw.WORDS),
    ("...", Flaw.EMPTY),
    ("加急转账每笔收费三十元。", Flaw.FACT),
    ("储蓄年利率为百分之五。", Flaw.FACT),
    ("储蓄年利率为25%。", Flaw.FACT),
    ("实时转账能撤销。", Flaw.NEGATION),
    ("境内转账不免费。", Flaw.NEGATION),
    ("加急补卡收费50元。", Flaw.FACT),
    ("我们推荐您购买股票基金。", Flaw.WORDS),
    # As a small model has said it: the amount stands in the passage, for something else.
    ("境内转账免费五十元，二十分钟内到账。", Flaw.FACT),
    ("Lost cards are replaced within five working days; the replacement costs 7.50 EUR.", Flaw.FACT),
    ("境内转账免费，还送您一张电影票和一份礼品。", Flaw.WORDS),
    # What one sentence says, of what another one is about.
    ("A transfer within the euro area costs EUR 7.50.", Flaw.FACT),
    ("A transfer costs EUR 7.50.", Flaw.FACT),
    ("An urgent transfer is free.", Flaw.FACT),
    ("An urgent transfer costs nothing.", Flaw.FACT),
    ("Transfers within the euro area must be confirmed by phone before 16:00.", Flaw.FACT),
    ("An instant transfer arrives within 20 minutes.", Flaw.FACT),
    ("An urgent transfer arrives on the next working day.", Flaw.WORDS),
    ("Lost cards are replaced for 25 EUR within five working days.", Flaw.FACT),
    # As the embedded model has said it: a price without what it is for.
    ("An instalment costs EUR 5.", Flaw.FACT),
    ("境内转账每笔收费五十元。", Flaw.FACT),
    ("加急转账免费。", Flaw.FACT),
    ("加急转账下一个工作日到账。", Flaw.FACT),
]


@pytest.mark.parametrize("sentence", SUPPORTED)
def test_what_the_passage_says_is_shown_with_its_source(sentence):
    verdict = check(sentence, [OTHER, FEES, HAN], STEM)
    assert verdict.is_supported, verdict.flaw
    assert verdict.sources == ("fees/1",)


@pytest.mark.parametrize(("sentence", "flaw"), UNSUPPORTED)
def test_what_it_does_not_say_is_not_shown(sentence, flaw):
    verdict = check(sentence, [FEES, OTHER, HAN], STEM)
    assert not verdict.is_supported
    assert verdict.flaw is flaw


def test_two_passages_do_not_bear_out_what_neither_says():
    assert not check("Early repayment of an urgent transfer is free.", [FEES, OTHER], STEM).is_supported
    assert not check("A loan costs 7.50 EUR.", [FEES, OTHER], STEM).is_supported
    assert not check("An urgent transfer is free.", [], STEM).is_supported


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,500 EUR", {Fact("EUR", "1500")}),
        ("€1.5k", {Fact("EUR", "1500")}),
        ("一千五百欧元", {Fact("EUR", "1500")}),
        ("两万元", {Fact("CNY", "20000")}),
        ("1.2万元", {Fact("CNY", "12000")}),
        ("二零二四", {Fact("number", "2024")}),
        ("十个", {Fact("number", "10")}),
        ("一起", set()),
        ("三天", {Fact("number", "3")}),
        ("百分之二点五 and 2.50%", {Fact("percent", "2.5")}),
        ("3 May 2024, May 3rd, 2024 and 2024-05-03, 2024年5月3日", {Fact("date", "2024-05-03")}),
        ("5月3日 and 3rd of May", {Fact("date", "05-03")}),
        ("9:30, 16点30分 and 4 pm", {Fact("time", "09:30"), Fact("time", "16:30"), Fact("time", "16:00")}),
        ("five days", {Fact("number", "5")}),
        ("one of them", set()),
        ("free of charge, no fee, costs nothing, 不收费", {Fact("free", "")}),
        ("feel free to ask, free up to", set()),
        ("www.bank.example.", {Fact("web", "www.bank.example")}),
    ],
)
def test_a_fact_is_one_however_it_is_written(text, expected):
    assert facts_in(text) == expected
