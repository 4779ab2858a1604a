"""Writing other libraries' files: what they do not have is refused, another mean is warned of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import ours

import vggkeras
from vggkeras import models
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.weights import save


@pytest.mark.parametrize(
    ("arch", "options", "destination", "message"),
    [
        ("C", {}, "torchvision:out.safetensors", "configuration C, and torchvision has only VGG11"),
        ("A-LRN", {}, "timm:out.safetensors", "configuration A-LRN"),
        ("A", {}, "keras:out.h5", "configuration A, and keras has only VGG16, VGG19"),
        ("D", {"batch_norm": True}, "keras:out.h5", "D with batch normalization"),
        ("D", {}, "torchvision:out.h5", "Unknown destination"),
        ("D", {}, "kerashub:out", "Unknown destination"),
        ("D", {}, "out.h5", "Unknown destination"),
    ],
)
def test_what_another_library_does_not_have_is_refused(arch, options, destination, message):
    with pytest.raises(InputError, match=message):
        vggkeras.save_weights(ours(arch, 32, **options), destination)
    assert not list(Path().glob("*out*"))


def test_another_mean_is_warned_of():
    model = ours("A", 32, mean_rgb=(10, 20, 30))
    message = r"its reader must use mean 0\.039216, 0\.078431, 0\.11765 \(RGB\)"
    with pytest.warns(UserWarning, match=message):
        asked = vggkeras.save_weights(model, "torchvision:out.safetensors")
    np.testing.assert_allclose(asked["mean"], [10 / 255, 20 / 255, 30 / 255])


def test_the_lean_save_is_keras_own():
    model = ours("A-LRN", 32, batch_norm=True)
    card = ModelCard(tuple("abcdefghij"))
    save.save_model(model, Path("lean.keras"), card)
    loaded, loaded_card = models.load_model(Path("lean.keras"))
    assert loaded_card == card
    assert json.loads(loaded.to_json()) == json.loads(model.to_json())
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in Path().iterdir()] == ["lean.keras"]
