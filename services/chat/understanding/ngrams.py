"""What a text is made of, as a row of hashed counts: words, pairs of words, and pieces of words.

Source of the hashing trick: Weinberger et al. 2009. The hash is CRC-32, which any language has.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DIMENSION = 4096
_WORD = re.compile(r"[a-z0-9']+")
_WORDS_MAX, _PIECE = 200, (3, 4)


def hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """(n, 4096) float32, each row of length 1, or of zeros where a text has no Latin word."""
    rows = np.zeros((len(texts), DIMENSION), np.float32)
    for row, text in enumerate(texts):
        for gram in _grams(text):
            rows[row, zlib.crc32(gram.encode()) % DIMENSION] += 1
    rows = np.log1p(rows)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


def _grams(text: str) -> Iterator[str]:
    words = _WORD.findall(text.lower())[:_WORDS_MAX]
    yield from (f"w:{word}" for word in words)
    yield from (f"b:{first} {second}" for first, second in pairwise(words))
    for word in words:
        marked = f"<{word[:40]}>"
        for size in _PIECE:
            yield from (marked[at : at + size] for at in range(len(marked) - size + 1))
