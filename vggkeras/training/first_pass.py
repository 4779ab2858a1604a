"""The first pass over a run's images: which are unreadable, their mean color, their sizes."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping

from rich.console import Console

from vggkeras.card import ModelCard
from vggkeras.data import statistics
from vggkeras.data.decoding import NAMED, some
from vggkeras.data.splits import Data, Split
from vggkeras.data.statistics import Pixels
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar
from vggkeras.training import pass_cache
from vggkeras.training.hosts import ALONE, Hosts


def read_through(
    data: Data, recipe: Recipe, console: Console, hosts: Hosts = ALONE
) -> tuple[Data, ModelCard, float]:
    """Read every training and validation image once, unless the same files were read before.

    Of several hosts the first one reads them, and tells the others what it found.

    Args:
        data: all splits.
        recipe: says whether unreadable images are left out, and how many channels are used.
        console: shows the progress.
        hosts: that train together.

    Returns:
        The data, without the unreadable images; a card with the mean and covariance of the
        channels, the indices of unreadable images, and the number of training images by smallest
        side; and the seconds that this took.

    Raises:
        InputError (a ValueError): an image is unreadable, and the recipe does not leave it out; or
            all images of a split are.
    """
    start, skip = time.monotonic(), recipe.skip_unreadable
    splits = {name: split for name, split in data.splits.items() if name != "test" or skip}
    card = hosts.of_first(lambda: _card(data, splits, recipe, console), ModelCard)
    assert card
    skipped = list(data.skipped)
    for name, bad in card.unreadable.items():
        skipped += [splits[name].image_name(index) for index in bad]
    if skipped:
        all_of_them = "; run.json names all" if len(skipped) > NAMED else ""
        console.print(
            f"skipped {len(skipped):,} unreadable images: {some(skipped)}{all_of_them}",
            soft_wrap=True,
        )
    readable = {n: split.without(card.unreadable.get(n, ())) for n, split in data.splits.items()}
    data = dataclasses.replace(data, splits=readable, skipped=tuple(skipped))
    return data, card, time.monotonic() - start


def _card(data: Data, splits: Mapping[str, Split], recipe: Recipe, console: Console) -> ModelCard:
    """Return the card of an earlier pass over the same files, or of one that is made now."""
    entry = pass_cache.entry(data, splits, recipe.channels, recipe.fast_decode)
    card = entry.read(splits) if entry else None
    # The pass names the unreadable file, and why it cannot be read.
    if card and any(card.unreadable.values()) and not recipe.skip_unreadable:
        card = None
    if card and entry:
        count = sum(split.count for split in splits.values())
        console.print(
            f"{count:,} images of {data.spec} have not changed since they were read ({entry.path})",
            soft_wrap=True,
            highlight=False,
        )
    else:
        card = _read(splits, recipe, console)
        _check_some_are_readable(data.spec, splits, card)
        if entry and entry == pass_cache.entry(
            data, splits, recipe.channels, recipe.fast_decode
        ):  # no file changed meanwhile
            _remember(entry, card, console)
    return card


def _read(splits: Mapping[str, Split], recipe: Recipe, console: Console) -> ModelCard:
    """Read every image of some splits, and return the card of what they are."""
    unreadable: dict[str, list[int]] = {name: [] for name in splits}
    sides: Counter[int] = Counter()

    def images(name: str) -> Iterator[Pixels]:
        split = splits[name]
        with progress_bar(console) as bar:
            for index, result in bar.track(
                statistics.read_all(split, recipe.channels, recipe.fast_decode),
                total=split.count,
                description=f"reading {split.name}",
            ):
                if not isinstance(result, InputError):
                    yield result
                elif recipe.skip_unreadable:
                    unreadable[name].append(index)
                else:
                    raise result

    def counted(images: Iterator[Pixels]) -> Iterator[Pixels]:
        for image in images:
            sides[image.smallest_side] += 1
            yield image

    mean, covariance = statistics.rgb_statistics(counted(images("train")), recipe.channels)
    for name in splits:
        if name != "train":
            deque(images(name), maxlen=0)
    return ModelCard(
        mean_rgb=mean,
        rgb_covariance=tuple(map(tuple, covariance.tolist())),
        unreadable={name: tuple(sorted(bad)) for name, bad in unreadable.items()},
        smallest_sides={str(side): sides[side] for side in sorted(sides)},
    )


def _check_some_are_readable(spec: str, splits: Mapping[str, Split], card: ModelCard) -> None:
    for name, split in splits.items():
        if len(card.unreadable[name]) == split.count:
            raise InputError(f"{spec}: split {name} has no readable image.")


def _remember(entry: pass_cache.Entry, card: ModelCard, console: Console) -> None:
    try:
        entry.write(card)
    except (OSError, InputError) as error:  # the run needs no cache
        reason = " ".join(str(error).split())
        console.print(
            f"the next run will read all images again: {entry.path.parent} cannot be written "
            f"({reason})",
            soft_wrap=True,
            highlight=False,
        )
