"""What both benchmarks need before they measure: weights, cores, the peers' environment, and builds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

from children import cores_allowed
from measure import say

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "benches" / "peers"
TARGET = ROOT / "target" / "peers"
PYTHON = TARGET / "venv/bin/python"
MODELS = TARGET / "models"
INTEGERS = MODELS / "elastic.int8.safetensors"
LOGS = TARGET / "logs"
PHOTOS = (TARGET / "photos", ROOT / "tests/photos")
NETWORKS = ("mobilenet_v2", "efficientnet_lite0")
STEP_S_MAX = 3600


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that both benchmarks have."""
    parser.add_argument("--network", choices=NETWORKS, help="default: mobilenet_v2 if its weights are here")
    parser.add_argument("--weights", type=Path, help="folded weights, safetensors")
    parser.add_argument("--skip-install", action="store_true", help="use the environment and models as they are")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table as Markdown to this file")


def find_weights(network: str | None, weights: Path | None) -> tuple[str, Path]:
    """The network, and where its weights are: as asked for, else MobileNetV2 if it is here."""
    folders = [ROOT / "weights", ROOT.parent / "shared/weights"]
    if "ELASTIC_WEIGHTS_DIR" in os.environ:
        folders.insert(0, Path(os.environ["ELASTIC_WEIGHTS_DIR"]))
    for name in [network] if network else NETWORKS:
        for file in [weights] if weights else [folder / f"{name}.safetensors" for folder in folders]:
            if file.exists():
                return name, file.resolve()
    raise SystemExit("bench: no weights; `make weights` gets them, --weights FILE or ELASTIC_WEIGHTS_DIR names them")


def find_cores(text: str) -> list[int]:
    """Two cores if there are, unless the person names others."""
    allowed = sorted(cores_allowed())
    try:
        cores = [int(core) for core in text.split(",")] if text else allowed[:2]
    except ValueError:
        raise SystemExit(f"bench: --cores takes numbers and commas, got {text!r}") from None
    if not set(cores) <= set(allowed):
        raise SystemExit(f"bench: cores {text} are not among those allowed, {', '.join(map(str, allowed))}")
    return cores


def step(what: str, command: list[str | Path], **environment: str) -> bytes:
    """Runs one preparation to its end; its own messages tell what went wrong."""
    say(what)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            timeout=STEP_S_MAX,
            env=os.environ | environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"bench: {what} failed: {error}") from error
    return done.stdout


def install_and_export(network: str, weights: Path) -> None:
    """The environment, the network in every peer's format, and the photos that the services are sent."""
    step("setting up the environment", [HERE / "setup.sh"])
    command: list[str | Path] = [
        PYTHON, HERE / "export.py", "--weights", weights, "--network", network,
        "--photos", ROOT / "tests/photos", "--calibration", *PHOTOS, "--out", MODELS,
    ]  # fmt: skip
    step("exporting the network", command)
    command = [PYTHON, HERE / "serve_photos.py", "--photos", *PHOTOS, "--out", TARGET / "serve-photos"]
    step("making photos to send", command)


def build_bench(name: str) -> Path:
    """Builds benches/NAME.rs and finds the executable, whose file name cargo chooses."""
    command: list[str | Path] = [_cargo(), "bench", "--locked", "--bench", name, "--no-run"]
    for line in step(f"building benches/{name}.rs", [*command, "--message-format", "json"]).splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == name:
            return Path(message["executable"])
    raise SystemExit(f"bench: cargo built no benchmark named {name}")


def build_elastic() -> Path:
    """Builds the executable, or takes the one that ELASTIC names."""
    if "ELASTIC" in os.environ:
        return Path(os.environ["ELASTIC"]).resolve()
    step("building elastic", [_cargo(), "build", "--release", "--locked"])
    return ROOT / "target/release/elastic"


def quantise(weights: Path) -> None:
    """Makes the int8 weights of this engine, calibrated on the first folder of photos."""
    command: list[str | Path] = [build_elastic(), "weights", "quantize", "--calibrate", PHOTOS[0], weights, INTEGERS]
    step("making int8 weights", command)


def build_rust_peers() -> Path:
    """Builds the Rust engines that we are compared with."""
    command: list[str | Path] = [_cargo(), "build", "--release", "--locked"]
    manifest: list[str | Path] = ["--manifest-path", HERE / "rust/Cargo.toml"]
    step("building the Rust peers", [*command, *manifest], CARGO_TARGET_DIR=str(TARGET / "rust"))
    return TARGET / "rust/release/elastic-peers"


def _cargo() -> str:
    return os.environ.get("CARGO", "cargo")
