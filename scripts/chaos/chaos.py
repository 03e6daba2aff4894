"""`make chaos`: breaks what can break, under load, and says what clients felt of it.

Every scenario starts its own dispatcher, monitor and two replicas of known capacity on loopback, and ends them by
their process ids. The exit code is 1 if something wanted was missed. docs/reliability.md describes the scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "benches" / "proxy"), str(ROOT / "benches" / "peers")]

from clients import descriptors_max
from fleet import Fleet, Setting
from machine import describe
from process import ProcessError
from report import Memory, Row, markdown
from scenarios import SCENARIOS, SHARE, TITLES, Scene

TARGET = ROOT / "target"
PHOTOS = ROOT / "tests" / "photos"
WARM_UP_S = 2.0
SETTLE_S = 3.0
SEED_OF_WARM_UP = 99


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def play(name: str, setting: Setting, args: argparse.Namespace) -> Row:
    """One scenario, from a fresh fleet to its end."""
    say(f"{name}: {TITLES[name]}")
    fleet = Fleet(setting)
    try:
        fleet.start()
        scene = Scene(fleet, args.seconds, args.seed, PHOTOS / "goldfish.jpg")
        _warm_up(scene)
        before = fleet.dispatcher.resident_mb()
        outcome = SCENARIOS[name](scene)
        time.sleep(SETTLE_S)
        dispatcher, connections = fleet.dispatcher, outcome.connections
        memory = Memory(before, dispatcher.resident_peak_mb(), dispatcher.resident_mb(), connections)
        return Row(name, outcome, memory)
    except (ProcessError, OSError) as error:
        return Row(name, None, None, str(error))
    finally:
        # Impatience must not leave anything behind.
        before_end = signal.signal(signal.SIGINT, signal.SIG_IGN)
        fleet.end()
        signal.signal(signal.SIGINT, before_end)


def _warm_up(scene: Scene) -> None:
    """Connections, threads and buffers are there before anything is measured."""
    seconds, seed = scene.seconds, scene.seed
    scene.seconds, scene.seed = WARM_UP_S, SEED_OF_WARM_UP
    scene.begin(SHARE)
    scene.end()
    scene.seconds, scene.seed = seconds, seed


def arguments() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, by commas (all: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="length of a scenario's load (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the arrivals (%(default)s)")
    parser.add_argument("--dispatch", default="", help='further arguments of `elastic dispatch`, as "--waiting-max 50"')
    parser.add_argument("--json", type=Path, default=TARGET / "chaos.json", help="where the JSON goes")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    if not 8 <= args.seconds <= 600:
        parser.error("--seconds must be from 8 to 600")
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in SCENARIOS]:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return args


def interrupted(*_: object) -> None:
    """SIGTERM ends us as Ctrl-C does, through every `finally`."""
    raise KeyboardInterrupt


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    if not Path("/proc/self/status").exists():
        raise SystemExit("chaos: this reads /proc, and needs Linux")
    elastic = Path(os.environ.get("ELASTIC", TARGET / "release" / "elastic")).resolve()
    if not elastic.is_file():
        raise SystemExit(f"chaos: {elastic} is not there; run `make build`, or name the executable in ELASTIC")
    # A scenario is the same whatever the person has set for other runs.
    for name in [name for name in os.environ if name.startswith("ELASTIC_")]:
        del os.environ[name]
    descriptors_max()
    machine = describe(sorted(os.sched_getaffinity(0)))
    rows: list[Row] = []
    try:
        for name in args.only:
            logs = TARGET / "chaos" / name
            shutil.rmtree(logs, ignore_errors=True)
            logs.mkdir(parents=True)
            rows.append(play(name, Setting(elastic, PHOTOS, logs, tuple(shlex.split(args.dispatch))), args))
            if not rows[-1].held():
                say(f"{name}: missed; logs are in {logs}")
    except KeyboardInterrupt:
        say("interrupted; everything that was started has ended")
        return 130
    text = markdown(rows, machine)
    print(text, end="")
    everything = {"machine": machine, "seconds": args.seconds, "seed": args.seed, "dispatch": args.dispatch}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(everything | {"scenarios": [row.json() for row in rows]}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)
    return 0 if all(row.held() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
