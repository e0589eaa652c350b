"""The state once more, from the input alone: what each account's row and each score has to be."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.faults.checker import Input, Place
from tests.support.scores import scored_here
from weir.features.accounts import Accounts
from weir.features.columns import Payments
from weir.features.terminals import Terminals, observe
from weir.state.hashing import keyed_hash_list

_ROWS_MAX = 10_000

Records = Mapping[str, Mapping[str, Any]]


def entered(inputs: Sequence[Input], set_aside: set[Place]) -> list[Input]:
    """The inputs that entered a window, by partition and offset: dead letters never did."""
    in_order = sorted(inputs, key=lambda each: each.place)
    return [each for each in in_order if each.decidable and each.place not in set_aside]


def expected_logits(inputs: Sequence[Input], records: Records) -> dict[Place, float]:
    """The score of each payment on all before it of its partition, by the model in this process."""
    if not inputs:
        return {}
    logits, _, _ = scored_here([dict(records[each.event_id]) for each in inputs])
    return {each.place: float(logit) for each, logit in zip(inputs, logits, strict=True)}


def expected_rows(
    inputs: Sequence[Input], records: Records, hash_key: bytes
) -> dict[tuple[int, bytes], object]:
    """Partition and key of each account to the value of its newest changelog row.

    The labels of these runs say that payments were honest, which changes no row.
    """
    by_partition: dict[int, list[Input]] = defaultdict(list)
    for each in inputs:
        by_partition[each.place.partition].append(each)
    rows: dict[tuple[int, bytes], object] = {}
    for partition, of_partition in by_partition.items():
        accounts = Accounts(rows_max=_ROWS_MAX)
        terminals = Terminals(rows_max=_ROWS_MAX)
        accounts.begin(1)
        terminals.begin(1)
        observe(accounts, terminals, _payments([records[each.event_id] for each in of_partition], hash_key))
        keys, values = accounts.encode_rows(np.arange(accounts.row_count))
        for key, value in zip(keys.to_list(), values.to_list(), strict=True):
            assert key is not None
            rows[partition, key] = value
    return rows


def _payments(records: Sequence[Mapping[str, Any]], hash_key: bytes) -> Payments:
    return Payments(
        account=keyed_hash_list([str(each["account_id"]).encode() for each in records], hash_key),
        terminal=keyed_hash_list([str(each["terminal_id"]).encode() for each in records], hash_key),
        amount=np.array([int(each["amount"] * 10_000) for each in records], np.int64),
        event_ms=np.array([round(each["event_time"].timestamp() * 1000) for each in records], np.int64),
        channel=np.zeros(len(records), np.int8),
    )
