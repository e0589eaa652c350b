"""What is said to the brokers, byte by byte, and what their answers mean.

The bytes are those of Kafka's message definitions; that a real broker takes them is shown by
`test_transactional_producer.py`.
"""

from io import BytesIO
from typing import Any

import numpy as np
import pytest

from weir.config import KafkaSettings
from weir.kafka import protocol
from weir.kafka._codes import FENCED, NOT_MEMBER, RETRIABLE, STALE_COORDINATOR, STALE_LEADER, name_of
from weir.kafka.protocol import BrokerTooOld, Codes, GroupMember, Identity

SETTINGS = KafkaSettings(bootstrap_servers="nowhere:9092")
MEMBER = GroupMember("g", 3, "m", None)


def body(call: protocol.Call[Any]) -> str:
    return call.encode().hex(" ")


def test_requests_are_laid_out_as_kafka_defines_them() -> None:
    """Compact strings and arrays carry their length plus one, null is 0; each struct ends with its tags."""
    who = Identity(258, 3)
    assert body(protocol.init_producer_id("id", 1000)) == (
        "03 69 64 00 00 03 e8 ff ff ff ff ff ff ff ff ff ff 00"
    )
    assert (
        body(protocol.init_producer_id(None, 1000, who)) == "00 00 00 03 e8 00 00 00 00 00 00 01 02 00 03 00"
    )
    assert body(protocol.end_txn("id", who, committed=True, verified=True)) == (
        "03 69 64 00 00 00 00 00 00 01 02 00 03 01 00"
    )
    assert body(protocol.add_partitions("id", who, [("t", 5), ("t", 6)])) == (
        "03 69 64 00 00 00 00 00 00 01 02 00 03 02 02 74 03 00 00 00 05 00 00 00 06 00 00"
    )
    assert body(protocol.add_offsets("id", who, "g")) == "03 69 64 00 00 00 00 00 00 01 02 00 03 02 67 00"
    assert body(protocol.txn_offset_commit("id", who, MEMBER, {("t", 5): (9, "x")}, verified=True)) == (
        "03 69 64 02 67 00 00 00 00 00 00 01 02 00 03 00 00 00 03 02 6d 00 "
        "02 02 74 02 00 00 00 05 00 00 00 00 00 00 00 09 ff ff ff ff 02 78 00 00 00"
    )
    assert body(protocol.offset_fetch("g", [("t", 5)])) == "02 67 02 02 74 02 00 00 00 05 00 01 00"
    assert body(protocol.api_versions()) == "05 77 65 69 72 02 31 00"
    batch = np.arange(200, dtype=np.uint8)
    assert body(protocol.produce("id", 1000, {("t", 5): batch}, verified=True)) == (
        "03 69 64 ff ff 00 00 03 e8 02 02 74 02 00 00 00 05 c9 01 " + batch.tobytes().hex(" ") + " 00 00 00"
    )


def test_versions_are_those_of_the_transaction_version() -> None:
    who = Identity(1, 1)

    def versions(*, verified: bool) -> list[int]:
        return [
            protocol.produce("id", 1, {}, verified=verified).API_VERSION,
            protocol.txn_offset_commit("id", who, MEMBER, {}, verified=verified).API_VERSION,
            protocol.end_txn("id", who, committed=True, verified=verified).API_VERSION,
        ]

    assert versions(verified=True) == [12, 5, 5]
    assert versions(verified=False) == [9, 3, 3]


def test_answers_are_read() -> None:
    def read(call: protocol.Call[Any], answer: str) -> Any:
        return call.decode(BytesIO(bytes.fromhex(answer)))

    who = Identity(258, 3)
    identified = "00 00 00 00  00 2f  00 00 00 00 00 00 01 02  00 04  00"
    for call in (
        protocol.init_producer_id("id", 1),
        protocol.end_txn("id", who, committed=True, verified=True),
    ):
        assert read(call, identified) == protocol.Identified(47, Identity(258, 4))
    older = protocol.end_txn("id", who, committed=True, verified=False)
    assert read(older, "00 00 00 00 00 33 00") == protocol.Identified(51, who)
    codes = "00 00 00 00  02  02 74  03  00 00 00 05 00 00 00  00 00 00 06 00 1d 00  00  00"
    assert read(protocol.add_partitions("id", who, []), codes) == Codes({("t", 5): 0, ("t", 6): 29})
    produced = (
        "02  02 74  02  00 00 00 05  00 06  ff ff ff ff ff ff ff ff  ff ff ff ff ff ff ff ff "
        "ff ff ff ff ff ff ff ff  01  00  01 00 04 00 00 00 01  00  00 00 00 00  00"
    )
    assert read(protocol.produce("id", 1, {}, verified=True), produced) == Codes({("t", 5): 6})
    offsets = (
        "00 00 00 00  02  02 74  03  00 00 00 05  00 00 00 00 00 00 00 09  ff ff ff ff  02 78  00 00  00 "
        "00 00 00 06  ff ff ff ff ff ff ff ff  ff ff ff ff  00  00 58  00  00  00 00  00"
    )
    assert read(protocol.offset_fetch("g", []), offsets) == protocol.Committed(
        88, {("t", 5): (9, "x"), ("t", 6): (None, "")}
    )
    features = (
        "00 00  02  00 00 00 03 00 0c 00  00 00 00 00  "
        "01 02 1a 02 14 7472616e73616374696f6e2e76657273696f6e 00 02 00 02 00"
    )
    assert read(protocol.api_versions(), features).levels == {"transaction.version": 2}
    assert read(protocol.api_versions(), "00 00 01 00 00 00 00 00").levels == {}


def test_a_broker_that_is_too_old_is_named_with_what_it_lacks() -> None:
    call = protocol.end_txn("id", Identity(1, 1), committed=True, verified=True)
    assert call.prepare({26: (0, 5)}) is call
    with pytest.raises(BrokerTooOld, match=r"lacks EndTxn in version 5 .it has version 4 at most"):
        call.prepare({26: (0, 4)})
    with pytest.raises(BrokerTooOld, match="it has none"):
        call.prepare({})


def test_of_several_codes_the_one_that_decides_is_told() -> None:
    """What no retry changes before what one may; that another's fault kept it back tells nothing."""
    assert Codes({("t", 0): 0}).code == 0
    assert Codes({("t", 0): 51, ("t", 1): 0}).code == 51
    assert Codes({("t", 0): 51, ("t", 1): 90, ("t", 2): 7}).worst == (("t", 1), 90)
    assert Codes({("t", 0): 55, ("t", 1): 3}).code == 3


def test_a_code_asks_one_thing_of_a_producer() -> None:
    assert not RETRIABLE & (FENCED | NOT_MEMBER)
    assert not FENCED & NOT_MEMBER
    assert RETRIABLE > STALE_LEADER
    assert RETRIABLE > STALE_COORDINATOR
    assert name_of(51) == "CONCURRENT_TRANSACTIONS"
    assert name_of(9999) == "error 9999"
