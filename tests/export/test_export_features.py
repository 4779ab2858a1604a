"""Exported files that serve features: what they give, what proves it, and who refuses them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from feature_shapes import NAMES, PLAIN, SIZES, SMALLEST, UNITS, shown
from helpers import (
    DOCS,
    STRANGER,
    photo,
    trained_looking,
)
from PIL import Image

import export
import vggkeras
from export import artifact, to_saved_model
from export import golden as golden_module
from export.__main__ import cli as export_cli
from export.formats import Target, writer_of
from vggkeras import files, runtimes
from vggkeras.card import FEATURES_USE, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import keras as keras_module
from vggkeras.runtimes.forms import forms_beside

pytestmark = pytest.mark.integration


def by_hand(model, images: np.ndarray) -> np.ndarray:
    """Keras' layers up to block 5, then both FC layers everywhere in NumPy, and their average."""
    import keras

    x = inputs = keras.Input((None, None, images.shape[-1]))
    for layer in model.layers[1:]:
        if layer.name == "flatten":
            break
        x = layer(x)
    maps = np.asarray(keras.Model(inputs, x)(images, training=False), np.float64)
    h, w = model.get_layer("flatten").input.shape[1:3]
    (k1, b1), (k2, b2) = (model.get_layer(name).get_weights() for name in ("fc1", "fc2"))
    found = []
    for i in range(maps.shape[1] - h + 1):
        for j in range(maps.shape[2] - w + 1):
            fc1 = np.maximum(maps[:, i : i + h, j : j + w].reshape(len(maps), -1) @ k1 + b1, 0)
            found.append(np.maximum(fc1 @ k2 + b2, 0))
    return np.mean(found, axis=0)


# What they give.


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.ptp(expected, axis=0).max() > 0.1 * expected.max()  # other images, other features
    assert np.abs(found - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("size", SIZES)
def test_files_give_what_keras_does_and_what_is_computed_by_hand(size, loaded, network, keras_form):
    images = shown(size)
    expected = by_hand(network, images)
    agree(keras_form(images), expected)
    for file in loaded.values():
        found = file(images)
        assert (found.dtype, found.shape) == (np.float32, (len(images), UNITS))
        agree(found, expected)
        agree(np.concatenate([file(image[None]) for image in images]), expected)


def test_at_the_training_size_they_are_fc2s_output(loaded, network):
    import keras

    images = shown(SMALLEST)
    fc2 = np.asarray(
        keras.Model(network.input, network.get_layer("fc2").output)(images, training=False)
    )
    for file in loaded.values():
        agree(file(images), fc2)


def test_another_configuration_and_operator_set(tmp_path):
    """1 x 1 kernels, one channel, no dropout, ONNX's oldest operators."""
    model = trained_looking("C", (64, 64, 1), True, width=0.06, fc_units=12, dropout=0.0)
    graph = to_saved_model.inference_model(model, "features")
    reference = keras_module.keras_predictor(model, ModelCard()).features_form()
    card = artifact.describe(ModelCard(mean_rgb=(0.0,), arch="C"), reference, "", Form.FEATURES)
    for name in ("onnx", "tflite"):
        path = Target(tmp_path, name, form=Form.FEATURES).path
        writer_of(name, is_vgg=True)(graph, path, card, 14)
        file = runtimes.load(path)
        for size in ((64, 64), (131, 70)):
            images = np.random.default_rng(1).integers(0, 256, (4, *size, 1), dtype=np.uint8)
            agree(file(images), by_hand(model, images))


def test_each_runtime_knows_what_it_is_and_finds_its_features(made, loaded, keras_form):
    for plain, name in PLAIN.items():
        classifier = vggkeras.load(made / "export" / plain)
        assert classifier.features == 0
        found = classifier.features_form()
        assert found.path == made / "export" / name
        assert (found.features, found.class_names, found.dense) == (UNITS, [], True)
        assert (found.input_name, found.output_name, found.input_shape) == (
            "images",
            "features",
            (*SMALLEST, 3),
        )
        assert found.features_form() is found
        assert (found.runtime, found.card) == (classifier.runtime, loaded[name].card)
        with pytest.raises(InputError, match="or larger; received shape"):
            found(shown((63, 96)))
    assert (keras_form.features, keras_form.class_names, keras_form.output_name) == (
        UNITS,
        [],
        "features",
    )
    assert vggkeras.load(made / "export" / "model.onnx", threads=1).features_form().threads == 1


# What is in them.


def test_the_onnx_file_has_no_class_layer(made):
    model = onnx.load(made / "export" / "model.features.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = [node.op_type for node in model.graph.node]
    assert not {"Gemm", "MatMul", "Softmax", "BatchNormalization", "Shape", "Mul"} & set(nodes)
    assert nodes.count("Conv") == 10  # A's eight, and two of the FC layers
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert weights["fc2.kernel"] == [UNITS, UNITS, 1, 1]
    assert not [name for name in weights if "predictions" in name]
    assert not [dims for dims in weights.values() if 5 in dims]  # the classes
    (images,), (features,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
        "batch",
        "height",
        "width",
        3,
    ]
    assert (images.name, features.name) == ("images", "features")
    assert [d.dim_param or d.dim_value for d in features.type.tensor_type.shape.dim] == [
        "batch",
        UNITS,
    ]


def test_the_tflite_file_has_built_in_operators_alone(made):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made / "export" / "model.features.tflite"))
    operators = {op["op_name"] for op in interpreter._get_ops_details()} - {"DELEGATE"}
    assert operators == {
        "CAST",
        "SUB",
        "CONV_2D",
        "LOCAL_RESPONSE_NORMALIZATION",
        "MAX_POOL_2D",
        "MEAN",
    }
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["features"]}
    }
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [-1, -1, -1, 3]
    assert interpreter.get_output_details()[0]["shape_signature"].tolist() == [-1, UNITS]
    assert not [t["name"] for t in interpreter.get_tensor_details() if "predictions" in t["name"]]


def test_the_saved_model_holds_what_features_need(made, network):
    import tensorflow as tf

    variables = tf.train.list_variables(
        str(made / "export" / "saved_model.features" / "variables" / "variables")
    )
    held = sum(int(np.prod(shape)) for name, shape in variables if shape)
    needed = [layer for layer in network.layers if layer.weights and "_bn" not in layer.name]
    assert held == sum(layer.count_params() for layer in needed if layer.name != "predictions")
    signatures = tf.saved_model.load(str(made / "export" / "saved_model.features")).signatures
    assert list(signatures["serving_default"].structured_outputs) == ["features"]


@pytest.mark.parametrize("name", NAMES)
def test_the_description_says_how_they_are_used(name, made):
    about = artifact.read(made / "export" / name).card.to_description()
    assert about["class_names"] == []
    assert about["output"] == {
        "name": "features",
        "type": "float32",
        "shape": ["batch", UNITS],
        "use": FEATURES_USE,
    }
    assert about["input"]["shape"] == ["batch", "height", "width", 3]
    assert about["input"]["smallest"] == [*SMALLEST, 3]
    assert about["resize"].endswith("the whole image")
    assert about["provenance"]["model_sha256"] == files.sha256(made / "net.keras")


def test_a_phones_reader_is_told_of_no_labels(made):
    path = made / "export" / "model.features.tflite"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["golden.npz", "vggkeras.json"]
    content = path.read_bytes()
    assert b"labels.txt" not in content
    assert FEATURES_USE.encode() in content  # as the output's description, unpacked


def test_they_are_benchmarked_beside_the_others(made, tmp_path, command):
    pytest.importorskip(
        "mlperf_loadgen",
        reason="mlcommons-loadgen is not installed: pip install 'vggkeras[benchmark]'",
    )
    from export import benchmark

    paths = [made / "export" / name for name in ("model.onnx", "model.features.onnx")]
    short = (
        "--rounds",
        1,
        "--seconds",
        0.05,
        "--batch",
        2,
        "--threads",
        1,
        "--json",
        tmp_path / "b.json",
    )
    assert command(benchmark.cli, *paths, *short)[0] == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["images"] for row in rows] == ["10 golden images"] * 2


# Who refuses what.


def test_what_gives_no_features_says_how_to_get_them(made, photos, tmp_path):
    for plain, kind in (
        ("model.onnx", "onnx"),
        ("model.tflite", "tflite"),
        ("saved_model", "saved_model"),
    ):
        with pytest.raises(
            InputError, match=f"python -m export --features --format {kind} --model RUN"
        ):
            vggkeras.load(made / "before" / plain).features_form()
    path = made / "before" / "model.onnx"
    card = dataclasses.replace(vggkeras.load(path).card, precision="int8")
    with pytest.raises(InputError, match="--features --format onnx --precision int8 --model RUN"):
        forms_beside(path, card, vggkeras.load)(Form.FEATURES)
    folder = tmp_path / "mixed"
    shutil.copytree(made / "before", folder)
    shutil.copy(folder / "model.onnx", folder / "model.features.onnx")
    with pytest.raises(InputError, match="is not the features form of"):
        vggkeras.load(folder / "model.onnx").features_form()
    trained_looking("A", (*SMALLEST, 3), False, width=0.06, fc_units=8).save(
        tmp_path / "other.keras"
    )
    # Of features the data may have other classes: two here, and the network has five.
    export.export_model(
        tmp_path / "other.keras", "onnx", data=str(photos), out=folder, features=True
    )
    with pytest.raises(InputError, match=r"is not the features form of .* but of another model"):
        vggkeras.load(folder / "model.onnx").features_form()
    with pytest.raises(InputError, match="has no form that gives features"):
        vggkeras.load(made / "net.keras").dense_form().features_form()


def test_features_are_never_taken_for_probabilities(made, loaded, command):
    from vggkeras.__main__ import cli

    path, classifier = made / "export" / "model.features.onnx", "model.onnx"
    image = made / "photos" / "val" / "class0" / "0.jpg"
    for arguments in (
        ("predict", "--model", path, image),
        ("evaluate", "--model", path, "--data", made / "photos"),
        ("evaluate", "--model", path, "--data", made / "photos", "--protocol", "dense"),
    ):
        code, out, err = command(cli, *arguments)
        assert code == 2, (arguments, out)
        assert f"gives {UNITS} features, not probabilities: expected a classifier" in err
        assert str(made / "export" / classifier) + "," in err
        assert len(err.strip().splitlines()) == 1
    for predictor in loaded.values():
        with pytest.raises(InputError, match="not probabilities"):
            vggkeras.posteriors(predictor, [image])
        with pytest.raises(InputError, match="not probabilities"):
            predictor.dense_form()


def test_a_report_of_an_export_shows_what_features_have(made, tmp_path):
    from vggkeras.report.page import report

    page = report(
        made / "export", data=str(made / "photos"), out=tmp_path / "report.html"
    ).read_text()
    rows = re.findall(r"<code>([\w.]+)</code></th>(.*?)</tr>", page, re.DOTALL)
    assert {*NAMES, *PLAIN} <= {name for name, _ in rows}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dense",), "--dense and --features write other files each"),
        (
            ("--precision", "int8", "--format", "saved_model"),
            "saved_model has no precision 'int8'",
        ),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    arguments, message, made, tmp_path, command
):
    out = tmp_path / "out"
    code, _, err = command(
        export_cli, "--features", "--model", made / "net.keras", "--out", out, *arguments
    )
    assert code == 2
    assert message in err
    assert not out.exists()


def test_a_network_without_soft_max_has_features_too(tmp_path, capsys):
    model = vggkeras.build(
        "A", (32, 32, 3), 2, width=0.05, fc_units=8, classifier_activation=None, seed=0
    )
    model.save(tmp_path / "scores.keras")
    (entry,) = export.export_model(
        tmp_path / "scores.keras", "onnx", out=tmp_path / "out", features=True
    ).values()
    assert entry["passed"]
    assert "weak evidence" in entry["evidence"]
    assert "smallest cosine" in capsys.readouterr().out


@pytest.mark.full  # the smaller networks above, and test_export.py's full one, go the same way
def test_full_width_at_224(tmp_path):
    """4096 features of a full-size network pass in every format, to the same tolerance."""
    vggkeras.build("D", seed=0).save(tmp_path / "full.keras")
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "export",
            "--features",
            "--model",
            tmp_path / "full.keras",
            "--images",
            "4",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    certificate = json.loads((tmp_path / "export" / "certificate.json").read_text())
    assert len(certificate) == 3
    for entry in certificate.values():
        assert entry["features"] == 4096
        assert entry["max_rel_error"] <= 1e-5
        assert entry["smallest_cosine"] > 1 - 1e-9
    features = golden_module.load_golden(tmp_path / "export", Form.FEATURES).answers
    assert np.ptp(features, axis=0).max() > 1e-3 * features.max()  # other images, other features
    shutil.rmtree(tmp_path / "export")  # half a gigabyte a file


def test_the_documented_lines_give_the_features_without_vggkeras(made, tmp_path):
    """A stranger's script, over two scales with mirrors, beside `vggkeras.features`."""
    blocks = re.findall(
        r"^```python\n# (features_\w+\.py)\n(.*?)^```$",
        (DOCS / "features.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    ((name, code),) = blocks
    (tmp_path / name).write_text(code)
    shutil.copy(made / "export" / "model.features.onnx", tmp_path)
    Image.fromarray(photo(3, 150, 211)).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", STRANGER, name, "photo.png", "110", "96"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    predictor = vggkeras.load(tmp_path / "model.features.onnx")
    expected = vggkeras.extract_features(predictor, [tmp_path / "photo.png"], (96, 110))[0]
    np.testing.assert_allclose(json.loads(child.stdout), expected, atol=1e-5)
    assert len(expected) == predictor.features > 1
