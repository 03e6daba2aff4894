"""An open-loop sender: one request every 1/rate seconds, whatever the answers do. Run as a child, prints JSON.

wrk is a closed loop: it asks again only once it has an answer, so it has no rate, and a slow answer delays the
requests after it unseen. Here a request's latency counts from the instant at which it was due, also when all
connections were busy then.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import json
import math
import select
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

WARM_UP_S = 0.3
# How long answers may take after the last request was sent.
AFTERWARDS_S_MAX = 3.0
PR_SET_TIMERSLACK = 29
READ_BYTES = 1 << 16


class Connection:
    """One kept connection and the answer that it is reading."""

    def __init__(self, host: str, port: int, request_bytes: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=5)
        # Room for a whole request, so that sending one does not keep the next waiting.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * request_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._read = b""

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def receive(self) -> int | None:
        """Reads what is there; the status once the answer is whole."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the connection was closed")
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end or not _is_whole(head, body):
            return None
        self._read = b""
        return int(head[9:12])


def _is_whole(head: bytes, body: bytes) -> bool:
    """Whether all of an answer's body is there: by its length, or by its last chunk."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")


class Run:
    """One run: what is due, who is idle, what came back."""

    def __init__(self, url: str, connections: int, request: bytes) -> None:
        address = urlsplit(url)
        self._request = request
        self._idle = collections.deque(
            Connection(address.hostname or "", address.port or 80, len(request)) for _ in range(connections)
        )
        self._busy: set[Connection] = set()
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []
        self.failed = 0

    def send(self, rate_rps: float, seconds: float) -> None:
        """Sends at the rate, the warm-up uncounted, and waits for the last answers."""
        started = time.perf_counter() + 0.01
        total = int(rate_rps * (WARM_UP_S + seconds))
        first_counted = int(rate_rps * WARM_UP_S)
        give_up = started + WARM_UP_S + seconds + AFTERWARDS_S_MAX
        sent = 0
        while sent < total or self._busy:
            now = time.perf_counter()
            if now > give_up:
                self.failed += len(self._busy) + total - sent
                return
            due = started + sent / rate_rps
            if sent < total and now >= due and self._idle:
                self._start(due, counted=sent >= first_counted)
                sent += 1
                continue
            wait = min(due - now, 1.0) if sent < total and self._idle else 1.0
            self._collect(max(wait, 0.0), started + WARM_UP_S)

    def _start(self, due: float, *, counted: bool) -> None:
        connection = self._idle.popleft()
        connection.due = due
        if counted:
            self.lags_s.append(time.perf_counter() - due)
        connection.socket.sendall(self._request)
        self._busy.add(connection)

    def _collect(self, wait_s: float, counted_from: float) -> None:
        readable, _, _ = select.select(list(self._busy), [], [], wait_s)
        for connection in readable:
            status = connection.receive()
            if status is None:
                continue
            now = time.perf_counter()
            self._busy.remove(connection)
            self._idle.append(connection)
            if connection.due < counted_from:
                continue
            if status == 200:
                self.latencies_s.append(now - connection.due)
            else:
                self.failed += 1


def quantile(values: list[float], share: float) -> float | None:
    """The nearest-rank quantile; nothing of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--body", type=Path, required=True, help="file to send")
    args = parser.parse_args()
    body = args.body.read_bytes()
    address = urlsplit(args.url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\n"
    request = head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    # The kernel may otherwise wake a sleeper 50 us late to save power.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()
    run = Run(args.url, args.connections, request)
    run.send(args.rate, args.seconds)
    milliseconds = {
        "median_ms": quantile(run.latencies_s, 0.5),
        "p99_ms": quantile(run.latencies_s, 0.99),
        "max_ms": quantile(run.latencies_s, 1.0),
        "lag_p99_ms": quantile(run.lags_s, 0.99),
    }
    found = {key: None if value is None else value * 1000 for key, value in milliseconds.items()}
    print(json.dumps({**found, "answered": len(run.latencies_s), "failed": run.failed}))


if __name__ == "__main__":
    main()
