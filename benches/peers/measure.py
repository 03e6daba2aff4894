"""Takes the engines in turn, A B C A B C, and keeps what each round took.

Two engines are compared within a round, seconds apart, so that a machine that slows down slows both down.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from children import Child, EngineError, Hello

COMMAND_S_MAX = 60.0
# The first run of a batch size may compile a graph, in one engine for minutes.
FIRST_S_MAX = 400.0
RUNS_MAX = 50
WARM_UP_RUNS = 3
# Worker threads of the engine before stop spinning, and the core's clock settles.
PAUSE_S = 0.02


@dataclass(frozen=True)
class Engine:
    """A row to be: its name and the command of its child, which takes `--threads`."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Case:
    """One column: so many threads on so many cores, so many images at once."""

    threads: int
    cores: tuple[int, ...]
    batch: int

    @property
    def key(self) -> str:
        """Its name in the JSON."""
        return f"threads_{self.threads}_batch_{self.batch}"


@dataclass
class Result:
    """What is known of an engine."""

    name: str
    hello: Hello | None = None
    # Durations by case, a list a round, nanoseconds for the whole batch.
    rounds: dict[str, list[list[int]]] = field(default_factory=dict)
    # Reasons by case.
    missing: dict[str, str] = field(default_factory=dict)
    # Of the photos that are the largest batch.
    logits: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int
    turn_ms: float
    logs: Path
    command_arguments: list[str]


class Turn:
    """An engine's child in one case."""

    def __init__(self, child: Child, result: Result) -> None:
        self.child = child
        self.result = result
        self.runs = 1


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(engines: list[Engine], cases: list[Case], settings: Settings) -> list[Result]:
    """Every engine in every case. Cases of the same number of threads share the children."""
    results = {engine.name: Result(engine.name) for engine in engines}
    for threads in sorted({case.threads for case in cases}):
        group = [case for case in cases if case.threads == threads]
        turns = _start(engines, group, results, settings)
        try:
            for case in group:
                _rounds(_warm_up(turns, case, settings), case, settings)
        finally:
            for turn in turns:
                turn.child.end()
    return list(results.values())


def _start(engines: list[Engine], cases: list[Case], results: dict[str, Result], settings: Settings) -> list[Turn]:
    turns = []
    for engine in engines:
        threads, cores = cases[0].threads, cases[0].cores
        say(f"starting {engine.name} with {threads} thread(s) on core(s) {', '.join(map(str, cores))}")
        result = results[engine.name]
        child = None
        try:
            command = [*engine.command, "--threads", str(threads), *settings.command_arguments]
            child = Child(command, threads, cores, settings.logs / f"{engine.name}-{threads}.log")
            result.hello = child.hello()
            turns.append(Turn(child, result))
        except EngineError as error:
            if child:
                child.end()
            _miss(result, cases, error)
    return turns


def _warm_up(turns: list[Turn], case: Case, settings: Settings) -> list[Turn]:
    """Compiles, fills caches, and finds how many runs fill a turn. The engines that can are given back."""
    able = []
    for turn in turns:
        if case.key in turn.result.missing:
            continue
        say(f"warming up {turn.result.name}, batch {case.batch}")
        try:
            first = turn.child.ask(case.batch, 1, FIRST_S_MAX, logits=True)
            warm = turn.child.ask(case.batch, WARM_UP_RUNS, COMMAND_S_MAX)
        except EngineError as error:
            _miss(turn.result, [case], error)
            continue
        if len(first.logits) > len(turn.result.logits):
            turn.result.logits = first.logits
        run_ms = statistics.median(warm.durations_ns) / 1e6
        turn.runs = max(1, min(RUNS_MAX, round(settings.turn_ms / run_ms)))
        able.append(turn)
    return able


def _rounds(turns: list[Turn], case: Case, settings: Settings) -> None:
    started = time.monotonic()
    for round_ in range(settings.rounds):
        for turn in list(turns):
            time.sleep(PAUSE_S)
            try:
                # The first run finds another engine's data in the caches: it is not counted.
                answer = turn.child.ask(case.batch, turn.runs + 1, COMMAND_S_MAX)
            except EngineError as error:
                _miss(turn.result, [case], error)
                turns.remove(turn)
                continue
            turn.result.rounds.setdefault(case.key, []).append(answer.durations_ns[1:])
        if (round_ + 1) % 5 == 0 or round_ + 1 == settings.rounds:
            seconds = time.monotonic() - started
            say(f"{case.key}: round {round_ + 1} of {settings.rounds}, {seconds:.0f} s")


def _miss(result: Result, cases: list[Case], error: EngineError) -> None:
    say(f"{result.name}: {error}")
    for case in cases:
        result.missing[case.key] = str(error)
        # Half a measurement is none.
        result.rounds.pop(case.key, None)
