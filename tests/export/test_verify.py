"""An exported file alone: whole or damaged, honest or altered."""

from __future__ import annotations

import dataclasses
import json
import os
import re
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
    EXPORTED,
    FORMATS,
    FRESH_ENVIRONMENT,
    REPOSITORY,
    edit_golden_answers,
    edit_member,
    edit_tflite,
    resealed,
    swap_layers,
    the_mean_of_the_graph,
)
from onnx import TensorProto, helper
from PIL import Image

import export
from export import artifact, verify
from export import golden as golden_module
from vggkeras import containers, processor, runtimes
from vggkeras.data import augment, decoding

pytestmark = pytest.mark.integration

# Needs one file, and little else.


@pytest.mark.parametrize("name", EXPORTED)
def test_each_file_is_enough(name, alone, command):
    path = alone(name)
    assert [p.name for p in path.parent.iterdir()] == [name]
    code, out, _ = command(verify.cli, path)
    assert (code, out.splitlines()[0]) == (0, f"{path}: passed")
    assert ("proven again here, on the same kind" in out) == ("int8" in name)
    contents = artifact.read(path)
    assert contents.changed == []
    assert contents.card.class_names == ("cat", "dog")
    assert 2 <= len(contents.golden.images) <= artifact.INSIDE[1]


RUNTIMES = {
    "model.onnx": "onnxruntime,flatbuffers,google,packaging",
    "model.int8.tflite": "ai_edge_litert,flatbuffers,ml_dtypes,google,tqdm,typing_extensions,"
    "backports",
}
EACH_COMMAND = f"""{FRESH_ENVIRONMENT}
import json
from export import verify

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["verify", *arguments]
    print("exit code", verify.cli())
"""


@pytest.mark.parametrize("name", RUNTIMES)
def test_numpy_pillow_and_the_runtime_are_enough(name, alone):
    path = alone(name)
    photograph = decoding.decode(artifact.read(path).golden.original)
    image = augment.center_crop(photograph, 73, (64, 64))
    np.save(path.parent / "mine.npy", image[..., ::-1])
    commands = [
        ["--explain", name],
        ["--original", "photo.jpg", name],
        ["--inputs", "mine.npy", name],
    ]
    child = subprocess.run(
        [sys.executable, "-c", EACH_COMMAND, RUNTIMES[name], json.dumps(commands)],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    explained, original, inputs, rest = re.split(r"exit code (?=\d)", child.stdout)
    assert f"{name}: passed" in explained
    assert "no difference" in explained
    assert original.startswith("0\n")
    assert inputs.startswith("0\n")
    assert "first difference: decode (order): channels are BGR: give RGB" in inputs
    assert rest == "1\n"
    np.testing.assert_array_equal(np.asarray(Image.open(path.parent / "photo.jpg")), photograph)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["mine.npy", "photo.jpg", name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("onnx", "onnxruntime"),
        pytest.param("tflite", "ai-edge-litert", marks=pytest.mark.full),
    ],
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
    there = artifact.read(path).card.processor
    other = processor.Processor("Neoverse N1", "aarch64", ("NEON", "NEON dot product"))
    monkeypatch.setattr(verify, "this_processor", lambda: other)
    assert verify.verify(path) == []
    note = verify.made_where(path)
    assert note.startswith(f"proven on {there}")
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


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
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

        def change(data):
            data[1234] ^= 1

        edit_tflite(path, "block4_conv1.kernel", change, np.uint8)


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
    "golden answers": (edit_golden_answers, "golden answers: not what it was"),
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


@pytest.mark.parametrize("name", FORMATS)
def test_altered_weights_with_new_checksums_are_caught_by_their_answers(
    name, alone, exported, command
):
    path = alone(name)
    resealed(path, the_mean_of_the_graph)
    code, out, _ = command(verify.cli, path)
    assert code == 1
    assert "values: largest error" in out
    shutil.copy(exported / "certificate.json", path.parent)
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
    resealed(
        path, lambda p: edit_description(p, output={"name": "features", "shape": ["batch", 2]})
    )
    code, out, _ = command(verify.cli, path)
    assert code == 1
    assert "output name: expected 'features', received 'probabilities'" in out


def test_several_files_are_each_said(alone, exported, command):
    path = alone("model.onnx")
    a_weight(path)
    code, out, _ = command(verify.cli, exported / "model.tflite", path)
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
    "another.onnx": (another_onnx, "was not written by vggkeras"),
    "another.tflite": (another_tflite, "was not written by vggkeras"),
    "text.onnx": (
        lambda p: p.write_text("The cat sat on the mat.\n" * 50),
        "was not written by vggkeras",
    ),
    "text.tflite": (
        lambda p: p.write_text("The cat sat on the mat.\n" * 50),
        "was not written by vggkeras",
    ),
    "empty.onnx": (lambda p: p.touch(), "was not written by vggkeras"),
    "empty.tflite": (lambda p: p.touch(), "was not written by vggkeras"),
    "none.onnx": (lambda p: None, "No artifact at"),
    "folder": (lambda p: p.mkdir(), "is not an exported artifact"),
    "folder.onnx": (lambda p: p.mkdir(), "is not an exported artifact"),
    "model.keras": (lambda p: p.write_bytes(b"PK"), "is not an exported artifact"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_vggkeras_did_not_write_is_bad_input(name, tmp_path, command):
    make, message = OTHERS[name]
    make(tmp_path / name)
    for question in ([], ["--explain"], ["--original", tmp_path / "photo.jpg"]):
        code, out, err = command(verify.cli, *question, tmp_path / name)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "photo.jpg").exists()


def test_a_saved_model_that_vggkeras_did_not_write_is_bad_input(tmp_path, command):
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "other"), signatures=module.serve)
    code, _, err = command(verify.cli, tmp_path / "other")
    assert code == 2
    assert "was not written by vggkeras" in err


def test_an_export_without_real_images_has_no_photograph(tmp_path, exported, command):
    export.export_model(exported.parent / "net.keras", "onnx", data="random", out=tmp_path / "e")
    path = tmp_path / "e" / "model.onnx"
    code, out, _ = command(verify.cli, "--explain", path)
    assert code == 0
    assert "no difference" in out
    code, _, err = command(verify.cli, "--original", tmp_path / "photo.jpg", path)
    assert code == 2
    assert "No photograph travels inside" in err


def test_a_folder_of_exports_names_its_files(exported, command):
    code, _, err = command(verify.cli, exported)
    assert code == 2
    assert f"name the files themselves: {', '.join(sorted(EXPORTED))}" in err
