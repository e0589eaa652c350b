"""Noise that nobody can compute again: every bit comes from the operating system, unless a test gives a seed.

Two holes of floating point are closed here. A sum of floats depends on the order of its rows, so it can move
by more than its sensitivity: what is summed lies on a lattice of 2^-20, on which sums of floats are exact.
And a float that was drawn as noise has gaps that show what it was added to: the noise lies on the lattice
too, so that what comes out has the same possible values whatever the data.

Sources: Mironov 2012, On significance of the least significant bits for differential privacy; Casacuberta et
al. 2022, Widespread underestimation of sensitivity in differentially private libraries.
"""

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LATTICE = 2.0**-20


def on_lattice(values: Floats) -> Floats:
    """Each value moved toward 0 to a multiple of 2^-20: it never grows, and sums below 2^32 are exact."""
    moved: Floats = np.trunc(values / LATTICE) * LATTICE
    return moved


@dataclass(slots=True)
class Noise:
    """A source of draws. With a seed the draws are known to whoever knows the seed: nothing is private."""

    seed: int | None = None
    _seeded: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._seeded = np.random.default_rng(self.seed)

    @property
    def is_private(self) -> bool:
        """Whether the draws cannot be computed again."""
        return self.seed is None

    def uniform(self, size: int) -> Floats:
        """(size,) float64 above 0 and below 1, in steps of 2^-53."""
        raw = os.urandom(8 * size) if self.is_private else self._seeded.bytes(8 * size)
        # The topmost draw would round to 1, whose place no order and no logarithm has.
        drawn: Floats = np.minimum(((np.frombuffer(raw, "<u8") >> 11) + 0.5) * 2.0**-53, 1 - 2.0**-53)
        return drawn

    def gaussian(self, scale: float, size: int) -> Floats:
        """(size,) float64 of standard deviation `scale`, on the lattice (Box and Muller 1958).

        No draw lies beyond 8.6 scales, where a Gaussian has 1e-17 of its mass: no delta here is so small.
        """
        radius = np.sqrt(-2 * np.log(self.uniform(size)))
        drawn: Floats = np.rint(scale * radius * np.cos(2 * np.pi * self.uniform(size)) / LATTICE) * LATTICE
        return drawn
