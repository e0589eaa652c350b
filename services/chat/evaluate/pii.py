"""Recall and precision of masking, class by class.

Recall: of the spans that are there, those of which every letter and digit was masked, under whatever class:
what shows is what counts. Precision: of the spans that were masked, those that touch personal data of any
kind.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.chat.domain import DataClass, Span
from services.chat.evaluate.intervals import Share
from services.chat.masking import Masker
from weir.errors import BadInput

# The classes of Presidio's synthetic set that have one here. What else it marks (places, organisations,
# dates, ages) identifies no customer by itself; a mask over it is not held against the masker.
_PRESIDIO = {
    "PERSON": DataClass.NAME,
    "STREET_ADDRESS": DataClass.ADDRESS,
    "CREDIT_CARD": DataClass.CARD,
    "PHONE_NUMBER": DataClass.PHONE,
    "EMAIL_ADDRESS": DataClass.EMAIL,
    "US_SSN": DataClass.NATIONAL_ID,
    "IBAN_CODE": DataClass.IBAN,
}
_NEUTRAL = frozenset(
    {"GPE", "ORGANIZATION", "ZIP_CODE", "TITLE", "DOMAIN_NAME", "IP_ADDRESS", "NRP", "AGE", "DATE_TIME"}
)
_MARK = re.compile(r"«([A-Z_]+):(.*?)»", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A text, what has to be masked in it, and what may be."""

    text: str
    spans: Sequence[Span]
    neutral: Sequence[tuple[int, int]] = ()


@dataclass(slots=True)
class Figures:
    """What a set came to, by class."""

    found: Counter[DataClass] = field(default_factory=Counter)
    there: Counter[DataClass] = field(default_factory=Counter)
    right: Counter[DataClass] = field(default_factory=Counter)
    masked: Counter[DataClass] = field(default_factory=Counter)
    # Texts without personal data that came out as they went in.
    clean: int = 0
    untouched: int = 0

    def recall(self, data_class: DataClass | None = None) -> Share:
        """Of one class, or of all."""
        return _share(self.found, self.there, data_class)

    def precision(self, data_class: DataClass | None = None) -> Share:
        """Of one class, or of all."""
        return _share(self.right, self.masked, data_class)

    @property
    def left_alone(self) -> Share:
        """Texts without personal data in which nothing was masked."""
        return Share(self.untouched, self.clean)


def _share(hits: Counter[DataClass], count: Counter[DataClass], data_class: DataClass | None) -> Share:
    if data_class is not None:
        return Share(hits[data_class], count[data_class])
    return Share(hits.total(), count.total())


def measure(masker: Masker, examples: Iterable[Example]) -> Figures:
    """Mask every text and compare."""
    figures = Figures()
    for example in examples:
        made = masker.spans(example.text)
        hidden = _places((span.start, span.end) for span in made)
        personal = _places((span.start, span.end) for span in example.spans)
        allowed = personal | _places(example.neutral)
        for span in example.spans:
            figures.there[span.data_class] += 1
            # Spaces and punctuation at an end are nobody's.
            shown = [
                at for at in range(span.start, span.end) if at not in hidden and example.text[at].isalnum()
            ]
            figures.found[span.data_class] += not shown
        for span in made:
            figures.masked[span.data_class] += 1
            figures.right[span.data_class] += not allowed.isdisjoint(range(span.start, span.end))
        if not example.spans:
            figures.clean += 1
            figures.untouched += all(not allowed.isdisjoint(range(span.start, span.end)) for span in made)
    return figures


def _places(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


def read_vectors(path: Path) -> tuple[list[Example], list[str]]:
    """Marked texts, those in which the masker is known to err too, and the bank's numbers that are nobody's.

    A text is marked as in "my card «CARD:4111111111111111»"; the file is JSON with `texts`, `missed` and
    `public_numbers`.

    Raises:
        BadInput: not such a file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        marked = [str(text) for text in (*rows["texts"], *rows["missed"])]
        return [_unmarked(text) for text in marked], [str(number) for number in rows["public_numbers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            "malformed", f"{path.name} is not JSON with texts, missed and public_numbers."
        ) from error


def _unmarked(marked: str) -> Example:
    text, spans, at = "", list[Span](), 0
    for mark in _MARK.finditer(marked):
        text += marked[at : mark.start()]
        spans.append(Span(len(text), len(text) + len(mark[2]), DataClass(mark[1])))
        text, at = text + mark[2], mark.end()
    return Example(text + marked[at:], spans)


def read_presidio(path: Path, *, templates: range | None = None) -> list[Example]:
    """Presidio's synthetic sentences; with `templates` only those whose template's number modulo 10 is in it.

    Raises:
        BadInput: a line is not of this set.
    """
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            spans = [(int(start), int(end), str(kind)) for start, end, kind in row["spans"]]
            template, text = int(row["template_id"]), str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                "malformed", f"{path.name} line {number} is not text, spans and template_id."
            ) from error
        if templates is None or template % 10 in templates:
            wanted = [Span(start, end, _PRESIDIO[kind]) for start, end, kind in spans if kind in _PRESIDIO]
            neutral = [(start, end) for start, end, kind in spans if kind in _NEUTRAL]
            examples.append(Example(text, wanted, neutral))
    return examples
