"""A run whose number of epochs is changed at a resume ends as one of that length would have."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from helpers import assert_same_end, cut_at, history, tiny

from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training import callbacks
from vggkeras.training.train import train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe of twelve epochs of digits, and its run: the learning rate drops in it."""
    recipe = Recipe(
        "A",
        "digits",
        tmp_path_factory.mktemp("whole") / "run",
        width=0.05,
        fc_units=16,
        batch_norm=True,
        dropout=0.2,
        batch_size=64,
        learning_rate=0.08,
        patience=1,
        epochs=12,
    )
    return recipe, train(recipe)


@pytest.fixture
def lengthen(tmp_path, whole):
    """Train so many epochs, then resume with twelve: lengthen(epochs) -> run."""

    def call(epochs: int):
        recipe = dataclasses.replace(whole[0], out=tmp_path / "run", epochs=epochs)
        assert train(recipe).metadata["status"] == "done"
        return train(dataclasses.replace(recipe, epochs=12), resume=True)

    return call


def test_eight_epochs_lengthened_to_twelve_are_twelve(whole, lengthen, capsys):
    run = lengthen(8)
    assert "12 epochs instead of 8, of which 8 are finished" in capsys.readouterr().out
    assert_same_end(whole[1], run)
    assert run.metadata["recipe"]["epochs"] == 12
    assert run.metadata["epochs_changed"] == [{"after_epoch": 8, "before": 8, "now": 12}]
    assert len(history(run.path)) == 12


def test_the_last_epoch_decides_for_the_epochs_that_are_added(whole, lengthen, capsys):
    """The learning rate drops after the epoch that was the last one."""
    rates = [row["learning_rate"] for row in history(whole[1].path)]
    drops = [epoch for epoch in range(1, 12) if rates[epoch] != rates[epoch - 1]]
    assert drops
    run = lengthen(drops[0])
    assert "learning rate would drop to" in capsys.readouterr().out
    assert_same_end(whole[1], run)


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


def test_a_run_is_shortened_to_the_epochs_that_are_finished(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    recipe = tiny(tmp_path / "whole", data=str(photos), epochs=4)
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


def test_a_finished_run_without_a_checkpoint_is_not_begun_anew(tmp_path, photos):
    recipe = tiny(tmp_path / "run", data=str(photos), epochs=1)
    model = train(recipe).path / "model.keras"
    before = model.read_bytes()
    shutil.rmtree(tmp_path / "run" / "resume")
    with pytest.raises(InputError, match=r"has no checkpoint in resume/.*--init-from"):
        train(dataclasses.replace(recipe, epochs=2), resume=True)
    assert model.read_bytes() == before
