"""Shares with an interval."""

from dataclasses import dataclass
from math import sqrt

_Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `count`, and between what the true share lies in 95 of 100 cases.

    Source of the interval: Wilson 1927.
    """

    hits: int
    count: int

    @property
    def value(self) -> float:
        """0 to 1; of nothing it is 0."""
        return self.hits / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high, 0 to 1."""
        if not self.count:
            return 0.0, 1.0
        n, share, z2 = self.count, self.value, _Z_95**2
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        low, high = self.interval
        return {
            "hits": self.hits,
            "count": self.count,
            "share": round(self.value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f}-{high:.3f}, n={self.count})"
