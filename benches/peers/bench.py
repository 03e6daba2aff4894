"""`make bench`: every engine in turn in one run, on this machine, and a table of them.

    python3 benches/peers/bench.py --rounds 30 --engines elastic-f32,onnxruntime-f32

Runs with any Python from 3.11 and the standard library alone; the engines live in an environment of their own,
target/peers/venv, which setup.sh makes. README.md tells how the figures come about.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import prepare
from machine import describe
from measure import Case, Engine, Result, Settings, measure
from table import Table

REFERENCE = "onnxruntime-f32"
OWN = ("elastic-f32", "elastic-bf16", "elastic-int8", "elastic-f32@avx2")
PYTHON = (
    "onnxruntime-f32", "onnxruntime-int8", "openvino-f32", "openvino-bf16", "openvino-int8", "litert-f32",
    "litert-int8", "torch-eager", "torch-jit", "torch-compile",
)  # fmt: skip
RUST = ("tract", "candle-conv2d")
ENGINES = (*OWN, *PYTHON, *RUST)
ROUNDS_MAX = 1000


def arguments() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES), help="rows, separated by commas (all: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each engine in each column (%(default)s)")
    parser.add_argument("--turn-ms", type=float, default=60, help="length of a turn, milliseconds (%(default)s)")
    parser.add_argument("--cores", default="", help="cores to pin to, as 0,1; one thread runs on the first")
    prepare.add_flags(parser)
    args = parser.parse_args()
    if not 1 <= args.rounds <= ROUNDS_MAX or args.turn_ms <= 0:
        parser.error(f"--rounds must be from 1 to {ROUNDS_MAX}, --turn-ms more than 0")
    args.engines = args.engines.split(",")
    if unknown := [name for name in args.engines if name not in ENGINES]:
        parser.error(f"there is no engine {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    return args


def engines(names: list[str]) -> list[Engine]:
    """The commands of the engines asked for; only what they need is built."""
    own = prepare.build_bench("engine") if set(names) & set(OWN) else Path()
    rust = prepare.build_rust_peers() if set(names) & set(RUST) else Path()

    def command(name: str) -> list[str]:
        if name in OWN:
            return [str(own), name, "--weights-int8", str(prepare.INTEGERS)]
        if name in RUST:
            return [str(rust), name]
        return [str(prepare.PYTHON), str(prepare.HERE / "engines.py"), name]

    return [Engine(name, command(name)) for name in names]


def explain(results: list[Result]) -> None:
    """Says why a model was not exported, where that is why an engine is missing."""
    file = prepare.MODELS / "missing.json"
    reasons: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    for result in results:
        for key, reason in result.missing.items():
            for model, cause in reasons.items():
                if model in reason:
                    result.missing[key] = f"{model} was not exported: {cause}"


def main() -> int:
    args = arguments()
    network, weights = prepare.find_weights(args.network, args.weights)
    cores = prepare.find_cores(args.cores)
    if not args.skip_install:
        prepare.install_and_export(network, weights)
    rows = engines(args.engines)
    prepare.LOGS.mkdir(parents=True, exist_ok=True)
    cases = [Case(1, (cores[0],), 1), Case(1, (cores[0],), 8)]
    if len(cores) > 1:
        cases.append(Case(2, tuple(cores[:2]), 1))
    common = ["--models", str(prepare.MODELS), "--weights", str(weights), "--network", network]
    if "elastic-int8" in args.engines and not args.skip_install:
        prepare.quantise(weights)
    results = measure(rows, cases, Settings(args.rounds, args.turn_ms, prepare.LOGS, common))
    explain(results)
    table = Table(results, REFERENCE, cases, {"network": network, **describe(cores)})
    print(table.text(), end="")
    if args.json:
        args.json.write_text(json.dumps(table.json(), indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table.markdown())
    return 0 if any(result.rounds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
