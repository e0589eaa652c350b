"""Metrics of what a stream processor does beside deciding: transactions, state, snapshots, restores."""

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from weir.obs.metrics import DURATION_BUCKETS_S

RestoreSource = Literal["standby", "changelog", "input"]
Damaged = Literal["snapshot", "changelog", "journal"]
Entity = Literal["account", "terminal"]

_LONG_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class StreamMetrics:
    """One service's; made once a registry."""

    def __init__(self, service: str, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry, self._service = registry, service
        self._transactions = Counter(
            "weir_transactions_total",
            "Transactions by their end: committed, or aborted (rolled back and done again).",
            ["service", "result"],
            registry=registry,
        )
        self._duration = Histogram(
            "weir_transaction_duration_seconds",
            "From the first record sent to the commit's answer.",
            buckets=DURATION_BUCKETS_S,
            labelnames=["service"],
            registry=registry,
        ).labels(service)
        self._in_flight = Gauge(
            "weir_rows_in_flight",
            "Records read and not yet delivered; the service's settings bound them.",
            labelnames=["service"],
            registry=registry,
        ).labels(service)
        self._rows = Gauge(
            "weir_state_rows",
            "Rows of state that this worker holds.",
            ["service", "entity"],
            registry=registry,
        )
        self._forgotten = Counter(
            "weir_state_rows_forgotten_total",
            "Rows let go because no window could see them any more.",
            labelnames=["service"],
            registry=registry,
        ).labels(service)
        self._restored_rows = Counter(
            "weir_state_restored_rows_total",
            "Rows of state brought here, by where they came from: standby, changelog, input.",
            ["service", "source"],
            registry=registry,
        )
        self._restore_duration = Histogram(
            "weir_state_restore_duration_seconds",
            "Until a partition's state was here.",
            buckets=_LONG_BUCKETS_S,
            labelnames=["service"],
            registry=registry,
        ).labels(service)
        self._standby_lag = Gauge(
            "weir_state_standby_lag_records",
            "Records of a partition's changelog that this worker's standby has not taken in yet.",
            ["service", "partition"],
            registry=registry,
        )
        self._snapshots = Counter(
            "weir_state_snapshots_total",
            "Snapshots: written, or failed (the one before is kept).",
            ["service", "result"],
            registry=registry,
        )
        self._snapshot_time = Gauge(
            "weir_state_snapshot_timestamp_seconds",
            "When the last snapshot was written, seconds since 1970.",
            labelnames=["service"],
            registry=registry,
        ).labels(service)
        self._damaged = Counter(
            "weir_state_damaged_total",
            "State whose checksum did not match: snapshot, changelog, journal. It was not used.",
            ["service", "kind"],
            registry=registry,
        )

    def committed(self, duration_s: float) -> None:
        """A transaction has committed."""
        self._transactions.labels(self._service, "committed").inc()
        self._duration.observe(duration_s)

    def aborted(self) -> None:
        """What was in flight was rolled back."""
        self._transactions.labels(self._service, "aborted").inc()

    def watch_rows(self, entity: Entity, count: Callable[[], float]) -> None:
        """Ask `count` whenever somebody reads the metrics."""
        self._rows.labels(self._service, entity).set_function(count)

    def watch_in_flight(self, count: Callable[[], float]) -> None:
        """Ask `count` whenever somebody reads the metrics."""
        self._in_flight.set_function(count)

    def forgotten(self, row_count: int) -> None:
        """Rows were let go."""
        self._forgotten.inc(row_count)

    def restored(self, source: RestoreSource, row_count: int, duration_s: float) -> None:
        """A partition's state is here."""
        self._restored_rows.labels(self._service, source).inc(row_count)
        self._restore_duration.observe(duration_s)

    def standby_lag(self, partition: int, record_count: int) -> None:
        """How far a standby is behind what has committed."""
        self._standby_lag.labels(self._service, str(partition)).set(record_count)

    def standby_gone(self, partition: int) -> None:
        """This worker keeps the partition warm no longer."""
        with suppress(KeyError):
            self._standby_lag.remove(self._service, str(partition))

    def snapshot_written(self, at_s: float) -> None:
        """All files of a snapshot are there."""
        self._snapshots.labels(self._service, "written").inc()
        self._snapshot_time.set(at_s)

    def snapshot_failed(self) -> None:
        """A file of a snapshot could not be written."""
        self._snapshots.labels(self._service, "failed").inc()

    def damaged(self, kind: Damaged) -> None:
        """Something was not used because its checksum did not match."""
        self._damaged.labels(self._service, kind).inc()
