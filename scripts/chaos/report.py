"""The table for a person and the JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fleet import CAPACITY_RPS, PACE_MS, REPLICAS
from scenarios import TITLES, Outcome, Want

PEAK_MB_MAX = 200.0
AFTER_FACTOR_MAX = 2.0
# Of less than this a factor tells nothing: one buffer more or less would decide.
AFTER_MB_FREE = 64.0
# The C library keeps the buffers of connections that are gone for those to come.
KEPT_KB = 8.0


@dataclass(frozen=True)
class Memory:
    """The dispatcher's resident memory, MB: warmed up, at most, and a while after the load."""

    before_mb: float | None
    peak_mb: float | None
    after_mb: float | None
    connections: int = 0

    def wants(self) -> list[Want]:
        """It is bounded, and comes back."""
        if self.before_mb is None or self.peak_mb is None or self.after_mb is None:
            return [Want("the dispatcher still runs", "it has ended", held=False)]
        kept_mb = self.connections * KEPT_KB / 1000
        limit = max(AFTER_FACTOR_MAX * self.before_mb, AFTER_MB_FREE + kept_mb)
        return [
            Want(f"memory at most {PEAK_MB_MAX:g} MB", f"{self.peak_mb:.0f} MB", self.peak_mb <= PEAK_MB_MAX),
            Want(f"memory afterwards at most {limit:.0f} MB", f"{self.after_mb:.0f} MB", self.after_mb <= limit),
        ]

    def __str__(self) -> str:
        cells = (self.before_mb, self.peak_mb, self.after_mb)
        return " / ".join("-" if cell is None else f"{cell:.0f}" for cell in cells)


@dataclass(frozen=True)
class Row:
    """A scenario that ran, or the reason why it could not."""

    name: str
    outcome: Outcome | None
    memory: Memory | None
    trouble: str | None = None

    def wants(self) -> list[Want]:
        """Everything that was wanted of it."""
        if self.outcome is None:
            return [Want("the scenario runs", self.trouble or "it did not", held=False)]
        return [*self.outcome.wants, *(self.memory.wants() if self.memory else [])]

    def held(self) -> bool:
        """Whether it saw everything it wanted."""
        return all(want.held for want in self.wants())

    def json(self) -> dict[str, Any]:
        """Everything that is known."""
        return {
            "name": self.name,
            "title": TITLES[self.name],
            "held": self.held(),
            "wants": [asdict(want) for want in self.wants()],
            "memory": asdict(self.memory) if self.memory else None,
            "trouble": self.trouble,
            **({} if self.outcome is None else _outcome_json(self.outcome)),
        }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "offered_rps": outcome.offered_rps,
        "goodput_rps": outcome.goodput_rps,
        "capacity_rps": CAPACITY_RPS,
        "notes": outcome.notes,
        "load": outcome.report,
    }


HEADER = ["scenario", "offered/s", "sent", "failed", "refused", "goodput/s", "of capacity"]
HEADER += ["p50 ms", "p99 ms", "max ms", "memory MB", "verdict"]


def markdown(rows: list[Row], machine: dict[str, str]) -> str:
    """The table, then what each scenario wanted and what was found."""
    described = "; ".join(f"{key}: {value}" for key, value in machine.items())
    capacity = (
        f"{REPLICAS} replicas, {PACE_MS} ms an image: capacity {CAPACITY_RPS:g} requests/s. Latency counts from the "
        "instant at which a request was due; a percentile that falls on a failed or refused request is the client's "
        "time-out. Memory is the dispatcher's: before, peak, after."
    )
    table = [HEADER, ["---", *["--:"] * (len(HEADER) - 2), "---"], *(_cells(row) for row in rows)]
    lines = [f"Measured on: {described}.", "", capacity, "", *(f"| {' | '.join(cells)} |" for cells in table), ""]
    for row in rows:
        lines.append(f"- {TITLES[row.name]} (`{row.name}`)")
        for want in row.wants():
            lines.append(f"  - {want.what}: {want.found}, {'held' if want.held else '**missed**'}")
        lines += [f"  - {note}" for note in row.outcome.notes] if row.outcome else []
        if row.outcome and not row.outcome.report.get("valid", True):
            lines.append("  - not to be trusted: the load generator itself lagged")
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    verdict = "held" if row.held() else "**missed**"
    if row.outcome is None:
        return [TITLES[row.name], *["-"] * (len(HEADER) - 2), verdict]
    report, outcome = row.outcome.report, row.outcome
    failures = report.get("failures", {})
    kinds = f" ({', '.join(f'{count} {kind}' for kind, count in sorted(failures.items()))})" if failures else ""
    latencies = ["-" if (ms := report["latency_ms"][key]) is None else f"{ms:.0f}" for key in ("p50", "p99", "max")]
    return [
        TITLES[row.name],
        f"{outcome.offered_rps:.0f}",
        str(report["sent"]),
        f"{report['failed']}{kinds}",
        str(report["shed"]),
        f"{outcome.goodput_rps:.1f}",
        f"{outcome.goodput_rps / CAPACITY_RPS:.0%}",
        *latencies,
        str(row.memory),
        verdict,
    ]
