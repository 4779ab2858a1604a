"""Fine-tuning: frozen layers stay, copied ones have their rate, another size keeps what it can."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers import assert_same_end, cut_at, equal_layers, saved, shaken, tiny

import vggkeras
from vggkeras import layers, models
from vggkeras.errors import InputError
from vggkeras.training.optimizer import compile_model
from vggkeras.training.train import train

pytestmark = pytest.mark.integration

FC = {"fc1", "fc2", "predictions"}


@pytest.fixture
def source(tmp_path):
    """A .keras file of the network that `tiny` trains, of other classes, with its own mean."""
    model = vggkeras.build(
        "A",
        (32, 32, 3),
        3,
        batch_norm=True,
        width=0.05,
        fc_units=8,
        seed=5,
        mean_rgb=(100, 110, 120),
    )
    rng = np.random.default_rng(2)
    for layer in model.layers:  # statistics of its own
        if "_bn" in layer.name:
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return saved(tmp_path / "source.keras", model, ["hen", "owl", "emu"])


def weights_of(model) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def test_frozen_layers_stay_bit_for_bit_and_the_last_one_learns(tmp_path, photos, source, capsys):
    run = train(
        tiny(tmp_path / "run", data=str(photos), epochs=1, init_from=source, freeze="features")
    )
    given, _ = models.load_model(source)
    same = equal_layers(run.model, given)
    assert same == {layer.name for layer in given.layers if layer.weights} - {
        "predictions"
    }  # moving averages too
    out = capsys.readouterr().out
    assert "trained: predictions" in out
    assert run.metadata["recipe"]["freeze"] == "features"
    assert run.metadata["initialised"]["predictions"] is None
    assert layers.mean_rgb(run.model) == (100, 110, 120)  # the source's, not the data's
    assert run.metadata["mean_rgb"] == [100, 110, 120]
    assert "the first layer subtracts the mean RGB of" in out


@pytest.mark.slow
def test_copied_layers_learn_at_their_own_learning_rate():
    """One update of two steps moves the copied layers a tenth of the way, the others the whole."""
    accumulate = 2
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1])
    moved = {}
    for rate in (1.0, 0.1):
        model = vggkeras.build("A", (32, 32, 3), 3, width=0.05, fc_units=8, dropout=0.0, seed=1)
        recipe = tiny(
            "unused",
            batch_size=4 * accumulate,
            accumulate=accumulate,
            copied_rate=rate,
            init_from="x",
            learning_rate=1.0,
        )
        compile_model(model, recipe, [layer.name for layer in model.layers if layer.name not in FC])
        before = weights_of(model)
        for _ in range(accumulate):
            model.train_on_batch(images, labels)
        moved[rate] = {
            name: [b - a for a, b in zip(w, before[name], strict=True)]
            for name, w in weights_of(model).items()
        }
    for name, whole in moved[1.0].items():
        for a, b in zip(whole, moved[0.1][name], strict=True):
            assert np.abs(a).max() > 0
            fraction = 1.0 if name in FC else 0.1
            atol = 1e-3 * fraction * np.abs(a).max()
            np.testing.assert_allclose(b, fraction * a, rtol=1e-2, atol=atol)


@pytest.mark.full
def test_a_frozen_run_with_slower_layers_is_resumed_exactly(tmp_path, photos, source):
    recipe = tiny(
        tmp_path / "whole",
        data=str(photos),
        init_from=source,
        freeze="conv",
        copied_rate=0.5,
        precision="mixed_bfloat16",
    )
    whole = train(recipe)
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(cut, 6)
    resumed = train(cut, resume=True)
    assert_same_end(whole, resumed)
    given, _ = models.load_model(source)
    assert (
        equal_layers(resumed.model, given)
        == {layer.name for layer in given.layers if layer.weights} - FC
    )
    assert (
        json.loads((cut.out / "run.json").read_text())["initialised"]
        == whole.metadata["initialised"]
    )
    with pytest.raises(InputError, match="freeze was 'conv' and is 'none'"):
        train(dataclasses.replace(cut, freeze="none"), resume=True)


@pytest.mark.full
def test_without_freezing_every_layer_learns_also_in_a_run_of_an_earlier_version(
    tmp_path, photos, source
):
    recipe = tiny(tmp_path / "run", data=str(photos), init_from=source)
    cut_at(recipe, 5)
    path = recipe.out / "run.json"
    begun = json.loads(path.read_text())
    del begun["recipe"]["freeze"], begun["recipe"]["copied_rate"]
    path.write_text(json.dumps(begun))
    run = train(recipe, resume=True)
    assert run.metadata["status"] == "done"
    assert equal_layers(run.model, models.load_model(source)[0]) == set()


@pytest.mark.slow
def test_another_image_size_keeps_the_convolutions_and_says_what_becomes_of_fc1(
    tmp_path, photos, source, capsys
):
    recipe = tiny(
        tmp_path / "run", data=str(photos), image_size=64, epochs=1, init_from=source, freeze="conv"
    )
    run = train(recipe)
    given, _ = models.load_model(source)
    assert (
        equal_layers(run.model, given)
        == {layer.name for layer in given.layers if layer.weights} - FC
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "fc1 starts anew" in out
    assert "1 x 1" in out
    assert "2 x 2" in out
    with pytest.raises(
        InputError,
        match=r"--freeze features would freeze fc1, fc2 at random weights.* --freeze conv",
    ):
        train(dataclasses.replace(recipe, out=tmp_path / "other", freeze="features"))
    assert not (tmp_path / "other").exists()


def test_layers_that_a_shallower_network_does_not_give_are_not_frozen(tmp_path, photos, source):
    with pytest.raises(
        InputError,
        match=r"--freeze conv would freeze block1_conv2, .* at random weights.* --freeze none",
    ):
        train(
            dataclasses.replace(
                tiny(tmp_path / "run", data=str(photos), init_from=source, freeze="conv"), arch="D"
            )
        )


def test_shaken_is_what_equal_means():
    """What the tests above compare with: a network equals itself, and no shaken one."""
    model = vggkeras.build("A", (32, 32, 3), 3, width=0.05, fc_units=8)
    names = {layer.name for layer in model.layers if layer.weights}
    assert equal_layers(model, model) == names
    assert (
        equal_layers(vggkeras.build("A", (32, 32, 3), 3, width=0.05, fc_units=8), shaken(model))
        == set()
    )
