"""The optimizer and the loss of section 3.1, and the frozen and slower layers of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vggkeras import recipe as recipe_module
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.devices import gpus


def freeze(model: keras.Model, recipe: Recipe, copied: Mapping[str, str | None]) -> None:
    """Make the layers that the recipe freezes untrainable, batch normalization's averages too.

    Args:
        model: the network to train.
        recipe: its `freeze` is used.
        copied: where each layer's weights come from; None where they were drawn at random.

    Raises:
        InputError (a ValueError): a frozen layer would keep random weights.
    """
    trained = recipe_module.TRAINED_LAYERS[recipe.freeze]
    if trained is None:
        return
    frozen = [layer for layer in model.layers if layer.weights and layer.name not in trained]
    random = [layer.name for layer in frozen if not copied.get(layer.name)]
    if random:
        names = ", ".join(random[:3]) + (" …" if len(random) > 3 else "")
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


def compile_model(model: keras.Model, recipe: Recipe, copied: Sequence[str] = ()) -> None:
    """Compile with the paper's optimizer and loss: SGD with momentum on the cross-entropy.

    The L2 penalty is in the model (`build(weight_decay=...)`). XLA is used where it helps: always
    by JAX, by TensorFlow on a GPU; on a CPU it halves TensorFlow's speed. Gradients of float16 are
    scaled, and steps in which they overflow are left out.

    Args:
        model: the network to train.
        recipe: its learning rates, momentum, accumulation and precision are used.
        copied: names of the layers that learn at `recipe.copied_rate` of the learning rate.
    """
    options: dict[str, Any] = {"momentum": recipe.momentum}
    if recipe.accumulate > 1:
        options["gradient_accumulation_steps"] = recipe.accumulate
    if recipe.copied_rate == 1:
        optimizer = keras.optimizers.SGD(recipe.first_rate, **options)
    else:
        optimizer = LayerwiseSGD(
            recipe.first_rate, slower=copied, multiplier=recipe.copied_rate, **options
        )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
        ],
        jit_compile=keras.backend.backend() == "jax" or bool(gpus()),
        auto_scale_loss=False,
    )
