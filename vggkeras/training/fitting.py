"""Run Keras' `fit` on a recipe's pipelines until a run is finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from vggkeras.data import augment
from vggkeras.data.order import Share
from vggkeras.terminal import progress_bar
from vggkeras.training import devices, failures
from vggkeras.training.callbacks import run_callbacks
from vggkeras.training.pipeline import (
    Crops,
    rescaled_images,
    training_batches,
    validation_batches,
)
from vggkeras.training.progress import Job, Progress
from vggkeras.training.tensorboard import TensorBoard
from vggkeras.training.waiting import Waiting


def fit(
    model: keras.Model,
    progress: Progress,
    kept: keras.Model,
    callbacks: Sequence[keras.callbacks.Callback],
    strategy: Any,
) -> None:
    """Train until the run is finished.

    Args:
        model: what is trained.
        progress: how far the run has come.
        kept: the float32 model that is saved.
        callbacks: the user's.
        strategy: from `distribution_strategy`.
    """
    job, recipe, state = progress.job, progress.job.recipe, progress.state
    if state.finished:
        return
    if progress.stop.is_set():  # while the model was made
        raise KeyboardInterrupt
    crops, share = _crops(job), Share(job.hosts.index, job.hosts.count, recipe.images_per_step)
    classes = len(job.data.class_names)
    rescaled = rescaled_images(job.training, job.scale, job.console, progress.stop, crops.fast)
    validation_data = _validation(job, strategy)

    @functools.lru_cache(maxsize=1)  # TensorBoard looks at what is then trained on
    def batches_from(step: int) -> Any:
        start = step * recipe.images_per_step
        return training_batches(job.training, recipe, crops, start, rescaled, classes, share)

    with progress_bar(job.console, "steps") as bar:
        # Several devices of TensorFlow fetch batches in a thread, whose waiting is not training's.
        waiting = Waiting() if keras.backend.backend() == "jax" or not strategy else None
        followed = run_callbacks(progress, kept, bar, callbacks, waiting)
        if job.hosts.is_first:
            followed.append(TensorBoard(progress, batches_from))
        while not state.finished:
            batches = batches_from(progress.steps_done)
            try:
                model.fit(
                    waiting.timed(batches) if waiting else batches,
                    validation_data=validation_data,
                    initial_epoch=state.epoch,
                    # fit() can only begin in the middle of an epoch if the rest of it is a fit of
                    # its own.
                    epochs=state.epoch + 1 if state.step else recipe.epochs,
                    steps_per_epoch=job.steps - state.step,
                    class_weight=job.class_weights,
                    shuffle=False,  # tf.data has shuffled
                    verbose=0,
                    callbacks=followed,
                )
            except BaseException as error:
                failures.free_frames(error)
                raise


def _crops(job: Job) -> Crops:
    """Return how the images of a job become crops."""
    recipe, covariance = job.recipe, np.array(job.card.rgb_covariance)
    basis = augment.color_basis(covariance) if recipe.color and recipe.channels == 3 else None
    flip = recipe.flip and job.data.mirrors
    return Crops(job.size, job.scale, flip, basis, recipe.channels, recipe.fast_decode)


def _validation(job: Job, strategy: Any) -> Any:
    """Return the validation images of a job in batches, filled up where devices divide them."""
    recipe, classes = job.recipe, len(job.data.class_names)
    return validation_batches(
        job.validation,
        recipe.batch_size,
        job.size,
        job.card.scale or job.size,
        recipe.channels,
        one_hot=classes if recipe.one_hot else 0,
        padding=devices.padding(strategy, job.validation.count, recipe.batch_size, job.hosts),
    )
