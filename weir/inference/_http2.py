"""Unary gRPC calls over HTTP/2, without a socket: calls and received bytes in, bytes to send and events out.

What a client of one trusted server needs, no more: no dynamic header table, no push, no priorities. The
connection's shell (`_channel.py`) owns time and the socket. Tests hold it against gRPC's own server.

Source: RFC 9113 (HTTP/2); https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from grpc import StatusCode

from weir.inference._hpack import BadHeaders, Headers, decode

MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_WINDOW_UPDATE, _CONTINUATION = 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x01, 0x01, 0x04, 0x08, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_WINDOW_FIRST, _WINDOW_MOST, _FRAME_FIRST, _FRAME_MOST = 65_535, 2**31 - 1, 16_384, 2**24 - 1
_FRAME_HEADER_BYTES = 9
_OUR_FRAME_MAX = 1024 * 1024
# The server may send so much before we say that there is room again.
_WINDOW_RENEWED = 2**29
_REFUSED_STREAM, _CANCEL, _ENHANCE_YOUR_CALM = 7, 8, 11
_PREFIX_BYTES = 5
_STREAM_LAST = 2**31 - 1

_CODES = {code.value[0]: code for code in StatusCode}
_OF_HTTP = {
    b"400": StatusCode.INTERNAL,
    b"401": StatusCode.UNAUTHENTICATED,
    b"403": StatusCode.PERMISSION_DENIED,
    b"404": StatusCode.UNIMPLEMENTED,
    b"429": StatusCode.UNAVAILABLE,
    b"502": StatusCode.UNAVAILABLE,
    b"503": StatusCode.UNAVAILABLE,
    b"504": StatusCode.UNAVAILABLE,
}
_OF_RESET = {
    _REFUSED_STREAM: StatusCode.UNAVAILABLE,
    _CANCEL: StatusCode.CANCELLED,
    _ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
}


class ProtocolBroken(Exception):
    """What the server sends is not HTTP/2, or not what it may send: the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call's message."""

    call: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A call's end without a message."""

    call: int
    code: StatusCode
    details: str


Event = Answered | Failed


@dataclass(slots=True)
class _Call:
    number: int
    unsent: memoryview
    window: int
    headers: Headers | None = None
    parts: list[bytes] = field(default_factory=list)
    received: int = 0


class Http2Calls:
    """One connection's calls. `take` what is to be sent after each step; `receive` what came.

    `closing`: the server takes no new calls here; those it took end as usual.
    """

    def __init__(self) -> None:
        settings = {
            _HEADER_TABLE_SIZE: 0,
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW: _WINDOW_MOST,
            _MAX_FRAME: _OUR_FRAME_MAX,
        }
        self._out: list[bytes | memoryview] = [_PREFACE]
        self._frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in settings.items()))
        self._frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW_MOST - _WINDOW_FIRST))
        self.closing = False
        self.pings_open = 0
        self._calls: dict[int, _Call] = {}
        self._sending: deque[_Call] = deque()
        self._not_begun: deque[tuple[int, bytes, bytes]] = deque()
        self._next_call, self._next_stream = 0, 1
        self._stream_of: dict[int, int] = {}
        self._window, self._call_window = _WINDOW_FIRST, _WINDOW_FIRST
        self._frame_max, self._calls_max = _FRAME_FIRST, _STREAM_LAST
        self._buffer = b""
        self._block: tuple[int, int, bytes] | None = None
        self._unrenewed = 0

    @property
    def usable(self) -> bool:
        """Whether a new call may begin here."""
        return not self.closing and self._next_stream <= _STREAM_LAST

    @property
    def open_calls(self) -> list[int]:
        """Calls without an outcome."""
        return [*self._stream_of, *(call for call, _, _ in self._not_begun)]

    def take(self) -> Sequence[bytes | memoryview]:
        """What is to be sent now, in order."""
        out, self._out = self._out, []
        return out

    def call(self, headers: bytes, message: bytes) -> int:
        """Begin a call; its number. headers: a block (`_hpack.literals`). message: what protobuf wrote."""
        number = self._next_call
        self._next_call += 1
        if len(self._calls) < self._calls_max and not self._not_begun:
            self._begin(number, headers, message)
            self._send_on()
        else:
            self._not_begun.append((number, headers, message))
        return number

    def cancel(self, number: int) -> None:
        """Forget a call, and let the server forget it; nothing when it has its outcome."""
        stream = self._stream_of.get(number)
        if stream is not None:
            self._end(stream)
            self._frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))
            self._send_on()
        else:
            self._not_begun = deque(each for each in self._not_begun if each[0] != number)

    def ping(self) -> None:
        """Ask whether the server is there; `pings_open` counts what was not answered."""
        self.pings_open += 1
        self._frame(_PING, 0, 0, bytes(8))

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes mean.

        Raises:
            ProtocolBroken: they are not what a server may send.
        """
        events: list[Event] = []
        data = self._buffer + data if self._buffer else data
        position, end = 0, len(data)
        while end - position >= _FRAME_HEADER_BYTES:
            length = int.from_bytes(data[position : position + 3], "big")
            kind, flags = data[position + 3], data[position + 4]
            if length > _OUR_FRAME_MAX:
                what = "HTTP/1" if data[position : position + 5] == b"HTTP/" else "no HTTP/2"
                raise ProtocolBroken(f"the server speaks {what}; check that the endpoint is its gRPC port")
            begin = position + _FRAME_HEADER_BYTES
            if end - begin < length:
                break
            stream = int.from_bytes(data[position + 5 : begin], "big") & _STREAM_LAST
            position = begin + length
            self._received(kind, flags, stream, data[begin:position], events)
        self._buffer = data[position:]
        return events

    # -- received frames -----------------------------------------------------------------------------------

    def _received(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise ProtocolBroken("the server broke off a header block")
        if kind == _DATA:
            self._data(flags, stream, payload, events)
        elif kind in (_HEADERS, _CONTINUATION):
            self._header_block(kind, flags, stream, payload, events)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _WINDOW_UPDATE and len(payload) == 4:
            self._more_window(stream, int.from_bytes(payload, "big") & _WINDOW_MOST)
        elif kind == _PING:
            if flags & _ACK:
                self.pings_open = max(0, self.pings_open - 1)
            else:
                self._frame(_PING, _ACK, 0, payload)
        elif kind == _RST_STREAM and stream in self._calls:
            reason = int.from_bytes(payload[:4], "big")
            code = _OF_RESET.get(reason, StatusCode.INTERNAL)
            self._fail(stream, code, f"the server ended the call (HTTP/2 error {reason})", events)
        elif kind == _GOAWAY:
            self._going_away(payload, events)

    def _data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._unrenewed += len(payload)
        if self._unrenewed >= _WINDOW_RENEWED:
            self._frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unrenewed))
            self._unrenewed = 0
        call = self._calls.get(stream)
        if call is None:
            return  # of a call that was given up
        if flags & _PADDED:
            payload = _unpadded(payload)
        call.parts.append(payload)
        call.received += len(payload)
        if call.received > MESSAGE_BYTES_MAX + _PREFIX_BYTES:
            self._frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))
            self._fail(stream, StatusCode.RESOURCE_EXHAUSTED, "the answer is too large", events)
        elif flags & _END_STREAM:
            self._fail(stream, StatusCode.INTERNAL, "the answer ended without a status", events)

    def _header_block(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if kind == _HEADERS:
            if flags & _PADDED:
                payload = _unpadded(payload)
            if flags & _PRIORITY:
                payload = payload[5:]
            self._block = (stream, flags, payload)
        elif self._block is None or self._block[0] != stream:
            raise ProtocolBroken("the server went on with a header block that it had not begun")
        else:
            self._block = (stream, self._block[1], self._block[2] + payload)
        if not flags & _END_HEADERS:
            return
        (stream, first_flags, block), self._block = self._block, None
        call = self._calls.get(stream)
        if call is None:
            return
        try:
            headers = decode(block)
        except BadHeaders as error:
            raise ProtocolBroken(f"a header block cannot be read: {error}") from error
        if first_flags & _END_STREAM:
            self._ended(stream, call, headers, events)
        elif call.headers is None:
            call.headers = headers

    def _ended(self, stream: int, call: _Call, trailers: Headers, events: list[Event]) -> None:
        outcome = _outcome(call, trailers)
        self._end(stream)
        if call.unsent:
            # It answered before it had the whole message, and waits for no more of it.
            self._frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))
        events.append(outcome)

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload) - 5, 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == _INITIAL_WINDOW:
                if value > _WINDOW_MOST:
                    raise ProtocolBroken("the server's window is too large")
                for call in self._calls.values():
                    call.window += value - self._call_window
                self._call_window = value
            elif name == _MAX_FRAME:
                if not _FRAME_FIRST <= value <= _FRAME_MOST:
                    raise ProtocolBroken("the server's frames are of an impossible size")
                self._frame_max = value
            elif name == _MAX_STREAMS:
                self._calls_max = value
        self._frame(_SETTINGS, _ACK, 0, b"")
        self._send_on()

    def _more_window(self, stream: int, more: int) -> None:
        if not stream:
            self._window += more
        elif stream in self._calls:
            self._calls[stream].window += more
        self._send_on()

    def _going_away(self, payload: bytes, events: list[Event]) -> None:
        self.closing = True
        last = int.from_bytes(payload[:4], "big") & _STREAM_LAST
        for stream in [each for each in self._calls if each > last]:
            self._fail(stream, StatusCode.UNAVAILABLE, "the server is going away", events)
        while self._not_begun:
            number, _, _ = self._not_begun.popleft()
            events.append(Failed(number, StatusCode.UNAVAILABLE, "the server is going away"))

    # -- calls ---------------------------------------------------------------------------------------------

    def _begin(self, number: int, headers: bytes, message: bytes) -> None:
        stream = self._next_stream
        self._next_stream += 2
        body = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        call = _Call(number, body, self._call_window)
        self._calls[stream] = call
        self._stream_of[number] = stream
        self._frame(_HEADERS, _END_HEADERS, stream, headers)
        self._sending.append(call)

    def _send_on(self) -> None:
        """Send as much of the calls' messages as the server has room for, the oldest call first."""
        while self._not_begun and len(self._calls) < self._calls_max and not self.closing:
            self._begin(*self._not_begun.popleft())
        blocked: list[_Call] = []
        while self._sending and self._window > 0:
            call = self._sending.popleft()
            stream = self._stream_of.get(call.number)
            if stream is None:
                continue  # it has its outcome
            while call.unsent and (size := min(self._window, call.window, self._frame_max)) > 0:
                part, call.unsent = call.unsent[:size], call.unsent[size:]
                self._window -= len(part)
                call.window -= len(part)
                self._frame(_DATA, 0 if call.unsent else _END_STREAM, stream, part)
            if call.unsent:
                blocked.append(call)
        self._sending.extendleft(reversed(blocked))

    def _fail(self, stream: int, code: StatusCode, details: str, events: list[Event]) -> None:
        events.append(Failed(self._end(stream), code, details))

    def _end(self, stream: int) -> int:
        number = self._calls.pop(stream).number
        del self._stream_of[number]
        if self._not_begun:
            self._send_on()
        return number

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        self._out.append(len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big"))
        if payload:
            self._out.append(payload)


def _outcome(call: _Call, trailers: Headers) -> Event:
    """What the call came to, by the headers and the message before the trailers."""
    said = dict(trailers)
    http = dict(call.headers if call.headers is not None else trailers).get(b":status", b"none")
    if http != b"200":
        code = _OF_HTTP.get(http, StatusCode.UNKNOWN)
        return Failed(call.number, code, f"the server answered with HTTP status {http.decode('latin-1')}")
    word = said.get(b"grpc-status", b"")
    if word != b"0":
        code = _CODES.get(int(word), StatusCode.UNKNOWN) if word.isdigit() else StatusCode.UNKNOWN
        details = unquote_to_bytes(said.get(b"grpc-message", b"")).decode(errors="replace")
        return Failed(call.number, code, details or "no detail")
    body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
    size = len(body) - _PREFIX_BYTES
    if size < 0 or int.from_bytes(body[1:_PREFIX_BYTES], "big") != size:
        return Failed(call.number, StatusCode.INTERNAL, "the answer is not one whole message")
    if body[0]:
        return Failed(call.number, StatusCode.INTERNAL, "the answer is compressed, unasked")
    return Answered(call.number, body[_PREFIX_BYTES:])


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolBroken("a frame is all padding")
    return payload[1 : len(payload) - payload[0]]
