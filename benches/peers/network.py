"""The networks as the peers need them: layers in order, and their folded weights.

It says the same as `src/model/network.rs`, from which the names come. The engines' agreement on photos, which
`bench.py` checks, would not survive a difference.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
SIDE = 224
CLASSES = 1000
HEADER_BYTES_MAX = 1 << 20
DTYPES = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Layer:
    """One convolution. `padding` is (before, after), the same for rows and columns."""

    name: str
    depthwise: bool
    kernel: int
    stride: int
    input: int
    output: int
    relu6: bool
    padding: tuple[int, int]
    opens_block: bool = False
    adds_block_input: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """How 8-bit pixels become the input: (pixel - mean) / deviation, on 0..255."""

    resize: int
    bicubic: bool
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True)
class Network:
    """Stages are (kernel, stride, expansion, channels, repeats), as in `network.rs`."""

    name: str
    stages: tuple[tuple[int, int, int, int, int], ...]
    same_padding: bool
    torchvision_names: bool
    classifier: str
    preprocessing: Preprocessing

    def layers(self) -> list[Layer]:
        """Every convolution in order; the mean over the pixels and the classifier follow."""
        side, channels = SIDE, 32
        stem = "features.0.0" if self.torchvision_names else "_conv_stem"
        layers = [Layer(stem, False, 3, 2, 3, channels, True, self._padding(3, 2, side))]
        side = -(-side // 2)
        block = 0
        for kernel, stage_stride, expansion, output, repeats in self.stages:
            for repeat in range(repeats):
                stride = stage_stride if repeat == 0 else 1
                padding = self._padding(kernel, stride, side)
                layers += self._block(block, kernel, stride, expansion, channels, output, padding)
                side, channels, block = -(-side // stride), output, block + 1
        head = f"features.{block + 1}.0" if self.torchvision_names else "_conv_head"
        return [*layers, Layer(head, False, 1, 1, channels, 1280, True, (0, 0))]

    def _block(
        self,
        index: int,
        kernel: int,
        stride: int,
        expansion: int,
        input: int,
        output: int,
        padding: tuple[int, int],
    ) -> list[Layer]:
        wide = input * expansion
        expand, depthwise, project = self._names(index, expansion != 1)
        layers = []
        if expansion != 1:
            layers.append(Layer(expand, False, 1, 1, input, wide, True, (0, 0), opens_block=True))
        layers.append(Layer(depthwise, True, kernel, stride, wide, wide, True, padding, opens_block=expansion == 1))
        residual = stride == 1 and input == output
        layers.append(Layer(project, False, 1, 1, wide, output, False, (0, 0), adds_block_input=residual))
        return layers

    def _names(self, index: int, expands: bool) -> tuple[str, str, str]:
        if not self.torchvision_names:
            prefix = f"_blocks.{index}"
            return f"{prefix}._expand_conv", f"{prefix}._depthwise_conv", f"{prefix}._project_conv"
        prefix, at = f"features.{index + 1}.conv", int(expands)
        return f"{prefix}.0.0", f"{prefix}.{at}.0", f"{prefix}.{at + 1}"

    def _padding(self, kernel: int, stride: int, side: int) -> tuple[int, int]:
        return same_padding(kernel, stride, side) if self.same_padding else (kernel // 2, kernel // 2)

    def describe(self) -> dict[str, Any]:
        """What a peer in another language needs to build the network."""
        return {
            "name": self.name,
            "classifier": self.classifier,
            "layers": [asdict(x) for x in self.layers()],
        }


def same_padding(kernel: int, stride: int, side: int) -> tuple[int, int]:
    """TensorFlow's SAME: as little as makes ceil(side / stride) outputs, the odd pixel last."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


MOBILENET_V2 = Network(
    name="mobilenet_v2",
    stages=(
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (3, 2, 6, 32, 3),
        (3, 2, 6, 64, 4),
        (3, 1, 6, 96, 3),
        (3, 2, 6, 160, 3),
        (3, 1, 6, 320, 1),
    ),
    same_padding=False,
    torchvision_names=True,
    classifier="classifier.1",
    preprocessing=Preprocessing(
        resize=256, bicubic=False, mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375)
    ),
)

EFFICIENTNET_LITE0 = Network(
    name="efficientnet_lite0",
    stages=(
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    ),
    same_padding=True,
    torchvision_names=False,
    classifier="_fc",
    preprocessing=Preprocessing(resize=256, bicubic=True, mean=(127.0,) * 3, deviation=(128.0,) * 3),
)

NETWORKS = {network.name: network for network in (MOBILENET_V2, EFFICIENTNET_LITE0)}


def read_weights(path: Path, network: Network) -> Weights:
    """Reads a safetensors file of float32 or float16 and checks every shape."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    if length > min(HEADER_BYTES_MAX, len(data) - 8):
        raise ValueError(f"{path} is not a safetensors file")
    weights: Weights = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data[8 + length + begin : 8 + length + end], DTYPES[entry["dtype"]])
        weights[name] = raw.reshape(entry["shape"]).astype(np.float32)
    for layer in network.layers():
        shape = (layer.output, 1 if layer.depthwise else layer.input, layer.kernel, layer.kernel)
        _expect(weights, f"{layer.name}.weight", shape, path)
        _expect(weights, f"{layer.name}.bias", (layer.output,), path)
    _expect(weights, f"{network.classifier}.weight", (CLASSES, 1280), path)
    _expect(weights, f"{network.classifier}.bias", (CLASSES,), path)
    return weights


def _expect(weights: Weights, name: str, shape: tuple[int, ...], path: Path) -> None:
    found = weights[name].shape if name in weights else "nothing"
    if found != shape:
        raise ValueError(f"{path}: {name} should have shape {shape}, found {found}")
