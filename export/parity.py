"""Check that a file gives the reference's answers: compare(reference, candidate, images) -> Parity.

Names are compared first, then shapes, then values. Every failure is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from export import TOLERANCES
from vggkeras.card import Form
from vggkeras.evaluation.statistics import mcnemar, wilson
from vggkeras.localization import geometry
from vggkeras.runtimes.predictor import Predictor

BATCH_SIZES = (1, 2, 7)
MOST_LOST = 0.005  # top-1 accuracy that float16 and int8 may lose, a fraction of the images
# Top-1 agreement that int8 must reach, between that of right and of wrong files. Trained networks
# agree with Keras on 99.2 to 100% of the images; with integers that saturate, on 89 and 94%; an
# untrained network, whose scores hardly differ, on 92 to 94% (tests/benchmarks/int8_ways.py).
LEAST_AGREEMENT = 0.97
# Cosine between an image's features in int8 and in Keras. Trained networks have 0.993 and more.
LEAST_COSINE = 0.98
TOLERANCE = 1e-5

FailureKind = Literal[
    "input name",
    "output name",
    "class names",
    "input shape",
    "input",
    "output",
    "running",
    "values",
    "agreement",
    "accuracy",
    "cosine",
    "integers",
]
INACCURACIES = ("agreement", "accuracy", "cosine")  # what int8 may fix by keeping layers in float32


@dataclass(frozen=True)
class Failure:
    """One difference between a candidate and its reference; `str` gives the line to read."""

    kind: FailureKind
    message: str
    size: tuple[int, int] | None = None  # (height, width) of the images, where it is not the first

    def __str__(self) -> str:
        """Return "kind: message", after the images' size where it has one."""
        where = f"at {self.size[0]} x {self.size[1]} px: " if self.size else ""
        return f"{where}{self.kind}: {self.message}"


@dataclass(frozen=True)
class Gate:
    """What a file must reach to pass. None: not checked."""

    # Largest error of a probability, absolute and relative to the reference's largest one; of a
    # feature, which may be of any size, relative alone; of a box's corner, relative to the crop.
    tolerance: float | None = TOLERANCE
    most_lost: float | None = None  # the most accuracy that may be lost; needs labels
    least_agreement: float | None = None  # fails where the agreement's whole 95% interval is below
    least_cosine: float | None = None  # between the features of any image


def gate_of(
    precision: str, form: Form, *, labels_tell: bool = False, tolerance: float | None = None
) -> Gate:
    """Return what a file must reach.

    Args:
        precision: float32, float16 or int8.
        form: features are judged by cosine, where probabilities are by agreement and accuracy; of
            boxes in float32, whether they are right must be the same for every image.
        labels_tell: see `labels_tell`; without, accuracy is not checked.
        tolerance: of probabilities, instead of the precision's.
    """
    int8 = precision == "int8"
    if form is Form.FEATURES:
        return Gate(TOLERANCES[precision], least_cosine=LEAST_COSINE if int8 else None)
    least = LEAST_AGREEMENT if int8 else None
    if form.is_boxes and precision == "float32":
        least = 1.0
    return Gate(
        tolerance or TOLERANCES[precision],
        most_lost=MOST_LOST if precision != "float32" and labels_tell else None,
        least_agreement=least,
    )


def labels_tell(answers: np.ndarray, labels: np.ndarray | None) -> bool:
    """Return whether labels are evidence: whether the reference is right more often than guessing.

    Guessing gives the most frequent class; the reference is better if the 95% interval of its
    accuracy is above that class's frequency.
    """
    if labels is None or not len(labels) or answers.ndim != 2:
        return False
    low, _ = wilson(int((answers.argmax(axis=1) == labels).sum()), len(labels))
    return low > np.bincount(labels).max() / len(labels)


@dataclass(frozen=True)
class Parity:
    """How a candidate's answers differ from a reference's on the same images.

    Of boxes, errors are of corners in px of the crop, and relative to its longer side. An image
    counts as right where the true class's box overlaps with a true box by more than half.
    """

    images: int
    batch_sizes: tuple[int, ...]
    gate: Gate
    max_abs_error: float  # of a probability, a feature, or a corner, px
    max_rel_error: float  # max_abs_error over the reference's largest one, or the crop's side
    # Fraction of images with the same top class, or of boxes that are right or wrong alike. None of
    # features, and of boxes without true ones.
    top1_agreement: float | None
    smallest_cosine: float | None = None  # of features: between the two vectors of an image
    accuracy_reference: float | None = None  # None without labels
    accuracy_artifact: float | None = None
    mcnemar_p: float | None = None  # exact, two-sided
    judged: int = 0  # images that the agreement is of
    labelled: int = 0  # images that the accuracies are of
    unoptimized_difference: float | None = None  # largest; see `with_integers_checked`
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) of the images that were shown
    failures: tuple[Failure, ...] = ()

    @property
    def top1_agreement_interval(self) -> tuple[float, float] | None:
        """Return the 95% Wilson confidence interval; None where there is no agreement."""
        if self.top1_agreement is None:
            return None
        count = self.judged or self.images
        return wilson(round(self.top1_agreement * count), count)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Return the 95% Wilson interval of the accuracy of the artifact; None without labels."""
        if self.accuracy_artifact is None:
            return None
        return wilson(round(self.accuracy_artifact * self.labelled), self.labelled)

    @property
    def is_too_inaccurate(self) -> bool:
        """Return whether it failed, and for its accuracy, agreement or cosine alone."""
        return not self.passed and all(f.kind in INACCURACIES for f in self.failures)

    @property
    def passed(self) -> bool:
        """Return whether nothing failed."""
        return not self.failures

    def failing(self, kind: FailureKind, message: str) -> Parity:
        """Return the same with one more failure."""
        return replace(self, failures=(*self.failures, Failure(kind, message)))


def in_batches(
    predictor: Predictor, images: np.ndarray, batch_sizes: Sequence[int] = BATCH_SIZES
) -> np.ndarray:
    """Return the answers to all images, in batches of 1, 2, 7, 1, 2, 7, ...: each size in turn."""
    parts: list[np.ndarray] = []
    start = 0
    while start < len(images):
        size = batch_sizes[len(parts) % len(batch_sizes)]
        parts.append(predictor(images[start : start + size]))
        start += size
    return np.concatenate(parts)


def compare(
    reference: Predictor | tuple[Predictor, np.ndarray],
    candidate: Predictor,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    gate: Gate = Gate(),
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Parity:
    """Compare a candidate with a reference on the same images, at several batch sizes.

    Args:
        reference: a Predictor; or one with its answers, float32 `[N, outputs]`, or a map of boxes,
            where they are known already.
        candidate: the Predictor to check.
        images: uint8 `[N, H, W, C]`; fewer than the batch sizes' sum are shown again, so that each
            size is tried.
        labels: int `[N]`, for the accuracies; of boxes what `regression.targets` gives of each
            image, float32 `[N, 1 + 4 K]`, for agreement too.
        gate: what must be reached.
        batch_sizes: tried in turn.

    Returns:
        Parity, with every failure; errors are infinite where shapes forbid comparing values.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("Expected images to compare on; received none.")
    expected, answers = reference if isinstance(reference, tuple) else (reference, None)
    if answers is None:
        answers = in_batches(expected, images, (32,))
    result = Parity(
        images=len(images),
        batch_sizes=tuple(batch_sizes),
        gate=gate,
        max_abs_error=np.inf,
        max_rel_error=np.inf,
        top1_agreement=0.0 if expected.form.gives_probabilities else None,
        smallest_cosine=0.0 if expected.features else None,
        sizes=(images.shape[1:3],),
        failures=_description_failures(expected, candidate),
    )
    if expected.input_shape != candidate.input_shape:
        return result
    shown = np.arange(max(len(images), sum(batch_sizes))) % len(images)
    answers = answers[shown]
    try:
        output = in_batches(candidate, images[shown], batch_sizes)
    except Exception as error:  # whatever a runtime raises is a failure of the file
        return result.failing("running", f"{type(error).__name__}: {str(error)[:300]}")
    if output.shape != answers.shape or output.dtype != np.float32:
        received = f"received {output.dtype} {list(output.shape)}"
        result = result.failing("output", f"expected float32 {list(answers.shape)}, {received}")
    if output.shape != answers.shape:
        return result
    return _with_values(result, expected, answers, output, labels)


def _with_values(
    result: Parity,
    expected: Predictor,
    answers: np.ndarray,
    output: np.ndarray,
    labels: np.ndarray | None,
) -> Parity:
    """Add how the answers of one shape differ, as suits what they are, and what of it fails."""
    n, boxes = result.images, expected.boxes  # images that are shown again count once
    if boxes:
        crop = expected.input_shape[:2]
        expected_corners, corners = (geometry.in_pixels(v, crop) for v in (answers, output))
        result = _with_errors(result, expected_corners, corners, max(crop))
        if labels is None:
            return result
        right, still_right = (geometry.localized(v[:n], labels, boxes) for v in (answers, output))
        result = _with_agreement(result, right == still_right, "a box that is as right or wrong")
        return _with_accuracies(result, right, still_right)
    result = _with_errors(result, answers, output)
    if expected.features:
        return _with_cosines(result, answers, output)
    reference_class, candidate_class = (v[:n].argmax(axis=1) for v in (answers, output))
    result = _with_agreement(result, reference_class == candidate_class, "the same class")
    if labels is None:
        return result
    return _with_accuracies(result, reference_class == labels, candidate_class == labels)


def merged(parts: Sequence[Parity]) -> Parity:
    """Merge comparisons of one candidate on images of several sizes; accuracies are the first's."""
    first, *others = parts
    known = [part for part in parts if part.top1_agreement is not None]
    judged = sum(part.judged or part.images for part in known)
    same = sum((part.top1_agreement or 0.0) * (part.judged or part.images) for part in known)
    cosines = [part.smallest_cosine for part in parts if part.smallest_cosine is not None]
    at_other_sizes = (
        replace(failure, size=size)
        for part in others
        for size in part.sizes
        for failure in part.failures
    )
    return replace(
        first,
        images=sum(part.images for part in parts),
        max_abs_error=max(part.max_abs_error for part in parts),
        max_rel_error=max(part.max_rel_error for part in parts),
        top1_agreement=round(same) / judged if known else None,
        judged=judged,
        smallest_cosine=min(cosines) if cosines else None,
        sizes=tuple(size for part in parts for size in part.sizes),
        failures=(*first.failures, *at_other_sizes),
    )


def _description_failures(expected: Predictor, candidate: Predictor) -> tuple[Failure, ...]:
    pairs: tuple[tuple[FailureKind, Any, Any], ...] = (
        ("input name", expected.input_name, candidate.input_name),
        ("output name", expected.output_name, candidate.output_name),
        ("class names", expected.class_names, candidate.class_names),
        ("input shape", expected.input_shape, candidate.input_shape),
    )
    return tuple(
        Failure(kind, f"expected {_short(right)}, received {_short(received)}")
        for kind, right, received in pairs
        if right != received
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _with_errors(
    result: Parity, answers: np.ndarray, output: np.ndarray, crop: int | None = None
) -> Parity:
    """Add the largest error, absolute and relative to the largest answer, and what of it fails.

    Of boxes it is relative to `crop`, the crop's longer side, px.
    """
    not_finite = int((~np.isfinite(output)).any(axis=1).sum())
    if not_finite:
        message = f"{not_finite} of {len(output)} answers are NaN or infinite"
        result = result.failing("values", message)
    errors = np.nan_to_num(np.abs(output.astype(np.float64) - answers), nan=np.inf)
    error, largest = float(errors.max()), crop or float(answers.max())
    relative = error / largest if largest else (np.inf if error else 0.0)  # all zeros
    result = replace(result, max_abs_error=error, max_rel_error=relative)
    tolerance, is_bounded = result.gate.tolerance, result.top1_agreement is not None
    bounded = (error, relative) if is_bounded else (relative,)
    if tolerance is None or all(value <= tolerance for value in bounded):
        return result
    image = int(errors.max(axis=1).argmax()) % result.images
    sizes = f"{error:.3g} is {relative:.3g} of the largest feature and"
    if crop:
        sizes = f"{error:.3g} px is {relative:.3g} of the crop and"
    elif is_bounded:
        sizes = f"{error:.3g} ({relative:.3g} relative)"
    message = f"largest error {sizes} exceeds {tolerance:g}, at image {image}"
    return result.failing("values", message)


def _with_agreement(result: Parity, alike: np.ndarray, what: str) -> Parity:
    """Add the fraction of images that both answer alike, bool `[N]`, and whether it fails."""
    n, gate, same = len(alike), result.gate, int(alike.sum())
    result = replace(result, top1_agreement=same / n, judged=n)
    low, high = wilson(same, n) if gate.least_agreement is not None else (0.0, 1.0)
    if gate.least_agreement is not None and high < gate.least_agreement:
        message = (
            f"{what} as Keras for {same / n:.2%} [{low:.1%}, {high:.1%}] of {n} images, "
            f"{gate.least_agreement:.0%} at least"
        )
        return result.failing("agreement", message)
    return result


def _with_accuracies(result: Parity, right: np.ndarray, still_right: np.ndarray) -> Parity:
    """Add how many images both are right about, bool `[N]` each, and whether too many are lost."""
    n, gate = len(right), result.gate
    lost, gained = int((right & ~still_right).sum()), int((still_right & ~right).sum())
    result = replace(
        result,
        labelled=n,
        accuracy_reference=float(right.mean()),
        accuracy_artifact=float(still_right.mean()),
        mcnemar_p=mcnemar(gained, lost),
    )
    if gate.most_lost is None or lost - gained <= gate.most_lost * n:
        return result
    message = (
        f"{still_right.mean():.2%} against {right.mean():.2%} of {n} images: "
        f"{(lost - gained) / n:.2%} lost, {gate.most_lost:.1%} at most"
    )
    return result.failing("accuracy", message)


def _with_cosines(result: Parity, answers: np.ndarray, output: np.ndarray) -> Parity:
    """Add the smallest cosine between two features of one image, and whether it fails."""
    cosine = float(_cosines(answers.astype(np.float64), output.astype(np.float64)).min())
    result = replace(result, smallest_cosine=cosine)
    least = result.gate.least_cosine
    if least is None or cosine >= least:
        return result
    message = f"{cosine:.4f} between an image's features and Keras', {least:g} at least"
    return result.failing("cosine", message)


def _cosines(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the cosines between rows.

    1 where both are all zeros; 0 where one is all zeros, or the candidate's is not finite.
    """
    lengths, others = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    defined = (lengths > 0) & (others > 0) & np.isfinite(others)
    cosines = np.where((lengths == 0) & (others == 0), 1.0, 0.0)
    products = (reference[defined] * candidate[defined]).sum(axis=1)
    cosines[defined] = products / (lengths[defined] * others[defined])
    return cosines.clip(-1, 1)
