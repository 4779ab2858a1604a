"""What a recipe can ask for beyond the paper: each is resumed exactly, and does what it says."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import assert_same_end, cut_at, history, last_checkpoint, tiny, write_photos

import vggkeras
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.training import callbacks, optimizer
from vggkeras.training.pipeline import Crops, training_batches, validation_batches
from vggkeras.training.train import train

pytestmark = pytest.mark.integration

BEYOND = {
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"class_weights": "balanced"},
    "adamw": {"optimizer": "adamw"},
    "cosine": {"schedule": "cosine", "warmup": 1},
    "ema": {"ema": 0.9},
    "mixup": {"mixup": 0.2},
    "randaugment": {"randaugment": True},
    "monitor": {"monitor": "val_cross_entropy", "patience": 1},
    "those of the paper's schedule": {
        "class_weights": "balanced",
        "ema": 0.9,
        "monitor": "val_cross_entropy",
        "patience": 1,
    },
    "all": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup": 1,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "randaugment": True,
        "precision": "mixed_bfloat16",
    },
}


@pytest.fixture(scope="module")
def unequal(tmp_path_factory) -> str:
    """A folder with three times as many training images of one class as of the other."""
    root = tmp_path_factory.mktemp("unequal")
    for c, (name, count) in enumerate({"cat": 9, "dog": 3}.items()):
        write_photos(root / "train" / name, count, 100 * c)
        write_photos(root / "val" / name, 3, 100 * c + 50)
    return str(root)


@pytest.fixture(autouse=True)
def _checkpoints_after_every_step(monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)


FULL = pytest.mark.full  # most of the others are in "all"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("all", marks=pytest.mark.slow),
        *(pytest.param(name, marks=FULL) for name in BEYOND if name != "all"),
    ],
)
def test_a_run_that_is_cut_off_ends_with_the_same_bits(name, tmp_path, unequal, capsys):
    recipe = tiny(tmp_path / "whole", data=unequal, epochs=3, dropout=0.3, **BEYOND[name])
    run = train(recipe)
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(cut, 5)
    resumed = train(cut, resume=True)
    out = capsys.readouterr().out
    assert "resumes after step 2 of epoch 2" in out
    assert "not the paper's: batch normalization, 0.05 of the filters, 8 FC units" in out
    assert_same_end(run, resumed)


ON_JAX = """
import dataclasses, sys
from pathlib import Path
from helpers import assert_same_end, cut_at, tiny, train
from training.test_beyond import BEYOND
from vggkeras.training import callbacks
callbacks.CHECKPOINT_SECONDS = 0.0
out = Path(sys.argv[2])
recipe = tiny(out / "whole", data=sys.argv[1], epochs=3, dropout=0.3, **BEYOND["all"])
run = train(recipe)
cut = dataclasses.replace(recipe, out=out / "cut")
cut_at(cut, 5)
assert_same_end(run, train(cut, resume=True))
assert "jax" in run.metadata["versions"]
"""


@pytest.mark.full  # on TensorFlow above, and on JAX in test_resume.py the paper's recipe
def test_all_of_it_is_resumed_as_exactly_on_jax(tmp_path, unequal):
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "tests")))
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": path}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")  # once, not three times
    subprocess.run([sys.executable, "-c", ON_JAX, unequal, tmp_path], check=True, env=environment)


def test_the_learning_rate_rises_and_falls_along_a_cosine(tmp_path, unequal, capsys):
    cosine = {"epochs": 4, "schedule": "cosine", "warmup": 1, "batch_norm": False}
    recipe = tiny(tmp_path / "run", data=unequal, **cosine)
    run = train(recipe)
    rates = [float(row["learning_rate"]) for row in history(run.path)]
    first = recipe.first_rate  # three steps an epoch; the rates are of their last steps
    along = [(1 + np.cos(np.pi * step / 9)) / 2 for step in (2, 5, 8)]
    assert rates == pytest.approx([first * 2 / 3, *(first * value for value in along)], rel=1e-5)
    assert "learning rate drops" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"begun with 4 epochs, and along a cosine .* received 5"):
        train(dataclasses.replace(recipe, epochs=5), resume=True)


class TrainedWeights(keras.callbacks.Callback):
    """Averages, by hand, the weights after every step."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum, self.average = momentum, None

    def on_train_batch_end(self, batch, logs=None):
        now = [np.array(v) for v in self.model.trainable_variables]
        if self.average is None:
            self.average = now
        pairs = zip(self.average, now, strict=True)
        self.average = [self.momentum * a + (1 - self.momentum) * b for a, b in pairs]


@pytest.mark.slow
def test_the_averaged_weights_are_saved_and_validated_and_others_trained(tmp_path, unequal):
    average = TrainedWeights(0.9)
    changes = {"epochs": 1, "ema": 0.9, "learning_rate": 1.0}
    recipe = tiny(tmp_path / "run", data=unequal, **changes)
    run = train(recipe, callbacks=[average])
    kept = [np.array(v) for v in run.model.trainable_variables]
    for a, b in zip(kept, average.average, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    trained = last_checkpoint(run.path).arrays
    assert not np.array_equal(kept[0], trained[0])
    data = vggkeras.load_data(unequal)
    scored = run.model
    optimizer.compile_model(scored, recipe)
    values = scored.evaluate(
        validation_batches(data.split("val"), 4, 32, 37), verbose=0, return_dict=True
    )
    assert values["cross_entropy"] == pytest.approx(
        run.metadata["metrics"]["val_cross_entropy"], 1e-4
    )


@pytest.mark.slow
def test_the_metrics_are_plain_whatever_the_loss_is(tmp_path, unequal):
    """With the learning rate at nothing, every recipe has the same metrics and its own loss."""
    rows = {}
    plain = {"data": unequal, "epochs": 1, "learning_rate": 1e-30, "dropout": 0.0}
    plain["batch_norm"] = False
    for name in ("paper", "smoothing", "weights"):
        recipe = tiny(tmp_path / name, **plain, **BEYOND.get(name, {}))
        rows[name] = {k: float(v) for k, v in history(train(recipe).path)[0].items()}
    for name in ("accuracy", "cross_entropy", "val_accuracy", "val_cross_entropy"):
        values = [row[name] for row in rows.values()]
        assert values == pytest.approx([values[0]] * 3, abs=2e-6), name
    assert rows["smoothing"]["val_loss"] != pytest.approx(rows["paper"]["val_loss"], abs=1e-4)
    assert rows["weights"]["val_loss"] == pytest.approx(rows["paper"]["val_loss"], abs=2e-6)
    assert rows["weights"]["loss"] != pytest.approx(rows["paper"]["loss"], abs=1e-4)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(3), (50, 1, 9))
    split = Split("made", 60, labels, [""] * 60)
    weights = optimizer.balanced_weights(split, ["a", "b", "c"])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights == pytest.approx(dict(enumerate(expected)))
    with pytest.raises(InputError, match="has none of 'd'"):
        optimizer.balanced_weights(split, ["a", "b", "c", "d"])


@pytest.mark.slow
def test_only_kernels_decay_by_adamw_and_there_is_no_penalty(tmp_path, unequal):
    changes = {"epochs": 1, "optimizer": "adamw", "learning_rate": 1e-9, "weight_decay": 1e9}
    run = train(tiny(tmp_path / "run", data=unequal, batch_size=12, **changes))
    recipe = run.record.card.recipe
    start = vggkeras.build("A", (32, 32, 3), 2, batch_norm=True, width=0.05, fc_units=8, seed=0)
    shrunk = 1 - recipe.first_rate * recipe.weight_decay
    assert 0.9 < shrunk < 0.99
    for before, after in zip(start.trainable_variables, run.model.trainable_variables, strict=True):
        expected = np.array(before) * (shrunk if before.name == "kernel" else 1.0)
        np.testing.assert_allclose(np.array(after), expected, atol=1e-6)
    row = history(run.path)[0]
    assert row["val_loss"] == row["val_cross_entropy"]


@pytest.mark.parametrize("name", ["mixup", pytest.param("randaugment", marks=pytest.mark.slow)])
def test_keras_augmentation_is_a_function_of_seed_and_position(name, unequal):
    split = vggkeras.load_data(unequal).split("train")

    def batches(count: int, start: int = 0, seed: int = 0) -> list:
        recipe = tiny(Path("unused"), data=unequal, seed=seed, **BEYOND[name])
        crops = Crops(32, (37, 37), flip=False)
        data = training_batches(split, recipe, crops, start, classes=2)
        return list(data.take(count).as_numpy_iterator())

    whole = batches(6)
    for (images, labels), (again, _) in zip(whole[2:], batches(4, start=8), strict=True):
        np.testing.assert_array_equal(images, again)
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 255
        assert labels.shape == ((4, 2) if name == "mixup" else (4,))
        if name == "mixup":
            np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert not np.array_equal(whole[0][0], batches(1, seed=1)[0][0])
    means = np.sort(np.concatenate([images.mean(axis=(1, 2, 3)) for images, _ in whole]))
    assert len(np.unique(means)) == 24  # another change every time
