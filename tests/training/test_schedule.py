"""The learning rate schedule on lists of accuracies, without training."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest

import vggkeras
from vggkeras.training.checkpoints import State
from vggkeras.training.schedule import PlateauSchedule, is_over


def learning_rates(schedule, accuracies, first_rate: float, start: int = 0) -> list[float]:
    """Return the learning rate of each epoch until training stops, and of the one after."""
    optimizer = keras.optimizers.SGD(first_rate)
    schedule.set_model(SimpleNamespace(optimizer=optimizer, stop_training=False))
    schedule.on_train_begin()
    rates = [float(optimizer.learning_rate)]
    for epoch, accuracy in enumerate(accuracies, start):
        logs = {"val_accuracy": accuracy}
        schedule.on_epoch_end(epoch, logs)
        assert logs == {"val_accuracy": accuracy}
        if schedule.model.stop_training:
            break
        rates.append(float(optimizer.learning_rate))
    return rates


def test_the_learning_rate_drops_three_times_on_a_plateau_then_training_stops():
    (schedule,) = vggkeras.paper_callbacks(patience=2)
    rates = learning_rates(schedule, [0.5] * 50, 0.1)
    assert rates == pytest.approx([0.1] * 3 + [1e-2] * 2 + [1e-3] * 2 + [1e-4] * 2)


def test_a_better_accuracy_starts_the_wait_again_and_an_equal_one_does_not():
    (schedule,) = vggkeras.paper_callbacks(patience=2)
    rates = learning_rates(schedule, [0.1, 0.2, 0.2, 0.3, 0.3, 0.25, 0.31], 1.0)
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 2)


@pytest.mark.parametrize("first_rate", [1e-2, 0.3 * 6 / 256, 0.16 * 32 / 256, 1e-9 / 64])
def test_every_learning_rate_is_rounded_once(first_rate):
    """Keras' own class multiplies the rounded learning rate by 0.1 again and again."""
    rates = learning_rates(PlateauSchedule(1, first_rate), [0.5] * 9, first_rate)
    assert rates[1:] == [float(np.float32(first_rate / 10**drops)) for drops in range(4)]


def test_the_schedule_is_over_when_it_stops_training_and_not_before():
    state = State()
    schedule = PlateauSchedule(2, 0.1, state)
    over = []
    for epochs in range(1, 10):
        vars(state).update(vars(State()))
        learning_rates(schedule, [0.5] * epochs, 0.1)
        over.append(is_over(state, 2))
    assert over == [False] * 8 + [True]


def test_the_cross_entropy_is_to_fall():
    optimizer = keras.optimizers.SGD(0.1)
    schedule = PlateauSchedule(2, 0.1, State(), "val_cross_entropy")
    schedule.set_model(SimpleNamespace(optimizer=optimizer, stop_training=False))
    schedule.on_train_begin()
    waited = []
    for epoch, cross_entropy in enumerate([2.0, 1.0, 1.5, 0.5, 0.5, 0.6]):
        schedule.on_epoch_end(epoch, {"val_cross_entropy": cross_entropy, "val_accuracy": 0.5})
        waited.append((schedule.wait, schedule.drops))
    assert waited == [(0, 0), (0, 0), (1, 0), (0, 0), (1, 0), (0, 1)]


def test_the_state_of_a_run_goes_on_in_another_fit():
    accuracies = [1 / 3, 2 / 3, 2 / 3, 0.5, 2 / 3, 0.7, 0.7, 0.7, 0.1]
    whole = learning_rates(PlateauSchedule(2, 0.1), accuracies, 0.1)
    assert len(set(whole)) == 3
    for cut in range(1, len(accuracies)):
        state = State()
        first = learning_rates(PlateauSchedule(2, 0.1, state), accuracies[:cut], 0.1)
        state.best = {"val_accuracy": round(max(accuracies[:cut]), 6)}  # as a checkpoint has it
        schedule = PlateauSchedule(2, 0.1, State(**vars(state)))
        rest = learning_rates(schedule, accuracies[cut:], first[-1], cut)
        assert first[:-1] + rest == whole, cut


def test_every_fit_by_hand_begins_anew():
    (schedule,) = vggkeras.paper_callbacks(patience=2)
    once = learning_rates(schedule, [0.5] * 4, 0.1)
    assert learning_rates(schedule, [0.4] * 4, 0.1) == once
