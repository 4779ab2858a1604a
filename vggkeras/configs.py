"""The paper's networks (Table 1) and the training recipe (section 3.1), as data.

This module imports nothing heavy, so that a command line can show its help at once.

    python -m vggkeras info D
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vggkeras.errors import InputError

LRN = "lrn"

# Simonyan & Zisserman 2015, Table 1. Five blocks a network; (k, n) is a k x k convolution with n
# filters, and a 2 x 2 max pooling ends every block.
CONFIGURATIONS: dict[str, list[list[tuple[int, int] | str]]] = {
    "A": [[(3, 64)], [(3, 128)], [(3, 256)] * 2, [(3, 512)] * 2, [(3, 512)] * 2],
    "A-LRN": [[(3, 64), LRN], [(3, 128)], [(3, 256)] * 2, [(3, 512)] * 2, [(3, 512)] * 2],
    "B": [[(3, 64)] * 2, [(3, 128)] * 2, [(3, 256)] * 2, [(3, 512)] * 2, [(3, 512)] * 2],
    "C": [
        [(3, 64)] * 2,
        [(3, 128)] * 2,
        [(3, 256), (3, 256), (1, 256)],
        [(3, 512), (3, 512), (1, 512)],
        [(3, 512), (3, 512), (1, 512)],
    ],
    "D": [[(3, 64)] * 2, [(3, 128)] * 2, [(3, 256)] * 3, [(3, 512)] * 3, [(3, 512)] * 3],
    "E": [[(3, 64)] * 2, [(3, 128)] * 2, [(3, 256)] * 4, [(3, 512)] * 4, [(3, 512)] * 4],
}
ALIASES = {"VGG11": "A", "VGG13": "B", "VGG16": "D", "VGG19": "E"}

# AlexNet's constants (Krizhevsky 2012, 3.3); alpha is not divided by n.
LRN_N, LRN_K, LRN_ALPHA, LRN_BETA = 5, 2.0, 1e-4, 0.75

IMAGENET_MEAN_RGB = (123.68, 116.779, 103.939)
FC = ("fc1", "fc2", "predictions")  # the fully connected layers
BOXES = ("scr", "pcr")  # single-class and per-class regression of boxes (Appendix A)
MINIMUM_SIDE = 32  # five 2 x 2 poolings leave one pixel of it
LARGEST_SCALE = 8192  # px; beyond it one photograph fills the memory
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def canonical_arch(arch: str) -> str:
    """Return the paper's letter for a configuration or its alias, in any case.

    Raises InputError for an unknown one.
    """
    name = str(arch).upper().replace("_", "-")
    name = ALIASES.get(name.replace("-", ""), name)
    if name not in CONFIGURATIONS:
        raise InputError(
            f"Unknown configuration {arch!r}: expected one of {', '.join(CONFIGURATIONS)}, or an "
            f"alias {', '.join(ALIASES)}."
        )
    return name


@dataclass(frozen=True)
class Layer:
    """One layer of a plan: what to build, and what it costs for one image."""

    kind: str  # conv, lrn, pool, flatten, dense, predictions
    name: str
    output_shape: tuple[int, ...]  # (H, W, C) or (units,)
    kernel: int = 0  # side of the convolution's kernel
    parameters: int = 0  # trainable and moving ones
    multiply_adds: int = 0


def plan(
    arch: str,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    width: float = 1.0,
    fc_units: int = 4096,
    boxes: str | None = None,
) -> Iterator[Layer]:
    """Yield the layers of a configuration, in order; the networks and the tables are made from it.

    The last one is `predictions`, or `boxes` (Appendix A).

    Raises InputError for an unknown configuration, an image below 32 px, and counts below one.
    """
    blocks = CONFIGURATIONS[canonical_arch(arch)]
    h, w, c = _checked_shape(input_shape)
    if classes < 2:
        raise InputError(f"classes must be 2 or more; received {classes}.")
    if not width > 0 or not math.isfinite(width):
        raise InputError(f"width must be a positive number (1.0 is the paper's); received {width}.")
    if fc_units < 1:
        raise InputError(f"fc_units must be 1 or more (4096 is the paper's); received {fc_units}.")
    for number, block in enumerate(blocks, start=1):
        for position, entry in enumerate(block, start=1):
            if isinstance(entry, str):
                yield Layer(entry, entry, (h, w, c))
                continue
            kernel, filters = entry
            filters = max(1, round(filters * width))
            weights = kernel * kernel * c * filters
            parameters = weights + filters + (4 * filters if batch_norm else 0)
            c = filters
            name = f"block{number}_conv{position}"
            yield Layer("conv", name, (h, w, c), kernel, parameters, h * w * weights)
        h, w = h // 2, w // 2
        yield Layer("pool", f"block{number}_pool", (h, w, c))
    units = h * w * c
    yield Layer("flatten", "flatten", (units,))
    last, last_units = ("boxes", box_outputs(boxes, classes)) if boxes else ("predictions", classes)
    for kind, name, outputs in (
        ("dense", "fc1", fc_units),
        ("dense", "fc2", fc_units),
        ("predictions", last, last_units),
    ):
        yield Layer(kind, name, (outputs,), 0, (units + 1) * outputs, units * outputs)
        units = outputs


def box_outputs(boxes: str, classes: int) -> int:
    """Return the number of outputs of a network of boxes: 4, or 4 a class, class after class.

    They are (center x, center y, width, height), in fractions of the crop.
    """
    if boxes not in BOXES:
        raise InputError(f"boxes must be one of {', '.join(BOXES)}; received {boxes!r}.")
    return 4 if boxes == "scr" else 4 * classes


def _checked_shape(input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    shape = tuple(input_shape)
    if len(shape) != 3 or any(not isinstance(side, int) for side in shape):
        raise InputError(
            f"input_shape must be three integers (height, width, channels); received {input_shape}."
        )
    h, w, c = shape
    if h < MINIMUM_SIDE or w < MINIMUM_SIDE:
        raise InputError(
            f"Images must be at least {MINIMUM_SIDE} px high and wide (five poolings halve them); "
            f"received {h} x {w}."
        )
    if c < 1:
        raise InputError(f"Images must have one channel or more; received {c}.")
    return h, w, c


def rescaled_side(crop: int) -> int:
    """Return the smallest side S that images are rescaled to before a crop: 256 for 224."""
    return round(crop * 256 / 224)


def rescaled_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (height, width) of an image, given its own, once its smallest side is `side` px."""
    h, w = map(int, size)
    if w <= h:
        return max(side, round(h * side / w)), side
    return side, max(side, round(w * side / h))
