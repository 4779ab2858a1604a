"""Weights of other libraries: the same answers, every tensor accounted for, and back again."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import photo
from PIL import Image

import vggkeras
from vggkeras import layers as layers_module
from vggkeras import models, runtimes
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.data import decoding, imagenet, sources
from vggkeras.errors import InputError
from vggkeras.weights import identify, layouts, load, save

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install 'vggkeras[torch]'",
)
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None,
    reason="KerasHub is not installed: pip install 'vggkeras[hub]'",
)
NETS = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
ARCHS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
SMALL = {"width": 0.125, "units": 24, "classes": 10, "grid": 2}


def photographs(side: int, count: int = 2) -> np.ndarray:
    """uint8 [count, side, side, 3]; real ones where TFDS_DATA_DIR has Imagenette."""
    if os.environ.get("TFDS_DATA_DIR"):
        split = sources.load_data("tfds:imagenette/160px-v2").split("validation")
        found = []
        for _, encoded, _ in split.examples():
            image = Image.fromarray(decoding.decode(encoded))
            found.append(np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)))
            if len(found) == count:
                return np.stack(found)
    return np.stack([photo(seed, side, side) for seed in range(count)])


def scores(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Our network's class scores before soft-max, [N, classes]."""
    kernel, bias = model.get_layer("predictions").get_weights()
    hidden = keras.Model(model.input, model.get_layer("fc2_dropout").output)(images)
    return keras.ops.convert_to_numpy(hidden) @ kernel + bias


def assert_same_scores(model: keras.Model, images: np.ndarray, theirs: np.ndarray) -> None:
    """Within 1e-4 of the largest, for scores that differ between images and classes; and the probabilities of them."""
    assert theirs.std(axis=0).max() > 1e-3
    assert theirs.std(axis=1).max() > 1e-2
    np.testing.assert_allclose(
        scores(model, images), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max()
    )
    powers = np.exp(theirs - theirs.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        model.predict(images, verbose=0),
        powers / powers.sum(axis=1, keepdims=True),
        rtol=0,
        atol=1e-4,
    )


def shaken(model: keras.Model, seed: int = 1) -> keras.Model:
    """Weights that keep a signal's size, biases and statistics too."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        new = []
        for weight in layer.weights:
            if len(weight.shape) > 1:
                new.append(rng.normal(0, (2 / np.prod(weight.shape[:-1])) ** 0.5, weight.shape))
            else:
                new.append(
                    rng.uniform(0.5, 1.5, weight.shape)
                    if "bn" in layer.name
                    else rng.normal(0, 0.1, weight.shape)
                )
        if new:
            layer.set_weights(new)
    return model


def ours(
    arch: str = "D", side: int = 64, classes: int = 10, seed: int = 1, **options
) -> keras.Model:
    return shaken(
        vggkeras.build(
            arch, (side, side, 3), classes, **{"width": 0.125, "fc_units": 24, **options}
        ),
        seed,
    )


def safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def write(path: str, tensors: dict[str, np.ndarray]) -> str:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    return f"torchvision:{path}"


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    """VGG-11's tensors as torchvision names them, narrow, for 64 px."""
    rng = np.random.default_rng(0)
    found, channels = {}, 3
    for place, filters in zip(
        (0, 3, 6, 8, 11, 13, 16, 18), (8, 16, 32, 32, 64, 64, 64, 64), strict=True
    ):
        found[f"features.{place}.weight"] = rng.normal(0, 0.2, (filters, channels, 3, 3)).astype(
            np.float32
        )
        found[f"features.{place}.bias"] = rng.normal(0, 0.2, filters).astype(np.float32)
        channels = filters
    for place, (o, i) in ((0, (24, 64 * 4)), (3, (24, 24)), (6, (10, 24))):
        found[f"classifier.{place}.weight"] = rng.normal(0, 0.2, (o, i)).astype(np.float32)
        found[f"classifier.{place}.bias"] = rng.normal(0, 0.2, o).astype(np.float32)
    return found


# ---- torchvision and timm


@needs_torch
@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [(name, kind, "safetensors") for name in NETS for kind in ("torchvision", "timm")]
    + [
        ("vgg16_bn", "torchvision", "pth"),
        ("vgg11", "timm", "pth"),
    ],  # each reads and writes in a process of torch's own
)
def test_a_narrow_twin_gives_the_same_scores_and_comes_back(name, kind, suffix):
    import torch
    import twins

    net = twins.randomised(
        (twins.Torchvision if kind == "torchvision" else twins.Timm)(name, **SMALL)
    )
    compare(net, name, kind, suffix, 64, torch, twins)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_full_twin_gives_the_same_scores_and_comes_back(name):
    import torch
    import twins

    compare(
        twins.randomised(twins.Torchvision(name)),
        name,
        "torchvision",
        "safetensors",
        224,
        torch,
        twins,
    )


def compare(net, name, kind, suffix, side, torch, twins) -> None:
    """A twin's weights in our network, its scores, and its weights back from it."""
    path = Path(f"net.{suffix}")
    before = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    if suffix == "pth":
        torch.save(net.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    source = identify.open_source(f"{kind}:{path}")
    assert (source.arch, source.batch_norm) == (ARCHS[name.partition("_")[0]], "_bn" in name)
    assert source.mean_rgb == tuple(255 * mean for mean in twins.MEAN)
    assert sorted(n for names in source.tensors.values() for n in names) == sorted(before)
    model = vggkeras.pretrained(source)
    images = photographs(side)
    assert_same_scores(model, images, twins.logits(net, images))
    asked = vggkeras.save_weights(model, f"{kind}:back.{suffix}")
    np.testing.assert_allclose(asked["mean"], twins.MEAN, rtol=1e-12)
    assert (asked["order"], asked["scale"], asked["std"]) == ("RGB", 1 / 255, list(twins.STD))
    if suffix == "pth":
        back = {
            key: value.numpy() for key, value in torch.load("back.pth", weights_only=True).items()
        }
    else:
        back = safetensors(Path("back.safetensors"))
    assert set(back) == {key for key in before if not key.endswith("num_batches_tracked")}
    for key, value in back.items():
        if key == "features.0.weight":
            np.testing.assert_allclose(value, before[key], rtol=1e-6, atol=0)
        else:
            np.testing.assert_array_equal(value, before[key], err_msg=key)


@needs_torch
@pytest.mark.parametrize("form", ["legacy", "state_dict", "module"])
def test_the_common_forms_of_a_pth_file(state, form):
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    if form == "legacy":
        torch.save(tensors, "net.pth", _use_new_zipfile_serialization=False)
    elif form == "state_dict":
        torch.save({"state_dict": tensors, "epoch": 3}, "net.pth")
    else:
        torch.save({f"module.{key}": value for key, value in tensors.items()}, "net.pth")
    source = identify.open_source("torchvision:net.pth")
    prefix = "module." if form == "module" else ""
    assert source.tensors["fc2"] == [f"{prefix}classifier.3.weight", f"{prefix}classifier.3.bias"]
    np.testing.assert_array_equal(source.layers["fc2"]()[0], state["classifier.3.weight"].T)


@needs_torch
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    import torch

    torch.save({"features.0.weight": torch.zeros(1), "more": Code()}, "zip.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Code()))
    for name in ("zip", "plain"):
        with pytest.raises(InputError, match="refused and nothing of it was run"):
            identify.open_source(f"torchvision:{name}.pth")
    assert not (tmp_path / "it-ran").exists()
    pickle.loads(Path("plain.pth").read_bytes())
    assert (tmp_path / "it-ran").exists()  # it does run, where it is not refused


def test_without_torch_a_pth_file_says_what_to_install(monkeypatch):
    Path("net.pth").write_bytes(b"any")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"pip install 'vggkeras\[torch\]', or use a \.safetensors"
    ):
        identify.open_source("torchvision:net.pth")
    with pytest.raises(InputError, match="torch, which is not installed"):
        vggkeras.save_weights(ours("A"), "torchvision:out.pth")
    assert not Path("out.pth").exists()


def test_safetensors_are_read_without_torch(state):
    spec = write("net.safetensors", state)
    child = (
        "import sys, numpy as np, vggkeras, vggkeras.weights\n"
        f"m = vggkeras.pretrained({spec!r}); np.save('bias.npy', m.get_layer('fc1').get_weights()[1])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", child], check=True)
    np.testing.assert_array_equal(np.load("bias.npy"), state["classifier.0.bias"])


def test_half_precision_and_batches_of_rows(state, monkeypatch):
    """Read in slices of a few rows: what is not whole in one goes to its place all the same."""
    monkeypatch.setattr(layouts, "SLICE", 500)
    spec = write("net.safetensors", {key: value.astype(np.float16) for key, value in state.items()})
    model = vggkeras.pretrained(spec)
    kernel = state["classifier.0.weight"].astype(np.float16).astype(np.float32)
    expected = (
        kernel.reshape(24, 64, 2, 2).transpose(2, 3, 1, 0).reshape(-1, 24)
    )  # [O, C, H, W] -> [H, W, C, O]
    np.testing.assert_array_equal(model.get_layer("fc1").get_weights()[0], expected)
    vggkeras.save_weights(model, "timm:back.safetensors")
    np.testing.assert_array_equal(
        safetensors(Path("back.safetensors"))["pre_logits.fc1.weight"].reshape(24, -1), kernel
    )


# ---- keras.applications


def keras_twin(name: str, side: int = 224, **options) -> keras.Model:
    return shaken(
        getattr(keras.applications, name)(weights=None, classifier_activation=None, **options)
    )


def narrow_keras_twin(
    arch: str = "D", side: int = 64, classes: int = 10, top: bool = True
) -> keras.Model:
    """keras.applications' network with an eighth of its filters: the same layers of the same names."""
    layers, counts = keras.layers, {"D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}[arch]
    x = images = keras.Input((side, side, 3))
    for block, (count, filters) in enumerate(zip(counts, (8, 16, 32, 64, 64), strict=True), 1):
        for i in range(1, count + 1):
            x = layers.Conv2D(
                filters, 3, padding="same", activation="relu", name=f"block{block}_conv{i}"
            )(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    if top:
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(24, activation="relu", name="fc1")(x)
        x = layers.Dense(24, activation="relu", name="fc2")(x)
        x = layers.Dense(classes, name="predictions")(x)
    return shaken(keras.Model(images, x))


def caffe_scores(net: keras.Model, images: np.ndarray) -> np.ndarray:
    return net.predict(
        keras.applications.vgg16.preprocess_input(images.astype(np.float32)), verbose=0
    )


def save_legacy(net: keras.Model, path: Path, inside: str = "") -> Path:
    """The released files' layout; `inside` a group of it, as a whole model's .h5 has it."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(
            file.create_group(inside) if inside else file, net
        )
    return path


def save_as(net: keras.Model, layout: str) -> str:
    if layout == "keras 3":
        net.save_weights("net.weights.h5")
        return "keras:net.weights.h5"
    if layout == "model.keras":
        net.save("net.keras")
        return "keras:net.keras"
    return (
        f"keras:{save_legacy(net, Path('net.h5'), 'model_weights' if layout == 'model.h5' else '')}"
    )


@pytest.mark.parametrize("layout", ["legacy", "model.h5", "keras 3", "model.keras"])
@pytest.mark.parametrize("arch", ["D", "E"])
def test_a_narrow_network_of_keras_gives_the_same_scores(arch, layout):
    net, images = narrow_keras_twin(arch), photographs(64)
    source = identify.open_source(save_as(net, layout))
    assert (source.arch, source.width, source.mean_rgb) == (arch, 0.125, (123.68, 116.779, 103.939))
    assert_same_scores(vggkeras.pretrained(source), images, caffe_scores(net, images))


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_back_to_keras_bit_for_bit(suffix):
    net = narrow_keras_twin()
    model = vggkeras.pretrained(save_as(net, "keras 3"))
    asked = vggkeras.save_weights(model, f"keras:back{suffix}")
    assert asked == {
        "order": "BGR",
        "scale": 1.0,
        "mean": [103.939, 116.779, 123.68],
        "std": [1.0, 1.0, 1.0],
    }
    other = narrow_keras_twin()
    for weight in other.weights:
        weight.assign(np.zeros(weight.shape))
    other.load_weights(f"back{suffix}")
    for a, b in zip(net.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arch"), [("VGG16", "D"), ("VGG19", "E")])
def test_the_full_networks_of_keras_give_the_same_scores_and_come_back(name, arch):
    net, images = keras_twin(name), photographs(224)
    theirs = caffe_scores(net, images)
    save_legacy(net, Path("net.h5"))
    model = vggkeras.pretrained("keras:net.h5")
    assert model.name == f"vgg_{arch.lower()}"
    assert_same_scores(model, images, theirs)
    vggkeras.save_weights(model, "keras:back.h5")
    back = getattr(keras.applications, name)(weights="back.h5")
    for a, b in zip(net.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_in_keras_cache_is_found_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    net = narrow_keras_twin(classes=1000)
    save_legacy(net, tmp_path / "home" / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels.h5")
    source = identify.open_source("keras:vgg16")
    assert (source.name, source.arch, source.classes) == ("keras:vgg16", "D", 1000)
    assert source.class_names == imagenet.class_names()
    model = vggkeras.build("D", (64, 64, 3), 10, width=0.125, fc_units=24)
    copied = load.init_from(model, Path("keras:vgg16"), [str(i) for i in range(10)])
    assert copied["fc2"] == "keras:vgg16 fc2"
    np.testing.assert_array_equal(
        model.get_layer("fc2").get_weights()[0], net.get_layer("fc2").get_weights()[0]
    )
    assert load.explain(copied, source, model) == [
        "predictions starts anew: 1000 classes there, 10 here"
    ]


def no_network(*_, **__):
    raise socket.gaierror("there is no network in this test")


def test_with_neither_cache_nor_network_the_error_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(
        InputError,
        match=r"download .* and put it at .*home/models/vgg19_weights_tf_dim_ordering_tf_kernels",
    ):
        identify.open_source("keras:vgg19")
    assert not list((tmp_path / "home" / "models").iterdir())


def test_a_file_without_top_gives_its_convolutions():
    net = narrow_keras_twin(top=False)
    source = identify.open_source(save_as(net, "legacy"))
    assert (source.fc_units, source.classes, source.input_shape) == (None, None, (224, 224, 3))
    model = ours()
    copied = load.init_from(model, source, ["a"] * 10)
    assert [name for name, origin in copied.items() if origin is None] == [
        "fc1",
        "fc2",
        "predictions",
    ]
    assert load.explain(copied, source, model) == [
        "fc1, fc2, predictions start anew: keras:net.h5 has no FC layers"
    ]
    before = model.get_layer("fc1").get_weights()[0]
    with pytest.raises(InputError, match=r"has no fc1, fc2, predictions: pass head=False"):
        vggkeras.load_weights(model, source)
    assert len(vggkeras.load_weights(ours(seed=2), source, head=False)) == 13
    np.testing.assert_array_equal(model.get_layer("fc1").get_weights()[0], before)
    with pytest.raises(InputError, match="classifies nothing"):
        vggkeras.pretrained(source)


def test_our_own_weights_file_is_not_taken_for_one_of_keras_applications():
    ours().save_weights("net.weights.h5")
    with pytest.raises(InputError, match="network of vggkeras, whose convention is another"):
        identify.open_source("keras:net.weights.h5")


# ---- KerasHub


@needs_hub
@pytest.mark.parametrize("pooling", ["flatten", "avg"])
@pytest.mark.parametrize("preprocessor", [True, False])
def test_a_preset_of_kerashub_gives_the_same_scores(pooling, preprocessor):
    import keras_hub

    grid = 7 if pooling == "avg" else 2
    backbone = keras_hub.models.VGGBackbone(
        [1, 1, 2, 2, 2], [8, 16, 32, 64, 64], image_shape=(32 * grid, 32 * grid, 3)
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    if preprocessor:
        mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.125])
    converter = keras_hub.layers.VGGImageConverter(
        image_size=(32 * grid, 32 * grid), scale=list(1 / (255 * std)), offset=list(-mean / std)
    )
    net = keras_hub.models.VGGImageClassifier(
        backbone,
        10,
        keras_hub.models.VGGImageClassifierPreprocessor(image_converter=converter)
        if preprocessor
        else None,
        pooling=pooling,
        pooling_hidden_dim=24,
    )
    shaken(net.backbone)
    shaken(net.head, 2)
    net.save_to_preset("preset")
    images = photographs(32 * grid)
    theirs = np.asarray(keras.Model(net.input, net.output)(np.asarray(converter(images))))
    source = identify.open_source("kerashub:preset")
    np.testing.assert_allclose(source.mean_rgb, 255 * mean)
    assert_same_scores(vggkeras.pretrained(source), images, theirs)
    net.backbone.save_to_preset("backbone")
    assert identify.open_source("kerashub:backbone").fc_units is None


# ---- accounting, and what is refused


def test_every_weight_is_filled_and_traced_answers_are_made_anew(state):
    spec = write("net.safetensors", state)
    model = vggkeras.build("A", (64, 64, 3), 10, width=0.125, fc_units=24, mean_rgb=(1, 2, 3))
    images = photographs(64)
    before = model.predict(images, verbose=0)
    origins = vggkeras.load_weights(model, spec)
    assert list(origins) == [layer.name for layer in model.layers if layer.weights]
    assert origins["block3_conv2"] == "torchvision:net.safetensors features.8"
    assert layers_module.mean_rgb(model) == (255 * 0.485, 255 * 0.456, 255 * 0.406)
    after = model.predict(images, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(
        after, vggkeras.pretrained(spec).predict(images, verbose=0), atol=1e-6
    )


def test_head_false_keeps_the_last_layer(state):
    model = ours("A", classes=3)
    before = model.get_layer("predictions").get_weights()[0]
    assert "predictions" not in vggkeras.load_weights(
        model, write("net.safetensors", state), head=False
    )
    np.testing.assert_array_equal(model.get_layer("predictions").get_weights()[0], before)
    np.testing.assert_array_equal(
        model.get_layer("fc2").get_weights()[1], state["classifier.3.bias"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"arch": "A", "classes": 3},
            r"has 10 classes and the model 3: build it with classes=10, or pass head=False",
        ),
        (
            {"arch": "D"},
            r"is vgg_a and the model vgg_d: 5 layers of the model are not in it, first block1_conv2",
        ),
        ({"arch": "A-LRN"}, "local response normalisation"),
        (
            {"arch": "A", "batch_norm": True},
            "8 layers of the model are not in it, first block1_bn1",
        ),
        ({"arch": "A", "side": 96}, r"layer fc1 has shapes \[\(256, 24\), \(24,\)\] there"),
    ],
)
def test_load_weights_names_what_does_not_fit(state, options, message):
    model = ours(**options)
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        vggkeras.load_weights(model, write("net.safetensors", state))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_network_is_refused_by_name(state):
    del state["features.3.bias"], state["classifier.6.weight"]
    state |= {"layer1.0.conv1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(
        InputError,
        match=r"nearest is VGG11, .* 2 missing, first 'features.3.bias', 'classifier.6.weight'; 1 unexpected, first 'layer1.0.conv1",
    ):
        identify.open_source(write("net.safetensors", state))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("features.6.weight", (32, 16, 5, 5), [32, 16, 3, 3]),
        ("features.0.weight", (8, 1, 3, 3), [8, 3, 3, 3]),
        ("classifier.3.weight", (24, 25), [24, 24]),
        ("classifier.0.weight", (24, 250), [24, 64]),
    ],
)
def test_a_wrong_shape_is_named(state, name, shape, expected):
    state[name] = np.zeros(shape, np.float32)
    with pytest.raises(InputError) as said:
        identify.open_source(write("net.safetensors", state))
    assert f"{name} " in str(said.value)
    assert f"has shape {list(shape)}; expected {expected}" in str(said.value)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (kind, kept)
        for kind in ("safetensors", "h5", "weights.h5", "keras")
        for kept in (0, 0.3, 0.99)
    ]
    + [("pth", 0.99)],
)
def test_a_file_that_is_cut_short_is_damaged(state, kind, kept):
    path = Path(f"net.{kind}")
    prefix = {"safetensors": "torchvision:", "pth": "torchvision:", "keras": ""}.get(kind, "keras:")
    if kind == "safetensors":
        write(str(path), state)
    elif kind == "pth":
        torch = pytest.importorskip(
            "torch", reason="torch is not installed: pip install 'vggkeras[torch]'"
        )
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    elif kind == "keras":
        models.save_model(ours(), path, ModelCard())
    else:
        vggkeras.save_weights(ours(), f"keras:{path}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match="damaged"):
        identify.open_source(f"{prefix}{path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("caffe:net.pth", "Unknown weights 'caffe:net.pth': expected a run's folder"),
        ("keras:", "names no file"),
        ("keras:none.h5", "there is no file none.h5"),
        ("timm:none.safetensors", "there is no file none.safetensors"),
        ("kerashub:none", "expected a preset's folder"),
        ("none.keras", "expected a run's folder"),
    ],
)
def test_what_is_not_there_is_said(spec, message):
    with pytest.raises(InputError, match=message):
        identify.open_source(spec)


@pytest.mark.parametrize(
    ("arch", "options", "destination", "message"),
    [
        ("C", {}, "torchvision:out.safetensors", "configuration C, and torchvision has VGG11"),
        ("A-LRN", {}, "timm:out.safetensors", "configuration A-LRN"),
        ("A", {}, "keras:out.h5", "configuration A, and keras.applications has VGG16"),
        ("D", {"batch_norm": True}, "keras:out.h5", "D with batch normalisation"),
        ("D", {}, "torchvision:out.h5", "Unknown destination"),
        ("D", {}, "out.h5", "Unknown destination"),
    ],
)
def test_what_another_library_has_not_is_refused(arch, options, destination, message):
    with pytest.raises(InputError, match=message):
        vggkeras.save_weights(ours(arch, 32, **options), destination)
    assert not list(Path().glob("*out*"))


def test_another_mean_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"its reader must use mean 0\.039216, 0\.078431, 0\.11765 \(RGB\)"
    ):
        asked = vggkeras.save_weights(
            ours("A", mean_rgb=(10, 20, 30)), "torchvision:out.safetensors"
        )
    np.testing.assert_allclose(asked["mean"], [10 / 255, 20 / 255, 30 / 255])


# ---- the command, and ImageNet's names


def test_convert_writes_a_model_that_predict_reads(command, state):
    spec = write("net.safetensors", state)
    code, out, err = command(cli, "convert", spec, "net.keras")
    assert code == 0, err
    assert "block1_conv1" in out
    assert "features.0.weight, features.0.bias" in out
    parameters = sum(value.size for value in state.values())
    assert f"configuration A at 64 px, {parameters:,} parameters, 10 classes" in out
    images = photographs(64)
    expected = vggkeras.pretrained(spec).predict(images, verbose=0)
    clf = vggkeras.load("net.keras")
    np.testing.assert_allclose(clf(images), expected, atol=1e-6)
    assert clf.card.pretrained == spec
    assert clf.card.arch == "A"
    again = identify.open_source("net.keras")  # and on from it
    assert again.card.pretrained == spec
    content = Path("net.keras").read_bytes()
    code, _, err = command(cli, "convert", spec, "net.keras")
    assert (code, Path("net.keras").read_bytes()) == (2, content)
    assert "no model is overwritten" in err
    code, out, err = command(cli, "convert", "net.keras", "torchvision:back.safetensors")
    assert code == 0, err
    back = safetensors(Path("back.safetensors"))
    for key, value in state.items():
        np.testing.assert_allclose(back[key], value, rtol=1e-6 if key == "features.0.weight" else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keras:none.h5", "x.keras"], "there is no file none.h5"),
        (["keras:none.h5", "x.onnx"], "expected FILE.keras"),
        (["keras:none.h5", "caffe:x"], "expected FILE.keras"),
    ],
)
def test_convert_refuses_in_one_line(command, arguments, message):
    code, _, err = command(cli, "convert", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_lean_save_is_keras_own(batch_norm):
    model = ours("A-LRN", batch_norm=batch_norm)
    save.save_model(model, Path("lean.keras"), ModelCard(tuple("abcdefghij")))
    loaded, card = models.load_model(Path("lean.keras"))
    assert card == ModelCard(tuple("abcdefghij"))
    assert json.loads(loaded.to_json()) == json.loads(model.to_json())
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in Path().iterdir()] == ["lean.keras"]


def test_imagenets_names():
    names, wnids = imagenet.class_names(), imagenet.wnids()
    assert len(set(names)) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert (wnids[0], names[0]) == ("n01440764", "tench")
    assert (wnids[-1], names[-1]) == ("n15075141", "toilet tissue")
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    import tensorflow_datasets as tfds

    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert labels.read_text().split() == wnids


def test_an_imagenet_folder_shows_the_papers_errors_beside_ours(command):
    """A thousand class folders of one image; configuration D, dense, Q = 384, S in [256, 512]: the paper's 25.6 / 8.1."""
    image = Path("image.jpg")
    Image.fromarray(photo(0, 32, 32)).save(image)
    for split in ("train", "val"):
        for i, wnid in enumerate(imagenet.wnids()):
            folder = Path("imagenet") / split / wnid
            folder.mkdir(parents=True)
            if split == "train" or i % 100 == 0:
                shutil.copy(image, folder)
    save_legacy(narrow_keras_twin(side=32, classes=1000), Path("net.h5"))
    assert command(cli, "convert", "keras:net.h5", "net.keras")[0] == 0
    clf = runtimes.load("net.keras")
    assert clf.class_names == sources.load_data("imagenet").class_names == imagenet.class_names()
    flags = ["--data", "imagenet", "--protocol", "dense", "--scales", "384", "--json", "found.json"]
    code, out, err = command(cli, "evaluate", "--model", "net.keras", *flags)
    assert code == 0, err
    assert "25.6" in out
    assert "8.1" in out
    assert json.loads(Path("found.json").read_text())
