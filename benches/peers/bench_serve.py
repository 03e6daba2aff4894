"""`make bench-serve`: how many requests a second one core serves within the promise, this engine and Python's.

Every service runs on one core with one thread, the load generator (`elastic load --poisson`, open loop) on
another. For each, halving finds the highest rate at which p99 stays within 330 ms and no request fails; the
services take turns, a trial each. Standard library alone; loopback only; README.md tells more.
"""

from __future__ import annotations

import argparse
import http.client
import json
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import prepare
from children import cores_allowed, pin
from machine import describe
from measure import say
from search import Search

OWN = ("elastic-f32", "elastic-bf16", "elastic-int8")
PYTHON = {
    "torch-eager": ("serve_torch.py", "eager"),
    "torch-jit": ("serve_torch.py", "jit"),
    "onnx-f32": ("serve_onnx.py", "f32"),
    "onnx-int8": ("serve_onnx.py", "int8"),
}
SERVICES = (*OWN, *PYTHON)
READY_S_MAX = 180.0
END_S_MAX = 15.0
# A trial may go on so long after its last request: the time-out of that and a backlog before the next trial.
AFTERWARDS_S_MAX = 60.0
PROBES = 40
# Trials at one rate, if the load generator lags behind its schedule.
ATTEMPTS_MAX = 3
# Python's services have no limit on waiting requests; ours should shed none either within a trial.
QUEUE_MAX = 8192


class ServiceError(Exception):
    """Why a service has no row; the text goes into the table."""


@dataclass(frozen=True)
class Trial:
    """One rate, tried."""

    rate_rps: float
    held: bool
    # Whether the load generator kept its schedule.
    valid: bool
    p50_ms: float | None
    p99_ms: float | None
    sent: int
    failed: int
    shed: int


@dataclass
class Service:
    """A running service and what is known of it."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    start_ms: float
    search: Search | None = None
    one_by_one_ms: float = 0.0
    resident_mb: float | None = None
    trials: list[Trial] = field(default_factory=list)

    def best(self) -> Trial | None:
        """The trial at the highest rate that held."""
        return max((t for t in self.trials if t.held), key=lambda t: t.rate_rps, default=None)


@dataclass(frozen=True)
class Plan:
    """How long to try, what to hold, and where."""

    seconds: float
    steps: int
    promise_ms: float
    elastic: Path
    photos: Path
    service_core: int
    load_core: int
    workload: Path


def command(name: str, elastic: Path, network: str, weights: Path) -> list[str]:
    """How a service is started. All say on standard output when and where they are ready."""
    if name in PYTHON:
        script, engine = PYTHON[name]
        common = ["--network", network, "--weights", str(weights), "--models", str(prepare.MODELS)]
        return [str(prepare.PYTHON), str(prepare.HERE / script), engine, *common]
    precision = name.removeprefix("elastic-")
    file = prepare.INTEGERS if precision == "int8" else weights
    mode = [str(elastic), "serve-model", "--child", "--port", "0", "--threads", "1", "--precision", precision]
    return [*mode, "--queue-max", str(QUEUE_MAX), "--model", network, "--weights", str(file)]


def start(name: str, line: list[str], core: int, photo: Path) -> Service:
    """Starts a service pinned to its core and waits until it has classified a photo."""
    say(f"starting {name} on core {core}")
    allowed = cores_allowed()
    log = (prepare.LOGS / f"serve-{name}.log").open("wb")
    pin([core])
    started = time.monotonic()
    try:
        # A pipe for standard input, because elastic's child drains when it is closed.
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    except OSError as error:
        raise ServiceError(f"cannot start {line[0]}: {error}") from error
    finally:
        pin(allowed)
        log.close()
    try:
        url = str(json.loads(first_line(process))["ready"])
        one_by_one_ms(url, [photo], probes=1)
        return Service(name, process, url, (time.monotonic() - started) * 1000)
    except (ServiceError, OSError, ValueError, KeyError) as error:
        end(process)
        raise ServiceError(f"{error}; see {log.name}") from error


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What it says when it is ready."""
    out: BinaryIO = process.stdout  # type: ignore[assignment]
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        if not selector.select(READY_S_MAX):
            raise ServiceError(f"not ready within {READY_S_MAX:.0f} s")
    line = out.readline(4096)
    if not line:
        raise ServiceError("it ended before it was ready")
    return line


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends our own child: asks, waits, kills."""
    process.terminate()
    try:
        process.communicate(timeout=END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def one_by_one_ms(url: str, photos: Sequence[Path], probes: int = PROBES) -> float:
    """Median time of a request when there is no other: what the capacity is guessed from."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    durations = []
    for at in range(probes):
        body = photos[at % len(photos)].read_bytes()
        started = time.monotonic()
        connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        text = answer.read()
        durations.append(time.monotonic() - started)
        if answer.status != 200:
            raise ServiceError(f"status {answer.status}: {text[:200].decode(errors='replace')}")
    connection.close()
    return statistics.median(durations) * 1000


def attempt(service: Service, rate_rps: float, plan: Plan) -> Trial:
    """Sends at a rate, arrivals random but the same for every service, and judges the promise."""
    line = [
        plan.elastic, "load", "--workload", plan.workload, "--target", service.url, "--photos", plan.photos,
        "--line-seconds", str(plan.seconds), "--scale", f"{rate_rps:.3f}", "--poisson", "--seed", "1",
        "--slo-p99", f"{plan.promise_ms}ms", "--timeout", "5s", "--lag-max", "50ms", "--json", "-", "--quiet",
    ]  # fmt: skip
    allowed = cores_allowed()
    pin([plan.load_core])
    try:
        limit = plan.seconds + AFTERWARDS_S_MAX
        done = subprocess.run(list(map(str, line)), capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"the load generator did not end within {limit:.0f} s") from error
    finally:
        pin(allowed)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ServiceError(f"elastic load: {done.stderr.decode(errors='replace')[-300:]}") from error
    clean = report["failed"] == 0 and report["shed"] == 0
    return Trial(
        rate_rps=rate_rps,
        # Latency counts from the schedule, so a generator that lagged made it harder to hold, not easier.
        held=bool(report["slo"]["held"]) and clean,
        valid=report["valid"],
        p50_ms=report["latency_ms"]["p50"],
        p99_ms=report["latency_ms"]["p99"],
        sent=report["sent"],
        failed=report["failed"],
        shed=report["shed"],
    )


def conclusive(service: Service, plan: Plan) -> Trial:
    """A trial at the next rate; one that only a lagging generator may have broken is repeated."""
    assert service.search is not None
    for _ in range(ATTEMPTS_MAX):
        trial = attempt(service, service.search.next_rate, plan)
        if trial.held or trial.valid:
            break
        say(f"{service.name}: {sentence(trial)}")
    return trial


def search(services: list[Service], missing: dict[str, str], plan: Plan) -> None:
    """The services in turn, a trial each, until every search is as fine as asked."""
    photos = sorted(plan.photos.glob("*.jpg"))
    for number in range(plan.steps + 1):
        for service in list(services):
            try:
                if service.search is None:
                    service.one_by_one_ms = one_by_one_ms(service.url, photos)
                    service.search = Search.around(1000 / service.one_by_one_ms)
                    say(f"{service.name}: {service.one_by_one_ms:.1f} ms one by one")
                    continue
                trial = conclusive(service, plan)
            except (ServiceError, OSError) as error:
                say(f"{service.name}: {error}")
                missing[service.name] = str(error)
                services.remove(service)
                end(service.process)
                continue
            service.trials.append(trial)
            service.search.report(trial.held)
            service.resident_mb = resident_mb(service.process.pid)
            say(f"step {number} of {plan.steps}, {service.name}: {sentence(trial)}")


def sentence(trial: Trial) -> str:
    """A trial in words."""
    p99 = "-" if trial.p99_ms is None else f"{trial.p99_ms:.0f} ms"
    verdict = "held" if trial.held else "not held"
    lag = "" if trial.valid else ", the generator lagged"
    return f"{trial.rate_rps:.1f} requests/s, p99 {p99}, {trial.failed + trial.shed} failed: {verdict}{lag}"


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process, MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6


HEADER = ["service", "requests/s", "p50 ms", "p99 ms", "one by one ms", "start ms", "resident MB"]
HEADER += [f"× {name}" for name in PYTHON]


def rows(services: list[Service]) -> list[list[str]]:
    """The table, the fastest first; the last columns are the rate through that of each Python service."""
    best = {service.name: trial.rate_rps for service in services if (trial := service.best())}
    cells = []
    for service in sorted(services, key=lambda s: -best.get(s.name, 0)):
        trial = service.best()
        row = [service.name, "none held", "-", "-"]
        if trial:
            row[1:] = [f"{trial.rate_rps:.1f}", f"{trial.p50_ms:.0f}", f"{trial.p99_ms:.0f}"]
        row += [f"{service.one_by_one_ms:.1f}", f"{service.start_ms:.0f}"]
        row.append("-" if service.resident_mb is None else f"{service.resident_mb:.0f}")
        row += [
            f"{best[service.name] / best[other]:.2f}" if service.name in best and other in best else "-"
            for other in PYTHON
        ]
        cells.append(row)
    return cells


def text(cells: list[list[str]], markdown: bool) -> str:
    """The table for a terminal or a document."""
    table = [HEADER, *cells]
    if markdown:
        table.insert(1, ["---", *["--:"] * (len(HEADER) - 1)])
        return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"
    widths = [max(len(row[at]) for row in table) for at in range(len(HEADER))]
    lines = ["  ".join(f"{cell:{'>' if at else '<'}{widths[at]}}" for at, cell in enumerate(row)) for row in table]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", default=",".join(SERVICES), help="rows, separated by commas (all: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12, help="length of a trial (%(default)s)")
    parser.add_argument("--steps", type=int, default=7, help="trials of each service (%(default)s)")
    parser.add_argument("--promise-ms", type=float, default=330, help="what p99 must stay within (%(default)s)")
    parser.add_argument("--cores", default="", help="core of the services and core of the load, as 0,1")
    prepare.add_flags(parser)
    args = parser.parse_args()
    if not (1 <= args.seconds <= 600 and 1 <= args.steps <= 20 and args.promise_ms > 0):
        parser.error("--seconds must be from 1 to 600, --steps from 1 to 20, --promise-ms more than 0")
    args.services = args.services.split(",")
    if unknown := [name for name in args.services if name not in SERVICES]:
        parser.error(f"there is no service {', '.join(unknown)}; there are {', '.join(SERVICES)}")
    return args


def measure(args: argparse.Namespace, plan: Plan, network: str, weights: Path) -> tuple[list[Service], dict[str, str]]:
    """Starts all, searches, ends all."""
    services: list[Service] = []
    missing: dict[str, str] = {}
    photo = min(plan.photos.glob("*.jpg"))
    try:
        for name in args.services:
            try:
                line = command(name, plan.elastic, network, weights)
                services.append(start(name, line, plan.service_core, photo))
            except ServiceError as error:
                say(f"{name}: {error}")
                missing[name] = str(error)
        search(services, missing, plan)
    finally:
        for service in services:
            end(service.process)
    return services, missing


def main() -> int:
    args = arguments()
    network, weights = prepare.find_weights(args.network, args.weights)
    cores = prepare.find_cores(args.cores)
    if len(cores) < 2:
        raise SystemExit("bench: two cores are needed, one for the services and one for the load")
    if not args.skip_install:
        prepare.install_and_export(network, weights)
    prepare.LOGS.mkdir(parents=True, exist_ok=True)
    elastic = prepare.build_elastic()
    if not args.skip_install:
        prepare.quantise(weights)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as workload:
        # One line, one request a second: --scale and --line-seconds make of it what a trial needs.
        workload.write("1\n")
        workload.flush()
        photos = prepare.TARGET / "serve-photos"
        plan = Plan(
            args.seconds,
            args.steps,
            args.promise_ms,
            elastic,
            photos,
            cores[0],
            cores[1],
            Path(workload.name),
        )
        services, missing = measure(args, plan, network, weights)
    machine = {"network": network, **describe(cores)}
    write(args, machine, services, missing)
    return 0 if services else 1


def write(args: argparse.Namespace, machine: dict[str, str], services: list[Service], missing: dict[str, str]) -> None:
    """The table to standard output, and to the files asked for."""
    cells = rows(services)
    lagged = [service.name for service in services if any(not t.held and not t.valid for t in service.trials)]
    notes = f"Inconclusive, the load generator lagged: {', '.join(lagged)}\n" if lagged else ""
    notes += "".join(f"Missing: {name}: {reason}\n" for name, reason in missing.items())
    print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    print(text(cells, markdown=False) + notes, end="")
    if args.markdown:
        args.markdown.write_text(text(cells, markdown=True) + ("\n" + notes if notes else ""))
    if args.json:
        found = {
            service.name: {
                "one_by_one_ms": service.one_by_one_ms,
                "start_ms": service.start_ms,
                "resident_mb": service.resident_mb,
                "trials": [vars(trial) for trial in service.trials],
            }
            for service in services
        }
        everything = {
            "machine": machine,
            "promise_ms": args.promise_ms,
            "services": found,
            "missing": missing,
        }
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
