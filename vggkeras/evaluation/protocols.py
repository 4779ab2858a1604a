"""The paper's test protocols (section 3.2), over any `Predictor`.

center      the central crop of the image rescaled to smallest side Q
dense       the network made fully convolutional, on the whole rescaled image: the class scores are
            averaged over space, then soft-max; the posteriors of image and mirror are averaged
multicrop   a 5 x 5 grid of crops over the rescaled image, with mirrors: 50 posteriors are averaged
both        the average of dense and multicrop

Several scales Q, and several models (fusion), are averaged again, posterior by posterior.

python -m vggkeras evaluate --model runs/latest --data digits --protocol center dense multicrop both
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from vggkeras.configs import LARGEST_SCALE
from vggkeras.data import augment, decoding, formats
from vggkeras.data.reading import read_images
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation.checks import check_channels, check_fusible
from vggkeras.runtimes.predictor import MAX_BATCH, Predictor, check_probabilities

# Protocol -> the parts whose posteriors it averages.
PROTOCOLS = {
    "center": ("center",),
    "dense": ("dense",),
    "multicrop": ("multicrop",),
    "both": ("dense", "multicrop"),
}
GRID = 5  # crops a side of multicrop's grid
WINDOW = 32  # images in memory at once; those of one shape go through a dense network together

T = TypeVar("T")


def posteriors(
    predictors: Predictor | Sequence[Predictor],
    images: Iterable[str | os.PathLike | np.ndarray],
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    *,
    mirrors: bool = True,
    grid: int = GRID,
    exif: bool = True,
) -> np.ndarray:
    """Return class posteriors float32 `[N, classes]` of images of any size, by a test protocol.

    Args:
        predictors: one, or several whose posteriors are averaged (fusion).
        images: paths of image files, or RGB arrays uint8 `[H, W, 3]`.
        protocol: center, dense, multicrop or both (see the module).
        scales: test scales Q, px, whose posteriors are averaged; by default the one each model was
            trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.
        exif: turn the images of files upright, as their EXIF data say.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a
            scale below the input; models of different classes; a file without a dense form under
            dense or both.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into "
            "a list."
        )
    models = as_list(predictors)
    plan = Plan(models, [protocol], scales, mirrors, grid)
    row = plan.rows(fuse=len(models) > 1)[-1]
    shown = decoding.in_threads(
        lambda image: prepared(image, plan.shown, exif), ((image,) for image in images)
    )
    parts = [row.average(plan.posteriors(window)) for window in windows(shown, WINDOW)]
    if not parts:
        return np.empty((0, len(models[0].class_names)), np.float32)
    return np.concatenate(parts)


def as_list(predictors: Predictor | Sequence[Predictor]) -> list[Predictor]:
    """Return one predictor or several as a list."""
    return [predictors] if isinstance(predictors, Predictor) else list(predictors)


def prepared(
    image: str | os.PathLike | np.ndarray,
    prepare: Callable[[np.ndarray | Image.Image], T],
    exif: bool = True,
    side: int | None = None,
) -> T:
    """Return what `prepare` makes of a file's image, or of an array: RGB, uint8 `[H, W, 3]`.

    A large JPEG may be decoded reduced for `side` (see `decoded`). Raises InputError for others.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                "Expected an RGB image, uint8 [H, W, 3], 0-255; received "
                f"{image.dtype} of shape {list(image.shape)}."
            )
        return prepare(image)
    if not Path(image).is_file():
        raise InputError(f"No image at {image}: expected a {formats.NAMES} file.")
    return decoding.decoded(image, str(image), prepare, exif=exif, side=side)


def central_crops(predictor: Predictor, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the central crops of a split at a predictor's scale, and their labels.

    Returns:
        Crops uint8 `[N, H, W, C]` and labels int64 `[N]`.
    """
    h, w, channels = predictor.input_shape

    def prepare(image: Image.Image) -> np.ndarray:
        crop = augment.center_crop(image, predictor.scale, (h, w))
        return augment.in_channels(crop, channels)

    _, labels, crops = zip(*read_images(split, prepare), strict=True)
    return np.stack(crops), np.array(labels, np.int64)


class View(NamedTuple):
    """A part of a protocol at one scale, shown to one model."""

    model: int  # index in Plan.models
    part: str  # center, dense or multicrop
    scale: int  # Q, px


@dataclass(frozen=True)
class Row:
    """A row of a table of results: which models, by which protocol, at which scales."""

    models: tuple[int, ...]  # indices in Plan.models; several where fused
    protocol: str
    scales: tuple[int, ...]
    views: tuple[View, ...]  # whose posteriors are averaged

    def average(self, posteriors: Mapping[View, np.ndarray]) -> np.ndarray:
        """Return the row's posteriors float32 `[n, classes]`."""
        return np.mean([posteriors[view] for view in self.views], axis=0)


class Plan:
    """The views that all rows need, each asked once, and the time that each has taken."""

    def __init__(
        self,
        models: list[Predictor],
        protocols: list[str],
        scales: Sequence[int] | None,
        mirrors: bool,
        grid: int,
    ) -> None:
        """Raise InputError when the models cannot be asked; find their dense forms if need be."""
        if not models or not protocols:
            raise InputError(
                "Expected one model or more and one protocol or more of "
                f"{', '.join(PROTOCOLS)}; received {len(models)} and {len(protocols)}."
            )
        if grid < 1:
            raise InputError(f"grid must be 1 or more; received {grid}.")
        if len(set(protocols)) < len(protocols):
            raise InputError(f"Protocols must differ; received {' '.join(protocols)}.")
        self.models, self.protocols, self.mirrors, self.grid = models, protocols, mirrors, grid
        self.scales: list[tuple[int, ...]] = []  # of each model
        for model in models:
            scales_by_protocol = [checked_scales(model, name, scales) for name in protocols]
            self.scales.append(scales_by_protocol[0])  # all alike
            self.check(model)
            check_channels(model)
        parts = dict.fromkeys(part for protocol in protocols for part in PROTOCOLS[protocol])
        self.dense = [model.dense_form() for model in models] if "dense" in parts else []
        self.seconds = {  # of crops and model calls
            View(m, part, q): 0.0
            for m in range(len(models))
            for part in parts
            for q in self.scales[m]
        }

    def check(self, model: Predictor) -> None:
        """Raise InputError for a model that does not give what the plan asks for."""
        check_probabilities(model)

    def rows(self, fuse: bool) -> list[Row]:
        """Return the rows of each model, then of the fusion.

        Each scale is a row where there are several, then all scales together.
        """
        groups: list[tuple[int, ...]] = [(m,) for m in range(len(self.models))]
        if fuse:
            check_fusible(self.models)
            groups.append(tuple(range(len(self.models))))
        rows = []
        for group in groups:
            scales = self.scales[group[0]]
            alike = all(self.scales[m] == scales for m in group)
            chosen = [{q} for q in scales] if alike and len(scales) > 1 else []
            chosen.append({q for m in group for q in self.scales[m]})
            rows += [self._row(group, name, some) for name in self.protocols for some in chosen]
        return rows

    def _row(self, models: tuple[int, ...], protocol: str, scales: set[int]) -> Row:
        views = tuple(
            View(m, part, q)
            for m in models
            for part in PROTOCOLS[protocol]
            for q in self.scales[m]
            if q in scales
        )
        return Row(models, protocol, tuple(sorted(scales)), views)

    def warm_up(self) -> None:
        """Run every model once, for a first call compiles, which is not a row's time."""
        for model in [*self.models, *self.dense]:
            model(np.zeros((1, *model.input_shape), np.uint8))

    def shown(self, image: np.ndarray | Image.Image) -> dict[View, list[np.ndarray]]:
        """Return what each view shows of an image, uint8 `[h, w, C]` each: its crops, or it whole.

        Raises InputError for an image that is too large to be shown whole.
        """
        scales = set().union(*self.scales)
        rescaled = {q: augment.Rescaled(image, q) for q in sorted(scales)}
        return {view: self._parts(view, rescaled[view.scale]) for view in self.seconds}

    def _parts(self, view: View, image: augment.Rescaled) -> list[np.ndarray]:
        h, w, channels = self.models[view.model].input_shape
        if view.part == "dense":
            return [augment.in_channels(image.whole, channels)]
        crops = image.crops((h, w), self.grid if view.part == "multicrop" else 1)
        return [augment.in_channels(crop, channels) for crop in crops]

    def posteriors(self, images: list[dict[View, list[np.ndarray]]]) -> dict[View, np.ndarray]:
        """Return every view's posteriors float32 `[n, classes]` of what `shown` gave of images."""
        answers = {}
        for view in self.seconds:
            start = time.perf_counter()
            answers[view] = self._answer(view, images)
            self.seconds[view] += time.perf_counter() - start
        return answers

    def _answer(self, view: View, images: list[dict[View, list[np.ndarray]]]) -> np.ndarray:
        shown = [image[view] for image in images]
        if view.part == "dense":
            wholes = [whole for (whole,) in shown]
            return of_whole_images(self.dense[view.model], wholes, self.mirrors)
        mirrors = self.mirrors and view.part == "multicrop"
        return of_crops(self.models[view.model], shown, mirrors)


def of_crops(model: Predictor, images: list[list[np.ndarray]], mirrors: bool) -> np.ndarray:
    """Average the posteriors of each image's crops.

    Crops of several images share a batch, so that all batches but the last are full.

    Args:
        model: takes crops.
        images: the crops of each, uint8 `[h, w, C]`; as many of all.
        mirrors: average the mirrors of the crops too.

    Returns:
        float32 `[n, classes]`.
    """
    crops = itertools.chain.from_iterable(images)
    batches = windows(_with_mirrors(crops, mirrors), MAX_BATCH)
    p = np.concatenate([model(np.stack(batch)) for batch in batches])
    return p.reshape(len(images), -1, p.shape[-1]).mean(axis=1)


def of_whole_images(model: Predictor, images: list[np.ndarray], mirrors: bool) -> np.ndarray:
    """Return a dense model's answers on whole images, averaged with those on the mirrors.

    The model averages its class scores over space, then takes the soft-max (in the graph, so that
    every runtime does the same: `models.dense_classifier`). Images of one shape go together, for a
    runtime must plan each new shape, in batches of as many pixels as a full batch of crops has.

    Args:
        model: takes images of any size; gives posteriors or features.
        images: rescaled, uint8 `[h, w, C]` each.
        mirrors: average the answer on the mirror too.

    Returns:
        float32 `[n, classes]`, or `[n, features]`.
    """
    answers = np.empty((len(images), model.outputs), np.float32)
    views = 2 if mirrors else 1
    for some in of_one_shape(model, images, views):
        batch = np.stack(list(_with_mirrors((images[i] for i in some), mirrors)))
        answers[some] = model(batch).reshape(len(some), views, -1).mean(axis=1)
    return answers


def of_one_shape(
    model: Predictor, images: Sequence[np.ndarray], views: int = 1
) -> Iterator[list[int]]:
    """Yield indices of images of one shape, in batches of as many pixels as a full one of crops.

    Args:
        model: that takes images of any size.
        images: rescaled, `[h, w, C]` each.
        views: how often each image is shown.
    """
    h, w = model.input_shape[:2]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    for shape, indices in sorted(by_shape.items()):
        yield from windows(indices, max(1, MAX_BATCH * h * w // (shape[0] * shape[1] * views)))


def _with_mirrors(images: Iterable[np.ndarray], mirrors: bool) -> Iterator[np.ndarray]:
    for image in images:
        yield image
        if mirrors:
            yield image[:, ::-1]


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window


def checked_scales(
    predictor: Predictor, protocol: str, scales: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the test scales Q (smallest side, px); by default the one the model was trained for.

    Raises InputError for an unknown protocol, a scale below the model's input, or one given twice.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if scales is not None and (
        not isinstance(scales, Sequence) or not all(isinstance(scale, int) for scale in scales)
    ):
        raise InputError(
            "scales must be a list of whole numbers of pixels, such as (256, 384, 512); received "
            f"{scales!r}."
        )
    scales = tuple(scales or (predictor.scale,))
    smallest = max(predictor.input_shape[:2])
    for scale in scales:
        if scale < smallest:
            raise InputError(
                f"Scale {scale} is below the model's input of {smallest} px: give {smallest} or "
                "more."
            )
        if scale > LARGEST_SCALE:  # the whole rescaled image is held in memory
            raise InputError(
                f"Scale {scale} is above {LARGEST_SCALE} px: give {smallest} to {LARGEST_SCALE}."
            )
    if len(set(scales)) < len(scales):
        raise InputError(
            "Scales must differ, for each counts once; received "
            f"{' '.join(map(str, scales))}: give each once."
        )
    return scales
