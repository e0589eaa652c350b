"""Names and addresses by a small trained model: a logistic regression over hashed features of each word.

What rules cannot know (a name in the middle of a sentence, an address of any country) it tells by a word's
shape, its beginning and end, and its neighbours. It knows Latin script only. The weights in `tagger.npz` are
trained by `train.py` on presidio-research's synthetic sentences (MIT) and BANKING77 (CC BY 4.0).
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from services.chat.domain import DataClass
from services.chat.masking.numbers import Found
from weir.errors import IntegrityError

WEIGHTS = Path(__file__).with_name("tagger.npz")
# Of the classes in this order; the first is "nothing".
CLASSES = (None, DataClass.NAME, DataClass.ADDRESS)
BUCKETS = 1 << 14

WORD = re.compile(r"[A-Za-zÀ-ɏ’']+|\d+|[^\sA-Za-zÀ-ɏ\d]|\n")
_CASED = re.compile(r"[A-ZÀ-Þ]")
# Written like names, and nobody's.
_NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        """Apple Google Samsung Pay Visa Mastercard American Express Swift Sepa Direct Debit Euro Euros Pounds
        Dollars Russian Ruble I Hi Hello Dear Please Thanks My The What Why How When Where Can Is Are Do
        Does January February March July August September October November December Monday Tuesday Wednesday
        Thursday Friday Saturday Sunday Mon Tue Wed Thu Fri Sat Sun""",
    )
)


def features(words: Sequence[str], at: int) -> list[int]:
    """(about 30,) buckets of the word at `at`."""
    names = ["bias"]
    for offset in (-3, -2, -1, 0, 1, 2, 3):
        place = at + offset
        word = words[place] if 0 <= place < len(words) else "<>"
        lower, shape = word.lower(), _shape(word)
        names += [f"{offset}s{shape}"]
        if abs(offset) <= 2:
            names.append(f"{offset}w{lower}")
        if offset == 0:
            names += [f"p{lower[:3]}", f"e{lower[-3:]}", f"e{lower[-2:]}", f"n{min(len(word), 12)}"]
    before, here = (words[at - 1] if at else "<>"), words[at]
    after = words[at + 1] if at + 1 < len(words) else "<>"
    names += [
        f"b{before.lower()}|{_shape(here)}",
        f"a{_shape(here)}|{after.lower()}",
        f"t{_shape(before)}|{_shape(here)}|{_shape(after)}",
        f"l{_line_shape(words, at)}",
    ]
    return [zlib.crc32(name.encode("utf-8", "surrogatepass")) % BUCKETS for name in names]


def _shape(word: str) -> str:
    if word.isdigit():
        return f"9{min(len(word), 6)}"
    if not word[0].isalpha():
        return word
    if not _CASED.search(word):
        return "x"
    return "X" if len(word) == 1 else "XX" if word.isupper() else "Xx"


def _line_shape(words: Sequence[str], at: int) -> str:
    """How many of the words around begin with a capital, and whether there is a number."""
    near = words[max(0, at - 5) : at + 6]
    return f"{sum(word[0].isupper() for word in near)}{int(any(word.isdigit() for word in near))}"


class Tagger:
    """Finds names and addresses.

    Args:
        weights: (buckets, 3) float32. threshold: of the probability of a class, for each word.
    """

    def __init__(self, weights: NDArray[np.float32], threshold: float = 0.5) -> None:
        self._weights, self._threshold = weights, threshold

    @staticmethod
    @cache
    def shipped() -> "Tagger":
        """The one that comes with the package.

        Raises:
            IntegrityError: its file is damaged.
        """
        return Tagger.load(WEIGHTS)

    @staticmethod
    def load(path: Path) -> "Tagger":
        """From a file that `save` wrote.

        Raises:
            IntegrityError: it is damaged, or of another shape.
        """
        try:
            with np.load(path) as file:
                weights = file["weights"].astype(np.float32) * file["scale"].astype(np.float32)
                threshold = float(file["threshold"])
        except (OSError, ValueError, KeyError, EOFError, zlib.error, BadZipFile) as error:
            raise IntegrityError(f"{path.name}: no weights of a tagger. Get the file again.") from error
        if weights.shape != (BUCKETS, len(CLASSES)):
            raise IntegrityError(f"{path.name}: weights of another tagger. Get the file again.")
        return Tagger(weights, threshold)

    @staticmethod
    def save(path: Path, weights: NDArray[np.float32], threshold: float) -> None:
        """Write weights as 8-bit integers: four decimals decide nothing here."""
        scale = np.abs(weights).max() / 127
        np.savez_compressed(
            path,
            weights=np.rint(weights / scale).astype(np.int8),
            scale=np.float32(scale),
            threshold=np.float32(threshold),
        )

    def probabilities(self, words: Sequence[str], places: Sequence[int]) -> NDArray[np.float32]:
        """(places, 3) float32, of the words at these places."""
        rows = [self._weights[features(words, at)].sum(0) for at in places]
        scores = np.array(rows, np.float32).reshape(-1, len(CLASSES))
        chance = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(chance / chance.sum(1, keepdims=True), np.float32)

    def find(self, text: str) -> Iterator[Found]:
        """Names and addresses in a shadow's text."""
        places = list(WORD.finditer(text))
        words = [place[0] for place in places]
        # Only these can be part of a name; a message of a million emoji costs nothing here.
        told = [at for at, word in enumerate(words) if word[0].isalnum()]
        kinds = [0] * len(words)
        for at, row in zip(told, self.probabilities(words, told), strict=True):
            if row[0] <= 1 - self._threshold:
                kinds[at] = 1 + int(row[1:].argmax())
        at = 0
        while at < len(kinds):
            if not kinds[at]:
                at += 1
                continue
            end = at + 1
            while (after := _next(kinds, words, end)) is not None and kinds[after] == kinds[at]:
                end = after + 1
            data_class = CLASSES[kinds[at]]
            # A number alone, or words without one that is written as names are, is too little to go by.
            if data_class is not None and any(map(_may_be_a_name, words[at:end])):
                yield Found(places[at].start(), places[end - 1].end(), data_class, 10)
            at = end


def _may_be_a_name(word: str) -> bool:
    return _shape(word) in ("Xx", "X") and word not in _NO_NAMES


def _next(kinds: Sequence[int], words: Sequence[str], at: int) -> int | None:
    """The next word of any class, if nothing but punctuation or one short word is between."""
    for place in range(at, min(at + 3, len(kinds))):
        if kinds[place]:
            return place
        if words[place][0].isalnum() and place > at:
            return None
    return None
