"""The Python engines, each as a child process that speaks the line protocol of README.md.

python engines.py onnxruntime-f32 --threads 1 --models target/peers/models
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network import SIDE

BATCH_MAX = 8
RUNS_MAX = 10_000
Images = NDArray[np.float32]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What a child is told."""

    threads: int
    models: Path
    weights: Path
    network: str


@dataclass(frozen=True)
class Prepared:
    """One batch size, ready: `run` is what is timed, `logits` reads the answer of the latest run."""

    run: Callable[[], object]
    logits: Callable[[], Logits]


@dataclass(frozen=True)
class Engine:
    """An engine with its model loaded. `prepare` takes images `[N, 224, 224, 3]`."""

    version: str
    what: str
    prepare: Callable[[Images], Prepared]


def nchw(images: Images) -> Images:
    """Channels first, contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def remembering(infer: Callable[[], Logits]) -> Prepared:
    """For engines whose answer is the return value."""
    latest: list[Logits] = []

    def run() -> None:
        latest[:] = [infer()]

    return Prepared(run, lambda: latest[0])


def onnxruntime_engine(settings: Settings, file: str) -> Engine:
    """ONNX Runtime on the CPU, every graph optimisation on, the batch a constant of the graph."""
    import onnxruntime

    def prepare(images: Images) -> Prepared:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_free_dimension_override_by_name("N", len(images))
        path = str(settings.models / file)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {"images": nchw(images)}
        return remembering(lambda: session.run(None, inputs)[0])

    return Engine(onnxruntime.__version__, f"{file}, CPU provider", prepare)


def openvino_engine(settings: Settings, file: str, precision: str) -> Engine:
    """OpenVINO's CPU plugin, tuned for latency; the batch is a constant of the graph."""
    import openvino
    from openvino import properties

    core = openvino.Core()

    def prepare(images: Images) -> Prepared:
        model = core.read_model(settings.models / file)
        model.reshape([len(images), 3, SIDE, SIDE])
        compiled = core.compile_model(
            model,
            "CPU",
            {
                properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
                properties.hint.inference_precision: getattr(openvino.Type, precision),
                properties.inference_num_threads: settings.threads,
                properties.num_streams: 1,
            },
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(nchw(images)))
        return Prepared(request.infer, lambda: request.get_output_tensor().data.copy())

    version = openvino.__version__.split("-")[0]
    return Engine(version, f"{file}, CPU plugin, {precision} where not quantised", prepare)


def litert_engine(settings: Settings, file: str) -> Engine:
    """LiteRT with its XNNPACK delegate."""
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    def prepare(images: Images) -> Prepared:
        interpreter = Interpreter(str(settings.models / file), num_threads=settings.threads)
        image, logits = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.resize_tensor_input(image["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], quantise(images, image))
        return Prepared(interpreter.invoke, lambda: dequantise(interpreter.get_tensor(logits["index"]), logits))

    return Engine(ai_edge_litert.__version__, f"{file}, XNNPACK", prepare)


def quantise(images: Images, tensor: dict[str, Any]) -> NDArray[np.generic]:
    """The input in the type that a LiteRT model takes: float32, or int8 with one scale."""
    if tensor["dtype"] == np.float32:
        return images
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(images / scale) + zero_point, limits.min, limits.max).astype(tensor["dtype"])


def dequantise(logits: NDArray[np.generic], tensor: dict[str, Any]) -> Logits:
    """The other way round."""
    if tensor["dtype"] == np.float32:
        return logits.astype(np.float32)
    scale, zero_point = tensor["quantization"]
    return (logits.astype(np.float32) - zero_point) * scale


def torch_engine(settings: Settings, mode: str) -> Engine:
    """PyTorch: eager, a frozen TorchScript graph (`jit`), or `torch.compile`. Channels last, its faster layout."""
    # Compiled in this process, and kept, so that a second run starts sooner.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.models.parent / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import torch

    from network import NETWORKS, read_weights
    from torch_network import Classifier

    torch.set_num_threads(settings.threads)
    network = NETWORKS[settings.network]
    model = Classifier(network, read_weights(settings.weights, network))
    model = model.to(memory_format=torch.channels_last)

    def prepare(images: Images) -> Prepared:
        x = torch.from_numpy(nchw(images)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            compiled: Callable[[torch.Tensor], torch.Tensor]
            if mode == "jit":
                compiled = torch.jit.optimize_for_inference(torch.jit.trace(model, x))
            elif mode == "compile":
                compiled = torch.compile(model, dynamic=False)
            else:
                compiled = model

        def infer() -> Logits:
            with torch.inference_mode():
                return compiled(x).numpy()

        return remembering(infer)

    return Engine(torch.__version__, f"{mode}, channels last", prepare)


ENGINES: dict[str, Callable[[Settings], Engine]] = {
    "onnxruntime-f32": lambda s: onnxruntime_engine(s, "f32.onnx"),
    "onnxruntime-int8": lambda s: onnxruntime_engine(s, "int8.onnx"),
    "openvino-f32": lambda s: openvino_engine(s, "f32.onnx", "f32"),
    "openvino-bf16": lambda s: openvino_engine(s, "f32.onnx", "bf16"),
    "openvino-int8": lambda s: openvino_engine(s, "openvino_int8.xml", "f32"),
    "litert-f32": lambda s: litert_engine(s, "f32.tflite"),
    "litert-int8": lambda s: litert_engine(s, "int8.tflite"),
    "torch-eager": lambda s: torch_engine(s, "eager"),
    "torch-jit": lambda s: torch_engine(s, "jit"),
    "torch-compile": lambda s: torch_engine(s, "compile"),
}


def serve(name: str, engine: Engine, inputs: Images) -> None:
    """Says hello, then answers command after command until standard input closes."""
    answer({"name": name, "version": engine.version, "what": engine.what})
    batches: dict[int, Prepared] = {}
    for line in sys.stdin:
        command = json.loads(line)
        batch, runs = int(command["batch"]), int(command["runs"])
        if not (1 <= batch <= BATCH_MAX and 1 <= runs <= RUNS_MAX):
            raise ValueError(f"batch or runs out of range: {line}")
        if batch not in batches:
            batches[batch] = engine.prepare(inputs[:batch])
        prepared = batches[batch]
        durations_ns = []
        for _ in range(runs):
            started = time.perf_counter_ns()
            prepared.run()
            durations_ns.append(time.perf_counter_ns() - started)
        reply: dict[str, object] = {"durations_ns": durations_ns}
        if command.get("logits"):
            reply["logits"] = np.asarray(prepared.logits(), np.float32).ravel().tolist()
        answer(reply)


def answer(reply: dict[str, object]) -> None:
    """One line on the real standard output."""
    ANSWERS.write(json.dumps(reply) + "\n")
    ANSWERS.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder that export.py wrote")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", required=True)
    arguments = parser.parse_args()
    settings = Settings(arguments.threads, arguments.models, arguments.weights, arguments.network)
    inputs = np.fromfile(arguments.models / "inputs.f32", np.float32).reshape(-1, SIDE, SIDE, 3)
    try:
        serve(arguments.engine, ENGINES[arguments.engine](settings), inputs)
    except Exception as error:
        # The reason goes into the table; the traceback to standard error.
        answer({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    # Libraries print to standard output when they please; answers must not mix with that.
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
