"""Accounts of partitions that others decide on, kept up by their changelog, so that taking one over is short.

    told ──snapshot, then changelog──▶ warm ──the partition becomes ours──▶ read to the end: restored
                                        │ a damaged row, no room, another log
                                        ▼
                             dropped: it is restored as if there had been no standby

Only what has committed enters. A partition on its way here is neither a standby nor ours for one round of the
group: what is warm stays until a settled round does not name it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

from services.risk.changelog import BegunAnew, Replica
from weir.config import KafkaSettings
from weir.errors import IntegrityError, WeirError
from weir.obs.log import get_logger
from weir.obs.stream_metrics import StreamMetrics
from weir.state.table import StateFull
from weir.streams.standby import NotFollowed, StandbyFollower

log = get_logger("weir.risk.standby")

_CHECK_S = 1.0
# Between two askings for a round; each time twice as long.
_ASK_AGAIN_S, _ASK_AGAIN_MAX_S = 1.0, 60.0

Begin = Callable[[int, int], tuple[Replica, int]]


class Standbys:
    """Keeps the partitions warm that the group has told this worker to; `run` it beside the engine.

    Args:
        begin: for a partition, and the offset where its changelog begins: a replica to begin with, a
            snapshot's or an empty one, and where the changelog goes on from there; called in a thread.
        lag_max: records of the changelog behind which a standby is near.
        metrics: told how far behind each standby is.
        on_failure: called with an error that ends the following.
        on_near: called when those that are told are near, and a partition waits for that: the group may
            move it. Called again, at ever longer times, while it does not: what it knows of the last
            owner's position is a moment old.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        client_id: str,
        *,
        begin: Begin,
        lag_max: int,
        metrics: StreamMetrics,
        on_failure: Callable[[BaseException], None],
        on_near: Callable[[], Awaitable[None]],
    ) -> None:
        self._topic, self._begin, self._lag_max = topic, begin, lag_max
        self._metrics, self._on_near = metrics, on_near
        self._follower = StandbyFollower(kafka, topic, self._apply, client_id, on_failure, self._refused)
        self._warm: dict[int, Replica] = {}
        # Where the changelog of a partition began anew, as far as was seen.
        self._since: dict[int, int] = {}
        self._wanted: frozenset[int] = frozenset()
        self._awaited = False
        self._ask_at_s, self._ask_again_s = 0.0, _ASK_AGAIN_S
        self._changed = asyncio.Event()

    def tell(
        self,
        standby: Collection[int],
        active: Collection[int],
        *,
        settled: bool = True,
        awaited: bool = False,
    ) -> None:
        """What the group says: keep `standby` warm, and what is here of `active` until it is taken.

        Args:
            settled: no partition is on its way.
            awaited: one of `standby` moves here once it is near.
        """
        if not awaited:
            self._ask_at_s, self._ask_again_s = 0.0, _ASK_AGAIN_S
        self._awaited = awaited
        here = self._warm.keys()
        stays = here & set(active) if settled else here
        self._wanted = frozenset(standby) | stays
        for partition in here - self._wanted:
            self._drop(partition)
        self._changed.set()

    @property
    def positions(self) -> dict[int, int]:
        """Of each warm partition the input's offset that it stands for; any thread may ask."""
        return {
            partition: warm.mark.next_offset
            for partition, warm in list(self._warm.items())
            if warm.mark is not None
        }

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await self._connect()
            while True:
                await self._follow()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):
                        await self._changed.wait()
                await self._look()
        finally:
            await self._follower.stop()

    async def take(self, partition: int) -> Replica | None:
        """The partition's accounts as its changelog's end has them; None when they are not at hand.

        Raises:
            NeighbourUnavailable: ask again; what is warm stays.
        """
        if (warm := self._warm.get(partition)) is None:
            return None
        try:
            caught = await self._follower.promote(partition)
        except IntegrityError as error:
            if self._warm.get(partition) is warm:
                self._refused(partition, error)
            return None
        except NotFollowed:
            # It was dropped while it was read to the end.
            return None
        except asyncio.CancelledError:
            if partition not in self._follower.positions:
                # Read to the end in the same moment: nobody takes it, and nobody follows it any more.
                self._drop(partition)
            raise
        if self._warm.get(partition) is not warm:
            return None
        del self._warm[partition]
        self._wanted -= {partition}
        self._metrics.standby_gone(partition)
        warm.row_count = caught.rows
        return warm

    # -- steps of `run` ------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        while True:
            try:
                return await self._follower.start()
            except WeirError as error:
                if not error.retriable:
                    raise
                log.warning("standbys_put_off", error=str(error))
            await asyncio.sleep(_CHECK_S)  # the broker is away: as soon as it is back is soon enough

    async def _follow(self) -> None:
        self._changed.clear()
        for partition in sorted(self._wanted - self._warm.keys()):
            try:
                since = self._since.get(partition, 0)
                replica, start = await asyncio.to_thread(self._begin, partition, since)
            except StateFull as error:
                self._refused(partition, error)
                continue
            # The group may have said something else meanwhile.
            if partition in self._wanted:
                self._warm[partition] = replica
                self._follower.follow({**self._follower.positions, partition: start})
                log.info(
                    "standby_begun", partition=partition, accounts=replica.accounts.row_count, offset=start
                )

    async def _look(self) -> None:
        lags = {partition: self._follower.lag(partition) for partition in self._warm}
        for partition, lag in lags.items():
            if lag is not None:
                self._metrics.standby_lag(partition, lag)
        near = {partition for partition, lag in lags.items() if lag is not None and lag <= self._lag_max}
        now_s = time.monotonic()
        if self._awaited and near == self._warm.keys() == self._wanted and now_s >= self._ask_at_s:
            self._ask_at_s = now_s + self._ask_again_s
            self._ask_again_s = min(2 * self._ask_again_s, _ASK_AGAIN_MAX_S)
            await self._on_near()

    def _apply(self, partition: int, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        if (warm := self._warm.get(partition)) is None:
            return
        try:
            warm.take_in(keys, values, f"{self._topic} {partition}")
        except BegunAnew as begun:
            # Still wanted: it begins again there.
            log.info("standby_begins_anew", partition=partition, since=begun.since)
            self._since[partition] = begun.since
            self._drop(partition)
            self._changed.set()
        except (IntegrityError, StateFull) as error:
            self._refused(partition, error)

    def _refused(self, partition: int, error: WeirError) -> None:
        log.error("standby_dropped", partition=partition, error=str(error))
        # Not begun again before the group says so: it would meet the same.
        self._wanted -= {partition}
        self._drop(partition)

    def _drop(self, partition: int) -> None:
        self._warm.pop(partition, None)
        self._metrics.standby_gone(partition)
        rest = dict(self._follower.positions)
        if rest.pop(partition, None) is not None:
            self._follower.follow(rest)
