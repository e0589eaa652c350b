"""Payments of as many accounts as one likes: each pays once, then they pay at random, all alike often.

The synthetic bank of `weir simulate` has customers with habits, which ten million of take gigabytes; here an
account is a number. Uniform draws are the worst case for a cache, so the curve does not flatter.
"""

import time
from collections.abc import Iterator

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from services.simulator.bank import HONEST, POS, Bank, Events
from services.simulator.encode import encode_transactions, partitions_of, rows_as_bytes
from services.simulator.identifiers import account_ids, event_ids
from services.simulator.settings import SimulatorSettings
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS

SLICE_ROWS = 100_000
TERMINALS = 5_000
SEED = 20_261
FLUSH_S = 60.0


def accounts_in_order(accounts: int, after: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Slices of account indexes: every account once, shuffled within slices, then `after` random ones."""
    for first in range(0, accounts, SLICE_ROWS):
        yield rng.permutation(np.arange(first, min(first + SLICE_ROWS, accounts), dtype=np.int64))
    for first in range(0, after, SLICE_ROWS):
        yield rng.integers(0, accounts, min(SLICE_ROWS, after - first))


def fill(servers: str, topic: str, partitions: int, *, accounts: int, after: int) -> int:
    """Send a first payment of each account and `after` more; how many went.

    Raises:
        RuntimeError: the broker did not take them all.
    """
    rng = np.random.default_rng(SEED)
    now_ms = int(time.time() * 1000)
    bank = Bank(SimulatorSettings.model_validate({"accounts": 10, "terminals": TERMINALS}))
    schema_id = FileRegistry.read().subjects[SUBJECTS["transaction"]][-1].id
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 2 * SLICE_ROWS,
        }
    )
    sent = 0
    for account in accounts_in_order(accounts, after, rng):
        events = _events(account, now_ms, rng)
        values = encode_transactions(bank, events, event_ids(b"S-", sent, len(events)), schema_id)
        keys = account_ids(account)
        for key, value, partition in zip(
            rows_as_bytes(keys), values, partitions_of(keys, partitions).tolist(), strict=True
        ):
            producer.produce(topic, value, key, partition)
        left = producer.flush(FLUSH_S)
        if left:
            raise RuntimeError(f"the broker did not take {left} payments in {FLUSH_S:.0f} s")
        sent += len(events)
    return sent


def _events(account: NDArray[np.int64], now_ms: int, rng: np.random.Generator) -> Events:
    n = account.size
    return Events(
        account=account,
        terminal=rng.integers(0, TERMINALS, n),
        amount=np.round(np.exp(rng.normal(3.2, 0.8, n)) * 100).astype(np.int64) * 100,
        event_ms=np.full(n, now_ms, np.int64),
        channel=np.full(n, POS, np.int8),
        counterparty=np.full(n, -1, np.int64),
        fraud_kind=np.full(n, HONEST, np.int8),
    )
