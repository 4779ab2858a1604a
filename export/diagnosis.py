"""Why two models differ: which difference of preprocessing, undone, makes them agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from export import foreign, stages
from export.changes import FILTERS, MEAN_SUBTRACTED, SCALINGS, Array, Change

SIDES = ("candidate", "reference")
BY_FAR = 10  # times: how much smaller an error must become for its cause to be named
PROBES = 8  # images that preprocessing is diagnosed on


@dataclass(frozen=True)
class Diagnosis:
    """What one file alone expects, and the largest error before and after that is undone."""

    message: str
    before: float
    after: float


class Pair:
    """The two models and what each is shown, so that the images fit both."""

    def __init__(self, candidate: foreign.ImageModel, reference: foreign.ImageModel) -> None:
        self.models = {"candidate": candidate, "reference": reference}
        self.plain = dict.fromkeys(SIDES, Change())
        self.softmax = ""  # the side whose scores are made probabilities
        sizes: dict[str, tuple[int, int]] = {}
        self.sizes = sizes  # (height, width) that each is shown
        for side, model in self.models.items():
            h, w = model.size
            other = (reference if side == "candidate" else candidate).size
            sizes[side] = (h or other[0] or 224, w or other[1] or 224)
        self.size = self.own = sizes["reference"]
        self.larger = self.smaller = ""
        if sizes["candidate"] == self.size:
            return
        if sizes["candidate"] == self.size[::-1]:
            self.plain["candidate"] = Change(swapped=True)
            return
        self.smaller, self.larger = sorted(SIDES, key=lambda side: int(np.prod(sizes[side])))
        self.size, self.own = sizes[self.larger], sizes[self.smaller]
        first = next(iter(FILTERS))
        self.plain[self.smaller] = Change(filter=first, size=self.own)

    def name(self, side: str) -> str:
        """Return a file's name, or its whole path where both have one name."""
        names = [model.path.name for model in self.models.values()]
        return self.models[side].path.name if len({*names}) > 1 else str(self.models[side].path)

    def answers(self, side: str, change: Change, images: Array) -> Array:
        """Return a model's answers to changed images: float32 `[N, answers]`."""
        model = self.models[side]
        answers = model(change(images, rounded=not model.takes_floats))
        return softmax(answers) if side == self.softmax else answers

    def options(self, side: str, now: dict[str, Change]) -> Iterator[dict[str, Change]]:
        """Yield every change of order, scaling and layout of one side that its model can take."""
        model, (h, w) = self.models[side], self.sizes[side]
        for scaling, bgr, swapped in itertools.product(
            SCALINGS if model.takes_floats else ("",),
            (False, True) if model.channels == 3 else (False,),
            (False, True) if h == w else (self.plain[side].swapped,),
        ):
            yield self._others(now) | {
                side: replace(now[side], scaling=scaling, bgr=bgr, swapped=swapped)
            }

    def filters(self, now: dict[str, Change]) -> Iterator[dict[str, Change]]:
        """Yield every way of rescaling images for the smaller model."""
        for filter in FILTERS:
            yield now | {self.smaller: replace(now[self.smaller], filter=filter)}

    def _others(self, now: dict[str, Change]) -> dict[str, Change]:
        return {side: replace(self.plain[side], filter=now[side].filter) for side in SIDES}


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _nearest(pair: Pair, images: Array) -> dict[str, Change]:
    """Return the change of one model's images, of few parts, after which the two agree best."""
    known: dict[tuple[str, Change], Array] = {}

    def answers(side: str, change: Change) -> Array:
        if (side, change) not in known:
            known[side, change] = pair.answers(side, change, images).astype(np.float64)
        return known[side, change]

    def apart(changes: dict[str, Change]) -> float:
        one, other = (answers(side, changes[side]) for side in SIDES)
        error = float(np.nan_to_num(np.abs(one - other), nan=np.inf).mean())
        # One part more must bring them much nearer, and so must a change of the reference.
        parts = sum(change.count for change in changes.values())
        return (error + 1e-6) * stages.NEARER ** (parts + changes["reference"].count)

    def by_change(now: dict[str, Change]) -> dict[str, Change]:
        return min((c for side in SIDES for c in pair.options(side, now)), key=apart)

    def by_filter(now: dict[str, Change]) -> dict[str, Change]:
        return min(pair.filters(now), key=apart)

    if not pair.larger:
        return by_change(pair.plain)
    # Either may hide the other, so that each is looked for first, and then again.
    ways = by_filter(by_change(by_filter(pair.plain))), by_change(by_filter(by_change(pair.plain)))
    return min(ways, key=apart)


def diagnosed(
    pair: Pair, images: Array, answers: dict[str, Array], tolerance: float | None
) -> Diagnosis | None:
    """Return what preprocessing parts the two; None where none makes them agree, or nearly."""
    chosen = np.unique(np.linspace(0, len(images) - 1, PROBES).astype(int))
    changes = _nearest(pair, images[chosen])
    undone = {
        side: answers[side]
        if changes[side] == pair.plain[side]
        else pair.answers(side, changes[side], images)
        for side in SIDES
    }
    before, after = (
        np.abs(np.subtract(*given.values(), dtype=np.float64)) for given in (answers, undone)
    )
    # Two networks that see nearly nothing agree, too: an error counts by how much the answers vary.
    unchanged = undone["candidate" if changes["reference"].count else "reference"]
    spread = np.abs(unchanged - unchanged.mean(axis=0)).mean()
    # Where nothing but the images' shape is another, nothing was nearer or farther before.
    most = spread if changes == pair.plain else min(before.mean(), spread)
    near = after.mean() <= most / BY_FAR
    within = tolerance is not None and after.max() <= tolerance * max(1, np.abs(unchanged).max())
    if not near and not within:
        return None
    error = f"largest error {before.max():.2g}; {after.max():.2g} with this undone"
    if changes == pair.plain:
        error = f"largest error {after.max():.2g} with this done"
    message = _told(pair, changes)
    found = Diagnosis(f"{message} ({error})", float(before.max()), float(after.max()))
    return found if message else None


def _told(pair: Pair, changes: dict[str, Change]) -> str:
    """Return in words what one file expects, unlike the other, and what to do; "" for nothing."""
    told = []
    for side, other in (SIDES, SIDES[::-1]):
        expects = [*_shape_words(pair, side, other, changes), *_pixel_words(changes[side])]
        if expects:
            what, advice = (" and ".join(words) for words in zip(*expects, strict=True))
            told.append(f"{pair.name(side)} expects {what}, unlike {pair.name(other)}: {advice}")
    return "; ".join(told)


def _shape_words(
    pair: Pair, side: str, other: str, changes: dict[str, Change]
) -> Iterator[tuple[str, str]]:
    """Yield what one file expects of the images' shape, and what to do."""
    if side == pair.larger:
        filter = changes[pair.smaller].filter
        (h, w), (own_h, own_w) = pair.size, pair.own
        yield (
            f"images of {h} x {w} px, which it rescales by {filter}",
            f"rescale them so to {own_h} x {own_w} px for {pair.name(other)}",
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
