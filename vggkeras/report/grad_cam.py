"""Show where in an image the score of a class comes from: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from vggkeras.pages import Picture, encode_picture
from vggkeras.report.pictures import Answer, Answers

if TYPE_CHECKING:
    import keras

# Networks -> what is below their last maps, and above.
_HALVES: MutableMapping[keras.Model, tuple[keras.Model, keras.Model]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Overlay:
    """A class's Grad-CAM over an image."""

    label: str
    picture: Picture
    is_empty: bool  # nothing in the image speaks for the class


@dataclass(frozen=True)
class Look:
    """An answer, explained for the class answered and, where that is wrong, for the label too."""

    answer: Answer
    is_right: bool
    overlays: list[Overlay]


@dataclass(frozen=True)
class Looks:
    """Explained answers."""

    looks: list[Look]
    cells: tuple[int, int]  # of the maps


def explain(network: keras.Model, answers: Answers, positions: Sequence[int]) -> Looks | None:
    """Explain some answers by Grad-CAM; None where there are none."""
    if not positions:
        return None
    evaluation, crops = answers.evaluation, np.stack([answers.crops[i] for i in positions])
    of_predictions = grad_cam(network, crops, evaluation.predictions[positions])  # [n, h, w]
    of_labels = grad_cam(network, crops, evaluation.labels[positions])
    looks = []
    for position, of_prediction, of_label in zip(positions, of_predictions, of_labels, strict=True):
        answer, is_right = answers.answer(position), bool(evaluation.right[position])
        thumbnail = answers.thumbnails[position]
        overlays = [overlay(answer.prediction, thumbnail, of_prediction)]
        if not is_right:
            overlays.append(overlay(answer.label, thumbnail, of_label))
        looks.append(Look(answer, is_right, overlays))
    return Looks(looks, of_labels.shape[1:])


def can_explain(network: keras.Model | None) -> bool:
    """Return whether `grad_cam` takes a network: one of `vggkeras.build()`, on TensorFlow."""
    if network is None:
        return False
    from keras.backend import backend

    names = {layer.name for layer in network.layers}
    return backend() == "tensorflow" and {"block5_pool", "predictions"} <= names


def grad_cam(
    network: keras.Model, images: np.ndarray, classes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return where in each image the score of a class comes from: float32 `[N, h, w]`, 0 or more.

    The maps are a weighted sum of the rectified outputs of block 5's last convolution. The weights
    are the gradients of the score before soft-max, averaged over space. Negative values, which
    speak against the class, become 0.

    Args:
        network: from `vggkeras.build()`, on the TensorFlow backend.
        images: uint8 `[N, H, W, C]`.
        classes: one an image.
    """
    import keras
    import tensorflow as tf

    last = network.get_layer("predictions")
    if network not in _HALVES:  # making them adds nodes to the network, for good
        maps = network.get_layer("block5_pool").input
        _HALVES[network] = keras.Model(network.input, maps), keras.Model(maps, last.input)
    below, above = _HALVES[network]
    a = below(images, training=False)  # [N, h, w, C]
    with tf.GradientTape() as tape:
        tape.watch(a)
        scores = keras.ops.matmul(above(a, training=False), last.kernel) + last.bias  # [N, classes]
        chosen = tf.gather(scores, tf.constant(classes, tf.int32), batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, a), axis=(1, 2))  # [N, C]
    return tf.nn.relu(tf.einsum("nhwc,nc->nhw", a, weights)).numpy()


def overlay(label: str, thumbnail: np.ndarray, heat: np.ndarray) -> Overlay:
    """Lay a map `[h, w]` over a thumbnail, uint8 `[H, W, 3]`, in gray; its maximum is brightest."""
    from matplotlib import colormaps

    h, w = thumbnail.shape[:2]
    small = Image.fromarray((heat / (heat.max() or 1)).astype(np.float32))
    relative = np.asarray(small.resize((w, h), Image.Resampling.BICUBIC)).clip(0, 1)
    gray = np.asarray(Image.fromarray(thumbnail).convert("L"))[..., None] * np.ones(3)
    color = colormaps["inferno"](0.15 + 0.85 * relative)[..., :3] * 255
    opacity = 0.75 * relative[..., None] ** 0.7
    blended = np.round(gray * (1 - opacity) + color * opacity).astype(np.uint8)
    return Overlay(label, encode_picture(blended), is_empty=not heat.any())
