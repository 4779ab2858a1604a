"""The true boxes of a split's images, upright or as the images are stored (Appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vggkeras.data.decoding import EXCHANGED, UPRIGHT

INVERSE = {6: 8, 8: 6}  # EXIF orientations; the others undo themselves


@dataclass(frozen=True)
class Boxes:
    """The boxes of the class of each of some images, in px of the images as they are read.

    Edges, not pixels: a whole image is (0, 0, width, height).
    """

    corners: tuple[np.ndarray, ...]  # an image: float64 [n, 4], n >= 1, the largest box first
    sizes: np.ndarray  # int64 [count, 2]: height and width, px
    orientations: np.ndarray  # int64 [count]: EXIF's
    upright: bool = True  # whether sizes and corners are of images that EXIF data turned

    @property
    def largest(self) -> np.ndarray:
        """The largest box of every image, float64 `[count, 4]`: what training takes."""
        return np.stack([boxes[0] for boxes in self.corners])

    @property
    def most(self) -> int:
        """The largest number of boxes of one image."""
        return max(map(len, self.corners))

    def some(self, indices: Sequence[int]) -> Boxes:
        """Return the boxes of some of the images."""
        corners = tuple(self.corners[i] for i in indices)
        chosen = list(indices)
        return replace(
            self,
            corners=corners,
            sizes=self.sizes[chosen],
            orientations=self.orientations[chosen],
        )

    def turned(self, upright: bool) -> Boxes:
        """Return the boxes of the images turned upright by EXIF data, or as they are stored."""
        corners, sizes = list(self.corners), self.sizes.copy()
        moved = np.flatnonzero(self.orientations != UPRIGHT) if upright != self.upright else ()
        for i in moved:
            orientation = int(self.orientations[i])
            there = orientation if upright else INVERSE.get(orientation, orientation)
            corners[i] = turned(corners[i], tuple(sizes[i]), there)
            sizes[i] = sizes[i][::-1] if orientation >= EXCHANGED else sizes[i]
        return replace(self, corners=tuple(corners), sizes=sizes, upright=upright)

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """Return the boxes of the images of all parts, in order."""
        return cls(
            tuple(corners for part in parts for corners in part.corners),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.orientations for part in parts]),
            parts[0].upright,
        )


def turned(corners: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Return boxes of an image as it is stored, where EXIF's orientation has turned it upright.

    To go back, give the upright image's size and `INVERSE.get(orientation, orientation)`.

    Args:
        corners: `[..., 4]`, px.
        size: height and width of the stored image, px.
        orientation: EXIF's, 1 to 8.
    """
    height, width = size
    xmin, ymin, xmax, ymax = np.moveaxis(np.asarray(corners, np.float64), -1, 0)
    # Orientations count the stored rows or columns from the other end (CIPA DC-008, 4.6.5).
    if orientation in (3, 4, 7, 8) if orientation < 5 else orientation in (6, 7):
        ymin, ymax = height - ymax, height - ymin
    if orientation in (2, 3) if orientation < 5 else orientation in (7, 8):
        xmin, xmax = width - xmax, width - xmin
    if orientation >= 5:
        xmin, ymin, xmax, ymax = ymin, xmin, ymax, xmax
    return np.stack([xmin, ymin, xmax, ymax], -1)
