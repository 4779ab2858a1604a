"""Find what is wrong with a user's own preprocessing, by what it makes of the golden photograph.

python -m export.verify --inputs mine.npy model.onnx
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from export.golden import Golden
from export.image_changes import IMAGENET_MEAN, TORCH_MEAN, TORCH_STD, rescaled
from export.stages import LEVELS, RESIZED, Stage, golden_of, mean_difference
from vggkeras import runtimes
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError

NEARER = (
    1.25  # times: how much nearer undoing a fault must bring an image for the fault to be named
)

# Usual faults of preprocessing, and how each is undone; "" is none.
Undo = Callable[[np.ndarray], np.ndarray]
LAYOUTS: dict[str, Undo] = {
    "": lambda x: x,
    "channels come first: give [N, H, W, C]": lambda x: np.moveaxis(x, 0, -1),
    "height and width are swapped": lambda x: x.swapaxes(0, 1),
}
ORDERS: dict[str, Undo] = {
    "": lambda x: x,
    "channels are BGR: give RGB": lambda x: x[..., ::-1],
}


def _scalings(mean: np.ndarray, signed: bool) -> dict[str, Undo]:
    """Return the usual faults of scaling, for a network that subtracts this mean RGB.

    A `signed` file takes int8, 0-255 minus 128; whatever is undone, 0-255 comes out.
    """
    imagenet, center, deviation = IMAGENET_MEAN, TORCH_MEAN, TORCH_STD
    if len(mean) != 3:
        imagenet, center, deviation = imagenet.mean(), center.mean(), deviation.mean()
    again = "the mean is subtracted already, and the network subtracts it again"
    faults: dict[str, Undo] = {
        "pixels are scaled to 0-1": lambda x: x * 255,
        "pixels are scaled to -1-1": lambda x: (x + 1) * 127.5,
        again: lambda x: x + mean,
        f"{again} (ImageNet's)": lambda x: x + imagenet,
        "pixels are normalized by ImageNet's mean and deviation": lambda x: x * deviation + center,
    }
    if signed:
        faults = {"": lambda x: x + 128, "128 is not subtracted": lambda x: x} | faults
    else:
        ours = "128 is subtracted, as for signed bytes"
        faults = {"": lambda x: x, ours: lambda x: x + 128} | faults
    right = "give 0-255 minus 128" if signed else "give 0-255"
    return {fault and f"{fault}: {right}": undo for fault, undo in faults.items()}


@dataclass(frozen=True)
class _Undone:
    """An image after certain faults were undone, and how far it then is from the golden one."""

    layout: str  # the fault that was undone; "" for none
    order: str
    scaling: str
    image: np.ndarray  # float64 [H, W, C]
    error: float  # mean difference, levels

    @property
    def score(self) -> float:
        """Return the error, with a penalty for each fault, which may bring it nearer by chance."""
        faults = sum(map(bool, (self.layout, self.order, self.scaling)))
        return (self.error + 0.1) * NEARER**faults


def preprocessing(path: Path, array: np.ndarray, provider: str = "cpu") -> list[Stage]:
    """Return what a user's own preprocessing does wrong to the golden photograph.

    Every usual fault, and every combination of them, is undone in turn: those after which the image
    is most like the golden one are named, with the damage they do to the answers.

    Args:
        path: a .onnx or .tflite file, or a SavedModel folder.
        array: what the preprocessing makes of the photograph that `--original` writes: one image,
            with or without a batch axis, of any type.
        provider: what a .onnx file runs on.

    Returns:
        The stages decode (order of channels), layout, resize, normalize, type; the note of one that
        fails says what to do.

    Raises:
        InputError (a ValueError): no photograph in the file; an array that is no image of this
            network's size.
    """
    contents, golden = golden_of(path)
    if golden.original is None:
        raise InputError(f"No photograph travels inside {path}: export it with real --data.")
    card, expected = contents.card, golden.images[0]
    image, layouts = _checked(array, expected.shape, card)
    takes = card.types[0]
    scalings = _scalings(np.array(card.mean_rgb), signed=takes == "int8")
    undone = min(_undone(layouts, expected, scalings), key=lambda one: one.score)
    pixels = scalings[""](image.astype(np.float64))
    before, after = _answer_errors(path, provider, golden, pixels, undone.image)
    damage = f" ({before}; with this undone, answers are off by {after:.2g})"

    def fault(name: str, text: str, consequence: str = damage) -> Stage:
        return Stage(name, float(bool(text)), 0.0, "faults", text + consequence if text else "")

    # Rounded down instead of to the nearest, every pixel is off, and none by more than a level.
    is_rounding = np.abs(undone.image - expected).max() < 1.01 * LEVELS
    resize = Stage("resize", undone.error, LEVELS if is_rounding else RESIZED, "levels")
    if not resize.passed:
        cause = _likely_resize(card, golden.original, expected.shape, undone)
        resize = replace(resize, note=f"{cause}; answers are then off by {after:.2g}")
    wrong_type = ""
    if image.dtype != takes and not undone.scaling:
        wrong_type = f"{image.dtype}: the file takes {takes}: numpy.rint(array).astype('{takes}')"
    return [
        fault("decode (order)", undone.order),
        fault("layout", undone.layout),
        resize,
        fault("normalize", undone.scaling),
        fault("type", wrong_type, ""),
    ]


def _checked(
    array: np.ndarray, shape: tuple[int, ...], card: ModelCard
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the image in an array, and by layout fault the image of the expected shape."""
    image = array[0] if array.ndim == 4 and len(array) == 1 else array
    if image.ndim == 2:
        image = image[..., None]
    h, w, c = shape
    expected = (
        f"Expected the golden photograph as one image of {h} x {w} px and {c} channels; received "
        f"{array.dtype} of shape {list(array.shape)}"
    )
    if not np.issubdtype(image.dtype, np.integer) and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"{expected}: save the numbers that the network would get.")
    if image.size and image.min() == image.max():
        raise InputError(
            f"{expected}, every number {image.min():g}: save what the network would get of the "
            "photograph."
        )
    if not np.isfinite(image).all():
        raise InputError(
            f"{expected}, not all of it finite: save the numbers that the network would get."
        )
    layouts = {name: undo(image) for name, undo in LAYOUTS.items() if image.ndim == 3}
    layouts = {name: image for name, image in layouts.items() if image.shape == shape}
    if not layouts:
        raise InputError(
            f"{expected}: rescale its smallest side to {card.scale} px, take the central {h} x {w} "
            "px, save that."
        )
    return image, layouts


def _undone(
    layouts: dict[str, np.ndarray], expected: np.ndarray, scalings: dict[str, Undo]
) -> Iterator[_Undone]:
    """Yield the image after each combination of faults was undone."""
    for layout, order, scaling in itertools.product(layouts, ORDERS, scalings):
        image = scalings[scaling](ORDERS[order](layouts[layout].astype(np.float64)))
        error = mean_difference(image.clip(-1000, 1000), expected)
        yield _Undone(layout, order, scaling, image, error)


def _answer_errors(
    path: Path, provider: str, golden: Golden, image: np.ndarray, undone: np.ndarray
) -> tuple[str, float]:
    """Return in words how far the answers to the user's image are off; and to the undone one.

    Both images are 0-255, whatever the file takes.
    """
    candidate = runtimes.load(path, provider)
    expected = golden.probabilities[:1]
    unit = float(expected.max()) if candidate.features else 1.0  # features are of any size

    def off_by(pixels: np.ndarray) -> float:
        answers = candidate(np.rint(pixels).clip(0, 255).astype(np.uint8)[None])
        return float(np.abs(answers - expected).max()) / unit

    if image.shape != undone.shape:
        return "the network refuses its shape", off_by(undone)
    return f"answers are off by {off_by(image):.2g}", off_by(undone)


def _likely_resize(card: ModelCard, encoded: bytes, shape: tuple[int, ...], undone: _Undone) -> str:
    """Return in words which other way of rescaling the photograph comes nearest to an image."""
    assert card.scale is not None
    photograph = decoding.decode(encoded)
    (h, w, c), original = shape, Image.fromarray(photograph)
    height, width = augment.rescale(photograph, card.scale).shape[:2]

    def crop(resized: np.ndarray) -> np.ndarray:
        return next(augment.grid_crops(resized, (h, w), 1))

    filters = Image.Resampling
    ways = {
        f"the filter is {filter.name.lower()}": crop(
            np.asarray(original.resize((width, height), filter))
        )
        for filter in (filters.NEAREST, filters.BICUBIC, filters.LANCZOS, filters.BOX)
    }
    plain = rescaled(photograph[None], (height, width), "bilinear without antialiasing")[0]
    ways["bilinear without antialiasing"] = crop(np.rint(plain).astype(np.uint8))
    squeezed = original.resize((w, h), filters.BILINEAR)
    ways["the whole image is squeezed into the crop"] = np.asarray(squeezed)
    side = max(h, w)
    ways[f"the smallest side is rescaled to {side} px"] = augment.center_crop(
        photograph, side, (h, w)
    )
    differences = {
        way: mean_difference(augment.in_channels(image, c), undone.image)
        for way, image in ways.items()
    }
    nearest = min(differences, key=lambda way: differences[way])
    if differences[nearest] < 0.5 * undone.error:
        return f"{nearest}: expected {card.resize}"
    return f"not the pixels of {card.resize}: another filter, size or position"
