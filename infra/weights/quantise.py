"""Matrices as 8-bit integers in blocks, the layout of ONNX Runtime's `MatMulNBits`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Blocks:
    """value = (quantum - zero) * scale, each block of 32 inputs by its own scale and zero.

    quanta: (outputs, inputs / 32, 32) uint8. scale: (outputs, inputs / 32) float32. zero: the same, uint8.
    """

    quanta: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]

    def dense(self) -> NDArray[np.float32]:
        """(outputs, inputs) float32: what a product with these blocks computes with."""
        centred = self.quanta.astype(np.float32) - self.zero[..., None]
        return np.asarray(centred * self.scale[..., None], np.float32).reshape(len(self.quanta), -1)


def to_int8(matrix: NDArray[np.float32]) -> Blocks:
    """The nearest blocks, zero always exact.

    Asymmetric, so that the even steps of a 4-bit block with a minimum stay even.

    Raises:
        ValueError: the inputs are not a multiple of 32.
    """
    outputs, inputs = matrix.shape
    if inputs % BLOCK:
        raise ValueError(f"{inputs} inputs are no multiple of {BLOCK}")
    blocks = matrix.reshape(outputs, inputs // BLOCK, BLOCK)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scale = (high - low) / 255
    scale[scale == 0] = 1e-8  # a block of zeros
    zero = np.clip(np.rint(-low / scale), 0, 255)
    quanta = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, 255)
    return Blocks(quanta.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8))
