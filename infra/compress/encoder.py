"""Smaller sentence encoders of one source: fewer bits, weights pruned, scripts left out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infra.compress.vocabulary import is_unigram, trimmed
from infra.encoder.weights import Encoder, Weight
from infra.weights.prune import pruned
from infra.weights.quantise import BLOCK, Blocks, to_int4, to_int8

Floats = NDArray[np.float32]
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Variant:
    """bits: of the layers' matrices and the words' vectors. pruned: share of each row of a layer's matrices.

    scripts: whether only the words of Latin and Han script stay.
    """

    name: str
    bits: Literal[4, 8, 32]
    pruned: float = 0.0
    scripts: bool = False


VARIANTS = (
    Variant("float32", 32),
    Variant("int8", 8),
    Variant("int4", 4),
    Variant("pruned-30", 32, 0.3),
    Variant("pruned-50", 32, 0.5),
    Variant("pruned-30-int4", 4, 0.3),
    Variant("pruned-50-int4", 4, 0.5),
    Variant("latin-han-int8", 8, scripts=True),
    Variant("latin-han-int4", 4, scripts=True),
)
FLOAT, SERVED = "float32", "int4"
# As `weir.inference.encoder` cuts.
TOKENS_MAX = 128


def variants_of(encoder: Encoder) -> tuple[Variant, ...]:
    """Those that it allows: scripts go with a unigram tokenizer only, blocks with inputs by 32."""
    allowed = VARIANTS if is_unigram(encoder) else tuple(each for each in VARIANTS if not each.scripts)
    if any(_inputs(each) % BLOCK for name, each in encoder.weights.items() if _is_matrix(name)):
        return tuple(each for each in allowed if each.bits == 32)
    return allowed


def made(encoder: Encoder, variant: Variant) -> Encoder:
    """The encoder as a variant has it. Blocks of 4 bits that stay 4 bits are not rounded again."""
    if variant.scripts:
        encoder = trimmed(encoder)
    weights: dict[str, Weight] = {
        name: _stored(name, found, variant) if _is_matrix(name) else _floats(found)
        for name, found in encoder.weights.items()
    }
    return replace(encoder, weights=weights)


def tokens_max(encoder: Encoder) -> int:
    """Of a text: as the chat worker reads, or as many as the encoder has positions."""
    positions = encoder.weights.get("embeddings.position_embeddings.weight")
    return TOKENS_MAX if positions is None else min(TOKENS_MAX, len(_floats(positions)))


def float_bytes(encoder: Encoder) -> int:
    """Of all weights as float32."""
    return sum(4 * _count(each) for each in encoder.weights.values())


def variant_bytes(encoder: Encoder, variant: Variant) -> int:
    """About what a variant takes, as if no script were left out; of its matrices in blocks and the rest."""
    each_byte = {32: 4.0, 8: 1 + 5 / BLOCK, 4: 0.5 + 4 / BLOCK}[variant.bits]
    return int(
        sum(_count(each) * (each_byte if _is_matrix(name) else 4) for name, each in encoder.weights.items())
    )


def _is_matrix(name: str) -> bool:
    if name == _WORDS:
        return True
    return name.startswith("encoder.layer.") and name.endswith(".weight") and "LayerNorm" not in name


def _stored(name: str, found: Weight, variant: Variant) -> Weight:
    share = 0.0 if name == _WORDS else variant.pruned
    if isinstance(found, Blocks) and variant.bits == found.bits == 4:
        return _pruned_blocks(found, share)
    dense = pruned(_floats(found), share)
    if variant.bits == 32:
        return dense
    return to_int8(dense) if variant.bits == 8 else to_int4(dense)


def _pruned_blocks(found: Blocks, share: float) -> Blocks:
    """With the least weights at their block's zero, the others untouched."""
    if not share:
        return found
    gone = (pruned(found.dense(), share) == 0).reshape(found.quanta.shape)
    zero = np.broadcast_to(found.zero[..., None], found.quanta.shape)
    return replace(found, quanta=np.where(gone, zero, found.quanta).astype(np.uint8))


def _floats(found: Weight) -> Floats:
    return found.dense() if isinstance(found, Blocks) else np.asarray(found, np.float32)


def _inputs(found: Weight) -> int:
    return found.quanta.shape[1] * BLOCK if isinstance(found, Blocks) else int(found.shape[-1])


def _count(found: Weight) -> int:
    return found.quanta.size if isinstance(found, Blocks) else int(np.prod(found.shape))


def zeros_of(weights: Mapping[str, Weight]) -> float:
    """Share of the layers' weights that are 0."""
    layers = [_floats(each) for name, each in weights.items() if _is_matrix(name) and name != _WORDS]
    return float(sum((each == 0).sum() for each in layers) / sum(each.size for each in layers))
