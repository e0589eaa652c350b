"""Numbers that identify somebody: cards, accounts, identity cards, telephones.

By their check digits where they have any, by the words around them where they do not.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import phonenumbers
from stdnum import iban, luhn
from stdnum.cn import ric
from stdnum.us import ssn

from services.chat.domain import DataClass, Span

_CARD_DIGITS = range(13, 20)
# Maestro has cards of 12; too short to be known by its check digit alone.
_CARD_DIGITS_TOLD = range(12, 20)
_PHONE_DIGITS = range(7, 16)
# First digits of Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay, Maestro and Mir.
_CARD_PREFIX = re.compile(r"4|5[0-9]|6[0-9]|2(?:20[0-4]|22[1-9]|2[3-9]|[3-6]|7[01]|720)|3(?:0[0-5]|[4-8])")
# Digits with little between them. One place more than a card needs, so that a longer number is seen as such.
_RUN = re.compile(r"\+?\(?\d(?:[ \t\n\r.\-_/()*,]{0,3}\d)*(?:\s?(?:x|ext\.?)\s?\d{1,6}\b)?")
_GROUP = re.compile(r"\d+")
_IBAN = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=[Ii][Bb][Aa][Nn]))[A-Za-z]{2}[ \-]?\d(?:[ \-.]?[A-Za-z0-9]){12,33}"
)
_RIC = re.compile(r"(?<![\dA-Za-z])(?:\d[ \-]{0,2}){14,17}[\dXx](?![\dA-Za-z])")
_CN_MOBILE = re.compile(r"(?<!\d)(?:(?:\+|00)?86[ \-]{0,2})?(1[3-9](?:[ \-]{0,2}\d){9})(?!\d)")
# Four groups with a mark between that separates other things too; the letters that are typed for 1 and 0.
_MARKED_GROUPS = re.compile(r"(?<!\d)\d{4}(\s?[|:;~=+\\]\s?)\d{4}\1\d{4}\1\d{1,7}(?!\d)")
_MISREAD_RUN = re.compile(r"(?<![A-Za-z\d])[\dlIOo](?:[ \-.]{0,2}[\dlIOo]){12,18}(?![A-Za-z\d])")
_MISREAD = str.maketrans("lIOo", "1100")
_SSN_TOLD = re.compile(r"(?<!\d)\d(?:[ \-.]{0,2}\d){8}(?!\d)")
_SSN = re.compile(r"(?<![\d\-])\d{3}([ \-]?)\d{2}\1\d{4}(?![\d\-])")

_BEFORE, _AFTER = 40, 24
_SAYS_SSN = re.compile(r"\b(?:ssn|social security|social(?=:| is\b| number))", re.IGNORECASE | re.ASCII)
_SAYS_PHONE = re.compile(
    r"\b(?:phone|call|tel|telephone|mobile|cell|reach|contact|text|messages?|sms|whatsapp|fax|desk"
    r"|office|answering|answers?|ring|dial|my number)\b|电话|手机|座机|固话|传真|致电|联系|拨打|号码",
    re.IGNORECASE | re.ASCII,
)
_SAYS_ACCOUNT = re.compile(
    r"\b(?:account|acct|a/c|sort code|routing|iban|customer (?:id|number)|passport|member(?:ship)? number)\b"
    r"|账号|账户|帐号|帐户|卡号|客户号|护照|银行卡",
    re.IGNORECASE | re.ASCII,
)
_SAYS_CARD = re.compile(r"\b(?:card|visa|mastercard|amex|pan|debit|credit)\b|卡", re.IGNORECASE | re.ASCII)
_NO_NUMBER_OF_A_PERSON = re.compile(
    r"(?:[$€£¥]|\b(?:usd|eur|gbp|cny|rmb|chf|jpy|order|ticket|invoice|ref(?:erence)?|case|version|amount"
    r"|transaction)\b"
    r"|订单|工单|单号|金额|人民币)[^\d]{0,12}$",
    re.IGNORECASE,
)
_MONEY_AFTER = re.compile(
    r"^\s?(?:%|[$€£¥]|usd|eur|gbp|cny|rmb|dollars?|euros?|pounds?|yuan|元|块|万|percent)", re.IGNORECASE
)
_DATE = re.compile(
    r"^(?:\d{4}([\-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([\-/.])(?:0?[1-9]|1[0-2])\2(?:\d{2}|\d{4})"
    r"|(?:0?[1-9]|1[0-2])([\-/.])(?:0?[1-9]|[12]\d|3[01])\3(?:\d{2}|\d{4}))(?:[ T]+\d{1,2})?$"
)


@dataclass(frozen=True, slots=True)
class Found:
    """Personal data in a shadow; the smaller `rank` wins where two overlap."""

    start: int
    end: int
    data_class: DataClass
    rank: int

    def over(self, starts: Sequence[int], ends: Sequence[int]) -> Span:
        """Where it stands in the original."""
        return Span(starts[self.start], ends[self.end - 1], self.data_class)


def numbers_in(text: str, regions: Sequence[str], public: frozenset[str]) -> Iterator[Found]:
    """Every number of a person in a shadow's text.

    Args:
        regions: whose telephone numbers are known without a country code, ISO 3166 letters.
        public: digits of the bank's own numbers, which are nobody's.
    """
    yield from _ibans(text)
    yield from _identity_cards(text)
    for match in _CN_MOBILE.finditer(text):
        if _digits(match[1]) not in public:
            yield Found(match.start(), match.end(), DataClass.PHONE, 4)
    for match in _SSN.finditer(text):
        if ssn.is_valid(_digits(match[0])) and (
            match[1] == "-" or _SAYS_SSN.search(_before(text, match.start()))
        ):
            yield Found(match.start(), match.end(), DataClass.NATIONAL_ID, 3)
    for match in _SSN_TOLD.finditer(text):
        if _SAYS_SSN.search(_before(text, match.start())):
            yield Found(match.start(), match.end(), DataClass.NATIONAL_ID, 3)
    for match in _MARKED_GROUPS.finditer(text):
        yield from _cards(match[0], match.start())
    for match in _MISREAD_RUN.finditer(text):
        yield from _cards(match[0].translate(_MISREAD), match.start())
    for run in _RUN.finditer(text):
        yield from _in_run(text, run, regions, public)


def _in_run(text: str, run: re.Match[str], regions: Sequence[str], public: frozenset[str]) -> Iterator[Found]:
    digits = _digits(run[0])
    if len(digits) < 6:
        return
    cards = list(_cards(run[0], run.start()))
    yield from cards
    before, after = _before(text, run.start()), text[run.end() : run.end() + _AFTER]
    if cards or digits in public or _DATE.match(run[0].strip()):
        return
    if _SAYS_CARD.search(before) and len(digits) in _CARD_DIGITS_TOLD:
        # Mistyped, or made up: still meant as a card.
        yield Found(run.start(), run.end(), DataClass.CARD, 6)
    elif _NO_NUMBER_OF_A_PERSON.search(before) or _MONEY_AFTER.match(after):
        return
    elif _SAYS_ACCOUNT.search(before) and not _SAYS_PHONE.search(before):
        yield Found(_with_letters(text, run.start()), run.end(), DataClass.ACCOUNT, 7)
    elif len(digits) in _PHONE_DIGITS and _is_phone(run[0], before, regions):
        yield Found(run.start(), run.end(), DataClass.PHONE, 5)
    elif _SAYS_ACCOUNT.search(after):
        yield Found(run.start(), run.end(), DataClass.ACCOUNT, 7)


def _cards(run: str, offset: int) -> Iterator[Found]:
    """Card numbers among the groups of a run: whole groups, so that an order number before is none of it."""
    groups = list(_GROUP.finditer(run))
    at = 0
    while at < len(groups):
        digits, found = "", 0
        for last in range(at, min(at + 19, len(groups))):
            digits += groups[last][0]
            if len(digits) > _CARD_DIGITS[-1]:
                break
            if len(digits) in _CARD_DIGITS and _CARD_PREFIX.match(digits) and luhn.is_valid(digits):
                found = last + 1
        if found:
            start, end = groups[at].start(), groups[found - 1].end()
            yield Found(offset + start, offset + end, DataClass.CARD, 1)
        at = found or at + 1


def _ibans(text: str) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        # What follows may be a word: the longest beginning that its check digits bear out.
        places = [at for at, letter in enumerate(match[0], 1) if letter.isalnum()]
        for end in reversed(places[14:]):
            if iban.is_valid(re.sub(r"[^A-Za-z0-9]", "", match[0][:end])):
                yield Found(match.start(), match.start() + end, DataClass.IBAN, 0)
                break


def _identity_cards(text: str) -> Iterator[Found]:
    for match in _RIC.finditer(text):
        number = re.sub(r"[^\dXx]", "", match[0]).upper()
        if len(number) == 18 and ric.is_valid(number):
            yield Found(match.start(), match.end(), DataClass.NATIONAL_ID, 0)
        elif len(number) == 15 and _is_old_identity_card(number) and "证" in _before(text, match.start()):
            yield Found(match.start(), match.end(), DataClass.NATIONAL_ID, 2)


def _is_old_identity_card(number: str) -> bool:
    """The 15 digits that were issued until 1999: no check digit, a birthday without its century."""
    month, day = int(number[8:10]), int(number[10:12])
    return number[0] in "123456" and 1 <= month <= 12 and 1 <= day <= 31


def _is_phone(said: str, before: str, regions: Sequence[str]) -> bool:
    if not (said.lstrip("(").startswith("+") or _SAYS_PHONE.search(before) or _is_set_like_one(said)):
        return False
    for region in regions:
        try:
            number = phonenumbers.parse(said, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return True
    # Told to be one, it is one, be it of another country or mistyped.
    return bool(_SAYS_PHONE.search(before)) and len(_digits(said)) >= _PHONE_DIGITS[0]


def _is_set_like_one(said: str) -> bool:
    """Whether it stands as telephone numbers are written: (030) 1234-567, 555-123-4567."""
    return len(_digits(said)) >= 9 and ("(" in said or said.count("-") >= 2 or said.count(".") >= 2)


def _with_letters(text: str, start: int) -> int:
    """Where a number begins that has one or two letters in front, as passports have."""
    letters = re.search(r"(?<![A-Za-z\d])[A-Za-z]{1,2}$", text[max(0, start - 3) : start])
    return start - len(letters[0]) if letters else start


def _before(text: str, at: int) -> str:
    return text[max(0, at - _BEFORE) : at]


def _digits(said: str) -> str:
    return "".join(letter for letter in said if letter.isdigit())
