"""TODO"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console

from vggkeras import files, models
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar
from vggkeras.training import checkpoints
from vggkeras.training.record import RunRecord
from vggkeras.training.runs import point_latest

CHECKPOINT_SECONDS = 300.0  # between checkpoints within an epoch; one is made at every epoch's end
DROPS = 3  # of the learning rate, by 10 each (section 3.1)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Within it Ctrl-C and SIGTERM set an event, to be heard after the step under way; a second one is KeyboardInterrupt.

    Raised wherever Python happens to be, a first KeyboardInterrupt is lost where that is a destructor, and TensorFlow has
    many.
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


class Keeper(keras.callbacks.Callback):
    """Follows a run: the schedule, the best model, history.csv, run.json and checkpoints; shows where it is."""

    def __init__(
        self,
        network: keras.Model,
        kept: keras.Model,
        out: Path,
        card: ModelCard,
        recipe: Recipe,
        steps: int,
        asked: threading.Event,
        console: Console,
    ) -> None:
        super().__init__()
        self.network, self.kept, self.out, self.card, self.recipe = (
            network,
            kept,
            out,
            card,
            recipe,
        )
        self.steps, self.asked, self.console = steps, asked, console
        self.epoch = 0  # finished ones
        self.step = 0  # finished ones of the epoch under way
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.waited = 0  # epochs since the best one or the last drop
        self.drops = 0
        self.finished = False
        self.metrics: list[np.ndarray] = []  # of the epoch under way, to go on with
        self.progress = progress_bar(console)
        self.all = self.progress.add_task("all epochs", total=recipe.epochs * steps)
        self.seconds_before = 0.0
        self.start = self.saved = time.monotonic()

    @property
    def rate(self) -> float:
        """Learning rate of this moment."""
        return self.recipe.first_rate / 10**self.drops

    def seconds(self) -> float:
        """Spent on the run, before it was cut off and since."""
        return self.seconds_before + time.monotonic() - self.start

    def go_on(self) -> bool:
        """Take up the run's last whole checkpoint; False where there is none, and the run begins anew."""
        arrays, state, damaged = checkpoints.load(self.out / "resume")
        instead = "the run begins anew" if state is None else "the one before is used"
        for reason in damaged:
            self.console.print(f"[yellow]{reason}: {instead}[/]", soft_wrap=True)
        if state is None:
            if not damaged:
                self.console.print(f"{self.out} has no checkpoint yet: {instead}")
            return False
        if state["best"] and not (self.out / "model.keras").exists():
            self.console.print(
                f"[yellow]{self.out / 'model.keras'} is gone: the run begins anew[/]",
                soft_wrap=True,
            )
            return False
        variables = self._variables()
        for variable, array in zip(variables, arrays, strict=False):
            variable.assign(array)
        self.metrics = arrays[len(variables) :]
        for field in ("epoch", "step", "rows", "best", "waited", "drops", "finished"):
            setattr(self, field, state[field])
        self.seconds_before = state["seconds"]
        self.progress.update(self.all, completed=self.epoch * self.steps + self.step)
        self.console.print(f"goes on after step {self.step} of epoch {self.epoch + 1}")
        return True

    def on_epoch_begin(self, epoch, logs=None):
        if self.metrics:  # fit() has just reset those there are; a first batch makes the rest
            batch = self.recipe.batch_size // self.recipe.accumulate
            images = np.zeros((batch, *self.network.input_shape[1:]), np.uint8)
            self.network.test_on_batch(images, np.zeros(batch, np.int64))
            for variable, array in zip(self.model.metrics_variables, self.metrics, strict=True):
                variable.assign(array)
            self.metrics = []
        self.epoch_start, self.epoch_step = time.monotonic(), self.step
        self.progress.update(self.all, description=f"epoch {epoch + 1} of {self.recipe.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.progress.advance(self.all)
        if not math.isfinite(
            float(logs["loss"])
        ):  # a mean over the epoch: no number from the first such step on
            self._diverged("the loss is")
        due = time.monotonic() - self.saved > CHECKPOINT_SECONDS
        if (due or self.asked.is_set()) and self.step < self.steps:
            self._checkpoint()
        if self.asked.is_set() and self.step < self.steps:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        row: dict[str, Any] = {"epoch": epoch + 1}
        row |= {k: round(float(v), 6) for k, v in (logs or {}).items() if k != "learning_rate"}
        row["learning_rate"] = self.rate
        if not math.isfinite(row["val_loss"]):
            self._diverged("the validation loss is")
        self.rows.append(row)
        better = self.best is None or row["val_accuracy"] > self.best["val_accuracy"]
        # Of a few validation images, as many are often right: then the surer model is kept. The schedule still waits.
        surer = not better and self.best is not None and _surer(row, self.best)
        if better or surer:
            if self.kept is not self.network:
                self.kept.set_weights(self.network.get_weights())
            models.save_model(
                self.kept, self.out / "model.keras", dataclasses.replace(self.card, epoch=epoch + 1)
            )
            if self.best is None:
                point_latest(self.out)
            self.best = row
        self.epoch, self.step = epoch + 1, 0
        told = self._schedule(better)
        self._write_history()
        self.write("training")
        self._checkpoint()
        spent = time.monotonic() - self.epoch_start
        images = (self.steps - self.epoch_step) * self.recipe.batch_size // self.recipe.accumulate
        self.console.print(
            f"epoch {epoch + 1:3d}/{self.recipe.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
            f"validation {row['val_accuracy']:.4f}{' best' if better or surer else '     '}  rate {row['learning_rate']:.1e}  "
            f"{spent:.0f} s, {images / spent:.0f} images/s{told}",
            highlight=False,
            soft_wrap=True,
        )
        if self.asked.is_set() and not self.finished:
            raise KeyboardInterrupt

    def _schedule(self, better: bool) -> str:
        """Section 3.1: divide the rate by 10 when validation accuracy stops improving, three times, then stop.

        Returns what the epoch's line says about it.
        """
        assert self.best is not None
        self.waited = 0 if better else self.waited + 1
        if self.epoch == self.recipe.epochs:
            self.finished = True
            return ""
        if self.waited < self.recipe.patience:
            return ""
        best = f"{self.best['val_accuracy']:.4f} of epoch {self.best['epoch']} not bettered for {self.waited} epochs"
        if self.drops == DROPS:
            self.finished = self.model.stop_training = True
            return f"; {best} after {DROPS} drops of the rate: training stops, that epoch's model is kept"
        self.waited = 0
        self.drops += 1
        self.model.optimizer.learning_rate = self.rate
        return f"; {best}: rate drops to {self.rate:.1e}, {self.drops} of {DROPS}"

    def _diverged(self, what: str) -> None:
        kept = [f"{self.out / 'model.keras'} of epoch {self.best['epoch']}"] if self.best else []
        kept += [str(path) for path in checkpoints.newest_first(self.out / "resume")[:1]]
        raise InputError(
            f"{what} no finite number any more at step {self.step} of epoch {self.epoch + 1}, learning rate {self.rate:g}: "
            f"start another run with a lower --learning-rate"
            + (f", perhaps with --init-from {self.out}" if self.best else "")
            + f"; kept as last good: {' and '.join(kept) or 'nothing yet'}."
        )

    def _variables(self) -> list[keras.Variable]:
        return [*self.network.variables, *self.network.optimizer.variables]

    def _checkpoint(self) -> None:
        if keras.backend.backend() == "jax":
            self.network.jax_state_sync()
        arrays = [ops.convert_to_numpy(v) for v in self._variables()]
        if not all(np.isfinite(array).all() for array in arrays):
            self._diverged("a weight is")
        metrics = (
            [ops.convert_to_numpy(v) for v in self.network.metrics_variables] if self.step else []
        )
        fields = ("epoch", "step", "rows", "best", "waited", "drops", "finished")
        state = {field: getattr(self, field) for field in fields} | {"seconds": self.seconds()}
        checkpoints.save(
            self.out / "resume", self.epoch * self.steps + self.step, arrays + metrics, state
        )
        self.saved = time.monotonic()

    def _write_history(self) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.out / "history.csv", table.getvalue())

    def write(self, status: str) -> RunRecord:
        """Write run.json, and return it."""
        best = self.best or {}
        record = RunRecord(
            self.card,
            status,
            int(best["epoch"]) if best else None,
            self.epoch,
            {key: value for key, value in best.items() if key != "epoch"},
            round(self.seconds(), 1),
            platform.node(),
            os.getpid(),
        )
        record.write(self.out)
        return record


def _surer(row: dict[str, float], best: dict[str, float]) -> bool:
    """Whether an epoch is as good as the best one by validation accuracy, and better by cross-entropy."""
    same = row["val_accuracy"] == best["val_accuracy"]
    return same and row["val_cross_entropy"] < best["val_cross_entropy"]
