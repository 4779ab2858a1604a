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
from vggkeras.pages import Picture, encode_picture, kernel_sheet, read_some
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    import keras

THUMBNAIL = 160  # px, longer side: twice what a phone shows


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
    """Draw the first convolution's kernels; None where they are of neither RGB nor gray images."""
    weights = np.asarray(network.get_layer("block1_conv1").kernel)  # [k, k, C, n]
    sheet = kernel_sheet(weights)
    if sheet is None:
        return None
    return Kernels(encode_picture(sheet, "PNG"), weights.shape[3], weights.shape[0])
