"""Exported files that serve features: what they give, what proves it, and who refuses them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import (
    NOTHING_ELSE,
    README,
    REPOSITORY,
    STRANGER,
    edit_onnx,
    photo,
    resealed,
    textured,
    the_mean_of_the_graph,
    trained_looking,
)
from PIL import Image

import export
import vggkeras
from export import artifact, parity, samples, to_onnx, to_saved_model, verify
from export import golden as golden_module
from export import stages as stages_module
from export.__main__ import cli as export_cli
from export.formats import Target, writer_of
from vggkeras import files, runtimes
from vggkeras.card import FEATURES_USE, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import keras as keras_module

PLAIN = {
    "model.onnx": "model.features.onnx",
    "model.tflite": "model.features.tflite",
    "saved_model": "saved_model.features",
}
NAMES = tuple(PLAIN.values())
UNITS, SMALLEST = 24, (64, 96)
SIZES = (SMALLEST, (65, 96), (101, 163), (64, 230))


@pytest.fixture(scope="module")
def network():
    """Of two places by three before fc1, LRN and batch norm in it, five classes."""
    return trained_looking("A-LRN", (*SMALLEST, 3), True, width=0.06, fc_units=UNITS, dropout=0.5)


@pytest.fixture(scope="module")
def made(network, tmp_path_factory) -> Path:
    """A folder with net.keras; export/, all formats and their features; before/, without these."""
    folder = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        for label in range(5):
            (folder / "photos" / split / f"class{label}").mkdir(parents=True)
            for i in range(2):
                picture = Image.fromarray(textured(10 * label + 5 * (split == "val") + i))
                picture.save(folder / "photos" / split / f"class{label}" / f"{i}.jpg", quality=95)
    network.save(folder / "net.keras")
    asked = {"data": str(folder / "photos"), "out": folder / "export"}

    export.export_model(folder / "net.keras", **asked)
    shutil.copytree(folder / "export", folder / "before")
    entries = export.export_model(folder / "net.keras", features=True, **asked)
    assert set(entries) == set(NAMES)
    assert all(entry["passed"] for entry in entries.values()), entries
    return folder


@pytest.fixture(scope="module")
def keras_form(made):
    return vggkeras.load(made / "net.keras").features_form()


@pytest.fixture(scope="module")
def loaded(made):
    return {name: vggkeras.load(made / "export" / name) for name in NAMES}


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "export", tmp_path / "export"))


@pytest.fixture
def alone(made, tmp_path):
    """Copies a file into an empty folder."""

    def copy(name: str) -> Path:
        folder = tmp_path / f"alone-{name}"
        folder.mkdir()
        source = made / "export" / name
        return Path((shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name))

    return copy


def shown(size, count=3) -> np.ndarray:
    return np.random.default_rng(sum(size)).integers(0, 256, (count, *size, 3), dtype=np.uint8)


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


# What proves them.


def test_the_certificate_says_what_features_have(made):
    certificate = json.loads((made / "export" / "certificate.json").read_text())
    for name in NAMES:
        entry = certificate[name]
        assert entry["passed"]
        assert entry["sha256"] == files.sha256(made / "export" / name)
        assert (entry["features"], entry["output"]["name"], entry["output"]["shape"]) == (
            UNITS,
            "features",
            ["batch", UNITS],
        )
        assert entry["max_rel_error"] <= entry["tolerance"] == 1e-5
        assert 1 - 1e-9 < entry["smallest_cosine"] <= 1
        assert entry["images"] == 10 + 8 * len(samples.MARGINS)
        assert entry["sizes"] == [
            [64, 96],
            *([64 + down, 96 + right] for down, right in samples.MARGINS),
        ]
        assert entry["milliseconds"] > 0
        for of_classes in (
            "top1_agreement",
            "top1_agreement_interval",
            "accuracy_artifact",
            "accuracy_interval",
            "mcnemar_p",
        ):
            assert entry[of_classes] is None
    assert (
        certificate["model.onnx"]["features"]
        is certificate["model.onnx"]["smallest_cosine"]
        is None
    )


def test_the_others_are_left_as_they_were_and_leave_these(made, copied):
    names = {path.name for path in (made / "export").iterdir()}
    before = {path.name for path in (made / "before").iterdir()}
    assert names - before == {*NAMES, "golden.features.npz"}
    certificate = files.read_certificate(made / "export")
    assert {name: certificate[name] for name in PLAIN} == files.read_certificate(made / "before")
    for name in before - {"certificate.json"}:
        assert files.sha256(made / "export" / name) == files.sha256(made / "before" / name), name
    golden = (copied / "golden.features.npz").read_bytes()
    export.export_model(made / "net.keras", "onnx", data=str(made / "photos"), out=copied, images=6)
    after = files.read_certificate(copied)
    assert {name: after[name] for name in NAMES} == {name: certificate[name] for name in NAMES}
    assert after["model.onnx"]["images"] == 6
    assert (copied / "golden.features.npz").read_bytes() == golden
    for name in NAMES:
        assert verify.verify(copied / name) == []


def test_golden_answers_of_another_models_dense_files_are_not_kept(made, tmp_path):
    out = tmp_path / "e"
    trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=8).save(tmp_path / "other.keras")
    export.export_model(tmp_path / "other.keras", "onnx", data="random", out=out, dense=True)
    assert golden_module.golden_sizes(out)
    asked = {"data": str(made / "photos"), "out": out, "images": 5}
    export.export_model(made / "net.keras", "onnx", features=True, **asked)
    export.export_model(made / "net.keras", "onnx", **asked)
    assert golden_module.golden_sizes(out) == []


def test_golden_features_lie_beside(made, keras_form):
    images, labels, features, sizes = golden_module.load_golden(made / "export", features=True)
    np.testing.assert_allclose(features, keras_form(images), rtol=0, atol=1e-6 * features.max())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [one.shape[1:3] for one, _ in sizes] == [
        (64 + down, 96 + right) for down, right in samples.MARGINS
    ]
    for one, answers in sizes:
        np.testing.assert_allclose(answers, keras_form(one), rtol=0, atol=1e-6 * features.max())


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_verified_alone(name, alone, command):
    path = alone(name)
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert command(verify.cli, path)[:2] == (0, f"{path}: passed\n")


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_numpy_pillow_and_the_runtime_are_enough(name, alone):
    packages = {
        ".onnx": "onnxruntime,flatbuffers,google,packaging",
        ".tflite": "ai_edge_litert,flatbuffers,ml_dtypes,google,tqdm,typing_extensions,backports",
    }
    path = alone(name)
    child = subprocess.run(
        [sys.executable, "-c", NOTHING_ELSE, packages[path.suffix], "--explain", name],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert f"{name}: passed" in child.stdout
    assert "no difference" in child.stdout


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_no_flipped_byte_escapes(name, made, tmp_path):
    whole = (made / "export" / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 20), *range(0, 24, 3), *range(-700, 0, 70)]:
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        (tmp_path / name).write_bytes(data)
        try:
            assert verify.verify(tmp_path / name), place
        except InputError:  # it does not even look like one of ours
            continue


def test_a_flipped_byte_of_a_saved_model_is_found(alone):
    path = alone("saved_model.features")
    for file in (
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "assets.extra/golden.npz",
    ):
        data = bytearray((path / file).read_bytes())
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)
        assert verify.verify(path), file
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)
        assert verify.verify(path) == []


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_altered_weights_with_new_checksums_are_caught_by_their_answers(name, alone):
    path = alone(name)
    resealed(path, the_mean_of_the_graph)
    (problem,) = verify.verify(path)
    assert re.search(r"values: largest error .* of the largest feature and exceeds 1e-05", problem)


def test_answers_at_other_sizes_are_held_against_the_golden_ones_beside(copied):
    golden = dict(np.load(copied / "golden.features.npz"))
    golden["features_101x173"] = np.roll(golden["features_101x173"], 1, axis=1)
    np.savez(copied / "golden.features.npz", **golden)
    (problem,) = verify.verify(copied / "model.features.onnx")
    assert "at 101 x 173 px: values: largest error" in problem
    assert verify.verify(copied / "model.onnx") == []


def altered(predictor, change):
    return dataclasses.replace(predictor, run=lambda images: change(predictor.run(images)))


def test_parity_finds_every_planted_fault(made, keras_form):
    images = golden_module.load_golden(made / "export", features=True)[0]
    good, plain = (
        vggkeras.load(made / "export" / name) for name in ("model.features.onnx", "model.onnx")
    )
    largest = np.float32(keras_form(images).max())

    def poisoned(features):
        features = features.copy()
        features[0, 0] = np.nan
        return features

    faults = {
        "output name": dataclasses.replace(good, output_name="embedding"),
        "class names": dataclasses.replace(
            good, form=Form.CLASSIFIER, outputs=1, card=ModelCard(("a",))
        ),
        "output: expected float32": altered(good, lambda f: f[:, :-1]),
        "received float64": altered(good, lambda f: f.astype(np.float64)),
        "NaN": altered(good, poisoned),
        "largest error": altered(good, lambda f: f + 2e-5 * largest),
        "largest error ": altered(
            good, lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)
        ),  # normalised
        "largest error  ": altered(good, lambda f: f if len(f) != 7 else f[::-1]),
        "running": altered(good, lambda f: 1 / 0),
        "output name ": plain,
    }
    assert parity.compare(keras_form, good, images).passed
    assert parity.compare(keras_form, altered(good, lambda f: f + 5e-6 * largest), images).passed
    for name, faulty in faults.items():
        result = parity.compare(keras_form, faulty, images)
        assert any(name.strip() in str(failure) for failure in result.failures), (
            name,
            result.failures,
        )
        assert result.top1_agreement is result.top1_agreement_interval is None


def test_cosines_by_hand(made, keras_form):
    images = shown(SMALLEST, 3)
    ours = np.zeros((3, UNITS), np.float32)
    ours[1, :2], ours[2, 0] = (3, 4), 7
    theirs = ours.copy()
    theirs[1, :2] = 4, 3

    def smallest(others) -> float:
        answering = dataclasses.replace(keras_form, run=lambda _: others)
        return parity.compare(
            (keras_form, ours), answering, images, None, parity.Gate(), (3,)
        ).smallest_cosine

    assert smallest(theirs) == pytest.approx(24 / 25)
    assert smallest(2 * ours) == 1  # the direction alone; two rows of zeros are alike
    assert smallest(ours + np.float32(np.eye(3, UNITS))) == 0  # one row of zeros is like nothing
    assert smallest(ours * np.float32(np.nan)) == 0


def test_explain_names_the_stage(alone, monkeypatch):
    path = alone("model.features.onnx")
    stages = stages_module.stages(path)
    assert [stage.name for stage in stages[-3:]] == ["fc1", "fc2", "features"]
    assert all(stage.passed for stage in stages)

    def fc2(graph, weights):
        weights["fc2.bias"] += np.arange(UNITS, dtype=np.float32)

    resealed(path, lambda p: edit_onnx(p, fc2))
    assert [stage.name for stage in stages_module.stages(path) if not stage.passed] == [
        "fc2",
        "features",
    ]
    path = alone("model.features.tflite")
    golden = artifact.read(path).golden
    resealed(path, lambda p: None)
    spoilt = dataclasses.replace(golden, probabilities=golden.probabilities * np.float32(1.01))
    monkeypatch.setattr(stages_module, "golden_of", lambda _: (artifact.read(path), spoilt))
    *_, last = stages_module.stages(path)
    assert (last.name, last.passed) == ("features", False)
    assert last.error == pytest.approx(0.01 / 1.01, rel=1e-3)  # of the largest feature


def test_ones_own_preprocessing_is_judged(made, tmp_path, command):
    path = made / "export" / "model.features.tflite"
    right = artifact.read(path).golden.images[0]
    np.save(tmp_path / "mine.npy", right)
    assert command(verify.cli, "--inputs", tmp_path / "mine.npy", path)[0] == 0
    np.save(tmp_path / "mine.npy", right[..., ::-1])
    code, out, _ = command(verify.cli, "--inputs", tmp_path / "mine.npy", path)
    assert code == 1
    off, fixed = map(
        float,
        re.search(
            r"BGR.*off by ([\de.-]+); with this undone, answers are off by ([\de.-]+)\)", out
        ).groups(),
    )
    assert off > 1e-3 > fixed


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
    predictor = vggkeras.load(made / "before" / "model.onnx")
    predictor = dataclasses.replace(
        predictor, card=dataclasses.replace(predictor.card, precision="int8")
    )  # the description is read once, and shared
    with pytest.raises(InputError, match="--features --format onnx --precision int8 --model RUN"):
        predictor.features_form()
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


def test_features_that_are_all_zero_prove_nothing(tmp_path):
    model = trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=8)
    kernel, bias = model.get_layer("fc2").get_weights()
    model.get_layer("fc2").set_weights([0 * kernel, -np.abs(bias) - 1])
    model.save(tmp_path / "dead.keras")
    with pytest.raises(InputError, match="fc2 gives zeros alone for all 64 images"):
        export.export_model(tmp_path / "dead.keras", "onnx", out=tmp_path / "out", features=True)
    assert not (tmp_path / "out").exists()


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


def test_a_file_that_fails_is_rejected(tmp_path, made, monkeypatch, command):
    write = to_onnx.write

    def faulty(graph, *arguments):
        layer = graph.get_layer("fc2")
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel, bias + 0.5])
        write(graph, *arguments)

    monkeypatch.setattr(to_onnx, "write", faulty)
    asked = (
        "--features",
        "--format",
        "onnx",
        "--model",
        made / "net.keras",
        "--data",
        made / "photos",
    )
    code, out, _ = command(export_cli, *asked, "--out", tmp_path / "e")
    assert code == 1
    assert "NOT proven" in out
    assert "of the largest feature and exceeds 1e-05" in out
    left = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert left == ["certificate.json", "golden.features.npz", "model.features.onnx.rejected"]


@pytest.mark.slow
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
            "10",
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
    features = golden_module.load_golden(tmp_path / "export", features=True)[2]
    assert np.ptp(features, axis=0).max() > 1e-3 * features.max()  # other images, other features
    shutil.rmtree(tmp_path / "export")  # half a gigabyte a file


def test_the_readmes_lines_give_the_features_without_vggkeras(made, tmp_path):
    """A stranger's script, over two scales with mirrors, beside `vggkeras.features`."""
    blocks = re.findall(
        r"^```python\n# (features_\w+\.py)\n(.*?)^```$",
        README.read_text("utf-8"),
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
