"""Two models of any make on the same images: planted differences are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from helpers import write_photos
from keras import layers, ops
from onnx import numpy_helper

import vggkeras
from export import comparison
from vggkeras import models
from vggkeras.card import ModelCard

pytestmark = pytest.mark.integration

SIDE = 48
MEAN = np.array([123.68, 116.779, 103.939], np.float32)  # of ImageNet, RGB
CENTER = np.array([0.485, 0.456, 0.406], np.float32) * 255
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32) * 255


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with train/ and val/, two classes, ten photographs of 112 x 104 px each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            write_photos(folder / split / name, 10, 100 * label, ".png")
            for path in (folder / split / name).iterdir():
                Image.open(path).resize((104, 112), Image.Resampling.BICUBIC).save(path)
    return folder


def smooth_images(count: int = 16, side: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3))
    return ops.convert_to_numpy(ops.image.resize(coarse.astype(np.float32), (side, side)))


def following_the_image(network: keras.Model) -> keras.Model:
    """Give an untrained network the statistics of images, so that its answers follow them."""
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # one step takes over the statistics of the batch
    network(smooth_images(), training=True)
    return network


def tiny(
    activation: str | None = "softmax", size: tuple[int, int] = (SIDE, 40), classes: int = 10
) -> keras.Model:
    """A network with the layer names of keras.applications' VGG16."""
    keras.utils.set_random_seed(3)
    image = x = keras.Input((*size, 3))
    for block in (1, 2):
        name = f"block{block}_conv1"
        x = layers.Conv2D(6, 3, padding="same", activation="relu", name=name)(x)
        x = layers.BatchNormalization(name=f"block{block}_bn")(x)
        x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(8, activation="relu", name="fc1")(x)
    kernel = keras.initializers.RandomNormal(0, 0.01)
    x = layers.Dense(classes, activation, name="predictions", kernel_initializer=kernel)(x)
    return keras.Model(image, x, name="vgg16")


@pytest.fixture(scope="module")
def mobilenets(tmp_path_factory) -> Path:
    """A folder with MobileNet.keras and MobileNetV2.keras of keras.applications."""
    folder = tmp_path_factory.mktemp("mobilenets")
    for make, alpha in (
        (keras.applications.MobileNet, 0.25),
        (keras.applications.MobileNetV2, 0.35),
    ):
        keras.utils.set_random_seed(0)
        network = make(alpha=alpha, weights=None, input_shape=(SIDE, SIDE, 3), classes=5)
        following_the_image(network)
        last = network.layers[-1] if make is keras.applications.MobileNetV2 else None
        last = last or network.get_layer("conv_preds")
        last.kernel.assign(0.1 * last.kernel)  # so that no answer is certain
        network.save(folder / f"{make.__name__}.keras")
    return folder


def export_alone(
    network: keras.Model,
    path: Path,
    before: Callable = lambda x: x,
    shape: tuple[int, ...] = (SIDE, SIDE, 3),
    dtype: str = "float32",
) -> Path:
    """Export a network with something done before it, by Keras alone."""
    image = keras.Input(shape, dtype=dtype)
    # Keras' Resizing calls what follows it as in training, unless told otherwise.
    wrapper = keras.Model(image, network(before(image), training=False))
    wrapper(np.zeros((1, *shape), dtype))  # Keras exports what has been called
    kind = {".onnx": "onnx", ".tflite": "litert"}.get(path.suffix, "tf_saved_model")
    wrapper.export(path, format=kind, verbose=False)
    return path


# What a file does to the images that it is given, and what is said of it.
DIFFERENCES: dict[str, tuple[Callable, tuple[int, ...], str]] = {
    "BGR": (lambda x: x[..., ::-1], (SIDE, SIDE, 3), "x.onnx expects channels in BGR"),
    "0-1": (lambda x: x * 255, (SIDE, SIDE, 3), "x.onnx expects pixels 0-1, unlike"),
    "-1-1": (lambda x: (x + 1) * 127.5, (SIDE, SIDE, 3), "x.onnx expects pixels -1-1, unlike"),
    "caffe": (
        lambda x: (x + MEAN[::-1])[..., ::-1],
        (SIDE, SIDE, 3),
        "x.onnx expects Keras' caffe mode, BGR and the ImageNet mean subtracted",
    ),
    "torch": (
        lambda x: x * DEVIATION + CENTER,
        (SIDE, SIDE, 3),
        "x.onnx expects pixels normalized by ImageNet's mean and deviation",
    ),
    "channels first": (
        lambda x: ops.transpose(x, (0, 2, 3, 1)),
        (3, SIDE, SIDE),
        "x.onnx expects channels first, [N, C, H, W]",
    ),
    "height and width": (
        lambda x: ops.transpose(x, (0, 2, 1, 3)),
        (SIDE, SIDE, 3),
        "x.onnx expects height and width swapped",
    ),
    "nearest": (
        lambda x: layers.Resizing(SIDE, SIDE, interpolation="nearest")(x),
        (2 * SIDE, 2 * SIDE, 3),
        "x.onnx expects images of 96 x 96 px, which it rescales by nearest",
    ),
}


def check_named(difference: str, reference: Path, photos: Path, folder: Path) -> None:
    before, shape, message = DIFFERENCES[difference]
    network = keras.saving.load_model(reference)
    path = export_alone(network, folder / "x.onnx", before, shape)
    found = comparison.compare(path, reference, str(photos))
    assert not found.passed
    assert found.verdict().startswith(f"they differ: {message}"), found.verdict()
    assert found.diagnosis is not None
    assert found.diagnosis.after < 2e-5
    if difference != "channels first":  # which is refused by its shape
        assert found.diagnosis.before > 100 * found.diagnosis.after


OTHERS = ("0-1", "-1-1", "torch")  # as "caffe" is, by numbers


@pytest.mark.parametrize(
    "difference",
    [pytest.param(d, marks=[pytest.mark.full] if d in OTHERS else []) for d in DIFFERENCES],
)
def test_a_planted_difference_of_preprocessing_is_named(difference, photos, tmp_path):
    tiny(size=(SIDE, SIDE), classes=5).save(tmp_path / "tiny.keras")
    check_named(difference, tmp_path / "tiny.keras", photos, tmp_path)


@pytest.mark.full  # tiny networks show them too
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_it_is_named_of_a_network_of_keras_applications(difference, mobilenets, photos, tmp_path):
    check_named(difference, mobilenets / "MobileNetV2.keras", photos, tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with a tiny network in every format, exported by Keras alone."""
    folder = tmp_path_factory.mktemp("small")
    network = tiny()
    network.save(folder / "tiny.keras")
    for name in ("tiny.onnx", "tiny.tflite", "saved"):
        export_alone(network, folder / name, shape=(SIDE, 40, 3))
    return folder


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.tflite", "saved"])
def test_files_of_keras_alone_agree_in_every_format(name, small, photos, command):
    code, out, err = command(
        comparison.cli, small / name, "--reference", small / "tiny.keras", "--data", photos
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("the same: largest error")
    assert "20 images of" in out


@pytest.mark.parametrize("pair", [("tiny.tflite", "tiny.onnx"), ("tiny.onnx", "saved")])
def test_no_side_need_be_keras(pair, small, photos):
    found = comparison.compare(small / pair[0], small / pair[1], str(photos))
    assert found.passed, found.verdict()
    assert found.max_abs_error <= 1e-5
    assert found.agreeing == found.images == 20


def test_what_the_reference_alone_expects_is_said_of_the_reference(small, photos, tmp_path):
    """A file that prepares bytes itself: so changes of scale are tried on the reference alone."""
    network = keras.saving.load_model(small / "tiny.keras")
    path = export_alone(
        network,
        tmp_path / "bytes.onnx",
        lambda x: ops.cast(x, "float32")[..., ::-1] / 127.5 - 1,
        (SIDE, 40, 3),
        "uint8",
    )
    found = comparison.compare(path, small / "tiny.keras", str(photos))
    assert found.verdict().startswith(
        "they differ: tiny.keras expects channels in BGR and pixels -1-1, unlike bytes.onnx"
    ), found.verdict()


def test_sides_swapped_in_the_shape_itself_are_named(small, photos, tmp_path):
    network = keras.saving.load_model(small / "tiny.keras")
    swap = lambda x: ops.transpose(x, (0, 2, 1, 3))  # noqa: E731
    path = export_alone(network, tmp_path / "x.onnx", swap, (40, SIDE, 3))
    found = comparison.compare(path, small / "tiny.keras", str(photos))
    assert "x.onnx expects height and width swapped" in found.verdict()
    assert found.max_abs_error < 1e-5


def test_scores_are_held_against_probabilities_by_a_soft_max(small, photos, tmp_path):
    scores = tiny(None)
    scores.set_weights(keras.saving.load_model(small / "tiny.keras").get_weights())
    path = export_alone(scores, tmp_path / "scores.onnx", shape=(SIDE, 40, 3))
    found = comparison.compare(path, small / "tiny.keras", str(photos))
    assert found.passed, found.verdict()
    assert found.kinds == ("probabilities", "scores")
    assert "soft-max was applied to the scores of scores.onnx" in found.verdict()
    both = comparison.compare(path, path, str(photos))
    assert both.kinds == ("scores", "scores")
    assert both.passed


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((n, "tiny.onnx") for n in ("block1_conv1", "block2_conv1", "fc1", "predictions")),
        ("fc1", "tiny.keras"),
    ],
)
def test_the_first_layer_that_differs_is_named(layer, name, small, photos, tmp_path):
    """Batch normalization may be fused in the file, and is a layer in the reference."""
    network = keras.saving.load_model(small / "tiny.keras")
    kernel = network.get_layer(layer).kernel
    kernel.assign(ops.flip(kernel, axis=-1))
    network.save(tmp_path / "changed.keras")
    found = comparison.compare(small / name, tmp_path / "changed.keras", str(photos))
    assert not found.passed
    assert found.diagnosis is None
    assert found.first_layer.split()[0] == layer, found.verdict()
    assert f"the first layer that differs: {layer} (" in found.verdict()


def test_the_first_layer_is_named_between_a_tflite_and_an_onnx_file(small, photos, tmp_path):
    graph = onnx.load(small / "tiny.onnx")
    (kernel,) = (one for one in graph.graph.initializer if list(one.dims) == [6, 6, 3, 3])
    changed = numpy_helper.to_array(kernel)[::-1]
    kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), kernel.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    found = comparison.compare(tmp_path / "changed.onnx", small / "tiny.tflite", str(photos))
    assert found.first_layer.startswith("block2_"), found.verdict()


@pytest.mark.slow
def test_a_changed_layer_of_a_deep_network_with_fused_layers_is_named(mobilenets, photos, tmp_path):
    network = keras.saving.load_model(mobilenets / "MobileNet.keras")
    path = export_alone(network, tmp_path / "x.onnx")
    kernel = network.get_layer("conv_pw_6").kernel
    kernel.assign(ops.flip(kernel, axis=-1))
    network.save(tmp_path / "changed.keras")
    found = comparison.compare(path, tmp_path / "changed.keras", str(photos))
    # In the file one operator computes these, and its tensor is not named after a layer.
    assert found.first_layer.startswith("conv_pw_6_relu, or conv_pw_6, conv_pw_6_bn before it"), (
        found.verdict()
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with digits.keras of vggkeras, and its ONNX files by vggkeras and by Keras alone."""
    from export import export_model

    folder = tmp_path_factory.mktemp("digits")
    keras.utils.set_random_seed(5)
    network = vggkeras.build(
        "A",
        (32, 32, 3),
        classes=10,
        width=0.05,
        fc_units=16,
        batch_norm=True,
        mean_rgb=(90, 80, 70),
    )
    card = ModelCard(tuple(map(str, range(10))), data="digits", scale=32)
    models.save_model(network, folder / "digits.keras", card)
    entries = export_model(folder / "digits.keras", format="onnx", out=folder, images=20)
    assert entries["model.onnx"]["passed"]
    export_alone(network, folder / "alone.onnx", shape=(32, 32, 3))
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "alone.onnx"])
def test_a_model_of_vggkeras_agrees_with_its_files_on_its_own_data(name, digits, command):
    code, out, err = command(comparison.cli, digits / name, "--reference", digits / "digits.keras")
    assert (code, err) == (0, "")
    assert "256 images of digits/validation" in out
    assert "accuracy" in out
    assert "McNemar" in out


def test_a_changed_layer_of_a_model_of_vggkeras_is_named(digits, tmp_path):
    network, card = models.load_model(digits / "digits.keras")
    kernel = network.get_layer("block2_conv1").kernel
    kernel.assign(ops.flip(kernel, axis=-1))
    models.save_model(network, tmp_path / "changed.keras", card)
    found = comparison.compare(digits / "model.onnx", tmp_path / "changed.keras")
    assert found.first_layer.split()[0] == "block2_conv1", found.verdict()


def test_other_classes_are_a_difference_and_no_labels_fit_them(digits, tmp_path):
    network, card = models.load_model(digits / "digits.keras")
    models.save_model(network, tmp_path / "x.keras", replace(card, class_names=tuple("abcdefghij")))
    found = comparison.compare(tmp_path / "x.keras", digits / "digits.keras", images=20)
    assert [*map(str, found.failures)] == ["class names: 'a' where the reference has '0'"]
    assert found.correct is None
    assert found.max_abs_error == 0


def test_another_number_of_classes_cannot_be_compared(digits, small, tmp_path):
    other = comparison.compare(small / "tiny.onnx", digits / "digits.keras", "random", images=8)
    assert not other.passed  # another size, and so another network
    five = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(5)])
    five.save(tmp_path / "five.keras")
    found = comparison.compare(tmp_path / "five.keras", digits / "digits.keras", "random", 8)
    assert "output: 5 answers an image against 10" in found.verdict()


def test_random_images_are_weak_evidence(small):
    found = comparison.compare(small / "tiny.onnx", small / "tiny.keras")
    assert found.passed
    assert "random images: weak evidence" in found.verdict()


def test_answers_that_hardly_depend_on_the_image_are_weak_evidence(photos, tmp_path):
    scores = layers.Dense(3, "softmax", kernel_initializer="zeros")
    constant = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), scores])
    constant.save(tmp_path / "constant.keras")
    found = comparison.compare(
        tmp_path / "constant.keras", tmp_path / "constant.keras", str(photos)
    )
    assert "answers hardly depend on the image" in found.verdict()


def test_bad_options_are_bad_input(small, command):
    both = (small / "tiny.onnx", "--reference", small / "tiny.onnx")
    for options, message in (
        (("--images", "-1"), "images must be 1 or more"),
        (("--data", "nowhere"), "Unknown data 'nowhere'"),
        (("--datum", "digits"), "datum"),
    ):
        code, _, err = command(comparison.cli, *both, *options)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_no_model_is_bad_input_on_either_side(order, small, tmp_path, command):
    one, other = (tmp_path / "missing.onnx", small / "tiny.onnx")[::order]
    code, _, err = command(comparison.cli, one, "--reference", other)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "No model at" in err
