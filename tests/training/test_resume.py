"""Runs that were cut off, by kill -9 or otherwise, end with the bits they would have ended with."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import (
    assert_same_end,
    cut_at,
    history,
    last_checkpoint,
    on_devices,
    tiny,
    write_photos,
)

from vggkeras.errors import InputError
from vggkeras.training import callbacks, checkpoints
from vggkeras.training.train import train

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))


def check_kills(photos: Path, out: Path, trials: list[str]) -> list[dict]:
    """Run trials in another process, and check that each ended as a run that was not killed."""
    script = Path(__file__).with_name("kill_trials.py")
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": PYTHONPATH}
    process = subprocess.run(
        [sys.executable, script, photos, out, *trials],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = [json.loads(line) for line in process.stdout.splitlines()]
    for result in results:
        assert result["wrong"] == [], result
        assert result["left"] == [], result
    assert len(results) == len(trials)
    return results


@pytest.mark.full  # the other tests of this module cut runs off and damage checkpoints
def test_a_run_killed_while_it_trains_or_saves_ends_as_if_it_had_not_been(tmp_path, photos):
    at_random = f"{random.Random(20).random():.4f}"  # the campaign has more of them
    results = check_kills(photos, tmp_path, ["before:9", "step:7", "after:17", at_random])
    assert all(result["killed"] for result in results[:3])  # others may come after the end
    with open(tmp_path / "whole" / "history.csv") as file:  # there was something to remember
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert len(set(rates)) > 1


@pytest.fixture(scope="module", autouse=True)
def _checkpoints_after_every_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe and its run."""
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 8), ("val", 4)):
        for c, name in enumerate(("cat", "dog")):
            write_photos(folder / "photos" / split / name, count, 100 * c)
    recipe = tiny(
        folder / "whole", data=str(folder / "photos"), epochs=3, dropout=0.3, batch_size=4
    )
    return recipe, train(recipe)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory, whole) -> Path:
    """The same run, cut off after seven steps of twelve."""
    out = tmp_path_factory.mktemp("cut") / "run"
    cut_at(dataclasses.replace(whole[0], out=out), 7)
    return out


@pytest.fixture
def cut(tmp_path, whole, cut_off):
    """The recipe of a copy of it."""
    out = shutil.copytree(cut_off, tmp_path / "run")
    return dataclasses.replace(whole[0], out=out)


class Terminate(keras.callbacks.Callback):
    """Sends this process SIGTERM, in a step of an epoch or at its end."""

    def __init__(self, epoch: int, step: int | None) -> None:
        super().__init__()
        self.epoch, self.step = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch + 1) == (self.epoch, self.step):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch_end(self, epoch, logs=None):
        if (self.now, None) == (self.epoch, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_stops_after_the_step_or_the_epoch_with_a_checkpoint(
    tmp_path, whole, monkeypatch, capsys
):
    recipe, run = whole
    recipe = dataclasses.replace(recipe, out=tmp_path / "run")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 1e9)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, callbacks=[Terminate(1, 2)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((recipe.out / "run.json").read_text())["status"] == "stopped"
    assert "the same command with --resume goes on" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        train(recipe, resume=True, callbacks=[Terminate(2, None)])
    assert "resumes after step 2 of epoch 1" in capsys.readouterr().out
    resumed = train(recipe, resume=True)
    assert "resumes after step 0 of epoch 3" in capsys.readouterr().out
    assert_same_end(run, resumed)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(whole, cut, capsys):
    newest, before = checkpoints.newest_first(cut.out / "resume")
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = train(cut, resume=True)
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out
    assert "the one before is used" in out
    assert "resumes after step 2 of epoch 2" in out
    assert_same_end(whole[1], resumed)
    assert not before.exists()


@pytest.mark.slow
def test_one_changed_byte_is_noticed_and_without_a_whole_checkpoint_nothing_is_begun(cut):
    kept = (cut.out / "run.json").read_bytes()
    for path in checkpoints.newest_first(cut.out / "resume"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"(?s)(is damaged.*){2}no whole checkpoint is left"):
        train(cut, resume=True)
    assert (cut.out / "run.json").read_bytes() == kept


def test_resume_refuses_what_is_not_the_same_run(cut):
    with pytest.raises(InputError, match="holds a run already: go on with it with --resume"):
        train(cut)
    with pytest.raises(
        InputError, match=r"learning_rate was 0\.01 and is 0\.02; seed was 0 and is 1: give that"
    ):
        train(dataclasses.replace(cut, learning_rate=0.02, seed=1), resume=True)
    lost = Path(cut.data) / "train" / "cat" / "000.jpg"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=r"begun with 16 images in split train of .* has 15 now"):
        train(cut, resume=True)
    lost.write_bytes(content)


def test_what_is_left_of_a_run_is_neither_overwritten_nor_taken_up(tmp_path, whole):
    recipe, run = whole
    copy = dataclasses.replace(recipe, out=tmp_path / "copy", seed=3)
    shutil.copytree(run.path, copy.out)
    files = {path: path.read_bytes() for path in copy.out.rglob("*") if path.is_file()}
    (copy.out / "model.keras").unlink()
    with pytest.raises(InputError, match=r"is finished, but its model\.keras is missing"):
        train(dataclasses.replace(copy, seed=recipe.seed), resume=True)
    for damage in ("garbage", "{}"):
        (copy.out / "run.json").write_text(damage)
        for resume in (False, True):
            with pytest.raises(InputError, match=r"run\.json is damaged"):
                train(copy, resume=resume)
    (copy.out / "run.json").unlink()
    with pytest.raises(InputError, match="holds a run already"):
        train(copy)
    with pytest.raises(InputError, match="holds history"):
        train(copy, resume=True)
    left = {path: path.read_bytes() for path in copy.out.rglob("*") if path.is_file()}
    assert left == {p: b for p, b in files.items() if p.name not in ("model.keras", "run.json")}


class Second(keras.callbacks.Callback):
    """Trains into the same folder when the first step has ended, as another process would."""

    def __init__(self, recipe) -> None:
        super().__init__()
        self.recipe, self.refusals = recipe, []

    def on_train_batch_end(self, batch, logs=None):
        if not self.refusals:
            for resume in (False, True):
                with pytest.raises(InputError) as refusal:
                    train(self.recipe, resume=resume)
                self.refusals.append(str(refusal.value))


def test_two_trainings_into_one_folder_are_one_and_a_refusal(cut, whole):
    second = Second(cut)
    assert_same_end(whole[1], train(cut, resume=True, callbacks=[second]))
    expected = f"{cut.out} is being written by process {os.getpid()} on "
    assert [refusal.startswith(expected) for refusal in second.refusals] == [True, True]
    assert not [path for path in cut.out.iterdir() if path.name.startswith(".")]


def test_resume_of_a_finished_run_does_nothing(whole, capsys):
    recipe, run = whole
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    again = train(recipe, resume=True)
    assert again.metadata == run.metadata
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.slow
def test_resume_of_no_run_starts_one_and_only_the_same_seed_gives_the_same_numbers(tmp_path, whole):
    recipe, run = whole
    first = history(run.path)[0]
    for seed in (0, 1):
        again = dataclasses.replace(recipe, out=tmp_path / str(seed), seed=seed, epochs=1)
        assert (history(train(again, resume=True).path)[0] == first) == (seed == recipe.seed)


@pytest.mark.slow
def test_unreadable_images_are_named_and_stay_left_out_after_a_resume(tmp_path, photos, capsys):
    unreadable = {photos / name for name in ("train/dog/002.jpg", "val/cat/001.jpg")}
    for path in unreadable:
        path.write_bytes(path.read_bytes()[:-200])
    text = photos / "train" / "cat" / "001.jpg"
    text.write_text("text")
    plain = {"batch_norm": False, "skip_unreadable": True}
    recipe = tiny(tmp_path / "whole", data=str(photos), **plain)
    run = train(recipe)
    out = capsys.readouterr().out
    assert "skipped 3 unreadable images" in out
    assert str(text) in out
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(cut, 2)
    resumed = train(cut, resume=True)
    assert_same_end(run, resumed)
    assert resumed.metadata["images"] == {"train": 14, "validation": 7}
    assert set(resumed.metadata["skipped"]) == {str(path) for path in {*unreadable, text}}


ON_JAX = """
import dataclasses, sys
from pathlib import Path
from helpers import assert_same_end, cut_at, tiny, train
from vggkeras.training import callbacks
callbacks.CHECKPOINT_SECONDS = 0.0
out = Path(sys.argv[2])
options = {"epochs": 2, "dropout": 0.3, "batch_size": 8, "batch_norm": False}
recipe = tiny(out / "whole", data=sys.argv[1], **options)
run = train(recipe)
cut = dataclasses.replace(recipe, out=out / "cut")
cut_at(cut, 3)
assert_same_end(run, train(cut, resume=True))
assert "jax" in run.metadata["versions"]
"""


@pytest.mark.slow
def test_a_run_on_jax_is_resumed_as_exactly(tmp_path, photos):
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", ON_JAX, photos, tmp_path], check=True, env=environment)


ON_TWO_DEVICES = """
import sys
import tensorflow as tf
from pathlib import Path
from helpers import on_devices
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
on_devices(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.full  # two processes in test_hosts.py
def test_two_devices_train_as_one(tmp_path, photos, capsys):
    # Seven images: a last batch that cannot be divided evenly.
    (photos / "val" / "cat" / "000.jpg").unlink()
    one = on_devices(str(photos), tmp_path / "one")
    command = [sys.executable, "-c", ON_TWO_DEVICES, photos, tmp_path / "two"]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": PYTHONPATH}
    process = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "with 2 devices" in process.stdout
    a, b = last_checkpoint(one.path), last_checkpoint(tmp_path / "two")
    assert a.state.epoch * 4 == 20
    for x, y in zip(a.arrays, b.arrays, strict=True):
        np.testing.assert_allclose(x.astype(float), y, rtol=0, atol=1e-5)
    for row, other in zip(history(one.path), history(tmp_path / "two"), strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in other.items()}, abs=1e-4
        )
