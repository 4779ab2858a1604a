"""Which layers `init_from` and `load_weights` fill from where, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers import CLASSES, equal_layers, history, saved, shaken, tiny, write_photos
from networks import ours, photographs, write

import vggkeras
from vggkeras import layers
from vggkeras.errors import InputError
from vggkeras.training.train import train
from vggkeras.weights import identify, load

pytestmark = pytest.mark.integration


def build(arch: str = "A", seed: int = 0, classes: int = 2, side: int = 32, **options):
    return vggkeras.build(
        arch, (side, side, 3), classes, **{"width": 0.05, "fc_units": 8, "seed": seed, **options}
    )


FC = {"fc1", "fc2", "predictions"}
FIRST_FOUR = {
    "A": {"block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2"},
    "A-LRN": {"block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2"},
    "B": {"block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"},
}


@pytest.mark.parametrize(
    ("shallow", "deep", "batch_norm"),
    [("A-LRN", "D", True), ("B", "E", False)],
)
def test_a_deeper_network_takes_the_first_four_convolutions_and_the_fc_layers(
    tmp_path, shallow, deep, batch_norm
):
    source = shaken(build(shallow, batch_norm=batch_norm))
    model, before = build(deep, 1, batch_norm=batch_norm), build(deep, 1, batch_norm=batch_norm)
    copied = load.init_from(model, saved(tmp_path / "a.keras", source), CLASSES)
    expected = FC | FIRST_FOUR[shallow]
    if batch_norm:
        expected |= {name.replace("conv", "bn") for name in FIRST_FOUR[shallow]}
    assert equal_layers(model, source) == expected
    assert {name for name, origin in copied.items() if origin} == expected
    assert list(copied) == [layer.name for layer in model.layers if layer.weights]
    assert equal_layers(model, before) == set(copied) - expected


@pytest.mark.parametrize(("one", "other"), [("C", "C"), ("A", "A-LRN"), ("A-LRN", "A")])
def test_the_same_configuration_takes_all(tmp_path, one, other):
    source, model = shaken(build(one, batch_norm=True)), build(other, 1, batch_norm=True)
    load.init_from(model, saved(tmp_path / "a.keras", source), CLASSES)
    assert equal_layers(model, source) == {layer.name for layer in model.layers if layer.weights}


@pytest.mark.parametrize("names", [["cat", "cow"], ["a", "b", "c"]])
def test_other_classes_take_all_but_the_last_layer(tmp_path, names):
    source, model = shaken(build(classes=len(names))), build(seed=1)
    copied = load.init_from(model, saved(tmp_path / "a.keras", source, names), CLASSES)
    assert equal_layers(model, source) == set(copied) - {"predictions"}
    assert copied["predictions"] is None


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            {"arch": "D"},
            {"arch": "A"},
            r"vgg_d with a layer 'block1_conv2' that vgg_a does not have",
        ),
        (
            {"width": 0.1},
            {},
            r"layer block1_conv1 has shapes \[\(3, 3, 3, 6\), \(6,\)\] there and \[\(3, 3, 3, 3\)",
        ),
        ({"fc_units": 9}, {}, r"layer fc1 has shapes .* --fc-units differ"),
        (
            {"arch": "C"},
            {"arch": "D"},
            r"layer block3_conv3 has shapes \[\(1, 1, 13, 13\).* there and \[\(3, 3, 13, 13\)",
        ),
        ({"batch_norm": True}, {}, "a layer 'block1_bn1' that vgg_a does not have"),
        ({}, {"arch": "D", "batch_norm": True}, "without batch normalization, which vgg_d has"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_copied(tmp_path, source, target, message):
    path = saved(tmp_path / "a.keras", shaken(build(**source)))
    model, before = build(seed=1, **target), build(seed=1, **target)
    with pytest.raises(InputError, match=message):
        load.init_from(model, path, CLASSES)
    assert equal_layers(model, before) == {layer.name for layer in model.layers if layer.weights}


def test_another_image_size_keeps_the_convolutions_and_says_what_happens_to_fc1(tmp_path):
    network = shaken(build(side=64, batch_norm=True))
    source = identify.open_source(saved(tmp_path / "a.keras", network))
    model, before = build(seed=1, batch_norm=True), build(seed=1, batch_norm=True)
    copied = load.init_from(model, source, CLASSES)
    assert equal_layers(model, network) == set(copied) - FC
    assert equal_layers(model, before) == FC
    assert {name for name, origin in copied.items() if origin is None} == FC
    assert load.explain(copied, source, model) == [
        "fc1 starts anew: its kernel covers 2 x 2 x 26 there and 1 x 1 x 26 here; "
        "so do fc2 and predictions, which read it"
    ]


def test_what_was_not_taken_is_explained(tmp_path):
    source = identify.open_source(saved(tmp_path / "a.keras", build("A"), ["a", "b"]))
    model = build("B", 1)
    assert load.explain(load.init_from(model, source, CLASSES), source, model) == [
        "6 layers start anew (block1_conv2, block2_conv2, block4_conv1 …): "
        f"{tmp_path / 'a.keras'} is a shallower network, of which the first 4 convolutions are "
        "taken",
        "predictions starts anew: the 2 classes there have other names, or none",
    ]


def test_no_run_there_is_said(tmp_path):
    with pytest.raises(InputError, match="expected a run's folder with model"):
        load.init_from(build(), tmp_path, CLASSES)


# ---- load_weights


def test_every_weight_is_filled_and_traced_answers_are_made_anew(state):
    spec = write("net.safetensors", state)
    model = vggkeras.build("A", (64, 64, 3), 10, width=0.125, fc_units=24, mean_rgb=(1, 2, 3))
    images = photographs(64)
    before = model.predict(images, verbose=0)
    origins = vggkeras.load_weights(model, spec)
    assert list(origins) == [layer.name for layer in model.layers if layer.weights]
    assert origins["block3_conv2"] == "torchvision:net.safetensors features.8"
    assert layers.mean_rgb(model) == (255 * 0.485, 255 * 0.456, 255 * 0.406)
    after = model.predict(images, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    expected = vggkeras.pretrained(spec).predict(images, verbose=0)
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_head_false_keeps_the_last_layer(state):
    model = ours("A", classes=3)
    before = model.get_layer("predictions").get_weights()[0]
    spec = write("net.safetensors", state)
    assert "predictions" not in vggkeras.load_weights(model, spec, head=False)
    np.testing.assert_array_equal(model.get_layer("predictions").get_weights()[0], before)
    bias = model.get_layer("fc2").get_weights()[1]
    np.testing.assert_array_equal(bias, state["classifier.3.bias"])


def test_a_network_trains_on_from_loaded_weights_and_leaves_the_source_alone(state):
    """The weights' memory is the network's own: training one changes no other."""
    source = identify.open_source(write("net.safetensors", state))
    one, other = vggkeras.pretrained(source), vggkeras.pretrained(source)
    before = other.get_weights()
    one.compile("sgd", "sparse_categorical_crossentropy")
    one.fit(photographs(64), np.array([0, 1]), verbose=0)
    assert not np.array_equal(one.get_weights()[0], before[0])
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"arch": "A", "classes": 3},
            r"has 10 classes and the model 3: build it with classes=10, or pass head=False",
        ),
        (
            {"arch": "D"},
            r"is vgg_a and the model vgg_d: 5 layers of the model are not in it, first block1_conv",
        ),
        ({"arch": "A-LRN"}, "local response normalization"),
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


# ---- training


@pytest.mark.full
def test_staged_training_says_where_layers_came_from(tmp_path, photos, capsys):
    """A, then D from A, then D from D at a larger scale, which begins where the second ended."""
    fields = {"data": str(photos), "batch_norm": False, "dropout": 0.0, "epochs": 1}
    train(tiny(tmp_path / "a", **fields))
    capsys.readouterr()
    run = train(
        dataclasses.replace(tiny(tmp_path / "d", **fields), arch="D", init_from=tmp_path / "a")
    )
    told = capsys.readouterr().out
    assert "vgg_a block3_conv2" in told
    assert "glorot, seed 0" in told
    noted = json.loads((run.path / "run.json").read_text())["initialised"]
    assert noted["block3_conv2"] == "vgg_a block3_conv2"
    assert noted["block3_conv3"] is None
    same = {"arch": "D", "init_from": run.path, "learning_rate": 1e-12, "scale": "40:48"}
    later = train(dataclasses.replace(tiny(tmp_path / "later", **fields), **same))
    for a, b in zip(run.model.get_weights(), later.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(history(later.path)[0]["learning_rate"]) == 1e-12 * 4 / 256


@pytest.mark.slow
def test_other_data_with_other_classes(tmp_path, photos):
    plain = {"epochs": 1, "batch_norm": False}
    source = train(tiny(tmp_path / "a", data=str(photos), **plain))
    for c, name in enumerate(("hen", "owl", "emu")):
        write_photos(tmp_path / "birds" / "train" / name, 4, 10 * c)
        write_photos(tmp_path / "birds" / "val" / name, 2, 10 * c + 5)
    birds = str(tmp_path / "birds")
    run = train(tiny(tmp_path / "b", data=birds, init_from=source.path, **plain))
    assert run.metadata["initialised"]["predictions"] is None
    assert run.model.output_shape == (None, 3)
