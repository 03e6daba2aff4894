"""A dispatcher, a monitor and replicas of known capacity, as processes of our own on this machine."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from process import Process, ProcessError

PACE_MS = 20
REPLICAS = 2
# Every replica has one worker that takes PACE_MS for an image, so this is known without measuring.
CAPACITY_RPS = REPLICAS * 1000 / PACE_MS
READY_S_MAX = 20.0
ASK_S_MAX = 2.0
# What is read of a report of `elastic load`.
REPORT_KEYS = ("sent", "ok", "failed", "shed", "failures", "latency_ms", "duration_s", "seconds", "valid")
# Another address than the door's, so that the kernel's list of sockets tells the two apart.
ADMIN_HOST = "127.0.0.2"


@dataclass(frozen=True)
class Setting:
    """What is the same in every scenario."""

    elastic: Path
    photos: Path
    logs: Path
    dispatch_arguments: tuple[str, ...] = ()


@dataclass
class Fleet:
    """Everything that runs in a scenario. Made by `start`, ended by `end`."""

    setting: Setting
    processes: list[Process] = field(default_factory=list)
    replicas: list[Process] = field(default_factory=list)
    url: str = ""
    admin_url: str = ""
    monitor_url: str = ""
    _started: int = 0

    def start(self) -> None:
        """Starts all and waits until the dispatcher has every replica."""
        self.monitor = self.start_monitor(0)
        (host, port) = self.monitor.listens()[0]
        self.monitor_url = f"http://{host}:{port}"
        line = ["dispatch", "--port", "0", "--admin-host", ADMIN_HOST, "--admin-port", "0"]
        line += ["--monitor", self.monitor_url, *self.setting.dispatch_arguments]
        self.dispatcher = self._run("dispatch", line)
        for host, port in self.dispatcher.listens(2):
            url = f"http://{host}:{port}"
            if host == ADMIN_HOST:
                self.admin_url = url
            else:
                self.url = url
        for _ in range(REPLICAS):
            self.replicas.append(self.start_replica())
        self.wait_ready(REPLICAS)

    def start_monitor(self, port: int) -> Process:
        """Starts the monitor; port 0 takes a free one."""
        self.monitor = self._run("monitor", ["monitor", "--port", str(port)])
        return self.monitor

    def restart_monitor(self) -> None:
        """A new monitor at the address of the one before."""
        self.start_monitor(urlsplit(self.monitor_url).port or 0)
        self.monitor.listens()

    def start_replica(self) -> Process:
        """Starts a replica, which registers when it is ready. It drains should we disappear."""
        line = ["serve-model", "--child", "--port", "0", "--register", self.admin_url, "--threads", "1"]
        line += ["--model", "efficientnet_lite0", "--precision", "int8", "--pace", f"{PACE_MS}ms"]
        self._started += 1
        return self._run(f"replica-{self._started}", line)

    def start_load(self, rate_rps: float, seconds: float, seed: int, timeout_ms: float) -> Load:
        """Starts `elastic load`: random arrivals, open loop."""
        self._started += 1
        name = f"load-{self._started}"
        workload, report = self.setting.logs / f"{name}.txt", self.setting.logs / f"{name}.json"
        # One line, one request a second: --scale and --line-seconds make of it what is asked for.
        workload.write_text("1\n")
        line = ["load", "--workload", str(workload), "--target", self.url, "--photos", str(self.setting.photos)]
        line += ["--scale", f"{rate_rps:.3f}", "--line-seconds", f"{seconds:.3f}", "--poisson", "--seed", str(seed)]
        # The fleet is ready. To wait until it is again would hide that it was not.
        line += ["--wait", "0s", "--timeout", f"{timeout_ms:.0f}ms", "--json", str(report), "--quiet"]
        return Load(self._run(name, line), report, seconds)

    def _run(self, name: str, arguments: list[str]) -> Process:
        process = Process(name, [str(self.setting.elastic), *arguments], self.setting.logs)
        self.processes.append(process)
        return process

    def wait_ready(self, count: int) -> None:
        """Waits until the dispatcher counts so many replicas as ready."""
        give_up = time.monotonic() + READY_S_MAX
        while self.ready_replicas() < count:
            if time.monotonic() > give_up:
                dead = [p for p in self.processes if not p.alive()]
                why = f"; {dead[0].name} ended: {dead[0].last_words()}" if dead else ""
                raise ProcessError(f"not {count} replicas ready after {READY_S_MAX:.0f} s{why}")
            time.sleep(0.05)

    def ready_replicas(self) -> int:
        """How many replicas the dispatcher counts as ready."""
        listed = ask("GET", f"{self.admin_url}/replicas")
        return sum(replica.get("state") == "ready" for replica in listed or [])

    def register(self, url: str, slots: int) -> None:
        """Tells the dispatcher of a replica, as a replica does."""
        ask("POST", f"{self.admin_url}/replicas", {"url": url, "slots": slots})

    def end(self) -> None:
        """Ends everything: who sends first, who answers last."""
        for process in reversed(self.processes):
            process.end()


@dataclass(frozen=True)
class Load:
    """A running load generator."""

    process: Process
    report: Path
    seconds: float

    def result(self) -> dict[str, Any]:
        """Waits for its end and reads its report. Its exit status is its own verdict, not ours."""
        self.process.wait(self.seconds + 60)
        try:
            found: dict[str, Any] = json.loads(self.report.read_text())
        except (OSError, ValueError) as error:
            raise ProcessError(f"elastic load left no report: {self.process.last_words()}") from error
        if lacking := [key for key in REPORT_KEYS if key not in found]:
            raise ProcessError(f"the report of elastic load has no {', '.join(lacking)}")
        return found


def ask(method: str, url: str, body: object = None) -> Any:  # noqa: ANN401
    """One exchange of JSON; nothing where there is no answer, or none of success."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ASK_S_MAX)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, address.path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        return json.loads(data) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
