"""TODO"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vggkeras.errors import InputError

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """One row of a table: what a model (or several, fused) answered about every image of a split under one protocol."""

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
    in5: np.ndarray = field(
        repr=False
    )  # bool [N]: the label is among the five most probable (all, where fewer)
    seconds: float  # of cutting the crops and running the models, for this row alone; decoding runs beside it

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """bool `[N]`: the most probable class is the label."""
        return self.predictions == self.labels

    @property
    def correct(self) -> int:
        """Images whose most probable class is the label."""
        return int(self.right.sum())

    @property
    def correct5(self) -> int:
        """Images whose label is among the five most probable classes."""
        return int(self.in5.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return self.correct / self.images

    @property
    def accuracy5(self) -> float:
        """Top-5, in [0, 1]."""
        return self.correct5 / self.images

    def confusion_matrix(self) -> np.ndarray:
        """Counts int64 `[classes, classes]`: rows are labels, columns predictions."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(
            self.labels, self.predictions, labels=np.arange(len(self.class_names))
        )

    def recalls(self) -> np.ndarray:
        """Share of each class's images that were recognised, float64 `[classes]`; NaN for a class without images."""
        matrix = self.confusion_matrix()
        with np.errstate(invalid="ignore"):
            return matrix.diagonal() / matrix.sum(axis=1)

    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): 15 bins of equal width, weighted by their images."""
        bins = np.minimum((self.confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gaps = np.bincount(bins, self.confidences.astype(np.float64) - self.right, CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / self.images)


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same images."""

    gained: list[int]  # indices of images that only the second has right
    lost: list[int]  # indices of images that only the first has right
    p: float  # exact McNemar test, two-sided

    @staticmethod
    def of(first: Evaluation, second: Evaluation) -> Comparison:
        """Raises InputError when the rows are not of the same images."""
        if not np.array_equal(first.indices, second.indices) or not np.array_equal(
            first.labels, second.labels
        ):
            raise InputError(
                "Two rows can only be compared on the same images with the same labels."
            )
        gained = first.indices[second.right & ~first.right].tolist()
        lost = first.indices[first.right & ~second.right].tolist()
        return Comparison(gained, lost, mcnemar(len(gained), len(lost)))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(gained: int, lost: int) -> float:
    """p of the exact two-sided McNemar test: would as many be gained as lost, if neither were the better?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
