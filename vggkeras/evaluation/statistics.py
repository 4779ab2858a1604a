"""Errors, recalls, calibration, and which of two models is better, from answers counted per image.

Proportions come with 95% Wilson intervals; two rows on the same images are compared by the exact
McNemar test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vggkeras.errors import InputError

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model, or of several fused, on the images of a split: a row of a table."""

    models: tuple[str, ...]  # paths; several where fused
    runtime: str  # with its version
    provider: str
    protocol: str
    scales: tuple[int, ...]
    class_names: list[str] = field(repr=False)
    indices: np.ndarray = field(repr=False)  # int64 [N]: what Split.image_name takes
    labels: np.ndarray = field(repr=False)  # int32 [N]
    predictions: np.ndarray = field(repr=False)  # int32 [N], the most probable class
    confidences: np.ndarray = field(repr=False)  # float32 [N], its probability
    in5: np.ndarray = field(repr=False)  # bool [N]: label among the five most probable classes
    seconds: float  # of this row's crops and model calls; decoding runs beside them

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """Whether the most probable class is the label: bool `[N]`."""
        return self.predictions == self.labels

    @property
    def correct(self) -> int:
        """How many images have their label as the most probable class."""
        return int(self.right.sum())

    @property
    def correct5(self) -> int:
        """How many images have their label among the five most probable classes."""
        return int(self.in5.sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, in [0, 1]."""
        return self.correct / self.images

    @property
    def accuracy5(self) -> float:
        """Top-5 accuracy, in [0, 1]."""
        return self.correct5 / self.images

    def confusion_matrix(self) -> np.ndarray:
        """Return counts int64 `[classes, classes]`: rows are labels, columns are predictions."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(
            self.labels, self.predictions, labels=np.arange(len(self.class_names))
        )

    def recalls(self) -> np.ndarray:
        """Return each class's recall, float64 `[classes]`; NaN for a class without images."""
        matrix = self.confusion_matrix()
        with np.errstate(invalid="ignore"):
            return matrix.diagonal() / matrix.sum(axis=1)

    def calibration_error(self) -> float:
        """Return the expected calibration error (Guo et al. 2017) over 15 bins of equal width."""
        bins = np.minimum((self.confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gaps = np.bincount(bins, self.confidences.astype(np.float64) - self.right, CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / self.images)

    @property
    def has_top5(self) -> bool:
        """Whether the five most probable classes are not simply all of them."""
        return len(self.class_names) > 5

    def figures(self) -> dict[str, Any]:
        """Return what JSON says of the row beside its errors."""
        return {"calibration_error": self.calibration_error()}

    def cells(self) -> dict[str, str]:
        """Return what a table says of the row beside its errors, by column."""
        return {"ECE": f"{self.calibration_error():.3f}"}


@dataclass(frozen=True)
class Comparison:
    """Where two rows on the same images differ."""

    gained: list[int]  # indices of images that only the second row has right
    lost: list[int]  # indices of images that only the first row has right
    p: float  # exact McNemar test, two-sided

    @staticmethod
    def of(first: Evaluation, second: Evaluation) -> Comparison:
        """Compare two rows; raise InputError when they are not of the same images."""
        if not np.array_equal(first.indices, second.indices) or not np.array_equal(
            first.labels, second.labels
        ):
            raise InputError(
                "Two rows can only be compared on the same images with the same labels: evaluate "
                "both on the same split."
            )
        gained = first.indices[second.right & ~first.right].tolist()
        lost = first.indices[first.right & ~second.right].tolist()
        return Comparison(gained, lost, mcnemar(len(gained), len(lost)))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% Wilson confidence interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def with_interval(errors: int, images: int) -> str:
    """Return an error rate with its 95% Wilson interval, %: 19.46 [18.2, 20.7]."""
    low, high = wilson(errors, images)
    return f"{100 * errors / images:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def mcnemar(gained: int, lost: int) -> float:
    """Return p of the exact two-sided McNemar test of equally many images gained and lost."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
