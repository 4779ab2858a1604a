"""TODO"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vggkeras.data import augment, decoding
from vggkeras.data.splits import Split
from vggkeras.evaluation.statistics import Evaluation
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    import keras


LOOKED_AT = 4  # right answers, and as many wrong ones, that Grad-CAM explains
THUMBNAIL = 160  # px, longer side: twice what a phone shows
KERNELS_A_ROW = 16


class Pictures:
    """Some images of a split: what the network was shown, and the same part of the image as people like to see it."""

    def __init__(self, split: Split, indices: np.ndarray, predictor: Predictor) -> None:
        wanted = sorted({int(i) for i in indices})
        some = split.without(set(split.indices()) - set(wanted))
        h, w = predictor.input_shape[:2]
        enlarged = THUMBNAIL / max(h, w)
        size, side = (
            (round(h * enlarged), round(w * enlarged)),
            math.ceil(predictor.scale * enlarged),
        )
        self.crops: dict[int, np.ndarray] = {}  # uint8 [H, W, 3], the model's input
        self.pictures: dict[int, np.ndarray] = {}  # uint8, the longer side THUMBNAIL
        for index, (_, encoded, _) in zip(wanted, some.examples(), strict=True):
            image = decoding.decode(encoded, split.image_name(index))
            crop = augment.center_crop(image, predictor.scale, (h, w))
            self.crops[index] = augment.in_channels(crop, predictor.input_shape[2])
            self.pictures[index] = augment.center_crop(image, side, size)


def answer_text(
    row: Evaluation, place: int, name: Callable[[int], str], pictures: Pictures
) -> dict[str, Any]:
    index = int(row.indices[place])
    return {
        "image": name(index),
        "label": row.class_names[row.labels[place]],
        "prediction": row.class_names[row.predictions[place]],
        "probability": float(row.confidences[place]),
        "picture": encoded_picture(pictures.pictures[index], "JPEG"),
    }


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Where in each image a class' score comes from (Selvaraju et al. 2017): float32 `[N, h, w]`, 0 or more.

    The maps are as large as those of block 5's last convolution, whose rectified outputs they add up, each weighed by
    the gradient of the score before soft-max, averaged over space. What speaks against the class is left out.

    Args:
        model: of `vggkeras.build()`, on the TensorFlow backend.
        images: uint8 `[N, H, W, C]`.
        classes: one an image.
    """
    import keras
    import tensorflow as tf

    maps = model.get_layer("block5_pool").input
    last = model.get_layer("predictions")
    below, above = keras.Model(model.input, maps), keras.Model(maps, last.input)
    a = below(images, training=False)  # [N, h, w, C]
    with tf.GradientTape() as tape:
        tape.watch(a)
        scores = keras.ops.matmul(above(a, training=False), last.kernel) + last.bias  # [N, classes]
        chosen = tf.gather(scores, tf.constant(classes, tf.int32), batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, a), axis=(1, 2))  # [N, C]
    return tf.nn.relu(tf.einsum("nhwc,nc->nhw", a, weights)).numpy()


def looked_at(
    model: keras.Model,
    row: Evaluation,
    places: list[int],
    name: Callable[[int], str],
    pictures: Pictures,
) -> dict[str, Any]:
    """Answers with Grad-CAM of the class answered and, where that is wrong, of the label too."""
    if not places:
        return {"answers": [], "cells": None}
    indices = row.indices[places]
    crops = np.stack([pictures.crops[int(i)] for i in indices])
    for_answer = grad_cam(model, crops, row.predictions[places])
    for_label = grad_cam(model, crops, row.labels[places])
    answers = []
    for place, index, of_answer, of_label in zip(
        places, indices, for_answer, for_label, strict=True
    ):
        picture, right = pictures.pictures[int(index)], bool(row.right[place])
        overlays = [(row.class_names[row.predictions[place]], of_answer)]
        overlays += [] if right else [(row.class_names[row.labels[place]], of_label)]
        shown = [
            {
                "class": label,
                "picture": encoded_picture(_overlay(picture, heat), "JPEG"),
                "empty": not heat.any(),
            }
            for label, heat in overlays
        ]
        answers.append(
            {**answer_text(row, place, name, pictures), "right": right, "overlays": shown}
        )
    return {"answers": answers, "cells": for_answer.shape[1:]}


def _overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map `[h, w]` laid over a picture, uint8 `[H, W, 3]`, that is grey beneath it; its largest value is brightest."""
    from matplotlib import colormaps

    h, w = picture.shape[:2]
    share = heat / heat.max() if heat.any() else heat
    share = np.asarray(
        Image.fromarray(share.astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None] * np.ones(3)
    colour = colormaps["inferno"](0.15 + 0.85 * share)[..., :3] * 255
    opacity = 0.75 * share[..., None] ** 0.7
    return np.round(grey * (1 - opacity) + colour * opacity).astype(np.uint8)


def kernels(model: keras.Model) -> dict[str, Any] | None:
    """The first convolution's kernels as one picture, each stretched over the whole range of grey or colour on its own."""
    kernel = np.asarray(model.get_layer("block1_conv1").kernel)  # [k, k, C, n]
    k, _, channels, count = kernel.shape
    if channels not in (1, 3):
        return None
    low, high = kernel.min(axis=(0, 1, 2)), kernel.max(axis=(0, 1, 2))
    shares = (kernel - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    columns, enlarged = min(count, KERNELS_A_ROW), 8
    cell = k * enlarged + 4  # px, with a gap
    sheet = np.zeros(
        (-(-count // columns) * cell, columns * cell, 4), np.uint8
    )  # RGBA, transparent between the kernels
    for i in range(count):
        y, x = (place * cell for place in divmod(i, columns))
        tile = np.repeat(np.repeat(np.round(255 * shares[..., i]), enlarged, 0), enlarged, 1)
        sheet[y : y + cell - 4, x : x + cell - 4, :3] = tile
        sheet[y : y + cell - 4, x : x + cell - 4, 3] = 255
    return {
        "picture": encoded_picture(sheet, "PNG"),
        "count": count,
        "side": k,
        "width": columns * cell,
    }


def encoded_picture(pixels: np.ndarray, kind: str) -> dict[str, Any]:
    """An `img`'s source and size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=82, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{encoded}",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }
