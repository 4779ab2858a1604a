"""A training run while it goes on: its job, how far it has come, and the files that record it."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console

from vggkeras import files
from vggkeras.card import ModelCard
from vggkeras.data.splits import Data, Split
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training import checkpoints
from vggkeras.training.checkpoints import Checkpoint, State
from vggkeras.training.hosts import ALONE, Hosts
from vggkeras.training.record import EpochsChange, RunRecord
from vggkeras.training.schedule import cosine, is_over


@dataclass(frozen=True)
class Job:
    """What a run trains, on what, and where to."""

    recipe: Recipe
    data: Data
    card: ModelCard  # of the best model, but for its epoch
    out: Path
    size: int  # side of the training crop, px
    scale: tuple[int, int]  # lowest and highest training scale S, px
    console: Console
    reading_seconds: float = 0.0  # of the first pass over the images
    class_weights: Mapping[int, float] | None = None  # in the loss; None: all images weigh 1
    hosts: Hosts = ALONE  # that train together; the first one writes

    @property
    def training(self) -> Split:
        """The training images."""
        return self.data.split("train")

    @property
    def validation(self) -> Split:
        """The validation images."""
        return self.data.split("validation")

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return self.training.count // self.recipe.batch_size * self.recipe.accumulate


class Progress:
    """How far a run has come, and the files that record it: history.csv, run.json and resume/."""

    def __init__(self, job: Job, stop: threading.Event, begun: RunRecord | None = None) -> None:
        """Begin at the first step.

        Args:
            job: what to train.
            stop: set when the user asks to stop.
            begun: the record of the run, where it is to be resumed.
        """
        self.job, self.begun = job, begun
        # Several hosts stop when all know that one of them was asked to.
        self.asked, self.stop = stop, stop if job.hosts.count == 1 else threading.Event()
        self.epochs_changed = begun.epochs_changed if begun else ()
        self.state = State(seconds=job.reading_seconds)
        self.metrics: list[np.ndarray] = []  # of the epoch under way, to be restored
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time spent on the run, before it was cut off and since."""
        return self.state.seconds + time.monotonic() - self.started

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate_at(self.steps_done)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, by its number; on a plateau, of the next one."""
        recipe = self.job.recipe
        if recipe.schedule == "cosine":
            return float(ops.convert_to_numpy(cosine(recipe, self.job.steps)(step)))
        return recipe.first_rate / 10**self.state.drops

    @property
    def steps_done(self) -> int:
        """The number of finished steps, from the very first one on."""
        return self.state.epoch * self.job.steps + self.state.step

    def restore(self, model: keras.Model) -> bool:
        """Load the run's last whole checkpoint; return False where the run begins anew.

        Raises:
            InputError (a ValueError): there are checkpoints, and none of them is whole.
        """
        folder = self.job.out / "resume"
        variables = _variables(model)
        shapes = [tuple(variable.shape) for variable in variables]
        checkpoint = self._last_checkpoint(folder, shapes) if self.job.hosts.is_first else None
        if self.job.hosts.count > 1:
            checkpoint = _of_first(checkpoint, self.job.hosts)
        if checkpoint is None:
            return False
        for variable, array in zip(variables, checkpoint.arrays, strict=False):
            variable.assign(array)
        self.metrics = checkpoint.arrays[len(variables) :]
        self.state = checkpoint.state
        self.job.console.print(
            f"resumes after step {self.state.step} of epoch {self.state.epoch + 1}"
        )
        return True

    def _last_checkpoint(
        self, folder: Path, shapes: Sequence[tuple[int, ...]]
    ) -> Checkpoint | None:
        checkpoint, damaged = checkpoints.load(folder)
        if damaged and checkpoint is None:
            raise InputError(
                f"{'; '.join(damaged)}: no whole checkpoint is left; remove {folder} to begin the "
                f"run anew, or start {self.job.recipe.another_run(self.job.out)}."
            )
        for reason in damaged:
            self.job.console.print(
                f"{reason}: the one before is used", style="yellow", soft_wrap=True
            )
        if checkpoint is None:
            self.job.console.print(f"{self.job.out} has no checkpoint yet: the run begins anew")
            return None
        kept = self.job.out / "model.keras"
        if checkpoint.state.best and not kept.exists():
            self.job.console.print(
                f"{kept} is missing: the run begins anew", style="yellow", soft_wrap=True
            )
            return None
        if [array.shape for array in checkpoint.arrays[: len(shapes)]] != shapes:
            raise InputError(
                f"{folder} holds checkpoints of another network: remove it to begin the run anew."
            )
        return checkpoint

    def change_epochs(self) -> None:
        """Lengthen or shorten the restored run where another number of epochs is asked for.

        What it trained so far does not depend on that number, so a lengthened run ends as one of
        that length would have.
        """
        assert self.begun
        assert self.begun.card.recipe
        before, now, state = self.begun.card.recipe.epochs, self.job.recipe.epochs, self.state
        if now == before:
            return
        if is_over(state, self.job.recipe.patience):
            self._set_epochs(before)
            message = (
                f"the schedule ended this run after epoch {state.epoch}: validation has not "
                "improved since the last drop of the learning rate, and more epochs change nothing"
            )
        elif now <= state.epoch:
            self._set_epochs(state.epoch)
            state.finished = True
            message = f"{state.epoch} epochs are finished: the run ends with the best of them"
        else:
            state.finished = False
            message = f"{now} epochs instead of {before}, of which {state.epoch} are finished"
        self.job.console.print(message, soft_wrap=True)
        if self.job.recipe.epochs != before:
            change = EpochsChange(state.epoch, before, self.job.recipe.epochs)
            self.epochs_changed += (change,)
            self.write_record("training")

    def _set_epochs(self, epochs: int) -> None:
        recipe = dataclasses.replace(self.job.recipe, epochs=epochs)
        card = dataclasses.replace(self.job.card, recipe=recipe)
        self.job = dataclasses.replace(self.job, recipe=recipe, card=card)

    def save_checkpoint(self, model: keras.Model) -> None:
        """Write a checkpoint of the model, its optimizer, and within an epoch its metrics.

        As the other files, the first host writes it alone.
        """
        arrays = [ops.convert_to_numpy(v) for v in _variables(model)]
        if not all(np.isfinite(array).all() for array in arrays):
            raise self.diverged("a weight")
        if self.state.step:
            arrays += [ops.convert_to_numpy(v) for v in model.metrics_variables]
        state = dataclasses.replace(self.state, seconds=self.seconds)
        if self.job.hosts.is_first:
            checkpoints.save(self.job.out / "resume", self.steps_done, arrays, state)
        self.saved = time.monotonic()

    def write_history(self) -> None:
        """Write history.csv, a row an epoch."""
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.state.rows[0]))
        writer.writeheader()
        writer.writerows(self.state.rows)
        if self.job.hosts.is_first:
            files.write_text(self.job.out / "history.csv", table.getvalue())

    def write_record(self, status: str) -> RunRecord:
        """Write run.json, and return what it says."""
        best = self.state.best or {}
        record = RunRecord(
            self.job.card,
            status,
            int(best["epoch"]) if best else None,
            self.state.epoch,
            {key: value for key, value in best.items() if key != "epoch"},
            round(self.seconds, 1),
            platform.node(),
            os.getpid(),
            round(self.job.reading_seconds, 1),
            self.epochs_changed,
            self.job.hosts.count,
        )
        if self.job.hosts.is_first:
            record.write(self.job.out)
        return record

    def diverged(self, what: str) -> InputError:
        """Return the error that `what` became NaN or infinite, with the files that are good."""
        out, state = self.job.out, self.state
        is_classifier = not self.job.recipe.boxes  # boxes start from no other boxes
        kept = [f"{out / 'model.keras'} of epoch {state.best['epoch']}"] if state.best else []
        kept += [str(path) for path in checkpoints.newest_first(out / "resume")[:1]]
        return InputError(
            f"{what} became NaN or infinite at step {state.step} of epoch {state.epoch + 1}, "
            f"learning rate {self.learning_rate:g}: start another run with a lower --learning-rate"
            + (f", perhaps with --init-from {out}" if state.best and is_classifier else "")
            + f"; kept as last good: {' and '.join(kept) or 'nothing yet'}."
        )


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def _of_first(checkpoint: Checkpoint | None, hosts: Hosts) -> Checkpoint | None:
    """Return the first host's checkpoint on every host, to the bit."""
    from jax.experimental import multihost_utils

    described: dict[str, Any] | None = None
    if checkpoint:
        arrays = [(array.shape, array.dtype.str) for array in checkpoint.arrays]
        described = {"state": dataclasses.asdict(checkpoint.state), "arrays": arrays}
    described = hosts.gather(described)[0]
    if described is None:
        return None
    kinds = [(tuple(shape), np.dtype(name)) for shape, name in described["arrays"]]
    if checkpoint:
        sent = [np.frombuffer(array.tobytes(), np.uint8) for array in checkpoint.arrays]
    else:
        sent = [np.zeros(math.prod(shape) * dtype.itemsize, np.uint8) for shape, dtype in kinds]
    received = multihost_utils.broadcast_one_to_all(sent)
    return Checkpoint(
        [
            np.frombuffer(content.tobytes(), dtype).reshape(shape)
            for content, (shape, dtype) in zip(received, kinds, strict=True)
        ],
        State(**described["state"]),
    )
