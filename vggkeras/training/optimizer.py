"""TODO"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from vggkeras import recipe as recipe_module
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.devices import gpus


def freeze(model: keras.Model, recipe: Recipe, copied: dict[str, str | None]) -> None:
    """Take the layers that the recipe freezes out of training; their batch normalisation keeps its statistics."""
    trained = recipe_module.FROZEN[recipe.freeze]
    if trained is None:
        return
    frozen = [layer for layer in model.layers if layer.weights and layer.name not in trained]
    anew = [layer.name for layer in frozen if not copied.get(layer.name)]
    if anew:
        raise InputError(
            f"--freeze {recipe.freeze} would keep {', '.join(anew[:3])}{' …' if len(anew) > 3 else ''} as they were drawn, for "
            f"{recipe.init_from} does not give {'them' if len(anew) > 1 else 'it'}: give --freeze "
            f"{'conv' if all(name.startswith('fc') for name in anew) else 'none'}, or another --init-from."
        )
    for layer in frozen:
        layer.trainable = False


@keras.saving.register_keras_serializable(package="vggkeras")
class LayerwiseSGD(keras.optimizers.SGD):
    """SGD that multiplies the rate of some layers; a rate for each variable is not Keras'."""

    def __init__(
        self, *args: Any, slower: Sequence[str] = (), multiplier: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.slower, self.multiplier = list(slower), multiplier
        self.multipliers: list[float] = []

    def build(self, variables):
        super().build(variables)
        self.multipliers = [
            self.multiplier if v.path.split("/")[0] in self.slower else 1.0 for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        multiplier = self.multipliers[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * multiplier)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slower": self.slower, "multiplier": self.multiplier}


def compile_model(model: keras.Model, recipe: Recipe, copied: Sequence[str] = ()) -> None:
    """Compile with the paper's optimizer and loss: SGD with momentum on multinomial logistic regression.

    The layers `copied` learn at `recipe.copied_rate` of the rate.

    The L2 penalty is in the model (`build(weight_decay=...)`). XLA is used where it helps: always by JAX, by
    TensorFlow on a GPU; on a CPU it halves TensorFlow's speed. float16's gradients are scaled, and steps in which they
    overflow are left out.
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
