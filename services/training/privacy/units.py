"""The choices of a private training, apart from the training: a command's help need not import it."""

from collections.abc import Sequence
from enum import StrEnum

PER_ACCOUNT = 20
# What a terminal lived through is told by the payments of every account that came there.
_OF_OTHERS = "terminal_"


class Unit(StrEnum):
    """Whose coming or going the model hides."""

    PAYMENT = "payment"
    ACCOUNT = "account"


class History(StrEnum):
    """Which features a private model may use."""

    OWN = "own"
    ALL = "all"

    def left_out(self, features: Sequence[str]) -> tuple[str, ...]:
        """The features that may not be used."""
        return tuple(name for name in features if self is History.OWN and name.startswith(_OF_OTHERS))
