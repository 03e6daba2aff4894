"""From durations to the table: figures, agreement, text, Markdown and JSON."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from measure import Case, Result

CLASSES = 1000


@dataclass(frozen=True)
class Figures:
    """An engine in one case, milliseconds an image."""

    median_ms: float
    p99_ms: float
    # Median over the rounds of this engine's median through the reference's in the same round.
    ratio: float | None
    runs: int


@dataclass(frozen=True)
class Agreement:
    """How an engine's logits compare with the reference's, over the same photos."""

    same_top_1: int
    photos: int
    relative_l2: float


def figures(result: Result, reference: Result | None, case: Case) -> Figures | None:
    """Nothing where the engine has no measurement."""
    rounds = result.rounds.get(case.key)
    if not rounds:
        return None
    durations = sorted(duration for round_ in rounds for duration in round_)
    scale = 1e6 * case.batch
    p99 = durations[math.ceil(0.99 * len(durations)) - 1]
    return Figures(statistics.median(durations) / scale, p99 / scale, _ratio(rounds, reference, case), len(durations))


def _ratio(rounds: list[list[int]], reference: Result | None, case: Case) -> float | None:
    others = reference.rounds.get(case.key, []) if reference else []
    if not others:
        return None
    return statistics.median(
        statistics.median(mine) / statistics.median(theirs) for mine, theirs in zip(rounds, others, strict=False)
    )


def agreement(result: Result, reference: Result | None) -> Agreement | None:
    """Nothing where either has no logits, or of another number of photos."""
    if not reference or not result.logits or len(result.logits) != len(reference.logits):
        return None
    same = photos = 0
    for at in range(0, len(result.logits), CLASSES):
        mine, theirs = result.logits[at : at + CLASSES], reference.logits[at : at + CLASSES]
        same += mine.index(max(mine)) == theirs.index(max(theirs))
        photos += 1
    difference = math.dist(result.logits, reference.logits)
    return Agreement(same, photos, difference / math.hypot(*reference.logits))


class Table:
    """Every engine in every case, the fastest first; what is missing at the end, with its reason."""

    def __init__(self, results: list[Result], reference: str, cases: list[Case], machine: dict[str, str]) -> None:
        self.cases, self.machine, self.reference = cases, machine, reference
        found = next((result for result in results if result.name == reference), None)
        self._rows = [
            (result, {case.key: figures(result, found, case) for case in cases}, agreement(result, found))
            for result in results
        ]
        self._rows.sort(key=lambda row: (self._speed_of(row[1]), row[0].name))

    def _speed_of(self, row: dict[str, Figures | None]) -> float:
        first = row[self.cases[0].key]
        return math.inf if first is None else first.median_ms

    def json(self) -> dict[str, Any]:
        """Everything, the rounds' medians too."""
        engines = []
        for result, row, agreed in self._rows:
            medians = {key: [statistics.median(round_) for round_ in rounds] for key, rounds in result.rounds.items()}
            engines.append(
                {
                    "name": result.name,
                    "version": result.hello.version if result.hello else None,
                    "what": result.hello.what if result.hello else None,
                    "cases": {key: asdict(value) for key, value in row.items() if value},
                    "agreement": asdict(agreed) if agreed else None,
                    "missing": result.missing,
                    "round_medians_ns": medians,
                }
            )
        return {"machine": self.machine, "reference": self.reference, "engines": engines}

    def text(self) -> str:
        """For a terminal."""
        rows = [self._header(), *self._cells()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = ["  ".join(_padded(cell, widths[at], at > 1) for at, cell in enumerate(row)) for row in rows]
        machine = [f"{key}: {value}" for key, value in self.machine.items()]
        return "\n".join([*machine, "", *(line.rstrip() for line in lines), *self._notes()]) + "\n"

    def markdown(self) -> str:
        """For a document."""
        header = self._header()
        rows = [header, ["---", "---", *["--:"] * (len(header) - 2)], *self._cells()]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        machine = "; ".join(f"{key}: {value}" for key, value in self.machine.items())
        return "\n".join([f"Measured on: {machine}.", "", *lines, *self._notes("- ")]) + "\n"

    def _header(self) -> list[str]:
        header = ["engine", "version"]
        for case in self.cases:
            threads = "thread" if case.threads == 1 else "threads"
            name = f"{case.threads} {threads}, batch {case.batch}"
            header += [f"{name}: ms/image", "p99", "ratio"]
        return [*header, "same top 1", "rel. L2"]

    def _cells(self) -> list[list[str]]:
        rows = []
        for result, row, agreed in self._rows:
            if not any(row.values()):
                continue
            cells = [result.name, result.hello.version if result.hello else "-"]
            for case in self.cases:
                cells += _figures_cells(row[case.key])
            cells += [f"{agreed.same_top_1}/{agreed.photos}", f"{agreed.relative_l2:.1e}"] if agreed else ["-", "-"]
            rows.append(cells)
        return rows

    def _notes(self, bullet: str = "") -> list[str]:
        notes = [
            "",
            f"Ratio: to {self.reference} in the same round, median over the rounds. Agreement: with its logits.",
        ]
        missing = []
        for result, _, _ in self._rows:
            reasons: dict[str, list[str]] = {}
            for key, reason in result.missing.items():
                reasons.setdefault(reason, []).append(key)
            missing += [f"{bullet}{result.name}, {', '.join(keys)}: {reason}" for reason, keys in reasons.items()]
        return [*notes, "", "Missing:", *([""] if bullet else []), *missing] if missing else notes


def _figures_cells(found: Figures | None) -> list[str]:
    if not found:
        return ["-"] * 3
    ratio = "-" if found.ratio is None else f"{found.ratio:.2f}"
    return [f"{found.median_ms:.2f}", f"{found.p99_ms:.2f}", ratio]


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
