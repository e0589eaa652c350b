"""A text as it is meant: the shadow in which personal data is looked for, and where its characters stood.

Whoever writes digits in another script, in words, with invisible characters between them or as an HTML entity
means the same digits. The shadow is what he means; the text itself is never changed by looking.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Nobody sees them between digits: zero-width, soft hyphen, direction marks, variation selectors.
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});")
_HAN_DIGITS = {
    **dict(zip("〇零一二三四五六七八九", [*"00123456789"], strict=True)),
    **dict(zip("壹贰叁肆伍陆柒捌玖", "123456789", strict=True)),
    **dict(zip("貳參陸", "236", strict=True)),
    "幺": "1",
    "两": "2",
}
# Letters of other scripts that look like Latin ones; in an address or a country code they are meant as those.
_LOOKS_LIKE = str.maketrans("АВЕКМНОРСТХаеорсухі", "ABEKMHOPCTXaeopcyxi")
_NUMBER_WORDS = {
    word: digit
    for digit, words in enumerate(
        ("zero oh nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    )
    for word in words.split()
}
_TIMES = {"double": 2, "triple": 3}
# Dashes and middle dots of every kind, which NFKC leaves as they are.
_ALSO_LOOKS_LIKE = str.maketrans("‐‑‒–—―−·•∙", "-------...")
_WORD_RUN = re.compile(
    # Digits may stand among the words: "four 1 1 one".
    rf"\b(?:(?:{'|'.join([*_NUMBER_WORDS, *_TIMES])}|\d{{1,19}})\b[\s,.\-]{{0,3}}){{4,}}",
    re.IGNORECASE | re.ASCII,
)
_WORD = re.compile(r"[A-Za-z]+")
_COUNTS = re.compile(r"[^A-Za-z]+[A-Za-z]+[^A-Za-z\d]*$")
# Fewer Chinese numerals in a row are an amount or a word: 三月, 二百.
_HAN_RUN = re.compile(rf"(?:[{''.join(_HAN_DIGITS)}][\s\-]?){{4,}}")


@dataclass(frozen=True, slots=True)
class Shadow:
    """`text[i]` stands for characters `starts[i]` to `ends[i]` of the original."""

    text: str
    starts: list[int]
    ends: list[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Where in the original the shadow's characters from `start` to `end` stood."""
        return self.starts[start], self.ends[end - 1]


def shadow_of(text: str) -> Shadow:
    """The shadow of a text; work grows with its length alone."""
    letters, starts, ends = [], [], []
    for letter, start, end in _meant(text):
        letters.append(letter)
        starts.append(start)
        ends.append(end)
    return _with_words(Shadow("".join(letters), starts, ends))


def _meant(text: str) -> Iterator[tuple[str, int, int]]:
    at, han = 0, _inside(_HAN_RUN, text)
    while at < len(text):
        if text[at] == "&" and (entity := _ENTITY.match(text, at)):
            end, meant = entity.end(), html.unescape(entity[0])
        else:
            end, meant = at + 1, text[at]
        if at in han and text[at] in _HAN_DIGITS:
            meant = _HAN_DIGITS[text[at]]
        for letter in meant:
            for plain in _plain(letter):
                yield plain, at, end
        at = end


def _plain(letter: str) -> str:
    """The letters that are meant by one: none, one or several."""
    if letter.isascii():
        return letter
    if _INVISIBLE.match(letter):
        return ""
    if (digit := unicodedata.decimal(letter, None)) is not None:
        return str(digit)
    if unicodedata.category(letter) in ("Mn", "Me"):  # a line or a ring over a digit
        return ""
    return unicodedata.normalize("NFKC", letter).translate(_LOOKS_LIKE).translate(_ALSO_LOOKS_LIKE)


def _inside(pattern: re.Pattern[str], text: str) -> set[int]:
    return {at for found in pattern.finditer(text) for at in range(found.start(), found.end())}


def _with_words(shadow: Shadow) -> Shadow:
    """The same with each run of number words as digits: "four one double two" is 4 1 22.

    What stands between them stays: where one number ends and another begins is told by it.
    """
    # A word that comes last after digits counts something: "PIN 48 29 13 three times".
    runs = [
        run for run in _WORD_RUN.finditer(shadow.text) if _WORD.search(run[0]) and not _COUNTS.match(run[0])
    ]
    if not runs:
        return shadow
    letters, starts, ends, at = list[str](), list[int](), list[int](), 0

    def keep(until: int) -> None:
        letters.extend(shadow.text[at:until])
        starts.extend(shadow.starts[at:until])
        ends.extend(shadow.ends[at:until])

    for run in runs:
        times, times_start = 1, 0
        for word in _WORD.finditer(shadow.text, run.start(), run.end()):
            name, (start, end) = word[0].lower(), shadow.original(word.start(), word.end())
            if name in _TIMES:
                keep(word.start())
                times, times_start, at = _TIMES[name], start, word.end()
                continue
            if times > 1:
                start = times_start
            else:
                keep(word.start())
            for _ in range(times):
                letters.append(str(_NUMBER_WORDS[name]))
                starts.append(start)
                ends.append(end)
            times, at = 1, word.end()
    keep(len(shadow.text))
    return Shadow("".join(letters), starts, ends)
