"""Structured logs: an event in the past tense with fields, as JSON or for people, on stderr.

    log = get_logger("weir.streams")
    log.warning("batch_split", topic=topic, partition=0, offset_first=17, row_count=200)

No personal or secret value leaves through here: a field whose name is known as one is redacted, bytes are
shown by their size only, and tracebacks carry no local variables.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from weir.config import LogSettings
from weir.obs.trace import TraceContext

REDACTED = "[redacted]"

# Personal (class C3) or secret by name. Closed: a new field of class C3 is added to the schema and here.
PRIVATE_FIELDS = frozenset(
    {
        "account",
        "account_id",
        "account_number",
        "authorization",
        "card",
        "card_number",
        "counterparty",
        "counterparty_id",
        "cvv",
        "data_key",
        "dek",
        "email",
        "iban",
        "kek",
        "key_bytes",
        "key_material",
        "material",
        "pan",
        "passphrase",
        "password",
        "phone",
        "pin",
        "plaintext",
        "private_key",
        "prompt",
        "sasl_password",
        "secret",
        "token",
    }
)
_PRIVATE_ENDINGS = ("_password", "_secret", "_token", "_material", "_passphrase", "_plaintext")

# Clients whose debug and info lines repeat records or drown our own.
_QUIET = {
    "aiokafka": logging.WARNING,
    "kafka": logging.WARNING,
    "httpx": logging.WARNING,
    "asyncio": logging.WARNING,
}


def is_private(field: str) -> bool:
    """Whether a field of this name may never show its value in a log."""
    name = field.lower()
    return name in PRIVATE_FIELDS or name.endswith(_PRIVATE_ENDINGS)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The event with private fields redacted at any depth and bytes shown by their size."""
    for name, value in event.items():
        # The exception itself is rendered later, without locals; it is not ours to take apart.
        if name not in ("exc_info", "_record"):
            event[name] = REDACTED if is_private(name) and value is not None else _safe(value)
    return event


def _safe(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{memoryview(value).nbytes} bytes]"
    if isinstance(value, Mapping):
        return {
            name: REDACTED if is_private(str(name)) and item is not None else _safe(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(item) for item in value]
    return value


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Line breaks inside texts are escaped, so that no value can forge a line of its own."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception" and ("\n" in value or "\r" in value):
            event[name] = value.replace("\r", "\\r").replace("\n", "\\n")
    return event


def configure(settings: LogSettings, *, service: str, stream: TextIO | None = None) -> None:
    """Sends every log of this process, ours and the libraries' (Faust, aiokafka), to `stream` in one form.

    Call once at start, and again after a library that replaced the root handlers; the last call wins.

    Args:
        settings: [log].
        service: stands in every line, as `service`.
        stream: stderr when None.
    """
    target = stream if stream is not None else sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_adder(service),
        redact,
        _one_line,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings, target),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, at_least in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, at_least))


def _rendering(settings: LogSettings, target: TextIO) -> list[Processor]:
    if settings.format == "json":
        # Locals in a traceback would carry account numbers and keys.
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer(default=str)]
    return [
        structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=28
        )
    ]


def _service_adder(service: str) -> Processor:
    def add(
        _logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    return add


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger by its module's name; usable before `configure`."""
    return structlog.stdlib.get_logger(name)


@contextmanager
def traced(context: TraceContext | None) -> Iterator[None]:
    """Inside, every line of this task carries `trace_id` and `span_id`; nothing when there is no trace."""
    if context is None:
        yield
        return
    with structlog.contextvars.bound_contextvars(trace_id=context.trace_id, span_id=context.span_id):
        yield
