"""TODO"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from export import golden as golden_module
from export.stages import LEVELS, NEARER, RESIZED, Stage, difference_text, golden_of
from vggkeras import configs, runtimes
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError

# What people do to an image on its way to a network, and how it is undone.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "channels come first: give [N, H, W, C]": lambda x: np.moveaxis(x, 0, -1),
    "height and width are swapped": lambda x: x.swapaxes(0, 1),
}
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "channels are BGR: give RGB": lambda x: x[..., ::-1],
}
IMAGENET_MEAN, IMAGENET_STD = (  # what torchvision subtracts and divides by
    np.array(values) * 255 for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)


def _scalings(mean: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    imagenet = np.array(configs.IMAGENET_MEAN_RGB)
    center, deviation = IMAGENET_MEAN, IMAGENET_STD
    if len(mean) != 3:
        imagenet, center, deviation = imagenet.mean(), center.mean(), deviation.mean()
    again = "the mean is subtracted already, and the network subtracts it again"
    return {
        "": lambda x: x,
        "pixels are scaled to 0-1: give 0-255": lambda x: x * 255,
        "pixels are scaled to -1-1: give 0-255": lambda x: (x + 1) * 127.5,
        "128 is subtracted, as for signed bytes: give 0-255": lambda x: x + 128,
        f"{again}: give 0-255": lambda x: x + mean,
        f"{again} (ImageNet's): give 0-255": lambda x: x + imagenet,
        "pixels are normalised by ImageNet's mean and deviation: give 0-255": lambda x: (
            x * deviation + center
        ),
    }


def preprocessing(path: Path, array: np.ndarray, provider: str = "cpu") -> list[Stage]:
    """What a user's own preprocessing does to the golden photograph, told by the damage to pixels and to answers.

    Every usual fault, and every combination of them, is undone in turn: the one after which the image is most like the
    golden one is what was done to it.

    Args:
        path: a .onnx or .tflite file, or a SavedModel folder.
        array: what the preprocessing makes of the photograph that `--original` writes: one image, with or without a batch
            axis, of any type.
        provider: what a .onnx file runs on.

    Returns:
        The stages decode (order of channels), layout, resize, normalise, type; of those that fail, a note says what to do.

    Raises:
        InputError (a ValueError): no photograph in the file; an array that is no image of this network's size.
    """
    contents, golden = golden_of(path)
    if golden.original is None:
        raise InputError(f"No photograph travels inside {path}: export it with real --data.")
    card, right = contents.card, golden.images[0]
    image = array[0] if array.ndim == 4 and len(array) == 1 else array
    if image.ndim == 2:
        image = image[..., None]
    h, w, c = right.shape
    expected = (
        f"Expected the golden photograph as one image of {h} x {w} px and {c} channels; received {array.dtype} of shape "
        f"{list(array.shape)}"
    )
    advice = (
        f"rescale its smallest side to {card.scale} px, take the central {h} x {w} px, save that."
    )
    if not np.issubdtype(image.dtype, np.integer) and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"{expected}: save the numbers that the network would get.")
    if image.size and image.min() == image.max():
        raise InputError(
            f"{expected}, every number {image.min():g}: save what the network would get of the photograph."
        )
    if not np.isfinite(image).all():
        raise InputError(
            f"{expected}, not all of it finite: save the numbers that the network would get."
        )
    layouts = {
        name: moved
        for name, move in LAYOUTS.items()
        if image.ndim == 3 and (moved := move(image)).shape == right.shape
    }
    if not layouts:
        raise InputError(f"{expected}: {advice}")
    scalings = _scalings(np.array(card.mean_rgb))
    tried: list[tuple[float, float, tuple[str, str, str], np.ndarray]] = []
    for names in itertools.product(layouts, ORDERS, scalings):
        layout, order, scaling = names
        undone = scalings[scaling](ORDERS[order](layouts[layout].astype(np.float64)))
        error = difference_text(undone.clip(-1000, 1000), right)
        # A fault more must bring the image much nearer: one of another place may be a little nearer by chance.
        tried.append(((error + 0.1) * NEARER ** sum(map(bool, names)), error, names, undone))
    _, error, (layout, order, scaling), undone = min(tried, key=lambda one: one[0])
    candidate = runtimes.load(path, provider)
    given = (
        np.rint(image if image.shape == right.shape else np.zeros_like(right))
        .clip(0, 255)
        .astype(np.uint8)
    )
    mended = np.rint(undone).clip(0, 255).astype(np.uint8)
    right_answer = golden.probabilities[:1]
    largest = (
        float(right_answer.max()) if candidate.features else 1.0
    )  # what features are measured by
    before, after = (
        float(np.abs(candidate(x[None]) - right_answer).max()) / largest for x in (given, mended)
    )
    told_before = (
        f"answers are off by {before:.2g}"
        if image.shape == right.shape
        else "the network refuses its shape"
    )
    damage = f" ({told_before}; with this undone, answers are off by {after:.2g})"
    found = [
        Stage("decode (order)", float(bool(order)), 0.0, "faults", order + damage if order else ""),
        Stage("layout", float(bool(layout)), 0.0, "faults", layout + damage if layout else ""),
    ]
    # Rounded down instead of to the nearest, all of it is off, and none of it by more than a level.
    rounding = np.abs(undone - right).max() < 1.01 * LEVELS
    resize = Stage("resize", error, LEVELS if rounding else RESIZED, "levels")
    if not resize.passed:
        note = f"{_likely_filter(card, golden, undone)}; answers are then off by {after:.2g}"
        resize = replace(resize, note=note)
    found.append(resize)
    found.append(
        Stage("normalise", float(bool(scaling)), 0.0, "faults", scaling + damage if scaling else "")
    )
    note = (
        ""
        if scaling or image.dtype == np.uint8
        else f"{image.dtype}: the file takes bytes: numpy.rint(array).astype('uint8')"
    )
    return [*found, Stage("type", float(bool(note)), 0.0, "faults", note)]


def _likely_filter(card: ModelCard, golden: golden_module.Golden, image: np.ndarray) -> str:
    """Which other way of rescaling the photograph comes nearest."""
    assert golden.original is not None
    original = Image.fromarray(decoding.decode(golden.original))
    h, w, c = golden.images[0].shape
    assert card.scale is not None
    rescaled = augment.rescale(np.asarray(original), card.scale).shape[:2]
    ways = {}
    for kind in (
        Image.Resampling.NEAREST,
        Image.Resampling.BICUBIC,
        Image.Resampling.LANCZOS,
        Image.Resampling.BOX,
    ):
        resized = np.asarray(original.resize(rescaled[::-1], kind))
        ways[f"the filter is {kind.name.lower()}"] = next(augment.grid_crops(resized, (h, w), 1))
    ways["bilinear without antialiasing"] = next(
        augment.grid_crops(_two_taps(np.asarray(original), rescaled), (h, w), 1)
    )
    ways["the whole image is squeezed into the crop"] = np.asarray(
        original.resize((w, h), Image.Resampling.BILINEAR)
    )
    side = max(h, w)
    ways[f"the smallest side is rescaled to {side} px"] = augment.center_crop(
        np.asarray(original), side, (h, w)
    )
    apart = {
        name: difference_text(augment.in_channels(way, c), image) for name, way in ways.items()
    }
    nearest = min(apart, key=lambda name: apart[name])
    advice = card.resize
    if apart[nearest] < 0.5 * difference_text(golden.images[0], image):
        return f"{nearest}: expected {advice}"
    return f"not the pixels of {advice}: another filter, size or place"


def _two_taps(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear as OpenCV, and TensorFlow without antialiasing, have it."""
    found = image.astype(np.float64)
    for axis, side in enumerate(size):
        places = ((np.arange(side) + 0.5) * found.shape[axis] / side - 0.5).clip(
            0, found.shape[axis] - 1
        )
        low = np.floor(places).astype(int)
        high, share = np.minimum(low + 1, found.shape[axis] - 1), places - low
        share = share[:, None, None] if axis == 0 else share[None, :, None]
        found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
    return np.rint(found).astype(np.uint8)
