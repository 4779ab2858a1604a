"""Other libraries' networks: the same scores from their weights, and their weights back."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from networks import (
    assert_same_scores,
    caffe_scores,
    narrow_keras_twin,
    photographs,
    randomized,
    save_legacy,
)
from safetensors.numpy import load_file, save_file

import vggkeras
from vggkeras.weights import identify, layouts

NETS = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
ARCHS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
SMALL = {"width": 0.125, "units": 24, "classes": 10, "grid": 2}


@pytest.fixture(scope="module")
def twins():
    pytest.importorskip("torch", reason="torch is not installed: pip install 'vggkeras[torch]'")
    import twins

    return twins


# ---- torchvision and timm


def test_the_names_are_those_of_torchvision_and_timm(twins):
    for library, network in (("torchvision", twins.Torchvision), ("timm", twins.Timm)):
        for name in NETS:
            depth, _, norm = name.partition("_")
            names = layouts.LAYOUTS[library].tensor_names(ARCHS[depth], bool(norm))
            state = [key for key in network(name, 0.02, 4, 3, 1).state_dict() if "num_" not in key]
            assert [n for own in names.values() for n in own] == state, (library, name)


@pytest.mark.parametrize(
    ("name", "library", "suffix"),
    [
        ("vgg11", "torchvision", "safetensors"),
        ("vgg19_bn", "torchvision", "safetensors"),
        ("vgg13_bn", "timm", "safetensors"),
        ("vgg16", "timm", "pth"),
    ],
)
def test_a_narrow_twin_gives_the_same_scores_and_comes_back(name, library, suffix, twins):
    network = twins.Torchvision if library == "torchvision" else twins.Timm
    compare(twins.randomized(network(name, **SMALL)), name, library, suffix, 64, twins)


FULL = pytest.mark.full  # the other full-size network, and the narrow ones above, go the same way


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11", pytest.param("vgg16_bn", marks=FULL), pytest.param("vgg19", marks=FULL)]
)
def test_a_full_twin_gives_the_same_scores_and_comes_back(name, twins):
    net = twins.randomized(twins.Torchvision(name))
    compare(net, name, "torchvision", "safetensors", 224, twins)


def compare(net, name, library, suffix, side, twins) -> None:
    """A twin's weights in our network, its scores, and its weights back from it."""
    import torch

    before = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    if suffix == "pth":
        torch.save(net.state_dict(), "net.pth")
    else:
        save_file(before, "net.safetensors")
    source = identify.open_source(f"{library}:net.{suffix}")
    assert (source.arch, source.batch_norm) == (ARCHS[name.partition("_")[0]], "_bn" in name)
    assert source.mean_rgb == tuple(255 * mean for mean in twins.MEAN)
    assert sorted(n for names in source.tensors.values() for n in names) == sorted(before)
    model = vggkeras.pretrained(source)
    images = photographs(side)
    assert_same_scores(model, images, twins.logits(net, images))
    asked = vggkeras.save_weights(model, f"{library}:back.{suffix}")
    np.testing.assert_allclose(asked["mean"], twins.MEAN, rtol=1e-12)
    assert (asked["order"], asked["scale"], asked["std"]) == ("RGB", 1 / 255, list(twins.STD))
    if suffix == "pth":
        state = torch.load("back.pth", weights_only=True)
        back = {key: value.numpy() for key, value in state.items()}
    else:
        back = load_file("back.safetensors")
    assert set(back) == {key for key in before if not key.endswith("num_batches_tracked")}
    for key, value in back.items():
        rounding = 1e-6 if key == "features.0.weight" else 0  # it was multiplied and divided
        np.testing.assert_allclose(value, before[key], rtol=rounding, atol=0, err_msg=key)


# ---- keras.applications


def save_as(net: keras.Model, layout: str) -> str:
    if layout == "keras 3":
        net.save_weights("net.weights.h5")
        return "keras:net.weights.h5"
    if layout == "model.keras":
        net.save("net.keras")
        return "keras:net.keras"
    inside = "model_weights" if layout == "model.h5" else ""
    return f"keras:{save_legacy(net, Path('net.h5'), inside)}"


@pytest.mark.parametrize(
    ("arch", "layout"),
    [("D", "legacy"), ("E", "model.h5"), ("E", "keras 3"), ("D", "model.keras")],
)
def test_a_narrow_network_of_keras_gives_the_same_scores(arch, layout):
    net, images = narrow_keras_twin(arch), photographs(64)
    source = identify.open_source(save_as(net, layout))
    assert (source.arch, source.width, source.mean_rgb) == (arch, 0.125, (123.68, 116.779, 103.939))
    assert_same_scores(vggkeras.pretrained(source), images, caffe_scores(net, images))


def test_files_of_keras_3_without_layer_names_are_counted():
    """Earlier versions of Keras 3 did not write them."""
    import h5py

    net = narrow_keras_twin()
    spec = save_as(net, "keras 3")
    with h5py.File("net.weights.h5", "r+") as file:
        groups = []
        file.visititems(lambda _, item: groups.append(item) if "name" in item.attrs else None)
        for group in groups:
            del group.attrs["name"]
    model = vggkeras.pretrained(spec)
    for layer in ("block1_conv2", "block5_conv3", "fc1", "predictions"):
        expected = net.get_layer(layer).get_weights()[0]
        np.testing.assert_array_equal(model.get_layer(layer).get_weights()[0], expected)


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_back_to_keras_bit_for_bit(suffix):
    net = narrow_keras_twin()
    model = vggkeras.pretrained(save_as(net, "keras 3"))
    assert vggkeras.save_weights(model, f"keras:back{suffix}") == {
        "order": "BGR",
        "scale": 1.0,
        "mean": [103.939, 116.779, 123.68],
        "std": [1.0, 1.0, 1.0],
    }
    other = keras.models.clone_model(net)
    other.load_weights(f"back{suffix}")
    for a, b in zip(net.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@FULL
@pytest.mark.parametrize(("name", "arch"), [("VGG16", "D"), ("VGG19", "E")])
def test_the_full_networks_of_keras_give_the_same_scores_and_come_back(name, arch):
    make = getattr(keras.applications, name)
    net, images = randomized(make(weights=None, classifier_activation=None)), photographs(224)
    expected = caffe_scores(net, images)
    save_legacy(net, Path("net.h5"))
    model = vggkeras.pretrained("keras:net.h5")
    assert model.name == f"vgg_{arch.lower()}"
    assert_same_scores(model, images, expected)
    vggkeras.save_weights(model, "keras:back.h5")
    back = make(weights="back.h5")
    for a, b in zip(net.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- KerasHub


@pytest.mark.parametrize(("pooling", "preprocessor"), [("flatten", True), ("avg", False)])
def test_a_preset_of_kerashub_gives_the_same_scores(pooling, preprocessor):
    keras_hub = pytest.importorskip(
        "keras_hub", reason="KerasHub is not installed: pip install 'vggkeras[hub]'"
    )
    grid = 7 if pooling == "avg" else 2
    side = 32 * grid
    backbone = keras_hub.models.VGGBackbone(
        [1, 1, 2, 2, 2], [8, 16, 32, 64, 64], image_shape=(side, side, 3)
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    if preprocessor:
        mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.125])
    converter = keras_hub.layers.VGGImageConverter(
        image_size=(side, side), scale=list(1 / (255 * std)), offset=list(-mean / std)
    )
    prepare = keras_hub.models.VGGImageClassifierPreprocessor(image_converter=converter)
    net = keras_hub.models.VGGImageClassifier(
        backbone, 10, prepare if preprocessor else None, pooling=pooling, pooling_hidden_dim=24
    )
    randomized(net.backbone)
    randomized(net.head, 2)
    net.save_to_preset("preset")
    images = photographs(side)
    expected = np.asarray(keras.Model(net.input, net.output)(np.asarray(converter(images))))
    source = identify.open_source("kerashub:preset")
    np.testing.assert_allclose(source.mean_rgb, 255 * mean)
    assert_same_scores(vggkeras.pretrained(source), images, expected)
    net.backbone.save_to_preset("backbone")
    assert identify.open_source("kerashub:backbone").fc_units is None
