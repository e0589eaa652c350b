"""Trace context: the specification's valid and invalid headers, and what we hand on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.obs import trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


def test_the_specifications_example_is_read():
    context = trace.parse(VALID)
    assert context == trace.TraceContext(TRACE, SPAN, 1)
    assert context.sampled
    assert context.traceparent == VALID


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        VALID.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{VALID}-more",
        f"{VALID}.",
        f"01-{TRACE}-{SPAN}-01.more",
        f" {VALID}",
        f"{VALID}\n",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        VALID.replace("4", "４", 1),
    ],
)
def test_what_breaks_the_specification_is_no_trace(header):
    assert trace.parse(header) is None
    assert trace.parse(header.encode()) is None


def test_a_later_version_is_read_by_its_first_four_fields():
    assert trace.parse(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds") == trace.TraceContext(TRACE, SPAN, 1)
    assert trace.parse(f"cc-{TRACE}-{SPAN}-01") is not None


def test_a_child_keeps_the_trace_and_drops_flags_it_does_not_know():
    parent = trace.parse(f"00-{TRACE}-{SPAN}-ff")
    child = parent.child()
    assert (child.trace_id, child.flags) == (TRACE, 0x03)
    assert child.span_id != SPAN


def test_an_id_is_never_all_zeros():
    context = trace.new(random_bytes=bytes)
    assert trace.parse(context.traceparent) == context
    assert trace.parse(context.child(bytes).traceparent) is not None


@given(st.binary(min_size=16, max_size=16).filter(any), st.binary(min_size=8, max_size=8).filter(any))
def test_what_is_written_is_read_back(trace_id, span_id):
    context = trace.TraceContext(trace_id.hex(), span_id.hex(), 1)
    assert trace.from_headers(trace.with_trace([], context)) == context


@given(st.binary())
def test_no_bytes_raise(header):
    trace.parse(header)


def test_headers_keep_the_rest_and_carry_one_trace():
    context = trace.parse(VALID)
    old: list[trace.Header] = [("traceparent", b"broken"), ("weir.envelope", b"\x01"), ("empty", None)]
    headers = trace.with_trace(old, context)
    assert headers == [("weir.envelope", b"\x01"), ("empty", None), ("traceparent", VALID.encode())]
    assert trace.from_headers(headers) == context
    assert trace.from_headers([*headers, headers[-1]]) is None
    assert trace.from_headers(None) is None
