"""Writes a network as a LiteRT (TensorFlow Lite) flatbuffer, in float32, with the schema's own classes.

No converter is needed: the network has six kinds of operators. Tensors are NHWC, the batch can be resized.
"""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from network import CLASSES, SIDE, Layer, Network, Weights, same_padding

SCHEMA_VERSION = 3
CODES = schema.BuiltinOperator
OPTIONS = schema.BuiltinOptions


class Writer:
    """Collects tensors, buffers and operators of the one subgraph."""

    def __init__(self) -> None:
        # Buffer 0 is the empty one, which every tensor without constant data names.
        self.buffers = [schema.BufferT()]
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self.codes: list[int] = []

    def tensor(self, name: str, shape: list[int]) -> int:
        """An activation; its first dimension is the batch."""
        tensor = self._add(name, [1, *shape], schema.TensorType.FLOAT32, 0)
        self.tensors[tensor].shapeSignature = [-1, *shape]
        return tensor

    def constant(self, name: str, values: NDArray[np.generic]) -> int:
        """Weights, or an operator's constant argument."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.buffers.append(buffer)
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        return self._add(name, list(values.shape), kind, len(self.buffers) - 1)

    def operator(self, code: int, options_type: int, options: object, inputs: list[int], output: int) -> int:
        """Adds an operator and gives back its output."""
        if code not in self.codes:
            self.codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.index(code)
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        self.operators.append(operator)
        return output

    def _add(self, name: str, shape: list[int], kind: int, buffer: int) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), shape, kind, buffer
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def finish(self, input: int, output: int) -> bytes:
        """The file's bytes, with the signature that the quantiser asks for."""
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = b"main", self.tensors, self.operators
        graph.inputs, graph.outputs = [input], [output]
        model = schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, b"elastic benchmark"
        model.subgraphs, model.buffers = [graph], self.buffers
        model.operatorCodes = [_code(code) for code in self.codes]
        model.signatureDefs = [_signature(input, output)]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _code(builtin: int) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    # FULLY_CONNECTED and PAD of any version take these arguments; 1 is the float32 one.
    code.version = 1
    return code


def _signature(input: int, output: int) -> schema.SignatureDefT:
    def entry(name: bytes, index: int) -> schema.TensorMapT:
        tensor = schema.TensorMapT()
        tensor.name, tensor.tensorIndex = name, index
        return tensor

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = [entry(b"images", input)], [entry(b"logits", output)]
    return signature


def write(network: Network, weights: Weights) -> bytes:
    """The whole network: images `[N, 224, 224, 3]` to logits `[N, 1000]`."""
    writer = Writer()
    images = x = writer.tensor("images", [SIDE, SIDE, 3])
    side, block_input = SIDE, x
    for layer in network.layers():
        if layer.opens_block:
            block_input = x
        x, side = _convolution(writer, layer, weights, x, side)
        if layer.adds_block_input:
            options = schema.AddOptionsT()
            total = writer.tensor(f"{layer.name}.sum", [side, side, layer.output])
            x = writer.operator(CODES.ADD, OPTIONS.AddOptions, options, [block_input, x], total)
    reducer = schema.ReducerOptionsT()
    axes = writer.constant("mean.axes", np.array([1, 2], np.int32))
    x = writer.operator(CODES.MEAN, OPTIONS.ReducerOptions, reducer, [x, axes], writer.tensor("mean", [1280]))
    matrix = writer.constant(f"{network.classifier}.weight", weights[f"{network.classifier}.weight"])
    bias = writer.constant(f"{network.classifier}.bias", weights[f"{network.classifier}.bias"])
    logits = writer.tensor("logits", [CLASSES])
    full = schema.FullyConnectedOptionsT()
    writer.operator(CODES.FULLY_CONNECTED, OPTIONS.FullyConnectedOptions, full, [x, matrix, bias], logits)
    return writer.finish(images, logits)


def _convolution(writer: Writer, layer: Layer, weights: Weights, x: int, side: int) -> tuple[int, int]:
    before, after = layer.padding
    # Whatever is not what TensorFlow calls SAME needs a PAD of its own.
    same = layer.padding == same_padding(layer.kernel, layer.stride, side)
    if not same:
        pads = np.array([[0, 0], [before, after], [before, after], [0, 0]], np.int32)
        inputs = [x, writer.constant(f"{layer.name}.pads", pads)]
        padded = writer.tensor(f"{layer.name}.padded", [side + before + after] * 2 + [layer.input])
        x = writer.operator(CODES.PAD, OPTIONS.PadOptions, schema.PadOptionsT(), inputs, padded)
    weight = weights[f"{layer.name}.weight"]
    # [output, input, k, k] to [output, k, k, input]; depthwise [channels, 1, k, k] to [1, k, k, channels].
    weight = weight.transpose(1, 2, 3, 0) if layer.depthwise else weight.transpose(0, 2, 3, 1)
    arguments = [
        x,
        writer.constant(f"{layer.name}.weight", weight),
        writer.constant(f"{layer.name}.bias", weights[f"{layer.name}.bias"]),
    ]
    options = schema.DepthwiseConv2DOptionsT() if layer.depthwise else schema.Conv2DOptionsT()
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH = options.strideW = layer.stride
    options.fusedActivationFunction = (
        schema.ActivationFunctionType.RELU6 if layer.relu6 else schema.ActivationFunctionType.NONE
    )
    side = -(-side // layer.stride)
    output = writer.tensor(layer.name, [side, side, layer.output])
    if layer.depthwise:
        options.depthMultiplier = 1
        kind = (CODES.DEPTHWISE_CONV_2D, OPTIONS.DepthwiseConv2DOptions)
    else:
        kind = (CODES.CONV_2D, OPTIONS.Conv2DOptions)
    return writer.operator(*kind, options, arguments, output), side
