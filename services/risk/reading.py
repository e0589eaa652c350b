"""The first half of a batch's way: framed records become valid payments with features.

Synchronous and columnar; what is not fit to be decided is named with its reason, the rest goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from services.risk.policy import InForce, Policy
from services.risk.state import BatchTrace, RiskState
from services.risk.validate import DETAILS, Rates, validate
from weir.codec.columns import ColumnReader, Columns
from weir.features.accounts import Accounts
from weir.features.columns import Payments
from weir.features.spec import FEATURES
from weir.features.terminals import Terminals, observe
from weir.kafka.records import ColumnOutput
from weir.obs.metrics import Metrics
from weir.state.hashing import keyed_hash
from weir.streams import BatchGroup

CODEC_DETAIL = "the value is not a framed Avro transaction of a known schema"
NOT_DECIDED = ("not_decided", "the record is well formed, but deciding it failed; see the log")
_NS_PER_US = 1000

# One time for all rows, or (n,) one for each.
Times = int | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that cannot be decided: its row in the batch, a reason of the closed set, what is wrong."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """The good rows with their features, and the bad ones; durations of the two stages."""

    columns: Columns
    payments: Payments
    currency: NDArray[np.uint32]
    features: NDArray[np.float32]  # (n, F)
    bad: Sequence[Bad]
    decode_us: int
    features_us: int
    read_at_ms: int
    in_force: InForce
    # What the journal and the changelog have to say, one a batch and one a partition.
    traces: Sequence[BatchTrace] = ()
    changelog: Sequence[ColumnOutput] = ()
    touched: Mapping[tuple[str, int], int] = field(default_factory=dict)
    # Payments behind their partition's watermark.
    late: int = 0

    def rows(self, part: NDArray[np.intp]) -> "ReadBatch":
        """Some of the good rows, ascending, as a batch of their own without the bad ones."""
        return replace(
            self,
            columns=self.columns.take(part),
            payments=self.payments.rows(part),
            currency=self.currency[part],
            features=self.features[part],
            bad=(),
        )


class PaymentReading:
    """Reads batches: what is not fit to be decided is named, the rest gets its features.

    Args:
        hash_key: 16 bytes; accounts and terminals are held by their keyed hash.
        policy: the policy in force, for its limits; the group is decided by the one that it was read under.
    """

    def __init__(
        self,
        reader: ColumnReader,
        schema_id: int,
        *,
        rates: Rates,
        hash_key: bytes,
        policy: Callable[[], InForce],
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._reader, self._schema_id = reader, schema_id
        self._rates, self._hash_key, self._policy = rates, hash_key, policy
        self._metrics, self._now_ms = metrics, now_ms

    def __call__(self, group: BatchGroup, state: RiskState, at_ms: int | None = None) -> ReadBatch:
        """Decode, validate, and let the payments enter the windows, in order.

        Args:
            at_ms: the time of reading, for payments that claim to be of the future; None is now.
        """
        begun = perf_counter_ns()
        now_ms = self._now_ms() if at_ms is None else at_ms
        in_force = self._policy()
        policy = in_force.policy
        columns, payments, currency, bad = self._sound(group.values, now_ms, policy)
        decoded = perf_counter_ns()
        features, traces, late = self._observe(group, state, columns, payments)
        done = perf_counter_ns()
        self._metrics.stage("decode", (decoded - begun) / 1e9)
        self._metrics.stage("features", (done - decoded) / 1e9)
        self._metrics.batch(len(group))
        return ReadBatch(
            columns,
            payments,
            currency,
            features,
            bad,
            (decoded - begun) // _NS_PER_US,
            (done - decoded) // _NS_PER_US,
            now_ms,
            in_force,
            traces,
            late=late,
        )

    def _observe(
        self, group: BatchGroup, state: RiskState, columns: Columns, payments: Payments
    ) -> tuple[NDArray[np.float32], list[BatchTrace], int]:
        """Each batch by its partition's windows; rows are in the order of the batches. How many were late."""
        ends = np.searchsorted(columns.row, group.starts[1:]).tolist()
        parts, traces, late = [], [], 0
        for batch, start, end in zip(group.batches, [0, *ends], ends, strict=False):
            mine = payments if end - start == payments.row_count else payments.rows(slice(start, end))
            accounts = state.accounts[batch.partition]
            late -= accounts.late_total
            features, trace = state.observe(batch.partition, mine, batch.offset_first, batch.offset_last + 1)
            late += accounts.late_total
            parts.append(features)
            traces.append(trace)
        if not parts:
            return np.empty((0, len(FEATURES)), np.float32), traces, late
        return parts[0] if len(parts) == 1 else np.concatenate(parts), traces, late

    def absorb(
        self,
        values: Sequence[bytes | None],
        at_ms: NDArray[np.int64],
        accounts: Accounts,
        terminals: Terminals,
    ) -> int:
        """Let past payments enter the windows without deciding on them; how many were valid.

        Args:
            at_ms: (n,) when each was read then.
        """
        _, payments, _, _ = self._sound(values, at_ms, self._policy().policy)
        observe(accounts, terminals, payments)
        return payments.row_count

    def _sound(
        self, values: Sequence[bytes | None], now_ms: Times, policy: Policy
    ) -> tuple[Columns, Payments, NDArray[np.uint32], list[Bad]]:
        """The valid payments, and what is none, a record that breaks the reading among them."""
        try:
            return self._payments(values, now_ms, policy)
        except Exception:  # noqa: BLE001 - whatever one record can provoke must not stop its partition
            return self._without_culprits(values, now_ms, policy)

    def _without_culprits(
        self, values: Sequence[bytes | None], now_ms: Times, policy: Policy
    ) -> tuple[Columns, Payments, NDArray[np.uint32], list[Bad]]:
        """The batch again, record by record, to find what breaks it; nothing has entered the windows yet."""
        each_ms = np.broadcast_to(now_ms, len(values))
        culprits = {
            row for row, value in enumerate(values) if not self._fits(value, int(each_ms[row]), policy)
        }
        if not culprits:
            raise RuntimeError("a batch cannot be read, though each of its records can")
        rest = [None if row in culprits else value for row, value in enumerate(values)]
        columns, payments, currency, bad = self._payments(rest, now_ms, policy)
        kept = [each for each in bad if each.row not in culprits]
        return columns, payments, currency, kept + [Bad(row, *NOT_DECIDED) for row in sorted(culprits)]

    def _fits(self, value: bytes | None, now_ms: int, policy: Policy) -> bool:
        try:
            self._payments([value], now_ms, policy)
        except Exception:  # noqa: BLE001 - as above
            return False
        return True

    def _payments(
        self, values: Sequence[bytes | None], now_ms: Times, policy: Policy
    ) -> tuple[Columns, Payments, NDArray[np.uint32], list[Bad]]:
        columns, poison = self._reader.read(values, self._schema_id)
        strings, ints = columns.strings, columns.ints
        checked = validate(
            amount=ints["amount"],
            currency=strings["currency"],
            event_ms=ints["event_time"],
            ids=(strings["event_id"], strings["account_id"], strings["terminal_id"]),
            optional_ids=(strings["counterparty_id"],),
            now_ms=now_ms if isinstance(now_ms, int) else now_ms[columns.row],
            limits=policy.limits,
            rates=self._rates,
        )
        bad = [Bad(row, reason, CODEC_DETAIL) for row, reason in poison]
        home, currency = checked.amount_home, checked.currency
        refused = checked.bad()
        if refused:
            bad += [Bad(int(columns.row[row]), reason, DETAILS[reason]) for row, reason in refused]
            good = checked.good
            columns, home, currency = columns.take(good), home[good], currency[good]
            strings, ints = columns.strings, columns.ints
        payments = Payments(
            account=keyed_hash(strings["account_id"], self._hash_key),
            terminal=keyed_hash(strings["terminal_id"], self._hash_key),
            amount=home,
            event_ms=ints["event_time"],
            channel=ints["channel"].astype(np.int8),
        )
        return columns, payments, currency, bad
