"""`python -m tests.faults.broken HOW`: the risk worker, its delivery broken for the checker to find.

Each way is one that is easily taken: it works as long as nothing fails.
"""

import asyncio
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weir.kafka.protocol import GroupMember
from weir.streams import transactions
from weir.streams.exactly_once import ExactlyOnce
from weir.streams.ports import Place
from weir.streams.transactions import GroupOffsets, ProducerLane

# Between the two halves that should be one: so that a kill finds it open.
_GAP_S = 0.2


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


def no_fencing() -> None:
    """No generation with the offsets, another transactional id at each start: a zombie writes what it had."""

    async def send_offsets(self: ProducerLane, offsets: Mapping[Place, int]) -> None:
        if offsets:
            await self._producer.send_offsets(
                GroupMember(self._group, -1, "", None),
                {place: (offset, self._owner) for place, offset in offsets.items()},
            )

    async def nobody(self: GroupOffsets, owner: str) -> None:
        return

    def own_ids(name: str) -> list[str]:
        return [f"{name}.{os.getpid()}.{time.monotonic_ns()}.{lane}" for lane in range(2)]

    ProducerLane.send_offsets = send_offsets  # type: ignore[method-assign]
    GroupOffsets.take_over = GroupOffsets._fence = nobody  # type: ignore[method-assign]
    transactions.transactional_ids = own_ids


WAYS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (commit_before_send, offsets_outside, no_fencing)
}


def main(arguments: Sequence[str]) -> None:
    """Break the delivery, then become the worker."""
    WAYS[arguments[0]]()
    sys.argv = ["services.risk"]
    runpy.run_module("services.risk", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
