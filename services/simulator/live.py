"""What the bank sends when: days of payments in slices, and labels as they fall due. Knows no Kafka."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.simulator.bank import DAY_MS, Bank, Events
from services.simulator.encode import encode_labels, encode_transactions, partitions_of, rows_as_bytes
from services.simulator.fraud import bank_day, labels_of
from services.simulator.identifiers import account_ids, event_ids


@dataclass(frozen=True, slots=True)
class Records:
    """Records ready to send: key and value of each, its account's hash-chosen partition, its time in ms."""

    keys: list[bytes]
    values: list[bytes]
    partition: NDArray[np.int64]
    timestamp_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Wire:
    """What the far side wants: schema ids, and the partition counts of the two topics."""

    transaction_schema_id: int
    label_schema_id: int
    transaction_partitions: int
    label_partitions: int


class BankStream:
    """One run of a bank: payments in order, with ids that no other run has, and their labels when due."""

    def __init__(self, bank: Bank, wire: Wire, run_prefix: bytes) -> None:
        self.bank, self.wire, self.run_prefix = bank, wire, run_prefix
        self._sent = 0
        self._due: list[tuple[int, int, int, bytes]] = []
        self._upcoming: Events | None = None
        self._next_day = 0

    def history(self, days: int, until_ms: int) -> Iterator[Records]:
        """The payments of the last `days` days before `until_ms`, a day at a time, at their own times."""
        for day in range(-days, 1):
            events = bank_day(self.bank, day)
            events = events.take(events.event_ms < until_ms)
            event_id = self._event_ids(len(events))
            self._expect_labels(events, event_id, day)
            yield self._payments(events, event_id)

    def begin(self, now_ms: int, day: int = 0) -> None:
        """Let the live payments be those of the bank's day number `day`, from this hour of it on."""
        self._next_day = day
        self._fill()
        if self._upcoming is not None:
            # The first call compiles the encoder, which must not count as time in which nothing was sent.
            self._payments(self._upcoming.take(slice(0, 1)), event_ids(self.run_prefix, 0, 1))
            self._upcoming = self._upcoming.take(self._upcoming.event_ms >= now_ms + day * DAY_MS)

    def payments(self, count: int, now_ms: int) -> Records:
        """The next `count` payments, as if they happened now; the order and the people are the bank's."""
        parts, wanted = [], count
        while wanted > 0:
            if self._upcoming is None or not len(self._upcoming):
                self._fill()
                continue
            parts.append(self._upcoming.take(slice(0, wanted)))
            self._upcoming = self._upcoming.take(slice(wanted, None))
            wanted -= len(parts[-1])
        events = Events.concatenate(parts)
        events = replace(events, event_ms=np.full(len(events), now_ms, np.int64))
        return self._payments(events, self._event_ids(len(events)))

    def labels_due(self, now_ms: int) -> Records:
        """Labels whose report time has come and that were not given before."""
        due = []
        while self._due and self._due[0][0] <= now_ms:
            due.append(heapq.heappop(self._due))
        account = account_ids(np.array([account for _, _, account, _ in due], np.int64))
        return Records(
            keys=rows_as_bytes(account),
            values=[value for _, _, _, value in due],
            partition=partitions_of(account, self.wire.label_partitions),
            timestamp_ms=np.array([reported_ms for reported_ms, _, _, _ in due], np.int64),
        )

    def _fill(self) -> None:
        self._upcoming = bank_day(self.bank, self._next_day)
        self._next_day += 1

    def _event_ids(self, count: int) -> NDArray[np.uint8]:
        event_id = event_ids(self.run_prefix, self._sent, count)
        self._sent += count
        return event_id

    def _payments(self, events: Events, event_id: NDArray[np.uint8]) -> Records:
        account = account_ids(events.account)
        return Records(
            keys=rows_as_bytes(account),
            values=encode_transactions(self.bank, events, event_id, self.wire.transaction_schema_id),
            partition=partitions_of(account, self.wire.transaction_partitions),
            timestamp_ms=events.event_ms,
        )

    def _expect_labels(self, events: Events, event_id: NDArray[np.uint8], day: int) -> None:
        labels = labels_of(self.bank, events, day)
        values = encode_labels(events, event_id, labels, self.wire.label_schema_id)
        first = self._sent - len(events)
        for index, row in enumerate(labels.row.tolist()):
            heapq.heappush(
                self._due,
                (int(labels.reported_ms[index]), first + row, int(events.account[row]), values[index]),
            )
