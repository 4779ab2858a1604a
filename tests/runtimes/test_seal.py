"""A file that was changed since its export is not loaded, nor a SavedModel that is a program."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers import photo
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import vggkeras
from export import image_model
from export.verify import cli as verify_cli
from vggkeras import containers
from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.runtimes.operators import check_operators
from vggkeras.runtimes.seal import card_of

pytestmark = pytest.mark.integration

EXPORTED = ("model.onnx", "model.tflite", "saved_model")


@pytest.fixture
def copy(exports, tmp_path):
    def copied(name: str) -> Path:
        copy = shutil.copytree if (exports / name).is_dir() else shutil.copy
        return Path(copy(exports / name, tmp_path / name))

    return copied


@pytest.mark.parametrize("name", EXPORTED)
def test_no_flipped_byte_is_loaded(name, copy, exports):
    """But those of the seal's other digests, which say only what part of a file was changed."""
    path, rng = copy(name), np.random.default_rng(0)
    length = len(containers.members_of(path)[containers.SEAL])
    whole = containers.other_bytes(path, length)
    for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
        content = file.read_bytes()
        ends = [*range(0, min(len(content), 200), 19), *range(-min(len(content), 1500), 0, 41)]
        for place in [*ends, *rng.integers(len(content), size=20)]:
            data = bytearray(content)
            data[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
            try:
                card, sealed = card_of(path)
            except InputError:
                continue
            assert (sealed, card) == ("yes", card_of(exports / name)[0]), (file, place)
            assert containers.other_bytes(path, length) == whole, (file, place)
        file.write_bytes(content)
    assert card_of(path)[1] == "yes"


def test_a_predictor_says_whether_its_file_is_sealed(predictors, copy):
    assert {name: p.sealed for name, p in predictors.items()} == {
        **dict.fromkeys(EXPORTED, "yes"),
        "model.keras": "no",
    }
    path = copy("model.onnx")
    assert vggkeras.load(path, verify=False).sealed == "no"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4  # in the weights
    path.write_bytes(data)
    assert vggkeras.load(path, verify=False).sealed == "no"
    with pytest.raises(InputError, match="its sha256 is not that of its seal"):
        vggkeras.load(path)


def test_a_file_without_a_seal_is_said_to_be(copy, command, tmp_path):
    path = copy("model.onnx")
    Image.fromarray(photo(0)).save(tmp_path / "photo.png")
    model = onnx.load(path)
    asked = ("predict", tmp_path / "photo.png", "--model", path, "--json")
    assert command(cli, *asked)[2] == ""
    for kept, sealed in (
        (("vggkeras", "labels"), "no (it carries no checksums)"),
        ((), "foreign (vggkeras did not write it, or it does not say so any more)"),
    ):
        properties = {p.key: p.value for p in model.metadata_props if p.key in kept}
        onnx.helper.set_model_props(model, properties)
        model.producer_name = "vggkeras" if kept else "another"
        onnx.save(model, path)
        code, out, err = command(cli, *asked)
        assert (code, out.count("\n"), err) == (0, 1, f"{path}: sealed: {sealed}\n")


def test_what_travels_in_a_tflite_file_is_never_inflated(copy):
    path = copy("model.tflite")
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("vggkeras.json", " " * 1_000_000)
    with pytest.raises(InputError, match="is compressed"):
        vggkeras.load(path)


def text(operator):
    """A function of images that runs an operator that gives a string or nothing."""

    def call(images):
        result = operator()
        with tf.control_dependencies([] if result is None else [result]):
            return tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2))

    return call


def in_a_loop(images):
    def body(i):
        with tf.control_dependencies([tf.io.read_file("/etc/hostname")]):
            return i + 1

    with tf.control_dependencies([tf.while_loop(lambda i: i < 3, lambda i: [body(i)], [0])[0]]):
        return tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2))


HOSTILE = {
    "ReadFile": text(lambda: tf.io.read_file("/etc/hostname")),
    "WriteFile": text(lambda: tf.io.write_file("written", "x")),
    "MatchingFiles": text(lambda: tf.io.matching_files("/etc/*")),
    "EagerPyFunc": text(lambda: tf.py_function(lambda: 1, [], tf.int32)),
    "PyFunc": text(lambda: tf.numpy_function(lambda: 1, [], tf.int32)),
    "PrintV2": text(lambda: tf.print("x", output_stream="file://written")),
    "RestoreV2": text(lambda: tf.raw_ops.RestoreV2(
        prefix="x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]),
    "SaveV2": text(lambda: tf.raw_ops.SaveV2(
        prefix="written", tensor_names=["a"], shape_and_slices=[""], tensors=[tf.zeros(1)])),
    "TextLineDataset": text(lambda: tf.raw_ops.TextLineDataset(
        filenames="/etc/hostname", compression_type="", buffer_size=9)),
}  # fmt: skip
HOSTILE["ReadFile in a loop"] = in_a_loop


def save(function, path: Path) -> Path:
    module = tf.Module()
    module.weights = [tf.Variable(tf.zeros(3))]
    images = tf.TensorSpec([None, 32, 32, 3], tf.uint8, name="images")
    module.serve = tf.function(function, input_signature=[images])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return path


@pytest.mark.parametrize("operator", HOSTILE)
def test_a_saved_model_that_could_touch_files_or_python_is_refused(operator, tmp_path, monkeypatch):
    path = tmp_path / "hostile"
    save(HOSTILE[operator], path)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    for load in (vggkeras.load, image_model.load):
        with pytest.raises(InputError, match=operator.split()[0]) as error:
            load(path)
        assert "give --trust-saved-model" in str(error.value)
    assert not (tmp_path / "written").exists()


def test_it_loads_if_it_is_trusted(tmp_path, command):
    path = save(HOSTILE["ReadFile"], tmp_path / "trusted")
    predictor = vggkeras.load(path, trust_saved_model=True)
    assert predictor(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 3)
    assert predictor.sealed == "foreign"
    Image.fromarray(photo(0)).save(tmp_path / "photo.png")
    asked = ("predict", tmp_path / "photo.png", "--model", path)
    code, out, err = command(cli, *asked)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if "operators" in line]
    assert line.startswith(f"error: {path} has operators that may touch files")
    assert command(cli, *asked, "--trust-saved-model")[0] == 0


def test_verify_checks_a_seal_and_operators_before_it_loads(copy, command, monkeypatch):
    path = copy("saved_model")
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (graph,) = model.meta_graphs
    function = next(f for f in graph.graph_def.library.function if "lambda" in f.signature.name)
    function.node_def.add(name="more", op="ReadFile")
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    code, out, _ = command(verify_cli, path)
    assert (code, "graph: not what it was" in out, "ReadFile" in out) == (1, True, False)
    resealed_whole(path)
    code, out, _ = command(verify_cli, path)
    assert (code, "ReadFile" in out) == (1, True)


def resealed_whole(path: Path) -> None:
    digests = containers.parts_of(path).digests()
    containers.overwrite_seal(path, containers.seal_text(digests))


def test_checkpoints_are_for_functions_that_no_model_calls(copy):
    """A model's own functions for saving may write; as a signature's they would, when called."""
    path = copy("saved_model")
    check_operators(path)
    pristine = (path / "saved_model.pb").read_bytes()

    def refused(change) -> None:
        model = saved_model_pb2.SavedModel.FromString(pristine)
        (graph,) = model.meta_graphs
        (saving,) = (f for f in graph.graph_def.library.function if "save" in f.signature.name)
        change(model, graph, saving)
        (path / "saved_model.pb").write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match="MergeV2Checkpoints, SaveV2"):
            check_operators(path)

    def as_a_signature(model, graph, saving):
        node = next(n for n in graph.object_graph_def.nodes if n.function.concrete_functions)
        node.function.concrete_functions.append(saving.signature.name)

    def called(model, graph, saving):
        serving = next(f for f in graph.graph_def.library.function if "lambda" in f.signature.name)
        node = serving.node_def.add(name="more", op="PartitionedCall")
        node.attr["f"].func.name = saving.signature.name

    def in_anothers_place(model, graph, saving):
        saving.attr["api_implements"].s = b"x"

    def of_tensorflow_1(model, graph, saving):
        graph.ClearField("object_graph_def")
        graph.graph_def.node.add(name="more", op="SaveV2")
        graph.graph_def.node.add(name="most", op="MergeV2Checkpoints")

    def of_two_graphs(model, graph, saving):
        graph.graph_def.node.add(name="more", op="SaveV2")
        graph.graph_def.node.add(name="most", op="MergeV2Checkpoints")
        model.meta_graphs.add()

    for change in (as_a_signature, called, in_anothers_place, of_tensorflow_1, of_two_graphs):
        refused(change)
