"""A network as a PyTorch module, for PyTorch's own rows and its HTTP service."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from network import CLASSES, Layer, Network, Weights


class Classifier(nn.Module):
    """Images `[N, 3, 224, 224]`, normalised, to logits `[N, 1000]`."""

    def __init__(self, network: Network, weights: Weights) -> None:
        super().__init__()
        self.layers = network.layers()
        self.convolutions = nn.ModuleList(_convolution(layer, weights) for layer in self.layers)
        self.classifier = nn.Linear(1280, CLASSES)
        _fill(self.classifier, network.classifier, weights)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        block_input = x
        for layer, convolution in zip(self.layers, self.convolutions, strict=True):
            if layer.opens_block:
                block_input = x
            before, after = layer.padding
            if before != after:
                x = functional.pad(x, (before, after, before, after))
            x = convolution(x)
            if layer.relu6:
                x = functional.hardtanh(x, 0.0, 6.0)
            if layer.adds_block_input:
                x = x + block_input
        return self.classifier(x.mean((2, 3)))


def _convolution(layer: Layer, weights: Weights) -> nn.Conv2d:
    before, after = layer.padding
    convolution = nn.Conv2d(
        layer.input,
        layer.output,
        layer.kernel,
        stride=layer.stride,
        padding=before if before == after else 0,
        groups=layer.input if layer.depthwise else 1,
    )
    _fill(convolution, layer.name, weights)
    return convolution


def _fill(module: nn.Conv2d | nn.Linear, name: str, weights: Weights) -> None:
    module.weight = nn.Parameter(torch.from_numpy(weights[f"{name}.weight"]), requires_grad=False)
    module.bias = nn.Parameter(torch.from_numpy(weights[f"{name}.bias"]), requires_grad=False)
