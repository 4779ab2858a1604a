"""Score networks of boxes on the labeled images of a split, in one pass (Appendix A).

The paper's first protocol gives the box of the true class, by the central crop; its second names
the class itself, by a classification network, and lets every place vote. A box is right where it
overlaps with one of the image's boxes by more than half (intersection over union).

python -m vggkeras localize --model runs/boxes --classifier runs/classes --data photos
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vggkeras.data.boxes import Boxes
from vggkeras.data.reading import Example, Track, readable_images, untracked
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation.checks import check_classes, check_names
from vggkeras.evaluation.protocols import WINDOW, Row, as_list, windows
from vggkeras.evaluation.scoring import described, labeled
from vggkeras.evaluation.statistics import Evaluation, wilson, with_interval
from vggkeras.localization import geometry, merging
from vggkeras.localization.geometry import CORRECT
from vggkeras.localization.votes import TOP, BoxPlan, Votes, together
from vggkeras.runtimes.predictor import Predictor


@dataclass(frozen=True)
class Localization(Evaluation):
    """The boxes of a network, or of several, on the images of a split: a row of a table.

    Without a classifier the class is given: `predictions` are the labels. `in5` says whether one of
    the five most probable classes is the label and has a right box.
    """

    classifier: str  # path; "" where the class is given
    boxes: np.ndarray = field(repr=False)  # float64 [N, 4]: the first class's, corners in px
    overlaps: np.ndarray = field(repr=False)  # float64 [N]: with the best of the true boxes
    given_class: np.ndarray = field(repr=False)  # float64 [N]: the same of the true class's box

    @property
    def right(self) -> np.ndarray:
        """Whether class and box are right: bool `[N]`."""
        return (self.predictions == self.labels) & (self.overlaps > CORRECT)

    @property
    def box_errors(self) -> int:
        """Of how many images the true class's box is wrong."""
        return int((self.given_class <= CORRECT).sum())

    @property
    def class_errors(self) -> int:
        """Of how many images the most probable class is wrong."""
        return int((self.predictions != self.labels).sum())

    @property
    def has_top5(self) -> bool:
        """Whether a classifier chose among more than five classes."""
        return bool(self.classifier) and super().has_top5

    def recalls(self) -> np.ndarray:
        """Return the fraction of each class that is right, float64; NaN without images."""
        images = np.bincount(self.labels, minlength=len(self.class_names))
        with np.errstate(invalid="ignore"):
            return np.bincount(self.labels, self.right, len(self.class_names)) / images

    def figures(self) -> dict[str, Any]:
        """Return what JSON says of the row beside its errors."""
        return {
            "classifier": self.classifier or None,
            "box_error": self.box_errors / self.images,
            "box_error_interval": wilson(self.box_errors, self.images),
            "class_error": self.class_errors / self.images,
            "mean_overlap": float(self.given_class.mean()),
        }

    def cells(self) -> dict[str, str]:
        """Return what a table says of the row beside its errors, by column."""
        overlap = {"mean IoU": f"{self.given_class.mean():.3f}"}
        if not self.classifier:
            return overlap
        errors = {"class": self.class_errors, "box": self.box_errors}
        cells = {f"{name} error, %": with_interval(n, self.images) for name, n in errors.items()}
        return cells | overlap


class Answers(NamedTuple):
    """A row's answers on some images; the arrays are `Localization`'s."""

    indices: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    in5: np.ndarray
    boxes: np.ndarray
    overlaps: np.ndarray
    given_class: np.ndarray


Sink = Callable[[Row, Answers], None]


def evaluate_boxes(
    predictors: Predictor | Sequence[Predictor],
    split: Split,
    class_names: Sequence[str],
    protocols: str | Sequence[str] = "center",
    scales: Sequence[int] | None = None,
    *,
    classifier: Predictor | None = None,
    fuse: bool = False,
    threshold: float = merging.THRESHOLD,
    skipped: list[str] | None = None,
    track: Track = untracked,
    sink: Sink | None = None,
) -> list[Localization]:
    """Score networks of boxes on every image of a split; each is read once for all rows.

    Args:
        predictors: one network of boxes or more.
        split: labeled images with boxes.
        class_names: of the data; the models must have the same.
        protocols: one or more of center, dense and multicrop (see `votes`).
        scales: test scales Q, px; by default the one each network was trained for.
        classifier: names the class; without one it is given.
        fuse: also score all networks' boxes together.
        threshold: match score up to which boxes are merged (see `merging`).
        skipped: a list to append the names of unreadable images to; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.
        sink: called with each row's answers on a window of images.

    Returns:
        A row for each network (and all of them), protocol and scale, then for all scales together.

    Raises:
        InputError (a ValueError): images without boxes; as `evaluation.evaluate` and `locate`.
    """
    models = as_list(predictors)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    plan = BoxPlan(models, names, scales, classifier)
    _check(plan, split, class_names, fuse)
    assert split.boxes
    rows = plan.rows(fuse)
    plan.warm_up()
    images = readable_images({split.name: split}, plan.see, split.name, skipped, track)
    parts: list[list[Answers]] = [[] for _ in rows]
    for window in windows(labeled(images, split, len(class_names)), WINDOW):
        votes = plan.votes([example.image for example in window])
        for row, answers in zip(rows, parts, strict=True):
            seen = (together(row, of_image) for of_image in votes)
            answers.append(_answers(window, seen, split.boxes, threshold))
            if sink:
                sink(row, answers[-1])
    if not parts[0]:
        raise InputError(f"{split.name} has no image that can be read.")
    columns = [Answers(*map(np.concatenate, zip(*answers, strict=True))) for answers in parts]
    path = str(classifier.path) if classifier else ""
    return [
        Localization(**described(plan, row, class_names), **of_row._asdict(), classifier=path)
        for row, of_row in zip(rows, columns, strict=True)
    ]


def _check(plan: BoxPlan, split: Split, class_names: Sequence[str], fuse: bool) -> None:
    """Raise InputError where networks, classifier and data do not suit each other."""
    if split.boxes is None:
        raise InputError(f"{split.name} has no boxes: load the data with boxes=True.")
    if plan.classifier:
        check_classes(plan.classifier, class_names)
    for model in plan.models:
        if model.boxes == "pcr" or model.card.class_names:
            check_names(model, class_names)
    if fuse and len(plan.models) < 2:
        raise InputError("To fuse, give two models or more.")
    if not split.count:
        raise InputError(f"{split.name} has no images to evaluate: choose another split.")


def _answers(
    window: Sequence[Example],
    seen: Iterator[tuple[Votes, np.ndarray | None]],
    boxes: Boxes,
    threshold: float,
) -> Answers:
    """Return a row's answers on a window of images."""
    answers = []
    for example, (votes, p) in zip(window, seen, strict=True):
        label, true = example.label, boxes.corners[example.index]
        best = np.array([label]) if p is None else np.argsort(-p, kind="stable")[:TOP]
        found = votes.of(np.append(best, label), threshold)
        overlaps = geometry.iou(found[:, None], true).max(1)
        in5 = bool(np.any((best == label) & (overlaps[:-1] > CORRECT)))
        confidence = 1.0 if p is None else p[best[0]]
        about = example.index, label, best[0], confidence, in5
        answers.append((*about, found[0], overlaps[0], overlaps[-1]))
    indices, labels, predictions, confidences, in5s, *rest = zip(*answers, strict=True)
    return Answers(
        np.array(indices, np.int64),
        np.array(labels, np.int32),
        np.array(predictions, np.int32),
        np.array(confidences, np.float32),
        np.array(in5s, bool),
        *map(np.array, rest),
    )
