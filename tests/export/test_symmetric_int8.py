"""The int8 file for TensorRT: signed, every zero point 0, biases float32, and proven like any."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

import export
import vggkeras
from export import quantize, verify
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols

pytestmark = pytest.mark.integration

NAME = "model.int8.tensorrt.onnx"


@pytest.fixture(scope="module")
def folder(run, workplace) -> Path:
    """A folder with the digits network's model.int8.onnx and model.int8.tensorrt.onnx."""
    out = workplace / "symmetric"
    for target in (None, "tensorrt"):
        entries = export.export_model(run.path, "onnx", "int8", out=out, target=target)
        assert all(entry["passed"] for entry in entries.values()), entries
    return out


def quantized(path: Path) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return arrays, [node for node in graph.node if node.op_type.endswith("eLinear")]


def test_everything_is_signed_and_every_zero_point_is_0(folder):
    arrays, nodes = quantized(folder / NAME)
    kinds = collections.Counter(node.op_type for node in nodes)
    # Every activation there and back, and 11 kernels back.
    assert kinds["DequantizeLinear"] == kinds["QuantizeLinear"] + 11 > 20
    for node in nodes:
        scale, zero = (arrays[name] for name in node.input[1:])
        assert zero.dtype == np.int8, node.name
        assert not zero.any(), node.name
        of_kernel = node.output[0].endswith(".kernel")
        assert (scale.ndim == 1) == of_kernel, node.name  # an activation has one scale
        assert (scale > 0).all()
    # A kernel has a scale for each filter: Conv's are its first axis, Gemm's its second.
    kernels = [node for node in nodes if node.output[0].endswith(".kernel")]
    for node in kernels:
        integers, (axis,) = arrays[node.input[0]], [a.i for a in node.attribute]
        assert integers.dtype == np.int8
        assert axis == (0 if integers.ndim == 4 else 1)
        assert len(arrays[node.input[1]]) == integers.shape[axis]
        assert np.abs(integers).max() == 127  # no pair of weights is lowered, -128 is not used
    biases = [array for name, array in arrays.items() if name.endswith(".bias")]
    assert len(biases) == 11
    assert {bias.dtype for bias in biases} == {np.dtype(np.float32)}


def test_the_bytes_of_an_image_are_quantized_with_its_mean_subtracted(folder):
    """The first QuantizeLinear sees -mean to 255 - mean: symmetric, it must reach the larger."""
    arrays, nodes = quantized(folder / NAME)
    first = next(node for node in nodes if node.op_type == "QuantizeLinear")
    mean = vggkeras.load(folder / NAME).card.mean_rgb
    reach = max(max(mean), 255 - min(mean))
    assert 127 * arrays[first.input[1]] == pytest.approx(reach, rel=1e-6)
    graph = onnx.load(folder / NAME).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_it_is_as_accurate_as_the_other_int8_file(folder, run):
    """Activations have 7 bits and a sign here, and 8 there: each may lose half a point of Keras."""
    split = vggkeras.load_data("digits").split("validation")
    keras = vggkeras.load(run.path)
    crops, labels = protocols.central_crops(keras, split)
    expected = keras(crops)
    right = int((expected.argmax(axis=1) == labels).sum())
    for name in ("model.int8.onnx", NAME):
        answers = vggkeras.load(folder / name)(crops)
        assert (answers.argmax(axis=1) == labels).sum() >= right - 0.005 * len(labels), name
        assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.97, name
        assert np.abs(answers - expected).max() > 1e-6, name  # float32 under another name


def test_name_certificate_and_card_say_what_it_is_for(folder):
    entries = json.loads((folder / "certificate.json").read_text())
    assert set(entries) == {"model.int8.onnx", NAME}
    assert (entries[NAME]["precision"], entries[NAME]["target"]) == ("int8", "tensorrt")
    assert (entries[NAME]["least_agreement"], entries[NAME]["provider"]) == (0.97, "cpu")
    assert "target" not in entries["model.int8.onnx"]
    assert vggkeras.load(folder / NAME).card.target == "tensorrt"
    assert vggkeras.load(folder / "model.int8.onnx").card.target == ""
    assert verify.verify(folder / NAME) == []
    with pytest.raises(InputError, match=r"--dense --format onnx .* int8 --target tensorrt"):
        vggkeras.load(folder / NAME).dense_form()


def test_tensorrt_is_given_the_graph_as_it_was_written(folder, tmp_path):
    """ONNX Runtime's basic optimizations would quantize the biases, to int32."""

    def dequantized(level: ort.GraphOptimizationLevel) -> collections.Counter[int]:
        settings = ort.SessionOptions()
        settings.graph_optimization_level = level
        settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(str(folder / NAME), settings, providers=["CPUExecutionProvider"])
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "optimized.onnx")).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        return collections.Counter(
            kinds[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear"
        )

    assert TensorProto.INT32 in dequantized(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    as_written = dequantized(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    _, nodes = quantized(folder / NAME)
    assert as_written == {TensorProto.INT8: sum(n.op_type[0] == "D" for n in nodes)}


def test_symmetric_ranges_hold_both_signs():
    for low, high in ((-3, 5), (0, 7.5), (-4, -1), (0, 0)):
        ends = quantize.Quantization.of_range(low, high, symmetric=True)
        assert (ends.zero_point, ends.round(0.0)) == (0, 0)
        values = np.linspace(min(low, 0), max(high, 0), 1000, dtype=np.float32)
        assert np.abs(ends.round(values) - values).max() <= ends.scale * 0.501
        assert ends.round(1e9) == pytest.approx(127 * ends.scale)


@pytest.mark.parametrize(
    ("format", "precision", "target", "message"),
    [
        ("onnx", "float32", "tensorrt", "--target is of int8 in ONNX"),
        ("tflite", "int8", "tensorrt", "received --format tflite --precision int8"),
        ("onnx", "int8", "tpu", "Unknown target 'tpu'"),
        ("onnx", "int8", "npu", "Unknown target 'npu'"),  # which --io asks for
    ],
)
def test_other_targets_are_refused(run, format, precision, target, message):
    with pytest.raises(InputError, match=message):
        export.export_model(run.path, format, precision, target=target)
