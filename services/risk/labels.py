"""Labels off the wire: what is not a label is counted and left out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter

from weir.codec.columns import LabelReader
from weir.features.columns import EVENT_MS_MAX, Labels
from weir.obs.log import get_logger
from weir.state.hashing import keyed_hash

log = get_logger("weir.risk.labels")

# A label's payment may be ahead of the label's record by this much: the clocks of two machines, or of zones.
AHEAD_MS_MAX = 86_400_000


class LabelReading:
    """Reads batches of the labels topic."""

    def __init__(
        self, reader: LabelReader, schema_id: int, hash_key: bytes, registry: CollectorRegistry
    ) -> None:
        self._reader, self._schema_id, self._hash_key = reader, schema_id, hash_key
        labels = Counter(
            "weir_labels_total", "Labels, learnt or refused.", ["service", "result"], registry=registry
        )
        self._learnt, self._refused = labels.labels("risk", "learnt"), labels.labels("risk", "refused")

    def __call__(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int]
    ) -> tuple[Labels, NDArray[np.int64]]:
        """The labels among `values`, and (n,) int64 the rows in which they stood.

        Args:
            timestamps_ms: Kafka's, of each record. They and no clock say what is of the future, for a label
                that is read again must be judged as it was.
        """
        columns, poison = self._reader.read(values, self._schema_id)
        # A time outside the clock's range would break the windows' rings.
        event_ms, reported_ms = columns.ints["event_time"], columns.ints["reported_time"]
        sound = (event_ms >= 0) & (reported_ms >= event_ms) & (reported_ms < EVENT_MS_MAX)
        # A terminal's windows end at its newest hour: one of years ahead would empty them.
        sound &= event_ms <= np.asarray(timestamps_ms, np.int64)[columns.row] + AHEAD_MS_MAX
        sound &= (columns.strings["account_id"].length > 0) & (columns.strings["terminal_id"].length > 0)
        refused = len(poison) + int(np.count_nonzero(~sound))
        if refused:
            self._refused.inc(refused)
            log.warning("labels_refused", row_count=refused)
        columns = columns.take(np.flatnonzero(sound))
        self._learnt.inc(columns.row_count)
        labels = Labels(
            account=keyed_hash(columns.strings["account_id"], self._hash_key),
            terminal=keyed_hash(columns.strings["terminal_id"], self._hash_key),
            event_ms=columns.ints["event_time"],
            reported_ms=columns.ints["reported_time"],
            is_fraud=columns.ints["is_fraud"].astype(np.bool_),
        )
        return labels, columns.row
