"""Does a file give the reference's answers? compare(reference, candidate, images) -> Parity.

Names are compared first, then shapes, then values; every failure is gathered, none is swallowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from export import TOLERANCES
from vggkeras.runtimes import onnx
from vggkeras.runtimes.predictor import Predictor

BATCH_SIZES = (1, 2, 7)
MOST_LOST = 0.005  # top-1 accuracy that float16 and int8 may cost, a fraction of the images
# Top-1 agreement that int8 must reach, between what right and wrong files have. Trained networks agree with Keras on
# 99.2 to 100% of the images; the same whose integers saturate on 89 and 94%, and an untrained network, whose scores are
# near each other, on 92 to 94% (tests/benchmarks/int8_ways.py).
LEAST_AGREEMENT = 0.97
# Cosine between the features of an image in int8 and in Keras. Trained networks have 0.993 and more for every image.
LEAST_COSINE = 0.98
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Gate:
    """What a file must reach to pass."""

    # Largest error of a probability, absolute and relative to the reference's largest one; of a feature, whose size is
    # any, relative alone. None: values are not bounded, but accuracy and agreement are.
    tolerance: float | None = TOLERANCE
    most_lost: float | None = None  # the most top-1 accuracy that may be lost; needs labels
    least_agreement: float | None = None  # fails where the agreement's whole 95% interval is below
    least_cosine: float | None = None  # of features: between the two vectors of any image


def gate_of(
    precision: str, labels_tell: bool, features: bool = False, tolerance: float | None = None
) -> Gate:
    """Return what a file of a precision must reach; without labels that tell, int8 is judged by agreement alone.

    A tolerance, where one is given, takes the place of the precision's.
    """
    if features:
        return Gate(
            TOLERANCES[precision], least_cosine=LEAST_COSINE if precision == "int8" else None
        )
    return Gate(
        tolerance or TOLERANCES[precision],
        MOST_LOST if precision != "float32" and labels_tell else None,
        LEAST_AGREEMENT if precision == "int8" else None,
    )


def labels_tell(answers: np.ndarray, labels: np.ndarray | None) -> bool:
    """Return whether labels are evidence: whether the reference is right more often than guessing is.

    Guessing gives the most frequent class; the reference is better if the 95% interval of its accuracy is above that.
    """
    from vggkeras.evaluation.statistics import wilson

    if labels is None or not len(labels) or answers.ndim != 2:
        return False
    low, _ = wilson(int((answers.argmax(axis=1) == labels).sum()), len(labels))
    return low > np.bincount(labels).max() / len(labels)


@dataclass
class Parity:
    """How a candidate's probabilities, or features, differ from a reference's on the same images."""

    images: int
    batch_sizes: tuple[int, ...]
    gate: Gate
    max_abs_error: float  # of a probability, or a feature
    max_rel_error: float  # max_abs_error over the reference's largest one
    top1_agreement: float | None  # fraction of images with the same top class; None of features
    smallest_cosine: float | None = None  # of features: between the two vectors of an image
    accuracy_reference: float | None = None  # None without labels
    accuracy_artifact: float | None = None
    mcnemar_p: float | None = None  # exact, two-sided
    labelled: int = 0  # images that the accuracies are of
    unoptimized_difference: float | None = None  # of int8 in ONNX: largest, see `check_rounding`
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) of the images that were shown
    failures: list[str] = field(default_factory=list)

    @property
    def top1_agreement_interval(self) -> tuple[float, float] | None:
        """Wilson, 95%; None of features."""
        from vggkeras.evaluation.statistics import wilson

        if self.top1_agreement is None:
            return None
        return wilson(round(self.top1_agreement * self.images), self.images)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson, 95%, of the artifact's accuracy; None without labels."""
        from vggkeras.evaluation.statistics import wilson

        if self.accuracy_artifact is None:
            return None
        return wilson(round(self.accuracy_artifact * self.labelled), self.labelled)

    @property
    def is_too_inaccurate(self) -> bool:
        """Whether it failed for its accuracy or its agreement alone."""
        return bool(self.failures) and all(
            failure.rpartition(" px: ")[2].startswith(("accuracy: ", "agreement: ", "cosine: "))
            for failure in self.failures
        )

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return not self.failures


def in_batches(
    predictor: Predictor, images: np.ndarray, batch_sizes: Sequence[int] = BATCH_SIZES
) -> np.ndarray:
    """A predictor's answers to all images, passed in batches of 1, 2, 7, 1, 2, 7, ... so that one pass tries every size."""
    parts, start, turn = [], 0, 0
    while start < len(images):
        size = batch_sizes[turn % len(batch_sizes)]
        parts.append(predictor(images[start : start + size]))
        start, turn = start + size, turn + 1
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
        reference: a Predictor, or one with its answers, float32 `[N, classes]` or `[N, units]`, where they are known
            already. What it gives, probabilities or features, is expected of the candidate.
        candidate: the Predictor to check.
        images: uint8 `[N, H, W, C]`; fewer than the batch sizes' sum are shown again, so that each size is tried.
        labels: int `[N]`, for the accuracies.
        gate: what must be reached.
        batch_sizes: tried in turn.

    Returns:
        Parity, with every failure that was found; errors are infinite where shapes forbid comparing values.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("Expected images to compare on; received none.")
    known, answers = reference if isinstance(reference, tuple) else (reference, None)
    failures = []
    for what, expected, received in (
        ("input name", known.input_name, candidate.input_name),
        ("output name", known.output_name, candidate.output_name),
        ("class names", known.class_names, candidate.class_names),
        ("input shape", known.input_shape, candidate.input_shape),
    ):
        if expected != received:
            failures.append(f"{what}: expected {_short(expected)}, received {_short(received)}")
    if answers is None:
        answers = in_batches(known, images, (32,))
    if known.input_shape != candidate.input_shape:
        return _incomparable(known, images, batch_sizes, gate, failures)
    shown = np.arange(max(len(images), sum(batch_sizes))) % len(images)
    answers = answers[shown]
    try:
        output = in_batches(candidate, images[shown], batch_sizes)
    except (
        Exception
    ) as error:  # whatever a runtime raises is a failure of the file, and reported as one
        failures.append(f"running: {type(error).__name__}: {str(error)[:300]}")
        return _incomparable(known, images, batch_sizes, gate, failures)
    if output.shape != answers.shape or output.dtype != np.float32:
        failures.append(
            f"output: expected float32 {list(answers.shape)}, received {output.dtype} {list(output.shape)}"
        )
    if output.shape != answers.shape:
        return _incomparable(known, images, batch_sizes, gate, failures)
    if known.features:
        return _features(images, answers, output, batch_sizes, gate, failures)
    return _values(images, answers, output, labels, batch_sizes, gate, failures)


def merged(parts: Sequence[Parity]) -> Parity:
    """What several comparisons of one candidate, on images of several sizes, come to; the accuracies are the first's."""
    first, *others = parts
    images = sum(part.images for part in parts)
    agreements = [
        part.top1_agreement * part.images for part in parts if part.top1_agreement is not None
    ]
    cosines = [part.smallest_cosine for part in parts if part.smallest_cosine is not None]
    return replace(
        first,
        images=images,
        max_abs_error=max(part.max_abs_error for part in parts),
        max_rel_error=max(part.max_rel_error for part in parts),
        top1_agreement=round(sum(agreements)) / images if agreements else None,
        smallest_cosine=min(cosines) if cosines else None,
        sizes=tuple(size for part in parts for size in part.sizes),
        failures=first.failures
        + [
            f"at {h} x {w} px: {failure}"
            for part in others
            for h, w in part.sizes
            for failure in part.failures
        ],
    )


def _values(
    images: np.ndarray,  # answers and outputs may be more
    answers: np.ndarray,
    output: np.ndarray,
    labels: np.ndarray | None,
    batch_sizes: Sequence[int],
    gate: Gate,
    failures: list[str],
) -> Parity:
    n = len(images)
    error, relative, worst = _errors(answers, output, failures)
    tolerance = gate.tolerance
    if tolerance is not None and not (error <= tolerance and relative <= tolerance):
        failures.append(
            f"values: largest error {error:.3g} ({relative:.3g} relative) exceeds {tolerance:g}, at image {worst % n}"
        )
    ours, theirs = answers[:n].argmax(axis=1), output[:n].argmax(axis=1)
    same = int((ours == theirs).sum())
    size = (images.shape[1:3],)
    parity = Parity(
        n, tuple(batch_sizes), gate, error, relative, same / n, sizes=size, failures=failures
    )
    if gate.least_agreement is not None:
        low, high = parity.top1_agreement_interval or (0.0, 0.0)
        if high < gate.least_agreement:
            failures.append(
                f"agreement: the same class as Keras for {same / n:.2%} [{low:.1%}, {high:.1%}] of "
                f"{n} images, {gate.least_agreement:.0%} at least"
            )
    if labels is not None:
        from vggkeras.evaluation.statistics import mcnemar

        parity.labelled = n
        right, kept = ours == labels, theirs == labels
        lost, gained = int((right & ~kept).sum()), int((kept & ~right).sum())
        parity.accuracy_reference = float(right.mean())
        parity.accuracy_artifact = float(kept.mean())
        parity.mcnemar_p = mcnemar(gained, lost)
        if gate.most_lost is not None and lost - gained > gate.most_lost * n:
            failures.append(
                f"accuracy: {kept.mean():.2%} against {right.mean():.2%} of {n} images: "
                f"{(lost - gained) / n:.2%} lost, {gate.most_lost:.1%} at most"
            )
    return parity


def _features(
    images: np.ndarray,  # answers and outputs may be more
    answers: np.ndarray,
    output: np.ndarray,
    batch_sizes: Sequence[int],
    gate: Gate,
    failures: list[str],
) -> Parity:
    n = len(images)
    error, relative, worst = _errors(answers, output, failures)
    tolerance = gate.tolerance
    if tolerance is not None and not relative <= tolerance:
        failures.append(
            f"values: largest error {error:.3g} is {relative:.3g} of the largest feature and exceeds {tolerance:g}, at "
            f"image {worst % n}"
        )
    cosine = float(_cosines(answers.astype(np.float64), output.astype(np.float64)).min())
    if gate.least_cosine is not None and cosine < gate.least_cosine:
        failures.append(
            f"cosine: {cosine:.4f} between an image's features and Keras', {gate.least_cosine:g} at least"
        )
    size = (images.shape[1:3],)
    sizes = tuple(batch_sizes)
    return Parity(n, sizes, gate, error, relative, None, cosine, sizes=size, failures=failures)


def check_rounding(
    parity: Parity, path: Path, output: np.ndarray, images: np.ndarray, answers: np.ndarray
) -> None:
    """Hold an int8 ONNX file's integers against the same computation in float, on this processor.

    With all optimizations off, ONNX Runtime dequantizes, computes in float32 and quantizes again. Both sessions round
    the same sums, and may only differ where a sum lies at the edge between two steps. Were their roundings
    independent, their difference would be the square root of 2 times what rounding does to each of them, which the
    distance of either from Keras bounds. Integers that saturate are further off.

    Args:
        parity: of the file, which records the largest difference, and the failure if there is one.
        output: float32 `[N, classes]`, of the optimized session.
        images: uint8 `[N, H, W, C]`.
        answers: float32 `[N, classes]`, Keras' own.
    """
    raw = onnx.load_unoptimized(path)(images)
    apart = output.astype(np.float64) - raw
    parity.unoptimized_difference = float(np.abs(apart).max())
    found = float(np.sqrt(np.square(apart).mean()))
    rounding = float(np.sqrt(np.square(raw.astype(np.float64) - answers).mean()))
    if not found <= max(np.sqrt(2) * rounding, TOLERANCE):
        parity.failures.append(
            f"integers: the optimized session differs from the same computation in float by {found:.3g} (root of the "
            f"mean square; {parity.unoptimized_difference:.3g} at most), and rounding by {rounding:.3g} alone: the "
            "runtime's integers are wrong on this processor"
        )


def _cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Between the rows: 1 where both are all zeros, 0 where one alone is, or is not finite."""
    lengths, others = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    known = (lengths > 0) & (others > 0) & np.isfinite(others)
    found = np.where((lengths == 0) & (others == 0), 1.0, 0.0)
    found[known] = (ours[known] * theirs[known]).sum(axis=1) / (lengths[known] * others[known])
    return found.clip(-1, 1)


def _errors(
    answers: np.ndarray, output: np.ndarray, failures: list[str]
) -> tuple[float, float, int]:
    """The largest error, absolute and relative to the largest answer, and the place of its image."""
    if not np.isfinite(output).all():
        failures.append(
            f"values: {int((~np.isfinite(output)).any(axis=1).sum())} of {len(output)} answers are NaN or infinite"
        )
    difference = np.nan_to_num(np.abs(output.astype(np.float64) - answers), nan=np.inf)
    error, largest = float(difference.max()), float(answers.max())
    relative = error / largest if largest else (np.inf if error else 0.0)  # all zeros
    return error, relative, int(difference.max(axis=1).argmax())


def _incomparable(
    known: Predictor,
    images: np.ndarray,
    batch_sizes: Sequence[int],
    gate: Gate,
    failures: list[str],
) -> Parity:
    size, sizes = (images.shape[1:3],), tuple(batch_sizes)
    agreement, cosine = (None, 0.0) if known.features else (0.0, None)
    worst, n = np.inf, len(images)
    return Parity(n, sizes, gate, worst, worst, agreement, cosine, sizes=size, failures=failures)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
