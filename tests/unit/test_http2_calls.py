"""Unary gRPC calls over HTTP/2, byte by byte: what the server may do, and what it may not."""

import struct

import pytest
from grpc import StatusCode

from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    OK,
    PADDED,
    PING,
    PRIORITY,
    RST,
    WELL,
    WINDOW,
    answer,
    frame,
    framed,
    settings,
)
from weir.inference._hpack import BadHeaders, decode, literals
from weir.inference._http2 import Answered, Failed, Http2Calls, ProtocolBroken

HEADERS = literals([(b":method", b"POST")])


def sent(calls: Http2Calls) -> list[tuple[int, int, int, bytes]]:
    """Frames that the client sends: kind, flags, stream, payload."""
    data = b"".join(bytes(part) for part in calls.take()).removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    frames = []
    while data:
        size = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return frames


def begun(message: bytes = b"hello", *given: tuple[int, int]) -> Http2Calls:
    """A connection with one call whose frames are sent, under the server's settings."""
    calls = Http2Calls()
    calls.receive(settings(*given))
    calls.call(HEADERS, message)
    return calls


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_is_read_however_the_bytes_are_cut(size):
    calls = begun()
    data = settings() + answer(1, b"x" * 300)
    events = [e for at in range(0, len(data), size) for e in calls.receive(data[at : at + size])]
    assert events == [Answered(0, b"x" * 300)]
    assert calls.open_calls == []


def test_a_message_over_several_frames_is_one():
    calls, whole = begun(), framed(b"abcdef")
    data = frame(HEAD, END_HEADERS, 1, OK)
    data += b"".join(frame(DATA, 0, 1, whole[at : at + 4]) for at in range(0, len(whole), 4))
    assert calls.receive(data + frame(HEAD, END_HEADERS | END_STREAM, 1, WELL)) == [Answered(0, b"abcdef")]


def test_padding_priorities_and_continuations_are_read_past():
    calls = begun()
    data = frame(HEAD, PADDED | PRIORITY, 1, b"\x03" + bytes(5) + OK[:4] + bytes(3))
    data += frame(CONTINUATION, END_HEADERS, 1, OK[4:])
    data += frame(DATA, PADDED, 1, b"\x02" + framed(b"m") + bytes(2))
    assert calls.receive(data + frame(HEAD, END_HEADERS | END_STREAM, 1, WELL)) == [Answered(0, b"m")]


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (
            frame(
                HEAD,
                END_HEADERS | END_STREAM,
                1,
                literals([(b":status", b"200"), (b"grpc-status", b"5"), (b"grpc-message", b"no %E6%A8%A1")]),
            ),
            StatusCode.NOT_FOUND,
            "no 模",
        ),
        (answer(1, b"x", literals([(b"grpc-status", b"99")])), StatusCode.UNKNOWN, "no detail"),
        (answer(1, b"x", literals([(b"other", b"0")])), StatusCode.UNKNOWN, "no detail"),
        (
            frame(HEAD, END_HEADERS | END_STREAM, 1, literals([(b":status", b"503")])),
            StatusCode.UNAVAILABLE,
            "HTTP status 503",
        ),
        (frame(RST, 0, 1, struct.pack(">I", 7)), StatusCode.UNAVAILABLE, "error 7"),
        (frame(RST, 0, 1, struct.pack(">I", 2)), StatusCode.INTERNAL, "error 2"),
        (frame(DATA, END_STREAM, 1, framed(b"x")), StatusCode.INTERNAL, "without a status"),
        (answer(1, b"x").replace(framed(b"x"), framed(b"x", 1)), StatusCode.INTERNAL, "compressed"),
        (answer(1, b"x").replace(framed(b"x"), b"\0\0\0\0\x09x"), StatusCode.INTERNAL, "not one whole"),
        (
            frame(HEAD, END_HEADERS, 1, OK) + frame(HEAD, END_HEADERS | END_STREAM, 1, WELL),
            StatusCode.INTERNAL,
            "not one whole",
        ),
    ],
)
def test_every_other_end_is_a_failure_with_a_code_and_a_word(data, code, says):
    (event,) = begun().receive(data)
    assert isinstance(event, Failed)
    assert event.code is code
    assert says in event.details


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 20,
        settings((4, 2**31)),
        settings((5, 1)),
        frame(CONTINUATION, END_HEADERS, 1, OK),
        frame(HEAD, 0, 1, OK) + frame(PING, 0, 0, bytes(8)),
        frame(HEAD, END_HEADERS, 1, b"\xff\x00"),
        frame(DATA, PADDED, 1, b"\x09x"),
    ],
)
def test_what_no_server_may_send_breaks_the_connection(data):
    with pytest.raises(ProtocolBroken):
        begun().receive(data)


def test_a_message_is_sent_as_far_as_the_server_has_room():
    """A window of 10 for each call and 65,535 for the connection, then more of both."""
    calls = begun(b"m" * 100, (4, 10))
    body = [payload for kind, _, _, payload in sent(calls) if kind == DATA]
    assert body == [framed(b"m" * 100)[:10]]
    calls.receive(frame(WINDOW, 0, 1, struct.pack(">I", 5)))
    assert [payload for _, _, _, payload in sent(calls)] == [framed(b"m" * 100)[10:15]]
    calls.receive(settings((4, 1000)))
    frames = [each for each in sent(calls) if each[0] == DATA]
    assert b"".join(payload for _, _, _, payload in frames) == framed(b"m" * 100)[15:]
    assert [flags for _, flags, _, _ in frames] == [END_STREAM]


def test_the_connections_room_is_shared_and_the_oldest_call_goes_first():
    calls = begun(b"a" * 60_000, (4, 2**20), (5, 2**20))
    calls.call(HEADERS, b"b" * 60_000)
    before = [(stream, len(payload)) for kind, _, stream, payload in sent(calls) if kind == DATA]
    assert before == [(1, 60_005), (3, 5_530)]
    calls.receive(frame(WINDOW, 0, 0, struct.pack(">I", 2**20)))
    after = [(stream, len(payload)) for kind, _, stream, payload in sent(calls) if kind == DATA]
    assert after == [(3, 54_475)]


def test_no_more_calls_are_begun_than_the_server_takes():
    calls = begun(b"1", (3, 1))
    assert calls.call(HEADERS, b"2") == 1
    assert calls.call(HEADERS, b"3") == 2
    assert {stream for kind, _, stream, _ in sent(calls) if kind == HEAD} == {1}
    assert calls.receive(answer(1, b"x")) == [Answered(0, b"x")]
    assert {stream for kind, _, stream, _ in sent(calls) if kind == HEAD} == {3}
    calls.cancel(2)
    assert calls.open_calls == [1]
    assert calls.receive(answer(3, b"y")) == [Answered(1, b"y")]


def test_a_call_that_was_given_up_is_cancelled_and_its_answer_dropped():
    calls = begun()
    sent(calls)
    calls.cancel(0)
    assert sent(calls) == [(RST, 0, 1, struct.pack(">I", 8))]
    assert calls.receive(answer(1, b"late")) == []
    calls.cancel(0)
    assert sent(calls) == []


def test_a_server_that_goes_away_takes_no_new_calls_and_fails_those_it_never_saw():
    calls = begun(b"1", (3, 2))
    calls.call(HEADERS, b"2")
    calls.call(HEADERS, b"3")
    events = calls.receive(frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
    assert [(event.call, event.code) for event in events] == [
        (1, StatusCode.UNAVAILABLE),
        (2, StatusCode.UNAVAILABLE),
    ]
    assert not calls.usable
    assert calls.receive(answer(1, b"x")) == [Answered(0, b"x")]


def test_pings_are_answered_and_ours_counted():
    calls = Http2Calls()
    sent(calls)
    calls.receive(frame(PING, 0, 0, b"12345678"))
    assert sent(calls) == [(PING, 1, 0, b"12345678")]
    calls.ping()
    assert calls.pings_open == 1
    calls.receive(frame(PING, 1, 0, bytes(8)))
    assert calls.pings_open == 0


def test_the_servers_window_is_renewed_before_it_runs_out():
    calls = begun()
    sent(calls)
    calls.receive(frame(HEAD, END_HEADERS, 1, OK))
    part = frame(DATA, 0, 99, bytes(1024 * 1024))  # of a call that was given up: it counts all the same
    renewed = 0
    for _ in range(1024):
        calls.receive(part)
        renewed += sum(
            int.from_bytes(payload, "big") for kind, _, stream, payload in sent(calls) if kind == WINDOW
        )
    assert renewed == 1024 * 1024 * 1024


def test_an_answer_larger_than_a_message_may_be_ends_the_call():
    calls, events = begun(), []
    calls.receive(frame(HEAD, END_HEADERS, 1, OK))
    for _ in range(65):
        events += calls.receive(frame(DATA, 0, 1, bytes(1024 * 1024)))
    assert [(event.code, event.details) for event in events] == [
        (StatusCode.RESOURCE_EXHAUSTED, "the answer is too large")
    ]


# RFC 7541, appendices C.2.2, C.2.4 and C.4.1; the last two as a Huffman code writes them.
@pytest.mark.parametrize(
    ("block", "headers"),
    [
        ("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")]),
        ("82", [(b":method", b"GET")]),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            [
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"www.example.com"),
            ],
        ),
        (
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff",
            [
                (b":status", b"302"),
                (b"cache-control", b"private"),
                (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
            ],
        ),
        ("2000" + "88", [(b":status", b"200")]),
    ],
)
def test_header_blocks_are_read_as_the_standard_writes_them(block, headers):
    if block.startswith("20"):
        block = "20" + block[4:]  # the table's new size, 0
    assert decode(bytes.fromhex(block)) == tuple(headers)


def test_our_own_blocks_are_read_whatever_their_length():
    headers = ((b"n" * 126, b"v" * 127), (b"x", b""), (b"long", b"y" * 70_000))
    assert decode(literals(headers)) == headers


@pytest.mark.parametrize("block", ["be", "ff80", "00", "0001", "0003616263", "00016105", "0001618100", "80"])
def test_blocks_that_cannot_stand_alone_are_refused(block):
    with pytest.raises(BadHeaders):
        decode(bytes.fromhex(block))
