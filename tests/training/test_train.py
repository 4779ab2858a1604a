"""Training: what a run leaves, that it learns, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from helpers import history, tiny

import vggkeras
from vggkeras import layers, models
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols, scoring
from vggkeras.recipe import Recipe
from vggkeras.runtimes.keras import keras_predictor
from vggkeras.training import optimizer, pipeline
from vggkeras.training.train import train

pytestmark = pytest.mark.integration


def test_the_mean_of_the_training_split_is_in_the_model(run):
    mean = layers.mean_rgb(run.model)
    assert mean == tuple(run.metadata["mean_rgb"])
    assert 70 < mean[0] < 85
    assert mean[0] == pytest.approx(mean[2])


def test_the_model_kept_is_the_best_one_and_scores_what_history_says(run):
    predictor = vggkeras.load(run.path)
    data = vggkeras.load_data("digits")
    (result,) = scoring.evaluate(predictor, data.split("validation"), data.class_names)
    assert result.images == 360
    assert result.accuracy == pytest.approx(run.metadata["metrics"]["val_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_model_fit_by_hand_works_on_what_build_gives():
    """Without train(): arrays of uint8 straight into fit, as a notebook would."""
    data = vggkeras.load_data("digits")
    model = vggkeras.build(
        "A", (32, 32, 3), 10, batch_norm=True, width=0.125, fc_units=64, dropout=0.2, seed=0
    )
    x, y = protocols.central_crops(keras_predictor(model, ModelCard(scale=32)), data.split("train"))
    x, y = x[:720], y[:720]  # half of them
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(
        x,
        y,
        validation_data=(x[:32], y[:32]),
        batch_size=32,
        epochs=3,
        verbose=0,
        callbacks=vggkeras.paper_callbacks(),
    ).history
    assert history["accuracy"][-1] > 0.5


class StopAfter(keras.callbacks.Callback):
    """Asks fit to stop at the end of an epoch."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self.epochs


def test_a_users_callback_ends_a_run_whose_epochs_are_one_pass_each(tmp_path, photos, capsys):
    """With a batch of more images than there are, and images smaller than the scale."""
    changes = {"epochs": 9, "batch_size": 1000, "scale": "44:60", "batch_norm": False}
    recipe = tiny(tmp_path / "r", data=str(photos), **changes)
    run = train(recipe, callbacks=[StopAfter(1)])
    assert run.metadata["recipe"]["batch_size"] == 16
    assert run.metadata["status"] == "done"
    assert run.metadata["epochs_trained"] == len(history(run.path)) == 1
    out = capsys.readouterr().out
    assert "there are no more training images" in out
    assert out.count("16 of 16 training images are smaller than the scale, 44 px") == 1


def test_a_run_stops_after_three_drops_of_the_learning_rate(tmp_path, photos, capsys):
    # Nothing can be learned at this learning rate, so that validation accuracy never moves.
    changes = {"epochs": 50, "patience": 1, "learning_rate": 1e-9, "batch_norm": False}
    run = train(tiny(tmp_path / "r", data=str(photos), **changes))
    first = 1e-9 * 4 / 256
    assert [float(row["learning_rate"]) for row in history(run.path)] == [
        first,
        first,
        first / 10,
        first / 100,
        first / 1000,
    ]
    assert run.metadata["best_epoch"] == 1
    assert run.metadata["epochs_trained"] == 5
    out = capsys.readouterr().out
    assert "learning rate 1e-09 x 4/256 = 1.5625e-11" in out
    assert "of epoch 1 not improved for 1 epochs: learning rate drops to 1.6e-12, 1 of 3" in out
    assert "after 3 drops: training stops, that epoch's model is kept" in out


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.float32)
    labels = np.arange(16) % 2
    weights = {}
    for accumulate in (1, 4):
        model = vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8, dropout=0.0, seed=0)
        start = model.get_weights()
        recipe = tiny(tmp_path, batch_size=16, accumulate=accumulate, learning_rate=0.5)
        optimizer.compile_model(model, recipe)
        for part in np.split(np.arange(16), accumulate):
            model.train_on_batch(images[part], labels[part])
        weights[accumulate] = model.get_weights()
    moved = max(np.abs(a - b).max() for a, b in zip(weights[1], start, strict=True))
    assert moved > 1e-3
    for a, b in zip(weights[1], weights[4], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.full), "mixed_float16"]
)
def test_mixed_precision_trains_and_keeps_a_float32_model(tmp_path, precision):
    recipe = Recipe(
        "A-LRN",
        "digits",
        tmp_path / "r",
        batch_norm=True,
        precision=precision,
        width=0.0625,
        fc_units=64,
        dropout=0.2,
        batch_size=32,
        learning_rate=0.16,
        epochs=1,
    )
    run = train(recipe)
    assert run.metadata["metrics"]["val_accuracy"] > 0.2  # chance is 0.1
    assert {layer.compute_dtype for layer in run.model.layers} == {"float32"}
    data = vggkeras.load_data("digits")
    (result,) = scoring.evaluate(
        vggkeras.load(run.path), data.split("validation"), data.class_names
    )
    assert result.accuracy == pytest.approx(run.metadata["metrics"]["val_accuracy"], abs=0.02)


def test_computation_is_in_the_precision_asked_for():
    model = vggkeras.build(
        "A-LRN", (32, 32, 3), 4, width=0.05, fc_units=4, batch_norm=True, precision="mixed_bfloat16"
    )
    assert {v.dtype for v in model.weights} == {"float32"}
    assert model.output.dtype == "float32"
    assert (
        model.get_layer("block1_conv1").compute_dtype
        == model.get_layer("fc1").compute_dtype
        == "bfloat16"
    )
    optimizer.compile_model(model, Recipe(precision="mixed_float16"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


class Poison(keras.callbacks.Callback):
    """Makes a weight NaN after a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.epoch, self.step = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch + 1) == (self.epoch, self.step):
            # Before a ReLU some processors would make it 0.
            self.model.get_layer("predictions").bias.assign(np.full(2, np.nan))


@pytest.mark.slow
def test_a_diverged_run_stops_and_keeps_its_last_good_state(tmp_path, photos):
    recipe = tiny(tmp_path / "bad", data=str(photos), epochs=5, batch_norm=False)
    with pytest.raises(
        InputError,
        match=r"step \d of epoch 1, learning rate 1\.56\d+e\+16: start another run with a lower",
    ):
        train(dataclasses.replace(recipe, learning_rate=1e18))
    assert not (tmp_path / "bad").exists()  # nothing to keep
    with pytest.raises(
        InputError,
        match=r"step 3 of epoch 2.*--init-from.*kept as last good.*model\.keras of epoch 1",
    ):
        train(recipe, callbacks=[Poison(2, 2)])
    assert vggkeras.load(tmp_path / "bad").class_names == ["cat", "dog"]
    assert json.loads((tmp_path / "bad" / "run.json").read_text())["status"] == "stopped"


def test_an_existing_run_is_refused_not_overwritten(run, recipe):
    before = (run.path / "model.keras").stat().st_mtime_ns
    with pytest.raises(InputError, match="holds a run already"):
        train(recipe)
    assert (run.path / "model.keras").stat().st_mtime_ns == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_image_is_named_and_nothing_is_left_behind(tmp_path, photos, split):
    path = photos / split / "dog" / "002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"{split}/dog/002\.jpg cannot be read"):
        train(tiny(tmp_path / "out", data=str(photos)))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_image_that_goes_bad_while_training_is_named_and_the_best_model_kept(
    tmp_path, photos, monkeypatch
):
    """The file is damaged after the first read, at the end of the first epoch."""
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)  # read from disk at every pass
    victim = photos / "train" / "cat" / "004.jpg"
    save = models.save_model

    def damage(*arguments):
        save(*arguments)
        victim.write_bytes(victim.read_bytes()[:-200])

    monkeypatch.setattr(models, "save_model", damage)
    with pytest.raises(InputError, match=r"cat/004\.jpg cannot be read.*is kept in"):
        train(tiny(tmp_path / "out", data=str(photos), epochs=50, batch_norm=False))
    assert vggkeras.load(tmp_path / "out").class_names == ["cat", "dog"]


@pytest.mark.full  # digits are learnt in test_digits.py
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "imagenette", "160px-v2")),
    reason="TFDS_DATA_DIR has no imagenette/160px-v2: training on real photographs",
)
def test_real_photographs_are_learnt(tmp_path):
    """Two epochs, at 32 px: far above chance, and every format agrees on all images."""
    recipe = Recipe(
        "A",
        "tfds:imagenette/160px-v2",
        tmp_path / "r",
        32,
        0.25,
        256,
        batch_norm=True,
        batch_size=64,
        epochs=2,
    )
    run = train(recipe)
    assert run.metadata["metrics"]["val_accuracy"] > 0.25  # chance is 0.1
    from export import export_model

    entries = export_model(run.path, images=0)
    assert {entry["images"] for entry in entries.values()} == {3925}
    assert all(entry["passed"] and entry["top1_agreement"] == 1 for entry in entries.values())
