"""TODO"""

from __future__ import annotations

import base64
import datetime
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggkeras import files
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.evaluation import statistics
from vggkeras.features.extraction import Described
from vggkeras.features.svm import interval_text

TEMPLATE = Path(__file__).with_name("neighbours.html.jinja")
QUERIES, CLOSEST = 24, 8  # of the page
THUMBNAIL = 160  # px: twice what a phone shows
BLOCK = 1 << 24  # similarities in memory at once


def check_page(path: Path) -> None:
    """Raises InputError when a page cannot be written to a path, before what it shows is computed."""
    files.check_file(path)
    if path.suffix != ".html":
        raise InputError(
            f"{path}: expected a page's file that ends in .html; received {path.suffix!r}."
        )


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The closest other images by cosine, the closest first; of equal ones, the first.

    Args:
        features: float32 `[N, D]`, rows of length 1.
        queries: places of images, int `[Q]`.
        count: how many, below N.

    Returns:
        Their places int64 `[Q, count]`, and cosines float32 `[Q, count]`.
    """
    places, cosines = [], []
    size = max(1, BLOCK // len(features))
    for some in (queries[i : i + size] for i in range(0, len(queries), size)):
        found = features[some] @ features.T  # [size, N]
        found[np.arange(len(some)), some] = -np.inf
        # The whole order of every row is far more work than its largest.
        best = (
            found.argmax(axis=1)[:, None]
            if count == 1
            else np.argsort(-found, axis=1, kind="stable")[:, :count]
        )
        places.append(best)
        cosines.append(np.take_along_axis(found, best, axis=1))
    return np.concatenate(places), np.concatenate(cosines)


@dataclass(frozen=True)
class NearestShare:
    """How many labelled images have one of their own class for nearest neighbour among the labelled others."""

    images: int
    right: int
    chance: float  # share of a random other image's being of the class

    @staticmethod
    def of(features: np.ndarray, labels: np.ndarray) -> NearestShare | None:
        """Of features float32 `[N, D]` and labels int64 `[N]`, -1 where not known; None for fewer than two known."""
        known = np.flatnonzero(labels >= 0)
        if len(known) < 2:
            return None
        features, labels = features[known], labels[known]
        places, _ = nearest(features, np.arange(len(known)), 1)
        counts = np.bincount(labels)
        chance = float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1)))
        return NearestShare(len(known), int((labels[places[:, 0]] == labels).sum()), chance)

    def __str__(self) -> str:
        return (
            f"{100 * self.right / self.images:.2f}% {interval_text(statistics.wilson(self.right, self.images))} of images have one "
            f"of their own class for nearest neighbour, chance {100 * self.chance:.1f}%"
        )

    def record(self) -> dict[str, Any]:
        """As JSON, with Wilson's 95% interval."""
        interval = statistics.wilson(self.right, self.images)
        return {**vars(self), "share": self.right / self.images, "interval": interval}


def choose_queries(labels: np.ndarray, count: int = QUERIES) -> np.ndarray:
    """Places of images, int64, spread evenly over the classes, and in each class over its images, in order.

    Where there are more classes than queries, classes spread evenly have one each. Unknown labels are one class.
    """
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), count)]
    each = np.full(len(classes), count // len(classes))
    each[: count % len(classes)] += 1
    chosen = []
    for label, number in zip(classes, each, strict=True):
        own = np.flatnonzero(labels == label)
        chosen.append(own[_spread(len(own), number)])
    return np.concatenate(chosen)


def _spread(among: int, count: int) -> np.ndarray:
    """At most `count` places spread evenly over the numbers below `among`, each in the middle of its part."""
    count = min(among, count)
    return (np.arange(count) * 2 + 1) * among // (2 * count)


def write_page(found: Described, path: Path) -> NearestShare | None:
    """Write a page of queries, each with its closest images, that needs no network and no script.

    Returns the share of images whose nearest neighbour has their class; None where labels are not known.

    Raises InputError where there are fewer than two images.
    """
    count = len(found.labels)
    if count < 2:
        raise InputError(
            f"{found.data.spec} has one image that can be read: nearest neighbours need two or more."
        )
    queries = choose_queries(found.labels)
    places, cosines = nearest(found.features, queries, min(CLOSEST, count - 1))
    share = NearestShare.of(found.features, found.labels)
    pictures = _pictures(found, np.unique(np.concatenate([queries, places.ravel()])))

    def shown(place: int, **more: Any) -> dict[str, Any]:
        return {
            "name": found.name(place),
            "label": found.label(place),
            "picture": pictures[int(place)],
            **more,
        }

    rows = []
    for query, own, near in zip(queries, places, cosines, strict=True):
        label = found.label(query)
        closest = []
        for place, cosine in zip(own, near, strict=True):
            other = found.label(place)
            alike = None if label is None or other is None else label == other
            closest.append(shown(place, cosine=float(cosine), alike=alike))
        rows.append({"query": shown(query), "closest": closest})
    spec = found.data.spec
    values = {
        "title": spec.removeprefix("tfds:") if spec.startswith("tfds:") else Path(spec).name,
        "rows": rows,
        "share": share.record() if share else None,
        "about": found.about,
        "flatters": found.flatters,
        "written": datetime.datetime.now(),
    }
    from vggkeras.pages import rendered

    files.write_text(path, rendered(TEMPLATE, thumbnail=THUMBNAIL, **values))
    return share


def _pictures(found: Described, places: np.ndarray) -> dict[int, str]:
    """Some images' central squares as people like to see them: place -> the source of an `img`."""
    pictures = {}
    for name, split in found.data.splits.items():
        own = {
            int(found.indices[place]): int(place) for place in places if found.splits[place] == name
        }
        some = split.without(set(split.indices()) - set(own))
        for index, (_, encoded, _) in zip(sorted(own), some.examples(), strict=True):
            image = decoding.decode(encoded, split.image_name(index))
            square = augment.center_crop(image, THUMBNAIL, (THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            Image.fromarray(square).save(buffer, "JPEG", quality=82, optimize=True)
            pictures[own[index]] = (
                f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            )
    return pictures
