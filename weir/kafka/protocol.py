"""Kafka's requests that aiokafka lacks, or has only in old versions; each in the flexible encoding (KIP-482).

A `Call` is one request at one version, with what aiokafka's connection needs to send it and read the answer.
Source: Kafka's message definitions (clients/src/main/resources/common/message).
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Generic, TypeVar

from aiokafka.protocol.api import RequestHeader_v2, ResponseHeader_v0, ResponseHeader_v1
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)
from numpy.typing import NDArray

from weir.errors import MissingPart
from weir.kafka._codes import RETRIABLE, Code

PRODUCE, OFFSET_FETCH, API_VERSIONS, INIT_PRODUCER_ID = 0, 9, 18, 22
ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 24, 25, 26, 28

TRANSACTION_VERSION = "transaction.version"
NO_PRODUCER_ID, NO_EPOCH = -1, -1
ACKS_ALL = -1

Place = tuple[str, int]  # topic and partition
Answer = TypeVar("Answer")

_TEXT = CompactString("utf-8")
_END = ("tags", TaggedFields)
_NO_TAGS: dict[int, bytes] = {}
_FINALIZED_FEATURES = 2  # the tag of ApiVersions' answer


class BrokerTooOld(MissingPart):
    """A broker does not speak a request in the version that is needed."""

    def __init__(self, request: str, version: int, newest: int | None) -> None:
        self.request, self.version, self.newest = request, version, newest
        has = f"version {newest} at most" if newest is not None else "none"
        super().__init__(
            f"A Kafka broker lacks {request} in version {version} (it has {has}). "
            "Weir wants Kafka 2.8 or newer."
        )


class _Decoder(Generic[Answer]):
    """Aiokafka's idea of a response type: something with a `decode`."""

    __slots__ = ("decode",)

    def __init__(self, decode: Callable[[BytesIO], Answer]) -> None:
        self.decode = decode


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, ready to be sent."""

    name: str
    API_KEY: int
    API_VERSION: int
    body: bytes = field(repr=False)
    decode: Callable[[BytesIO], Answer] = field(repr=False)

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> "Call[Answer]":
        """Itself, if the broker speaks it.

        Raises:
            BrokerTooOld: it does not.
        """
        oldest, newest = versions.get(self.API_KEY, (0, None))
        if newest is None or not oldest <= self.API_VERSION <= newest:
            raise BrokerTooOld(self.name, self.API_VERSION, newest)
        return self

    @property
    def RESPONSE_TYPE(self) -> _Decoder[Answer]:  # noqa: N802 - aiokafka's name
        """What reads the answer."""
        return _Decoder(self.decode)

    def build_request_header(self, correlation_id: int, client_id: str) -> Any:
        """The header of flexible requests."""
        return RequestHeader_v2(self, correlation_id=correlation_id, client_id=client_id)

    def parse_response_header(self, buffer: BytesIO) -> Any:
        """The header of the answer; that of ApiVersions is the old one, which every client can read."""
        header = ResponseHeader_v0 if self.API_KEY == API_VERSIONS else ResponseHeader_v1
        return header.decode(buffer)

    def encode(self) -> bytes:
        """The body."""
        return self.body


@dataclass(frozen=True, slots=True)
class Features:
    """What the whole cluster has agreed on: the finalized level of each feature."""

    code: int
    levels: dict[str, int]


@dataclass(frozen=True, slots=True)
class Identity:
    """A producer's id and epoch."""

    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Identified:
    """An answer that may carry an identity."""

    code: int
    identity: Identity


_TELLS_LITTLE = (Code.NONE, Code.OPERATION_NOT_ATTEMPTED)


@dataclass(frozen=True, slots=True)
class Codes:
    """One error code a partition, or one for all under None."""

    by_place: dict[Place | None, int]

    @property
    def code(self) -> int:
        """0, else one that no retry changes, else any."""
        return self.worst[1]

    @property
    def worst(self) -> tuple[Place | None, int]:
        """That code, and which partition's it is."""
        # What was not attempted was not for the sake of another, which tells more.
        wrong = [item for item in self.by_place.items() if item[1] not in _TELLS_LITTLE]
        return next((item for item in wrong if item[1] not in RETRIABLE), wrong[0] if wrong else (None, 0))


@dataclass(frozen=True, slots=True)
class Committed:
    """A group's committed offsets with their metadata; None where there is none."""

    code: int
    offsets: dict[Place, tuple[int | None, str]]


def _by_topic(places: Iterable[Place]) -> dict[str, list[int]]:
    topics: dict[str, list[int]] = {}
    for topic, partition in places:
        topics.setdefault(topic, []).append(partition)
    return topics


_FEATURES_ASKED = Schema(("name", _TEXT), ("version", _TEXT), _END)
_FEATURES = Schema(
    ("code", Int16),
    ("apis", CompactArray(("key", Int16), ("oldest", Int16), ("newest", Int16), _END)),
    ("throttle_ms", Int32),
    _END,
)
_LEVELS = CompactArray(("name", _TEXT), ("newest", Int16), ("oldest", Int16), _END)


def api_versions() -> Call[Features]:
    """What the cluster speaks."""

    def decode(buffer: BytesIO) -> Features:
        code, _, _, tags = _FEATURES.decode(buffer)
        levels = _LEVELS.decode(BytesIO(tags[_FINALIZED_FEATURES])) if _FINALIZED_FEATURES in tags else []
        return Features(code, {name: newest for name, newest, _, _ in levels or []})

    return Call("ApiVersions", API_VERSIONS, 3, _FEATURES_ASKED.encode(["weir", "1", _NO_TAGS]), decode)


_INIT = Schema(("id", _TEXT), ("timeout_ms", Int32), ("producer_id", Int64), ("epoch", Int16), _END)
_IDENTIFIED = Schema(("throttle_ms", Int32), ("code", Int16), ("producer_id", Int64), ("epoch", Int16), _END)


def _decode_identified(buffer: BytesIO) -> Identified:
    _, code, producer_id, epoch, _ = _IDENTIFIED.decode(buffer)
    return Identified(code, Identity(producer_id, epoch))


def init_producer_id(
    transactional_id: str | None, timeout_ms: int, held: Identity | None = None
) -> Call[Identified]:
    """An id and epoch to write with; a transactional id's earlier holder is fenced.

    held: the identity that the caller has; the broker gives it a new epoch, unless another has been there.
    """
    held = held or Identity(NO_PRODUCER_ID, NO_EPOCH)
    body = _INIT.encode([transactional_id, timeout_ms, held.producer_id, held.epoch, _NO_TAGS])
    return Call("InitProducerId", INIT_PRODUCER_ID, 4, body, _decode_identified)


_TOPIC_CODES = Schema(
    ("throttle_ms", Int32),
    (
        "topics",
        CompactArray(("topic", _TEXT), ("codes", CompactArray(("at", Int32), ("code", Int16), _END)), _END),
    ),
    _END,
)


def _decode_topic_codes(buffer: BytesIO) -> Codes:
    _, topics, _ = _TOPIC_CODES.decode(buffer)
    return Codes({(topic, at): code for topic, found, _ in topics for at, code, _ in found})


_ADD_PARTITIONS = Schema(
    ("id", _TEXT),
    ("producer_id", Int64),
    ("epoch", Int16),
    ("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _END)),
    _END,
)


def add_partitions(transactional_id: str, identity: Identity, places: Iterable[Place]) -> Call[Codes]:
    """Before the first batch to a partition in a transaction of version 1."""
    topics = [[topic, partitions, _NO_TAGS] for topic, partitions in _by_topic(places).items()]
    body = _ADD_PARTITIONS.encode([transactional_id, identity.producer_id, identity.epoch, topics, _NO_TAGS])
    return Call("AddPartitionsToTxn", ADD_PARTITIONS_TO_TXN, 3, body, _decode_topic_codes)


_ADD_OFFSETS = Schema(("id", _TEXT), ("producer_id", Int64), ("epoch", Int16), ("group", _TEXT), _END)
_ONE_CODE = Schema(("throttle_ms", Int32), ("code", Int16), _END)


def add_offsets(transactional_id: str, identity: Identity, group: str) -> Call[Codes]:
    """Before a group's offsets in a transaction of version 1."""

    def decode(buffer: BytesIO) -> Codes:
        _, code, _ = _ONE_CODE.decode(buffer)
        return Codes({None: code})

    body = _ADD_OFFSETS.encode([transactional_id, identity.producer_id, identity.epoch, group, _NO_TAGS])
    return Call("AddOffsetsToTxn", ADD_OFFSETS_TO_TXN, 3, body, decode)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """Who commits offsets: the broker refuses them once the group is in another generation (KIP-447)."""

    group: str
    generation: int
    member_id: str
    instance_id: str | None = None


_TXN_OFFSETS = Schema(
    ("id", _TEXT),
    ("group", _TEXT),
    ("producer_id", Int64),
    ("epoch", Int16),
    ("generation", Int32),
    ("member_id", _TEXT),
    ("instance_id", _TEXT),
    (
        "topics",
        CompactArray(
            ("topic", _TEXT),
            (
                "partitions",
                CompactArray(
                    ("at", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT), _END
                ),
            ),
            _END,
        ),
    ),
    _END,
)
_NO_LEADER_EPOCH = -1


def txn_offset_commit(
    transactional_id: str,
    identity: Identity,
    member: GroupMember,
    offsets: Mapping[Place, tuple[int, str]],
    *,
    verified: bool,
) -> Call[Codes]:
    """Offsets as part of the transaction. verified: of transaction version 2, which adds the group itself."""
    topics = [
        [
            topic,
            [
                [at, offsets[topic, at][0], _NO_LEADER_EPOCH, offsets[topic, at][1], _NO_TAGS]
                for at in partitions
            ],
            _NO_TAGS,
        ]
        for topic, partitions in _by_topic(offsets).items()
    ]
    body = _TXN_OFFSETS.encode(
        [
            *(transactional_id, member.group, identity.producer_id, identity.epoch),
            *(member.generation, member.member_id, member.instance_id, topics, _NO_TAGS),
        ]
    )
    return Call("TxnOffsetCommit", TXN_OFFSET_COMMIT, 5 if verified else 3, body, _decode_topic_codes)


_END_TXN = Schema(("id", _TEXT), ("producer_id", Int64), ("epoch", Int16), ("committed", Boolean), _END)


def end_txn(
    transactional_id: str, identity: Identity, *, committed: bool, verified: bool
) -> Call[Identified]:
    """Commit or abort. verified: of transaction version 2, which answers the next transaction's identity."""

    def decode_code(buffer: BytesIO) -> Identified:
        _, code, _ = _ONE_CODE.decode(buffer)
        return Identified(code, identity)

    body = _END_TXN.encode([transactional_id, identity.producer_id, identity.epoch, committed, _NO_TAGS])
    return Call(
        "EndTxn", END_TXN, 5 if verified else 3, body, _decode_identified if verified else decode_code
    )


_FETCH_OFFSETS = Schema(
    ("group", _TEXT),
    ("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _END)),
    ("stable", Boolean),
    _END,
)
_FETCHED_OFFSETS = Schema(
    ("throttle_ms", Int32),
    (
        "topics",
        CompactArray(
            ("topic", _TEXT),
            (
                "partitions",
                CompactArray(
                    *(("at", Int32), ("offset", Int64), ("leader_epoch", Int32)),
                    *(("metadata", _TEXT), ("code", Int16), _END),
                ),
            ),
            _END,
        ),
    ),
    ("code", Int16),
    _END,
)


def offset_fetch(group: str, places: Sequence[Place]) -> Call[Committed]:
    """The group's offsets, unless a transaction that is still open may change them (KIP-447)."""

    def decode(buffer: BytesIO) -> Committed:
        _, topics, code, _ = _FETCHED_OFFSETS.decode(buffer)
        offsets = {}
        for topic, found, _ in topics:
            for at, offset, _, metadata, place_code, _ in found:
                code = code or place_code
                offsets[topic, at] = (offset if offset >= 0 else None, metadata or "")
        return Committed(code, offsets)

    topics = [[topic, partitions, _NO_TAGS] for topic, partitions in _by_topic(places).items()]
    return Call(
        "OffsetFetch", OFFSET_FETCH, 7, _FETCH_OFFSETS.encode([group, topics, True, _NO_TAGS]), decode
    )


_PRODUCED = Schema(
    (
        "topics",
        CompactArray(
            ("topic", _TEXT),
            (
                "partitions",
                CompactArray(
                    *(("at", Int32), ("code", Int16), ("offset", Int64), ("append_ms", Int64)),
                    *(("log_start", Int64), ("errors", CompactArray(("row", Int32), ("text", _TEXT), _END))),
                    *(("text", _TEXT), _END),
                ),
            ),
            _END,
        ),
    ),
    ("throttle_ms", Int32),
    _END,
)


def _decode_produced(buffer: BytesIO) -> Codes:
    topics, _, _ = _PRODUCED.decode(buffer)
    return Codes({(topic, found[0]): found[1] for topic, partitions, _ in topics for found in partitions})


def produce(
    transactional_id: str | None, timeout_ms: int, batches: Mapping[Place, NDArray[Any]], *, verified: bool
) -> Call[Codes]:
    """One record batch for each partition, answered once all replicas in sync have it.

    verified: of transaction version 2, in which the leader adds the partition to the transaction itself.
    """
    number = UnsignedVarInt32.encode
    topics = _by_topic(batches)
    # Packed by hand: the batches are copied once, into the request.
    parts: list[Any] = [
        _TEXT.encode(transactional_id),
        struct.pack(">hi", ACKS_ALL, timeout_ms),
        number(len(topics) + 1),
    ]
    for topic, partitions in topics.items():
        parts += (_TEXT.encode(topic), number(len(partitions) + 1))
        for at in partitions:
            data = batches[topic, at]
            parts += (struct.pack(">i", at), number(len(data) + 1), data.data, b"\0")
        parts.append(b"\0")
    parts.append(b"\0")
    return Call("Produce", PRODUCE, 12 if verified else 9, b"".join(parts), _decode_produced)
