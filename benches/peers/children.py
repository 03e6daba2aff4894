"""An engine as a child process: start it, ask it, end it. Everything has a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

HELLO_S_MAX = 180.0
LINE_BYTES_MAX = 1 << 20
READ_BYTES = 1 << 16


class EngineError(Exception):
    """Why an engine has no row; the text goes into the table."""


@dataclass(frozen=True)
class Hello:
    """What an engine says of itself."""

    name: str
    version: str
    what: str


@dataclass(frozen=True)
class Answer:
    """What an engine measured."""

    durations_ns: list[int]
    logits: list[float]


def pin(cores: Iterable[int]) -> None:
    """Pins this process, and so every child started from now on, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def cores_allowed() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Child:
    """A running engine. Not started through a shell, and ended by its own handle."""

    def __init__(self, command: list[str], threads: int, cores: Iterable[int], log: Path) -> None:
        allowed = cores_allowed()
        self._log = log.open("wb")
        self._log_path = log
        self._rest = b""
        pin(cores)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_environment(threads),
                bufsize=0,
            )
        except OSError as error:
            self._log.close()
            raise EngineError(f"cannot start {command[0]}: {error}") from error
        finally:
            pin(allowed)
        # Without waiting, so that a silent engine runs into the limit.
        os.set_blocking(self._out.fileno(), False)

    @property
    def _out(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def hello(self) -> Hello:
        """Waits until the model is loaded."""
        line = self._line(HELLO_S_MAX)
        return Hello(str(line["name"]), str(line["version"]), str(line["what"]))

    def ask(self, batch: int, runs: int, seconds_max: float, logits: bool = False) -> Answer:
        """Has the engine run `runs` times on `batch` images."""
        command = json.dumps({"batch": batch, "runs": runs, "logits": logits}) + "\n"
        assert self._process.stdin is not None
        # A child that has ended tells why in its last line, which is read below.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command.encode())
        line = self._line(seconds_max)
        if len(line["durations_ns"]) != runs:
            raise EngineError(f"asked for {runs} runs, it answered {len(line['durations_ns'])}")
        return Answer([int(duration) for duration in line["durations_ns"]], line.get("logits", []))

    def end(self) -> None:
        """Closes standard input, which ends an engine; one that stays is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._log.close()

    def _line(self, seconds_max: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds_max
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise EngineError(f"no answer within {seconds_max:.0f} s")
                data = self._out.read(READ_BYTES)
                if not data:
                    raise EngineError(f"it ended without a reason; see {self._log_path}")
                self._rest += data
                if len(self._rest) > LINE_BYTES_MAX:
                    raise EngineError("its answer is too long")
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(str(answer["error"]).splitlines()[0])
        return answer


def _environment(threads: int) -> dict[str, str]:
    """Ours, with the number of threads said in every dialect that an engine may read."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return os.environ | {name: str(threads) for name in names} | {"CUDA_VISIBLE_DEVICES": ""}
