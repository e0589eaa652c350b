"""What a message is about: a head on Triton over the encoder's vector and what the text is made of.

text ──encoder on Triton──▶ vector (384) ┐
     ──hashed n-grams─────▶ counts (4096)┴──head on Triton──▶ probability of each intent
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.chat.asked import asked_of
from services.chat.domain import Encoder
from services.chat.understanding.language import Script, script_of
from services.chat.understanding.ngrams import hashed
from weir.errors import IntegrityError, MissingPart

SHIPPED = Path(__file__).with_name("models")
NAME, VERSION, OUTPUT = "intent", "1", "probability"
_SCRIPTS = frozenset({Script.LATIN, Script.HAN})


class About(msgspec.Struct, frozen=True):
    """model.json beside the head: its columns, and under which probability a message is out of scope."""

    labels: list[str]
    threshold: float
    sha256: str
    card: dict[str, object] = {}

    @classmethod
    def read(cls, repository: Path = SHIPPED) -> Self:
        """Of the head in `repository`, whose bytes are checked.

        Raises:
            MissingPart: there is none. IntegrityError: another head than described.
        """
        folder = repository / NAME / VERSION
        try:
            about = msgspec.json.decode((folder / "model.json").read_bytes(), type=cls)
            sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        except OSError as error:
            raise MissingPart(f"{folder}: {error.strerror}. Train one with `weir train intent`.") from error
        except msgspec.DecodeError as error:
            raise IntegrityError(f"{folder / 'model.json'}: {error}. Train it again.") from error
        if sha256 != about.sha256:
            raise IntegrityError(f"{folder}: model.onnx is not the one that model.json describes.")
        return about


class Scorer(Protocol):
    """`weir.inference.client.ModelClient`."""

    async def score(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The head's outputs for each row."""


class Intents:
    """Asks for intents in English and Chinese; a text in another script, or in none, has none."""

    def __init__(self, encoder: Encoder, head: Scorer, about: About) -> None:
        self._encoder, self._head, self._about = encoder, head, about

    async def __call__(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """A label and its calibrated probability for each text; the label is empty out of scope.

        Raises:
            ModelError: the encoder or the head gave no answer.
        """
        found: list[tuple[str, float]] = [("", 0.0)] * len(texts)
        rows = [row for row, text in enumerate(texts) if script_of(text) in _SCRIPTS]
        if not rows:
            return found
        asked = [asked_of(texts[row]) for row in rows]
        vectors = await self._encoder(asked)
        answer = await self._head.score(np.hstack([vectors, hashed(asked)]).astype(np.float32))
        for row, probability in zip(rows, answer[OUTPUT], strict=True):
            best = int(np.argmax(probability))
            confidence = float(probability[best])
            label = self._about.labels[best] if confidence >= self._about.threshold else ""
            found[row] = (label, confidence)
        return found
