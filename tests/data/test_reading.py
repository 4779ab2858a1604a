"""Reading splits in order: every image is yielded, or counted and named."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import encoded, photo
from PIL import Image

from vggkeras.data.reading import read_images, readable_images
from vggkeras.data.splits import Split
from vggkeras.errors import InputError


def split_of(name: str, count: int, bad: tuple[int, ...] = ()) -> Split:
    """Images of `count` different widths, labeled by their index; those in `bad` cut short."""
    images = [encoded(Image.fromarray(photo(i, 20, 30 + i)), "PNG") for i in range(count)]
    sources = [image[:-40] if i in bad else image for i, image in enumerate(images)]
    return Split(name, count, np.arange(count, dtype=np.int64), sources)


def width(image: Image.Image) -> int:
    return image.width


def test_images_come_in_order_with_their_labels():
    split = split_of("x", 50).without([3])
    assert list(read_images(split, width)) == [
        (i, i + (i >= 3), 30 + i + (i >= 3)) for i in range(49)
    ]
    with pytest.raises(InputError, match=r"^x\[2\] cannot be read"):
        list(read_images(split_of("x", 4, bad=(2,)), width))


def test_unreadable_images_of_several_splits_are_skipped_and_named():
    splits = {"train": split_of("x", 5, bad=(1,)), "test": split_of("y", 4, bad=(0, 3))}
    totals, skipped = [], ["before"]

    def track(items, total):
        totals.append(total)
        return items

    examples = list(readable_images(splits, width, "set", skipped, track))
    assert [(e.split, e.index, e.label, e.image) for e in examples] == [
        *(("train", i, i, 30 + i) for i in (0, 2, 3, 4)),
        *(("test", i, i, 30 + i) for i in (1, 2)),
    ]
    assert skipped == ["before", "x[1]", "y[0]", "y[3]"]
    assert totals == [9]


def test_unreadable_images_are_all_counted_before_they_are_an_error():
    splits = {"train": split_of("x", 5, bad=(1,)), "test": split_of("y", 4, bad=(0, 3))}
    images = readable_images(splits, width, "set")
    assert next(images).index == 0
    with pytest.raises(InputError, match=r"x\[1\], y\[0\], y\[3\] cannot .* \(3 of the 9 of set\)"):
        next(images)
