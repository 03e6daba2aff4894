"""A child process of ours: started on chosen cores, watched through /proc, ended by its process id. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "peers"))

from children import cores_allowed, pin

START_S_MAX = 20.0
END_S_MAX = 15.0
POLL_S = 0.02
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LISTENING = "0A"


class ProcessError(Exception):
    """Why a process is of no use; the text is for the person who ran us."""


class Process:
    """Runs from its making until `end` or `kill`. Never through a shell."""

    def __init__(
        self,
        name: str,
        command: list[str],
        logs: Path,
        cores: Iterable[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        allowed, cores = cores_allowed(), set(cores)
        with self.log.open("ab") as log:
            if cores:
                pin(cores)
            try:
                # A pipe for standard input: who reads it notices when we are gone, however we ended.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | dict(environment or {})
                )
            except OSError as error:
                raise ProcessError(f"cannot start {command[0]}: {error}") from error
            finally:
                if cores:
                    pin(allowed)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended, by itself or otherwise."""
        return self._process.poll() is None

    def listens(self, count: int = 1) -> list[tuple[str, int]]:
        """Waits until it listens on so many IPv4 sockets, and asks the kernel for their addresses."""
        give_up = time.monotonic() + START_S_MAX
        while time.monotonic() < give_up:
            if not self.alive():
                raise ProcessError(f"{self.name} ended before it was ready: {self.last_words()}")
            found = _listening(self.pid)
            if len(found) >= count:
                return sorted(found)
            time.sleep(POLL_S)
        raise ProcessError(f"{self.name} does not listen after {START_S_MAX:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").strip()
        return text[-500:] or f"its log {self.log} is empty"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens where it has ended."""
        if self.alive():
            self._process.send_signal(number)

    def wait(self, seconds_max: float) -> int:
        """Waits until it ends by itself; its exit status."""
        try:
            status = self._process.wait(timeout=seconds_max)
        except subprocess.TimeoutExpired as error:
            raise ProcessError(f"{self.name} did not end within {seconds_max:.0f} s") from error
        self._close()
        return status

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._close()

    def end(self) -> None:
        """Asks it to end, waits, and kills it if it does not listen. A stopped one is woken up for that."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def cpu_s(self) -> float:
        """CPU time of all its threads and of its running children, user and system, seconds."""
        return sum(_cpu_s(pid) for pid in [self.pid, *_children(self.pid)])

    def threads(self) -> int:
        """Threads of it and its running children."""
        return sum(int(_status(pid).get("Threads", "0")) for pid in [self.pid, *_children(self.pid)])

    def resident_mb(self) -> float | None:
        """Resident memory now; nothing where it has ended."""
        return _megabytes(_status(self.pid).get("VmRSS"))

    def resident_peak_mb(self) -> float | None:
        """Largest resident memory so far, as the kernel counts it."""
        return _megabytes(_status(self.pid).get("VmHWM"))


def free_port() -> int:
    """A port for who cannot take a free one by itself. Another may take it first: then the start fails, visibly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listening(pid: int) -> list[tuple[str, int]]:
    """Addresses of the listening IPv4 sockets that a process has open."""
    inodes = set()
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(file.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == LISTENING and columns[9] in inodes:
            host, port = columns[1].split(":")
            # The kernel prints the address as a number of the machine's own byte order.
            address = socket.inet_ntoa(int(host, 16).to_bytes(4, sys.byteorder))
            found.append((address, int(port, 16)))
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _cpu_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name before may hold blanks and brackets; fields count from the state, the third.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _megabytes(text: str | None) -> float | None:
    return None if text is None else int(text.split()[0]) * 1024 / 1e6
