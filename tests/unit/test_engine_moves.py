"""What the engine makes of moves that meet in one moment; the broker and the state are stand-ins."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from weir.streams.engine import Engine
from weir.streams.ports import Place

PLACE: Place = ("payments", 0)
DEADLINE_S = 5.0


class Nowhere:
    """A source without batches."""

    def __init__(self) -> None:
        self.handed_out: set[Place] = set()

    async def rewind(self, place: Place, offset: int) -> None: ...

    def hold(self, places: Sequence[Place]) -> None:
        self.handed_out -= set(places)

    def let_go(self, places: Sequence[Place]) -> None:
        self.handed_out |= set(places)


class Restores:
    """A state whose restoring ends well although it is cancelled, as aiokafka's `close` may let it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.dropped: list[Place] = []

    def has_side_inputs(self) -> bool:
        return False

    def release(self, epoch: int) -> None: ...

    async def restore(self, place: Place, committed: int | None) -> int:
        self.begun.set()
        try:
            await asyncio.sleep(DEADLINE_S)
        except asyncio.CancelledError:
            return 7
        raise AssertionError("it was never cancelled")

    def drop(self, place: Place) -> None:
        self.dropped.append(place)


class Delivers:
    """A delivery of nothing."""

    committed_epoch = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        return dict.fromkeys(places, 0)


async def test_a_partition_that_is_lost_in_the_moment_it_is_restored_is_not_ours() -> None:
    fatal: list[BaseException] = []
    source, processor = Nowhere(), Restores()
    stand_ins: Any = (source, processor, lambda failed, release: Delivers())
    engine = Engine(
        *stand_ins,
        rows_in_flight_max=10,
        group_rows_max=10,
        linger_s=0.0,
        drain_deadline_s=1.0,
        on_fatal=fatal.append,
    )
    async with asyncio.timeout(DEADLINE_S):
        await engine.start()
        await engine.assigned([PLACE])
        await processor.begun.wait()
        await engine.revoked([PLACE])
        await engine.shutdown()
    assert fatal == []
    assert engine.ready == engine.restoring == frozenset()
    assert processor.dropped == [PLACE]
    assert source.handed_out == set()
