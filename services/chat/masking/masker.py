"""The masker: finds personal data, and puts placeholders in its place that can be undone.

text ──shadow──▶ found ──overlaps settled──▶ spans ──placeholders──▶ masked text, and what each stands for
"""

import re
from collections.abc import Mapping, Sequence

from services.chat.domain import PLACEHOLDER, DataClass, MaskedText, Span
from services.chat.masking.numbers import Found, numbers_in
from services.chat.masking.shadow import shadow_of
from services.chat.masking.tagger import Tagger
from services.chat.masking.words import words_in

# Shorter ones may stand for anything; and a bound, so that a hostile text costs no more than its length.
_SAID_AGAIN_CHARS_MIN, _SAID_AGAIN_MAX = 4, 100


class Masker:
    """Masks the messages of a bank's customers.

    Args:
        regions: whose telephone numbers are known without a country code, ISO 3166 letters.
        public_numbers: the bank's own telephone numbers; they are nobody's personal data.
        tagger: of names and addresses; None takes the one that ships.
    """

    def __init__(
        self,
        regions: Sequence[str] = ("US", "GB", "CN", "HK"),
        public_numbers: Sequence[str] = (),
        tagger: Tagger | None = None,
    ) -> None:
        self._regions = tuple(regions)
        self._tagger = tagger if tagger is not None else Tagger.shipped()
        self._public = frozenset(_key(number) for number in public_numbers)

    def spans(self, text: str) -> list[Span]:
        """Where personal data stands, in the order of the text; no two overlap."""
        shadow = shadow_of(text)
        found = [*numbers_in(shadow.text, self._regions, self._public), *words_in(shadow.text)]
        found += self._tagger.find(shadow.text)
        # A placeholder that the customer has typed himself must not be taken for one of ours.
        found += [
            Found(each.start(), each.end(), DataClass.CODE, -1) for each in PLACEHOLDER.finditer(shadow.text)
        ]
        found += _said_again(shadow.text, found)
        found.sort(key=lambda each: (each.rank, each.start - each.end, each.start))
        taken = bytearray(len(shadow.text))
        kept = []
        for each in found:
            if not any(taken[each.start : each.end]):
                taken[each.start : each.end] = b"\x01" * (each.end - each.start)
                kept.append(each)
        kept.sort(key=lambda each: each.start)
        return [each.over(shadow.starts, shadow.ends) for each in kept]

    def mask(self, text: str, known: Mapping[str, str] | None = None) -> MaskedText:
        """The text with a placeholder for each span; the same value has the same placeholder.

        Args:
            known: placeholders of this conversation so far, and what they stand for.
        """
        spans = self.spans(text)
        values = dict(known or {})
        numbers, placeholders = dict.fromkeys(DataClass, 0), dict[tuple[str, str], str]()
        for name, value in values.items():
            kind, _, number = name[1:-1].rpartition("_")
            placeholders[kind, _key(value)] = name
            # Beyond the highest: of a conversation that has lost its first turns some are missing.
            numbers[DataClass(kind)] = max(numbers[DataClass(kind)], int(number))
        parts, at = [], 0
        for span in spans:
            value = text[span.start : span.end]
            key = (span.data_class.value, _key(value))
            if key not in placeholders:
                numbers[span.data_class] += 1
                placeholders[key] = f"[{span.data_class}_{numbers[span.data_class]}]"
                values[placeholders[key]] = value
            parts += [text[at : span.start], placeholders[key]]
            at = span.end
        return MaskedText("".join([*parts, text[at:]]), spans, values)


def _said_again(text: str, found: Sequence[Found]) -> list[Found]:
    """Where a secret or an account's number stands once more, without the word that tells what it is."""
    again = []
    for each in found:
        said = text[each.start : each.end]
        if each.data_class in (DataClass.CODE, DataClass.ACCOUNT) and len(said) >= _SAID_AGAIN_CHARS_MIN:
            for place in re.finditer(rf"(?<!\w){re.escape(said)}(?!\w)", text):
                again.append(Found(place.start(), place.end(), each.data_class, each.rank + 1))
                if len(again) >= _SAID_AGAIN_MAX:
                    return again
    return again


def unmask(text: str, values: Mapping[str, str]) -> str:
    """The text with what each placeholder stands for; one that is not known stays as it is."""
    return PLACEHOLDER.sub(lambda found: values.get(found[0], found[0]), text)


def _key(value: str) -> str:
    """What makes two ways to write a value the same: digits alone, or letters whatever their case."""
    plain = shadow_of(value).text
    digits = "".join(letter for letter in plain if letter.isdigit())
    letters = any(letter.isalpha() for letter in plain)
    return " ".join(plain.lower().split()) if letters or not digits else digits
