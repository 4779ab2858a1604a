"""Image classifiers that vggkeras did not write: what is loaded, how it is fed, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export import image_model
from vggkeras.errors import InputError


def network_of(
    inputs: dict[str, list], outputs: int = 1, kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """An ONNX file that gives each input as it is."""
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    names = [f"answer{i}" for i in range(outputs)]
    nodes = [helper.make_node("Flatten", [given[0].name], [name]) for name in names]
    answers = [helper.make_tensor_value_info(name, kind, None) for name in names]
    graph = helper.make_graph(nodes, "graph", given, answers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.onnx", "text", "is no model that ONNX Runtime can load"),
        ("x.tflite", "text", "is no model that LiteRT can load"),
        ("x.keras", "text", "is not a .keras file"),
        ("x.txt", "text", "expected a .keras, .onnx or .tflite file"),
        ("folder", None, "is a folder without a model"),
        ("missing.onnx", None, "No model at"),
        ("x.onnx", network_of({"a": ["N", 8, 8, 3], "b": ["N", 8, 8, 3]}), "received 2 input(s)"),
        ("x.onnx", network_of({"a": ["N", 8, 8, 3]}, 2), "and 2 output(s) (answer0, answer1)"),
        ("x.onnx", network_of({"a": ["N", 8]}), "expected an image input"),
        ("x.onnx", network_of({"a": ["N", 8, 8, 4]}), "of 1 or 3 channels"),
        ("x.onnx", network_of({"a": ["N", 8, 8, 3]}, kind=TensorProto.BOOL), "bytes or floats"),
    ],
)  # fmt: skip
def test_what_is_no_image_classifier_is_refused(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        onnx.save(content, path)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(InputError) as error:
        image_model.load(path)
    assert message in str(error.value)


def test_a_fixed_batch_and_channels_first_are_fed_as_the_file_asks(tmp_path):
    """Batches of four, the last one filled up: every image has its own answer."""
    onnx.save(network_of({"x": [4, 3, 6, 5]}), tmp_path / "x.onnx")
    model = image_model.load(tmp_path / "x.onnx")
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), np.uint8)
    with pytest.raises(InputError, match="expected one output"):
        image_model.load(write_rank4(tmp_path / "y.onnx"))(images)
    np.testing.assert_array_equal(model(images), images.transpose(0, 3, 1, 2).reshape(10, -1))
    assert model.channels_first
    assert (model.size, model.channels) == ((6, 5), 3)


def write_rank4(path: Path) -> Path:
    """A file whose answer is an image."""
    model = network_of({"x": ["N", 6, 5, 3]})
    model.graph.node[0].op_type = "Identity"
    onnx.save(model, path)
    return path
