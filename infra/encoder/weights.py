"""A sentence encoder's parts, whatever file they came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from infra.weights.quantise import Blocks

# A matrix of floats, or one in blocks of 4 or 8 bits, which stays as it is.
Weight = NDArray[Any] | Blocks


@dataclass(frozen=True, slots=True)
class BertShape:
    """What is said of the layers."""

    layer_count: int
    head_count: int
    hidden: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of BERT's architecture; weights by the names of its published layers.

    tokenizer: tokenizer.json.
    asked, passage: what belongs before a question and before a passage.
    """

    shape: BertShape
    weights: Mapping[str, Weight]
    tokenizer: str
    asked: str = ""
    passage: str = ""
