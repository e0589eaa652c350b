"""W3C trace context on record headers: `traceparent` in, a child of it out.

Source: https://www.w3.org/TR/trace-context-2/, sections 3.2 (traceparent) and 4.3 (mutation).
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TRACEPARENT = "traceparent"

# Versions after 00 may append fields behind another dash; what stands in front keeps its meaning.
_PATTERN = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01
_RANDOM = 0x02
_FLAGS_KNOWN = _SAMPLED | _RANDOM

Header = tuple[str, bytes | None]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One step of a trace: `trace_id` (32 hex digits) is shared by all steps, `span_id` (16) is its own."""

    trace_id: str
    span_id: str
    flags: int = 0

    @property
    def sampled(self) -> bool:
        """Whether whoever began the trace records it."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header's text, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & _FLAGS_KNOWN:02x}"

    def child(self, random_bytes: Callable[[int], bytes] = os.urandom) -> "TraceContext":
        """The next step of the same trace, with a span id of its own."""
        return TraceContext(self.trace_id, _nonzero_hex(8, random_bytes), self.flags & _FLAGS_KNOWN)


def new(*, sampled: bool = False, random_bytes: Callable[[int], bytes] = os.urandom) -> TraceContext:
    """The first step of a new trace; its id is random as level 2 of the specification asks."""
    flags = _RANDOM | (_SAMPLED if sampled else 0)
    return TraceContext(_nonzero_hex(16, random_bytes), _nonzero_hex(8, random_bytes), flags)


def parse(value: bytes | str | None) -> TraceContext | None:
    """What a `traceparent` says, or None when it breaks the specification in any way.

    Refused: upper case, an id of zeros, version ff, version 00 with anything behind its flags.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if not value.isascii():
            return None
        value = value.encode("ascii")
    match = _PATTERN.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return TraceContext(trace_id.decode("ascii"), span_id.decode("ascii"), int(flags, 16))


def from_headers(headers: Iterable[Header] | None) -> TraceContext | None:
    """The trace a record belongs to; None when it has no header, a broken one, or two of them."""
    values = [value for name, value in headers or () if name == TRACEPARENT]
    return parse(values[0]) if len(values) == 1 else None


def with_trace(headers: Iterable[Header] | None, context: TraceContext) -> list[Header]:
    """`headers` with `context` in place of any trace they carried."""
    kept = [(name, value) for name, value in headers or () if name != TRACEPARENT]
    return [*kept, (TRACEPARENT, context.traceparent.encode("ascii"))]


def _nonzero_hex(size: int, random_bytes: Callable[[int], bytes]) -> str:
    """`size` random bytes as hex; all zeros means "no id" on the wire, so it is never given out."""
    value = random_bytes(size)
    return value.hex() if any(value) else "0" * (2 * size - 1) + "1"
