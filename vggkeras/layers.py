"""The layer that subtracts the mean (section 2.1), and LRN (Table 1, A-LRN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from vggkeras import configs
from vggkeras.errors import InputError


def mean_layer(mean: Sequence[float]) -> layers.Layer:
    """Return the layer `mean_rgb`, which subtracts the training set's mean RGB (section 2.1).

    It is Keras' own `Rescaling`, so that any Keras 3 loads the file. It has no weights: the mean
    travels in the layer's config, and a model cannot be parted from it. Images `[N, H, W, C]`,
    0-255, become centered float32 values of the same shape; bfloat16 has no fractions there.

    Args:
        mean: one number a channel, 0-255.
    """
    offset = [-float(value) for value in mean]
    return layers.Rescaling(1.0, offset=offset, dtype="float32", name="mean_rgb")


def mean_rgb(model: keras.Model) -> tuple[float, ...]:
    """Return what a network's first layer subtracts, one number a channel, 0-255."""
    return tuple(-float(value) for value in model.get_layer("mean_rgb").offset)


@keras.saving.register_keras_serializable(package="vggkeras")
class MeanRGB(layers.Rescaling):
    """The layer `mean_rgb` of files that version 0.1 wrote. Loading one makes it a `Rescaling`."""

    def __init__(self, mean: Sequence[float], **kwargs: Any) -> None:
        """Take the mean, one number a channel, 0-255."""
        super().__init__(1.0, offset=[-float(value) for value in mean], **kwargs)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> layers.Layer:
        """Return the `Rescaling` that subtracts the same mean."""
        mean = config.pop("mean")
        return layers.Rescaling(1.0, offset=[-float(value) for value in mean], **config)


@keras.saving.register_keras_serializable(package="vggkeras")
class LRN(layers.Layer):
    """Normalizes across channels: b = a / (k + alpha * sum a^2)^beta (Krizhevsky 2012, 3.3).

    The sum runs over the n channels around each one, fewer at the ends. alpha is not divided by n;
    ONNX and Caffe divide it.
    """

    def __init__(
        self,
        n: int = configs.LRN_N,
        k: float = configs.LRN_K,
        alpha: float = configs.LRN_ALPHA,
        beta: float = configs.LRN_BETA,
        **kwargs: Any,
    ) -> None:
        """Take AlexNet's constants, or others; n is odd."""
        super().__init__(**kwargs)
        if n < 1 or n % 2 == 0:
            raise InputError(
                f"LRN's n must be a positive odd number of channels; received {n}: the paper has 5."
            )
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def call(self, x):
        """Return the normalized feature maps, [N, H, W, C] as x."""
        reach = self.n // 2
        if keras.backend.backend() == "tensorflow":
            # One op here is one op in ONNX and TFLite; written with slices it becomes fifteen.
            import tensorflow as tf

            return tf.nn.local_response_normalization(x, reach, self.k, self.alpha, self.beta)
        channels = x.shape[-1]
        squares = ops.pad(ops.square(x), [(0, 0), (0, 0), (0, 0), (reach, reach)])
        total = sum(squares[..., i : i + channels] for i in range(self.n))
        return x / ops.power(self.k + self.alpha * total, self.beta)

    def compute_output_shape(self, input_shape):
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "n": self.n,
            "k": self.k,
            "alpha": self.alpha,
            "beta": self.beta,
        }
