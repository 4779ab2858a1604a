"""The paper's networks (Table 1) and the training recipe (section 3.1), as data.

This module imports nothing heavy, so that a command line can show its help at once.

    python -m vggkeras info D
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vggkeras.errors import InputError

LRN = "lrn"

# Simonyan & Zisserman 2015, Table 1. Five blocks a network; (k, n) is a k x k convolution with n filters.
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
MINIMUM_SIDE = 32  # five 2 x 2 poolings leave one pixel of it
LARGEST_SCALE = 8192  # px; beyond it one photograph fills the memory
PAPER_BATCH = 256  # the batch that a recipe's learning rate is of
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
FROZEN = {
    "none": None,
    "conv": ("fc1", "fc2", "predictions"),
    "features": ("predictions",),
}  # what is trained nevertheless


def canonical_arch(arch: str) -> str:
    """The paper's letter for a configuration or its alias, in any case. Raises InputError for an unknown one."""
    name = str(arch).upper().replace("_", "-")
    name = ALIASES.get(name.replace("-", ""), name)
    if name not in CONFIGURATIONS:
        raise InputError(
            f"Unknown configuration {arch!r}: expected one of {', '.join(CONFIGURATIONS)}, or an alias {', '.join(ALIASES)}."
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
) -> Iterator[Layer]:
    """The layers of a configuration, in order: the one loop that the networks and the tables are made from.

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
    for kind, name, outputs in (
        ("dense", "fc1", fc_units),
        ("dense", "fc2", fc_units),
        ("predictions", "predictions", classes),
    ):
        yield Layer(kind, name, (outputs,), 0, (units + 1) * outputs, units * outputs)
        units = outputs


def _checked_shape(input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    shape = tuple(input_shape)
    if len(shape) != 3 or any(not isinstance(side, int) for side in shape):
        raise InputError(
            f"input_shape must be three integers (height, width, channels); received {input_shape}."
        )
    h, w, c = shape
    if h < MINIMUM_SIDE or w < MINIMUM_SIDE:
        raise InputError(
            f"Images must be at least {MINIMUM_SIDE} px high and wide (five poolings halve them); received {h} x {w}."
        )
    if c < 1:
        raise InputError(f"Images must have one channel or more; received {c}.")
    return h, w, c


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults are the paper's (section 3.1)."""

    arch: str = "D"
    """Configuration: A, A-LRN, B, C, D or E of Table 1, or an alias VGG11, VGG13, VGG16, VGG19."""
    data: str = "digits"
    """digits, tfds:NAME[/CONFIG], or a folder (train/ and val/ of class folders, or class folders alone)."""
    out: Path | None = None
    """Folder of the run; runs/ARCH-DATA when not given."""
    image_size: int | None = None
    """Side of the square training crop, pixels; 224 when not given, 32 for digits."""
    width: float = 1.0
    """Multiplies the number of filters of every convolution."""
    fc_units: int = 4096
    """Units of fc1 and fc2."""
    scale: str | None = None
    """Training scale S: the smallest side images are rescaled to, px, fixed (256) or drawn for every image and epoch
    (256:512); 256/224 of the crop when not given. Validation takes the middle of it."""
    batch_norm: bool = False
    """Batch normalisation after every convolution (not in the paper)."""
    dropout: float = 0.5
    """Dropped share of fc1's and fc2's outputs, in [0, 1)."""
    init: str = "glorot"
    """Initialisation: glorot, he, or paper (normal, variance 1e-2; biases are always 0)."""
    init_from: str | None = None
    """What to start from: a run or .keras file, keras:vgg16, keras:vgg19, or keras:, torchvision:, timm: or kerashub:PATH. Of
    the same configuration, all weights; of a shallower one, the first four convolutions and the FC layers; where the
    classes differ, not the last layer; where the image size does, not the FC layers."""
    freeze: str = "none"
    """Layers that are not trained, of those that init_from gives: none, conv (all convolutions), or features (all but the
    last layer)."""
    copied_rate: float = 1.0
    """Multiplies the learning rate of the layers that init_from gives, in (0, 1]."""
    epochs: int = 74
    """Passes over the training images; 74 is the paper's 370K iterations."""
    batch_size: int = 256
    """Images an update of the weights."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one update: each sees batch_size / accumulate images, to fit in memory."""
    learning_rate: float = 1e-2
    """First rate of a batch of 256, in proportion for others; divided by 10 when validation accuracy stops improving,
    three times, then training stops."""
    momentum: float = 0.9
    """Of stochastic gradient descent."""
    weight_decay: float = 5e-4
    """Multiplier w of the L2 penalty w/2 |kernel|^2 (Caffe's meaning)."""
    patience: int = 5
    """Epochs without a better validation accuracy before the rate drops."""
    flip: bool = True
    """Mirror half of the training images, left to right (never for digits)."""
    color: bool = True
    """Shift each training image's colour along the principal components of the training set's RGB."""
    precision: str = "float32"
    """Of computation: float32, mixed_bfloat16, or mixed_float16 (with loss scaling); weights stay float32."""
    seed: int = 0
    """Of initialisation, dropout, order, crops and colours."""
    skip_unreadable: bool = False
    """Go on without images that cannot be read, and say which."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arch", canonical_arch(self.arch))
        if self.image_size is not None and self.image_size < MINIMUM_SIDE:
            raise InputError(
                f"image_size must be {MINIMUM_SIDE} or more (five poolings halve it); received {self.image_size}."
            )
        checked = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "patience": (self.patience >= 1, "1 or more"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "width": (0 < self.width < math.inf, "a positive number"),
            "fc_units": (self.fc_units >= 1, "1 or more"),
            "seed": (0 <= self.seed < 2**31, "in [0, 2**31)"),
            "init": (self.init in ("glorot", "he", "paper"), "glorot, he or paper"),
            "freeze": (self.freeze in FROZEN, ", ".join(FROZEN)),
            "copied_rate": (0 < self.copied_rate <= 1, "in (0, 1]"),
            "precision": (self.precision in PRECISIONS, ", ".join(PRECISIONS)),
            "accumulate": (
                self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
                f"1 or more, and divide batch_size, {self.batch_size}",
            ),
        }
        for field, (good, expected) in checked.items():
            if not good:
                raise InputError(f"{field} must be {expected}; received {getattr(self, field)!r}.")
        for field in ("scale", "init_from"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, str(getattr(self, field)))
        if self.init_from is None and (self.freeze != "none" or self.copied_rate != 1):
            raise InputError(
                "freeze and copied_rate are of weights taken over: give init_from too."
            )
        scale_range(self.scale, self.image_size or MINIMUM_SIDE)

    @property
    def first_rate(self) -> float:
        """The learning rate of the first step: `learning_rate`, in proportion to the batch."""
        return self.learning_rate * self.batch_size / PAPER_BATCH


def scale_range(scale: str | None, crop: int) -> tuple[int, int]:
    """(lowest, highest) training scale S of a recipe's `scale`, px, for crops of `crop` px.

    Raises InputError for what is no scale, a range the wrong way round, and a scale below the crop.
    """
    if scale is None:
        return (rescaled_side(crop),) * 2
    sides = scale.split(":")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise InputError(
            f"scale must be a number of pixels, such as 256, or a range, 256:512; received {scale!r}."
        )
    low, high = int(sides[0]), int(sides[-1])
    if low > high:
        raise InputError(
            f"scale must be a range from the smaller side to the larger, {high}:{low}; received {scale}."
        )
    if low < crop:
        raise InputError(
            f"scale must be at least the side of the crop, {crop} px, for it to fit; received {scale}: "
            "give a larger --scale or a smaller --image-size."
        )
    if high > LARGEST_SCALE:
        raise InputError(f"scale must be {LARGEST_SCALE} px or less; received {scale}.")
    return low, high


def rescaled_side(crop: int) -> int:
    """Smallest side S an image is rescaled to before a crop of `crop` pixels is taken: the paper's 256 for 224."""
    return round(crop * 256 / 224)
