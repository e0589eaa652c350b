"""What a producer may meet: fenced (give up) is not aborted (do it again) is not unavailable (wait)."""

from weir.client.connection import TopicDenied, TopicMissing
from weir.config import KafkaSettings
from weir.errors import AccessDenied, MissingPart, NeighbourUnavailable, WeirError
from weir.kafka import _codes as codes
from weir.kafka._codes import Code, name_of


class Fenced(WeirError):
    """This producer may not write any more; what it had open is or will be aborted. Fatal.

    Another has taken its transactional id, or the broker aborted a transaction that took too long.
    """

    def __init__(self, transactional_id: str) -> None:
        self.transactional_id = transactional_id
        super().__init__(
            f"Another producer has taken transactional id {transactional_id}, or the broker ended its "
            "transaction as too long. Start this worker anew."
        )


class NotMember(WeirError):
    """The group has moved on: these offsets are not this member's to commit. Abort, and join again."""

    retriable = True

    def __init__(self, group: str, code: int) -> None:
        self.group, self.code = group, code
        super().__init__(
            f"This worker is no member of consumer group {group} any more ({name_of(code)}): "
            "its transaction must be aborted and the group joined again."
        )


class TransactionAborted(WeirError):
    """The transaction cannot be committed; nothing of it will be seen. Abort it, and do its work again."""

    retriable = True

    def __init__(self, transactional_id: str, reason: str) -> None:
        self.transactional_id, self.reason = transactional_id, reason
        super().__init__(f"The transaction of {transactional_id} must be aborted: {reason}.")


class Unavailable(NeighbourUnavailable):
    """No broker did what was asked before the deadline; trying again may help."""

    def __init__(self, settings: KafkaSettings, what: str, waited_s: float, reason: str) -> None:
        self.what, self.waited_s, self.reason = what, waited_s, reason
        super().__init__(
            f"Kafka at {settings.bootstrap_servers} did not {what} within {waited_s:.1f} s ({reason}). "
            "Check that its brokers run (`weir status`)."
        )


class CommitUnknown(Unavailable):
    """Whether the transaction was committed is not known yet: ask again with `commit`, and do not abort."""


class OffsetsPending(NeighbourUnavailable):
    """A transaction that is not ended yet may change the group's offsets. Wait, or fence who has it open."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(
            f"Offsets of consumer group {group} are part of a transaction that has not ended. Ask again soon."
        )


class RecordTooLarge(WeirError):
    """A topic takes no record of this size."""

    def __init__(self, topic: str, batch_bytes: int) -> None:
        self.topic, self.batch_bytes = topic, batch_bytes
        super().__init__(
            f"Topic {topic} does not take a batch of {batch_bytes} bytes. "
            "Raise its max.message.bytes, or publish smaller batches."
        )


class PartitionMissing(MissingPart):
    """The topic has fewer partitions."""

    def __init__(self, topic: str, partition: int, partition_count: int) -> None:
        self.topic, self.partition, self.partition_count = topic, partition, partition_count
        super().__init__(
            f"Topic {topic} has {partition_count} partitions, so none of number {partition}. "
            "Give it as many as the topic that it follows."
        )


class Refused(WeirError):
    """The broker refuses a request, for a reason that no retry changes."""

    def __init__(self, settings: KafkaSettings, what: str, code: int) -> None:
        self.what, self.code = what, code
        super().__init__(
            f"Kafka at {settings.bootstrap_servers} refuses to {what} ({name_of(code)}). "
            "See the broker's log."
        )


def denied(settings: KafkaSettings, what: str) -> AccessDenied:
    """The one line for a right that this client lacks."""
    who = settings.sasl_username or "this client"
    return AccessDenied(
        f"Kafka at {settings.bootstrap_servers} does not let {who} {what}. "
        "Ask for the permission, or correct [kafka]."
    )


def of_topic(code: int, settings: KafkaSettings, topic: str, batch_bytes: int) -> WeirError:
    """What a partition's leader meant by refusing a batch, where it does not concern the producer itself."""
    if code == Code.TOPIC_AUTHORIZATION_FAILED:
        return TopicDenied(topic, settings)
    if code in codes.MISSING:
        return TopicMissing(topic, settings)
    if code in codes.TOO_LARGE:
        return RecordTooLarge(topic, batch_bytes)
    return Refused(settings, f"take records for {topic}", code)
