"""Logs: one form for all libraries, and no private value in any line."""

import io
import json
import logging

import pytest

from weir.config import LogSettings
from weir.obs import log, trace

ACCOUNT = "DE02120300000000202051"


@pytest.fixture
def lines():
    """Configures JSON logs into memory; calling it gives the lines so far, parsed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure(LogSettings(format="json", level="debug"), service="risk", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = handlers, level


def test_an_event_has_its_fields_its_service_and_its_time(lines):
    log.get_logger("weir.streams").warning("batch_split", topic="bank.transactions", row_count=200)
    (line,) = lines()
    assert line["event"] == "batch_split"
    assert (line["service"], line["level"], line["logger"]) == ("risk", "warning", "weir.streams")
    assert (line["topic"], line["row_count"]) == ("bank.transactions", 200)
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("field", ["account_id", "pan", "material", "ACCOUNT_ID", "db_password", "token"])
def test_a_private_field_is_redacted_at_any_depth(lines, field):
    log.get_logger("t").info("seen", **{field: ACCOUNT}, nested=[{"deep": {field: ACCOUNT}}])
    (line,) = lines()
    assert line[field] == log.REDACTED
    assert ACCOUNT not in json.dumps(line)


def test_bytes_are_shown_by_size(lines):
    log.get_logger("t").info("seen", value=b"\x00secret", more=[bytearray(3)])
    (line,) = lines()
    assert (line["value"], line["more"]) == ("[7 bytes]", ["[3 bytes]"])


def test_a_traceback_shows_no_local_variable(lines):
    secret = ACCOUNT
    try:
        raise ValueError("broken")
    except ValueError:
        log.get_logger("t").exception("failed")
        logging.getLogger("faust.agents").exception("agent failed")
    ours, fausts = lines()
    assert ours["exception"][0]["exc_value"] == "broken"
    assert fausts["exception"][0]["exc_value"] == "broken"
    assert secret not in json.dumps([ours, fausts])


def test_the_libraries_lines_take_the_same_form(lines):
    logging.getLogger("faust.worker").info("Starting %s", "worker")
    logging.getLogger("aiokafka.consumer").info("Fetched %r", ACCOUNT)
    (line,) = lines()
    assert (line["event"], line["service"], line["logger"]) == ("Starting worker", "risk", "faust.worker")


def test_a_value_cannot_forge_a_line(lines):
    log.get_logger("t").info("seen", detail='x\n{"event":"forged"}')
    assert len(lines()) == 1


def test_lines_inside_a_trace_carry_its_ids(lines):
    context = trace.new()
    with log.traced(context), log.traced(None):
        log.get_logger("t").info("inside")
    log.get_logger("t").info("outside")
    inside, outside = lines()
    assert (inside["trace_id"], inside["span_id"]) == (context.trace_id, context.span_id)
    assert "trace_id" not in outside


def test_the_human_form_redacts_too():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure(LogSettings(format="human", level="info"), service="keys", stream=stream)
    log.get_logger("t").info("key_given", material=b"k" * 32, key_id=7)
    log.get_logger("t").debug("too_fine")
    root.handlers[:], root.level = handlers, level
    text = stream.getvalue()
    assert "key_given" in text
    assert "key_id=7" in text
    assert "kkk" not in text
    assert "too_fine" not in text
