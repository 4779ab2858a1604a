"""The paper's learning rate schedule (section 3.1), as a Keras callback, and a cosine.

model.fit(x, y, validation_data=…, epochs=74, callbacks=vggkeras.paper_callbacks())
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from vggkeras.recipe import Recipe
from vggkeras.training.checkpoints import State

DROPS = 3  # of the learning rate, each to a tenth


def is_over(state: State, patience: int) -> bool:
    """Return whether the schedule has ended a run: a plateau after the last drop."""
    return state.drops >= DROPS and state.waited >= patience


def monitored(recipe: Recipe, row: Mapping[str, float]) -> str:
    """Return what a recipe monitors, with its value in an epoch's row, in words."""
    name = recipe.monitor.removeprefix("val_").replace("cross_entropy", "cross-entropy")
    name = "localization (IoU > 0.5)" if recipe.boxes else name
    return f"validation {name} {row[recipe.monitor]:.4f}"


def cosine(recipe: Recipe, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Return a recipe's cosine schedule, with its warmup; `steps` are of an epoch."""
    warm, whole = recipe.warmup * steps, recipe.epochs * steps
    if not warm:
        return keras.optimizers.schedules.CosineDecay(recipe.first_rate, whole)
    return keras.optimizers.schedules.CosineDecay(
        0.0, whole - warm, warmup_target=recipe.first_rate, warmup_steps=warm
    )


def paper_callbacks(patience: int = 5) -> list[keras.callbacks.Callback]:
    """Return the paper's learning rate schedule for a `model.fit` of your own.

    The learning rate is divided by 10 when validation accuracy stops improving, three times; then
    training stops.

    Args:
        patience: epochs without a better validation accuracy before a drop.

    Returns:
        Callbacks for `fit`, which needs validation data and a metric with the name `accuracy`.
    """
    return [PlateauSchedule(patience)]


class PlateauSchedule(keras.callbacks.ReduceLROnPlateau):
    """Divide the learning rate by 10 on a plateau of what is monitored; stop at the fourth.

    Keras' class forgets the best accuracy and the epochs waited at the start of every `fit`; here
    they come from a run's `state` and go back to it. Keras multiplies the float32 learning rate by
    0.1, which rounds three times; here it is `first_rate` / 10 ** drops, rounded once.
    """

    def __init__(
        self,
        patience: int,
        first_rate: float | None = None,
        state: State | None = None,
        monitor: str = "val_accuracy",
    ) -> None:
        """Create the schedule.

        Args:
            patience: epochs without a better validation accuracy before a drop.
            first_rate: the learning rate before the first drop; by default the optimizer's when
                `fit` begins.
            state: how far the run has come; by default every `fit` begins anew.
            monitor: val_accuracy, or what falls as a model improves, such as val_cross_entropy.
        """
        mode = "max" if monitor == "val_accuracy" else "min"
        super().__init__(monitor, factor=0.1, patience=patience, mode=mode, min_delta=0)
        self.first_rate, self.state = first_rate, state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take up the state of the run."""
        super().on_train_begin(logs)
        state = self.state or State()
        self.best = state.best and state.best[self.monitor]
        self.wait, self.drops = state.waited, state.drops
        self.rate = self.first_rate or self._learning_rate()
        self.min_lr = self.rate / 10**DROPS

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Drop the learning rate or stop training where the epoch asks for it.

        The last epoch decides too, so that a run that is lengthened goes on as a longer one would.
        """
        # Rounded as in a run's state, with which it is compared. A copy, for Keras adds the
        # learning rate to it.
        rounded = {name: round(float(value), 6) for name, value in (logs or {}).items()}
        before = self._learning_rate()
        super().on_epoch_end(epoch, rounded)
        if self._learning_rate() < before:
            self.drops += 1
            self.model.optimizer.learning_rate = self.rate / 10**self.drops
        elif self.wait >= self.patience:  # Keras goes no lower than min_lr
            self.model.stop_training = True
        if self.state:
            self.state.waited, self.state.drops = self.wait, self.drops

    def _learning_rate(self) -> float:
        return float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
