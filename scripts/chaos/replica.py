"""Replicas that look ready and do harm: one resets every connection, one answers 500 to everything."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import socketserver
import struct
import threading
from typing import ClassVar

READINESS = json.dumps({"ready": True, "model": "chaos", "slots": 1}).encode()
ERROR = b'{"error":"out of order"}'
HEAD_BYTES_MAX = 1 << 16
IDLE_S_MAX = 30.0
# Closing with a linger time of 0 sends a reset instead of an orderly end.
LINGER_RESET = struct.pack("ii", 1, 0)


class Replica(socketserver.ThreadingTCPServer):
    """Listens on a free port from its making until `stop`. A context manager."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # Requests that it harmed.
        self.harmed = 0
        self.numbers = itertools.count()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A peer that goes away is no news here."""


class Handler(socketserver.BaseRequestHandler):
    """A connection: readiness is answered properly, everything else is `harm`ed."""

    request: socket.socket
    server: Replica

    def handle(self) -> None:
        self.request.settimeout(IDLE_S_MAX)
        rest = b""
        while True:
            head, end, rest = self._head(rest)
            if not end:
                return
            length = _content_length(head)
            if head.startswith(b"GET /readyz"):
                self.answer(b"200 OK", READINESS)
                continue
            self.server.harmed += 1
            if not self.harm(length - len(rest)):
                return
            rest = b""

    def _head(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES_MAX:
            more = self.request.recv(1 << 16)
            if not more:
                break
            data += more
        return data.partition(b"\r\n\r\n")

    def harm(self, to_read: int) -> bool:
        """Treats a request of which so many bytes are still to be read; whether the connection goes on."""
        raise NotImplementedError

    def skip(self, to_read: int) -> None:
        """Reads the rest of a body."""
        while to_read > 0:
            more = self.request.recv(min(to_read, 1 << 16))
            if not more:
                return
            to_read -= len(more)

    def answer(self, status: bytes, body: bytes, sent: int | None = None) -> None:
        """Sends an answer, or only so many bytes of its body."""
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self.request.sendall(head + body[:sent])


class Resetting(Handler):
    """Resets in turn before the body is read, after it, and in the middle of an answer."""

    MOMENTS: ClassVar[int] = 3

    def harm(self, to_read: int) -> bool:
        moment = next(self.server.numbers) % self.MOMENTS
        with contextlib.suppress(OSError):
            if moment > 0:
                self.skip(to_read)
            if moment > 1:
                self.answer(b"200 OK", READINESS, sent=10)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.request.close()
        return False


class Failing(Handler):
    """Answers 500 at once, faster than any honest replica answers."""

    def harm(self, to_read: int) -> bool:
        self.skip(to_read)
        self.answer(b"500 Internal Server Error", ERROR)
        return True


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
