"""The paper's test protocols (section 3.2), over any `Predictor`.

python -m vggkeras evaluate --model runs/latest --data digits --split validation
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggkeras import augment, datasets
from vggkeras.configs import LARGEST_SCALE
from vggkeras.datasets import Split
from vggkeras.errors import InputError
from vggkeras.runtimes import Predictor

PROTOCOLS = ("center",)
BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """Counts over every image of a split; rates are divided once, at the end."""

    images: int
    correct: int  # top-1
    correct5: int  # among the five most probable classes (all, where there are fewer)
    seconds: float

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return self.correct / self.images

    @property
    def accuracy5(self) -> float:
        """Top-5, in [0, 1]."""
        return self.correct5 / self.images


def checked_scales(predictor: Predictor, protocol: str, scales: Sequence[int] | None) -> tuple[int, ...]:
    """The test scales Q (smallest side, px) of a protocol; by default the one the model was trained for.

    Raises InputError for an unknown protocol, or a scale below the model's input.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    scales = tuple(scales or (predictor.scale,))
    smallest = max(predictor.input_shape[:2])
    for scale in scales:
        if scale < smallest:
            raise InputError(f"Scale {scale} is below the model's input of {smallest} px: give {smallest} or more.")
        if scale > LARGEST_SCALE:  # the whole rescaled image is held in memory
            raise InputError(f"Scale {scale} is above {LARGEST_SCALE} px: give {smallest} to {LARGEST_SCALE}.")
    return scales


def evaluate(
    predictor: Predictor,
    split: Split,
    class_names: Sequence[str],
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Evaluation:
    """Score a predictor on every labelled image of a split.

    Args:
        class_names: of the data; they must be the predictor's, or as many where it carries none of its own.
        protocol: center: the posteriors of the central crop of the image rescaled to Q, averaged over the scales.
        scales: test scales Q, px; by default the one the model was trained for.
        track: wraps the iteration over images, with their number, for a progress bar.

    Raises:
        InputError (a ValueError): classes that differ, an unreadable image (named), a scale below the input.
    """
    check_classes(predictor, class_names)
    scales = checked_scales(predictor, protocol, scales)
    start = time.perf_counter()
    seen = correct = correct5 = 0

    def prepare(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        return _crops(predictor, datasets.decode(encoded, split.image_name(index)), scales), label

    items = track(datasets.in_threads(prepare, split.examples()), split.count)
    for crops, labels in _batches(items, BATCH):
        p = _average(predictor, crops)
        order = np.argsort(-p, axis=1, kind="stable")[:, :5]
        hits = order == np.asarray(labels)[:, None]
        if min(labels) < 0:
            raise InputError(
                f"{split.name} has images without labels, so it cannot score a model: choose another split."
            )
        seen += len(labels)
        correct += int(hits[:, 0].sum())
        correct5 += int(hits.any(axis=1).sum())
    if not seen:
        raise InputError(f"{split.name} has no images to evaluate.")
    return Evaluation(seen, correct, correct5, time.perf_counter() - start)


def check_classes(predictor: Predictor, class_names: Sequence[str]) -> None:
    """Raises InputError when a model's classes are not the data's."""
    own = predictor.about.get("class_names")
    if len(class_names) != len(predictor.class_names):
        raise InputError(
            f"{predictor.path} has {len(predictor.class_names)} classes and the data {len(class_names)}: "
            "give the data it was trained for."
        )
    if own and list(own) != list(class_names):
        first = next(i for i, (a, b) in enumerate(zip(own, class_names, strict=True)) if a != b)
        raise InputError(
            f"{predictor.path} and the data name class {first} differently, {own[first]!r} and {class_names[first]!r}: "
            "give the data it was trained for."
        )


def central_crops(predictor: Predictor, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What the center protocol shows a predictor of a whole split: uint8 `[N, H, W, C]`, labels int64 `[N]`."""

    def prepare(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        return _crops(predictor, datasets.decode(encoded, split.image_name(index)), (predictor.scale,))[0], label

    crops, labels = zip(*datasets.in_threads(prepare, split.examples()), strict=True)
    return np.stack(crops), np.array(labels, np.int64)


def posteriors(
    predictor: Predictor,
    images: Iterable[str | os.PathLike | np.ndarray],
    protocol: str = "center",
    scales: Sequence[int] | None = None,
) -> np.ndarray:
    """Class posteriors float32 `[N, classes]` of images of any size, each rescaled and cropped as the protocol says.

    Args:
        images: paths of JPEG, PNG, BMP or GIF files, or RGB arrays uint8 `[H, W, 3]`.
        protocol: center (see `evaluate`).
        scales: test scales Q, px; by default the one the model was trained for.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a scale below the input.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into a list.")
    scales = checked_scales(predictor, protocol, scales)
    prepared = datasets.in_threads(lambda image: (_crops(predictor, _pixels(image), scales), 0), ((i,) for i in images))
    parts = [_average(predictor, crops) for crops, _ in _batches(prepared, BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, len(predictor.class_names)), np.float32)


def _pixels(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"Expected an RGB image, uint8 [H, W, 3], 0-255; received {image.dtype} of shape {list(image.shape)}."
            )
        return image
    if not Path(image).is_file():
        raise InputError(f"No image at {image}: expected a JPEG, PNG, BMP or GIF file.")
    return datasets.decode(Path(image).read_bytes(), str(image))


def _crops(predictor: Predictor, image: np.ndarray, scales: Sequence[int]) -> np.ndarray:
    """uint8 [scales, H, W, C]"""
    h, w, c = predictor.input_shape
    if c not in (1, 3):
        raise InputError(f"{predictor.path} takes images of {c} channels, and image files have 3 (or 1, if grey).")
    crops = np.stack([augment.center_crop(image, scale, (h, w)) for scale in scales])
    if c == 1:  # a network of grey images: ITU-R 601 luma, as Pillow's "L"
        return np.round(crops @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    return crops


def _batches(items: Iterable[tuple[np.ndarray, int]], size: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """(uint8 [n, scales, H, W, C], n labels), n = size but for the last."""
    crops: list[np.ndarray] = []
    labels: list[int] = []
    for crop, label in items:
        crops.append(crop)
        labels.append(label)
        if len(crops) == size:
            yield np.stack(crops), labels
            crops, labels = [], []
    if crops:
        yield np.stack(crops), labels


def _average(predictor: Predictor, crops: np.ndarray) -> np.ndarray:
    """Posteriors averaged over each image's crops: uint8 [n, k, H, W, C] -> float32 [n, classes]."""
    n, k = crops.shape[:2]
    return predictor(crops.reshape(n * k, *crops.shape[2:])).reshape(n, k, -1).mean(axis=1)
