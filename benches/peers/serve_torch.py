"""FastAPI and PyTorch on one thread: eager, as most services are, or the optimised TorchScript graph."""

from __future__ import annotations

import torch
from numpy import float32
from numpy.typing import NDArray

import service
from network import NETWORKS, SIDE, read_weights
from torch_network import Classifier


def main() -> None:
    arguments = service.arguments(__doc__ or "", ["eager", "jit"])
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    network = NETWORKS[arguments.network]
    model: torch.nn.Module = Classifier(network, read_weights(arguments.weights, network))
    model = model.to(memory_format=torch.channels_last)
    if arguments.engine == "jit":
        example = torch.zeros(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            model = torch.jit.optimize_for_inference(torch.jit.trace(model, example))

    def infer(image: NDArray[float32]) -> NDArray[float32]:
        with torch.inference_mode():
            x = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
            return model(x)[0].numpy()

    service.serve(network, infer)


if __name__ == "__main__":
    main()
