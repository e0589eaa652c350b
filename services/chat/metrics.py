"""What only the chat service counts, beside the shared metrics."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from services.chat.turn.values import Turned
from weir.obs.metrics import Metrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ChatMetrics:
    """One worker's; made once a registry."""

    def __init__(self, shared: Metrics) -> None:
        self.shared = shared
        registry = shared.registry
        self._replies = Counter(
            "weir_chat_replies_total",
            "Replies by outcome; origin: generated where a sentence of the model was shown, else reviewed.",
            ["outcome", "origin"],
            registry=registry,
        )
        self._handovers = Counter(
            "weir_chat_handovers_total", "Conversations handed to a person.", ["reason"], registry=registry
        )
        self._duplicates = Counter(
            "weir_chat_duplicates_total",
            "Messages that had been answered already, and were not again.",
            registry=registry,
        )
        self._degraded = Counter(
            "weir_chat_degraded_total",
            "Replies made while a model or the knowledge was away.",
            registry=registry,
        )
        self._masked = Counter(
            "weir_chat_masked_total", "Personal data masked.", ["data_class"], registry=registry
        )
        self._first = Histogram(
            "weir_chat_first_sentence_seconds",
            "From reading a message to the first sentence that its customer could see.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._watchers = Gauge(
            "weir_chat_watchers", "Answers that are watched while they are written.", registry=registry
        )
        self._rows = Gauge(
            "weir_chat_conversations", "Conversations that this worker holds.", registry=registry
        )

    def turned(self, turned: Turned) -> None:
        """A reply is durable."""
        origin = "generated" if turned.is_generated else "reviewed"
        self._replies.labels(turned.outcome.lower(), origin).inc()
        if turned.handed is not None:
            self._handovers.labels(turned.handed.reason.value).inc()
        if turned.trail.degraded:
            self._degraded.inc()
        for span in turned.trail.masked.spans:
            self._masked.labels(span.data_class.value).inc()
        self._first.observe(turned.first_sentence_ms / 1000)

    def duplicate(self) -> None:
        """A message came again."""
        self._duplicates.inc()

    def watch(self, rows: Callable[[], float], watchers: Callable[[], float]) -> None:
        """Ask whenever somebody reads the metrics."""
        self._rows.set_function(rows)
        self._watchers.set_function(watchers)
