"""Matrices as small integers in blocks, the layout of ONNX Runtime's `MatMulNBits`."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
Bits = Literal[4, 8]
# What of a block's range is kept with 4 bits: the largest value may be cut where the others gain more.
_KEPT = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True, slots=True)
class Blocks:
    """value = (quantum - zero) * scale, each block of 32 inputs by its own scale and zero.

    quanta: (outputs, inputs / 32, 32) uint8. scale: (outputs, inputs / 32) float32. zero: the same, uint8.
    bits: of a quantum and of a zero, whatever they are held in.
    offset: as `scale`, added to each value of a block; None is 0. The operator knows none: a product adds
    the inputs' sums by block times these.
    """

    quanta: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    bits: Bits = 8
    offset: NDArray[np.float32] | None = None

    def dense(self) -> NDArray[np.float32]:
        """(outputs, inputs) float32: what a product with these blocks computes with."""
        centred = self.quanta.astype(np.float32) - self.zero[..., None]
        values = centred * self.scale[..., None]
        if self.offset is not None:
            values += self.offset[..., None]
        return np.asarray(values, np.float32).reshape(len(self.quanta), -1)

    def stored_quanta(self) -> NDArray[np.uint8]:
        """(outputs, inputs / 32, 4 * bits) uint8, as the operator wants them."""
        return self.quanta if self.bits == 8 else nibbles(self.quanta)

    def stored_zero(self) -> NDArray[np.uint8]:
        """(outputs, bytes) uint8, each row padded to whole bytes."""
        if self.bits == 8:
            return self.zero
        odd = self.zero.shape[1] % 2
        return nibbles(np.pad(self.zero, ((0, 0), (0, odd))))


def nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n / 2) uint8: two values of 4 bits a byte, the first one low."""
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), np.uint8)


def to_int8(matrix: NDArray[np.float32]) -> Blocks:
    """The nearest blocks, zero always exact.

    Asymmetric, so that the even steps of a 4-bit block with a minimum stay even.

    Raises:
        ValueError: the inputs are not a multiple of 32.
    """
    return _rounded(_blocks(matrix), 8, 1.0)


def to_int4(matrix: NDArray[np.float32]) -> Blocks:
    """Blocks of 4 bits, zero always exact; each block's range is cut where that makes its squares smaller.

    Source: choosing the range by the squared error, Choukroun et al. 2019.

    Raises:
        ValueError: the inputs are not a multiple of 32.
    """
    blocks = _blocks(matrix)
    best = _rounded(blocks, 4, _KEPT[0])
    quanta, scale, zero = best.quanta, best.scale, best.zero
    least = _squares(best, blocks)
    for kept in _KEPT[1:]:
        other = _rounded(blocks, 4, kept)
        squares = _squares(other, blocks)
        better = squares < least
        quanta[better], scale[better], zero[better] = (
            other.quanta[better],
            other.scale[better],
            other.zero[better],
        )
        least = np.minimum(least, squares)
    return Blocks(quanta, scale, zero, 4)


def to_int4_offset(matrix: NDArray[np.float32]) -> Blocks:
    """Blocks of 4 bits from their least value to their largest, which are exact; zero need not be.

    Blocks that were of 4 bits with a minimum before (GGUF's Q4_1) stay what they are.

    Raises:
        ValueError: the inputs are not a multiple of 32.
    """
    blocks = _blocks(matrix)
    low = blocks.min(-1)
    scale = (blocks.max(-1) - low) / 15
    scale[scale == 0] = 1e-8  # a block of one value
    quanta = np.clip(np.rint((blocks - low[..., None]) / scale[..., None]), 0, 15).astype(np.uint8)
    # Quanta around 8: it is what the operator takes where no zero is given.
    zero = np.full(scale.shape, 8, np.uint8)
    return Blocks(quanta, scale.astype(np.float32), zero, 4, (low + 8 * scale).astype(np.float32))


def _blocks(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs, inputs = matrix.shape
    if inputs % BLOCK:
        raise ValueError(f"{inputs} inputs are no multiple of {BLOCK}")
    return matrix.reshape(outputs, inputs // BLOCK, BLOCK)


def _rounded(blocks: NDArray[np.float32], bits: Bits, kept: float) -> Blocks:
    most = 2**bits - 1
    low, high = np.minimum(blocks.min(-1), 0) * kept, np.maximum(blocks.max(-1), 0) * kept
    scale = (high - low) / most
    scale[scale == 0] = 1e-8  # a block of zeros
    zero = np.clip(np.rint(-low / scale), 0, most)
    quanta = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, most)
    return Blocks(quanta.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8), bits)


def _squares(made: Blocks, blocks: NDArray[np.float32]) -> NDArray[Any]:
    """(outputs, inputs / 32) float32: squared error of each block."""
    return np.asarray(((made.dense().reshape(blocks.shape) - blocks) ** 2).sum(-1))
