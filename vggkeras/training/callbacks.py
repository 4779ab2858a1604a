"""The callbacks of a training run: they count, choose the best model, save checkpoints, and print.

`run_callbacks` gives them in the order in which they rely on each other.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from rich.progress import Progress as Bar

from vggkeras import models
from vggkeras.training.devices import undistributed
from vggkeras.training.optimizer import AveragedWeights, put_averages_in, put_back
from vggkeras.training.progress import Progress
from vggkeras.training.runs import point_latest
from vggkeras.training.schedule import DROPS, PlateauSchedule, monitored
from vggkeras.training.waiting import Waiting

CHECKPOINT_SECONDS = 300.0  # between checkpoints within an epoch; there is one at every epoch's end

Logs = dict[str, Any] | None


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM set an event, which is read after each step.

    A second one raises KeyboardInterrupt. A KeyboardInterrupt raised inside a destructor is lost,
    and TensorFlow has many, so the first one only ends the step.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # no other gets signals
        yield asked
        return

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_callbacks(
    progress: Progress,
    kept: keras.Model,
    bar: Bar,
    callbacks: Sequence[keras.callbacks.Callback],
    waiting: Waiting | None = None,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a run, in order.

    Args:
        progress: how far the run has come, and where it is recorded.
        kept: the float32 model that is saved.
        bar: shows the steps.
        callbacks: the user's. They see an epoch after it is counted, and before it is in a
            checkpoint.
        waiting: counts how long training waits for its batches.
    """
    recipe = progress.job.recipe
    schedule: list[keras.callbacks.Callback] = []
    if recipe.schedule == "plateau":
        state, rate = progress.state, recipe.first_rate
        schedule.append(PlateauSchedule(recipe.patience, rate, state, recipe.monitor))
    return [
        *([] if recipe.ema is None else [AveragedWeights()]),
        CountSteps(progress),
        StopOnDivergence(progress),
        *callbacks,
        *([] if progress.job.hosts.count == 1 else [StopTogether(progress)]),
        KeepBestModel(progress, kept),
        *schedule,
        SaveCheckpoint(progress),
        PrintEpoch(progress, bar, waiting),
        StopWhenAsked(progress),
    ]


class RunCallback(keras.callbacks.Callback):
    """A callback that follows a run."""

    def __init__(self, progress: Progress) -> None:
        """Follow `progress`."""
        super().__init__()
        self.progress, self.job, self.state = progress, progress.job, progress.state


class CountSteps(RunCallback):
    """Counts the finished steps, and adds the finished epoch's row."""

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Count the step."""
        self.state.step += 1

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add the epoch's row of history.csv."""
        row: dict[str, Any] = {"epoch": epoch + 1}
        row |= {k: round(float(v), 6) for k, v in (logs or {}).items() if k != "learning_rate"}
        rate = self.progress.learning_rate_at(self.progress.steps_done - 1)
        self.state.rows.append(row | {"learning_rate": rate})


class StopOnDivergence(RunCallback):
    """Raises InputError as soon as the loss is not a finite number."""

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Check the loss, a mean over the epoch: NaN from the first NaN on."""
        if not math.isfinite(float((logs or {})["loss"])):
            raise self.progress.diverged("the loss")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Check the validation loss."""
        if not math.isfinite(self.state.rows[-1]["val_loss"]):
            raise self.progress.diverged("the validation loss")


class StopTogether(RunCallback):
    """Lets all hosts stop where one is asked to, at the same step, and where a callback says so."""

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Agree after a step."""
        asked, self.model.stop_training = self.job.hosts.any_of(
            [self.progress.asked.is_set(), self.model.stop_training]
        )
        if asked:
            self.progress.stop.set()

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Agree after a batch of validation."""
        self.on_train_batch_end(batch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Agree after an epoch."""
        self.on_train_batch_end(epoch)


class KeepBestModel(RunCallback):
    """Saves the model with the best validation accuracy, of equal ones the lower cross-entropy.

    With few validation images many epochs have the same accuracy. For boxes it is that of
    localization, and of equal ones the higher mean IoU is better. The schedule waits on accuracy
    alone. Where the recipe monitors the cross-entropy, both are about that alone.
    """

    def __init__(self, progress: Progress, kept: keras.Model) -> None:
        """Save `kept`, with the weights of the trained model."""
        super().__init__(progress)
        self.kept = kept

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save the model if it is better."""
        row, best = self.state.rows[-1], self.state.best
        monitor = self.job.recipe.monitor
        if best and _score(row, monitor) <= _score(best, monitor):
            return
        averages = self.job.recipe.ema is not None
        trained = put_averages_in(self.model) if averages else []
        if self.kept is not self.model:
            self.kept.set_weights(self.model.get_weights())
        card = dataclasses.replace(self.job.card, epoch=epoch + 1)
        if self.job.hosts.is_first:
            with undistributed():
                models.save_model(self.kept, self.job.out / "model.keras", card)
        if averages:
            put_back(self.model, trained)
        if best is None and self.job.hosts.is_first:
            point_latest(self.job.out)
        self.state.best = row


def _score(row: dict[str, float], monitor: str) -> tuple[float, float]:
    accuracy = row["val_accuracy"] if monitor == "val_accuracy" else 0.0
    return accuracy, row["val_iou"] if "val_iou" in row else -row["val_cross_entropy"]


class SaveCheckpoint(RunCallback):
    """Saves checkpoints now and then, and everything at an epoch's end."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Restore the metrics of an epoch that was cut off."""
        if not self.progress.metrics:
            return
        # fit() has just reset the metrics that exist; a first batch creates the others.
        batch = self.job.recipe.images_per_step // self.job.hosts.count
        images = np.zeros((batch, *self.model.input_shape[1:]), np.uint8)
        labels = np.zeros(batch, np.int64)
        if self.job.recipe.boxes:
            labels = np.zeros((batch, 5), np.float32)
        if self.job.recipe.one_hot:
            labels = np.zeros((batch, len(self.job.data.class_names)), np.float32)
        self.model.test_on_batch(images, labels)
        for variable, array in zip(
            self.model.metrics_variables, self.progress.metrics, strict=True
        ):
            variable.assign(array)
        self.progress.metrics = []

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save a checkpoint if it is time, or if the run is about to stop."""
        due = time.monotonic() - self.progress.saved > CHECKPOINT_SECONDS
        if (due or self.progress.stop.is_set()) and self.state.step < self.job.steps:
            self.progress.save_checkpoint(self.model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Finish the epoch, and save everything."""
        self.state.epoch, self.state.step = epoch + 1, 0
        self.state.finished = self.model.stop_training or epoch + 1 == self.job.recipe.epochs
        self.progress.write_history()
        self.progress.write_record("training")
        self.progress.save_checkpoint(self.model)


class PrintEpoch(RunCallback):
    """Moves the progress bar, and prints a line an epoch."""

    def __init__(self, progress: Progress, bar: Bar, waiting: Waiting | None = None) -> None:
        """Add a task for all steps to `bar`; say how long they waited, where that is counted."""
        super().__init__(progress)
        self.waiting = waiting
        steps = self.job.recipe.epochs * self.job.steps
        self.bar = bar
        self.task = bar.add_task("all epochs", total=steps, completed=progress.steps_done)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start the clock."""
        self.start, self.first_step = time.monotonic(), self.state.step
        self.waited = self.waiting.seconds if self.waiting else 0.0
        self.bar.update(self.task, description=f"epoch {epoch + 1} of {self.job.recipe.epochs}")

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Advance the bar."""
        self.bar.advance(self.task)
        self.trained = time.monotonic()

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Let a long validation be heard of where there is no terminal."""
        self.bar.advance(self.task, 0)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Print the epoch's line."""
        row, recipe = self.state.rows[-1], self.job.recipe
        what = "localized" if recipe.boxes else "accuracy"
        seconds = time.monotonic() - self.start
        images = (self.job.steps - self.first_step) * recipe.images_per_step
        monitored = recipe.monitor == "val_cross_entropy"
        cross_entropy = f", cross-entropy {row['val_cross_entropy']:.4f}" if monitored else ""
        self.job.console.print(
            f"epoch {epoch + 1:3d}/{recipe.epochs}  loss {row['loss']:.4f}  "
            f"{what} {row['accuracy']:.4f}  validation {row['val_accuracy']:.4f}"
            f"{cross_entropy}{' best' if self.state.best is row else '     '}  "
            f"learning rate {row['learning_rate']:.1e}  "
            f"{seconds:.0f} s, {images / seconds:.0f} images/s{self._waited()}{self._plateau()}",
            highlight=False,
            soft_wrap=True,
        )

    def _waited(self) -> str:
        """Return which fraction of the time of the steps, without the validation, was waiting.

        It is no column of history.csv, which a resumed run ends with to the last bit.
        """
        if self.waiting is None:
            return ""
        waited = self.waiting.seconds - self.waited
        return f", {waited / (self.trained - self.start):.0%} of training waiting for data"

    def _plateau(self) -> str:
        """Return what the schedule has just decided, in words; a cosine decides nothing."""
        if self.job.recipe.schedule == "cosine":
            return ""
        state, best, patience = self.state, self.state.best, self.job.recipe.patience
        dropped = self.progress.learning_rate != state.rows[-1]["learning_rate"]
        if best is None or not (dropped or state.waited >= patience):
            return ""
        plateau = (
            f"; {monitored(self.job.recipe, best)} of epoch {best['epoch']} not improved for "
            f"{patience} epochs"
        )
        if dropped:
            drops = f"{state.drops} of {DROPS}"
            verb = "would drop" if state.finished else "drops"
            return f"{plateau}: learning rate {verb} to {self.progress.learning_rate:.1e}, {drops}"
        return f"{plateau} after {DROPS} drops: training stops, that epoch's model is kept"


class StopWhenAsked(RunCallback):
    """Raises KeyboardInterrupt after the step, or the batch of validation, of the user's wish."""

    def _stop(self) -> None:
        self.job.hosts.gather(None)  # wait until the first host has saved what it had to
        raise KeyboardInterrupt

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop within an epoch."""
        if self.progress.stop.is_set() and self.state.step < self.job.steps:
            self._stop()

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop in a validation, which is made again from the last checkpoint on."""
        if self.progress.stop.is_set():
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Stop between epochs."""
        if self.progress.stop.is_set() and not self.state.finished:
            self._stop()
