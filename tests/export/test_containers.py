"""Damaged and dangerous files: cut short, with flipped bytes, with weights in other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from helpers import CARD
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from export import artifact, metadata, verify
from export.golden import Golden
from vggkeras import containers, runtimes
from vggkeras.errors import InputError

pytestmark = pytest.mark.integration


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
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size):
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place])
            code, out, err = command(verify.cli, path)
            assert (code, err) == (1, ""), (file, place)
            assert "damaged" in out or "not what it was" in out, (file, place)
        file.write_bytes(whole)
    assert command(verify.cli, path)[0] == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with an .onnx and a .tflite file of one tensor, and all that travels along."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=50).astype(np.float32)
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [50])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [50])
    node = helper.make_node("Add", ["x", "weights"], ["y"])
    graph = helper.make_graph([node], "tiny", [info], [answer], [from_array(weights, "weights")])
    model = helper.make_model(graph, producer_name="vggkeras")
    helper.set_model_props(model, {"vggkeras": json.dumps(CARD.to_description()), "labels": "[]"})
    onnx.save(model, folder / "tiny.onnx")

    lite = schema.ModelT()
    lite.version, lite.description = 3, b"vggkeras 0"
    lite.subgraphs, lite.operatorCodes = [schema.SubGraphT()], []
    lite.buffers = [schema.BufferT(), schema.BufferT()]
    lite.buffers[1].data = weights.view(np.uint8)
    builder = flatbuffers.Builder()
    builder.Finish(lite.Pack(builder), b"TFL3")
    (folder / "tiny.tflite").write_bytes(builder.Output())
    metadata.append_labels(folder / "tiny.tflite", CARD)

    images = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    answers = np.full((2, 5), 0.2, np.float32)
    golden = Golden(images, None, answers, answers, {"fc1": answers[0]}, None)
    for path in folder.iterdir():
        artifact.seal(path, golden)
        assert artifact.read(path).changed == []
    return folder


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite"])
def test_no_flipped_byte_escapes(tiny, tmp_path, name):
    """Weights, names, lengths, zip headers, the checksums themselves, the first and last bytes."""
    whole, path, rng = (tiny / name).read_bytes(), tmp_path / name, np.random.default_rng(0)
    for place in [*range(16), *range(16, len(whole) - 16, 13), *range(-16, 0)]:
        data, bits = bytearray(whole), int(rng.integers(1, 256))
        data[place] ^= bits
        path.write_bytes(data)
        try:
            contents = artifact.read(path)
        except ValueError:  # damaged, or so that it does not even look like a file of vggkeras
            continue
        assert contents.changed, (place, bits)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_flipped_bytes_of_a_network_are_found(name, exported, tmp_path):
    whole, path = (exported / name).read_bytes(), tmp_path / name
    for place in [*range(0, len(whole), len(whole) // 15), -1, -200]:
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        try:
            assert verify.verify(path), place
        except InputError:  # it does not even look like a file of vggkeras: exit code 2
            continue


def test_bytes_behind_the_end_are_found(alone):
    path = alone("model.onnx")
    with open(path, "ab") as file:
        file.write(containers.field(6, b"doc"))
    (problem,) = verify.verify(path)
    assert problem.startswith(("graph", "other bytes"))


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("../x", "initializer"),
        ("../x", "constant"),
        ("../x", "branch"),
        ("/etc/passwd", "initializer"),
        ("C:\\x", "initializer"),
        ("link.bin", "initializer"),
        ("weights.bin", "initializer"),
        ("", "initializer"),
    ],
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
