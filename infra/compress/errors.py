"""Why a model is not compressed."""

from collections.abc import Sequence

from weir.errors import WeirError


class CannotCompress(WeirError):
    """The request names what is not there, or the model does not allow it; nothing was written."""


def require_known(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Nothing, where all `wanted` are among `names`.

    Raises:
        CannotCompress: one is not.
    """
    for each in wanted:
        if each not in names:
            raise CannotCompress(f"There is no variant {each!r}. There are: {', '.join(map(repr, names))}.")
