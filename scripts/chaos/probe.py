"""A few requests a second, each timed by its status: how soon a client learns that it is refused.

The end of a time is when the kernel received the first byte of the answer, not when this program was woken up.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

RATE_RPS = 20.0
# Enough that all may wait for an answer at once and the rate still be kept.
THREADS = 20
ANSWER_S_MAX = 5.0
# Of Linux; the module `socket` does not name it.
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("ll")
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Sample:
    """One request: when it was sent, and how it ended. Status 0 is no answer."""

    at_s: float
    status: int
    seconds: float


class Prober:
    """Runs in threads of its own inside `with`."""

    def __init__(self, url: str, body: bytes) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "", address.port or 80)
        head = f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\n"
        self._request = head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(at,), daemon=True) for at in range(THREADS)]
        self.samples: list[Sample] = []

    def __enter__(self) -> Prober:
        self.started_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER_S_MAX + 1)

    def _run(self, number: int) -> None:
        connection: socket.socket | None = None
        turn = number
        while not self._over.is_set():
            due_s = self.started_s + turn / RATE_RPS
            if self._over.wait(max(0.0, due_s - time.monotonic())):
                break
            at_s = time.monotonic() - self.started_s
            try:
                connection = connection or self._connect()
                status, seconds = self._exchange(connection)
            except (OSError, ValueError):
                status, seconds = 0, time.monotonic() - self.started_s - at_s
            if status != 200 and connection:
                # Who refuses may close the connection; a kept one that is closed would look like a failure.
                connection.close()
                connection = None
            self.samples.append(Sample(at_s, status, seconds))
            behind = (time.monotonic() - self.started_s) * RATE_RPS
            turn = number + THREADS * max((turn - number) // THREADS + 1, math.ceil((behind - number) / THREADS))
        if connection:
            connection.close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, timeout=ANSWER_S_MAX)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        return connection

    def _exchange(self, connection: socket.socket) -> tuple[int, float]:
        started_ns = time.time_ns()
        connection.sendall(self._request)
        data, ancillary, _, _ = connection.recvmsg(READ_BYTES, 128)
        ended_ns = time.time_ns()
        for level, kind, stamp in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(stamp) >= TIMESPEC.size:
                seconds, nanoseconds = TIMESPEC.unpack_from(stamp)
                ended_ns = seconds * 1_000_000_000 + nanoseconds
        status = int(data[9:12])
        self._skip(connection, data)
        return status, (ended_ns - started_ns) / 1e9

    def _skip(self, connection: socket.socket, data: bytes) -> None:
        while True:
            head, end, body = data.partition(b"\r\n\r\n")
            lengths = [line[15:] for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"]
            if end and (len(body) >= int(lengths[0]) if lengths else body.endswith(b"0\r\n\r\n")):
                return
            more = connection.recv(READ_BYTES)
            if not more:
                return
            data += more


def times_ms(samples: list[Sample], status: int) -> list[float]:
    """Times of the answers with this status, in order, milliseconds."""
    return sorted(sample.seconds * 1000 for sample in samples if sample.status == status)
