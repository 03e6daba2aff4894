"""`make bench`: every engine in turn in one run, on this machine, and a table of them.

    python3 benches/peers/bench.py --rounds 30 --engines elastic-f32,onnxruntime-f32

Runs with any Python from 3.11 and the standard library alone; the engines live in an environment of their own,
target/peers/venv, which setup.sh makes. README.md tells how the figures come about.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from children import cores_allowed
from machine import describe
from measure import Case, Engine, Settings, measure, say
from table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "benches" / "peers"
TARGET = ROOT / "target" / "peers"
REFERENCE = "onnxruntime-f32"
OWN = ("elastic-f32", "elastic-bf16", "elastic-int8")
PYTHON = (
    "onnxruntime-f32", "onnxruntime-int8", "openvino-f32", "openvino-bf16", "openvino-int8", "litert-f32",
    "litert-int8", "torch-eager", "torch-jit", "torch-compile",
)
RUST = ("tract", "candle-conv2d")
NETWORKS = ("mobilenet_v2", "efficientnet_lite0")
STEP_S_MAX = 3600


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join([*OWN, *PYTHON, *RUST]), help="rows, separated by commas")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each engine in each column (%(default)s)")
    parser.add_argument("--turn-ms", type=float, default=60, help="length of a turn, milliseconds (%(default)s)")
    parser.add_argument("--cores", default="", help="cores to pin to, as 0,1; the first alone for one thread")
    parser.add_argument("--network", choices=NETWORKS, help="default: mobilenet_v2 if its weights are there")
    parser.add_argument("--weights", type=Path, help="folded weights, safetensors")
    parser.add_argument("--skip-install", action="store_true", help="use the environment and models as they are")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table as Markdown to this file")
    return parser.parse_args()


def find_weights(network: str | None, weights: Path | None) -> tuple[str, Path]:
    """The network, and where its weights are: as asked for, else as `elastic` itself would choose."""
    folders = [Path(os.environ.get("ELASTIC_WEIGHTS_DIR", ROOT / "weights")), ROOT / "weights", ROOT / "../shared/weights"]
    for name in [network] if network else NETWORKS:
        for file in [weights] if weights else [folder / f"{name}.safetensors" for folder in folders]:
            if file.exists():
                return name, file.resolve()
    raise SystemExit("bench: no weights; `make weights` gets them, --weights FILE or ELASTIC_WEIGHTS_DIR names them")


def find_cores(text: str) -> list[int]:
    """Two cores if there are: the first for one thread, both for two."""
    allowed = sorted(cores_allowed())
    cores = [int(core) for core in text.split(",")] if text else allowed[:2]
    if not set(cores) <= set(allowed):
        raise SystemExit(f"bench: cores {text} are not among those allowed, {', '.join(map(str, allowed))}")
    return cores


def step(what: str, command: list[str | Path], **environment: str) -> bytes:
    """Runs one preparation to its end; its own messages tell what went wrong."""
    say(what)
    try:
        done = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=STEP_S_MAX,
            env=os.environ | environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"bench: {what} failed: {error}") from error
    return done.stdout


def prepare(network: str, weights: Path) -> None:
    """The environment, and the network in every peer's format."""
    step("setting up the environment", [HERE / "setup.sh"])
    step(
        "exporting the network",
        [
            TARGET / "venv/bin/python", HERE / "export.py", "--weights", weights, "--network", network,
            "--photos", ROOT / "tests/photos", "--out", TARGET / "models",
            "--calibration", TARGET / "photos", ROOT / "tests/photos",
        ],
    )


def build_own() -> Path:
    """Builds benches/engine.rs and finds the executable, whose name cargo chooses."""
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "bench", "--locked", "--bench", "engine", "--no-run", "--message-format", "json"]
    for line in step("building this engine", command).splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == "engine":
            return Path(message["executable"])
    raise SystemExit("bench: cargo built no benchmark named engine")


def build_rust() -> Path:
    """Builds the Rust peers."""
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "build", "--release", "--locked", "--manifest-path", HERE / "rust/Cargo.toml"]
    step("building the Rust peers", command, CARGO_TARGET_DIR=str(TARGET / "rust"))
    return TARGET / "rust/release/elastic-peers"


def engines(names: list[str]) -> list[Engine]:
    """The commands of the engines asked for; only what they need is built."""
    unknown = set(names) - {*OWN, *PYTHON, *RUST}
    if unknown:
        raise SystemExit(f"bench: there is no engine {', '.join(sorted(unknown))}; there are {', '.join([*OWN, *PYTHON, *RUST])}")
    own = build_own() if set(names) & set(OWN) else Path()
    rust = build_rust() if set(names) & set(RUST) else Path()
    found = []
    for name in names:
        if name in OWN:
            command = [str(own), name]
        elif name in RUST:
            command = [str(rust), name]
        else:
            command = [str(TARGET / "venv/bin/python"), str(HERE / "engines.py"), name]
        found.append(Engine(name, command))
    return found


def main() -> int:
    args = arguments()
    if args.rounds < 1 or args.turn_ms <= 0:
        raise SystemExit("bench: --rounds and --turn-ms must be positive")
    network, weights = find_weights(args.network, args.weights)
    cores = find_cores(args.cores)
    if not args.skip_install:
        prepare(network, weights)
    rows = engines(args.engines.split(","))
    logs = TARGET / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cases = [Case(1, (cores[0],), 1), Case(1, (cores[0],), 8)]
    if len(cores) > 1:
        cases.append(Case(2, tuple(cores[:2]), 1))
    common = ["--models", str(TARGET / "models"), "--weights", str(weights), "--network", network]
    results = measure(rows, cases, Settings(args.rounds, args.turn_ms, logs, common))
    explain(results)
    table = Table(results, REFERENCE, cases, {"network": network, **describe(cores)})
    print(table.text(), end="")
    if args.json:
        args.json.write_text(json.dumps(table.json(), indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table.markdown())
    return 0 if any(result.rounds for result in results) else 1


def explain(results: list) -> None:
    """Says why a model was not exported, where that is why an engine is missing."""
    file = TARGET / "models/missing.json"
    reasons: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    for result in results:
        for key, reason in result.missing.items():
            for model, cause in reasons.items():
                if model in reason:
                    result.missing[key] = f"{model} was not exported: {cause}"


if __name__ == "__main__":
    sys.exit(main())
