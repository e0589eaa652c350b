"""Nearness in meaning: exact cosine over the passages' vectors."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.chat.domain import Encoder, Passage

_ROWS = 32


class VectorIndex(Protocol):
    """Finds passages by their vectors. A vector database takes the matrix's place by this."""

    async def nearest(self, vector: NDArray[np.float32], *, count: int, now_ms: int) -> Mapping[str, float]:
        """Cosines of the nearest passages that are valid now, by passage id."""


class ExactVectors:
    """Every passage of one language compared: for tens of thousands a matrix product of milliseconds."""

    def __init__(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Passages and their vectors: (n, d) float32, each of length 1."""
        if len(passages) != len(vectors):
            raise ValueError("a vector for each passage is needed")
        self._passages, self._vectors = passages, vectors

    async def nearest(self, vector: NDArray[np.float32], *, count: int, now_ms: int) -> dict[str, float]:
        """Cosines of the nearest valid passages, nearest first; `vector` is (d,) float32 of length 1."""
        cosines = self._vectors @ vector
        found: dict[str, float] = {}
        for row in np.argsort(-cosines, kind="stable"):
            if len(found) == count:
                break
            if self._passages[row].is_valid(now_ms):
                found[self._passages[row].id] = float(cosines[row])
        return found


def embedded_text(passage: Passage) -> str:
    """What of a passage is turned into a vector."""
    return f"{passage.title}\n{passage.text}"


async def encode(encoder: Encoder, passages: Sequence[Passage]) -> NDArray[np.float32]:
    """(n, d) float32, a row a passage; asked for in portions, so that no request grows with the folder."""
    return np.concatenate(
        [
            await encoder([embedded_text(passage) for passage in passages[at : at + _ROWS]])
            for at in range(0, len(passages), _ROWS)
        ]
    ).astype(np.float32)
