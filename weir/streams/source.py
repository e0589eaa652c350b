"""A `BatchApp`'s consumer, as the engine sees it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from faust.types import TP

from weir.streams.membership import GroupMember
from weir.streams.ports import Place

if TYPE_CHECKING:
    from weir.streams.app import BatchApp


class BatchSource:
    """See `weir.streams.ports.Source`; the consumer is there once the app has started."""

    def __init__(self, app: "BatchApp") -> None:
        self._app = app

    @property
    def _consumer(self) -> Any:
        return cast(Any, self._app.consumer)

    def member(self) -> GroupMember | None:
        """Under what offsets may be committed now; None while this worker is no member of its group."""
        found: GroupMember | None = self._consumer.group_member()
        return found

    async def next_member(self, refused: Any, deadline_s: float) -> GroupMember | None:
        """What comes after a membership that the broker has refused; None when nothing came."""
        found: GroupMember | None = await self._consumer.next_group_member(refused, deadline_s)
        return found

    async def rejoin(self) -> None:
        """Ask the group for another round: what this worker has at hand has changed."""
        await self._consumer.rejoin()

    async def rewind(self, place: Place, offset: int) -> None:
        """Hand out from `offset` on; a partition that is new is begun there."""
        tp = TP(*place)
        if not await self._consumer.begin(tp, offset):
            await self._consumer.seek(tp, offset)

    def hold(self, places: Sequence[Place]) -> None:
        """Nothing to do: the consumer hands out neither what is new, before it is begun, nor what goes."""

    def let_go(self, places: Sequence[Place]) -> None:
        """Nothing to do: see `hold`."""
