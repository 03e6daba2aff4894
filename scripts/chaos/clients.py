"""Clients that hold connections: slow-loris, which dribbles bytes, and idle ones by the thousand."""

from __future__ import annotations

import contextlib
import itertools
import resource
import select
import socket
import threading
import time
from urllib.parse import urlsplit

DRIBBLE_S = 0.5
OPEN_S_MAX = 6.0
ANSWERS_S_MAX = 2.0
# The kernel's queue of connections that are not accepted yet is short, and who finds it full waits for a second:
# the crowd comes in groups. That a crowd arrives at once is not what is asked here.
GROUP, GROUP_S_MAX, GROUP_PAUSE_S = 64, 1.5, 0.005
POLL_S = 0.05
# Source addresses of the idle connections: an address has fewer ports to call from than we need.
SOURCES = [f"127.0.1.{number}" for number in range(1, 9)]
# Descriptors for everything that is no idle connection.
DESCRIPTORS_KEPT = 256
HEAD = b"POST /predict HTTP/1.1\r\nHost: chaos\r\nContent-Type: image/jpeg\r\n"
ENDLESS_HEAD = HEAD + b"X-Padding: "
WITH_BODY = HEAD + b"Content-Length: 50000\r\n\r\n"
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: chaos\r\n\r\n"


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a base URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


class Loris:
    """So many clients that never finish a head, and as many that never finish a body, inside `with`.

    A client that the server sends away comes back at the next turn.
    """

    def __init__(self, url: str, heads: int, bodies: int) -> None:
        self._address = address_of(url)
        self._starts = [ENDLESS_HEAD] * heads + [WITH_BODY] * bodies
        self._open: list[socket.socket | None] = [None] * len(self._starts)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent_away = 0

    def __enter__(self) -> Loris:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        for client in filter(None, self._open):
            client.close()

    def count(self) -> int:
        """Clients connected now."""
        return sum(client is not None for client in self._open)

    def _run(self) -> None:
        while not self._over.is_set():
            for number, client in enumerate(self._open):
                try:
                    self._open[number] = self._dribble(client) if client else self._begin(self._starts[number])
                except OSError:
                    if client:
                        client.close()
                        self.sent_away += 1
                    self._open[number] = None
            self._over.wait(DRIBBLE_S)

    def _begin(self, start: bytes) -> socket.socket:
        client = socket.create_connection(self._address, timeout=0.2)
        client.sendall(start)
        client.setblocking(False)
        return client

    def _dribble(self, client: socket.socket) -> socket.socket:
        with contextlib.suppress(BlockingIOError):
            if not client.recv(1 << 12):
                raise ConnectionError("sent away")
            # An answer, 408 most likely: the connection is of no use any more.
            raise ConnectionError("answered")
        client.send(b"x")
        return client


class Idle:
    """As many connections as wanted and possible, half of them after one request, inside `with`."""

    def __init__(self, url: str, wanted: int) -> None:
        self._address = address_of(url)
        self.possible = min(wanted, descriptors_max() - DESCRIPTORS_KEPT)
        self._sockets: list[socket.socket] = []
        self.opened = 0
        self.asked = 0
        self.answered = 0

    def __enter__(self) -> Idle:
        sources = itertools.cycle(SOURCES)
        give_up = time.monotonic() + OPEN_S_MAX
        while len(self._sockets) < self.possible and time.monotonic() < give_up:
            group = [self._client(next(sources)) for _ in range(min(GROUP, self.possible - len(self._sockets)))]
            self._sockets += group
            opened = _when(group, select.EPOLLOUT, GROUP_S_MAX)
            self.opened += len(opened)
            if not opened:
                break
            time.sleep(GROUP_PAUSE_S)
        asking = self._sockets[::2]
        for client in asking:
            with contextlib.suppress(OSError):
                client.send(ALIVE)
        self.asked = len(asking)
        self.answered = sum(_answers(client) for client in _when(asking, select.EPOLLIN, ANSWERS_S_MAX))
        return self

    def _client(self, source: str) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        client.bind((source, 0))
        with contextlib.suppress(BlockingIOError):
            client.connect(self._address)
        return client

    def still_open(self) -> int:
        """Connections that the server has not closed."""
        return sum(_is_open(client) for client in self._sockets)

    def __exit__(self, *_: object) -> None:
        for client in self._sockets:
            client.close()


def descriptors_max() -> int:
    """How many files a process may have open: raised as far as allowed, for us and for who we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def _when(clients: list[socket.socket], event: int, seconds_max: float) -> list[socket.socket]:
    """Those that had the event and no error within the time."""
    waiting = {client.fileno(): client for client in clients}
    done = []
    give_up = time.monotonic() + seconds_max
    with select.epoll() as poll:
        for descriptor in waiting:
            poll.register(descriptor, event | select.EPOLLONESHOT)
        while waiting and time.monotonic() < give_up:
            for descriptor, seen in poll.poll(POLL_S):
                client = waiting.pop(descriptor)
                if seen & event and not seen & (select.EPOLLERR | select.EPOLLHUP):
                    done.append(client)
    return done


def _answers(client: socket.socket) -> bool:
    try:
        return client.recv(1 << 12).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _is_open(client: socket.socket) -> bool:
    try:
        client.getpeername()
        return bool(client.recv(1 << 12))
    except BlockingIOError:
        return True
    except OSError:
        return False
