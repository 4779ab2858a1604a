"""Which network a file is of, and what is said of one that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import narrow_keras_twin, ours, save_legacy, write

import vggkeras
from vggkeras.errors import InputError
from vggkeras.weights import identify, load


def test_a_file_without_top_gives_its_convolutions():
    save_legacy(narrow_keras_twin(top=False), Path("net.h5"))
    source = identify.open_source("keras:net.h5")
    assert (source.fc_units, source.classes, source.input_shape) == (None, None, (224, 224, 3))
    model = ours()
    before = model.get_layer("fc1").get_weights()[0]
    copied = load.init_from(model, source, ["a"] * 10)
    fresh = [name for name, origin in copied.items() if origin is None]
    assert fresh == ["fc1", "fc2", "predictions"]
    assert load.explain(copied, source, model) == [
        "fc1, fc2, predictions start anew: keras:net.h5 has no FC layers"
    ]
    with pytest.raises(InputError, match=r"has no fc1, fc2, predictions: pass head=False"):
        vggkeras.load_weights(model, source)
    assert len(vggkeras.load_weights(model, source, head=False)) == 13
    np.testing.assert_array_equal(model.get_layer("fc1").get_weights()[0], before)
    with pytest.raises(InputError, match="classifies nothing"):
        vggkeras.pretrained(source)


def test_our_own_weights_file_is_not_taken_for_one_of_keras_applications():
    ours().save_weights("net.weights.h5")
    with pytest.raises(InputError, match="network of vggkeras, which prepares images otherwise"):
        identify.open_source("keras:net.weights.h5")


def test_another_kind_of_keras_model_is_refused():
    narrow_keras_twin().save("net.keras")
    with pytest.raises(InputError, match=r"no network of vggkeras.* are given as keras:FILE"):
        identify.open_source("net.keras")


def test_another_network_is_refused_by_name(state):
    del state["features.3.bias"], state["classifier.6.weight"]
    state |= {"layer1.0.conv1.weight": np.zeros((2, 2), np.float32)}
    message = (
        r"nearest is VGG11, .* 2 missing, first 'features.3.bias', 'classifier.6.weight'; "
        r"1 unexpected, first 'layer1.0.conv1"
    )
    with pytest.raises(InputError, match=message):
        identify.open_source(write("net.safetensors", state))
    spec = write("other.safetensors", {"stem.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match=r"nearest is VGG11, .* 16 missing.* 1 unexpected"):
        identify.open_source(spec)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("features.6.weight", (32, 16, 5, 5), [32, 16, 3, 3]),
        ("features.0.weight", (8, 1, 3, 3), [8, 3, 3, 3]),
        ("features.3.bias", (1,), [16]),
        ("classifier.3.weight", (24, 25), [24, 24]),
        ("classifier.0.weight", (24, 250), [24, 64]),
    ],
)
def test_a_wrong_shape_is_named(state, name, shape, expected):
    state[name] = np.zeros(shape, np.float32)
    with pytest.raises(InputError) as error:
        identify.open_source(write("net.safetensors", state))
    assert f"{name} " in str(error.value)
    assert f"has shape {list(shape)}; expected {expected}" in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("caffe:net.pth", "Unknown weights 'caffe:net.pth': expected a run's folder"),
        ("keras:", "names no file"),
        ("keras:none.h5", "there is no file none.h5"),
        ("timm:none.safetensors", "there is no file none.safetensors"),
        ("kerashub:none", "there is no file none"),
        ("kerashub:.", "expected a preset's folder"),
        ("none.keras", "expected a run's folder"),
    ],
)
def test_what_is_not_there_is_said(spec, message):
    with pytest.raises(InputError, match=message):
        identify.open_source(spec)
