"""Let every place, scale and network vote for a box, over any `Predictor`s (Appendix A).

center      one place: the central crop of the image rescaled to smallest side Q
dense       the networks made fully convolutional, on the whole rescaled image: every place votes
multicrop   the crops of a 5 x 5 grid over the rescaled image vote, each seen alone, as in training

Several scales Q, and several networks, vote together. A class's votes are merged (`merging`); those
of a place count as much as the classification network is sure of the class there.

    vggkeras.locate(vggkeras.load("runs/boxes"), ["photo.jpg"])
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vggkeras.configs import rescaled_shape
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.evaluation.checks import check_channels, check_names
from vggkeras.evaluation.protocols import (
    GRID,
    WINDOW,
    Plan,
    Row,
    View,
    as_list,
    of_one_shape,
    prepared,
    windows,
)
from vggkeras.localization import geometry, merging
from vggkeras.runtimes.predictor import MAX_BATCH, Predictor, check_probabilities

BOX_PROTOCOLS = ("center", "dense", "multicrop")
STRIDE = 32  # px of the rescaled image between two places: five poolings of 2
TOP = 5  # classes whose boxes are an answer


@dataclass(frozen=True)
class Shown:
    """An image of any size, as each view shows it."""

    size: tuple[int, int]  # height and width of the image, px
    parts: dict[View, list[np.ndarray]]


@dataclass(frozen=True)
class Votes:
    """What some places of an image say."""

    boxes: np.ndarray  # corners in the image's px, float64 [places, 1 or classes, 4]
    scores: np.ndarray | None  # probabilities, float32 [places, classes]; None: no classifier

    def of(self, classes: np.ndarray, threshold: float) -> np.ndarray:
        """Return the merged box of each of some classes, corners, float64 `[n, 4]`."""
        boxes = self.boxes if self.boxes.shape[1] == 1 else self.boxes[:, classes]
        alike = np.ones((len(boxes), len(classes)))
        scores = alike if self.scores is None else self.scores[:, classes]
        return merging.best(boxes, scores, threshold)[0]


@dataclass(frozen=True)
class Located:
    """The boxes of an image's most probable classes; of a network of one box alone, that box."""

    classes: tuple[str, ...]  # most probable first; () where there is no classifier
    probabilities: tuple[float, ...]
    boxes: np.ndarray  # corners in the image's px, float64 [classes or 1, 4]


class BoxPlan(Plan):
    """The views that all rows need of networks of boxes, and of the classifier that rates them."""

    def __init__(
        self,
        models: list[Predictor],
        protocols: list[str],
        scales: Sequence[int] | None,
        classifier: Predictor | None = None,
    ) -> None:
        """Raise InputError when the models cannot be asked, or do not suit each other."""
        self.classifier = classifier
        unknown = [name for name in protocols if name not in BOX_PROTOCOLS]
        if unknown:
            raise InputError(
                f"Boxes are located by {' or '.join(BOX_PROTOCOLS)}; received {unknown[0]!r}."
            )
        super().__init__(models, protocols, scales, mirrors=False, grid=GRID)
        if classifier:
            check_probabilities(classifier)
            check_channels(classifier)
        elif protocols != ["center"]:
            raise InputError(
                "Boxes of many places are rated by a classifier's probabilities: give --classifier,"
                " the run that training began with, or use --protocol center."
            )
        self.map = classifier.map_form() if classifier and self.dense else None

    def check(self, model: Predictor) -> None:
        """Raise InputError for a model that gives no boxes, or not of the classifier's crops."""
        if not model.boxes:
            raise InputError(
                f"{model.path} gives no boxes: expected a network that `train --boxes` trained; "
                "`python -m vggkeras evaluate` and `predict` are for classifiers."
            )
        if model.dense:
            raise InputError(
                f"{model.path} gives a map of boxes: give the file that it is the dense form of."
            )
        if self.classifier is None:
            return
        if self.classifier.input_shape != model.input_shape:
            raise InputError(
                f"{model.path} takes {model.input_shape}, and the classifier "
                f"{self.classifier.path} {self.classifier.input_shape}: expected the same crops, "
                "as of the run that training began with."
            )
        if model.boxes == "pcr" or model.card.class_names:
            check_names(model, self.classifier.class_names)

    def warm_up(self) -> None:
        """Run every model once."""
        super().warm_up()
        for model in filter(None, (self.classifier, self.map)):
            model(np.zeros((1, *model.input_shape), np.uint8))

    def see(self, image: np.ndarray | Image.Image) -> Shown:
        """Return an image as each view shows it."""
        w, h = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        return Shown((h, w), self.shown(image))

    def votes(self, images: Sequence[Shown]) -> list[dict[View, Votes]]:
        """Return every view's votes on some images."""
        found: list[dict[View, Votes]] = [{} for _ in images]
        scores: dict[tuple[str, int], tuple[list[np.ndarray], float]] = {}
        for view in self.seconds:
            start = time.perf_counter()
            parts = [image.parts[view] for image in images]
            of_classes: list[np.ndarray] | None = None
            passed = 0.0
            if self.classifier:
                key = view.part, view.scale
                if key in scores:  # another network's row takes as long alone
                    passed = scores[key][1]
                else:
                    answers = _maps(self.classifier, self.map, view.part, parts)
                    scores[key] = answers, time.perf_counter() - start
                of_classes = scores[key][0]
            dense = self.dense[view.model] if self.dense else None
            maps = _maps(self.models[view.model], dense, view.part, parts)
            for i, (image, outputs) in enumerate(zip(images, maps, strict=True)):
                boxes = self._corners(view, image.size, outputs)
                found[i][view] = Votes(boxes, None if of_classes is None else of_classes[i])
            self.seconds[view] += time.perf_counter() - start + passed
        return found

    def _corners(self, view: View, size: tuple[int, int], outputs: np.ndarray) -> np.ndarray:
        """Return what places predict `[places, outputs]` as corners in px, `[places, n, 4]`."""
        h, w, _ = self.models[view.model].input_shape
        shape = rescaled_shape(size, view.scale)
        if view.part == "dense":
            down, across = (
                side // STRIDE - crop // STRIDE + 1
                for side, crop in zip(shape, (h, w), strict=True)
            )
            offsets = [(STRIDE * i, STRIDE * j) for i in range(down) for j in range(across)]
        else:
            grid = self.grid if view.part == "multicrop" else 1
            offsets = list(augment.corners(shape, (h, w), grid))
        boxes = outputs.reshape(len(outputs), -1, 4)
        at = zip(boxes, offsets, strict=True)
        return np.stack(
            [geometry.to_image(box, size, view.scale, offset, (h, w)) for box, offset in at]
        )


def _maps(
    model: Predictor, dense: Predictor | None, part: str, images: Sequence[list[np.ndarray]]
) -> list[np.ndarray]:
    """Return a model's answers on crops or whole images, float32 `[places, outputs]` each."""
    if part != "dense":
        batches = windows(itertools.chain.from_iterable(images), MAX_BATCH)
        answers = np.concatenate([model(np.stack(batch)) for batch in batches])
        return list(answers.reshape(len(images), -1, answers.shape[-1]))
    assert dense
    maps: dict[int, np.ndarray] = {}
    wholes = [whole for (whole,) in images]
    for some in of_one_shape(dense, wholes):
        found = dense(np.stack([wholes[i] for i in some]))
        maps |= zip(some, found.reshape(len(some), -1, found.shape[-1]), strict=True)
    return [maps[i] for i in range(len(images))]


def together(row: Row, votes: dict[View, Votes]) -> tuple[Votes, np.ndarray | None]:
    """Return all votes of a row on an image, and the image's class probabilities `[classes]`.

    The probabilities are averaged over the places of each view, then over the views.
    """
    of_views = [votes[view] for view in row.views]
    classes = max(vote.boxes.shape[1] for vote in of_views)
    boxes = np.concatenate(
        [np.repeat(vote.boxes, classes // vote.boxes.shape[1], 1) for vote in of_views]
    )
    scores = [vote.scores for vote in of_views if vote.scores is not None]
    if not scores:
        return Votes(boxes, None), None
    return Votes(boxes, np.concatenate(scores)), np.mean([score.mean(0) for score in scores], 0)


def locate(
    predictors: Predictor | Sequence[Predictor],
    images: Iterable[str | os.PathLike | np.ndarray],
    classifier: Predictor | None = None,
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    *,
    top: int = 1,
    threshold: float = merging.THRESHOLD,
    exif: bool = True,
) -> list[Located]:
    """Return the boxes of images of any size, in their own pixels, by a test protocol.

    Args:
        predictors: a network of boxes, or several, whose boxes are merged.
        images: paths of image files, or RGB arrays uint8 `[H, W, 3]`.
        classifier: says which classes an image shows, and where; a network of one box for all
            classes needs none for the central crop.
        protocol: center, dense or multicrop (see the module).
        scales: test scales Q, px; by default the one each network was trained for.
        top: of how many classes a box is returned, where there is a classifier.
        threshold: match score up to which boxes are merged (see `merging`).
        exif: turn the images of files upright, as their EXIF data say.

    Raises:
        InputError (a ValueError): as `vggkeras.posteriors`; no classifier where there must be one;
            networks whose classes or crops are not the classifier's.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(f"Expected a list of paths or arrays; received one path, {images!s}.")
    locator = Locator(as_list(predictors), classifier, protocol, scales, top, threshold)
    shown = decoding.in_threads(
        lambda image: prepared(image, locator.plan.see, exif), ((image,) for image in images)
    )
    return [found for window in windows(shown, WINDOW) for found in locator(window)]


class Locator:
    """Locate what images show: `locate`, a window of images at a time."""

    def __init__(
        self,
        models: list[Predictor],
        classifier: Predictor | None = None,
        protocol: str = "center",
        scales: Sequence[int] | None = None,
        top: int = 1,
        threshold: float = merging.THRESHOLD,
    ) -> None:
        """Raise InputError as `locate`."""
        self.plan = BoxPlan(models, [protocol], scales, classifier)
        self.row = self.plan.rows(fuse=len(models) > 1)[-1]
        self.names = classifier.class_names if classifier else []
        self.top, self.threshold = top, threshold
        if not classifier and any(model.boxes == "pcr" for model in models):
            raise InputError(
                "A network of a box a class needs to know the class: give --classifier, the run "
                "that training began with."
            )

    def __call__(self, images: Sequence[Shown]) -> list[Located]:
        """Return the boxes of images that `plan.see` has prepared."""
        return [self._located(votes) for votes in self.plan.votes(images)]

    def _located(self, votes: dict[View, Votes]) -> Located:
        all_votes, p = together(self.row, votes)
        if p is None:
            return Located((), (), all_votes.of(np.zeros(1, int), self.threshold))
        classes = np.argsort(-p, kind="stable")[: self.top]
        names = tuple(self.names[c] for c in classes)
        boxes = all_votes.of(classes, self.threshold)
        return Located(names, tuple(map(float, p[classes])), boxes)
