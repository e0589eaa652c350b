"""Reads decisions: committed ones only, opened by the caller's role, verified, typed."""

from typing import Any

from weir.client.opening import Opened
from weir.client.reader import BadRecord, Last, OnBad, SealedReader, Start
from weir.client.records import Decision, Position
from weir.config import TopicSettings
from weir.errors import BadInput, IntegrityError
from weir.ids import decision_ids

__all__ = ["BadRecord", "Decisions", "Last", "OnBad", "Start", "verify_id"]


class Decisions(SealedReader[Decision]):
    """Decisions as they are made: `async with Decisions.connect(purpose=...) as decisions`, then `async for`.

    What is verified of each, beside what every reader verifies: the id in its header, the id inside and the
    id computed from tenant, event and kind are one. Whether the decision is right is not.
    """

    schema = "decision"

    @staticmethod
    def topic_of(topics: TopicSettings) -> str:
        """Where decisions are."""
        return topics.decisions

    def _typed(self, opened: Opened, raw: Position) -> Decision:
        verify_id(opened.record, opened.record_id, raw)
        return Decision.from_avro(opened.record, raw)


def verify_id(record: dict[str, Any], record_id: bytes, raw: Position) -> None:
    """Checks that the id in the envelope, the id inside and the one computed from the event are the same.

    Raises:
        IntegrityError: they are not.
    """
    try:
        inside = bytes.fromhex(str(record["decision_id"]).replace("-", ""))
        (computed,) = decision_ids(record["tenant"], [record["event_id"].encode()], record["kind"])
    except (KeyError, ValueError):
        raise BadInput("bad_decision", f"the record at {raw} has no decision id.") from None
    if inside != record_id or computed != record_id:
        raise IntegrityError(
            f"The decision at {raw} has another id than its envelope or its event. Do not use it; report it."
        )
