"""What networks expect of images, and how images are rescaled: tried one by one by `export.diagnosis`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export import preprocessing
from vggkeras import configs

Array = np.ndarray


# What networks expect of images [N, H, W, C], RGB, 0-255, and what then has to be done to them.
def _per_channel(values: Array, images: Array) -> Array:
    """One number a channel; of grey images, their mean."""
    return values if images.shape[3] == 3 else values.mean()


IMAGENET = np.array(configs.IMAGENET_MEAN_RGB)
MEAN_SUBTRACTED = "the ImageNet mean RGB subtracted, as caffe does"
SCALINGS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "": ("", lambda x: x),
    "pixels 0-1": ("divide by 255", lambda x: x / 255),
    "pixels -1-1": ("divide by 127.5 and subtract 1", lambda x: x / 127.5 - 1),
    "pixels less 128, as signed bytes": ("subtract 128", lambda x: x - 128),
    MEAN_SUBTRACTED: (
        "subtract 123.68, 116.779, 103.939",
        lambda x: x - _per_channel(IMAGENET, x),
    ),
    "pixels normalized by ImageNet's mean and deviation, as torchvision does": (
        "(x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]",
        lambda x: (
            (x - _per_channel(preprocessing.IMAGENET_MEAN, x))
            / _per_channel(preprocessing.IMAGENET_STD, x)
        ),
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


# The kernel, whether it widens with the reduction (antialiasing), and where in its pixel an output
# is read.
FILTERS: dict[str, tuple[Callable[[Array], Array], bool, float]] = {
    "bilinear with antialiasing": (_triangle, True, 0.5),
    "bilinear without antialiasing": (_triangle, False, 0.5),
    "nearest": (_box, False, 0.5),
    "nearest, from the corner": (_box, False, 0.0),
    "bilinear without antialiasing, from the corner": (_triangle, False, 0.0),
    "bicubic with antialiasing": (_cubic(-0.5), True, 0.5),
    "bicubic without antialiasing": (_cubic(-0.5), False, 0.5),
    "bicubic without antialiasing (a = -0.75)": (_cubic(-0.75), False, 0.5),
    "lanczos": (_lanczos, True, 0.5),
    "box": (_box, True, 0.5),
}


def rescaled(images: Array, size: tuple[int, int], filter: str) -> Array:
    """Rescale images `[N, H, W, C]` by one of `FILTERS`: float64 `[N, h, w, C]`, not rounded."""
    kernel, widens, offset = FILTERS[filter]
    result = images.astype(np.float64)
    for axis, side in enumerate(size, start=1):
        ratio = images.shape[axis] / side
        centers = (np.arange(side) + offset) * ratio - 0.5
        if kernel is _triangle and not offset:
            centers += 0.5  # the corner pixel itself
        distances = np.arange(images.shape[axis]) - centers[:, None]
        weights = kernel(distances / (max(ratio, 1) if widens else 1))
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
        """How many things it does, the filter aside."""
        return bool(self.scaling) + self.bgr + self.swapped
