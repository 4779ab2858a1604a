"""Change images as networks expect them, and rescale them by any usual filter.

`export.diagnosis` tries these changes one by one on two models that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vggkeras import configs

Array = np.ndarray

IMAGENET_MEAN = np.array(configs.IMAGENET_MEAN_RGB)
TORCH_MEAN = 255 * np.array([0.485, 0.456, 0.406])  # what torchvision subtracts, and divides by
TORCH_STD = 255 * np.array([0.229, 0.224, 0.225])


def _per_channel(values: Array, images: Array) -> Array:
    """Return one number for each channel; the mean of three for gray images."""
    return values if images.shape[3] == 3 else values.mean()


# What networks expect of pixels -> (what a user does to pixels 0-255, the function that does it).
MEAN_SUBTRACTED = "the ImageNet mean RGB subtracted, as caffe does"
SCALINGS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "": ("", lambda x: x),
    "pixels 0-1": ("divide by 255", lambda x: x / 255),
    "pixels -1-1": ("divide by 127.5 and subtract 1", lambda x: x / 127.5 - 1),
    "pixels less 128, as signed bytes": ("subtract 128", lambda x: x - 128),
    MEAN_SUBTRACTED: (
        "subtract 123.68, 116.779, 103.939",
        lambda x: x - _per_channel(IMAGENET_MEAN, x),
    ),
    "pixels normalized by ImageNet's mean and deviation, as torchvision does": (
        "(x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]",
        lambda x: (x - _per_channel(TORCH_MEAN, x)) / _per_channel(TORCH_STD, x),
    ),
}


def _triangle(x: Array) -> Array:
    return (1 - np.abs(x)).clip(0)


def _box(x: Array) -> Array:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _lanczos(x: Array) -> Array:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _cubic(a: float) -> Callable[[Array], Array]:
    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


@dataclass(frozen=True)
class Filter:
    """A way of rescaling images."""

    kernel: Callable[[Array], Array]
    antialiases: bool  # the kernel widens with the reduction
    offset: float = 0.5  # where in its pixel an output is read: the middle, or the corner (0)


FILTERS = {
    "bilinear with antialiasing": Filter(_triangle, True),
    "bilinear without antialiasing": Filter(_triangle, False),
    "nearest": Filter(_box, False),
    "nearest, from the corner": Filter(_box, False, 0.0),
    "bilinear without antialiasing, from the corner": Filter(_triangle, False, 0.0),
    "bicubic with antialiasing": Filter(_cubic(-0.5), True),
    "bicubic without antialiasing": Filter(_cubic(-0.5), False),
    "bicubic without antialiasing (a = -0.75)": Filter(_cubic(-0.75), False),
    "lanczos": Filter(_lanczos, True),
    "box": Filter(_box, True),
}


def rescaled(images: Array, size: tuple[int, int], filter: str) -> Array:
    """Rescale images `[N, H, W, C]` by one of `FILTERS`: float64 `[N, h, w, C]`, not rounded."""
    chosen = FILTERS[filter]
    result = images.astype(np.float64)
    for axis, side in enumerate(size, start=1):
        ratio = images.shape[axis] / side
        centers = (np.arange(side) + chosen.offset) * ratio - 0.5
        if chosen.kernel is _triangle and not chosen.offset:
            centers += 0.5  # the corner pixel itself
        distances = np.arange(images.shape[axis]) - centers[:, None]
        weights = chosen.kernel(distances / (max(ratio, 1) if chosen.antialiases else 1))
        weights /= weights.sum(axis=1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


@dataclass(frozen=True)
class Change:
    """What is done to images `[N, H, W, C]`, RGB, 0-255, before a model is shown them."""

    scaling: str = ""  # one of SCALINGS
    bgr: bool = False
    swapped: bool = False  # height and width
    filter: str = ""  # one of FILTERS; "": the model takes the images' size
    size: tuple[int, int] = (0, 0)  # that the filter rescales to

    def __call__(self, images: Array, rounded: bool) -> Array:
        """Return the changed images; `rounded` to bytes for a model that takes no other numbers."""
        if self.filter:
            images = rescaled(images, self.size, self.filter)
            images = np.rint(images).clip(0, 255).astype(np.uint8) if rounded else images
        if self.scaling:
            images = SCALINGS[self.scaling][1](images.astype(np.float64))
        images = images[..., ::-1] if self.bgr else images
        return images.swapaxes(1, 2) if self.swapped else images

    @property
    def count(self) -> int:
        """Return how many things it does, the filter aside."""
        return bool(self.scaling) + self.bgr + self.swapped
