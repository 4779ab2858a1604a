"""The callbacks of a run, called by hand on made-up epochs: nothing is trained."""

from __future__ import annotations

import io
import json
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from rich.console import Console
from rich.progress import Progress as Bar

import vggkeras
from vggkeras import models
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.training import callbacks, checkpoints
from vggkeras.training.optimizer import compile_model
from vggkeras.training.progress import Job, Progress
from vggkeras.training.runs import point_latest


@pytest.fixture(scope="module")
def model():
    """A compiled network of which nothing is trained."""
    network = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4, seed=0)
    compile_model(network, tiny(Path("x")))
    network.optimizer.build(network.trainable_variables)
    return network


@pytest.fixture
def progress(tmp_path, photos) -> Progress:
    recipe = tiny(tmp_path / "run", data=str(photos), epochs=5, patience=1)
    card = ModelCard(("cat", "dog"), recipe=recipe, image_size=32)
    console = Console(file=io.StringIO(), width=200)
    data = vggkeras.load_data(str(photos))
    return Progress(Job(recipe, data, card, recipe.out, 32, (37, 37), console), threading.Event())


def row(epoch: int, accuracy: float, cross_entropy: float = 1.0) -> dict[str, float]:
    return {
        "epoch": epoch,
        "loss": 1.5,
        "accuracy": 0.25,
        "val_loss": 1.6,
        "val_accuracy": accuracy,
        "val_cross_entropy": cross_entropy,
        "learning_rate": 0.01 * 4 / 256,
    }


def test_of_epochs_with_equal_accuracy_that_with_the_lower_cross_entropy_is_kept(progress, model):
    callback = callbacks.KeepBestModel(progress, model)
    callback.set_model(model)
    best = []
    epochs = [(0.5, 1.0), (0.5, 1.1), (0.5, 0.9), (0.75, 2.0), (0.75, 2.0), (0.5, 0.1)]
    for epoch, (accuracy, cross_entropy) in enumerate(epochs):
        progress.state.rows.append(row(epoch + 1, accuracy, cross_entropy))
        callback.on_epoch_end(epoch)
        best.append(models.load_model(progress.job.out / "model.keras")[1].epoch)
        assert progress.state.best["epoch"] == best[-1]
    assert best == [1, 1, 3, 4, 4, 4]
    assert Path("runs/latest").resolve() == progress.job.out.resolve()


def test_the_epoch_with_the_lowest_cross_entropy_is_kept_where_that_is_monitored(progress, model):
    job = progress.job
    recipe = replace(job.recipe, monitor="val_cross_entropy")
    progress.job = replace(job, recipe=recipe)
    callback = callbacks.KeepBestModel(progress, model)
    callback.set_model(model)
    printed = callbacks.PrintEpoch(progress, Bar(console=job.console))
    printed.on_epoch_begin(0)
    for epoch, values in enumerate([(0.5, 1.0), (0.75, 1.1), (0.25, 0.9), (1.0, 0.9)]):
        progress.state.rows.append(row(epoch + 1, *values))
        callback.on_epoch_end(epoch)
    assert (
        progress.state.best["epoch"] == models.load_model(recipe.out / "model.keras")[1].epoch == 3
    )
    progress.state.waited = 1
    printed.on_epoch_end(3)
    line = job.console.file.getvalue()
    assert "validation 1.0000, cross-entropy 0.9000  " in line
    assert "; validation cross-entropy 0.9000 of epoch 3 not improved for 1 epochs" in line


def test_steps_and_epochs_are_counted_and_an_infinite_loss_stops_the_run(progress):
    count, stop = callbacks.CountSteps(progress), callbacks.StopOnDivergence(progress)
    for batch in range(3):
        count.on_train_batch_end(batch, {"loss": 1.0})
        stop.on_train_batch_end(batch, {"loss": 1.0})
    with pytest.raises(
        InputError,
        match=r"the loss became NaN or infinite at step 3 of epoch 1, learning rate 0\.00015625: "
        r"start another run with a lower --learning-rate; kept as last good: nothing yet",
    ):
        stop.on_train_batch_end(2, {"loss": float("nan")})
    progress.state.best = row(1, 0.5)
    count.on_epoch_end(0, {"loss": 1 / 3, "val_loss": float("inf"), "learning_rate": 7.0})
    assert progress.state.rows == [
        {"epoch": 1, "loss": 0.333333, "val_loss": float("inf"), "learning_rate": 0.01 * 4 / 256}
    ]
    with pytest.raises(InputError, match=r"validation loss.*--init-from.*model\.keras of epoch 1"):
        stop.on_epoch_end(0)


def test_a_checkpoint_holds_everything_and_none_is_written_of_nan(progress, model, monkeypatch):
    callback = callbacks.SaveCheckpoint(progress)
    callback.set_model(model)
    progress.state.step = 1
    callback.on_train_batch_end(0)
    assert not checkpoints.newest_first(progress.job.out / "resume")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    callback.on_train_batch_end(0)
    checkpoint, _ = checkpoints.load(progress.job.out / "resume")
    for array, variable in zip(checkpoint.arrays, model.variables, strict=False):
        np.testing.assert_array_equal(array, variable)
    assert checkpoint.state.step == 1
    assert checkpoint.state.seconds > 0
    kernel = model.get_layer("fc1").kernel
    before = np.array(kernel)
    kernel.assign(before * np.nan)
    with pytest.raises(InputError, match=r"a weight became NaN.*000000001\.npz"):
        callback.on_train_batch_end(0)
    kernel.assign(before)


def test_a_state_is_stored_as_earlier_versions_did(tmp_path):
    """Runs that were cut off in version 0.1 are resumed; what is new is the number of arrays."""
    state = {
        "epoch": 3,
        "step": 2,
        "rows": [row(1, 0.5)],
        "best": row(1, 0.5),
        "waited": 2,
        "drops": 1,
        "finished": False,
        "seconds": 7.5,
    }
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    (tmp_path / "old").mkdir()
    np.savez(tmp_path / "old" / "000000014.npz", state=text, **{"0000": np.arange(3)})
    checkpoint, damaged = checkpoints.load(tmp_path / "old")
    assert damaged == []
    assert vars(checkpoint.state) == state
    checkpoints.save(tmp_path / "new", 14, checkpoint.arrays, checkpoint.state)
    with np.load(tmp_path / "new" / "000000014.npz") as file:
        assert json.loads(file["state"].tobytes()) == state | {"arrays": 1}
        assert sorted(file.files) == ["0000", "state"]


def test_a_damaged_checkpoint_is_found_wherever_it_is_damaged(tmp_path):
    """The one before is given; or the damage changed nothing, as that of a date."""
    arrays = [np.arange(30, dtype=np.float32), np.ones((2, 3), np.float32), np.float32(7)]
    for number in (1, 2):
        checkpoints.save(tmp_path, number, [*arrays, np.int64(number)], checkpoints.State(number))
    newest = tmp_path / "000000002.npz"
    whole, chance = newest.read_bytes(), random.Random(0)
    for trial in range(200):
        content = bytearray(whole)
        if trial < 8:
            content = content[: trial * len(whole) // 8]
        else:
            content[chance.randrange(len(whole))] = chance.randrange(256)
        newest.write_bytes(content)
        checkpoint, damaged = checkpoints.load(tmp_path)
        number = checkpoint.state.epoch
        assert len(damaged) == 2 - number
        for array, expected in zip(checkpoint.arrays, [*arrays, number], strict=True):
            np.testing.assert_array_equal(array, expected)
    newest.unlink()
    newest.mkdir()
    assert checkpoints.load(tmp_path)[0].state.epoch == 1
    checkpoints.save(tmp_path, 3, arrays, checkpoints.State(3))
    checkpoints.save(tmp_path, 4, arrays, checkpoints.State(4))
    assert [path.name for path in checkpoints.newest_first(tmp_path)] == [
        "000000004.npz",
        "000000003.npz",
    ]


@pytest.mark.parametrize(
    ("drops", "waited", "text"),
    [
        (
            1,
            0,
            "; validation accuracy 0.5000 of epoch 1 not improved for 1 epochs: "
            "learning rate drops to 1.6e-05, 1 of 3",
        ),
        (
            0,
            1,
            "not improved for 1 epochs after 3 drops: training stops, that epoch's model is kept",
        ),
        (0, 0, "images/s"),
    ],
)
def test_an_epochs_line_says_what_the_schedule_decides(progress, drops, waited, text):
    callback = callbacks.PrintEpoch(progress, Bar(console=progress.job.console))
    callback.on_epoch_begin(1)
    progress.state.rows = [row(1, 0.5), row(2, 0.25)]
    progress.state.best = progress.state.rows[0]
    progress.state.drops, progress.state.waited = drops, waited
    callback.on_epoch_end(1)
    line = progress.job.console.file.getvalue().strip()
    assert line.startswith("epoch   2/5  loss 1.5000  accuracy 0.2500  validation 0.2500  ")
    assert line.endswith(text)
    assert "best" not in line


def test_a_run_stops_where_it_is_asked_to(progress):
    callback = callbacks.StopWhenAsked(progress)
    before = signal.getsignal(signal.SIGTERM)
    with callbacks.asked_to_stop() as progress.stop:
        callback.on_train_batch_end(0)
        callback.on_test_batch_end(0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            callback.on_test_batch_end(0)
        with pytest.raises(KeyboardInterrupt):
            callback.on_train_batch_end(0)
        with pytest.raises(KeyboardInterrupt):
            callback.on_epoch_end(0)
        progress.state.finished = True
        callback.on_epoch_end(4)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_called_latest_is_not_replaced_by_a_link(tmp_path):
    run = Path("runs/latest")
    run.mkdir(parents=True)
    point_latest(run)
    point_latest(tmp_path / "other")
    assert not run.is_symlink()
