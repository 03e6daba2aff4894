#!/usr/bin/env python3
"""What timm's networks answer on random weights and images, for `tests/it/zoo.rs` to compare with.

Weights and images follow from names by a rule that the Rust test applies as well, so that a fixture needs only
the tensors' names and shapes, a checksum of all their bytes, and the logits.

    python3 -m venv /tmp/timm && /tmp/timm/bin/pip install timm==1.0.31
    /tmp/timm/bin/python tests/zoo/make_fixtures.py resnet18 mobilenetv4-conv-small

`--safetensors DIR` writes the weights files too, as they are published, for trying `elastic classify`.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

CLASSES = 10
IMAGES = 2
MASK = (1 << 64) - 1


def uniform(name: str, count: int) -> np.ndarray:
    """`count` values from -1 up to 1, each a multiple of 2^-23: SplitMix64 from the FNV-1a hash of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def weights(name: str, shape: list[int], gain: float) -> np.ndarray:
    """Values that carry an image's signal through a deep network (He et al. 2015), and no two channels alike."""
    values = uniform(name, int(np.prod(shape))).reshape(shape)
    if len(shape) >= 2 and np.prod(shape[1:]) > 1:
        return values * np.float32(np.sqrt(gain / np.prod(shape[1:])))
    if name.endswith("running_var") or name.endswith("weight"):
        return values * np.float32(0.25) + np.float32(1)
    return values * np.float32(0.25)


def timm_name(network: str) -> str:
    """timm's name of one of elastic's networks."""
    name = network.replace("-", "_")
    return f"tf_{name}" if name.startswith("efficientnet") else name


def fixture(network: str, gain: float, safetensors: Path | None) -> dict:
    """Fills timm's network with the weights and runs it."""
    model = timm.create_model(timm_name(network), num_classes=CLASSES).eval()
    state = model.state_dict()
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    checksum = hashlib.sha256()
    for name in names:
        values = weights(name, list(state[name].shape), gain)
        checksum.update(values.astype("<f4").tobytes())
        state[name] = torch.from_numpy(values)
    model.load_state_dict(state)
    if safetensors:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, safetensors / f"{network}.safetensors")
    size = model.default_cfg["input_size"][-1]
    images = uniform("images", IMAGES * size * size * 3).reshape(IMAGES, size, size, 3)
    # Of different contrast, since the mean over the pixels makes all noise look alike.
    images *= np.arange(1, IMAGES + 1, dtype=np.float32).reshape(IMAGES, 1, 1, 1)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert logits.isfinite().all(), f"{network} overflows"
    return {
        "network": network,
        "made_by": f"timm {timm.__version__} {timm_name(network)}, torch {torch.__version__.split('+')[0]}",
        "classes": CLASSES,
        "images": IMAGES,
        "size": size,
        "gain": gain,
        "weights_sha256": checksum.hexdigest(),
        "logits": [[float(f"{value:.9g}") for value in row] for row in logits.tolist()],
        "tensors": {name: list(state[name].shape) for name in names},
    }


def main() -> None:
    """Writes one file a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="elastic's name, such as resnet18")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the fixtures")
    parser.add_argument(
        "--gain",
        type=float,
        default=6.0,
        help="three times the variance that a layer's weights carry on; 5 for efficientnet-b3 and above, in which "
        "rounding errors grow without bound at 6",
    )
    parser.add_argument("--safetensors", type=Path, help="folder for the weights files, which are large")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for network in arguments.networks:
        file = arguments.out / f"{network}.json"
        made = json.dumps(fixture(network, arguments.gain, arguments.safetensors), separators=(",", ":"))
        file.write_text(made.replace('"tensors":{', '"tensors":{\n').replace("],", "],\n") + "\n")
        print(file, flush=True)


if __name__ == "__main__":
    main()
