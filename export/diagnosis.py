"""Diagnose why two models differ: which difference of preprocessing, undone, makes them agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from export.image_changes import FILTERS, MEAN_SUBTRACTED, SCALINGS, Array, Change
from export.image_model import ImageModel
from export.preprocessing import NEARER

SIDES = ("candidate", "reference")
BY_FAR = 10  # times: how much smaller an error must become for its cause to be named
PROBES = 8  # images that preprocessing is diagnosed on
DEFAULT_SIDE = 224  # px, where neither model fixes its size

Changes = dict[str, Change]  # side -> what is done to its images


@dataclass(frozen=True)
class Diagnosis:
    """What one file alone expects, and the largest error before and after that is undone."""

    message: str
    before: float
    after: float


class Pair:
    """Two models, and what is done to the same images so that they fit both."""

    def __init__(self, candidate: ImageModel, reference: ImageModel) -> None:
        """Find out how images of one size are made to fit both models."""
        self.models = {"candidate": candidate, "reference": reference}
        self.plain: Changes = dict.fromkeys(SIDES, Change())  # what makes images fit each side
        self.softmax_side = ""  # the side whose scores are made probabilities
        self.sizes: dict[str, tuple[int, int]] = {}  # (height, width) that each is shown
        for side, model, other in (
            ("candidate", candidate, reference),
            ("reference", reference, candidate),
        ):
            (h, w), (other_h, other_w) = model.size, other.size
            self.sizes[side] = (h or other_h or DEFAULT_SIDE, w or other_w or DEFAULT_SIDE)
        self.size = self.sizes["reference"]  # of the images that are cut
        self.larger = self.smaller = ""  # the sides, where their sizes differ
        if self.sizes["candidate"] == self.size:
            return
        if self.sizes["candidate"] == self.size[::-1]:
            self.plain["candidate"] = Change(swapped=True)
            return
        self.smaller, self.larger = sorted(SIDES, key=lambda side: int(np.prod(self.sizes[side])))
        self.size = self.sizes[self.larger]
        first = next(iter(FILTERS))
        self.plain[self.smaller] = Change(filter=first, size=self.sizes[self.smaller])

    def name(self, side: str) -> str:
        """Return a file's name, or its whole path where both have one name."""
        paths = [model.path for model in self.models.values()]
        path = self.models[side].path
        return path.name if paths[0].name != paths[1].name else str(path)

    def answers(self, side: str, change: Change, images: Array) -> Array:
        """Return a model's answers to changed images: float32 `[N, answers]`."""
        model = self.models[side]
        answers = model(change(images, rounded=not model.takes_floats))
        return softmax(answers) if side == self.softmax_side else answers

    def pixel_changes(self, side: str, now: Changes) -> Iterator[Changes]:
        """Yield every change of order, scaling and layout of one side that its model can take."""
        model, (h, w) = self.models[side], self.sizes[side]
        others = {one: replace(self.plain[one], filter=now[one].filter) for one in SIDES}
        for scaling, bgr, swapped in itertools.product(
            SCALINGS if model.takes_floats else ("",),
            (False, True) if model.channels == 3 else (False,),
            (False, True) if h == w else (self.plain[side].swapped,),
        ):
            changed = replace(now[side], scaling=scaling, bgr=bgr, swapped=swapped)
            yield others | {side: changed}

    def filter_changes(self, now: Changes) -> Iterator[Changes]:
        """Yield every way of rescaling images for the smaller model."""
        for filter in FILTERS:
            yield now | {self.smaller: replace(now[self.smaller], filter=filter)}


def softmax(scores: Array) -> Array:
    """Return the soft-max of each row of scores `[N, classes]`."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def diagnosed(
    pair: Pair, images: Array, answers: dict[str, Array], tolerance: float | None
) -> Diagnosis | None:
    """Return the difference of preprocessing; None where undoing none makes the models agree.

    Args:
        pair: the two models.
        images: uint8 `[N, H, W, C]`.
        answers: by side, to these images, float32 `[N, answers]`.
        tolerance: largest error of answers that agree; None for int8.
    """
    probes = np.unique(np.linspace(0, len(images) - 1, PROBES).astype(int))
    changes = _nearest(pair, images[probes])
    undone = {
        side: answers[side]
        if changes[side] == pair.plain[side]
        else pair.answers(side, changes[side], images)
        for side in SIDES
    }
    before, after = (
        np.abs(np.subtract(*both.values(), dtype=np.float64)) for both in (answers, undone)
    )
    # Two networks that see nearly nothing agree, too: an error counts by how much the answers vary.
    unchanged = undone["candidate" if changes["reference"].count else "reference"]
    spread = np.abs(unchanged - unchanged.mean(axis=0)).mean()
    # Where only the images' shape differs, nothing was nearer or farther before.
    most = spread if changes == pair.plain else min(before.mean(), spread)
    near = after.mean() <= most / BY_FAR
    within = tolerance is not None and after.max() <= tolerance * max(1, np.abs(unchanged).max())
    message = _in_words(pair, changes)
    if not message or not (near or within):
        return None
    error = f"largest error {before.max():.2g}; {after.max():.2g} with this undone"
    if changes == pair.plain:
        error = f"largest error {after.max():.2g} with this done"
    return Diagnosis(f"{message} ({error})", float(before.max()), float(after.max()))


def _nearest(pair: Pair, images: Array) -> Changes:
    """Return the change of one model's images, of few parts, after which the two agree best."""
    cache: dict[tuple[str, Change], Array] = {}

    def answers(side: str, change: Change) -> Array:
        if (side, change) not in cache:
            cache[side, change] = pair.answers(side, change, images).astype(np.float64)
        return cache[side, change]

    def score(changes: Changes) -> float:
        one, other = (answers(side, changes[side]) for side in SIDES)
        error = float(np.nan_to_num(np.abs(one - other), nan=np.inf).mean())
        # Each part more must bring them much nearer, and so must a change of the reference.
        parts = sum(change.count for change in changes.values()) + changes["reference"].count
        return (error + 1e-6) * NEARER**parts

    def by_pixels(now: Changes) -> Changes:
        return min((c for side in SIDES for c in pair.pixel_changes(side, now)), key=score)

    def by_filter(now: Changes) -> Changes:
        return min(pair.filter_changes(now), key=score)

    if not pair.larger:
        return by_pixels(pair.plain)
    # Either may hide the other, so each is looked for first, and then again.
    ways = by_filter(by_pixels(by_filter(pair.plain))), by_pixels(by_filter(by_pixels(pair.plain)))
    return min(ways, key=score)


def _in_words(pair: Pair, changes: Changes) -> str:
    """Return what one file expects, unlike the other, and what to do; "" for nothing."""
    sentences = []
    for side, other in (SIDES, SIDES[::-1]):
        expects = [*_shape_words(pair, side, other, changes), *_pixel_words(changes[side])]
        if expects:
            what, advice = (" and ".join(words) for words in zip(*expects, strict=True))
            sentences.append(
                f"{pair.name(side)} expects {what}, unlike {pair.name(other)}: {advice}"
            )
    return "; ".join(sentences)


def _shape_words(pair: Pair, side: str, other: str, changes: Changes) -> Iterator[tuple[str, str]]:
    """Yield what one file expects of the images' shape, and what to do."""
    if side == pair.larger:
        (h, w), (smaller_h, smaller_w) = pair.size, pair.sizes[pair.smaller]
        yield (
            f"images of {h} x {w} px, which it rescales by {changes[pair.smaller].filter}",
            f"rescale them so to {smaller_h} x {smaller_w} px for {pair.name(other)}",
        )
    if pair.models[side].channels_first and not pair.models[other].channels_first:
        yield "channels first, [N, C, H, W]", "move the last axis"
    if changes[side].swapped:
        yield "height and width swapped", "swap the two axes"


def _pixel_words(change: Change) -> Iterator[tuple[str, str]]:
    """Yield what one file expects of the pixels, and what to do."""
    if change.bgr and change.scaling == MEAN_SUBTRACTED:
        yield (
            "Keras' caffe mode, BGR and the ImageNet mean subtracted",
            "use preprocess_input of keras.applications.vgg16",
        )
        return
    if change.bgr:
        yield "channels in BGR", "reverse them"
    if change.scaling:
        yield change.scaling, SCALINGS[change.scaling][0]
