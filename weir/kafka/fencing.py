"""Taking a transactional id: whoever held it before may not write any more."""

from weir.config import KafkaSettings
from weir.kafka import _codes as codes
from weir.kafka._codes import Code
from weir.kafka._waiting import Deadline
from weir.kafka.errors import Fenced, Refused, denied
from weir.kafka.link import Coordinates, Link
from weir.kafka.protocol import Identity, init_producer_id


async def fence(
    settings: KafkaSettings,
    transactional_id: str,
    *,
    client_id: str = "weir-fence",
    timeout_ms: int = 10_000,
    deadline_s: float = 30,
) -> None:
    """Take the id and leave it: its open transaction is aborted by then, and its holder may write no more.

    Raises:
        NeighbourUnavailable, AccessDenied, ConfigError: no broker takes this client.
    """
    link = Link(settings, client_id=client_id, deadline_s=deadline_s)
    await link.start()
    try:
        await take_id(link, transactional_id, timeout_ms, Deadline(deadline_s))
    finally:
        await link.stop()


async def take_id(
    link: Link,
    transactional_id: str,
    timeout_ms: int,
    deadline: Deadline,
    held: Identity | None = None,
) -> Identity:
    """The id with a new epoch; when this returns, nothing of an earlier epoch is open.

    held: what the caller has; another that has been there since is not fenced.

    Raises:
        Fenced: another has been there since.
        Unavailable, AccessDenied: it is not to be had.
    """
    call = init_producer_id(transactional_id, timeout_ms, held)
    what = f"give transactional id {transactional_id}"
    answer = await link.ask_coordinator(Coordinates.TRANSACTION, transactional_id, call, what, deadline)
    if answer.code in codes.FENCED:
        raise Fenced(transactional_id)
    if answer.code == Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        raise denied(link.settings, f"use transactional id {transactional_id}")
    if answer.code:
        raise Refused(link.settings, what, answer.code)
    return answer.identity
