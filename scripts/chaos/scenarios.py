"""The scenarios. Each gets a fresh fleet under load, does its harm, and says what it wants to see.

**Invariant**: what a scenario starts ends with it; nothing sleeps longer than the load lasts.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import replica
from clients import Idle, Loris
from fleet import CAPACITY_RPS, Fleet, Load, ask
from probe import Prober, times_ms
from process import END_S_MAX

# Shares of the capacity that are offered.
SHARE = 0.6
# Where a replica goes away, one must be able to carry everything: at 0.6 of two it could not.
SHARE_ONE_AWAY = 0.4
OVERLOAD = 5.0
PROMISE_MS = 500.0
# A client waits so long; with overload no longer than the promise, a tenth of a second for the way included.
PATIENCE_MS = 2000.0
PATIENCE_OVERLOAD_MS = PROMISE_MS + 100
GOODPUT_SHARE_MIN = 0.95
REFUSAL_MS_MAX = 5.0
# A queue fills before it is full: an overload counts from here.
FILL_S = 3.0
RESTART_AFTER_S = 2.0
LORIS = 200
IDLE = 10_000
# What others feel of clients that hold connections: noise, and no more.
P99_FACTOR_MAX, P99_MORE_MS = 1.5, 10.0


@dataclass(frozen=True)
class Want:
    """What is wanted, what was found."""

    what: str
    found: str
    held: bool


@dataclass
class Outcome:
    """What a scenario saw."""

    report: dict[str, Any]
    offered_rps: float
    goodput_rps: float
    wants: list[Want] = field(default_factory=list)
    # What a reader should know besides.
    notes: list[str] = field(default_factory=list)
    # Opened beside the load.
    connections: int = 0


@dataclass
class Scene:
    """A fleet under load, and the clock of the scenario."""

    fleet: Fleet
    seconds: float
    seed: int
    photo: Path
    load: Load | None = None
    offered_rps: float = 0.0
    started_s: float = 0.0

    def begin(self, share: float, patience_ms: float = PATIENCE_MS) -> None:
        """The load starts, and the clock."""
        self.offered_rps = share * CAPACITY_RPS
        self.load = self.fleet.start_load(self.offered_rps, self.seconds, self.seed, patience_ms)
        self.started_s = time.monotonic()

    def until(self, share: float) -> None:
        """Waits until this share of the load's time has passed."""
        time.sleep(max(0.0, self.started_s + share * self.seconds - time.monotonic()))

    def end(self) -> Outcome:
        """Waits for the load's end."""
        assert self.load is not None
        report = self.load.result()
        answered_s = max(float(report["duration_s"]), self.seconds)
        return Outcome(report, self.offered_rps, report["ok"] / answered_s)


def steady(scene: Scene) -> Outcome:
    """Nothing happens: what the others are to be compared with."""
    scene.begin(SHARE)
    return unharmed(scene.end())


def kill(scene: Scene) -> Outcome:
    """A replica is killed and another takes its place."""
    scene.begin(SHARE_ONE_AWAY)
    scene.until(0.3)
    scene.fleet.replicas[0].kill()
    time.sleep(RESTART_AFTER_S)
    scene.fleet.start_replica()
    return unharmed(scene.end())


def hang(scene: Scene) -> Outcome:
    """A replica stops in the middle of what it does, its connections stay open, and near the end it goes on."""
    scene.begin(SHARE_ONE_AWAY)
    scene.until(0.3)
    scene.fleet.replicas[0].signal(signal.SIGSTOP)
    scene.until(0.8)
    scene.fleet.replicas[0].signal(signal.SIGCONT)
    return unharmed(scene.end())


def resets(scene: Scene) -> Outcome:
    """A third replica looks ready and resets every connection."""
    return _harmful(scene, replica.Resetting, "reset")


def errors(scene: Scene) -> Outcome:
    """A third replica looks ready and answers 500 at once, so that it always has a free slot."""
    return _harmful(scene, replica.Failing, "answered with 500")


def _harmful(scene: Scene, handler: type[replica.Handler], did: str) -> Outcome:
    with replica.Replica(handler) as harmful:
        scene.begin(SHARE)
        scene.until(0.2)
        scene.fleet.register(harmful.url, 1)
        outcome = unharmed(scene.end())
        outcome.notes.append(f"{harmful.harmed} requests were {did}")
        outcome.wants.append(Want("it was tried at all", f"{harmful.harmed} requests", harmful.harmed > 0))
        return outcome


def rolling(scene: Scene) -> Outcome:
    """Both replicas are replaced, one after the other."""
    scene.begin(SHARE_ONE_AWAY)
    for number, share in enumerate((0.2, 0.5)):
        scene.until(share)
        old = scene.fleet.replicas[number]
        old.signal(signal.SIGTERM)
        scene.fleet.start_replica()
        old.wait(END_S_MAX)
    outcome = unharmed(scene.end())
    ready = scene.fleet.ready_replicas()
    outcome.wants.append(Want("both successors are ready", str(ready), ready == len(scene.fleet.replicas)))
    return outcome


def monitor(scene: Scene) -> Outcome:
    """The monitor is killed, and comes back."""
    scene.begin(SHARE)
    scene.until(0.2)
    scene.fleet.monitor.kill()
    scene.until(0.6)
    scene.fleet.restart_monitor()
    outcome = unharmed(scene.end())
    stats = ask("GET", f"{scene.fleet.monitor_url}/stats") or {}
    samples, lost = stats.get("samples", 0), stats.get("lost")
    outcome.wants.append(Want("the monitor hears again", f"{samples} latencies", samples > 0))
    outcome.notes.append(f"outcomes lost while it was away: {lost}")
    return outcome


def overload(scene: Scene) -> Outcome:
    """Five times as much as the replicas can do."""
    # The queue is full before the prober starts, so that it sees how a full one refuses.
    with ExitStack() as stack:
        scene.begin(OVERLOAD, PATIENCE_OVERLOAD_MS)
        time.sleep(FILL_S)
        prober = stack.enter_context(Prober(scene.fleet.url, scene.photo.read_bytes()))
        scene.until(1.0)
        stack.close()
        outcome = scene.end()
    lasted_s = scene.seconds - FILL_S
    refusals, answers = times_ms(prober.samples, 503), times_ms(prober.samples, 200)
    others = len(prober.samples) - len(refusals) - len(answers)
    in_time = sum(ms <= PATIENCE_OVERLOAD_MS for ms in answers)
    # The prober's requests use the same capacity.
    outcome.goodput_rps = _settled_rps(outcome.report, FILL_S, scene.seconds) + in_time / lasted_s
    share = outcome.goodput_rps / CAPACITY_RPS
    slowest = f"{len(refusals)} refusals, slowest {_ms(refusals[-1])}" if refusals else "no refusal seen"
    late = int(outcome.report["failed"])
    p99 = _high(answers) if answers else None
    outcome.wants = [
        Want(f"goodput at least {GOODPUT_SHARE_MIN:.0%} of capacity", f"{share:.1%}", share >= GOODPUT_SHARE_MIN),
        Want(f"every refusal within {REFUSAL_MS_MAX:g} ms", slowest, bool(refusals) and refusals[-1] <= REFUSAL_MS_MAX),
        Want(f"p99 of the answers within {PROMISE_MS:g} ms", *_within(p99, PROMISE_MS)),
        Want("answered in time or refused, all but 1 %", f"{late} were not", late <= 0.01 * outcome.report["sent"]),
    ]
    outcome.notes.append(f"prober: refusals {_spread(refusals)}; answers {_spread(answers)}; {others} other")
    return outcome


def loris(scene: Scene) -> Outcome:
    """Clients that dribble: 200 a head that never ends, 200 a body."""
    before = _quiet(scene)
    with Loris(scene.fleet.url, LORIS, LORIS) as clients:
        time.sleep(1)
        scene.begin(SHARE)
        outcome = scene.end()
        outcome.notes.append(f"{clients.count()} dribbling at the end, {clients.sent_away} were sent away")
    return _compared(outcome, before)


def idle(scene: Scene) -> Outcome:
    """Ten thousand connections that nothing comes from."""
    before = _quiet(scene)
    with Idle(scene.fleet.url, IDLE) as clients:
        scene.begin(SHARE)
        outcome = scene.end()
        still = clients.still_open()
    outcome.notes.append(
        f"{clients.opened} of {IDLE} connections opened, {clients.answered} of the {clients.asked} that asked once "
        f"were answered, {still} open at the end"
    )
    outcome.connections = clients.opened
    if clients.possible < IDLE:
        outcome.notes.append(f"the limit on open files allows {clients.possible} connections only")
    return _compared(outcome, before)


def _quiet(scene: Scene) -> Outcome:
    """The same load, the same arrivals, without the harm."""
    scene.begin(SHARE)
    return scene.end()


def _compared(outcome: Outcome, before: Outcome) -> Outcome:
    outcome = unharmed(outcome)
    quiet, now = before.report["latency_ms"]["p99"], outcome.report["latency_ms"]["p99"]
    if quiet is None or now is None:
        outcome.wants.append(Want("the others' p99 is unharmed", "nothing was answered", held=False))
        return outcome
    limit = max(P99_FACTOR_MAX * quiet, quiet + P99_MORE_MS)
    what = f"the others' p99 at most {_ms(limit)} ({_ms(quiet)} without them)"
    outcome.wants.append(Want(what, _ms(now), now <= limit))
    return outcome


def unharmed(outcome: Outcome) -> Outcome:
    """What clients are to feel of almost everything: nothing."""
    report, p99 = outcome.report, outcome.report["latency_ms"]["p99"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.get("failures", {}).items()))
    outcome.wants += [
        Want("no request failed", kinds or "none", report["failed"] == 0 and report["sent"] > 0),
        Want("no request refused", str(report["shed"]), report["shed"] == 0),
        Want(f"p99 within {PROMISE_MS:g} ms", *_within(p99, PROMISE_MS)),
    ]
    return outcome


def _settled_rps(report: dict[str, Any], from_s: float, to_s: float) -> float:
    """Requests a second that came due in these seconds and were answered."""
    rows = [row for row in report["seconds"] if from_s <= row["t"] and row["t"] + 1 <= to_s]
    return sum(row["ok"] for row in rows) / len(rows) if rows else 0.0


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _spread(ordered: list[float]) -> str:
    if not ordered:
        return "none"
    middle = ordered[len(ordered) // 2]
    return f"{len(ordered)}, p50 {_ms(middle)}, p99 {_ms(_high(ordered))}, slowest {_ms(ordered[-1])}"


def _high(ordered: list[float]) -> float:
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def _within(found_ms: float | None, limit_ms: float) -> tuple[str, bool]:
    return ("-", False) if found_ms is None else (_ms(found_ms), found_ms <= limit_ms)


SCENARIOS: dict[str, Callable[[Scene], Outcome]] = {
    "steady": steady,
    "kill": kill,
    "hang": hang,
    "resets": resets,
    "errors": errors,
    "rolling": rolling,
    "monitor": monitor,
    "overload": overload,
    "loris": loris,
    "idle": idle,
}
TITLES = {
    "steady": "nothing happens",
    "kill": f"a replica killed, another {RESTART_AFTER_S:g} s later",
    "hang": "a replica hangs",
    "resets": "a replica resets connections",
    "errors": "a replica answers 500",
    "rolling": "rolling restart",
    "monitor": "monitor killed, restarted",
    "overload": f"{OVERLOAD:g}× overload",
    "loris": f"{2 * LORIS} dribbling clients",
    "idle": f"{IDLE} idle connections",
}
