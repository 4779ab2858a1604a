"""The optimizer and the loss, of section 3.1 or beyond, and the layers that fine-tuning freezes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.localization import regression
from vggkeras.recipe import Recipe
from vggkeras.training.devices import gpus
from vggkeras.training.schedule import cosine


def freeze(model: keras.Model, recipe: Recipe, copied: Mapping[str, str | None]) -> None:
    """Make the layers that the recipe freezes untrainable, batch normalization's averages too.

    Args:
        model: the network to train.
        recipe: its `freeze` is used.
        copied: where each layer's weights come from; None where they were drawn at random.

    Raises:
        InputError (a ValueError): a frozen layer would keep random weights.
    """
    trained = recipe.trained_layers
    if trained is None:
        return
    frozen = [layer for layer in model.layers if layer.weights and layer.name not in trained]
    random = [layer.name for layer in frozen if not copied.get(layer.name)]
    if random:
        names = ", ".join(random[:3]) + (" …" if len(random) > 3 else "")
        if recipe.boxes:
            raise InputError(
                f"--tune fc would keep {names} at random weights, for {recipe.init_from} does not "
                "give them: give --tune all, or another --init-from."
            )
        instead = "conv" if all(name.startswith("fc") for name in random) else "none"
        raise InputError(
            f"--freeze {recipe.freeze} would freeze {names} at random weights, for "
            f"{recipe.init_from} does not give {'them' if len(random) > 1 else 'it'}: give "
            f"--freeze {instead}, or another --init-from."
        )
    for layer in frozen:
        layer.trainable = False


@keras.saving.register_keras_serializable(package="vggkeras")
class LayerwiseSGD(keras.optimizers.SGD):
    """SGD that multiplies the learning rate of some layers."""

    # Keras' MultiOptimizer has no learning rate of its own, which schedules, loss scaling and older
    # checkpoints need.

    def __init__(
        self, *args: Any, slower: Sequence[str] = (), multiplier: float = 1.0, **kwargs: Any
    ) -> None:
        """Create SGD, with `multiplier` for the layers `slower`."""
        super().__init__(*args, **kwargs)
        self.slower, self.multiplier = list(slower), multiplier
        self.multipliers: list[float] = []

    def build(self, variables):
        """Look up the multiplier of every variable."""
        super().build(variables)
        self.multipliers = [
            self.multiplier if v.path.split("/")[0] in self.slower else 1.0 for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable at its own learning rate."""
        multiplier = self.multipliers[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * multiplier)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras saves of the optimizer."""
        return {**super().get_config(), "slower": self.slower, "multiplier": self.multiplier}


class Counted(keras.metrics.MeanMetricWrapper):
    """A mean over the images whose weight is not 0, whatever else they weigh in the loss."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count a batch."""
        if sample_weight is not None:
            sample_weight = ops.cast(ops.greater(sample_weight, 0), "float32")
        return super().update_state(y_true, y_pred, sample_weight)


def compile_model(
    model: keras.Model,
    recipe: Recipe,
    copied: Sequence[str] = (),
    steps: int = 1,
    padded: bool = False,
) -> None:
    """Compile with a recipe's optimizer and loss: the paper's is SGD with momentum.

    The L2 penalty is in the model (`build(weight_decay=...)`). Metrics are plain, whatever the loss
    smooths or weighs, so that they can be compared between recipes. For boxes, accuracy is the
    fraction that is localized, and iou the mean overlap. XLA is used where it helps:
    always by JAX, by TensorFlow on a GPU; on a CPU it halves TensorFlow's speed. Gradients of
    float16 are scaled, and steps in which they overflow are left out.

    Args:
        model: the network to train.
        recipe: what is used of it is how weights are updated, the loss and the precision.
        copied: names of the layers that learn at `recipe.copied_rate` of the learning rate.
        steps: of an epoch, for a schedule that changes in every one.
        padded: whether validation has images that weigh 0; see `Padding`.
    """
    optimizer = _optimizer(recipe, copied, steps)
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss: Any = keras.losses.SparseCategoricalCrossentropy()
    accuracy: type = keras.metrics.SparseCategoricalAccuracy
    cross_entropy: type = keras.metrics.SparseCategoricalCrossentropy
    if recipe.one_hot:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing)
        accuracy = keras.metrics.CategoricalAccuracy
        cross_entropy = keras.metrics.CategoricalCrossentropy
    metrics = [accuracy(name="accuracy"), cross_entropy(name="cross_entropy")]
    if recipe.boxes:
        loss = regression.euclidean
        wrapped = keras.metrics.MeanMetricWrapper
        metrics = [wrapped(regression.localized, "accuracy"), wrapped(regression.overlap, "iou")]
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=None if padded else metrics,
        weighted_metrics=_counted(recipe) if padded else None,
        jit_compile=keras.backend.backend() == "jax" or bool(gpus()),
        auto_scale_loss=False,
    )


def _counted(recipe: Recipe) -> list[Counted]:
    if recipe.boxes:
        return [Counted(regression.localized, "accuracy"), Counted(regression.overlap, "iou")]
    accuracy = keras.metrics.sparse_categorical_accuracy
    cross_entropy = keras.metrics.sparse_categorical_crossentropy
    if recipe.one_hot:
        accuracy = keras.metrics.categorical_accuracy
        cross_entropy = keras.metrics.categorical_crossentropy
    return [Counted(accuracy, "accuracy"), Counted(cross_entropy, "cross_entropy")]


def _optimizer(recipe: Recipe, copied: Sequence[str], steps: int) -> keras.optimizers.Optimizer:
    rate: Any = cosine(recipe, steps) if recipe.schedule == "cosine" else recipe.first_rate
    options: dict[str, Any] = {}
    if recipe.accumulate > 1:
        options["gradient_accumulation_steps"] = recipe.accumulate
    if recipe.ema is not None:
        options |= {"use_ema": True, "ema_momentum": recipe.ema}
    if recipe.optimizer == "adamw":
        adamw = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, **options)
        # As with the L2 penalty, only kernels decay.
        adamw.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return adamw
    options["momentum"] = recipe.momentum
    if recipe.copied_rate == 1:
        return keras.optimizers.SGD(rate, **options)
    return LayerwiseSGD(rate, slower=copied, multiplier=recipe.copied_rate, **options)


def balanced_weights(split: Split, class_names: Sequence[str]) -> dict[int, float]:
    """Return the weight n / (k * n_c) of each class's images, by the class's number.

    n is the number of images, k of classes, n_c of the class's images (scikit-learn's "balanced").

    Args:
        split: the training images. The labels of TFDS records are read.
        class_names: of all classes.

    Raises:
        InputError (a ValueError): a class has no training images.
    """
    labels = split.labels
    if labels is None:
        labels = np.array([label for _, _, label in split.sourced()])
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        raise InputError(
            f"--class-weights balanced needs images of every class, and {split.name} has none of "
            f"{class_names[int(counts.argmin())]!r}: add some, or leave --class-weights out."
        )
    weights = len(labels) / (len(class_names) * counts)
    return dict(enumerate(weights.tolist()))


class AveragedWeights(keras.callbacks.Callback):
    """Validates with the moving averages of the weights, and trains on with the weights.

    keras.callbacks.SwapEMAWeights exchanges them by sums and differences on TensorFlow, which
    rounds the weights that training goes on with; here they are kept and put back as they were.
    """

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the averages in."""
        self.trained = put_averages_in(self.model)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the weights back."""
        put_back(self.model, self.trained)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Undo what Keras does when `fit` ends: it makes the averages the weights."""
        put_back(self.model, self.trained)


def put_averages_in(model: keras.Model) -> list[np.ndarray]:
    """Make the optimizer's moving averages a model's weights; return the weights it had."""
    trained = _copies(model.trainable_variables)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    # JAX has them share the arrays of the averages, which a test step would delete with its own.
    put_back(model, _copies(model.trainable_variables))
    return trained


def _copies(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def put_back(model: keras.Model, trained: Sequence[np.ndarray]) -> None:
    """Make weights from `put_averages_in` a model's again."""
    for variable, value in zip(model.trainable_variables, trained, strict=True):
        variable.assign(value)
