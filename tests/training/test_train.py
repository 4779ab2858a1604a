"""Training: what a run leaves, that it learns, that it repeats, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import history, tiny
from rich.console import Console

import vggkeras
from vggkeras import layers, models
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols, scoring
from vggkeras.recipe import Recipe, scale_range
from vggkeras.runtimes.keras import keras_predictor
from vggkeras.training import callbacks, optimizer, pipeline
from vggkeras.training.pipeline import rescaled_images, training_batches, validation_batches
from vggkeras.training.train import train


def test_a_run_learns_digits_and_leaves_its_files(run, recipe, workplace):
    metadata = json.loads((run.path / "run.json").read_text())
    assert metadata == run.metadata
    assert metadata["metrics"]["val_accuracy"] > 0.6  # chance is 0.1
    assert metadata["class_names"] == [str(i) for i in range(10)]
    assert metadata["arch"] == "A-LRN"
    assert metadata["data"] == "digits"
    assert metadata["recipe"]["weight_decay"] == 5e-4
    rows = history(run.path)
    assert len(rows) == recipe.epochs
    best = min(rows, key=lambda row: (-float(row["val_accuracy"]), float(row["val_cross_entropy"])))
    assert int(best["epoch"]) == metadata["best_epoch"]
    assert float(rows[-1]["cross_entropy"]) < float(rows[0]["cross_entropy"]) < 2.6
    assert list((run.path / "tensorboard" / "train").iterdir())
    assert (workplace / "runs" / "latest").resolve() == run.path.resolve()
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")]


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


def test_model_fit_by_hand_works_on_what_build_gives(photos):
    """Without train(): arrays of uint8 straight into fit, as a notebook would."""
    data = vggkeras.load_data("digits")
    model = vggkeras.build(
        "A", (32, 32, 3), 10, batch_norm=True, width=0.125, fc_units=64, dropout=0.2, seed=0
    )
    x, y = protocols.central_crops(keras_predictor(model, ModelCard(scale=32)), data.split("train"))
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(x, y, batch_size=32, epochs=3, verbose=0).history
    assert history["accuracy"][-1] > 0.5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, photos):
    weights = [
        train(tiny(tmp_path / str(i), data=str(photos), seed=seed)).model.get_weights()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def batches_of(split, recipe, count, rescaled=None, start=0, size=40, **options):
    batches = training_batches(
        split, recipe, size, (size, size), start=start, rescaled=rescaled, **options
    )
    return [
        np.concatenate(parts)
        for parts in zip(*batches.take(count).as_numpy_iterator(), strict=True)
    ]


def test_training_batches_show_every_image_equally_often(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    recipe = tiny(Path("x"), batch_size=6, flip=False)
    seen, labels = batches_of(split, recipe, 8)  # 48 = 3 passes of 16
    assert np.bincount(labels).tolist() == [24, 24]
    windows = {}  # every crop of 40 of an image's 48 rows -> the image
    for index, encoded, _ in split.examples():
        image = decoding.decode(encoded)
        windows |= {image[top : top + 40].tobytes(): index for top in range(9)}
    assert np.bincount([windows[crop.tobytes()] for crop in seen]).tolist() == [3] * 16


def test_training_batches_are_the_same_from_memory_and_entered_anywhere(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    recipe = tiny(Path("x"), batch_size=8, accumulate=2)
    options = {"basis": augment.color_basis(np.diag([4000.0, 2000.0, 1000.0]))}
    images, labels = batches_of(split, recipe, 10, **options)
    assert images.dtype == np.float32
    assert images.shape == (40, 40, 40, 3)  # steps of four
    rescaled = rescaled_images(split, (40, 40), Console())
    for start, kept in ((0, rescaled), (4, None), (17, rescaled), (17, None)):
        part = batches_of(split, recipe, 5, kept, start, **options)
        np.testing.assert_array_equal(part[0], images[start : start + 20])
        np.testing.assert_array_equal(part[1], labels[start : start + 20])


def test_only_what_fits_is_kept_in_memory(photos, monkeypatch):
    split = vggkeras.load_data(str(photos)).split("train")
    assert rescaled_images(split, (40, 41), Console()) is None  # another scale every time
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 16 * 40 * 40 * 3)
    assert rescaled_images(split, (40, 40), Console()) is None


def test_an_epoch_is_one_pass_even_when_the_batch_is_larger(tmp_path, photos, capsys):
    run = train(tiny(tmp_path / "r", data=str(photos), epochs=1, batch_size=1000))
    assert run.metadata["recipe"]["batch_size"] == 16
    assert "there are no more training images" in capsys.readouterr().out


def test_validation_batches_are_the_center_protocols_crops(photos):
    split = vggkeras.load_data(str(photos)).split("validation")
    ours = np.concatenate([x for x, _ in validation_batches(split, 3, 32, 37).as_numpy_iterator()])
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    crops, _ = protocols.central_crops(keras_predictor(model, ModelCard(scale=37)), split)
    np.testing.assert_array_equal(ours, crops)


def test_the_rate_drops_by_ten_on_a_plateau_three_times_then_training_stops(
    tmp_path, photos, capsys
):
    # Nothing can be learnt at this rate, so that validation accuracy never moves.
    changes = {"epochs": 50, "patience": 2, "learning_rate": 1e-9, "batch_norm": False}
    run = train(tiny(tmp_path / "r", data=str(photos), **changes))
    rates = [float(row["learning_rate"]) for row in history(run.path)]
    first = 1e-9 * 4 / 256
    expected = [first] * 3 + [first / 10] * 2 + [first / 100] * 2 + [first / 1000] * 2
    assert rates == pytest.approx(expected, rel=1e-6, abs=0)
    assert run.metadata["best_epoch"] == 1
    assert run.metadata["epochs_trained"] == 9
    told = capsys.readouterr().out
    assert "rate 1e-09 x 4/256 = 1.5625e-11" in told
    assert "of epoch 1 not bettered for 2 epochs: rate drops to 1.6e-12, 1 of 3" in told
    assert "after 3 drops of the rate: training stops, that epoch's model is kept" in told


def test_of_epochs_with_as_many_right_the_surer_is_kept(tmp_path, photos, capsys):
    """Eight validation images: accuracy takes few values, and cross-entropy tells their epochs apart."""
    run = train(tiny(tmp_path / "r", data=str(photos), epochs=8, learning_rate=0.3))
    rows = history(run.path)
    highest = max(float(row["val_accuracy"]) for row in rows)
    alike = [row for row in rows if float(row["val_accuracy"]) == highest]
    surest = min(alike, key=lambda row: float(row["val_cross_entropy"]))
    assert len(alike) > 1
    assert surest is not alike[0]
    assert run.metadata["best_epoch"] == int(surest["epoch"])
    (row,) = scoring.evaluate(
        vggkeras.load(run.path), vggkeras.load_data(str(photos)).split("validation"), ["cat", "dog"]
    )
    assert row.accuracy == pytest.approx(highest)


def test_the_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.batch_size, recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (
        256,
        1e-2,
        0.9,
        5e-4,
    )
    assert (recipe.dropout, recipe.epochs, recipe.init, recipe.first_rate) == (
        0.5,
        74,
        "glorot",
        1e-2,
    )
    assert scale_range(None, 224) == (256, 256)
    assert scale_range("256:512", 224) == (256, 512)
    assert dataclasses.replace(recipe, batch_size=64).first_rate == 2.5e-3


def one_step(photos, out, **changes):
    """The weights after one update with all 16 images, without dropout, batch norm or anything random in the images."""
    fields = {
        "batch_size": 16,
        "epochs": 1,
        "dropout": 0.0,
        "batch_norm": False,
        "flip": False,
        "color": False,
    }
    run = train(tiny(out, data=str(photos), learning_rate=0.5, **{**fields, **changes}))
    return run.model.get_weights()


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, photos):
    whole = one_step(photos, tmp_path / "whole")
    shared = one_step(photos, tmp_path / "shared", accumulate=4)
    start = vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8, seed=0).get_weights()
    moved = max(np.abs(a - b).max() for a, b in zip(whole, start, strict=True))
    assert moved > 1e-3
    assert max(np.abs(a - b).max() for a, b in zip(whole, shared, strict=True)) < 1e-3 * moved


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_keeps_a_float32_model(tmp_path, precision):
    fields = {
        "width": 0.125,
        "fc_units": 64,
        "dropout": 0.2,
        "batch_size": 32,
        "learning_rate": 0.16,
        "epochs": 2,
    }
    recipe = Recipe(
        "A-LRN", "digits", tmp_path / "r", batch_norm=True, precision=precision, **fields
    )
    run = train(recipe)
    assert run.metadata["metrics"]["val_accuracy"] > 0.2  # chance is 0.1
    assert {layer.compute_dtype for layer in run.model.layers} == {"float32"}
    data = vggkeras.load_data("digits")
    (result,) = scoring.evaluate(
        vggkeras.load(run.path), data.split("validation"), data.class_names
    )
    assert result.accuracy == pytest.approx(run.metadata["metrics"]["val_accuracy"], abs=0.02)


def test_computation_is_in_the_precision_asked_for(tmp_path):
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


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_good_state_is_kept(
    tmp_path, photos, monkeypatch
):
    run = train(tiny(tmp_path / "good", data=str(photos), epochs=1))
    explosive = tiny(
        tmp_path / "bad", data=str(photos), epochs=5, batch_norm=False, learning_rate=1e18
    )
    with pytest.raises(
        InputError,
        match=r"step \d of epoch 1, learning rate 1\.56\d+e\+16: start another run with a lower",
    ):
        train(explosive)
    assert not (tmp_path / "bad").exists()  # nothing to keep

    later = []

    def explode(self, batch, logs=None):
        later.append(batch)
        return step(self, batch, {**logs, "loss": float("nan")} if len(later) > 6 else logs)

    step = callbacks.Keeper.on_train_batch_end
    monkeypatch.setattr(callbacks.Keeper, "on_train_batch_end", explode)
    with pytest.raises(
        InputError,
        match=r"step 3 of epoch 2.*--init-from.*kept as last good.*model\.keras of epoch 1",
    ):
        train(dataclasses.replace(explosive, learning_rate=1e-2))
    assert vggkeras.load(tmp_path / "bad").class_names == ["cat", "dog"]
    assert json.loads((tmp_path / "bad" / "run.json").read_text())["status"] == "stopped"
    assert run.metadata["status"] == "done"


def test_small_images_are_enlarged_and_that_is_said_once(tmp_path, photos, capsys):
    train(tiny(tmp_path / "r", data=str(photos), epochs=2, scale="44:60"))
    assert (
        capsys.readouterr().out.count("16 of 16 training images are smaller than the scale, 44 px")
        == 1
    )


def test_an_existing_run_is_refused_not_overwritten(run, recipe):
    before = (run.path / "model.keras").stat().st_mtime_ns
    with pytest.raises(InputError, match="holds a run already"):
        train(recipe)
    assert (run.path / "model.keras").stat().st_mtime_ns == before


def test_a_run_called_latest_is_not_replaced_by_a_link(photos):
    run = train(tiny(Path("runs/latest"), data=str(photos), epochs=1))
    assert not run.path.is_symlink()
    assert (run.path / "model.keras").exists()
    train(tiny(Path("runs/next"), data=str(photos), epochs=1))
    assert (run.path / "model.keras").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_image_is_named_and_nothing_is_left_behind(tmp_path, photos, split):
    path = photos / split / "dog" / "002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"{split}/dog/002\.jpg cannot be read"):
        train(tiny(tmp_path / "out", data=str(photos)))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_skip_unreadable_goes_on_and_says_which(tmp_path, photos, capsys):
    truncated, text = photos / "train" / "dog" / "002.jpg", photos / "val" / "cat" / "000.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    text.write_text("text")
    run = train(tiny(tmp_path / "out", data=str(photos), epochs=1, skip_unreadable=True))
    assert set(run.metadata["skipped"]) == {str(truncated), str(text)}
    assert run.metadata["images"] == {"train": 15, "validation": 7}
    told = capsys.readouterr().out
    assert "skipped 2 unreadable images" in told
    assert str(truncated) in told


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
        train(tiny(tmp_path / "out", data=str(photos), epochs=50))
    assert vggkeras.load(tmp_path / "out").class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    "bad",
    [
        {"arch": "VGG20"},
        {"image_size": 31},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"patience": 0},
        {"dropout": 1.0},
        {"width": 0.0},
        {"fc_units": 0},
        {"seed": -1},
        {"init": "zeros"},
        {"precision": "float16"},
        {"accumulate": 0},
        {"accumulate": 3},
        {"scale": "big"},
        {"scale": "256:"},
        {"scale": "512:256"},
        {"scale": "128", "image_size": 224},
        {"scale": "-3"},
        {"scale": "256:100000"},
    ],
)
def test_a_bad_recipe_says_which_field(bad):
    with pytest.raises(InputError, match="configuration" if "arch" in bad else next(iter(bad))):
        Recipe(**bad)


def test_a_recipe_is_frozen_and_varied_by_replace():
    recipe = Recipe("vgg16")
    assert dataclasses.replace(recipe, width=0.5).arch == "D"
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.width = 2


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "imagenette", "160px-v2")),
    reason="TFDS_DATA_DIR has no imagenette/160px-v2: training on real photographs",
)
def test_real_photographs_are_learnt(tmp_path):
    """Two epochs of the README's run: far above chance, and every format agrees on all validation images."""
    recipe = Recipe(
        "A",
        "tfds:imagenette/160px-v2",
        tmp_path / "r",
        64,
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
