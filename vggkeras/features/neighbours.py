"""Show images with their nearest neighbours by features, as one HTML page (Appendix B).

python -m vggkeras features --data FOLDER --out features.npz --neighbours neighbours.html
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggkeras import files
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.evaluation import statistics
from vggkeras.features.extraction import Described
from vggkeras.features.svm import interval_text
from vggkeras.pages import Picture, data_title, encode_picture, read_some, render

TEMPLATE = Path(__file__).with_name("neighbours.html.jinja")
PAGE = files.Kind("a page of neighbours", files.page_of("Nearest neighbours in "))
QUERIES, CLOSEST = 24, 8  # of the page
THUMBNAIL = 160  # px: twice what a phone shows
BLOCK = 1 << 24  # similarities in memory at once


@dataclass(frozen=True)
class NearestRecall:
    """The fraction of labeled images whose nearest other labeled image has their class."""

    images: int
    right: int
    chance: float  # the same fraction for a random other image

    @staticmethod
    def of(features: np.ndarray, labels: np.ndarray) -> NearestRecall | None:
        """Measure features float32 `[N, D]`; None for fewer than two known labels.

        Args:
            features: rows of length 1.
            labels: int64 `[N]`; -1: unknown.
        """
        labeled = np.flatnonzero(labels >= 0)
        count = len(labeled)
        if count < 2:
            return None
        labels = labels[labeled]
        rows, _ = nearest(features[labeled], np.arange(count), 1)
        sizes = np.bincount(labels)
        chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
        return NearestRecall(count, int((labels[rows[:, 0]] == labels).sum()), chance)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson confidence interval of the fraction."""
        return statistics.wilson(self.right, self.images)

    def __str__(self) -> str:
        """Say it in one line."""
        recall = f"{100 * self.right / self.images:.2f}% {interval_text(self.interval)}"
        return (
            f"{recall} of images have one of their own class for nearest neighbour, "
            f"chance {100 * self.chance:.1f}%"
        )

    def record(self) -> dict[str, Any]:
        """Return the JSON of it."""
        share = self.right / self.images
        return {**asdict(self), "share": share, "interval": self.interval}


@dataclass(frozen=True)
class Shown:
    """An image on a page."""

    name: str
    label: str | None
    picture: Picture
    # Of a neighbour alone:
    cosine: float | None = None  # of the angle to the query's features
    alike: bool | None = None  # whether it has the query's class; None: unknown


@dataclass(frozen=True)
class _Row:
    """A query with its closest images."""

    query: Shown
    closest: list[Shown]


def check_page(path: Path) -> None:
    """Check that a page can be written to a path, before its content is computed.

    Raises:
        InputError (a ValueError): a folder, a model's name, another suffix than .html, or a
            read-only folder.
    """
    files.check_file(path, PAGE)
    if path.suffix != ".html":
        raise InputError(
            f"{path}: expected a page's file that ends in .html; received {path.suffix!r}."
        )


def write_page(described: Described, path: Path) -> NearestRecall | None:
    """Write a page of queries, each with its closest images, that needs no network and no script.

    Returns:
        How many images have a nearest neighbour of their class; None where labels are unknown.

    Raises:
        InputError (a ValueError): fewer than two images.
    """
    count, spec = len(described.labels), described.data.spec
    if count < 2:
        raise InputError(
            f"{spec} has one image that can be read: nearest neighbours need two or more."
        )
    queries = choose_queries(described.labels)
    closest, cosines = nearest(described.features, queries, min(CLOSEST, count - 1))
    recall = NearestRecall.of(described.features, described.labels)
    shown = _shown(described, np.unique(np.concatenate([queries, closest.ravel()])))
    rows = []
    for query, others, angles in zip(queries.tolist(), closest.tolist(), cosines, strict=True):
        neighbours = [
            replace(shown[other], cosine=float(cosine), alike=_alike(described, query, other))
            for other, cosine in zip(others, angles, strict=True)
        ]
        rows.append(_Row(shown[query], neighbours))
    page = render(
        TEMPLATE,
        title=data_title(spec),
        rows=rows,
        recall=recall,
        about=described.about,
        flatters=described.flatters,
        written=datetime.datetime.now(),
    )
    files.write_text(path, page)
    return recall


def closest_to(described: Described, features: np.ndarray, count: int = CLOSEST) -> list[Shown]:
    """Return the images whose features are closest to another image's, the closest first.

    Args:
        described: the images.
        features: of the other one, float32 `[D]`, of length 1.
        count: how many at most.
    """
    cosines = described.features @ features
    rows = np.argsort(-cosines, kind="stable")[:count]
    shown = _shown(described, rows)
    return [replace(shown[row], cosine=float(cosines[row])) for row in rows.tolist()]


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the closest other images by cosine, the closest first; of equal ones, the first.

    Args:
        features: float32 `[N, D]`, rows of length 1.
        queries: rows of the images to look up, int `[Q]`.
        count: how many, below N.

    Returns:
        Their rows int64 `[Q, count]`, and cosines float32 `[Q, count]`.
    """
    rows, cosines = [], []
    size = max(1, BLOCK // len(features))
    for some in (queries[i : i + size] for i in range(0, len(queries), size)):
        similarities = features[some] @ features.T  # [size, N]
        similarities[np.arange(len(some)), some] = -np.inf
        if count == 1:  # far less work than sorting
            best = similarities.argmax(axis=1)[:, None]
        else:
            best = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
        rows.append(best)
        cosines.append(np.take_along_axis(similarities, best, axis=1))
    return np.concatenate(rows), np.concatenate(cosines)


def choose_queries(labels: np.ndarray, count: int = QUERIES) -> np.ndarray:
    """Return rows of images, int64, spread evenly over the classes and over each class's images.

    Where there are more classes than queries, evenly spread classes have one query each. Unknown
    labels are one class.
    """
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), count)]
    counts = np.full(len(classes), count // len(classes))
    counts[: count % len(classes)] += 1
    chosen = []
    for label, number in zip(classes, counts, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[_spread(len(rows), number)])
    return np.concatenate(chosen)


def _spread(total: int, count: int) -> np.ndarray:
    """Return at most `count` of the numbers below `total`, each in the middle of its part."""
    count = min(total, count)
    return (np.arange(count) * 2 + 1) * total // (2 * count)


def _shown(described: Described, rows: np.ndarray) -> dict[int, Shown]:
    """Return some images with their central squares: row -> image."""
    shown = {}
    for name, split in described.data.splits.items():
        row_of = {int(described.indices[i]): int(i) for i in rows if described.splits[i] == name}
        for index, square in read_some(split, row_of, _square):
            row = row_of[index]
            picture = encode_picture(square)
            shown[row] = Shown(described.name(row), described.label(row), picture)
    return shown


def _square(image: Image.Image) -> np.ndarray:
    return augment.center_crop(image, THUMBNAIL, (THUMBNAIL, THUMBNAIL))


def _alike(described: Described, row: int, other: int) -> bool | None:
    """Return whether two images have the same class; None where a label is unknown."""
    one, two = described.labels[row], described.labels[other]
    return bool(one == two) if one >= 0 and two >= 0 else None
