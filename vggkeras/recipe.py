"""TODO"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vggkeras.configs import LARGEST_SCALE, MINIMUM_SIDE, PRECISIONS, canonical_arch, rescaled_side
from vggkeras.errors import InputError

PAPER_BATCH = 256  # the batch that a recipe's learning rate is of
FROZEN = {
    "none": None,
    "conv": ("fc1", "fc2", "predictions"),
    "features": ("predictions",),
}  # what is trained nevertheless


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
