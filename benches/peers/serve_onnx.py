"""FastAPI and ONNX Runtime on one thread, float32 or statically quantised int8."""

from __future__ import annotations

import onnxruntime
from numpy import float32
from numpy.typing import NDArray

import service
from network import NETWORKS


def main() -> None:
    arguments = service.arguments(__doc__ or "", ["f32", "int8"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_free_dimension_override_by_name("N", 1)
    path = str(arguments.models / f"{arguments.engine}.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def infer(image: NDArray[float32]) -> NDArray[float32]:
        return session.run(None, {"images": image})[0][0]

    service.serve(NETWORKS[arguments.network], infer)


if __name__ == "__main__":
    main()
