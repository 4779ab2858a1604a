"""Whether a runtime computes an int8 file's integers right on this processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.parity import TOLERANCE, Parity
from vggkeras.runtimes import onnx
from vggkeras.runtimes.predictor import Predictor


def with_integers_checked(
    parity: Parity, candidate: Predictor, images: np.ndarray, answers: np.ndarray
) -> Parity:
    """Check an int8 ONNX file's integers against the same computation in float, on this processor.

    With all optimizations off, ONNX Runtime dequantizes, computes in float32 and quantizes again.
    Both sessions round the same sums, and may only differ where a sum lies between two integers. If
    their roundings were independent, the sessions would differ by the square root of 2 times the
    error that rounding adds to each; the distance of either from Keras is an upper bound of that.
    Integers that saturate are further off.

    Args:
        parity: of the file.
        candidate: the file in its optimized session.
        images: uint8 `[N, H, W, C]`.
        answers: float32 `[N, classes]`, Keras' own.

    Returns:
        The parity with the largest difference, and the failure if there is one.
    """
    unoptimized = onnx.load_unoptimized(candidate.path)(images)
    difference = candidate(images).astype(np.float64) - unoptimized
    largest = float(np.abs(difference).max())
    measured = _root_mean_square(difference)
    rounding = _root_mean_square(unoptimized.astype(np.float64) - answers)
    parity = replace(parity, unoptimized_difference=largest)
    if measured <= max(np.sqrt(2) * rounding, TOLERANCE):
        return parity
    return parity.failing(
        "integers",
        f"the optimized session differs from the same computation in float by {measured:.3g} (root "
        f"mean square; {largest:.3g} at most), and rounding alone by {rounding:.3g}: the runtime's "
        "integers are wrong on this processor",
    )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
