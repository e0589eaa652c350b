"""`python -m tests.faults.broken HOW`: the risk worker, its delivery broken for the checker to find.

Each way is one that is easily taken: it works as long as nothing fails.
"""

import asyncio
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from weir.streams.exactly_once import ExactlyOnce

# Between the two halves that should be one: so that a kill finds it open.
_GAP_S = 0.4


def commit_before_send() -> None:
    """The offsets commit first, then the decisions: what is killed between them is lost."""

    async def fill(self: ExactlyOnce, transaction: Any) -> None:
        lane = transaction.lane
        await lane.send_offsets(transaction.next_offsets())
        await lane.commit()
        await asyncio.sleep(_GAP_S)
        await lane.produce([output for work in transaction.works for output in work.outputs])

    ExactlyOnce._fill = fill  # type: ignore[method-assign]


def offsets_outside() -> None:
    """The offsets commit after the decisions, apart: what is killed between them comes twice."""

    async def fill(self: ExactlyOnce, transaction: Any) -> None:
        lane = transaction.lane
        await lane.produce([output for work in transaction.works for output in work.outputs])
        await lane.commit()
        await asyncio.sleep(_GAP_S)
        await lane.send_offsets(transaction.next_offsets())

    ExactlyOnce._fill = fill  # type: ignore[method-assign]


WAYS: dict[str, Callable[[], None]] = {each.__name__: each for each in (commit_before_send, offsets_outside)}


def main(arguments: Sequence[str]) -> None:
    """Break the delivery, then become the worker."""
    WAYS[arguments[0]]()
    sys.argv = ["services.risk"]
    runpy.run_module("services.risk", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
