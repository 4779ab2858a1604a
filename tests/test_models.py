"""The networks: counts against the paper, the layers against NumPy, every backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vggkeras
from vggkeras import configs, layers, models
from vggkeras.errors import InputError
from vggkeras.weights import identify

PARAMETERS = {  # 224 px, 1000 classes
    "A": 132_863_336,
    "A-LRN": 132_863_336,
    "B": 133_047_848,
    "C": 133_638_952,
    "D": 138_357_544,
    "E": 143_667_240,
}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
TINY = {"width": 0.05, "fc_units": 16}
EVERY_ARCH = [(arch, number % 2 == 0) for number, arch in enumerate(PARAMETERS)]


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_and_weight_layers_are_the_papers(arch):
    plan = list(configs.plan(arch))
    assert sum(layer.parameters for layer in plan) == PARAMETERS[arch]
    assert (
        sum(layer.kind in ("conv", "dense", "predictions") for layer in plan) == WEIGHT_LAYERS[arch]
    )


@pytest.mark.slow
@pytest.mark.parametrize("arch", PARAMETERS)
def test_keras_counts_the_papers_parameters(arch):
    assert vggkeras.build(arch).count_params() == PARAMETERS[arch]


@pytest.mark.parametrize(("arch", "batch_norm"), EVERY_ARCH)
def test_the_plan_is_what_is_built(arch, batch_norm):
    model = vggkeras.build(arch, (40, 72, 1), 7, batch_norm=batch_norm, **TINY)
    plan = list(configs.plan(arch, (40, 72, 1), 7, batch_norm=batch_norm, **TINY))
    assert model.count_params() == sum(layer.parameters for layer in plan)
    for layer in plan:
        name = layer.name.replace("conv", "relu") if batch_norm else layer.name
        assert model.get_layer(name).output.shape[1:] == layer.output_shape


def test_layer_names_are_an_api():
    names = [layer.name for layer in vggkeras.build("A-LRN", (32, 32, 3), 10, **TINY).layers]
    assert [n for n in names if not n.endswith("dropout")] == [
        "images", "mean_rgb", "block1_conv1", "lrn", "block1_pool", "block2_conv1", "block2_pool",
        "block3_conv1", "block3_conv2", "block3_pool",
        "block4_conv1", "block4_conv2", "block4_pool",
        "block5_conv1", "block5_conv2", "block5_pool", "flatten", "fc1", "fc2", "predictions",
    ]  # fmt: skip


def test_aliases_and_case():
    aliases = ("vgg11", "VGG13", "VGG-16", "VGG19", "a-lrn", "A_LRN")
    archs = ["A", "B", "D", "E", "A-LRN", "A-LRN"]
    assert [configs.canonical_arch(alias) for alias in aliases] == archs


@settings(max_examples=12, deadline=None)
@given(
    arch=st.sampled_from(list(PARAMETERS)),
    height=st.integers(32, 80),
    width=st.integers(32, 80),
    channels=st.integers(1, 4),
    classes=st.integers(2, 12),
    batch_norm=st.booleans(),
)
def test_any_shape_gives_probabilities(arch, height, width, channels, classes, batch_norm):
    model = vggkeras.build(
        arch, (height, width, channels), classes, batch_norm=batch_norm, width=0.02, fc_units=4
    )
    p = np.asarray(model(images(2, height, width, channels)))
    assert p.shape == (2, classes)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        {"arch": "F"},
        {"input_shape": (31, 64, 3)},
        {"input_shape": (64, 64)},
        {"classes": 1},
        {"width": 0},
        {"width": float("nan")},
        {"fc_units": 0},
        {"dropout": 1.0},
        {"init": "xavier"},
        {"mean_rgb": (1, 2)},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InputError, match=r"received|Unknown"):
        vggkeras.build(**{"arch": "A", "input_shape": (32, 32, 3), "classes": 10, **TINY, **bad})


def test_mean_rgb_is_subtracted_in_rgb_order_and_travels_in_the_config():
    layer = layers.mean_layer((10, 20, 30))
    assert type(layer) is keras.layers.Rescaling
    x = images(1, 2, 2, 3)
    np.testing.assert_array_equal(np.asarray(layer(x)), x.astype(np.float32) - [10, 20, 30])
    assert keras.layers.Rescaling.from_config(layer.get_config()).offset == [-10, -20, -30]


STRANGER = """
import sys

import keras
import numpy as np

x = np.load("images.npy")
np.save("B.npy", keras.saving.load_model("B.keras").predict(x, verbose=0))
assert "vggkeras" not in sys.modules
import vggkeras  # which has the layer LRN
np.save("A-LRN.npy", keras.saving.load_model("A-LRN.keras").predict(x, verbose=0))
"""


@pytest.mark.slow
@pytest.mark.integration
def test_any_keras_loads_a_saved_network(tmp_path):
    x = images(3, 32, 32, 3)
    np.save(tmp_path / "images.npy", x)
    models = {
        arch: vggkeras.build(arch, (32, 32, 3), 10, mean_rgb=(10, 20, 30), **TINY)
        for arch in ("B", "A-LRN")
    }
    for arch, model in models.items():
        model.save(tmp_path / f"{arch}.keras")
    subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path, check=True)
    for arch, model in models.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{arch}.npy"), model(x), atol=1e-6)


def test_files_of_version_0_1_load_with_their_mean(tmp_path):
    """Their layer mean_rgb was a class of this package, with the mean in its configuration."""
    model = vggkeras.build("A", (32, 32, 3), 10, mean_rgb=(10, 20, 30), **TINY)
    model.save(tmp_path / "new.keras")
    with (
        zipfile.ZipFile(tmp_path / "new.keras") as new,
        zipfile.ZipFile(tmp_path / "old.keras", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                config = json.loads(content)
                (layer,) = (
                    layer for layer in config["config"]["layers"] if layer["name"] == "mean_rgb"
                )
                layer |= {
                    "module": "vggkeras.models",
                    "class_name": "MeanRGB",
                    "registered_name": "vggkeras>MeanRGB",
                }
                del layer["config"]["scale"], layer["config"]["offset"]
                layer["config"]["mean"] = [10.0, 20.0, 30.0]
                content = json.dumps(config).encode()
            old.writestr(name, content)
    loaded, _ = models.load_model(tmp_path / "old.keras")
    assert type(loaded.get_layer("mean_rgb")) is keras.layers.Rescaling
    assert layers.mean_rgb(loaded) == (10, 20, 30)
    np.testing.assert_array_equal(loaded(images(3, 32, 32, 3)), model(images(3, 32, 32, 3)))
    assert identify.open_source(tmp_path / "old.keras").mean_rgb == (10, 20, 30)


def lrn_by_hand(x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - 2) : c + 3]
        y[..., c] = x[..., c] / (2 + 1e-4 * (near**2).sum(axis=-1)) ** 0.75
    return y


@pytest.mark.parametrize("backend", ["tensorflow", "any"])
def test_lrn_is_alexnets(backend, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)  # "any" takes the portable road
    x = np.random.default_rng(0).normal(0, 100, (2, 3, 4, 9)).astype(np.float32)
    layer = vggkeras.LRN()
    np.testing.assert_allclose(np.asarray(layer(x)), lrn_by_hand(x), rtol=1e-5)
    assert vggkeras.LRN.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize(("arch", "batch_norm"), EVERY_ARCH)
def test_to_dense_equals_the_classifier_on_the_training_size(arch, batch_norm):
    model = vggkeras.build(arch, (64, 96, 3), 5, batch_norm=batch_norm, **TINY)
    x = images(3, 64, 96, 3)
    dense = vggkeras.to_dense(model)
    np.testing.assert_allclose(
        np.asarray(dense(x))[:, 0, 0], np.asarray(model(x)), rtol=0, atol=1e-5
    )
    assert dense(images(1, 128, 224, 3)).shape == (1, 3, 5, 5)
    scores = np.asarray(vggkeras.to_dense(model, scores=True)(x))
    np.testing.assert_allclose(
        np.asarray(keras.ops.softmax(scores))[:, 0, 0], np.asarray(model(x)), atol=1e-5
    )


def test_to_dense_at_224_has_a_map_of_a_32nd_less_six():
    dense = vggkeras.to_dense(vggkeras.build("A", (224, 224, 3), 4, width=0.02, fc_units=4))
    assert dense(images(1, 256, 384, 3)).shape == (1, 256 // 32 - 6, 384 // 32 - 6, 4)


def test_to_dense_is_the_fc_layers_at_every_place():
    """Two ways: convolutions, and the classifier's own matrices on every window of the map."""
    model = vggkeras.build("A", (64, 96, 3), 4, **TINY)
    dense = vggkeras.to_dense(model)
    x = images(1, 160, 192, 3)
    features = np.asarray(keras.Model(dense.input, dense.get_layer("block5_pool").output)(x))[0]
    answer = np.asarray(dense(x))[0]
    assert answer.shape == (4, 4, 4)
    for i, j in np.ndindex(4, 4):
        a = features[i : i + 2, j : j + 3].reshape(-1)
        for name in ("fc1", "fc2", "predictions"):
            kernel, bias = model.get_layer(name).get_weights()
            a = a @ kernel + bias
            a = (
                np.maximum(a, 0)
                if name != "predictions"
                else np.exp(a - a.max()) / np.exp(a - a.max()).sum()
            )
        np.testing.assert_allclose(answer[i, j], a, atol=1e-5)


def test_to_dense_refuses_what_is_no_classifier():
    with pytest.raises(InputError, match="to_dense expects"):
        vggkeras.to_dense(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def test_the_penalty_has_caffes_gradient():
    """Caffe: half lambda w squared, so that the gradient is lambda w; biases are free."""
    import tensorflow as tf

    model = vggkeras.build("A", (32, 32, 3), 3, width=0.05, fc_units=8, weight_decay=5e-4)
    with tf.GradientTape() as tape:
        penalty = sum(model.losses)
    for weight, gradient in zip(
        model.trainable_weights,
        tape.gradient(penalty, [w.value for w in model.trainable_weights]),
        strict=True,
    ):
        if "kernel" in weight.path:
            np.testing.assert_allclose(
                gradient.numpy(), 5e-4 * weight.numpy(), rtol=1e-5, atol=1e-12
            )
        else:
            assert gradient is None


def test_one_fit_step_is_momentum_sgd_with_that_penalty():
    """Two independent roads: Keras' fit, and the update written out."""
    import tensorflow as tf

    from vggkeras.training.optimizer import compile_model

    x, y = images(8, 32, 32, 3), np.arange(8) % 3
    model = vggkeras.build("B", (32, 32, 3), 3, dropout=0, seed=3, **TINY)
    before = [w.numpy() for w in model.trainable_weights]
    with tf.GradientTape() as tape:
        p = model(x, training=True)
        loss = -tf.reduce_mean(tf.math.log(tf.gather(p, y, axis=1, batch_dims=1)))
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    compile_model(model, vggkeras.Recipe("B", learning_rate=0.01))
    model.fit(x, y, batch_size=8, verbose=0)
    for weight, old, gradient in zip(model.trainable_weights, before, gradients, strict=True):
        decay = 5e-4 if "kernel" in weight.path else 0
        np.testing.assert_allclose(
            weight.numpy(), old - 0.01 * (gradient + decay * old), rtol=1e-4, atol=1e-6
        )


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    a, b, c = (vggkeras.build("A", (32, 32, 3), 3, seed=s, **TINY).get_weights() for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], c[0])


def test_a_saved_model_needs_nothing_but_keras_and_the_layers(tmp_path):
    model = vggkeras.build("A-LRN", (32, 32, 3), 3, batch_norm=True, **TINY)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    x = images(2, 32, 32, 3)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(again(x)))


JAX = """
import sys, numpy as np, keras, vggkeras.models
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    np.save(path + ".npy", np.asarray(model(x, training=False)))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    before = model.get_weights()
    model.fit(x, np.array([0, 1, 2, 1]), verbose=0)
    assert "tensorflow" not in sys.modules
    assert sum(not np.array_equal(a, b) for a, b in zip(before, model.get_weights())) > 10, path

from vggkeras.recipe import Recipe
from vggkeras.training.optimizer import compile_model
moved = []
for rate in (1.0, 0.1):
    model = vggkeras.build("A", (32, 32, 3), 3, width=0.05, fc_units=8, dropout=0.0, seed=1)
    compile_model(model, Recipe("A", init_from="unused", copied_rate=rate), ["block1_conv1"])
    before = model.get_weights()
    model.train_on_batch(x, np.array([0, 1, 2, 1]))
    moved.append([b - a for a, b in zip(before, model.get_weights())])
np.testing.assert_allclose(moved[1][0], 0.1 * moved[0][0], rtol=1e-2, atol=1e-8)
np.testing.assert_allclose(moved[1][-1], moved[0][-1], rtol=1e-5)
assert np.abs(moved[0][0]).max() > 1e-6 and "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_on_jax_networks_give_the_same_answers_and_train_a_step(tmp_path):
    x = images(4, 32, 32, 3)
    answers, paths = [], []
    for arch in ("A-LRN", "C"):  # with every kind of layer
        model = vggkeras.build(arch, (32, 32, 3), 3, seed=0, **TINY)
        paths.append(str(tmp_path / f"{arch}.keras"))
        model.save(paths[-1])
        answers.append(np.asarray(model(x)))
    child = subprocess.run(
        [sys.executable, "-c", JAX, *paths],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert child.returncode == 0, child.stderr
    for path, answer in zip(paths, answers, strict=True):
        np.testing.assert_allclose(np.load(path + ".npy"), answer, atol=1e-5)
