"""The metrics that all services share, by name, unit and closed label sets (`docs/reference/metrics.md`).

A service takes one `Metrics` and passes it down; what is only its own it registers in `Metrics.registry`.
Rows are counted by batch: one call a batch and label, never one a row.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Literal, get_args
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

Service = Literal["risk", "credit", "chat", "keys", "ledger", "gateway", "training", "monitor", "simulator"]
Outcome = Literal["approve", "review", "decline"]
Basis = Literal["model", "rule", "degraded"]
Stage = Literal[
    "queue", "decode", "validate", "features", "model", "decide", "encode", "seal", "send", "open", "store"
]
ReloadResult = Literal["loaded", "refused"]

# Closed: a reason that is not here is counted as "other", so that input cannot make series.
DEAD_LETTER_REASONS = frozenset(
    {
        "not_framed",
        "truncated",
        "unknown_schema",
        "bad_utf8",
        "trailing_bytes",
        "overflow",
        "bad_enum",
        "empty",
        "negative_amount",
        "zero_amount",
        "absurd_amount",
        "unknown_currency",
        "event_in_future",
        "event_too_old",
        "empty_id",
        "id_too_long",
        "not_decided",
        "not_opened",
        "not_stored",
        "another_customer",
        "unknown_conversation",
        "not_answered",
    }
)
OTHER = "other"

DURATION_BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
LATENCY_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    15.0,
    60.0,
)
ROW_BUCKETS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The collectors of one registry; made once for it, however many services and tests ask."""

    decisions: Counter
    dead_letters: Counter
    model_duration: Histogram
    model_errors: Counter
    model_retries: Counter
    breaker_open: Gauge
    stage_duration: Histogram
    batch_rows: Histogram
    event_latency: Histogram
    late_events: Counter
    policy_reloads: Counter
    build_info: Gauge


_collectors: WeakKeyDictionary[CollectorRegistry, _Shared] = WeakKeyDictionary()


def _shared(registry: CollectorRegistry) -> _Shared:
    known = _collectors.get(registry)
    if known is None:
        known = _collectors[registry] = _register(registry)
    return known


def _register(registry: CollectorRegistry) -> _Shared:
    return _Shared(
        decisions=Counter(
            "weir_decisions_total",
            "Decisions made; basis: model (thresholds), rule (a rule raised it), degraded (no model).",
            ["service", "outcome", "basis"],
            registry=registry,
        ),
        dead_letters=Counter(
            "weir_dlq_records_total",
            "Records sent to the dead letter topic.",
            ["service", "reason"],
            registry=registry,
        ),
        model_duration=Histogram(
            "weir_model_request_duration_seconds",
            "One answered request to the model server, as its caller sees it.",
            ["model"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        ),
        model_errors=Counter(
            "weir_model_errors_total",
            "Batches that were not scored; kind: unavailable, circuit_open, rejected.",
            ["model", "kind"],
            registry=registry,
        ),
        model_retries=Counter(
            "weir_model_retries_total",
            "Requests to the model server sent again.",
            ["model"],
            registry=registry,
        ),
        breaker_open=Gauge(
            "weir_model_circuit_state",
            "Circuit breaker to the model server: 0 closed, 1 half-open, 2 open.",
            ["model"],
            registry=registry,
        ),
        stage_duration=Histogram(
            "weir_stage_duration_seconds",
            "One batch in one stage of a service.",
            ["service", "stage"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        ),
        batch_rows=Histogram(
            "weir_batch_rows", "Rows in a batch.", ["service"], buckets=ROW_BUCKETS, registry=registry
        ),
        event_latency=Histogram(
            "weir_event_latency_seconds",
            "From a record's Kafka timestamp to its result being acknowledged.",
            ["service"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        ),
        late_events=Counter(
            "weir_late_events_total",
            "Events older than the watermark less the allowed lateness.",
            ["service"],
            registry=registry,
        ),
        policy_reloads=Counter(
            "weir_policy_reloads_total",
            "Changed policy files, taken or refused.",
            ["result"],
            registry=registry,
        ),
        build_info=Gauge(
            "weir_build_info",
            "Always 1; what runs stands in the labels.",
            ["service", "version", "python"],
            registry=registry,
        ),
    )


class Metrics:
    """One service's view of the shared metrics; cheap to make, safe to make twice."""

    def __init__(self, service: Service, registry: CollectorRegistry = REGISTRY) -> None:
        if service not in get_args(Service):
            raise ValueError(f"{service!r} is not a service that the metrics know")
        self.service, self.registry = service, registry
        self._all = shared = _shared(registry)
        self._stages = {name: shared.stage_duration.labels(service, name) for name in get_args(Stage)}
        self._outcomes = {
            (outcome, basis): shared.decisions.labels(service, outcome, basis)
            for outcome in get_args(Outcome)
            for basis in get_args(Basis)
        }
        self._batch_rows = shared.batch_rows.labels(service)
        self._latency = shared.event_latency.labels(service)
        self._late = shared.late_events.labels(service)
        shared.build_info.labels(service, build_version(), platform.python_version()).set(1)

    def decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Adds a batch's decisions, `{(outcome, basis): count}`.

        Raises:
            KeyError: an outcome or a basis outside the closed sets.
        """
        for key, count in counts.items():
            self._outcomes[key].inc(count)

    def dead_lettered(self, reason: str, count: int = 1) -> None:
        """Adds records sent to the dead letter topic; an unknown reason counts as "other"."""
        known = reason if reason in DEAD_LETTER_REASONS else OTHER
        self._all.dead_letters.labels(self.service, known).inc(count)

    def stage(self, name: Stage, duration_s: float) -> None:
        """Notes how long a batch spent in a stage."""
        self._stages[name].observe(duration_s)

    @contextmanager
    def timed(self, name: Stage) -> Iterator[None]:
        """Notes how long the block took, as that stage."""
        begun = perf_counter()
        try:
            yield
        finally:
            self._stages[name].observe(perf_counter() - begun)

    def batch(self, row_count: int) -> None:
        """Notes a batch's size."""
        self._batch_rows.observe(row_count)

    def latency(self, latencies_s: Iterable[float]) -> None:
        """Notes end-to-end latencies; give a sample a batch (first, last), not every row."""
        for latency_s in latencies_s:
            self._latency.observe(latency_s)

    def late(self, count: int) -> None:
        """Adds late events."""
        self._late.inc(count)

    def policy_reloaded(self, result: ReloadResult) -> None:
        """Notes that a changed policy file was taken or refused."""
        self._all.policy_reloads.labels(result).inc()

    def model(self, model: str) -> "ModelMetrics":
        """The metrics of one model that this service calls."""
        return ModelMetrics(self._all, model)


class ModelMetrics:
    """What the model client counts for one model; the name comes from settings, not from input."""

    def __init__(self, shared: _Shared, model: str) -> None:
        self._duration = shared.model_duration.labels(model)
        self._errors = {
            kind: shared.model_errors.labels(model, kind)
            for kind in ("unavailable", "circuit_open", "rejected")
        }
        self._retries = shared.model_retries.labels(model)
        self._state = shared.breaker_open.labels(model)

    def answered(self, duration_s: float) -> None:
        """Notes one answered request."""
        self._duration.observe(duration_s)

    def failed(self, kind: Literal["unavailable", "circuit_open", "rejected"]) -> None:
        """Adds a batch that was not scored."""
        self._errors[kind].inc()

    def retried(self) -> None:
        """Adds a request sent again."""
        self._retries.inc()

    def circuit(self, state: int) -> None:
        """Sets the breaker's state: 0 closed, 1 half-open, 2 open."""
        self._state.set(state)


def build_version() -> str:
    """The installed version of Weir, or "unknown" when it runs from a bare checkout."""
    try:
        return version("weir")
    except PackageNotFoundError:
        return "unknown"
