"""The facts in a sentence that must not be made up: numbers, amounts, what is free, dates, web addresses.

Two ways to write a fact are one: 1,500 and 1500, 2.5 % and 百分之二点五, 一千五百 and 1500, 3 May and 5月3日,
free of charge and 不收费.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

_HAN_DIGIT = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_HAN_UNIT = {"十": 10, "百": 100, "千": 1000}
_HAN_LARGE = {"万": 10_000, "亿": 100_000_000}
_ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    "|seventeen|eighteen|nineteen"
)
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "ninety": 90, "hundred": 100}
_WORDS = {word: value for value, word in enumerate(_ONES.split("|"))} | _TENS
# "One" and its like count things as often as they stand for them.
_TOO_COMMON = {"zero", "one"}
_CURRENCIES = {
    "EUR": r"€|\beur\b|\beuros?\b|欧元",
    "USD": r"\$|\busd\b|\bdollars?\b|美元",
    "GBP": r"£|\bgbp\b|\bpounds?\b|英镑",
    "CNY": r"¥|\bcny\b|\brmb\b|\byuan\b|人民币|元",
}
_PRICES = {*_CURRENCIES, "free"}
_CURRENCY = re.compile("|".join(f"(?P<{code}>{words})" for code, words in _CURRENCIES.items()), re.IGNORECASE)
_AFTER = re.compile(rf"\s?(?:{_CURRENCY.pattern})", re.IGNORECASE)
_BEFORE = re.compile(rf"(?:{_CURRENCY.pattern})\s?$", re.IGNORECASE)
_MONTHS = [
    *("jan(?:uary)?", "feb(?:ruary)?", "mar(?:ch)?", "apr(?:il)?", "may", "june?", "july?", "aug(?:ust)?"),
    *("sept?(?:ember)?", "oct(?:ober)?", "nov(?:ember)?", "dec(?:ember)?"),
]
_MONTH = "|".join(f"(?P<m{number}>{name})" for number, name in enumerate(_MONTHS, 1))
_DATES = (
    re.compile(r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})"),
    re.compile(r"(?:(?P<y>\d{4})年)?(?P<m>\d{1,2})月(?P<d>\d{1,2})[日号]"),
    re.compile(
        rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?(?:{_MONTH})\b(?:,?\s(?P<y>\d{{4}}))?", re.IGNORECASE
    ),
    re.compile(rf"(?:{_MONTH})\s(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s(?P<y>\d{{4}}))?", re.IGNORECASE),
)
_WEB = re.compile(r"(?:https?://|www\.)[^\s，。)）]+|\b[\w.+-]+@[\w-]+\.[\w.]+\b", re.IGNORECASE)
_FREE = re.compile(
    r"\bfree of charge\b|(?<!feel )\bfree\b(?! (?:to|up|from)\b)|\bcosts? nothing\b|\bat no (?:cost|charge)\b"
    r"|\bno (?:\w+ )?(?:fees?|charges?)\b|免费|不收费|不收取费用|不另收费|无需付费",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?<!\d)(\d{1,2}):(\d{2})(?!\d)|\b(\d{1,2})\s?([ap])\.?m\b\.?|(\d{1,2})[点时](?:(\d{1,2})分)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?:\s?(k\b|thousand\b|千|万|million\b|m\b))?", re.IGNORECASE
)
_HAN_NUMBER = re.compile("(百分之)?([零〇一二两三四五六七八九十百千万亿]+(?:点[零〇一二三四五六七八九]+)?)")
_WORD_NUMBER = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
# A single Chinese numeral counts before these: three days, and not 一 in 一起.
_COUNTED = re.compile(r"\s?(?:个|天|日|小时|分钟|年|月|周|次|张|元|笔|位|家|倍|工作日)")
_SCALE = {"k": 1000, "thousand": 1000, "千": 1000, "万": 10_000, "million": 1_000_000, "m": 1_000_000}
_NEAR = 8


@dataclass(frozen=True, slots=True)
class Fact:
    """kind: number, percent, a currency's code, free, date, time or web. value: written one way."""

    kind: str
    value: str

    @property
    def about(self) -> str:
        """What it tells, whatever its value: the price, whether in euros or that there is none."""
        return "price" if self.kind in _PRICES else self.kind


def facts_in(text: str) -> set[Fact]:
    """Every fact of a text."""
    return set(split(text)[0])


def split(text: str) -> tuple[list[Fact], str]:
    """The facts of a text in their order, and the text with blanks where they stood."""
    found, rest = list[tuple[int, Fact]](), text
    readers: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Fact | None]], ...] = (
        (_WEB, _web),
        *((each, _date) for each in _DATES),
        (_TIME, _time),
        (_FREE, _free),
        (_NUMBER, _number),
        (_HAN_NUMBER, _han_number),
        (_WORD_NUMBER, _word_number),
    )
    for pattern, read in readers:
        # What was read is not read again, as the numbers in a date are.
        facts = [(match, read(match)) for match in pattern.finditer(rest)]
        for match, fact in facts:
            if fact is not None:
                found.append((match.start(), fact))
                start, end = _with_currency(match) if fact.kind in _CURRENCIES else match.span()
                rest = rest[:start] + " " * (end - start) + rest[end:]
    return [fact for _, fact in sorted(found, key=lambda each: each[0])], rest


def _web(match: re.Match[str]) -> Fact:
    return Fact("web", match[0].lower().rstrip(".,;"))


def _free(match: re.Match[str]) -> Fact:
    return Fact("free", "")


def _date(match: re.Match[str]) -> Fact:
    groups = match.groupdict()
    month = groups.get("m") or next(number for number in range(1, 13) if groups.get(f"m{number}"))
    year = f"{groups['y']}-" if groups.get("y") else ""
    return Fact("date", f"{year}{int(month):02}-{int(groups['d']):02}")


def _time(match: re.Match[str]) -> Fact:
    hour, minute = match[1] or match[3] or match[5], match[2] or match[6] or 0
    half = 12 if (match[4] or "").lower() == "p" and int(hour) < 12 else 0
    return Fact("time", f"{int(hour) + half:02}:{int(minute):02}")


def _number(match: re.Match[str]) -> Fact:
    scale = _SCALE[match[2].lower()] if match[2] else 1
    return _fact(match, Decimal(match[1].replace(",", "")) * scale)


def _han_number(match: re.Match[str]) -> Fact | None:
    if match[1]:
        return Fact("percent", _plain(_han_value(match[2])))
    if len(match[2]) == 1 and not _COUNTED.match(match.string, match.end()):
        return None
    return _fact(match, _han_value(match[2]))


def _word_number(match: re.Match[str]) -> Fact | None:
    word = match[0].lower()
    return None if word in _TOO_COMMON else _fact(match, Decimal(_WORDS[word]))


def _fact(match: re.Match[str], value: Decimal) -> Fact:
    text, start, end = match.string, match.start(), match.end()
    before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    if re.match(r"\s?(?:%|％|percent\b|per cent\b)", after):
        return Fact("percent", _plain(value))
    currency = _AFTER.match(after) or _BEFORE.search(before)
    kind = next((code for code in _CURRENCIES if currency and currency[code]), "number")
    return Fact(kind, _plain(value))


def _with_currency(match: re.Match[str]) -> tuple[int, int]:
    """Where an amount begins and ends, its currency with it."""
    text, start, end = match.string, match.start(), match.end()
    if after := _AFTER.match(text, end):
        return start, after.end()
    before = _BEFORE.search(text[max(0, start - _NEAR) : start])
    return start - len(before[0]) if before else start, end


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _han_value(said: str) -> Decimal:
    """The number that Chinese numerals say."""
    whole, _, fraction = said.partition("点")
    total = section = digit = 0
    if not any(letter in _HAN_UNIT or letter in _HAN_LARGE for letter in whole):
        # Said digit by digit: 二零二四.
        total = int("".join(str(_HAN_DIGIT[letter]) for letter in whole) or 0)
    else:
        for letter in whole:
            if letter in _HAN_DIGIT:
                digit = _HAN_DIGIT[letter]
            elif letter in _HAN_UNIT:
                section, digit = section + (digit or 1) * _HAN_UNIT[letter], 0
            else:
                total, section, digit = total + (section + digit or 1) * _HAN_LARGE[letter], 0, 0
        total += section + digit
    decimals = "".join(str(_HAN_DIGIT[letter]) for letter in fraction)
    return Decimal(f"{total}.{decimals}") if decimals else Decimal(total)
