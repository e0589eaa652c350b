"""What a masked message asks, as an index or a model reads it that knows nothing of placeholders.

"My IBAN is [IBAN_1]. What does a transfer cost?" asks what a transfer costs; "How do I freeze [CARD_1]?" is
about a card. Data that is only given is left out; data that is spoken of becomes the word for its kind.
"""

import re

from services.chat.domain import PLACEHOLDER, DataClass

_ONE = PLACEHOLDER.pattern
# One or several of them.
_PLACE = rf"{_ONE}(?:\s{{0,3}}(?:,|，|、|or|and|和|或)\s{{0,3}}{_ONE}){{0,5}}+"
# With 吗 behind it nothing is given: it is asked whether that is so.
_NOT_ASKED = r"(?!\s{0,3}[,，]?[对是]?吗)"
_KINDS_EN = {
    DataClass.CARD: "card",
    DataClass.IBAN: "account",
    DataClass.ACCOUNT: "account",
    DataClass.NATIONAL_ID: "identity card",
    DataClass.PHONE: "phone number",
    DataClass.EMAIL: "email address",
    DataClass.CODE: "code",
    DataClass.NAME: "someone",
    DataClass.ADDRESS: "address",
}
_KINDS_ZH = {
    DataClass.CARD: "卡",
    DataClass.IBAN: "账户",
    DataClass.ACCOUNT: "账户",
    DataClass.NATIONAL_ID: "身份证",
    DataClass.PHONE: "手机号",
    DataClass.EMAIL: "邮箱",
    DataClass.CODE: "验证码",
    DataClass.NAME: "别人",
    DataClass.ADDRESS: "地址",
}
_GREETING_EN = frozenset(
    re.findall(r"\S+", "afternoon dear evening good hello hey hi morning please regards thank thanks you")
)
# A part of a message in which nothing else stands gives data, and asks nothing.
_GIVING_EN = frozenset(
    re.findall(
        r"\S+",
        """a account address am an and are at bank belongs best born by call called can card cell client code
        contact customer dear details e email for from good morning afternoon evening hello here hey hi holder
        i i'm iban id identity im in is it it's kind live mail me mobile mr mrs ms my name named no number
        number's of on or our passcode passport phone pin please reach regards security sincerely social sort
        ssn telephone thank thanks the these this to under us we with write you yours""",
    )
)
_GIVING_ZH = re.compile(
    r"(?:你好|您好|我们|我的|我是|我叫|本人|我|的|是|为|叫|姓名|名字|银行卡|卡号|卡|银行|账号|账户|户名|开户|iban|手机|电话|号码|号"
    r"|电子邮件|电子邮箱|邮箱|身份证|验证码|密码|住址|地址|住在|在|和|与|或|可以|请|联系|打|发|到|给|谢谢|先生|女士|小姐)*",
    re.IGNORECASE,
)
_GREETING_ZH = re.compile("你好|您好|早上好|下午好|晚上好|谢谢|谢谢您|请问|多谢")
_THANKS = re.compile(r"(?:\b(?:many )?thank(?:s| you)|谢谢您?|多谢)[\s.!。！]{0,5}$", re.IGNORECASE)
_MARKS = " \t\n.!?,;:。！？；，、：~～"
_NOUN_EN = (
    r"(?:(?:iban|card|account|phone|mobile|telephone|cell|email|e-mail|mail|name|code|pin|id|number|no\.?"
    r"|address)\s{1,3}){1,4}"
)
# Given within a sentence that goes on: "... my IBAN is [IBAN_1] ...".
_GIVEN_EN = re.compile(
    rf"(?:\b(?:(?:and|with|from|for)\s)?(?:my|our|the)\s{_NOUN_EN}(?:is|=|:)"
    rf"|\b(?:you can\s|please\s)?(?:reach|call|contact|text|email|write)(?: to)? me (?:at|on|under|by))"
    rf"\s{{0,3}}{_PLACE}",
    re.IGNORECASE,
)
_GIVEN_ZH = re.compile(
    rf"(?:我的|本人的?)?(?:(?:iban|银行卡|卡|账户|手机|电话|邮箱|电子邮箱|身份证|地址|住址|名字|姓名)号?码?(?:是|为|[:：])"
    rf"|(?:卡|账|银行卡|手机|身份证)号码?|电话号码|邮箱|户名|姓名|地址|验证码)\s*{_PLACE}{_NOT_ASKED}",
    re.IGNORECASE,
)
_CALLED = re.compile(
    rf"(?:\b(?:i am|i'm|my name is|this is)\b|我是|我叫|本人)\s*{_PLACE}{_NOT_ASKED}", re.IGNORECASE
)
_PART = re.compile(r"[^.!?;,\n()。！？；，、（）]*(?:[.!?;,\n()。！？；，、（）]+|$)")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_SPACES = re.compile(r"\s+(?=[\s,.;:!?，。；：！？])")


def asked_of(text: str) -> str:
    """The masked message without greetings and the data that it only gives; words for data that it speaks of.

    Empty only where the message has no word beside its placeholders.
    """
    words = _KINDS_ZH if _HAN.search(PLACEHOLDER.sub("", text)) else _KINDS_EN
    left = text.rstrip()
    for given in (_THANKS, _CALLED, _GIVEN_ZH, _GIVEN_EN):
        left = given.sub(" ", left)
    kept = "".join(part for part in _PART.findall(left) if not _only_gives(part))
    if not _has_words(kept):
        kept = text
    if not _has_words(kept):
        return ""
    return _SPACES.sub("", _named(kept, words)).strip(" ,;:，、；：(（")


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in PLACEHOLDER.sub("", text))


def _only_gives(part: str) -> bool:
    """Whether a part of a message holds data and nothing that is asked, or a greeting alone."""
    rest = PLACEHOLDER.sub(" ", part).replace("’", "'").lower()
    if _HAN.search(rest):
        if not PLACEHOLDER.search(part):
            return _GREETING_ZH.fullmatch(rest.strip(_MARKS)) is not None
        if rest.strip(_MARKS).endswith("吗"):
            return False
        return not _GIVING_ZH.sub("", "".join(_WORD.findall(rest)))
    said = set(_WORD.findall(rest))
    return said <= (_GIVING_EN if PLACEHOLDER.search(part) else _GREETING_EN)


def _named(text: str, words: dict[DataClass, str]) -> str:
    """The text with the word for each placeholder's kind, unless that word stands before it."""

    def name(found: re.Match[str]) -> str:
        word = words[DataClass(found[0][1:-1].rpartition("_")[0])]
        before = text[: found.start()].rstrip(" :：#").lower()
        return " " if before.endswith((word, "number", "号", "号码")) else word

    return PLACEHOLDER.sub(name, text)
