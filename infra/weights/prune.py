"""Matrices with their least weights set to 0, row by row."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def pruned(matrix: Floats, share: float, use: Floats | None = None) -> Floats:
    """(outputs, inputs) float32: of each row `share` of the weights are 0, the rest as they were.

    Those that go are least in magnitude, or in magnitude times `use`. A row keeps its share, so that no
    output dies before the others.

    Args:
        share: 0 to 1. use: (inputs,) float32, the root mean square of each input where the matrix serves.
    Raises:
        ValueError: `share` is outside of 0 to 1.
    Sources: Han et al. 2015 (magnitude); Sun et al. 2023 (times the input's norm, each row by itself).
    """
    if not 0 <= share < 1:
        raise ValueError(f"a share of {share} cannot go")
    count = round(share * matrix.shape[1])
    if not count:
        return matrix
    weight = np.abs(matrix) if use is None else np.abs(matrix) * use
    gone = np.argpartition(weight, count - 1, axis=1)[:, :count]
    made = matrix.copy()
    np.put_along_axis(made, gone, 0.0, axis=1)
    return made
