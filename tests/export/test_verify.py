"""An exported file alone: whole or damaged, honest or altered, and where its answers first differ."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from helpers import (
    NOTHING_ELSE,
    REPOSITORY,
    edit_member,
    edit_onnx,
    edit_tflite,
    resealed,
    textured,
    tflite_values,
    the_mean_of_the_graph,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

import export
import vggkeras
from export import artifact, containers, preprocessing, verify
from export import golden as golden_module
from export import stages as stages_module
from vggkeras import configs, processor, runtimes
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.runtimes import predictor as predictor_module

FORMATS = ("model.onnx", "model.tflite", "saved_model")
NAMES = [
    *FORMATS,
    "model.float16.onnx",
    "model.float16.tflite",
    "model.int8.onnx",
    "model.int8.tflite",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A network whose biases are not zero, and which is certain of nothing, exported on colourful photographs: all seven files."""
    folder = tmp_path_factory.mktemp("made")
    for split, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                file = folder / "photos" / split / name / f"{i}.jpg"
                Image.fromarray(textured(100 * label + 10 * (split == "val") + i)).save(
                    file, quality=95
                )
    model = vggkeras.build("A", (64, 64, 3), 2, width=0.06, fc_units=12, seed=0)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            small = (
                0.2 if layer.name == "predictions" else 1
            )  # so that no answer is certain, and every layer matters
            layer.set_weights([kernel * small, rng.normal(0, 5 * small, bias.shape)])
    model.save(folder / "net.keras")
    data, out = str(folder / "photos"), folder / "export"
    entries = export.export_model(
        folder / "net.keras", precision="all", data=data, out=out, calibration=8
    )
    # Eight photographs are too few to judge by: one answer more or less is not what is tested here.
    assert {name for name in entries if (out / name).exists()} == set(NAMES)
    return out


@pytest.fixture
def alone(made, tmp_path) -> Callable[[str], Path]:
    """Copies a file into an empty folder."""

    def copy(name: str) -> Path:
        folder = tmp_path / f"alone-{name}"
        folder.mkdir()
        if (made / name).is_dir():
            return Path(shutil.copytree(made / name, folder / name))
        return Path(shutil.copy(made / name, folder))

    return copy


# Needs one file, and little else.


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_enough(name, alone, command):
    path = alone(name)
    assert [p.name for p in path.parent.iterdir()] == [name]
    code, out, _ = command(verify.cli, path)
    assert (code, out.splitlines()[0]) == (0, f"{path}: passed")
    assert ("proven again here, on the same kind" in out) == ("int8" in name)
    contents = artifact.read(path)
    assert contents.changed == []
    assert contents.card.class_names == ("cat", "dog")
    assert 2 <= len(contents.golden.images) <= golden_module.INSIDE[1]


RUNTIMES = {
    "model.onnx": "onnxruntime,flatbuffers,google,packaging",
    "model.int8.tflite": "ai_edge_litert,flatbuffers,ml_dtypes,google,tqdm,typing_extensions,backports",
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_numpy_pillow_and_the_runtime_are_enough(name, alone):
    path = alone(name)

    def ask(*arguments):
        child = [sys.executable, "-c", NOTHING_ELSE, RUNTIMES[name], *arguments]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            child, cwd=path.parent, env=environment, capture_output=True, text=True
        )

    told = ask("--explain", name)
    assert told.returncode == 0, told.stderr
    assert f"{name}: passed" in told.stdout
    assert "no difference" in told.stdout
    told = ask("--original", "photo.jpg", name)
    assert told.returncode == 0, told.stderr
    image = augment.center_crop(np.asarray(Image.open(path.parent / "photo.jpg")), 73, (64, 64))
    np.save(path.parent / "mine.npy", image[..., ::-1])
    told = ask("--inputs", "mine.npy", name)
    assert told.returncode == 1, told.stderr
    assert "first difference: decode (order): channels are BGR: give RGB" in told.stdout
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["mine.npy", "photo.jpg", name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "package"), [("onnx", "onnxruntime"), ("tflite", "ai-edge-litert")]
)
def test_a_fresh_environment_is_enough(kind, package, alone, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    asked = subprocess.run(
        [python, "-m", "pip", "install", "numpy", "pillow", package], capture_output=True, text=True
    )
    if asked.returncode and (
        "No matching distribution" in asked.stderr or "connection" in asked.stderr.lower()
    ):
        pytest.skip("pip reaches no index")
    assert asked.returncode == 0, asked.stderr
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    for name in (f"model.{kind}", f"model.float16.{kind}", f"model.int8.{kind}"):
        path = alone(name)
        child = [python, "-m", "export.verify", "--explain", name]
        told = subprocess.run(
            child, cwd=path.parent, env=environment, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stdout + told.stderr
        assert f"{name}: passed" in told.stdout


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8.tflite"])
def test_int8_proven_on_another_processor_is_proven_again_here(name, alone, monkeypatch):
    path = alone(name)
    made = artifact.read(path).card.processor
    other = processor.Processor("Neoverse N1", "aarch64", ("NEON", "NEON dot product"))
    monkeypatch.setattr(verify, "this_processor", lambda: other)
    assert verify.verify(path) == []
    note = verify.made_where(path)
    assert note.startswith(f"proven on {made}")
    assert note.endswith("proven again here, on Neoverse N1 (aarch64: NEON, NEON dot product)")
    monkeypatch.setattr(verify, "this_processor", lambda: None)
    assert "py-cpuinfo, which would name this processor, is not installed" in verify.made_where(
        path
    )


def test_integers_that_saturate_here_are_found(alone, monkeypatch):
    """As they do on a processor without VNNI, for weights that are not paired."""
    path = alone("model.int8.onnx")
    real = runtimes.load

    def load(*arguments, **options):
        predictor = real(*arguments, **options)

        def saturated(images):
            p = predictor.run(images)
            return p + np.float32(0.02) * np.array([[1, -1]], np.float32)

        return dataclasses.replace(predictor, run=saturated)

    monkeypatch.setattr(runtimes, "load", load)
    (problem,) = verify.verify(path)
    assert "integers: the optimized session differs from the same computation in float" in problem


# What was altered is found, and named.


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def edit_description(path: Path, **values) -> None:
    edit_member(path, "vggkeras.json", lambda text: json.dumps(json.loads(text) | values).encode())


def a_weight(path: Path) -> None:
    """Another bit in one byte of one weight."""
    if path.is_dir():
        (file,) = (path / "variables").glob("*.data*")
        flip(file, file.stat().st_size // 2)
    elif path.suffix == ".onnx":
        tensors = {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}
        flip(path, path.read_bytes().index(tensors["block4_conv1.kernel"]) + 1234)
    else:
        edit_tflite(path, "block4_conv1.kernel", lambda bytes_: bytes_.__ixor__((np.arange(len(bytes_)) == 1234).astype(np.uint8)), np.uint8)  # fmt: skip


def a_golden_answer(path: Path) -> None:
    def other(packed: bytes) -> bytes:
        packed = bytearray(packed)
        packed[len(packed) // 2] = ord("A") if packed[len(packed) // 2] != ord("A") else ord("B")
        return bytes(packed)

    edit_member(path, golden_module.GOLDEN, other)


def swapped_labels(path: Path) -> None:
    edit_description(path, class_names=["dog", "cat"])


ALTERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of the weights": (a_weight, "weights: not what it was"),
    "labels swapped": (swapped_labels, "labels: not what it was"),
    "mean of the description": (
        lambda p: edit_description(p, mean_rgb=[1, 2, 3]),
        "mean RGB: not what it was",
    ),
    "scale of the description": (
        lambda p: edit_description(p, scale=64),
        "description: not what it was",
    ),
    "mean of the graph": (the_mean_of_the_graph, "weights: not what it was"),
    "golden answers": (a_golden_answer, "golden answers: not what it was"),
    "golden answers removed": (
        lambda p: edit_member(p, golden_module.GOLDEN, lambda _: None),
        "its golden answers are missing",
    ),
    "checksums removed": (
        lambda p: edit_member(p, containers.SEAL, lambda _: None),
        "its checksums are missing",
    ),
    "one checksum removed": (
        lambda p: edit_member(
            p, containers.SEAL, lambda t: json.dumps({**json.loads(t), "weights": ""}).encode()
        ),
        "weights: not what it was",
    ),
    "no checksums": (
        lambda p: edit_member(p, containers.SEAL, lambda _: b"{}"),
        "its checksums cannot be read (none of weights",
    ),
    "checksums of another shape": (
        lambda p: edit_member(p, containers.SEAL, lambda _: b"[1, 2]"),
        "its checksums cannot be read",
    ),
    "description emptied": (
        lambda p: edit_member(p, "vggkeras.json", lambda _: b"{}"),
        "its description cannot be read",
    ),
    "description removed": (
        lambda p: edit_member(p, "vggkeras.json", lambda _: None),
        "its description is missing",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_named(name, what, alone, command):
    change, message = ALTERED[what]
    if (name, what) == ("saved_model", "mean of the graph"):
        message = "graph: not what it was"  # it is a constant there
    path = alone(name)
    change(path)
    code, out, err = command(verify.cli, path)
    assert (code, err) == (1, "")
    assert out.startswith(f"{path}: FAILED\n")
    assert message in out
    assert len(out.splitlines()) <= 3  # one part is not ten


def test_the_labels_of_phones_and_of_other_readers_are_sealed_too(alone, command):
    path = alone("model.tflite")
    edit_member(path, "labels.txt", lambda _: b"dog\ncat\n")
    assert "labels: not what it was" in command(verify.cli, path)[1]


def test_a_file_more_or_fewer_in_a_saved_model_is_found(alone):
    path = alone("saved_model")
    (path / "assets.extra" / "labels.txt").write_text("dog\ncat\n")
    assert verify.verify(path) == ["other bytes: not what it was when the file was made (sha256)"]
    (path / "assets.extra" / "labels.txt").unlink()
    assert verify.verify(path) == []
    shutil.rmtree(path / "variables")
    (problem,) = verify.verify(path)
    assert "cut short or damaged" in problem


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.tflite", "model.int8.onnx", "model.float16.tflite"]
)
def test_a_file_that_was_cut_is_said_to_be(name, alone, command):
    path = alone(name)
    whole = path.read_bytes()
    fractions = np.random.default_rng(0).uniform(0.1, 0.999, 20)
    places = sorted(
        {int(fraction * len(whole)) for fraction in fractions}
        | {len(whole) - n for n in (50, 1, 700)}
    )
    for place in places:
        path.write_bytes(whole[:place])
        code, out, err = command(verify.cli, "--explain", path)
        assert (code, err) == (1, ""), (place, len(whole))
        assert "cut short or damaged" in out, (place, len(whole))


def test_a_saved_model_that_was_cut_is_found(alone, command):
    path = alone("saved_model")
    for file in [
        file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size
    ]:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place])
            code, out, err = command(verify.cli, path)
            assert (code, err) == (1, ""), (file, place)
            assert "damaged" in out or "not what it was" in out, (file, place)
        file.write_bytes(whole)
    assert command(verify.cli, path)[0] == 0


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("flips")


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
@settings(max_examples=400, deadline=None)
@given(
    place=st.one_of(st.floats(0, 1, exclude_max=True), st.integers(-1500, 100)),
    bits=st.integers(1, 255),
)
def test_no_flipped_byte_escapes(made, scratch, name, place, bits):
    """Weights, names, lengths, zip headers, the checksums themselves: any byte, and the first and last ones most of all."""
    data = bytearray((made / name).read_bytes())
    data[place if isinstance(place, int) else int(place * len(data))] ^= bits
    (scratch / name).write_bytes(data)
    try:
        problems = verify.verify(scratch / name)
    except InputError:  # so that it does not even look like one of ours: exit code 2
        return
    assert problems


def test_bytes_behind_the_end_are_found(alone):
    path = alone("model.onnx")
    with open(path, "ab") as file:
        file.write(containers.field(6, b"doc"))
    (problem,) = verify.verify(path)
    assert problem.startswith(("graph", "other bytes"))


@pytest.mark.parametrize("name", FORMATS)
def test_altered_weights_with_new_checksums_are_caught_by_their_answers(name, alone, made, command):
    path = alone(name)
    resealed(path, the_mean_of_the_graph)
    code, out, _ = command(verify.cli, path)
    assert code == 1
    assert "values: largest error" in out
    shutil.copy(made / "certificate.json", path.parent)
    assert "sha256: certified" in command(verify.cli, path)[1]


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8.tflite"])
def test_int8_is_held_against_its_own_answers(name, alone, command):
    path = alone(name)
    resealed(path, lambda p: swap_layers(p, "block5_conv1", "block5_conv2"))
    code, out, _ = command(verify.cli, path)
    assert code == 1
    assert "values: largest error" in out


def test_a_description_with_new_checksums_that_does_not_fit_the_graph_is_caught(alone, command):
    path = alone("model.onnx")
    resealed(path, lambda p: edit_description(p, output={"name": "logits"}))
    code, out, _ = command(verify.cli, path)
    assert code == 1
    assert "output name: expected 'logits', received 'probabilities'" in out


def test_several_files_are_each_said(alone, made, command):
    path = alone("model.onnx")
    a_weight(path)
    code, out, _ = command(verify.cli, made / "model.tflite", path)
    assert code == 1
    assert "model.tflite: passed" in out
    assert "model.onnx: FAILED" in out


# Nothing to verify: exit code 2.


def another_onnx(path: Path) -> None:
    shape = ["batch", 64, 64, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "another",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph), path)


def another_tflite(path: Path) -> None:
    model = schema.ModelT()
    model.version, model.description = 3, b"MLIR Converted."
    model.subgraphs, model.operatorCodes, model.buffers = (
        [schema.SubGraphT()],
        [],
        [schema.BufferT()],
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


OTHERS = {
    "another.onnx": (another_onnx, "is not of vggkeras"),
    "another.tflite": (another_tflite, "is not of vggkeras"),
    "text.onnx": (lambda p: p.write_text("The cat sat on the mat.\n" * 50), "is not of vggkeras"),
    "text.tflite": (lambda p: p.write_text("The cat sat on the mat.\n" * 50), "is not of vggkeras"),
    "empty.onnx": (lambda p: p.touch(), "is not of vggkeras"),
    "empty.tflite": (lambda p: p.touch(), "is not of vggkeras"),
    "none.onnx": (lambda p: None, "No artifact at"),
    "folder": (lambda p: p.mkdir(), "is not an exported artifact"),
    "folder.onnx": (lambda p: p.mkdir(), "is not an exported artifact"),
    "model.keras": (lambda p: p.write_bytes(b"PK"), "is not an exported artifact"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none_of_ours_is_bad_input(name, tmp_path, command):
    make, message = OTHERS[name]
    make(tmp_path / name)
    for question in ([], ["--explain"], ["--original", tmp_path / "photo.jpg"]):
        code, out, err = command(verify.cli, *question, tmp_path / name)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "photo.jpg").exists()


def test_a_saved_model_of_another_make_is_bad_input(tmp_path, command):
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "other"), signatures=module.serve)
    code, _, err = command(verify.cli, tmp_path / "other")
    assert code == 2
    assert "is not of vggkeras" in err


def test_an_export_without_real_images_has_no_photograph(tmp_path, made, command):
    export.export_model(made.parent / "net.keras", "onnx", data="random", out=tmp_path / "e")
    path = tmp_path / "e" / "model.onnx"
    code, out, _ = command(verify.cli, "--explain", path)
    assert code == 0
    assert "no difference" in out
    code, _, err = command(verify.cli, "--original", tmp_path / "photo.jpg", path)
    assert code == 2
    assert "No photograph travels inside" in err


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
@pytest.mark.parametrize(
    "location", ["../x", "/etc/passwd", "..\\x", "C:\\x", "link.bin", "weights.bin", ""]
)
def test_weights_kept_in_another_file_are_never_loaded(
    location, place, alone, command, monkeypatch
):
    path = alone("model.onnx")
    (path.parent / "link.bin").symlink_to("/etc/passwd")

    def outside(graph: onnx.GraphProto) -> None:
        tensor = TensorProto(
            name="outside", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=location)
        if place == "initializer":
            graph.initializer.append(tensor)
            return
        constant = helper.make_node("Constant", [], ["outside"], value=tensor)
        if place == "branch":
            branch = helper.make_graph([constant], "branch", [], [])
            constant = helper.make_node("If", ["never"], [], then_branch=branch, else_branch=branch)
        graph.node.append(constant)

    model = onnx.load(path)
    outside(model.graph)
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(runtimes, "load", lambda *_: pytest.fail("it was loaded"))
    code, out, err = command(verify.cli, path)
    assert (code, out) == (2, "")
    assert f"keeps weights in {location!r}" in err


# Where do they part?


def first_difference(path: Path) -> stages_module.Stage | None:
    return next((stage for stage in stages_module.stages(path) if not stage.passed), None)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "saved_model"])
def test_an_untouched_file_differs_nowhere(name, made, command):
    code, out, _ = command(verify.cli, "--explain", made / name)
    assert code == 0
    assert out.splitlines()[0] == f"{made / name}: passed"
    assert out.splitlines()[-1].strip() == "no difference"
    lines = [line for line in out.splitlines()[1:-1] if "proven on" not in line]
    stages = [line.split()[1] for line in lines]
    assert stages[:4] == ["decode", "resize", "normalise", "block1_conv1"]
    assert stages[-4:] == ["fc1", "fc2", "predictions", "soft-max"]


def test_a_saved_model_is_not_looked_into(made, command):
    code, out, err = command(verify.cli, "--explain", made / "saved_model")
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
    mean_edited: "normalise (mean_rgb)",
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


def swap_layers(path: Path, one: str, other: str) -> None:
    """Exchange two layers of one shape, whatever the file keeps of them."""
    if path.suffix == ".onnx":

        def change(graph, weights):
            for name in [name for name in weights if name.startswith(f"{one}.kernel")]:
                swap(weights, name, name.replace(one, other))

        edit_onnx(path, change)
        return
    data = bytearray(path.read_bytes())
    tensor = f"{{}}.kernel{'.float16' if 'float16' in path.name else ''}"
    ours, theirs = (tflite_values(data, tensor.format(layer), np.uint8) for layer in (one, other))
    ours[:], theirs[:] = theirs.copy(), ours.copy()
    del ours, theirs
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("saved_model", "model.onnx")]
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
        ("mean_rgb.mean", lambda mean: mean.__iadd__(0.5), "normalise (mean_rgb)"),
        ("predictions.bias", lambda bias: bias.__iadd__([0, 1]), "predictions (scores)"),
    ):
        path.write_bytes(whole)
        edit_tflite(path, tensor, change)
        assert first_difference(path).name == stage


# A user's own preprocessing.


@pytest.fixture(scope="module")
def way(made) -> tuple[Image.Image, Callable]:
    """(the golden photograph, what a filter makes of it: uint8 [64, 64, 3])."""
    image = Image.open(io.BytesIO(artifact.read(made / "model.onnx").golden.original))
    image.load()

    def crop(kind: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
        return next(augment.grid_crops(np.asarray(image.resize((100, 73), kind)), (64, 64), 1))

    return image, crop


MEAN = np.array(configs.IMAGENET_MEAN_RGB)
TORCH_MEAN, TORCH_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FAULTS = {
    "BGR": (lambda image, crop: crop()[..., ::-1], "decode (order): channels are BGR: give RGB"),
    "0-1": (
        lambda image, crop: crop() / np.float32(255),
        "normalise: pixels are scaled to 0-1: give 0-255",
    ),
    "signed bytes": (
        lambda image, crop: (crop() - 128.0).astype(np.int8),
        "normalise: 128 is subtracted",
    ),
    "-1-1": (
        lambda image, crop: crop() / 127.5 - 1,
        "normalise: pixels are scaled to -1-1: give 0-255",
    ),
    "mean subtracted": (
        lambda image, crop: crop() - MEAN,
        "normalise: the mean is subtracted already",
    ),
    "torchvision's": (
        lambda image, crop: (crop() / 255 - TORCH_MEAN) / TORCH_STD,
        "normalise: pixels are normalised by ImageNet's mean and deviation",
    ),
    "channels first": (
        lambda image, crop: crop().transpose(2, 0, 1),
        "layout: channels come first",
    ),
    "height and width swapped": (
        lambda image, crop: crop().transpose(1, 0, 2),
        "layout: height and width are swapped",
    ),
    "nearest": (
        lambda image, crop: crop(Image.Resampling.NEAREST),
        "resize: the filter is nearest",
    ),
    "bicubic": (
        lambda image, crop: crop(Image.Resampling.BICUBIC),
        "resize: the filter is bicubic",
    ),
    "two taps": (
        lambda image, crop: next(
            augment.grid_crops(preprocessing._two_taps(np.asarray(image), (73, 100)), (64, 64), 1)
        ),
        "resize: bilinear without antialiasing",
    ),
    "squeezed": (
        lambda image, crop: np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)),
        "resize: the whole image is squeezed into the crop",
    ),
    "rescaled to the crop": (
        lambda image, crop: augment.center_crop(np.asarray(image), 64, (64, 64)),
        "resize: the smallest side is rescaled to 64 px",
    ),
    "one pixel off": (
        lambda image, crop: np.roll(crop(), 1, axis=1),
        "resize: not the pixels of smallest side to 73",
    ),
    "another photograph": (
        lambda image, crop: augment.center_crop(
            textured(500), 73, (64, 64)
        ),  # a little nearer as BGR, by chance
        "resize: not the pixels of smallest side to 73",
    ),
    "mirrored": (
        lambda image, crop: crop()[:, ::-1],
        "resize: not the pixels of smallest side to 73",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_preprocessing_is_named(fault, made, way, tmp_path, command):
    spoil, message = FAULTS[fault]
    np.save(tmp_path / "mine.npy", spoil(*way))
    code, out, err = command(verify.cli, "--inputs", tmp_path / "mine.npy", made / "model.onnx")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].strip().startswith(f"first difference: {message}")
    assert sum("DIFFERS" in line for line in out.splitlines()) == 1


def test_several_faults_at_once_are_each_named(made, way):
    mine = (way[1]()[..., ::-1] / 255).transpose(2, 0, 1)
    found = {
        stage.name: stage for stage in preprocessing.preprocessing(made / "model.tflite", mine)
    }
    assert [name for name, stage in found.items() if not stage.passed] == [
        "decode (order)",
        "layout",
        "normalise",
    ]
    assert "BGR" in found["decode (order)"].note
    assert "channels come first" in found["layout"].note
    assert "0-1" in found["normalise"].note
    assert (
        "the network refuses its shape; with this undone, answers are off by"
        in found["layout"].note
    )


@pytest.mark.parametrize(
    "right",
    [
        lambda crop: crop(),
        lambda crop: crop()[None],
        lambda crop: (
            crop().astype(np.float32) + np.random.default_rng(0).uniform(-0.5, 0.5, (64, 64, 3))
        ),
        lambda crop: crop() - (np.random.default_rng(0).random((64, 64, 3)) < 0.6),  # rounded down
        lambda crop: crop().astype(np.int64),
    ],
    ids=["bytes", "a batch of one", "floats not rounded", "rounded down", "other integers"],
)
@pytest.mark.parametrize("name", NAMES)
def test_right_preprocessing_passes(name, right, made, way):
    found = {stage.name: stage for stage in preprocessing.preprocessing(made / name, right(way[1]))}
    kind = found.pop("type")
    assert all(stage.passed for stage in found.values())
    # The runtime takes bytes alone.
    assert kind.passed == (right(way[1]).dtype == np.uint8)
    assert kind.passed or "astype('uint8')" in kind.note


def test_what_posteriors_does_is_right(made, tmp_path, command, monkeypatch):
    """The photograph is written, put through the package's own preprocessing, and found right."""
    path = made / "model.onnx"
    code, out, _ = command(verify.cli, "--original", tmp_path / "photo.jpg", path)
    assert code == 0
    assert "--inputs mine.npy" in out
    golden = artifact.read(path).golden
    decoded = np.asarray(Image.open(tmp_path / "photo.jpg"))
    assert decoded.shape == (96, 132, 3)
    np.testing.assert_array_equal(augment.center_crop(decoded, 73, (64, 64)), golden.images[0])

    seen = []
    predictor = vggkeras.load(path)
    p = vggkeras.posteriors(predictor, [tmp_path / "photo.jpg"])
    np.testing.assert_allclose(p, golden.probabilities[:1], atol=1e-5)
    monkeypatch.setattr(
        predictor_module.Predictor,
        "__call__",
        lambda self, images: seen.append(images) or p[: len(images)],
    )
    vggkeras.posteriors(predictor, [tmp_path / "photo.jpg"])
    monkeypatch.undo()
    np.save(tmp_path / "mine.npy", seen[0])
    code, out, _ = command(verify.cli, "--inputs", tmp_path / "mine.npy", path)
    assert code == 0
    assert out.splitlines()[-1].strip() == "no difference"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((65, 64, 3), np.uint8),
            r"of 64 x 64 px and 3 channels; received uint8 of shape \[65, 64, 3\]",
        ),
        (np.zeros((64, 64), np.uint8), r"received uint8 of shape \[64, 64\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"received uint8 of shape \[2, 64, 64, 3\]"),
        (np.zeros((64, 3, 64), np.uint8), r"received uint8 of shape \[64, 3, 64\]"),
        (np.zeros((), np.uint8), r"received uint8 of shape \[\]"),
        (np.full((64, 64, 3), np.nan), "not all of it finite"),
        (np.zeros((64, 64, 3), complex), "received complex128"),
        (np.full((64, 64, 3), "x"), "received <U1"),
    ],
)
def test_what_is_no_image_of_that_size_is_refused(array, message, made):
    with pytest.raises(InputError, match=message):
        preprocessing.preprocessing(made / "model.onnx", array)


def test_a_file_that_holds_no_array_is_bad_input(made, tmp_path, command):
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "zip.npy").write_bytes(b"PK\3\4junk")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    for name in ("several.npz", "text.npy", "zip.npy", "empty.npy", "objects.npy", "none.npy", "."):
        code, _, err = command(verify.cli, "--inputs", tmp_path / name, made / "model.onnx")
        assert code == 2, name
        assert "expected an array that numpy.save wrote" in err
    code, _, err = command(
        verify.cli, "--inputs", tmp_path / "x.npy", made / "model.onnx", made / "model.tflite"
    )
    assert code == 2
    assert "go with one file; received 2" in err
    assert (
        command(verify.cli, "--explain", "--inputs", tmp_path / "x.npy", made / "model.onnx")[0]
        == 2
    )


def test_preprocessing_is_not_judged_by_golden_images_that_were_altered(alone, command, tmp_path):
    path = alone("model.onnx")
    a_golden_answer(path)
    np.save(tmp_path / "mine.npy", np.zeros((64, 64, 3), np.uint8))
    for question in (["--original", tmp_path / "photo.jpg"], ["--inputs", tmp_path / "mine.npy"]):
        code, out, _ = command(verify.cli, *question, path)
        assert code == 1
        assert "golden answers: not what it was" in out
    assert not (tmp_path / "photo.jpg").exists()


def test_a_photograph_too_large_to_travel_is_made_smaller():
    def jpeg(height: int, width: int) -> bytes:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        return buffer.getvalue()

    small, large, wide = jpeg(50, 60), jpeg(400, 500), jpeg(120, 1000)
    assert golden_module.small_original(small, 73) is small
    for encoded, size in ((large, (182, 146)), (wide, (1000, 120))):  # never larger than it was
        assert len(encoded) > golden_module.ORIGINAL_BYTES
        again = golden_module.small_original(encoded, 73)
        assert len(again) < golden_module.ORIGINAL_BYTES
        assert Image.open(io.BytesIO(again)).size == size


@pytest.mark.parametrize("name", ["photo.onnx", "model.tflite", "photo.png", "photo", "."])
def test_the_photograph_takes_no_models_place_nor_another_kinds_name(made, tmp_path, command, name):
    shutil.copy(made / "model.onnx", tmp_path)
    code, _, err = command(verify.cli, "--original", tmp_path / name, tmp_path / "model.onnx")
    assert code == 2
    assert (
        "no model is overwritten"
        if name.endswith((".onnx", ".tflite"))
        else "is a folder"
        if name == "."
        else "give a name ending in .j"
    ) in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_folder_of_exports_names_its_files(exports, command):
    code, _, err = command(verify.cli, exports)
    assert code == 2
    assert "name the files themselves: model.onnx, model.tflite, saved_model" in err


def test_one_number_everywhere_is_no_photograph(made, tmp_path, command):
    np.save(tmp_path / "mine.npy", np.zeros((64, 64, 3), np.uint8))
    code, _, err = command(verify.cli, "--inputs", tmp_path / "mine.npy", made / "model.onnx")
    assert code == 2
    assert "every number 0" in err
