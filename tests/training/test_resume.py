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

import numpy as np
import pytest
from helpers import assert_same_end, cut_at, history, on_devices, tiny, write_photos

from vggkeras.errors import InputError
from vggkeras.training import callbacks, checkpoints
from vggkeras.training.train import train

# vggkeras.train is the function
ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))


def start_trials(photos: Path, out: Path, trials: list[str]) -> subprocess.Popen:
    command = [
        sys.executable,
        str(Path(__file__).with_name("kill_trials.py")),
        str(photos),
        str(out),
        *trials,
    ]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": PYTHONPATH}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def results(process: subprocess.Popen) -> list[dict]:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines()]


def check_kills(photos: Path, out: Path, trials: list[str]) -> list[dict]:
    """Two processes side by side, half of the trials each."""
    halves = [start_trials(photos, out / str(i), trials[i::2]) for i in range(2)]
    found = [result for half in halves for result in results(half)]
    for result in found:
        assert result["wrong"] == [], result
        assert result["left"] == [], result
    assert len(found) == len(trials)
    return found


def test_a_run_killed_while_it_trains_or_saves_ends_as_if_it_had_not_been(tmp_path, photos):
    trials = ["step:7", "before:9", "after:20", "0.8"]
    found = check_kills(photos, tmp_path, trials)
    assert all(result["killed"] for result in found if ":" in result["trial"])
    with open(tmp_path / "0" / "whole" / "history.csv") as file:  # there was something to remember
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert len(set(rates)) > 1


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_if_it_had_not_been(tmp_path, photos):
    moments = random.Random(20)
    found = check_kills(photos, tmp_path, [f"{moments.random():.4f}" for _ in range(20)])
    assert (
        sum(result["killed"] for result in found) >= 12
    )  # the others came after the end: forks take turns


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe and its run; checkpoints come after every step."""
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 8), ("val", 4)):
        for c, name in enumerate(("cat", "dog")):
            write_photos(folder / "photos" / split / name, count, 100 * c)
    recipe = tiny(
        folder / "whole", data=str(folder / "photos"), epochs=3, dropout=0.3, batch_size=4
    )
    return recipe, train(recipe)


@pytest.fixture(autouse=True)
def _checkpoints_after_every_step(monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize("at", ["batch", "epoch"])
def test_ctrl_c_and_sigterm_stop_after_the_step_with_a_checkpoint(
    tmp_path, whole, monkeypatch, capsys, at
):
    recipe, run = whole
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 1e9)
    name = f"on_{'train_batch' if at == 'batch' else 'epoch'}_end"
    end = getattr(callbacks.Keeper, name)
    calls = []

    def interrupted(self, number, logs=None):
        calls.append(number)
        if len(calls) == (6 if at == "batch" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, number, logs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Keeper, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((cut.out / "run.json").read_text())["status"] == "stopped"
    assert "the same command with --resume goes on" in capsys.readouterr().out
    resumed = train(cut, resume=True)
    assert f"goes on after step {2 if at == 'batch' else 0} of epoch 2" in capsys.readouterr().out
    assert_same_end(run, resumed)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    tmp_path, whole, monkeypatch, capsys
):
    recipe, run = whole
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(monkeypatch, cut, 7)
    newest, before = checkpoints.newest_first(cut.out / "resume")
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = train(cut, resume=True)
    told = capsys.readouterr().out
    assert f"{newest} is damaged" in told
    assert "the one before is used" in told
    assert "goes on after step 2 of epoch 2" in told
    assert_same_end(run, resumed)
    assert not before.exists()


def test_one_changed_byte_is_noticed_and_without_a_whole_checkpoint_the_run_begins_anew(
    tmp_path, whole, monkeypatch, capsys
):
    recipe, run = whole
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(monkeypatch, cut, 6)
    for path in checkpoints.newest_first(cut.out / "resume"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    resumed = train(cut, resume=True)
    assert capsys.readouterr().out.count("is damaged") == 2
    assert_same_end(run, resumed)


def test_resume_refuses_what_is_not_the_same_run(tmp_path, whole, monkeypatch):
    recipe, _ = whole
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(monkeypatch, cut, 5)
    with pytest.raises(InputError, match="holds a run already: go on with it with --resume"):
        train(cut)
    with pytest.raises(
        InputError, match=r"learning_rate was 0\.01 and is 0\.02; seed was 0 and is 1: give what"
    ):
        train(dataclasses.replace(cut, learning_rate=0.02, seed=1), resume=True)
    lost = Path(recipe.data) / "train" / "cat" / "000.jpg"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=r"begun with 16 images in split train of .* has 15 now"):
        train(cut, resume=True)
    lost.write_bytes(content)


def test_what_is_left_of_a_run_is_neither_overwritten_nor_taken_up(tmp_path, whole, monkeypatch):
    recipe, run = whole
    copy = dataclasses.replace(recipe, out=tmp_path / "copy", seed=3)
    shutil.copytree(run.path, copy.out)
    files = {path: path.read_bytes() for path in copy.out.rglob("*") if path.is_file()}
    (copy.out / "model.keras").unlink()
    with pytest.raises(InputError, match=r"is finished, but its model\.keras is gone"):
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


def test_a_run_another_process_trains_is_left_alone(tmp_path, whole, monkeypatch):
    recipe, run = whole
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(monkeypatch, cut, 5)
    metadata = json.loads((cut.out / "run.json").read_text())
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (cut.out / "run.json").write_text(
        json.dumps(metadata | {"status": "training", "process": other.pid})
    )
    with pytest.raises(InputError, match=f"is being trained by process {other.pid}"):
        train(cut, resume=True)
    other.communicate()
    assert_same_end(run, train(cut, resume=True))


def test_resume_of_a_finished_run_does_nothing_and_of_none_starts_one(tmp_path, whole, capsys):
    recipe, run = whole
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    again = train(recipe, resume=True)
    assert again.metadata == run.metadata
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    fresh = train(dataclasses.replace(recipe, out=tmp_path / "fresh"), resume=True)
    assert_same_end(run, fresh)


def test_unreadable_images_stay_left_out_after_a_resume(tmp_path, photos, monkeypatch):
    for name in ("train/dog/002.jpg", "val/cat/001.jpg"):
        (photos / name).write_bytes((photos / name).read_bytes()[:-200])
    (photos / "train" / "cat" / "001.jpg").write_text("text")
    recipe = tiny(tmp_path / "whole", data=str(photos), epochs=2, skip_unreadable=True)
    run = train(recipe)
    cut = dataclasses.replace(recipe, out=tmp_path / "cut")
    cut_at(monkeypatch, cut, 2)
    resumed = train(cut, resume=True)
    assert_same_end(run, resumed)
    assert resumed.metadata["images"] == {"train": 14, "validation": 7}
    assert len(resumed.metadata["skipped"]) == 3


ON_JAX = """
import dataclasses, sys
from pathlib import Path
import pytest
from helpers import assert_same_end, cut_at, callbacks, tiny, train
callbacks.CHECKPOINT_SECONDS = 0.0
out = Path(sys.argv[2])
recipe = tiny(out / "whole", data=sys.argv[1], epochs=2, dropout=0.3, batch_size=8, batch_norm=False)
run = train(recipe)
cut = dataclasses.replace(recipe, out=out / "cut")
cut_at(pytest.MonkeyPatch(), cut, 3)
assert_same_end(run, train(cut, resume=True))
assert "jax" in run.metadata["versions"]
"""


def test_a_run_on_jax_is_resumed_as_exactly(tmp_path, photos):
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", ON_JAX, photos, tmp_path], check=True, env=environment)


ON_TWO_DEVICES = """
import sys
import tensorflow as tf
from pathlib import Path
from helpers import tiny, train
from helpers import on_devices
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
on_devices(sys.argv[1], Path(sys.argv[2]))
"""


def test_two_devices_train_as_one(tmp_path, photos, capsys):
    (
        photos / "val" / "cat" / "000.jpg"
    ).unlink()  # seven: a last batch that cannot be shared out evenly
    one = on_devices(str(photos), tmp_path / "one")
    command = [sys.executable, "-c", ON_TWO_DEVICES, photos, tmp_path / "two"]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": PYTHONPATH}
    told = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout
    assert "with 2 devices" in told
    (a, state, _), (b, _, _) = (
        checkpoints.load(path / "resume") for path in (one.path, tmp_path / "two")
    )
    assert state["epoch"] * 4 == 20
    assert max(np.abs(x.astype(float) - y).max() for x, y in zip(a, b, strict=True)) < 1e-5
    for row, other in zip(history(one.path), history(tmp_path / "two"), strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx(
            {k: float(v) for k, v in other.items()}, abs=1e-4
        )
