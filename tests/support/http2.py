"""HTTP/2 as a server writes it: frames, settings, a call's answer."""

import struct

from weir.inference._hpack import literals

OK = literals([(b":status", b"200"), (b"content-type", b"application/grpc")])
WELL = literals([(b"grpc-status", b"0")])
DATA, HEAD, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x01, 0x04, 0x08, 0x20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def framed(message: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


def answer(stream: int, message: bytes, trailers: bytes = WELL) -> bytes:
    return (
        frame(HEAD, END_HEADERS, stream, OK)
        + frame(DATA, 0, stream, framed(message))
        + frame(HEAD, END_HEADERS | END_STREAM, stream, trailers)
    )
