"""HTTP/2 frames made by hand (RFC 9113), for clients that no library would let misbehave so."""

import socket
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
# Of a SETTINGS frame: how much of each answer the server may send before it is told of more.
INITIAL_WINDOW_SIZE = 4
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8
REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/amnestic.v1.PredictionService/Predict",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(headers: dict[str, str]) -> bytes:
    """Header fields in HPACK's plainest form (RFC 7541, 6.2.2): literal and not indexed; each below 127 bytes."""
    parts = [text.encode() for pair in headers.items() for text in pair]
    fields = [bytes((len(part),)) + part for part in parts]
    return b"".join(b"\x00" + name + value for name, value in zip(fields[::2], fields[1::2], strict=True))


def headers(stream: int, *, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, block(REQUEST), flags=flags, stream=stream)


def connect(target: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def opened(target: str) -> socket.socket:
    """A connection that has said it speaks HTTP/2."""
    connection = connect(target)
    connection.sendall(PREFACE + frame(SETTINGS))
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    """As much of it as the server takes before it hangs up."""
    with suppress(ConnectionError):
        connection.sendall(data)


def rest(connection: socket.socket) -> bytes:
    """All that the server still says until it hangs up."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(2**16):
            received += part
    return received
