# mypy: allow-untyped-defs
"""Payments and labels as framed Avro, a column at a time, and the partition that a key leads to."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.simulator.bank import CATEGORIES, COUNTRIES, Bank, Events
from services.simulator.fraud import SOURCES, LabelRows
from services.simulator.identifiers import account_ids, terminal_ids
from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.state.jit import kernel

# The kernel below writes these fields in this order; a schema that has others needs another kernel.
TRANSACTION_FIELDS = (
    "event_id",
    "account_id",
    "terminal_id",
    "amount",
    "currency",
    "event_time",
    "channel",
    "merchant_category",
    "country",
    "counterparty_id",
)
_FIXED_BYTES_MAX = 80


def encode_transactions(
    bank: Bank, events: Events, event_id: NDArray[np.uint8], schema_id: int
) -> list[bytes]:
    """Each payment as Confluent-framed Avro of `schemas/transaction.avsc`.

    Args:
        event_id: (n, width) bytes, a row an id.
        schema_id: of the subject's registered schema.
    Raises:
        ValueError: `schemas/transaction.avsc` no longer has the fields that this writes.
    """
    names = tuple(field["name"] for field in load_schema("transaction")["fields"])
    if names != TRANSACTION_FIELDS:
        raise ValueError(f"transaction.avsc has fields {names}; the simulator writes {TRANSACTION_FIELDS}")
    account, terminal = account_ids(events.account), terminal_ids(events.terminal)
    payee = account_ids(np.maximum(events.counterparty, 0))
    width = _FIXED_BYTES_MAX + event_id.shape[1] + 2 * account.shape[1] + terminal.shape[1]
    out = np.empty(len(events) * width, np.uint8)
    ends = np.empty(len(events), np.int64)
    _write_transactions(
        np.frombuffer(frame(schema_id, b""), np.uint8),
        event_id,
        account,
        terminal,
        events.amount,
        np.frombuffer(bank.settings.currency.encode(), np.uint8),
        events.event_ms,
        events.channel,
        _letters(CATEGORIES)[bank.category[events.terminal]],
        _letters(COUNTRIES)[bank.country[events.terminal]],
        events.counterparty >= 0,
        payee,
        out,
        ends,
    )
    text, at = out.tobytes() if len(events) else b"", 0
    records = []
    for end in ends.tolist():
        records.append(text[at:end])
        at = end
    return records


def encode_labels(
    events: Events, event_id: NDArray[np.uint8], labels: LabelRows, schema_id: int
) -> list[bytes]:
    """Each label as Confluent-framed Avro of `schemas/label.avsc`, row by row: labels are few."""
    codec = RowCodec(load_schema("label"))
    row = labels.row
    account, terminal = account_ids(events.account[row]), terminal_ids(events.terminal[row])
    return [
        frame(
            schema_id,
            codec.encode(
                {
                    "event_id": bytes(event_id[at]).decode(),
                    "account_id": bytes(account[index]).decode(),
                    "terminal_id": bytes(terminal[index]).decode(),
                    "event_time": int(events.event_ms[at]),
                    "reported_time": int(labels.reported_ms[index]),
                    "is_fraud": bool(labels.is_fraud[index]),
                    "source": SOURCES[labels.source[index]],
                }
            ),
        )
        for index, at in enumerate(row.tolist())
    ]


def partitions_of(keys: NDArray[np.uint8], partition_count: int) -> NDArray[np.int64]:
    """(n,) the partition that Kafka's default partitioner (murmur2) gives each key, a row of bytes."""
    partitions = np.empty(keys.shape[0], np.int64)
    _murmur2_partitions(np.ascontiguousarray(keys), partition_count, partitions)
    return partitions


def rows_as_bytes(text: NDArray[np.uint8]) -> list[bytes]:
    """Each row of an (n, width) matrix as bytes."""
    whole, width = text.tobytes(), text.shape[1]
    return [whole[at : at + width] for at in range(0, len(whole), width)]


def _letters(words: Sequence[str] | NDArray[np.str_]) -> NDArray[np.uint8]:
    """(n, width) bytes of words of one width."""
    return np.array([list(word.encode()) for word in words], np.uint8)


@kernel
def _put_text(out, at, text):
    out[at] = text.size << 1
    at += 1
    for index in range(text.size):
        out[at + index] = text[index]
    return at + text.size


@kernel
def _put_long(out, at, value):
    zigzag = np.uint64(value << 1) ^ np.uint64(value >> 63)
    while zigzag > np.uint64(0x7F):
        out[at] = np.uint8(zigzag & np.uint64(0x7F)) | np.uint8(0x80)
        zigzag >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(zigzag)
    return at + 1


@kernel
def _put_decimal(out, at, value):
    """The fewest big-endian two's complement bytes, as fastavro writes a decimal."""
    size = 1
    while size < 8 and not (-(1 << (8 * size - 1)) <= value < (1 << (8 * size - 1))):
        size += 1
    out[at] = size << 1
    at += 1
    for index in range(size):
        out[at + index] = np.uint8((value >> (8 * (size - 1 - index))) & 0xFF)
    return at + size


@kernel
def _write_transactions(
    head,
    event_id,
    account,
    terminal,
    amount,
    currency,
    event_ms,
    channel,
    category,
    country,
    has_payee,
    payee,
    out,
    ends,
):
    at = 0
    for row in range(amount.size):
        for index in range(head.size):
            out[at + index] = head[index]
        at += head.size
        at = _put_text(out, at, event_id[row])
        at = _put_text(out, at, account[row])
        at = _put_text(out, at, terminal[row])
        at = _put_decimal(out, at, amount[row])
        at = _put_text(out, at, currency)
        at = _put_long(out, at, event_ms[row])
        at = _put_long(out, at, np.int64(channel[row]))
        out[at] = 2
        at = _put_text(out, at + 1, category[row])
        out[at] = 2
        at = _put_text(out, at + 1, country[row])
        if has_payee[row]:
            out[at] = 2
            at = _put_text(out, at + 1, payee[row])
        else:
            out[at] = 0
            at += 1
        ends[row] = at


@kernel
def _murmur2_partitions(keys, partition_count, partitions):
    mask = np.uint64(0xFFFFFFFF)
    m = np.uint64(0x5BD1E995)
    length = keys.shape[1]
    for row in range(keys.shape[0]):
        h = np.uint64(0x9747B28C) ^ np.uint64(length)
        for word in range(length // 4):
            k = np.uint64(0)
            for byte in range(4):
                k |= np.uint64(keys[row, 4 * word + byte]) << np.uint64(8 * byte)
            k = (k * m) & mask
            k ^= k >> np.uint64(24)
            k = (k * m) & mask
            h = ((h * m) & mask) ^ k
        rest = length % 4
        if rest > 0:
            for byte in range(rest):
                h ^= np.uint64(keys[row, length - rest + byte]) << np.uint64(8 * byte)
            h = (h * m) & mask
        h ^= h >> np.uint64(13)
        h = (h * m) & mask
        h ^= h >> np.uint64(15)
        partitions[row] = np.int64(h & np.uint64(0x7FFFFFFF)) % partition_count
