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
from weir.streams.ports import Committed, Place
from weir.streams.transactions import GroupOffsets, ProducerLane

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


def no_fencing() -> None:
    """No generation with the offsets, other transactional ids at each start, offsets read while a transaction
    is open on them: a zombie commits what it had, which another has decided meanwhile.
    """

    async def send_offsets(self: ProducerLane, offsets: Mapping[Place, int]) -> None:
        if offsets:
            await self._producer.send_offsets(
                GroupMember(self._group, -1, "", None),
                {place: (offset, self._owner) for place, offset in offsets.items()},
            )

    async def commit(self: ProducerLane) -> None:
        await asyncio.sleep(_GAP_S)
        await self._producer.commit()

    async def as_they_are(self: GroupOffsets, places: Sequence[Place]) -> Mapping[Place, Committed]:
        admin = await self._admin()
        try:
            found = await admin.list_consumer_group_offsets(self._group)
        finally:
            await admin.close()
        by_place = {(tp.topic, tp.partition): each for tp, each in found.items()}
        return {
            place: Committed(by_place[place].offset, by_place[place].metadata)
            if place in by_place
            else Committed(None, "")
            for place in places
        }

    async def nobody(self: GroupOffsets, owner: str) -> None:
        return

    def own_ids(name: str) -> list[str]:
        return [f"{name}.{os.getpid()}.{time.monotonic_ns()}.{lane}" for lane in range(2)]

    ProducerLane.send_offsets = send_offsets  # type: ignore[method-assign]
    ProducerLane.commit = commit  # type: ignore[method-assign]
    GroupOffsets.__call__ = as_they_are  # type: ignore[method-assign]
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
