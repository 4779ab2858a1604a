"""Show what a network of boxes finds on the validation images: pictures, overlaps, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vggkeras.data.boxes import Boxes
from vggkeras.data.splits import Split
from vggkeras.evaluation import paper, tables
from vggkeras.evaluation.statistics import wilson
from vggkeras.localization import geometry
from vggkeras.localization.drawing import PREDICTED, TRUE, with_box
from vggkeras.localization.evaluation import Localization
from vggkeras.pages import Picture, encode_picture, read_some
from vggkeras.report.evaluations import ErrorGroup, error_group
from vggkeras.report.figures import overlap_histogram
from vggkeras.report.tables import RECALLS, WORST, ClassRecall
from vggkeras.runtimes.predictor import Predictor

SHOWN = 8  # pictures of a kind
SIDE = 320  # px, longer side of a picture: twice what a phone shows
SIZES = (0.1, 0.25, 0.5)  # of the image's area, between which boxes are counted together


@dataclass(frozen=True)
class BoxPicture:
    """An image with its true boxes and the predicted one."""

    image: str  # its name
    label: str
    overlap: float
    picture: Picture


@dataclass(frozen=True)
class Boxed:
    """What the page shows of a network of boxes on the validation images."""

    evaluation: Localization  # of the first model, the class given
    errors: ErrorGroup  # of all models
    skipped: list[str]  # names of unreadable images
    histogram: str  # SVG
    classes: list[ClassRecall]  # the worst first
    class_count: int  # that have images
    sizes: list[ClassRecall]
    galleries: list[tuple[str, list[BoxPicture]]]


def boxed(
    rows: Sequence[Localization],
    predictors: Sequence[Predictor],
    split: Split,
    name: Callable[[int], str],
    data: str,
    skipped: list[str],
) -> Boxed:
    """Return what the page shows of rows on the images of a split with boxes.

    Args:
        rows: of each model, with the class given.
        predictors: the models.
        split: that was evaluated.
        name: what to call an image, by its index.
        data: as the user named it.
        skipped: names of unreadable images.
    """
    assert split.boxes
    first = rows[0]
    papers = [paper.paper_localization(predictors, row, class_given=True) for row in rows]
    about = {"data": data, "split": split.name}
    records = tables.records(rows, papers, name, about)
    by_class = _bars(first, first.labels, first.class_names)
    by_class.sort(key=lambda bar: bar.value)
    return Boxed(
        evaluation=first,
        errors=error_group("This report", records),
        skipped=skipped,
        histogram=overlap_histogram(first.overlaps),
        classes=by_class if len(by_class) <= RECALLS else by_class[:WORST],
        class_count=len(by_class),
        sizes=_bars(first, *_sizes(first, split.boxes)),
        galleries=_galleries(first, split, name),
    )


def _sizes(row: Localization, boxes: Boxes) -> tuple[np.ndarray, list[str]]:
    """Return the group of each image by the size of its largest box, and the groups' names."""
    areas = geometry.areas(boxes.largest[row.indices])
    fractions = areas / boxes.sizes[row.indices].prod(1)
    edges = [0.0, *SIZES, 1.0]
    names = [f"{100 * a:.0f} to {100 * b:.0f}%" for a, b in itertools.pairwise(edges)]
    return np.digitize(fractions, SIZES), names


def _bars(row: Localization, groups: np.ndarray, names: Sequence[str]) -> list[ClassRecall]:
    """Return the fraction of each group of images that is right."""
    bars = []
    for number, name in enumerate(names):
        right = row.right[groups == number]
        if len(right):
            low, high = wilson(int(right.sum()), len(right))
            bars.append(ClassRecall(name, float(right.mean()), low, high, len(right)))
    return bars


def _galleries(
    row: Localization, split: Split, name: Callable[[int], str]
) -> list[tuple[str, list[BoxPicture]]]:
    order = np.argsort(-row.overlaps, kind="stable")
    drawn = np.random.default_rng(0).choice(len(order), min(SHOWN, len(order)), replace=False)
    chosen = {"Best": order[:SHOWN], "Worst": order[::-1][:SHOWN], "Drawn at random": drawn}
    at = {int(row.indices[i]): int(i) for positions in chosen.values() for i in positions}
    boxes = split.boxes
    assert boxes

    def prepare(image: Image.Image) -> Image.Image:
        return image.copy()

    pictures = {}
    for index, image in read_some(split, at, prepare):
        i, ratio = at[index], SIDE / max(image.size)
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        small = image.resize(size, Image.Resampling.BILINEAR)
        for corners in boxes.corners[index]:
            with_box(small, corners * ratio, color=TRUE)
        with_box(small, row.boxes[i] * ratio, color=PREDICTED)
        pictures[i] = BoxPicture(
            name(index),
            row.class_names[row.labels[i]],
            float(row.overlaps[i]),
            encode_picture(np.asarray(small)),
        )
    return [(title, [pictures[int(i)] for i in found]) for title, found in chosen.items()]
