"""Exports our folded weights to every peer's format, so that all engines run the same network.

Writes into the folder given: `network.json` (the layers), `inputs.f32` and `inputs.u8` (photos as the networks'
input and as pixels, NHWC), `f32.onnx`, `int8.onnx`, `openvino_int8.xml`, `f32.tflite`, `int8.tflite`, and
`missing.json`, which tells why a file is not there. The int8 models are quantised after training and calibrated
on photos with each project's own tool.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

import photos
from network import NETWORKS, SIDE, Layer, Network, Weights, read_weights

BATCH_MAX = 8
CALIBRATION_PHOTOS_MAX = 100
OPSET = 17
Images = NDArray[np.float32]


def onnx_f32(network: Network, weights: Weights, path: Path) -> None:
    """The graph straight from the weights: Conv, Clip, Add, mean, Gemm."""
    nodes: list[NodeProto] = []
    x = block_input = "images"
    constants = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    for layer in network.layers():
        if layer.opens_block:
            block_input = x
        for part in ("weight", "bias"):
            constants[f"{layer.name}.{part}"] = weights[f"{layer.name}.{part}"]
        nodes.append(onnx_convolution(layer, x))
        x = layer.name
        if layer.relu6:
            nodes.append(helper.make_node("Clip", [x, "zero", "six"], [f"{layer.name}.relu6"]))
            x = f"{layer.name}.relu6"
        if layer.adds_block_input:
            nodes.append(helper.make_node("Add", [x, block_input], [f"{layer.name}.sum"]))
            x = f"{layer.name}.sum"
    classifier = [f"{network.classifier}.{part}" for part in ("weight", "bias")]
    constants |= {name: weights[name] for name in classifier}
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
    nodes.append(helper.make_node("Gemm", ["features", *classifier], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        network.name,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def onnx_convolution(layer: Layer, x: str) -> NodeProto:
    """The Conv node of a layer."""
    before, after = layer.padding
    return helper.make_node(
        "Conv",
        [x, f"{layer.name}.weight", f"{layer.name}.bias"],
        [layer.name],
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=[before, before, after, after],
        group=layer.input if layer.depthwise else 1,
    )


def onnx_int8(folder: Path, images: Images) -> None:
    """ONNX Runtime's static quantisation: QDQ, a scale per channel, unsigned activations, which its VNNI
    kernels want."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images: Iterator[Images] = iter(_nchw(images))

        def get_next(self) -> dict[str, Images] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image[None]}

    prepared = folder / "prepared.onnx"
    quant_pre_process(folder / "f32.onnx", prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def openvino_int8(folder: Path, images: Images) -> None:
    """OpenVINO's own quantiser, NNCF, with its defaults for speed."""
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / "f32.onnx")
    dataset = nncf.Dataset([image[None] for image in _nchw(images)])
    quantised = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(images))
    openvino.save_model(quantised, folder / "openvino_int8.xml", compress_to_fp16=False)


def tflite_f32(network: Network, weights: Weights, folder: Path) -> None:
    """See `tflite.py`."""
    import tflite

    (folder / "f32.tflite").write_bytes(tflite.write(network, weights))


def tflite_int8(folder: Path, images: Images) -> None:
    """Google's quantiser for LiteRT: 8-bit weights, a scale per channel, 8-bit activations."""
    from ai_edge_quantizer import quantizer, recipe

    quantiser = quantizer.Quantizer(str(folder / "f32.tflite"), recipe.static_wi8_ai8())
    calibration = quantiser.calibrate({"serving_default": [{"images": image[None]} for image in images]})
    output = folder / "int8.tflite"
    output.unlink(missing_ok=True)
    quantiser.quantize(calibration).export_model(str(output))


def _nchw(images: Images) -> Images:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def attempt(name: str, missing: dict[str, str], step: Callable[[], None]) -> None:
    """Runs one export; a failure is written down, so that the table can name it, and the others go on."""
    print(f"export: {name}", file=sys.stderr)
    try:
        step()
    except Exception as error:  # each peer's tool raises what it likes; the reason goes into the table
        traceback.print_exc()
        missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def find_calibration(folders: list[Path]) -> list[Path]:
    """Photos from the first folder that has any."""
    for folder in folders:
        if found := photos.find(folder, CALIBRATION_PHOTOS_MAX):
            return found
    raise SystemExit(f"export: no photos in {', '.join(map(str, folders))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folded weights, safetensors")
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder of at least 8 photos to run on")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="folders, first that has photos")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    network, folder = NETWORKS[arguments.network], arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    weights = read_weights(arguments.weights, network)
    (folder / "network.json").write_text(json.dumps(network.describe()))
    paths = photos.find(arguments.photos, BATCH_MAX)
    if len(paths) < BATCH_MAX:
        raise SystemExit(f"export: {arguments.photos} has {len(paths)} photos, {BATCH_MAX} are needed")
    pixels = photos.pixels(paths, network.preprocessing)
    (folder / "inputs.u8").write_bytes(pixels.tobytes())
    (folder / "inputs.f32").write_bytes(photos.normalise(pixels, network.preprocessing).tobytes())
    calibration = photos.pixels(find_calibration(arguments.calibration), network.preprocessing)
    images = photos.normalise(calibration, network.preprocessing)
    missing: dict[str, str] = {}
    attempt("f32.onnx", missing, lambda: onnx_f32(network, weights, folder / "f32.onnx"))
    attempt("f32.tflite", missing, lambda: tflite_f32(network, weights, folder))
    attempt("int8.onnx", missing, lambda: onnx_int8(folder, images))
    attempt("openvino_int8.xml", missing, lambda: openvino_int8(folder, images))
    attempt("int8.tflite", missing, lambda: tflite_int8(folder, images))
    (folder / "missing.json").write_text(json.dumps(missing))


if __name__ == "__main__":
    main()
