"""How likely a passage answers the question: a logistic of what the search saw, fitted on judged questions.

`weir knowledge evaluate --fit` writes the weights; they lie beside this file in `relevance.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.chat.domain import Language

# What is seen by words, and what by meaning too. All are free of the size of the knowledge.
BY_WORDS = ("overlap", "strength", "gap", "title_overlap", "unknown", "words")
BY_BOTH = (*BY_WORDS, "cosine", "cosine_gap", "cosine_lift", "cosine_score")

# From this rank on a passage of a large knowledge is taken as beside the question.
_FAR = 10
# Of cosines; a few passages may lie close together by chance.
_SPREAD_MIN = 1e-3
_SHIPPED = Path(__file__).parent / "relevance.json"


class Logistic(msgspec.Struct, frozen=True):
    """Weights of one language and way of searching.

    threshold: the probability under which nothing is found.
    """

    bias: float
    weights: dict[str, float]
    threshold: float

    def probability(self, seen: Mapping[str, float]) -> float:
        """That the passage answers the question, 0 to 1."""
        total = self.bias + sum(weight * seen[name] for name, weight in self.weights.items())
        return float(1 / (1 + np.exp(-np.clip(total, -30, 30))))


class Relevance(msgspec.Struct, frozen=True):
    """The fitted logistics, by language, for words alone (`words`) and for each encoder by its name."""

    by_language: dict[Language, dict[str, Logistic]]

    def of(self, language: Language, encoder: str) -> tuple[str, Logistic]:
        """Which one to use, and its name: words alone where none was fitted for this encoder."""
        fitted = self.by_language[language]
        name = encoder if encoder in fitted else "words"
        return name, fitted[name]


@lru_cache(maxsize=1)
def shipped() -> Relevance:
    """The weights that come with the project."""
    return msgspec.json.decode(_SHIPPED.read_bytes(), type=Relevance)


def save(relevance: Relevance) -> None:
    """Put fitted weights in the place of those that came."""
    _SHIPPED.write_bytes(msgspec.json.format(msgspec.json.encode(relevance), indent=1) + b"\n")
    shipped.cache_clear()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question against the words of each passage.

    idf: (w,) float64, how rare each of the question's different words is.
    text, title: (n, w) bool, where it stands. known: (w,) bool, whether it stands anywhere.
    bm25: (n,) float32.
    """

    idf: NDArray[np.float64]
    text: NDArray[np.bool_]
    title: NDArray[np.bool_]
    known: NDArray[np.bool_]
    bm25: NDArray[np.float32]


def seen(
    asked: Asked, row: int, rivals: Sequence[int], cosines: Mapping[int, float] | None
) -> dict[str, float]:
    """The features of one passage.

    rivals: the rows that were found, this one among them. cosines: by row; None without vectors.
    """
    total = float(asked.idf.sum())
    best_other = max((float(asked.bm25[other]) for other in rivals if other != row), default=0.0)
    own = float(asked.bm25[row])
    made = {
        "overlap": float(asked.idf[asked.text[row] | asked.title[row]].sum()) / total if total else 0.0,
        # BM25 with k1 = 1.5 gives each word at most its idf times (k1 + 1).
        "strength": own / (2.5 * total) if total else 0.0,
        "gap": (own - best_other) / max(own, best_other) if max(own, best_other) > 0 else 0.0,
        "title_overlap": float(asked.idf[asked.title[row]].sum()) / total if total else 0.0,
        "unknown": float(asked.idf[~asked.known].sum()) / total if total else 1.0,
        "words": min(len(asked.idf), 12) / 12,
    }
    if cosines is not None:
        others = [cosines.get(other, 0.0) for other in rivals if other != row]
        made["cosine"] = cosines.get(row, 0.0)
        made["cosine_gap"] = cosines.get(row, 0.0) - max(others, default=0.0)
        # An encoder's cosines lie in a narrow band, another one for each question: against the far ones.
        far = np.array(sorted(cosines.values(), reverse=True)[_FAR:])
        lift = cosines.get(row, 0.0) - (float(far.mean()) if len(far) else 0.0)
        made["cosine_lift"] = lift
        # The same in standard deviations of the far ones, by tens.
        made["cosine_score"] = lift / max(float(far.std()), _SPREAD_MIN) / 10 if len(far) else 0.0
    return made
