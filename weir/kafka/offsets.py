"""A consumer group's committed offsets, once no open transaction can change them (KIP-447)."""

from collections.abc import Sequence

from weir.config import KafkaSettings
from weir.kafka._codes import Code
from weir.kafka._waiting import Deadline
from weir.kafka.errors import OffsetsPending, Refused, denied
from weir.kafka.link import Coordinates, Link
from weir.kafka.protocol import Place, offset_fetch


async def stable_offsets(
    through: KafkaSettings | Link,
    group: str,
    places: Sequence[Place],
    *,
    client_id: str = "weir-offsets",
    deadline_s: float = 30,
) -> dict[Place, tuple[int | None, str]]:
    """Each place's committed offset, None where there is none, with its metadata.

    Args:
        through: the settings, or a link that is connected.

    Raises:
        OffsetsPending: a transaction that has not ended may change one of them. Ask again, or fence it.
        NeighbourUnavailable, AccessDenied, ConfigError: no broker answers this client.
    """
    if isinstance(through, KafkaSettings):
        link = Link(through, client_id=client_id, deadline_s=deadline_s)
        await link.start()
        try:
            return await stable_offsets(link, group, places, deadline_s=deadline_s)
        finally:
            await link.stop()
    answer = await through.ask_coordinator(
        Coordinates.GROUP,
        group,
        offset_fetch(group, places),
        f"say the offsets of consumer group {group}",
        Deadline(deadline_s),
    )
    if answer.code == Code.UNSTABLE_OFFSET_COMMIT:
        raise OffsetsPending(group)
    if answer.code in (Code.GROUP_AUTHORIZATION_FAILED, Code.TOPIC_AUTHORIZATION_FAILED):
        raise denied(through.settings, f"read the offsets of consumer group {group}")
    if answer.code:
        raise Refused(through.settings, f"say the offsets of consumer group {group}", answer.code)
    return answer.offsets
