"""From turns to medians, to verdicts, and to the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

DIRECT = "backend"
OURS = "elastic"
ADDED_MEDIAN_US_MAX = 100.0
ADDED_P99_US_MAX = 1000.0
# Below this a proxy's core was not busy, so that its requests/s are a limit of something else.
BUSY_MIN = 0.9
# Above this the sender's own lag is part of what is compared.
LAG_P99_MS_MAX = 0.5
Turn = TypeVar("Turn")


@dataclass(frozen=True)
class Closed:
    """A turn in a closed loop."""

    requests_per_s: float
    # Through the CPU seconds of the proxy: what a core that does nothing else would carry.
    requests_per_core_s: float
    # CPU seconds of the proxy a second.
    busy: float
    failed: int


@dataclass(frozen=True)
class Open:
    """A turn at a constant rate; from the instant at which a request was due."""

    median_ms: float
    p99_ms: float
    lag_p99_ms: float
    failed: int


@dataclass
class Case:
    """Everything about one body size; lists have one entry a round."""

    body_bytes: int
    versions: dict[str, str]
    rate_rps: float = 0.0
    closed: dict[str, list[Closed]] = field(default_factory=dict)
    open: dict[str, list[Open]] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    resident_mb: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A proxy's medians over the rounds."""

    name: str
    version: str
    requests_per_s: float
    requests_per_core_s: float
    busy: float
    # Through the proxy minus straight to the backend, in the same round.
    added_median_ms: float
    added_p99_ms: float
    # Of the sender straight to the backend and through the proxy, the worse.
    lag_p99_ms: float
    failed: int
    threads: int
    resident_mb: float | None


@dataclass(frozen=True)
class Verdict:
    """A target and what was found."""

    what: str
    found: str
    held: bool


def rows(case: Case) -> list[Row]:
    """A row a proxy, in the order in which they were started."""
    return [_row(case, name) for name in case.versions]


def _row(case: Case, name: str) -> Row:
    closed, through, direct = case.closed[name], case.open[name], case.open[DIRECT]
    pairs = list(zip(through, direct, strict=True))
    return Row(
        name=name,
        version=case.versions[name],
        requests_per_s=_median(closed, lambda turn: turn.requests_per_s),
        requests_per_core_s=_median(closed, lambda turn: turn.requests_per_core_s),
        busy=_median(closed, lambda turn: turn.busy),
        added_median_ms=statistics.median(mine.median_ms - theirs.median_ms for mine, theirs in pairs),
        added_p99_ms=statistics.median(mine.p99_ms - theirs.p99_ms for mine, theirs in pairs),
        lag_p99_ms=max(_median(through, lambda turn: turn.lag_p99_ms), _median(direct, lambda turn: turn.lag_p99_ms)),
        failed=sum(turn.failed for turn in closed) + sum(turn.failed for turn in through),
        threads=case.threads[name],
        resident_mb=case.resident_mb[name],
    )


def _median(turns: Sequence[Turn], value: Callable[[Turn], float]) -> float:
    return statistics.median(map(value, turns))


def verdicts(case: Case) -> list[Verdict]:
    """The targets of our own row; none where it was not measured."""
    found = {row.name: row for row in rows(case)}
    if OURS not in found:
        return []
    ours = found.pop(OURS)
    median, p99 = ours.added_median_ms * 1000, ours.added_p99_ms * 1000
    judged = [
        Verdict(f"added median ≤ {ADDED_MEDIAN_US_MAX:g} µs", f"{median:.0f} µs", median <= ADDED_MEDIAN_US_MAX),
        Verdict(f"added p99 ≤ {ADDED_P99_US_MAX:g} µs", f"{p99:.0f} µs", p99 <= ADDED_P99_US_MAX),
    ]
    for other in found.values():
        ratio = ours.requests_per_core_s / other.requests_per_core_s
        judged.append(Verdict(f"requests/s per core ≥ {other.name}'s", f"{ratio:.2f} times", ratio >= 1))
    judged.append(Verdict("no request failed", str(ours.failed), ours.failed == 0))
    return judged


@dataclass
class Results:
    """A whole run."""

    machine: dict[str, str]
    proxy_cores: tuple[int, ...]
    load_cores: tuple[int, ...]
    threads: int
    connections: int
    rounds: int
    seconds: float
    cases: list[Case] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Everything, every turn too."""
        cases = [
            {
                **asdict(case),
                "rows": [asdict(row) for row in rows(case)],
                "verdicts": [asdict(verdict) for verdict in verdicts(case)],
            }
            for case in self.cases
        ]
        return asdict(self) | {"cases": cases}

    def markdown(self) -> str:
        """For a person."""
        machine = "; ".join(f"{key}: {value}" for key, value in self.machine.items())
        where = (
            f"The proxy under test on core(s) {_list(self.proxy_cores)} with {self.threads} worker thread(s), backend "
            f"and load on core(s) {_list(self.load_cores)}; {self.connections} connections; medians of {self.rounds} "
            f"rounds of {self.seconds:g} s."
        )
        return "\n".join([f"Measured on: {machine}.", "", where, "", *(_text(case) for case in self.cases)])


HEADER = ["proxy", "version", "requests/s per core", "requests/s", "core busy", "added median µs", "added p99 µs"]
HEADER += ["failed", "threads", "resident MB"]


def _text(case: Case) -> str:
    found = sorted(rows(case), key=lambda row: -row.requests_per_core_s)
    lines = [HEADER, ["---", "---", *["--:"] * (len(HEADER) - 2)]]
    for row in found:
        name = f"**{row.name}**" if row.name == OURS else row.name
        cells = [name, row.version, f"{row.requests_per_core_s:,.0f}", f"{row.requests_per_s:,.0f}", f"{row.busy:.0%}"]
        cells += [f"{row.added_median_ms * 1000:.0f}", f"{row.added_p99_ms * 1000:.0f}", str(row.failed)]
        resident = "-" if row.resident_mb is None else f"{row.resident_mb:.0f}"
        lines.append([*cells, str(row.threads), resident])
    direct = case.open[DIRECT]
    straight = (
        f"Latencies at {case.rate_rps:,.0f} requests/s; straight to the backend "
        f"{_median(direct, lambda turn: turn.median_ms) * 1000:.0f} µs (median) and "
        f"{_median(direct, lambda turn: turn.p99_ms) * 1000:.0f} µs (p99)."
    )
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    text = [f"### Bodies of {case.body_bytes} bytes", "", *table, "", straight]
    text += [f"Not to be trusted: {warning}." for warning in warnings(found)]
    text += ["", *(f"- {verdict.what}: {verdict.found}, {_word(verdict.held)}" for verdict in verdicts(case)), ""]
    return "\n".join(text)


def warnings(found: list[Row]) -> list[str]:
    """What a reader should know before believing a row."""
    told = []
    if idle := [row.name for row in found if row.busy < BUSY_MIN]:
        told.append(f"requests/s of {', '.join(idle)}, whose core was not busy (requests/s per core stand)")
    if late := [row.name for row in found if row.lag_p99_ms > LAG_P99_MS_MAX]:
        told.append(f"p99 of {', '.join(late)}: the sender itself lagged by more than {LAG_P99_MS_MAX} ms")
    return told


def _word(held: bool) -> str:
    return "held" if held else "**missed**"


def _list(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
