"""What the exported files hold, as other readers of their formats see it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import encode
from flatbuffers.table import Table

import export
from vggkeras import files

pytestmark = pytest.mark.integration


def test_the_onnx_file(exports, run):
    model = onnx.load(exports / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("Transpose") <= 1
    assert set(nodes) <= {
        "Cast",
        "Sub",
        "Transpose",
        "Conv",
        "Relu",
        "LRN",
        "MaxPool",
        "Reshape",
        "Gemm",
        "Softmax",
    }
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]
    (images,), (probabilities,) = model.graph.input, model.graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
        "batch",
        32,
        32,
        3,
    ]
    assert probabilities.name == "probabilities"
    assert [d.dim_param or d.dim_value for d in probabilities.type.tensor_type.shape.dim] == [
        "batch",
        10,
    ]
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props if p.key != "golden"}
    assert metadata["labels"] == [str(i) for i in range(10)]
    check_description(metadata["vggkeras"], run)


def check_description(about, run):
    assert about["class_names"] == [str(i) for i in range(10)]
    assert about["mean_rgb"] == run.metadata["mean_rgb"]
    assert about["input"]["shape"] == ["batch", 32, 32, 3]
    assert about["scale"] == 37
    assert about["provenance"]["data"] == "digits"
    assert about["provenance"]["epoch"] == run.metadata["best_epoch"]
    assert about["provenance"]["model_sha256"] == files.sha256(run.path / "model.keras")


def test_the_tflite_file(exports, run):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(exports / "model.tflite"))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}
    }
    assert interpreter.get_input_details()[0]["name"] == "images"
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [-1, 32, 32, 3]
    assert interpreter.get_input_details()[0]["dtype"] == np.uint8
    assert interpreter.get_output_details()[0]["name"] == "probabilities"
    operators = {op["op_name"] for op in interpreter._get_ops_details()} - {"DELEGATE"}
    expected = "CAST SUB CONV_2D LOCAL_RESPONSE_NORMALIZATION MAX_POOL_2D RESHAPE FULLY_CONNECTED"
    assert operators == {*expected.split(), "SOFTMAX"}
    with zipfile.ZipFile(exports / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().split() == [str(i) for i in range(10)]
        check_description(json.loads(archive.read("vggkeras.json")), run)


def flat_field(table: Table, number: int) -> int:
    """Where a table's field is; 0 where it has none."""
    offset = table.Offset(4 + 2 * number)
    return offset and table.Pos + offset


def child(table: Table, number: int) -> Table:
    return Table(table.Bytes, table.Indirect(flat_field(table, number)))


def only(table: Table, number: int) -> Table:
    """The one table of a vector."""
    offset = table.Offset(4 + 2 * number)
    assert table.VectorLen(offset) == 1
    return Table(table.Bytes, table.Indirect(table.Vector(offset)))


def text(table: Table, number: int) -> str:
    return table.String(flat_field(table, number)).decode()


def test_a_phones_reader_finds_the_labels(exports):
    path = exports / "model.tflite"
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    root = Table(data, encode.Get(flatbuffers.packer.uoffset, data, 0))
    assert text(root, 0) == "VGG A-LRN"
    assert text(root, 7) == "1.0.0"
    image, output = only(only(root, 3), 2), only(only(root, 3), 3)
    assert (text(image, 0), text(output, 0)) == ("images", "probabilities")
    properties = child(child(image, 3), 1)
    assert properties.Bytes[flat_field(properties, 0)] == 1  # RGB
    labels = only(output, 6)
    assert data[flat_field(labels, 2)] == 2  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(path) as archive:
        assert archive.read(text(labels, 0)).decode().splitlines() == [str(i) for i in range(10)]


def test_tflite_weights_lie_on_sixteen_bytes(exports):
    data = (exports / "model.tflite").read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    for i in range(model.BuffersLength()):
        array = model.Buffers(i).DataAsNumpy()
        if isinstance(array, np.ndarray) and len(array):
            whole = np.frombuffer(data, np.uint8)
            assert (
                array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
            ) % 16 == 0


def test_the_saved_model(exports, run):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(exports / "saved_model"))
    assert set(loaded.signatures) == {"serving_default"}
    weights = sum(weight.nbytes for weight in run.model.get_weights())
    assert files.size(exports / "saved_model") < weights + 300_000  # every weight once
    (spec,) = loaded.signatures["serving_default"].structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("images", tf.uint8, [None, 32, 32, 3])
    assert list(loaded.signatures["serving_default"].structured_outputs) == ["probabilities"]
    about = exports / "saved_model" / "assets.extra" / "vggkeras.json"
    check_description(json.loads(about.read_text()), run)


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(run, precise_exports, tmp_path):
    """Again, in this process; and what the fixture wrote."""
    for kind in ("onnx", "tflite"):
        export.export_model(run.path, kind, "int8", out=tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert len(names) == 4  # two files, golden.npz, certificate.json
    for name in names:
        if name != "certificate.json":  # which has times
            assert files.sha256(precise_exports / name) == files.sha256(
                tmp_path / "again" / name
            ), name


@pytest.mark.full  # the other formats, above
def test_the_same_command_writes_the_same_saved_model(run, tmp_path):
    """TensorFlow numbers its functions within a process: two of them."""
    for folder in ("one", "two"):
        command = [
            sys.executable,
            "-m",
            "export",
            "--format",
            "saved_model",
            "--model",
            run.path,
            "--images",
            "20",
        ]
        subprocess.run([*command, "--out", tmp_path / folder], check=True, capture_output=True)
    assert files.sha256(tmp_path / "one" / "saved_model") == files.sha256(
        tmp_path / "two" / "saved_model"
    )
