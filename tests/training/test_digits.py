"""The stored network of the tests against one that is trained anew."""

from __future__ import annotations

import json

import keras
import pytest
from data import rebuild
from helpers import history

from vggkeras import models
from vggkeras.training.record import RunRecord

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where runs/latest is made
        return rebuild.train(folder / "runs" / "digits")


def test_a_run_learns_digits_and_leaves_its_files(again, recipe):
    metadata = json.loads((again.path / "run.json").read_text())
    assert metadata == again.metadata
    assert metadata["metrics"]["val_accuracy"] > 0.6  # chance is 0.1
    assert metadata["class_names"] == [str(i) for i in range(10)]
    assert metadata["arch"] == "A-LRN"
    assert metadata["data"] == "digits"
    assert metadata["recipe"]["weight_decay"] == 5e-4
    rows = history(again.path)
    assert len(rows) == recipe.epochs
    best = min(rows, key=lambda row: (-float(row["val_accuracy"]), float(row["val_cross_entropy"])))
    assert int(best["epoch"]) == metadata["best_epoch"]
    assert float(rows[-1]["cross_entropy"]) < float(rows[0]["cross_entropy"]) < 2.6
    assert list((again.path / "tensorboard" / "train").iterdir())
    assert (again.path.parent / "latest").resolve() == again.path.resolve()
    assert not [p for p in again.path.iterdir() if p.name.startswith(".")]


def test_the_stored_network_is_what_its_recipe_gives(again, run):
    stored, card = models.load_model(rebuild.HERE / "digits.keras")
    trained, trained_card = models.load_model(again.path / "model.keras")
    config, anew = (keras.saving.serialize_keras_object(model) for model in (stored, trained))
    assert config["config"]["layers"] == anew["config"]["layers"]
    assert [w.shape for w in stored.weights] == [w.shape for w in trained.weights]
    assert card.class_names == trained_card.class_names
    assert card.mean_rgb == trained_card.mean_rgb
    assert card.images == trained_card.images
    # Another processor rounds otherwise, and six epochs end elsewhere: both have learned, no more.
    for record in (run.record, RunRecord.read(again.path)):
        assert record.metrics["val_accuracy"] > 0.6  # chance is 0.1
