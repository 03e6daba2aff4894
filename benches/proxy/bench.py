"""`make bench-proxy`: the dispatcher as a proxy, beside nginx and HAProxy set up as the same proxy.

The proxy under test runs on one core, the backend and the load on another. They take turns within a round, and
every figure is a median over the rounds. README.md tells how it measures and what is fair about it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "peers"))

import proxies
from children import cores_allowed, pin
from machine import describe
from measure import say
from process import ProcessError
from results import Case, Closed, Open, Results

ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "proxy"
PHOTO = ROOT / "tests" / "photos" / "solar-dish.jpg"
PYTHON_CHILD_S_MAX = 30.0
BODY_BYTES_MAX = 8 << 20
# The sender shares its core with the backend: at this rate it takes about half of it.
RATE_RPS_MAX = 10_000.0
# What wrk runs: it sends the body and prints its own summary as one line of JSON.
WRK_SCRIPT = """
local file = io.open(os.getenv("BENCH_BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "image/jpeg"
file:close()
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        'JSON {"requests": %d, "duration_us": %d, "failed": %d}\\n', summary.requests, summary.duration,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class BenchError(Exception):
    """Why there is no result."""


def closed_loop(server: proxies.Server, setting: proxies.Setting, args: argparse.Namespace, body: Path) -> Closed:
    """As many requests as the connections can carry, each asking again once it has its answer."""
    script = setting.scratch / "wrk.lua"
    script.write_text(WRK_SCRIPT)
    threads = min(len(setting.load_cores), args.connections)
    line = ["wrk", "-t", str(threads), "-c", str(args.connections), "-d", f"{max(1, round(args.seconds))}s"]
    cpu_before_s = server.process.cpu_s()
    out = _on(setting.load_cores, [*line, "--timeout", "5s", "-s", str(script), server.url], args, body)
    cpu_s = server.process.cpu_s() - cpu_before_s
    last = next((text for text in reversed(out.splitlines()) if text.startswith("JSON ")), None)
    if last is None:
        raise BenchError(f"wrk printed no summary: {out[-300:]}")
    found = json.loads(last.removeprefix("JSON "))
    seconds = found["duration_us"] / 1e6
    answered = found["requests"]
    return Closed(answered / seconds, answered / max(cpu_s, 1e-9), cpu_s / seconds, int(found["failed"]))


def open_loop(
    server: proxies.Server, setting: proxies.Setting, args: argparse.Namespace, body: Path, rate_rps: float
) -> Open:
    """A constant rate, whatever the answers do."""
    line = [sys.executable, str(HERE / "open_loop.py"), "--url", server.url, "--rate", f"{rate_rps:.1f}"]
    line += ["--seconds", str(args.seconds), "--connections", str(args.connections), "--body", str(body)]
    found = json.loads(_on(setting.load_cores, line, args, body))
    if found["median_ms"] is None:
        raise BenchError(f"{server.name} answered nothing at {rate_rps:.0f} requests/s")
    return Open(found["median_ms"], found["p99_ms"], found["lag_p99_ms"], found["failed"])


def _on(cores: tuple[int, ...], line: list[str], args: argparse.Namespace, body: Path) -> str:
    """Runs a load generator to its end on the given cores; what it printed."""
    allowed = cores_allowed()
    pin(cores)
    try:
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=args.seconds + PYTHON_CHILD_S_MAX,
            check=True,
            env=os.environ | {"BENCH_BODY": str(body)},
        )
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{line[0]} failed: {(error.stderr or error.stdout)[-400:]}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{line[0]} did not end in time") from error
    finally:
        pin(allowed)
    return done.stdout


def measure(args: argparse.Namespace, setting: proxies.Setting, body: Path) -> Case:
    """All proxies with one body size: maximum first, then the rounds at half of the slowest one's."""
    servers: list[proxies.Server] = []
    try:
        direct = proxies.backend(setting)
        servers.append(direct)
        for name in args.proxies:
            servers.append(proxies.PROXIES[name](setting, direct.port))
            say(f"started {name} {servers[-1].version}")
        return _rounds(args, setting, body, servers)
    finally:
        for server in reversed(servers):
            server.process.end()


def _rounds(args: argparse.Namespace, setting: proxies.Setting, body: Path, servers: list[proxies.Server]) -> Case:
    case = Case(setting.body_bytes, {server.name: server.version for server in servers[1:]})
    # Not counted: it warms up, and gives the rate of the open loop.
    most_rps = {s.name: closed_loop(s, setting, args, body).requests_per_s for s in servers[1:]}
    case.rate_rps = args.rate or min(RATE_RPS_MAX, min(most_rps.values()) / 2)
    say(f"{setting.body_bytes} bytes: latencies at {case.rate_rps:.0f} requests/s")
    for number in range(args.rounds):
        # Whoever is first in one round is last in the next, so that nobody always follows the same.
        turns = servers[number % len(servers) :] + servers[: number % len(servers)]
        for server in turns:
            if server is not servers[0]:
                case.closed.setdefault(server.name, []).append(closed_loop(server, setting, args, body))
            case.open.setdefault(server.name, []).append(open_loop(server, setting, args, body, case.rate_rps))
        say(f"{setting.body_bytes} bytes: round {number + 1} of {args.rounds}")
    case.threads = {server.name: server.process.threads() for server in servers}
    case.resident_mb = {server.name: server.process.resident_mb() for server in servers}
    return case


def body_of(size: int, folder: Path) -> Path:
    """A file of this size that begins as a JPEG does."""
    photo = PHOTO.read_bytes()
    file = folder / f"body-{size}"
    file.write_bytes(photo[:size] + bytes(max(0, size - len(photo))))
    return file


def arguments() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of turns (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="length of a turn's two parts (%(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="connections of the load (%(default)s)")
    parser.add_argument("--body", default="50000,100", help="body sizes, bytes, by commas (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="worker threads, and cores, of a proxy (%(default)s)")
    parser.add_argument("--rate", type=float, help="requests/s of the latencies (half of the slowest's most)")
    parser.add_argument("--slots", type=int, default=64, help="slots that the backend says it has (%(default)s)")
    parser.add_argument("--proxies", default="nginx,haproxy,elastic", help="rows, by commas (%(default)s)")
    parser.add_argument("--cores", default="", help="cores of the proxy, then of backend and load, as 0,1")
    parser.add_argument("--json", type=Path, default=TARGET / "bench.json", help="where the JSON goes")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    if not (1 <= args.rounds <= 100 and 1 <= args.seconds <= 120 and 1 <= args.connections <= 512):
        parser.error("--rounds must be from 1 to 100, --seconds from 1 to 120, --connections from 1 to 512")
    try:
        args.bodies = [int(size) for size in args.body.split(",")]
    except ValueError:
        parser.error(f"--body takes sizes in bytes, separated by commas, not {args.body!r}")
    if not all(1 <= size <= BODY_BYTES_MAX for size in args.bodies):
        parser.error(f"--body: from 1 to {BODY_BYTES_MAX} bytes")
    args.proxies = args.proxies.split(",")
    if unknown := [name for name in args.proxies if name not in proxies.PROXIES]:
        parser.error(f"there is no proxy {', '.join(unknown)}; there are {', '.join(proxies.PROXIES)}")
    return args


def cores_of(args: argparse.Namespace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The proxy's cores, and those of the backend and the load."""
    allowed = sorted(cores_allowed())
    try:
        cores = [int(core) for core in args.cores.split(",")] if args.cores else allowed[: args.threads + 1]
    except ValueError:
        raise SystemExit(f"bench: --cores takes numbers and commas, got {args.cores!r}") from None
    if not set(cores) <= set(allowed) or len(set(cores)) != len(cores):
        raise SystemExit(f"bench: cores {args.cores} are not different ones of {', '.join(map(str, allowed))}")
    if len(cores) <= args.threads:
        raise SystemExit(f"bench: {args.threads + 1} cores are needed: one a thread of the proxy, one for the load")
    return tuple(cores[: args.threads]), tuple(cores[args.threads :])


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if lacking := proxies.missing_programs():
        raise SystemExit(f"bench: not installed: {'; '.join(lacking)}")
    elastic = Path(os.environ.get("ELASTIC", ROOT / "target" / "release" / "elastic")).resolve()
    if "elastic" in args.proxies and not elastic.is_file():
        raise SystemExit(f"bench: {elastic} is not there; run `make build`, or name the executable in ELASTIC")
    # A proxy is the same whatever the person has set for other runs.
    for name in [name for name in os.environ if name.startswith("ELASTIC_")]:
        del os.environ[name]
    proxy_cores, load_cores = cores_of(args)
    machine = describe([*proxy_cores, *load_cores])
    results = Results(machine, proxy_cores, load_cores, args.threads, args.connections, args.rounds, args.seconds)
    try:
        for size in args.bodies:
            with tempfile.TemporaryDirectory(prefix="elastic-proxy.") as folder:
                scratch = Path(folder)
                setting = proxies.Setting(elastic, scratch, args.threads, proxy_cores, load_cores, args.slots, size)
                results.cases.append(measure(args, setting, body_of(size, scratch)))
    except (BenchError, ProcessError) as error:
        raise SystemExit(f"bench: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    text = results.markdown()
    print(text, end="")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results.json(), indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
