"""Show a run in TensorBoard: its metrics, its hyperparameters and a few images.

    tensorboard --logdir runs

On every backend TensorFlow writes the files, as the input pipelines are its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from vggkeras import models
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.pages import kernel_sheet
from vggkeras.runtimes.keras import keras_predictor
from vggkeras.training.devices import undistributed
from vggkeras.training.progress import Progress

SHOWN = 16  # crops, and mistakes
LOOKED_AT = 256  # validation images, evenly over the split, that mistakes are looked for among

Logs = dict[str, Any] | None


class TensorBoard(keras.callbacks.TensorBoard):
    """Writes hyperparameters and a few images at a run's begin and end, beside Keras' metrics.

    It neither draws a number of the training's random generators nor changes a weight.
    """

    def __init__(self, progress: Progress, batches: Callable[[int], Any]) -> None:
        """Write into the run's folder; `batches(step)` returns what is trained on from there."""
        super().__init__(progress.job.out / "tensorboard", write_graph=False)
        self.progress, self.batches, self.has_begun = progress, batches, False

    def on_train_begin(self, logs: Logs = None) -> None:
        """Write the hyperparameters, the first kernels, and the first crops of a new run."""
        super().on_train_begin(logs)
        if self.has_begun:  # the rest of an epoch that was cut off was a fit of its own
            return
        self.has_begun = True
        with self._writing():
            self._write_hyperparameters()
            self._write_kernels(self.model)
            # Later in a run, all records before them would be read twice.
            if not self.progress.steps_done:
                images, _ = next(iter(self.batches(0).take(1)))
                # A color shift may lead out of the range.
                self._write_images("crops", np.rint(images[:SHOWN].numpy()).clip(0, 255))

    def on_train_end(self, logs: Logs = None) -> None:
        """Write the best model's first kernels and its most confident mistakes."""
        if self.progress.state.finished:
            try:
                with self._writing(), undistributed():
                    self._write_best()
            except InputError as error:  # an image that went bad; the run is finished all the same
                self.progress.job.console.print(f"TensorBoard has no mistakes: {error}")
        super().on_train_end(logs)

    def _writing(self) -> Any:
        """Return the context in which tf.summary writes into the run's folder."""
        import tensorflow as tf

        return tf.summary.create_file_writer(self.log_dir).as_default()

    def _write_images(self, name: str, images: np.ndarray) -> None:
        """Write images `[N, H, W, C]`, 0-255, under one name."""
        import tensorflow as tf

        step = self.progress.state.epoch
        tf.summary.image(name, images.astype(np.uint8), step, max_outputs=len(images))

    def _write_hyperparameters(self) -> None:
        from tensorboard.plugins.hparams import api

        job = self.progress.job
        recipe = dataclasses.replace(job.recipe, image_size=job.size)
        values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
        api.hparams(
            {
                name: value if isinstance(value, bool | int | float) else str(value)
                for name, value in values.items()
                if value is not None and name != "out"
            }
        )

    def _write_kernels(self, network: keras.Model) -> None:
        sheet = kernel_sheet(ops.convert_to_numpy(network.get_layer("block1_conv1").kernel))
        if sheet is not None:
            self._write_images("kernels of block1_conv1", sheet[None])

    def _write_best(self) -> None:
        job = self.progress.job
        model, card = models.load_model(job.out / "model.keras")
        self._write_kernels(model)
        if job.recipe.boxes:  # whose answers are no classes
            return
        split, indices = job.validation, job.validation.indices()
        indices = indices[:: -(-len(indices) // LOOKED_AT)]
        some = split.without(set(split.indices()) - set(indices))
        crops = list(augment.center_crops(some, (job.size, job.size), card.scale or job.size))
        images = np.stack([augment.in_channels(crop, job.recipe.channels) for _, crop, _ in crops])
        answers = keras_predictor(model, card)(images)
        confidences, predictions = answers.max(axis=1), answers.argmax(axis=1)
        labels, names = np.array([label for _, _, label in crops]), job.data.class_names
        wrong = np.flatnonzero(predictions != labels)
        for i in wrong[np.argsort(-confidences[wrong], kind="stable")][:SHOWN]:
            name = f"{split.image_name(indices[i])}: {names[labels[i]]}"
            taken_for = f"{names[predictions[i]]}, {confidences[i]:.0%}"
            self._write_images(f"mistakes/{name} taken for {taken_for}", images[i : i + 1])
