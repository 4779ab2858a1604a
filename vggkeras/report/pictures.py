"""Show the images of a split that a model answered, and the kernels of its first convolution."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vggkeras.data import augment
from vggkeras.data.splits import Split
from vggkeras.evaluation.statistics import Evaluation
from vggkeras.pages import Picture, encode_picture, read_some
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    import keras

THUMBNAIL = 160  # px, longer side: twice what a phone shows
KERNELS_A_ROW, KERNEL_SCALE, KERNEL_GAP = 16, 8, 4  # px


@dataclass(frozen=True)
class Answer:
    """A model's answer about one image."""

    image: str  # its name
    label: str
    prediction: str
    probability: float
    picture: Picture


@dataclass(frozen=True)
class Answers:
    """Answers about some images of a split; each goes by its position in the evaluation."""

    evaluation: Evaluation
    name: Callable[[int], str]  # what to call an image, by its index in the split
    crops: dict[int, np.ndarray]  # position -> uint8 [H, W, C], the model's input
    thumbnails: dict[int, np.ndarray]  # position -> uint8 [h, w, 3], the same part, for people

    @classmethod
    def read(
        cls,
        evaluation: Evaluation,
        positions: Iterable[int],
        split: Split,
        name: Callable[[int], str],
        predictor: Predictor,
    ) -> Answers:
        """Read the images at some positions of an evaluation."""
        position = {int(evaluation.indices[i]): int(i) for i in positions}
        crops, thumbnails = {}, {}
        both = functools.partial(crop_and_thumbnail, predictor)
        for index, (crop, thumbnail) in read_some(split, position, both):
            crops[position[index]], thumbnails[position[index]] = crop, thumbnail
        return cls(evaluation, name, crops, thumbnails)

    def answer(self, position: int) -> Answer:
        """Return the answer at a position of the evaluation."""
        evaluation = self.evaluation
        return Answer(
            image=self.name(int(evaluation.indices[position])),
            label=evaluation.class_names[evaluation.labels[position]],
            prediction=evaluation.class_names[evaluation.predictions[position]],
            probability=float(evaluation.confidences[position]),
            picture=encode_picture(self.thumbnails[position]),
        )


def crop_and_thumbnail(predictor: Predictor, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return a predictor's input, uint8 `[H, W, C]`, and the same part for people, `[h, w, 3]`."""
    (h, w, channels), scale = predictor.input_shape, predictor.scale
    enlarged = THUMBNAIL / max(h, w)
    size, side = (round(h * enlarged), round(w * enlarged)), math.ceil(scale * enlarged)
    crop = augment.center_crop(image, scale, (h, w))
    return augment.in_channels(crop, channels), augment.center_crop(image, side, size)


@dataclass(frozen=True)
class Kernels:
    """The kernels of the first convolution."""

    picture: Picture
    count: int
    side: int  # weights


def kernels(network: keras.Model) -> Kernels | None:
    """Draw the first convolution's kernels, each stretched over the whole range on its own."""
    weights = np.asarray(network.get_layer("block1_conv1").kernel)  # [k, k, C, n]
    side, _, channels, count = weights.shape
    if channels not in (1, 3):
        return None
    low, high = weights.min(axis=(0, 1, 2)), weights.max(axis=(0, 1, 2))
    stretched = np.round(255 * (weights - low) / np.maximum(high - low, np.finfo(np.float32).tiny))
    columns, tile_side = min(count, KERNELS_A_ROW), side * KERNEL_SCALE
    cell = tile_side + KERNEL_GAP
    sheet = np.zeros((-(-count // columns) * cell, columns * cell, 4), np.uint8)  # RGBA
    for i in range(count):
        y, x = (n * cell for n in divmod(i, columns))
        tile = sheet[y : y + tile_side, x : x + tile_side]  # the gaps stay transparent
        tile[..., :3] = stretched[..., i].repeat(KERNEL_SCALE, 0).repeat(KERNEL_SCALE, 1)
        tile[..., 3] = 255
    return Kernels(encode_picture(sheet, "PNG"), count, side)
