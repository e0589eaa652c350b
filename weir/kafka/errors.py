"""What a broker can answer a producer that is beyond trying the same request again."""

from weir.errors import NeighbourUnavailable, WeirError


class Fenced(WeirError):
    """Another holds our transactional id: whatever we begin is refused from now on."""

    def __init__(self, transactional_id: str) -> None:
        self.transactional_id = transactional_id
        super().__init__(
            f"Kafka: transactional id {transactional_id} was taken by another worker. "
            "If two run under one name, give each its own [risk] data_dir; else this one was thought dead."
        )


class NotMember(WeirError):
    """The group has gone on without this worker's generation; its offsets are refused."""

    retriable = True

    def __init__(self, group: str, answer: str) -> None:
        self.group, self.answer = group, answer
        super().__init__(
            f"Kafka: group {group} does not take this worker's offsets ({answer}); it joins again."
        )


class TransactionAborted(WeirError):
    """The coordinator has ended the transaction (a time-out, an error of an earlier request); do it again."""

    retriable = True

    def __init__(self, transactional_id: str, answer: str) -> None:
        self.transactional_id, self.answer = transactional_id, answer
        super().__init__(f"Kafka: a transaction of {transactional_id} was ended by the broker ({answer}).")


class Unavailable(NeighbourUnavailable):
    """No answer before the deadline; whether the request was carried out is not known."""
