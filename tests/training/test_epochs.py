"""A run whose number of epochs is changed at a resume ends as one of that length would have."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from helpers import assert_same_end, cut_at, history, tiny, write_photos

from vggkeras.errors import InputError
from vggkeras.training import callbacks
from vggkeras.training.train import train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe of eight epochs, and its run: the learning rate drops in it.

    The third drop, which would end it, cannot come after fewer than seven epochs, nor its end
    before the ninth.
    """
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 8), ("val", 4)):
        for c, name in enumerate(("cat", "dog")):
            write_photos(folder / "photos" / split / name, count, 100 * c)
    changes = {"dropout": 0.2, "learning_rate": 1.0, "patience": 2, "epochs": 8}
    changes["monitor"] = "val_cross_entropy"  # which has a best epoch in the middle
    recipe = tiny(folder / "run", data=str(folder / "photos"), **changes)
    return recipe, train(recipe)


@pytest.fixture
def lengthen(tmp_path, whole):
    """Train so many epochs, then resume with eight: lengthen(epochs) -> run."""

    def call(epochs: int):
        recipe = dataclasses.replace(whole[0], out=tmp_path / "run", epochs=epochs)
        assert train(recipe).metadata["status"] == "done"
        return train(dataclasses.replace(recipe, epochs=8), resume=True)

    return call


@pytest.mark.slow
def test_six_epochs_lengthened_to_eight_are_eight(whole, lengthen, capsys):
    run = lengthen(6)
    assert "8 epochs instead of 6, of which 6 are finished" in capsys.readouterr().out
    assert_same_end(whole[1], run)
    assert run.metadata["recipe"]["epochs"] == 8
    assert run.metadata["epochs_changed"] == [{"after_epoch": 6, "before": 6, "now": 8}]
    assert len(history(run.path)) == 8


@pytest.mark.full
def test_the_last_epoch_decides_for_the_epochs_that_are_added(whole, lengthen, capsys):
    """The learning rate drops after the epoch that was the last one."""
    rates = [row["learning_rate"] for row in history(whole[1].path)]
    drops = [epoch for epoch in range(1, 8) if rates[epoch] != rates[epoch - 1]]
    assert drops
    run = lengthen(drops[0])
    assert "learning rate would drop to" in capsys.readouterr().out
    assert_same_end(whole[1], run)


@pytest.mark.slow
def test_a_run_that_the_schedule_ended_says_that_more_epochs_change_nothing(
    tmp_path, photos, capsys
):
    changes = {"patience": 1, "learning_rate": 1e-9, "batch_norm": False}
    recipe = tiny(tmp_path / "run", data=str(photos), epochs=5, **changes)
    run = train(recipe)
    before = history(run.path)
    again = train(dataclasses.replace(recipe, epochs=9), resume=True)
    assert "ended this run after epoch 5" in capsys.readouterr().out
    assert history(again.path) == before
    assert again.metadata["recipe"]["epochs"] == 5
    assert again.metadata["status"] == "done"


@pytest.mark.full
def test_a_run_is_shortened_to_the_epochs_that_are_finished(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    recipe = tiny(tmp_path / "whole", data=str(photos), epochs=4, batch_norm=False)
    whole = train(recipe)
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(cut, 10)  # in the third epoch
    capsys.readouterr()
    short = train(dataclasses.replace(cut, epochs=1), resume=True)
    assert "2 epochs are finished: the run ends with the best of them" in capsys.readouterr().out
    assert short.metadata["status"] == "done"
    assert history(short.path) == history(whole.path)[:2]
    assert short.metadata["epochs_changed"] == [{"after_epoch": 2, "before": 4, "now": 2}]
    again = train(dataclasses.replace(cut, epochs=4), resume=True)  # in the third epoch
    assert "resumes after step 2 of epoch 3" in capsys.readouterr().out
    assert_same_end(whole, again)
    assert len(json.loads((again.path / "run.json").read_text())["epochs_changed"]) == 2


@pytest.mark.slow
def test_a_finished_run_without_a_checkpoint_is_not_begun_anew(tmp_path, photos):
    recipe = tiny(tmp_path / "run", data=str(photos), epochs=1, batch_norm=False)
    model = train(recipe).path / "model.keras"
    before = model.read_bytes()
    shutil.rmtree(tmp_path / "run" / "resume")
    with pytest.raises(InputError, match=r"has no checkpoint in resume/.*--init-from"):
        train(dataclasses.replace(recipe, epochs=2), resume=True)
    assert model.read_bytes() == before
