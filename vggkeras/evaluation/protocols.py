"""The paper's test protocols (section 3.2), over any `Predictor`, and the statistics of what they answer.

center      the central crop of the image rescaled to smallest side Q
dense       the network made fully convolutional, on the whole rescaled image: the class scores are averaged over
            space, then soft-max; the posteriors of the image and of its mirror are averaged
multicrop   a 5 x 5 grid of crops over the rescaled image, with mirrors: 50 posteriors are averaged
both        the average of dense and multicrop

Several scales Q, and several models (fusion), are averaged again, posterior by posterior.

python -m vggkeras evaluate --model runs/latest --data digits --protocol center dense multicrop both
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vggkeras.configs import LARGEST_SCALE
from vggkeras.data import augment, decoding
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import MAX_BATCH, Predictor, check_probabilities

PROTOCOLS = ("center", "dense", "multicrop", "both")
PARTS = {
    "center": ("center",),
    "dense": ("dense",),
    "multicrop": ("multicrop",),
    "both": ("dense", "multicrop"),
}
GRID = 5  # crops a side of multicrop's grid
WINDOW = 32  # images in memory at once; those of one shape go through a dense network together

T = TypeVar("T")


def checked_scales(
    predictor: Predictor, protocol: str, scales: Sequence[int] | None
) -> tuple[int, ...]:
    """The test scales Q (smallest side, px) of a protocol; by default the one the model was trained for.

    Raises InputError for an unknown protocol, a scale below the model's input, or one given twice.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if scales is not None and (
        not isinstance(scales, Sequence) or not all(isinstance(scale, int) for scale in scales)
    ):
        raise InputError(
            f"scales must be a list of whole numbers of pixels, such as (256, 384, 512); received {scales!r}."
        )
    scales = tuple(scales or (predictor.scale,))
    smallest = max(predictor.input_shape[:2])
    for scale in scales:
        if scale < smallest:
            raise InputError(
                f"Scale {scale} is below the model's input of {smallest} px: give {smallest} or more."
            )
        if scale > LARGEST_SCALE:  # the whole rescaled image is held in memory
            raise InputError(
                f"Scale {scale} is above {LARGEST_SCALE} px: give {smallest} to {LARGEST_SCALE}."
            )
    if len(set(scales)) < len(scales):
        raise InputError(
            f"Scales must differ, for each counts once; received {' '.join(map(str, scales))}."
        )
    return scales


def check_classes(predictor: Predictor, class_names: Sequence[str]) -> None:
    """Raises InputError when a model's classes are not the data's, or it has none."""
    check_probabilities(predictor)
    own = predictor.card.class_names
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


def check_channels(predictor: Predictor) -> None:
    """Raises InputError when a model cannot be shown what image files hold."""
    channels = predictor.input_shape[2]
    if channels not in (1, 3):
        raise InputError(
            f"{predictor.path} takes images of {channels} channels, and image files have 3 (or 1, if grey)."
        )


def check_fusible(predictors: Sequence[Predictor]) -> None:
    """Raises InputError when models do not have the same classes in the same order."""
    first, *others = predictors
    for other in others:
        if other.class_names != first.class_names:
            raise InputError(
                f"{first.path} and {other.path} cannot be fused: expected the same classes in the same order, received "
                f"{len(first.class_names)} ({_listed(first.class_names)}) and {len(other.class_names)} "
                f"({_listed(other.class_names)})."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def central_crops(predictor: Predictor, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What the center protocol shows a predictor of a whole split: uint8 `[N, H, W, C]`, labels int64 `[N]`."""

    def prepare(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        image = augment.rescale(decoding.decode(encoded, split.image_name(index)), predictor.scale)
        return _center(predictor, augment.in_channels(image, predictor.input_shape[2])), label

    crops, labels = zip(*decoding.in_threads(prepare, split.examples()), strict=True)
    return np.stack(crops), np.array(labels, np.int64)


def posteriors(
    predictors: Predictor | Sequence[Predictor],
    images: Iterable[str | os.PathLike | np.ndarray],
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    *,
    mirrors: bool = True,
    grid: int = GRID,
) -> np.ndarray:
    """Class posteriors float32 `[N, classes]` of images of any size, each rescaled and shown as the protocol says.

    Args:
        predictors: one, or several whose posteriors are averaged (fusion).
        images: paths of JPEG, PNG, BMP or GIF files, or RGB arrays uint8 `[H, W, 3]`.
        protocol: center, dense, multicrop or both (see the module).
        scales: test scales Q, px, whose posteriors are averaged; by default the one each model was trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a scale below the input;
            models of different classes; a file without a dense form under dense or both.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into a list."
        )
    models = [predictors] if isinstance(predictors, Predictor) else list(predictors)
    plan = Plan(models, [protocol], scales, mirrors, grid)
    row = plan.rows(fuse=len(models) > 1)[-1]
    prepared = decoding.in_threads(
        lambda image: plan.rescaled(pixels(image)), ((image,) for image in images)
    )
    answers = []
    for window in windows(prepared, WINDOW):
        parts = plan.posteriors(window)
        answers.append(np.mean([parts[key] for key in row.keys], axis=0))
    return (
        np.concatenate(answers)
        if answers
        else np.empty((0, len(models[0].class_names)), np.float32)
    )


def pixels(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """A file's image, or an array as it is: RGB, uint8 `[H, W, 3]`; InputError for what is neither."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"Expected an RGB image, uint8 [H, W, 3], 0-255; received {image.dtype} of shape {list(image.shape)}."
            )
        return image
    if not Path(image).is_file():
        raise InputError(f"No image at {image}: expected a JPEG, PNG, BMP or GIF file.")
    return decoding.decode(Path(image).read_bytes(), str(image))


_Key = tuple[int, str, int]  # place of the model, what it is shown (a value of PARTS), scale


@dataclass(frozen=True)
class _Row:
    models: tuple[int, ...]
    protocol: str
    scales: tuple[int, ...]
    keys: tuple[_Key, ...]  # whose posteriors are averaged


class Plan:
    """What has to be asked, once each, for all rows: (model, crops or the whole image, scale)."""

    def __init__(
        self,
        models: list[Predictor],
        protocols: list[str],
        scales: Sequence[int] | None,
        mirrors: bool,
        grid: int,
    ) -> None:
        if not models or not protocols:
            raise InputError(
                f"Expected one model or more and one protocol or more of {', '.join(PROTOCOLS)}."
            )
        if grid < 1:
            raise InputError(f"grid must be 1 or more; received {grid}.")
        if len(set(protocols)) < len(protocols):
            raise InputError(f"Protocols must differ; received {' '.join(protocols)}.")
        self.models, self.protocols, self.mirrors, self.grid = models, protocols, mirrors, grid
        self.scales = [
            checked_scales(model, protocol, scales)
            for model in models
            for protocol in self.protocols
        ]
        self.scales = self.scales[:: len(self.protocols)]  # of each model
        for model in models:
            check_probabilities(model)
            check_channels(model)
        needed = dict.fromkeys(part for protocol in self.protocols for part in PARTS[protocol])
        self.keys = [
            (m, part, q) for m in range(len(models)) for part in needed for q in self.scales[m]
        ]
        self.dense = [model.dense_form() for model in models] if "dense" in needed else []
        self.seconds = dict.fromkeys(self.keys, 0.0)

    def rows(self, fuse: bool) -> list[_Row]:
        """Rows of each model, then of the fusion; each scale alone where there are several, then all."""
        groups: list[tuple[int, ...]] = [(m,) for m in range(len(self.models))]
        if fuse:
            check_fusible(self.models)
            groups.append(tuple(range(len(self.models))))
        rows = []
        for group in groups:
            alike = len({self.scales[m] for m in group}) == 1
            for protocol in self.protocols:
                own = self.scales[group[0]]
                alone = [{q} for q in own] if alike and len(own) > 1 else []
                for chosen in [*alone, {q for m in group for q in self.scales[m]}]:
                    keys = tuple(
                        (m, part, q)
                        for m in group
                        for part in PARTS[protocol]
                        for q in self.scales[m]
                        if q in chosen
                    )
                    rows.append(_Row(group, protocol, tuple(sorted(chosen)), keys))
        return rows

    def warm_up(self) -> None:
        """Run every model once: a first call compiles and plans, which is no row's time."""
        for model in [*self.models, *self.dense]:
            model(np.zeros((1, *model.input_shape), np.uint8))

    def rescaled(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """An image at every scale: Q -> uint8 `[h, w, 3]`."""
        return {
            q: augment.rescale(image, q)
            for q in sorted({q for scales in self.scales for q in scales})
        }

    def posteriors(self, images: list[dict[int, np.ndarray]]) -> dict[_Key, np.ndarray]:
        """Posteriors float32 `[n, classes]` of a window of images, of every key."""
        answers = {}
        for key in self.keys:
            start = time.perf_counter()
            m, part, q = key
            model = self.models[m]
            shown = [augment.in_channels(image[q], model.input_shape[2]) for image in images]
            if part == "dense":
                answers[key] = of_whole_images(self.dense[m], shown, self.mirrors)
            else:
                views = (1, False) if part == "center" else (self.grid, self.mirrors)
                answers[key] = _of_crops(model, shown, *views)
            self.seconds[key] += time.perf_counter() - start
        return answers


def _of_crops(model: Predictor, images: list[np.ndarray], grid: int, mirrors: bool) -> np.ndarray:
    """The average posterior of each image's crops: uint8 `[h, w, C]` each -> float32 `[n, classes]`.

    Crops of several images share a batch, so that all batches but the last are full.
    """
    crops = (crop for image in images for crop in _with_mirrors(_grid(model, image, grid), mirrors))
    p = np.concatenate([model(np.stack(batch)) for batch in windows(crops, MAX_BATCH)])
    return p.reshape(len(images), -1, p.shape[-1]).mean(axis=1)


def _with_mirrors(crops: Iterable[np.ndarray], mirrors: bool) -> Iterator[np.ndarray]:
    for crop in crops:
        yield crop
        if mirrors:
            yield crop[:, ::-1]


def _grid(model: Predictor, image: np.ndarray, grid: int) -> Iterator[np.ndarray]:
    h, w = model.input_shape[:2]
    return augment.grid_crops(image, (h, w), grid)


def _center(model: Predictor, image: np.ndarray) -> np.ndarray:
    return next(_grid(model, image, 1))


def of_whole_images(model: Predictor, images: list[np.ndarray], mirrors: bool) -> np.ndarray:
    """Posteriors, or features, of whole images by a dense model: uint8 `[h, w, C]` each -> float32 `[n, classes]`.

    The model averages its class scores over space, then takes the soft-max (in the graph, so that every runtime does
    the same: `models.dense_classifier`); the mirror's posterior is averaged here. Images of one shape go together, in
    batches of as many pixels as a full batch of crops has, for every new shape costs a runtime some planning.
    """
    h, w = model.input_shape[:2]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    answers = np.empty((len(images), model.outputs), np.float32)
    views = 2 if mirrors else 1
    for shape, places in sorted(by_shape.items()):
        count = max(1, MAX_BATCH * h * w // (shape[0] * shape[1] * views))
        for some in windows(places, count):
            stack = np.stack([view for i in some for view in _with_mirrors([images[i]], mirrors)])
            answers[some] = model(stack).reshape(len(some), views, -1).mean(axis=1)
    return answers


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, but for the last."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window
