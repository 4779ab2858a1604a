"""Make splits of labeled images, whatever lists them: class folders, lists, other data sets.

A hash holds images out for validation where there is no split of that name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vggkeras.data import box_files, formats, imagenet
from vggkeras.data.box_files import Box
from vggkeras.data.decoding import check_names
from vggkeras.data.splits import Data, Split
from vggkeras.errors import InputError
from vggkeras.recipe import LARGEST_HELD_OUT

HELD_OUT = 0.2  # fraction of the training images, where data have no validation split of their own
PART = 256  # images at whose first bytes a thread looks in turn


class Labeled(NamedTuple):
    """An image and its class."""

    source: str | bytes  # path of its file, or the file itself
    class_name: str
    key: str  # decides whether it is held out: class and file name
    boxes: tuple[Box, ...] | None = None  # of its class; None: nobody asked for them


def check_fraction(fraction: float) -> None:
    """Raise InputError for a fraction of images that cannot be held out."""
    if not isinstance(fraction, int | float) or not 0 < fraction <= LARGEST_HELD_OUT:
        raise InputError(
            f"validation must be a fraction in (0, {LARGEST_HELD_OUT}]; received {fraction!r}."
        )


def is_held_out(key: str, fraction: float) -> bool:
    """Return whether an image is held out for validation, by a hash of its `key`.

    So neither where an image lies nor the others move it from one split to the other, and what a
    smaller fraction holds out, a larger one does too.
    """
    digest = hashlib.sha256(key.encode()).digest()
    # Evenly spread over [0, 5). Its integer part is the rule of versions 0.1 and 0.2: a fifth.
    position = int.from_bytes(digest[:8], "big") % 5 + int.from_bytes(digest[8:12], "big") / 2**32
    return position < 5 * fraction


def sorted_classes(names: set[str]) -> list[str]:
    """Return the names of classes in order: numbers by their value, others as text."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def to_data(
    spec: str,
    name: str,
    images: Mapping[str, list[Labeled]],
    *,
    classes: Sequence[str] | None = None,
    held_out: float | None = None,
    validation: str = "",
    skip_unreadable: bool = False,
    unread: Mapping[str, int] | None = None,
) -> Data:
    """Return the data that labeled images are.

    Args:
        spec: the data string by which they are found again.
        name: of the data, with which those of its splits begin.
        images: by split: train, validation, test, or all.
        classes: names in the order of the labels; by default those of train (of all splits, where
            there is none), sorted.
        held_out: the fraction of train to hold out for validation; None: there is no need.
        validation: where the images of validation come from, in words, if there are any.
        skip_unreadable: leave out files that are not images, instead of refusing them.
        unread: files beside them that have no image's suffix, by suffix.

    Raises:
        InputError (a ValueError): fewer than two classes; a class that train has not; a file that
            is not an image; too few images.
    """
    splits = dict(images)
    known = [splits["train"]] if "train" in splits else list(splits.values())
    classes = classes or sorted_classes({i.class_name for members in known for i in members})
    sources = (image.source for members in splits.values() for image in members)
    check_names((source for source in sources if isinstance(source, str)), classes)
    if len(classes) < 2:
        raise InputError(
            f"{spec} has one class, {', '.join(map(repr, classes))}: a classifier needs images of "
            "two classes or more."
        )
    if held_out is not None:
        splits |= _divided(spec, splits["train"], held_out)
        validation = f"held out: {held_out:.6g} of the images, by a hash of class and file name"
    made, skipped = _made(spec, name, splits, classes, skip_unreadable)
    return Data(
        spec,
        imagenet.readable(list(classes)),
        made,
        skipped=tuple(skipped),
        unread=unread or {},
        validation=validation,
        held_out=held_out,
    )


def _made(
    spec: str,
    name: str,
    splits: Mapping[str, list[Labeled]],
    classes: Sequence[str],
    skip_unreadable: bool,
) -> tuple[dict[str, Split], list[str]]:
    """Return the splits of what begins as images do, and the names of the rest."""
    numbers = {class_name: number for number, class_name in enumerate(classes)}
    made, skipped = {}, []
    for split, members in splits.items():
        _check_members(spec, split, members, numbers)
        kept, unreadable = _with_signature(members, f"{name}/{split}")
        if unreadable and not skip_unreadable:
            more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
            raise InputError(
                f"{unreadable[0]}{more} is no {formats.NAMES} file: replace or remove it, or pass "
                "--skip-unreadable where the command has it."
            )
        skipped += unreadable
        if not kept:
            raise InputError(f"{spec}: split {split} has no readable image.")
        labels = np.array([numbers[image.class_name] for image in kept], np.int64)
        full_name, sources = f"{name}/{split}", [image.source for image in kept]
        boxes = None if kept[0].boxes is None else box_files.to_boxes(full_name, kept)
        made[split] = Split(full_name, len(kept), labels, sources, boxes=boxes)
    return made, skipped


def _divided(spec: str, images: list[Labeled], fraction: float) -> dict[str, list[Labeled]]:
    """Divide images among train and validation."""
    splits: dict[str, list[Labeled]] = {"train": [], "validation": []}
    for image in images:
        splits["validation" if is_held_out(image.key, fraction) else "train"].append(image)
    left = {image.class_name for image in splits["train"]}
    empty = sorted({image.class_name for image in images} - left)
    if empty or not splits["validation"]:
        raise InputError(
            f"{spec} has too few images to hold out {fraction:.6g} of them for validation: give "
            f"more images ({f'class {empty[0]!r}' if empty else 'validation'} would get none), or "
            "splits train and val."
        )
    return splits


def _check_members(
    spec: str, split: str, images: list[Labeled], numbers: Mapping[str, int]
) -> None:
    """Raise InputError when a split has no images, or a class that train does not have."""
    unknown = sorted({image.class_name for image in images} - numbers.keys())
    if unknown:
        raise InputError(
            f"{spec}: split {split} has a class {unknown[0]!r} that train has not: expected the "
            "classes of train."
        )
    if not images:
        raise InputError(f"{spec}: split {split} has no images.")


def _with_signature(images: list[Labeled], name: str) -> tuple[list[Labeled], list[str]]:
    """Return the images that begin as images do, and the names of the others."""

    def is_image(image: Labeled) -> bool:
        if isinstance(image.source, bytes):
            return formats.is_image(image.source[: formats.START_BYTES])
        # No folder, link to nothing, or pipe that would be waited for.
        if not os.path.isfile(image.source):
            return False
        with open(image.source, "rb") as file:
            return formats.is_image(file.read(formats.START_BYTES))

    def are_images(part: list[Labeled]) -> list[bool]:
        return [is_image(image) for image in part]

    # Handing each file to a thread alone takes four times as long as looking at it.
    parts = [images[start : start + PART] for start in range(0, len(images), PART)]
    with ThreadPoolExecutor() as pool:
        found = [good for part in pool.map(are_images, parts) for good in part]
    kept = [image for image, good in zip(images, found, strict=True) if good]
    unreadable = [
        image.source if isinstance(image.source, str) else f"{name}[{number}]"
        for number, (image, good) in enumerate(zip(images, found, strict=True))
        if not good
    ]
    return kept, unreadable
