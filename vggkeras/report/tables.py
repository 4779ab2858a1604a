"""Make the report's tables: which classes are confused, their recall, and the exported files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vggkeras import files
from vggkeras.certificate import Entry
from vggkeras.evaluation.statistics import Evaluation, wilson
from vggkeras.pages import Picture, encode_picture, percent
from vggkeras.report.sources import ReportSource

NUMBERED = 30  # classes up to which the confusion matrix has numbers
CONFUSIONS = 20  # most frequent ones listed where it has none
RECALLS = 50  # classes up to which each has a bar
WORST = 30  # classes with a bar where there are more
RIGHT, WRONG = (58, 110, 190), (216, 84, 48)  # RGB of the heat map
HEAT_MAP = 720  # px, side


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another."""

    label: str
    prediction: str
    count: int
    images: int  # of the label


@dataclass(frozen=True)
class Confusions:
    """The confusion matrix, as numbers or as a picture, and its most frequent confusions."""

    most: list[Confusion]
    counts: list[list[int]] | None  # rows are labels; None where classes are many
    strength: list[list[float]] | None  # of each cell's color, in [0, 1]
    picture: Picture | None  # where classes are many


@dataclass(frozen=True)
class ClassRecall:
    """A class's recall, with its 95% Wilson confidence interval."""

    label: str
    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Recalls:
    """The recall of classes, the lowest first."""

    bars: list[ClassRecall]
    classes: int  # that have images, whether they have a bar or not


@dataclass(frozen=True)
class Artifact:
    """An entry of the certificate, as shown."""

    name: str
    passed: bool
    doubt: str | None  # why the file may not be the one that was proven
    max_abs_error: float | None
    agreement: str | None  # top-1, with its interval
    accuracy: str | None
    milliseconds: float | None  # an image
    bytes: int
    runtime: str
    version: str
    provider: str | None
    evidence: str  # the images
    left_in_float: list[str]  # layers of an int8 file that are kept in float32
    failures: list[str]


def confusions(evaluation: Evaluation) -> Confusions:
    """Return the confusion matrix: as numbers, or as a picture where classes are many."""
    matrix = evaluation.confusion_matrix()
    images = matrix.sum(axis=1)
    strength = np.sqrt(matrix / np.maximum(images, 1)[:, None])  # a few of many can be seen too
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    names = evaluation.class_names
    most = [
        Confusion(names[i], names[j], int(wrong[i, j]), int(images[i]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    if len(matrix) <= NUMBERED:
        return Confusions(most, matrix.tolist(), strength.tolist(), picture=None)
    return Confusions(most, None, None, _heat_map(strength))


def recalls(evaluation: Evaluation) -> Recalls:
    """Return the recall of each class that has images; of the worst where classes are many."""
    matrix = evaluation.confusion_matrix()
    counts = matrix.diagonal().tolist(), matrix.sum(axis=1).tolist()
    bars = []
    for label, right, images in zip(evaluation.class_names, *counts, strict=True):
        if images:
            low, high = wilson(right, images)
            bars.append(ClassRecall(label, right / images, low, high, images))
    bars.sort(key=lambda bar: bar.value)
    return Recalls(bars if len(matrix) <= RECALLS else bars[:WORST], len(bars))


def artifacts(source: ReportSource) -> list[Artifact]:
    """Return a row for each entry of the certificate, with any doubt about the file."""
    model = source.folder / "model.keras"
    model_sha256 = None
    if source.is_run and source.certificate and model.is_file():
        model_sha256 = files.sha256(model)
    return [
        Artifact(
            name=name,
            passed=entry.passed,
            doubt=_doubt(source, name, entry, model_sha256),
            max_abs_error=entry.max_abs_error,
            agreement=_with_interval(entry.top1_agreement, entry.top1_agreement_interval),
            accuracy=_with_interval(entry.accuracy_artifact, entry.accuracy_interval),
            milliseconds=entry.milliseconds,
            bytes=entry.bytes,
            runtime=entry.runtime,
            version=entry.version,
            provider=entry.provider,
            evidence=entry.evidence,
            left_in_float=entry.left_in_float or [],
            failures=entry.failures,
        )
        for name, entry in source.certificate.items()
    ]


def _heat_map(strength: np.ndarray) -> Picture:
    classes = len(strength)
    sheet = np.zeros((classes, classes, 4), np.uint8)  # RGBA
    sheet[..., :3] = np.where(np.eye(classes, dtype=bool)[..., None], RIGHT, WRONG)
    sheet[..., 3] = np.round(255 * strength)
    cell = max(1, HEAT_MAP // classes)  # px
    return encode_picture(sheet.repeat(cell, 0).repeat(cell, 1), "PNG")


def _doubt(source: ReportSource, name: str, entry: Entry, model_sha256: str | None) -> str | None:
    path = entry.path(source.exports, name)
    if not path.exists():
        return "the file is gone"
    if files.sha256(path) != entry.sha256:
        return "the file was changed since"
    if model_sha256 and entry.model_sha256 != model_sha256:
        return "of another model.keras: export it again"
    return None


def _with_interval(value: float | None, ends: Sequence[float] | None) -> str | None:
    """Format a fraction of an entry with its interval; older entries may have neither."""
    if value is None:
        return None
    return percent(value) + (f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else "")
