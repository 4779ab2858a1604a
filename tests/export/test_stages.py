"""--explain: the first stage at which a file differs from its golden answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import EXPORTED, edit_onnx, edit_tflite, swap_layers
from onnx import helper

from export import stages as stages_module
from export import verify

pytestmark = pytest.mark.integration


def first_difference(path: Path) -> stages_module.Stage | None:
    return next((stage for stage in stages_module.stages(path) if not stage.passed), None)


@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "saved_model"])
def test_an_untouched_file_differs_nowhere(name, exported, command):
    code, out, _ = command(verify.cli, "--explain", exported / name)
    assert code == 0
    assert out.splitlines()[0] == f"{exported / name}: passed"
    assert out.splitlines()[-1].strip() == "no difference"
    lines = [line for line in out.splitlines()[1:-1] if "proven on" not in line]
    stages = [line.split()[1] for line in lines]
    assert stages[:4] == ["decode", "resize", "normalize", "block1_conv1"]
    assert stages[-4:] == ["fc1", "fc2", "predictions", "soft-max"]


def test_a_saved_model_is_not_looked_into(exported, command):
    code, out, err = command(verify.cli, "--explain", exported / "saved_model")
    assert code == 2
    assert "saved_model: passed" in out
    assert "--explain looks inside .onnx and .tflite files" in err


def swap(weights: dict[str, np.ndarray], one: str, other: str) -> None:
    weights[one], weights[other] = weights[other], weights[one]


def nodes(graph: onnx.GraphProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == kind]


def swapped_convolutions(graph, weights):
    for part in ("kernel", "bias"):
        swap(weights, f"block5_conv1.{part}", f"block5_conv2.{part}")


def one_bias_zeroed(graph, weights):
    bias = weights["block3_conv1.bias"]
    bias[bias.argmax()] = 0


def mean_edited(graph, weights):
    weights["mean_rgb.mean"] += 0.5


def height_and_width_swapped(graph, weights):
    (transpose,) = nodes(graph, "Transpose")
    transpose.attribute[0].ints[:] = [0, 3, 2, 1]


def channels_reversed(graph, weights):
    weights["block1_conv1.kernel"] = weights["block1_conv1.kernel"][:, ::-1]


def kernel_flipped(graph, weights):
    weights["block2_conv1.kernel"] = weights["block2_conv1.kernel"][:, :, ::-1, ::-1]


def relu_left_out(graph, weights):
    (relu,) = (node for node in nodes(graph, "Relu") if node.name.startswith("block4_conv1"))
    relu.op_type = "Identity"


def average_instead_of_maximum(graph, weights):
    nodes(graph, "MaxPool")[2].op_type = "AveragePool"


def flattened_in_another_order(graph, weights):
    units = weights["fc1.kernel"].shape[1]
    kernel = weights["fc1.kernel"].reshape(-1, 2, 2, units)
    weights["fc1.kernel"] = kernel.transpose(1, 2, 0, 3).reshape(-1, units)


def classes_swapped(graph, weights):
    weights["predictions.kernel"] = weights["predictions.kernel"][:, ::-1]
    weights["predictions.bias"] = weights["predictions.bias"][::-1]


def softmax_over_the_batch(graph, weights):
    (softmax,) = nodes(graph, "Softmax")
    del softmax.attribute[:]
    softmax.attribute.append(helper.make_attribute("axis", 0))


def sigmoid_instead(graph, weights):
    (softmax,) = nodes(graph, "Softmax")
    del softmax.attribute[:]
    softmax.op_type = "Sigmoid"


GRAPH_FAULTS = {
    swapped_convolutions: "block5_conv1",
    one_bias_zeroed: "block3_conv1",
    mean_edited: "normalize (mean_rgb)",
    height_and_width_swapped: "block1_conv1",
    channels_reversed: "block1_conv1",
    kernel_flipped: "block2_conv1",
    relu_left_out: "block4_conv1",
    average_instead_of_maximum: "block4_conv1",  # the layer behind the pooling
    flattened_in_another_order: "fc1",
    classes_swapped: "predictions (scores)",
    softmax_over_the_batch: "soft-max",
    sigmoid_instead: "soft-max",
}


@pytest.mark.parametrize("fault", GRAPH_FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_graph_is_named_by_its_layer(fault, alone, command):
    path = alone("model.onnx")
    edit_onnx(path, fault)
    stage = first_difference(path)
    assert stage is not None
    assert stage.name == GRAPH_FAULTS[fault]
    if stage.name == "soft-max":
        assert stage.note == "not the soft-max of its own scores"
    code, out, _ = command(verify.cli, "--explain", path)
    assert code == 1
    assert f"first difference: {stage.name}" in out


def test_a_layer_that_is_gone_is_named(alone):
    path = alone("model.onnx")

    def renamed(graph, weights):
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = ["other" if name == "block4_conv2" else name for name in names]

    edit_onnx(path, renamed)
    stage = first_difference(path)
    assert (stage.name, stage.note) == ("block4_conv2", "no such tensor in the file")


@pytest.mark.parametrize(
    "name", [name for name in EXPORTED if name not in ("saved_model", "model.onnx")]
)
def test_swapped_layers_are_named_in_every_precision(name, alone):
    path = alone(name)
    swap_layers(path, "block5_conv1", "block5_conv2")
    assert first_difference(path).name == "block5_conv1"


def test_faults_of_a_tflite_file_are_named_by_their_layer(alone):
    path = alone("model.tflite")
    whole = path.read_bytes()

    def zero(bias):
        bias[bias.argmax()] = 0

    for tensor, change, stage in (
        ("block3_conv1.bias", zero, "block3_conv1"),
        ("mean_rgb.mean", lambda mean: mean.__iadd__(0.5), "normalize (mean_rgb)"),
        ("predictions.bias", lambda bias: bias.__iadd__([0, 1]), "predictions (scores)"),
    ):
        path.write_bytes(whole)
        edit_tflite(path, tensor, change)
        assert first_difference(path).name == stage
