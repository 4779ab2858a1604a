"""Convert a .onnx file that vggkeras wrote to MNN's format: the process that mnn.py starts.

MNN's converter cannot read quantized graphs as ONNX has them, with QuantizeLinear and
DequantizeLinear. It takes a graph in float32, and the scales and zero points in a file beside it.
From these it computes the same integers as are in the .onnx file.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.runtimes.mnn import runner

LOWEST = "lowest"  # float32's, as a tensor


def main() -> None:
    """Convert a file, and see that the result answers; any failure ends the process."""
    source, target = map(Path, sys.argv[1:3])
    precision, output, outputs, *shape = sys.argv[3:]
    # The converter writes more than one file: into a folder that goes with `target`'s claim.
    folder = target.with_suffix(".folder")
    folder.mkdir()
    arguments = ["--MNNModel", str(folder / "model.mnn")]
    if precision == "int8":
        source = _dequantized(source, folder)
        arguments += ["--compressionParamsFile", str(folder / "scales.json")]
    import _tools  # of MNN. Its own command line would tell its makers about the model.

    command = ["mnnconvert", "-f", "ONNX", "--bizCode", "vggkeras", "--modelFile", str(source)]
    if not _tools.mnnconvert([*command, *arguments]):
        sys.exit("the converter refuses it")
    images = np.zeros((1, *map(int, shape)), np.uint8)
    answers = runner(folder / "model.mnn", output, 1)(images)
    # A map of boxes has one place, for an image of this size.
    if (len(answers), answers.size) != (1, int(outputs)) or not np.isfinite(answers).all():
        sys.exit(f"it answers {list(answers.shape)} to one image, expected [1, {outputs}]")
    (folder / "model.mnn").replace(target)
    shutil.rmtree(folder)


def _dequantized(path: Path, folder: Path) -> Path:
    """Write a quantized graph in float32, and scales.json beside it; return the graph's path."""
    import onnx

    model = onnx.load(path)
    layers = dequantize(model)
    onnx.save(model, folder / "model.onnx")
    steps = {"version": "0", "algo": [{"type": "QUANTIZE", "quantParams": {"layer": layers}}]}
    (folder / "scales.json").write_text(json.dumps(steps), encoding="utf-8")
    return folder / "model.onnx"


def dequantize(model: Any) -> list[dict[str, Any]]:
    """Put a quantized onnx.ModelProto into float32, in place; return what was quantized, for MNN.

    A convolution or matrix product is computed in int8 if its input, weights and output are
    quantized, as in ONNX Runtime. Weights become the float32 that their integers stand for.

    Returns:
        One LayerQuantizeParams of MNN's MNN_compression.proto a layer, as JSON.
    """
    from onnx import numpy_helper

    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights: dict[str, np.ndarray] = {}  # scale of each filter, by the dequantized tensor
    ranges: dict[str, dict[str, Any]] = {}  # of activations, by tensor
    same: dict[str, str] = {}  # tensor -> the one that it is without quantization
    nodes = []
    for node in graph.node:
        names = [same.get(name, name) for name in node.input]
        if node.op_type == "DequantizeLinear" and names[0] in tensors:
            integers, scale = tensors[names[0]], tensors[names[1]]
            axis = next((value.i for value in node.attribute if value.name == "axis"), 1)
            along = [-1 if i == axis else 1 for i in range(integers.ndim)]
            tensors[node.output[0]] = np.float32(integers) * (
                scale.reshape(along) if scale.ndim else scale
            )
            weights[node.output[0]] = scale.ravel()
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if node.op_type == "QuantizeLinear":
                ranges[names[0]] = _range(tensors[names[1]], tensors[names[2]])
            same[node.output[0]] = names[0]
        else:
            node.input[:] = names
            nodes.append(node)
    layers = list(_layers(nodes, weights, ranges))
    tensors[LOWEST] = np.array(np.finfo(np.float32).min)
    nodes = [new for node in _as_convolutions(nodes, tensors) for new in _apart(node)]
    used = {name for node in nodes for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(tensor), name)
        for name, tensor in tensors.items()
        if name in used
    )
    return layers


def _range(scale: np.ndarray, zero: np.ndarray) -> dict[str, Any]:
    """Return an activation's scale and zero point; MNN's integers are int8, ours mostly uint8."""
    offset = 128 if zero.dtype == np.uint8 else 0
    limits = {"clampMin": -128, "clampMax": 127}
    return {"bits": 8, "scales": [float(scale)], "zeroPoint": int(zero) - offset, **limits}


def _layers(
    nodes: Sequence[Any], weights: dict[str, np.ndarray], ranges: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what MNN is to compute in int8; it knows a layer by the name of its last output."""
    users = _users(nodes)
    for node in nodes:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in weights:
            continue
        output = node.output[0]
        if [user.op_type for user in users.get(output, ())] == ["Relu"]:
            output = users[output][0].output[0]
        if node.input[0] in ranges and output in ranges:
            scales = weights[node.input[1]].astype(float).tolist()
            filters = {"bits": 8, "scales": scales, "clampMin": -127, "clampMax": 127}
            yield {
                "input": [{"name": node.input[0], **ranges[node.input[0]]}],
                "weight": [{"name": node.input[1], **filters}],
                "output": [{"name": output, **ranges[output]}],
            }


def _as_convolutions(nodes: Sequence[Any], tensors: dict[str, np.ndarray]) -> Iterator[Any]:
    """Yield the nodes, with 1 x 1 convolutions for matrix products: MNN quantizes nothing else."""
    from onnx import helper

    users, images = _users(nodes), set()  # images: the tensors that are [N, C, 1, 1] now
    tensors |= {"as.images": np.array([0, -1, 1, 1]), "as.rows": np.array([0, -1])}
    for node in nodes:
        if node.op_type != "Gemm":
            if node.op_type == "Relu" and node.input[0] in images:
                images.add(node.output[0])
            yield node
            continue
        given, matrix, bias = node.input
        tensors[matrix] = tensors[matrix].T[:, :, None, None]
        if given not in images:
            yield helper.make_node("Reshape", [given, "as.images"], [f"{given}.image"])
            given = f"{given}.image"
        if [user.op_type for user in users.get(node.output[0], ())] == ["Relu"]:
            images.add(node.output[0])
            yield helper.make_node("Conv", [given, matrix, bias], node.output, node.name)
        else:
            image = f"{node.output[0]}.image"
            yield helper.make_node("Conv", [given, matrix, bias], [image], node.name)
            yield helper.make_node("Reshape", [image, "as.rows"], node.output)


def _apart(node: Any) -> Iterator[Any]:
    """Yield a node; a MaxPool between operations that change nothing and keep it in float32.

    In int8 MNN stores unsigned bytes on x86, and its MaxPool compares them as signed ones: it takes
    127 to be more than 128.
    """
    from onnx import helper

    if node.op_type != "MaxPool":
        yield node
        return
    (given,), (output,) = node.input, node.output
    yield helper.make_node("Max", [given, LOWEST], [f"{given}.float"])
    node.input[0], node.output[0] = f"{given}.float", f"{output}.float"
    yield node
    yield helper.make_node("Max", [f"{output}.float", LOWEST], [output])


def _users(nodes: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the nodes that take each tensor."""
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


if __name__ == "__main__":
    main()
