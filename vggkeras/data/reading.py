"""Read the images of splits in order, decoded in threads ahead of use, and count every one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from vggkeras.data import formats
from vggkeras.data.decoding import decoded, in_threads, unreadable
from vggkeras.data.splits import Split
from vggkeras.errors import InputError

T = TypeVar("T")
Prepare = Callable[[Image.Image], T]  # an image in mode RGB -> what is kept of it
Track = Callable[[Iterable, int], Iterable]  # (items, their number) -> the same items
SUFFIXES_NAMED = 10  # of files that are not read


def untracked(items: Iterable, total: int) -> Iterable:
    """Show no progress: the default `Track`."""
    return items


@dataclass(frozen=True)
class Example(Generic[T]):
    """An image that could be read."""

    split: str  # its name among the splits that are read
    index: int  # what `Split.image_name` takes
    label: int
    image: T


def read_each(
    split: Split, prepare: Prepare[T], side: int | None = None
) -> Iterator[tuple[int, int, T | InputError]]:
    """Yield (index, label, prepared image, or the error that names it) for every image.

    Large JPEGs are decoded reduced where they are rescaled to `side` px: see `decoded`.
    """

    def read(index: int, source: bytes | str, label: int) -> tuple[int, int, T | InputError]:
        try:
            name = split.image_name(index)
            return index, label, decoded(source, name, prepare, exif=split.exif, side=side)
        except InputError as error:
            return index, label, error

    return in_threads(read, split.sourced())


def read_images(
    split: Split, prepare: Prepare[T], side: int | None = None
) -> Iterator[tuple[int, int, T]]:
    """Yield what `read_each` does of every image; raise InputError at a bad one."""
    for index, label, image in read_each(split, prepare, side):
        if isinstance(image, InputError):
            raise image
        yield index, label, image


def readable_images(
    splits: Mapping[str, Split],
    prepare: Prepare[T],
    where: str,
    skipped: list[str] | None = None,
    track: Track = untracked,
) -> Iterator[Example[T]]:
    """Yield every image of some splits that can be read, in order, and account for the others.

    Args:
        splits: by name.
        prepare: called with each image, in a thread; its result is yielded.
        where: name of the data, for the error.
        skipped: a list to append the names of unreadable images to, at the end. Without it they are
            an error: after the first one the rest is only read, so that the error can count them.
        track: wraps the iteration over images, with their number, for a progress bar.

    Raises:
        InputError (a ValueError): at the end, when images could not be read and `skipped` is None.
    """
    names: list[str] = []
    first: InputError | None = None
    total = sum(split.count for split in splits.values())
    images = itertools.chain.from_iterable(
        zip(itertools.repeat(name), read_each(split, prepare)) for name, split in splits.items()
    )
    for name, (index, label, image) in track(images, total):
        if isinstance(image, InputError):
            names.append(splits[name].image_name(index))
            first = first or image
        elif skipped is not None or not names:
            yield Example(name, index, label, image)
    if skipped is not None:
        skipped += names
    elif names:
        raise unreadable(names, f"the {total} of {where}", first)


def unread(counts: Mapping[str, int]) -> str:
    """Return the line that counts files that were not read because of their names.

    For example: not read: 482 files (.xcf 300, .psd 100, .txt 82).

    Args:
        counts: by suffix; of files without one by "". One file or more.
    """
    files = sum(counts.values())
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix or 'no suffix'} {count:,}" for suffix, count in most[:SUFFIXES_NAMED]]
    if others := sum(count for _, count in most[SUFFIXES_NAMED:]):
        named.append(f"others {others:,}")
    hint = (
        f"; {formats.HEIF_HINT}" if counts.keys() & set(formats.BY_PLUGIN["HEIF"].suffixes) else ""
    )
    return f"not read: {files:,} file{'s' * (files > 1)} ({', '.join(named)}){hint}"
