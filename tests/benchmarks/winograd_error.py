"""Say how much more Winograd's algorithm rounds than a plain convolution of 3 x 3.

    python tests/benchmarks/winograd_error.py

F(m, 3) computes m outputs of a row from m + 2 inputs d: A^T [(G g) * (B^T d)]. The matrices are
those of Cook and Toom at some points and at infinity. Let the products of a sum be rounded
independently, as in a plain convolution; then the error of one channel's products grows by the
squares of the matrices, and that of an image's by the product of both directions (Barabasz et al.,
Error Analysis and Improving the Accuracy of Winograd Convolution, 2018, has the worst case, which
grows in the same way). The second half of the table is measured in float32, on 256 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from rich.console import Console
from rich.table import Table

TAPS = 3
HALF = Fraction(1, 2)
MNN = ((0, 1, -1), (0, 1, -1, 2, -2), (0, 1, -1, 2, -2, 3, -3))  # F(2, 3), F(4, 3), F(6, 3)
BETTER = (0, 1, -1, 2, -2, HALF, -HALF)  # F(6, 3) of most other libraries

Points = Sequence[int | Fraction]


def matrices(at: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T [m, m + 2], G [m + 2, 3] and B^T [m + 2, m + 2] of F(m, 3) with m + 1 points."""
    points, outputs = [Fraction(point) for point in at], len(at) - 1
    last = [Fraction(0)] * (outputs - 1) + [Fraction(1)]
    a = [[point**i for i in range(outputs)] for point in points] + [last]
    g, b = [], []
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        divisor = np.prod([point - other for other in others])
        g.append([point**j / divisor for j in range(TAPS)])
        b.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(0)] * (TAPS - 1) + [Fraction(1)])
    b.append(_polynomial(points))
    return tuple(np.array(matrix, float) for matrix in (np.transpose(a), g, b))  # type: ignore


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of all (x - root), the constant one first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * value for value in [*coefficients, Fraction(0)]]
        coefficients = [x - y for x, y in zip(shifted, scaled, strict=True)]
    return coefficients


def amplification(points: Points) -> np.ndarray:
    """Return the factor on the root mean square of the error of each of m x m outputs."""
    at, g, bt = matrices(points)
    of_row = np.square(at) @ (np.square(g).sum(1) * np.square(bt).sum(1)) / TAPS
    return np.sqrt(np.outer(of_row, of_row))


def rms(values: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def measured(points: Points, channels: int = 256, tiles: int = 400) -> tuple[float, float]:
    """Return the relative rms error in float32: of F(m x m, 3 x 3), and of a plain sum."""
    rng = np.random.default_rng(0)
    side = len(points) + 1
    images = np.maximum(rng.standard_normal((tiles, channels, side, side)), 0).astype(np.float32)
    kernel = rng.standard_normal((channels, TAPS, TAPS)).astype(np.float32)
    at, g, bt = (matrix.astype(np.float32) for matrix in matrices(points))
    products = (bt @ images @ bt.T) * (g @ kernel @ g.T)
    fast = at @ _sum(products) @ at.T
    windows = np.lib.stride_tricks.sliding_window_view(images, (TAPS, TAPS), (2, 3))
    exact = np.einsum("tcyxij,cij->tyx", windows.astype(float), kernel.astype(float))
    plain = np.zeros_like(fast)
    for i in range(TAPS):
        for j in range(TAPS):
            plain = plain + _sum(windows[..., i, j] * kernel[:, i, j][:, None, None])
    return rms(fast - exact) / rms(exact), rms(plain - exact) / rms(exact)


def _sum(products: np.ndarray) -> np.ndarray:
    """Return the sum over channels, one after another in float32."""
    total = np.zeros(products[:, 0].shape, np.float32)
    for channel in range(products.shape[1]):
        total += products[:, channel]
    return total


def main() -> None:
    """Print a row an algorithm."""
    table = Table(title="error of a sum, times that of a plain convolution")
    for column in ("algorithm", "derived: rms", "derived: worst output", "measured: rms", "plain"):
        table.add_column(column)
    for points in (*MNN, BETTER):
        outputs, factors = len(points) - 1, amplification(points)
        fast, plain = measured(points)
        name = f"F({outputs} x {outputs}, 3 x 3) at {', '.join(map(str, points))}"
        row = (f"{rms(factors):.1f}", f"{factors.max():.1f}", f"{fast / plain:.1f}", f"{plain:.1e}")
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
