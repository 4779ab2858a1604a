"""Training: what a run leaves, that it learns, that it repeats, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import vggkeras
from vggkeras import datasets, evaluate, models
from vggkeras.errors import InputError
from vggkeras.train import Recipe, train, training_batches, validation_batches


def tiny(out: Path, **changes) -> Recipe:
    fields = {"width": 0.05, "fc_units": 8, "epochs": 2, "batch_size": 4, "image_size": 32, "batch_norm": True}
    return Recipe("A", out=out, **{**fields, **changes})


def test_a_run_learns_digits_and_leaves_its_files(run, recipe, workplace):
    metadata = json.loads((run.path / "run.json").read_text())
    assert metadata == run.metadata
    assert metadata["metrics"]["val_accuracy"] > 0.6  # chance is 0.1
    assert metadata["class_names"] == [str(i) for i in range(10)]
    assert metadata["arch"] == "A-LRN"
    assert metadata["data"] == "digits"
    assert metadata["recipe"]["weight_decay"] == 5e-4
    with open(run.path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == recipe.epochs
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    assert int(best["epoch"]) == metadata["best_epoch"]
    assert float(rows[-1]["cross_entropy"]) < float(rows[0]["cross_entropy"]) < 2.6
    assert list((run.path / "tensorboard" / "train").iterdir())
    assert (workplace / "runs" / "latest").resolve() == run.path.resolve()
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")]


def test_the_mean_of_the_training_split_is_in_the_model(run):
    mean = run.model.get_layer("mean_rgb").mean
    assert mean == tuple(run.metadata["mean_rgb"])
    assert 70 < mean[0] < 85
    assert mean[0] == pytest.approx(mean[2])


def test_the_model_kept_is_the_best_one_and_scores_what_history_says(run):
    predictor = vggkeras.load(run.path)
    data = vggkeras.load_data("digits")
    result = evaluate.evaluate(predictor, data.split("validation"), data.class_names)
    assert result.images == 360
    assert result.accuracy == pytest.approx(run.metadata["metrics"]["val_accuracy"], abs=1e-6)


def test_model_fit_by_hand_works_on_what_build_gives(photos):
    """Without train(): arrays of uint8 straight into fit, as a notebook would."""
    data = vggkeras.load_data("digits")
    model = vggkeras.build("A", (32, 32, 3), 10, batch_norm=True, width=0.125, fc_units=64, dropout=0.2, seed=0)
    x, y = evaluate.central_crops(vggkeras.runtimes.keras_predictor(model, {"scale": 32}), data.split("train"))
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, batch_size=32, epochs=3, verbose=0).history
    assert history["accuracy"][-1] > 0.5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, photos):
    weights = [
        train(tiny(tmp_path / str(i), data=str(photos), seed=seed)).model.get_weights()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_training_batches_show_every_image_equally_often(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    batches = training_batches(split, tiny(Path("x"), batch_size=6, flip=False), 40, 40).take(8)  # 48 = 3 passes of 16
    seen, labels = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
    assert np.bincount(labels).tolist() == [24, 24]
    windows = {}  # every crop of 40 of an image's 48 rows -> the image
    for index, encoded, _ in split.examples():
        image = datasets.decode(encoded)
        windows |= {image[top : top + 40].tobytes(): index for top in range(9)}
    assert np.bincount([windows[crop.tobytes()] for crop in seen]).tolist() == [3] * 16


def test_an_epoch_is_one_pass_even_when_the_batch_is_larger(tmp_path, photos, capsys):
    run = train(tiny(tmp_path / "r", data=str(photos), epochs=1, batch_size=1000))
    assert run.metadata["recipe"]["batch_size"] == 16
    assert "there are no more training images" in capsys.readouterr().out


def test_validation_batches_are_the_center_protocols_crops(photos):
    split = vggkeras.load_data(str(photos)).split("validation")
    ours = np.concatenate([x for x, _ in validation_batches(split, 3, 32, 37).as_numpy_iterator()])
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    crops, _ = evaluate.central_crops(vggkeras.runtimes.keras_predictor(model, {"scale": 37}), split)
    np.testing.assert_array_equal(ours, crops)


def test_the_rate_drops_by_ten_on_a_plateau_three_times_at_most(tmp_path, photos):
    # Nothing can be learnt at this rate, so that validation accuracy never moves.
    run = train(tiny(tmp_path / "r", data=str(photos), epochs=10, patience=1, learning_rate=1e-9, batch_norm=False))
    with open(run.path / "history.csv") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert sorted(set(rates), reverse=True) == pytest.approx([1e-9, 1e-10, 1e-11, 1e-12], rel=1e-2)
    assert rates == sorted(rates, reverse=True)


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


def test_an_image_that_goes_bad_while_training_is_named_and_the_best_model_kept(tmp_path, photos, monkeypatch):
    """The file is damaged after the first read, at the end of the first epoch."""
    monkeypatch.setattr(importlib.import_module("vggkeras.train"), "CACHE_BYTES", 0)  # read from disk at every pass
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
        "A", "tfds:imagenette/160px-v2", tmp_path / "r", 64, 0.25, 256, batch_norm=True, batch_size=64, epochs=2
    )
    run = train(recipe)
    assert run.metadata["metrics"]["val_accuracy"] > 0.25  # chance is 0.1
    from export import export_model

    entries = export_model(run.path, images=0)
    assert {entry["images"] for entry in entries.values()} == {3925}
    assert all(entry["passed"] and entry["top1_agreement"] == 1 for entry in entries.values())
