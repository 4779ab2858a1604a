"""Export any Keras classifier by the command, and keras.applications' VGG16 as ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from helpers import write_photos
from keras import layers
from keras_models import classifier, lively, photos, pooled, prepared

import vggkeras
from export import artifact, keras_export, to_saved_model, verify
from export.__main__ import cli as export_cli
from vggkeras.__main__ import cli
from vggkeras.weights import load

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    """keras.applications' VGG16 with five classes, whose biases are not what they start as."""
    keras.utils.set_random_seed(0)
    network = keras.applications.VGG16(weights=None, input_shape=(32, 64, 3), classes=5)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([1.3 * kernel, rng.normal(0, 0.05, bias.shape)])
    return network


def test_vgg16_and_vgg19_of_keras_applications_are_recognized(vgg16):
    options = {"weights": None, "input_shape": (32, 32, 3)}
    assert keras_export.applications_network(vgg16) == "VGG16"
    vgg19 = keras.applications.VGG19(classes=3, classifier_activation=None, **options)
    assert keras_export.applications_network(vgg19) == "VGG19"
    for other in (
        keras.applications.VGG16(include_top=False, **options),
        keras.Model(vgg16.input, layers.Dense(5)(vgg16.get_layer("fc2").output)),
        vggkeras.build("D", (32, 32, 3), 5, width=0.125, fc_units=8),
        classifier(),
        pooled()[0],
    ):
        assert keras_export.applications_network(other) is None


# BGR less a mean, a mean and a scale for each channel, and one of both for all channels.
@pytest.mark.parametrize("pixels", ["caffe", "torch", "-1-1"])
def test_the_lean_network_gives_vgg16s_own_answers(vgg16, pixels):
    network, card = keras_export.lean(vgg16, pixels)
    assert (network.name, card.arch) == ("vgg_d", "D")
    images = photos(6, 32, 64)
    expected = np.asarray(vgg16(prepared(images, pixels)))
    # Smaller pixels than this network was made for give nearly the same answer for every image.
    assert expected.std(axis=0).max() > (1e-6 if pixels in ("0-1", "-1-1", "torch") else 1e-3)
    np.testing.assert_allclose(network(images), expected, atol=1e-5)


def test_the_weights_module_reads_the_same_network(tmp_path):
    network = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=3)
    network.save(tmp_path / "vgg16.keras")
    images = photos(4, 32)
    read = load.pretrained(f"keras:{tmp_path / 'vgg16.keras'}")
    lean, _ = keras_export.lean(network)
    np.testing.assert_allclose(read(images), lean(images), atol=1e-6)


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    """A folder of photographs of five classes."""
    folder = tmp_path_factory.mktemp("five")
    for split in ("train", "val"):
        for label in range(5):
            write_photos(folder / split / f"class{label}", 2, 10 * label + 5 * (split == "val"))
    return folder


@pytest.mark.slow
def test_the_command_exports_proves_and_verifies_any_classifier(five, tmp_path, command):
    network, _ = pooled()
    lively(network, "0-255").save(tmp_path / "gap.keras")
    out = tmp_path / "out"
    arguments = ("--model", tmp_path / "gap.keras", "--data", five, "--out", out)
    code, printed, err = command(export_cli, *arguments)
    assert (code, err) == (0, "")
    assert "gap.keras is not of vggkeras.build(): written by Keras' own exporters" in printed
    certificate = json.loads((out / "certificate.json").read_text())
    assert set(certificate) == {"saved_model", "model.onnx", "model.tflite"}
    for name, entry in certificate.items():
        assert entry["passed"], entry["failures"]
        assert verify.verify(out / name) == []
        predictor = vggkeras.load(out / name)
        assert predictor.class_names == [f"class{label}" for label in range(5)]
        assert artifact.read(out / name).card.pixels == "0-255"
        code, _, err = command(
            cli, "evaluate", "--model", out / name, "--data", five, "--split", "validation"
        )
        assert (code, err) == (0, "")
    code, _, err = command(cli, "predict", five / "val" / "class0", "--model", out / "model.onnx")
    assert (code, err) == (0, "")
    for bad, message in (
        (("--dense",), "has no fully convolutional form: that is made of the layers flatten, fc1"),
        (("--features",), "has no form that gives features"),
        (("--precision", "int8"), "Keras' own exporters write float32: leave out --precision"),
        (("--logits",), "gives probabilities already: expected class scores; leave out --logits"),
        (("--input", "caffes"), "invalid choice 'caffes' for argument '--input'"),
    ):
        code, _, err = command(export_cli, *arguments, *bad)
        assert code == 2
        assert message in " ".join(err.split())
    six = shutil.copytree(five, tmp_path / "six")
    for split in ("train", "val"):
        write_photos(six / split / "class5", 1)
    code, _, err = command(export_cli, *arguments[:2], "--data", six, "--out", out)
    assert code == 2
    assert "5 classes and the data 6" in err


def test_scores_are_proven_with_their_softmax_and_others_are_refused(five, tmp_path, command):
    images = keras.Input((32, 32, 3))
    pooled_images = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(images))
    for name, activation, code, message in (
        ("scores", None, 0, "a soft-max is added"),
        ("sigmoids", "sigmoid", 2, "sigmoids of several labels do not choose one class"),
        ("relus", "relu", 2, "if these are class scores, give --logits"),
    ):
        last = layers.Dense(5, activation, bias_initializer="ones")(pooled_images)
        keras.Model(images, last).save(tmp_path / f"{name}.keras")
        arguments = ("--model", tmp_path / f"{name}.keras", "--data", five, "--format", "onnx")
        exit_code, printed, err = command(export_cli, *arguments, "--out", tmp_path / name)
        assert exit_code == code, (name, err)
        assert message in " ".join((printed + err).split())
        assert (tmp_path / name).exists() == (code == 0)


def test_the_tolerance_of_a_deep_network_follows_from_its_layers(five, tmp_path, command):
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    x = layers.AveragePooling2D(16)(layers.Rescaling(1 / 255)(images))
    for _ in range(20):
        x = layers.Conv2D(8, 1, activation="relu", kernel_initializer="he_normal")(x)
    x = layers.Dense(5, "softmax")(layers.Flatten()(x))
    keras.Model(images, x).save(tmp_path / "deep.keras")
    out = tmp_path / "out"
    arguments = ("--model", tmp_path / "deep.keras", "--data", five, "--format", "onnx")
    code, _, err = command(export_cli, *arguments, "--out", out)
    assert (code, err) == (0, "")
    (entry,) = json.loads((out / "certificate.json").read_text()).values()
    assert entry["tolerance"] == artifact.read(out / "model.onnx").card.tolerance == 21 / 2**20
    assert verify.verify(out / "model.onnx") == []


@pytest.mark.slow
def test_vgg16_of_keras_applications_takes_the_lean_road(vgg16, five, tmp_path, command):
    vgg16.save(tmp_path / "vgg16.keras")
    code, printed, err = command(
        export_cli, "--model", tmp_path / "vgg16.keras", "--data", "random", "--format", "onnx",
        "--images", 8, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "is keras.applications' VGG16, taken to expect images as caffe (--input)" in printed
    tensors = {t.name for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert "block5_conv3.kernel" in tensors
    code, _, err = command(
        export_cli, "--model", tmp_path / "vgg16.keras", "--data", "digits", "--format", "onnx"
    )
    assert code == 2
    assert "classes and the data" in err


def test_a_classifier_behind_a_network_of_ours_is_not_taken_for_one(tmp_path):
    base = vggkeras.build("A", (32, 32, 3), 4, width=0.05, fc_units=8)
    longer = keras.Model(base.input, layers.Dense(3, "softmax")(base.output))
    assert to_saved_model.is_vgg(base)
    assert not to_saved_model.is_vgg(longer)
