"""The training recipe (section 3.1), as one frozen dataclass. The command line is made from it.

This module imports nothing heavy, so that a command line can show its help at once.

    python -m vggkeras train --help
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vggkeras.configs import LARGEST_SCALE, MINIMUM_SIDE, canonical_arch, rescaled_side
from vggkeras.errors import InputError

Init = Literal["glorot", "he", "paper"]
Freeze = Literal["none", "conv", "features"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["plateau", "cosine"]
ClassWeights = Literal["none", "balanced"]
Monitor = Literal["val_accuracy", "val_cross_entropy"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Channels = Literal[1, 3]
Boxes = Literal["scr", "pcr"]
Tune = Literal["fc", "all"]

LARGEST_HELD_OUT = 0.5  # fraction of the training images
PAPER_BATCH = 256  # the batch size for which a recipe gives its learning rate
OPTIMIZER_DEFAULTS = {  # of fields that are None
    "sgd": {"learning_rate": 1e-2, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 1e-3, "weight_decay": 5e-2},
}
BOXES_RATE = 1e-3  # the learning rate of boxes, with either optimizer (Appendix A)
TRAINED_LAYERS: dict[str, tuple[str, ...] | None] = {  # by `freeze`; None: all layers
    "none": None,
    "conv": ("fc1", "fc2", "predictions"),
    "features": ("predictions",),
}
OF_CLASSIFIERS = (  # fields that a network of boxes has not
    *("freeze", "label_smoothing", "class_weights", "monitor", "mixup", "randaugment"),
)


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults are the paper's (section 3.1)."""

    arch: str = "D"
    """Configuration of Table 1: A, A-LRN, B, C, D or E, or an alias: VGG11, VGG13, VGG16, VGG19."""
    data: str = "digits"
    """digits, tfds:NAME[/CONFIG], hf:NAME[:CONFIG], a folder (train/ and val/ with one folder a
    class, or class folders alone), or a .csv or .parquet list (image, label, perhaps split)."""
    out: Path | None = None
    """Folder of the run. By default runs/ARCH-DATA."""
    image_size: int | None = None
    """Side of the square training crop, pixels. By default 224, and 32 for digits."""
    width: float = 1.0
    """Multiplies the number of filters of every convolution."""
    fc_units: int = 4096
    """Units of fc1 and fc2."""
    scale: str | None = None
    """Training scale S: each image is rescaled until its smallest side is S pixels. One number
    (256), or a range (256:512) from which S is drawn for every image and epoch. By default 256/224
    of the crop. Validation uses the middle of the range."""
    batch_norm: bool = False
    """Add batch normalization after every convolution (not in the paper)."""
    dropout: float = 0.5
    """Dropout rate after fc1 and fc2, in [0, 1)."""
    init: Init = "glorot"
    """Initialization of the weights. "paper" is a normal distribution with variance 1e-2. Biases
    always start at 0."""
    init_from: str | None = None
    """Pretrained weights to start from: a run, a .keras file, keras:vgg16, keras:vgg19, or
    keras:PATH, torchvision:PATH, timm:PATH, kerashub:PATH. The same configuration gives all layers,
    and a shallower one its first four convolutions and the FC layers. The last layer is not copied
    when the classes differ, nor the FC layers when the image size differs."""
    freeze: Freeze = "none"
    """Layers from init_from that are not trained: none, conv (all convolutions), or features (all
    but the last layer)."""
    copied_rate: float = 1.0
    """Multiplies the learning rate of the layers copied from init_from, in (0, 1]."""
    epochs: int = 74
    """Passes over the training images. 74 is the paper's 370K iterations."""
    batch_size: int = 256
    """Images per weight update."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one weight update. Each step sees
    batch_size / accumulate images, so that it fits in memory."""
    optimizer: Optimizer = "sgd"
    """sgd: stochastic gradient descent with momentum, as in the paper. adamw: Adam with decoupled
    weight decay."""
    learning_rate: float | None = None
    """Initial learning rate for a batch of 256; other batch sizes scale it in proportion. By
    default 1e-2, and 1e-3 for adamw and for boxes."""
    momentum: float = 0.9
    """Momentum of stochastic gradient descent, in [0, 1)."""
    weight_decay: float | None = None
    """sgd: multiplier w of the L2 penalty w/2 |kernel|^2 (Caffe's definition), by default 5e-4.
    adamw: each step shrinks the kernels by this times the learning rate, by default 5e-2."""
    schedule: Schedule = "plateau"
    """plateau: the learning rate is divided by 10 when --monitor stops improving, three times, then
    training stops. cosine: it falls to 0 along a cosine over all epochs."""
    warmup: int = 0
    """Epochs in which the learning rate rises from 0, before the cosine."""
    patience: int = 5
    """Epochs without improvement before the learning rate drops on a plateau."""
    ema: float | None = None
    """Momentum of an exponential moving average of the weights, such as 0.999, which is what is
    validated and saved."""
    label_smoothing: float = 0.0
    """Probability that the loss spreads evenly over all classes, in [0, 1)."""
    class_weights: ClassWeights = "none"
    """balanced: an image weighs n / (k * n_c) in the loss, of n images, k classes and n_c images of
    its class."""
    monitor: Monitor = "val_accuracy"
    """What says which epoch is the best, and what the learning rate waits for. Without L2 penalty,
    label smoothing or class weights, so that it is the same figure in every recipe."""
    flip: bool = True
    """Mirror half of the training images left to right (never for digits)."""
    color: bool = True
    """Shift the color of each training image along the principal components of the training set's
    RGB values."""
    mixup: float = 0.0
    """Mix each image and label with another of its batch, by keras.layers.MixUp with this alpha, in
    [0, 1]; 0.2 is usual."""
    randaugment: bool = False
    """Change each training image by two random operations of keras.layers.RandAugment."""
    precision: Precision = "float32"
    """Precision of the computation; weights stay float32. mixed_float16 uses loss scaling."""
    seed: int = 0
    """Random seed for initialization, dropout, shuffling and augmentation."""
    exif: bool = True
    """Turn images upright, as the orientation in their EXIF data says. What the model was trained
    with is recorded in it, and evaluation does the same."""
    validation: float | None = None
    """Fraction of the training images held out for validation, in (0, 0.5], where the data have no
    validation split of their own: of class folders and lists by a hash of class and file name, of
    hf:NAME by a hash of the image's number, of TFDS the last ones. By default 0.2."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and list them."""
    channels: Channels = 3
    """Channels of the images: 3, RGB, or 1, gray (Pillow's L of the crop in RGB, without the color
    shift)."""
    boxes: Boxes | None = None
    """Train a network that predicts the box of the image's object (Appendix A), on data with boxes:
    scr, one box whatever the class, or pcr, one a class. It starts from --init-from, a classifier
    of these classes, image size and scale."""
    tune: Tune = "all"
    """Layers of a network of boxes that are trained: fc (fc1, fc2 and the new last layer), or
    all."""
    fast_decode: bool = True
    """Decode a large JPEG of training, whose smallest side is 5.8 S or more, at 1/2, 1/4 or 1/8 of
    its size before it is rescaled: the same pixels within two levels of 255 on average, several
    times as fast. Validation never does."""

    def __post_init__(self) -> None:
        """Normalize the text fields and check every field.

        Raises:
            InputError (a ValueError): a field is out of its range, or two contradict each other.
        """
        object.__setattr__(self, "arch", canonical_arch(self.arch))
        for field in ("scale", "init_from"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, str(getattr(self, field)))
        for field, value in self.defaults.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        for field, (good, expected) in self._checks().items():
            if not good:
                raise InputError(f"{field} must be {expected}; received {getattr(self, field)!r}.")
        for contradicts, message in self._contradictions():
            if contradicts:
                raise InputError(message)
        scale_range(self.scale, self.image_size or MINIMUM_SIDE)

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Yield whether two fields contradict each other, and what to do then."""
        plain, cosine, adamw = Recipe, self.schedule == "cosine", self.optimizer == "adamw"
        yield (
            self.init_from is None and (self.freeze != "none" or self.copied_rate != 1),
            "freeze and copied_rate apply to pretrained weights: set init_from as well.",
        )
        yield (
            cosine and self.patience != plain.patience,
            "patience is of the schedule plateau, and schedule is cosine: leave one of them out.",
        )
        yield (
            not cosine and self.warmup > 0,
            "warmup comes before a cosine, and schedule is plateau: set schedule to cosine, or "
            "warmup to 0.",
        )
        yield (
            self.warmup >= self.epochs,
            f"warmup must be less than epochs, {self.epochs}; received {self.warmup}.",
        )
        yield (
            adamw and self.momentum != plain.momentum,
            "momentum is of the optimizer sgd, and optimizer is adamw: leave one of them out.",
        )
        yield (
            adamw and self.copied_rate != 1,
            "copied_rate is of the optimizer sgd, and optimizer is adamw: leave one of them out.",
        )
        yield (
            self.ema is not None and self.accumulate > 1,
            "ema averages after every step, and accumulate divides a weight update into several: "
            "leave one of them out.",
        )
        yield (
            self.boxes is None and self.tune != plain.tune,
            "tune is of networks of boxes: set boxes to scr or pcr, or leave tune out.",
        )
        yield (
            self.tune == "fc" and self.init_from is None,
            "tune fc keeps the convolutions as they are: set init_from, the classifier that has "
            "them.",
        )
        others = [f for f in OF_CLASSIFIERS if getattr(self, f) != getattr(plain, f)]
        yield (
            self.boxes is not None and bool(others),
            f"{', '.join(others)} apply to classifiers, and boxes is {self.boxes}: leave one of "
            "them out (tune says which layers of a network of boxes are trained).",
        )
        yield (
            self.mixup > 0 and self.class_weights != "none",
            "class_weights weighs an image by its class, and mixup gives it two: leave one of them "
            "out.",
        )

    def _checks(self) -> dict[str, tuple[bool, str]]:
        """Return for each field whether its value is good, and what is expected."""
        least_side = f"{MINIMUM_SIDE} or more (five poolings halve it)"
        divides = f"1 or more, and divide batch_size, {self.batch_size}"
        return {
            "image_size": (
                self.image_size is None or self.image_size >= MINIMUM_SIDE,
                least_side,
            ),
            "validation": (
                self.validation is None or 0 < self.validation <= LARGEST_HELD_OUT,
                f"a fraction in (0, {LARGEST_HELD_OUT}]",
            ),
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "optimizer": _one_of(self.optimizer, Optimizer),
            "learning_rate": (0 < (self.learning_rate or 0) < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= (self.weight_decay or 0) < math.inf, "0 or more"),
            "schedule": _one_of(self.schedule, Schedule),
            "warmup": (self.warmup >= 0, "0 or more"),
            "ema": (self.ema is None or 0 < self.ema < 1, "in (0, 1)"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "class_weights": _one_of(self.class_weights, ClassWeights),
            "mixup": (0 <= self.mixup <= 1, "in [0, 1]"),
            "patience": (self.patience >= 1, "1 or more"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "channels": (
                type(self.channels) is int and self.channels in get_args(Channels),
                "1 or 3",
            ),
            "width": (0 < self.width < math.inf, "a positive number"),
            "fc_units": (self.fc_units >= 1, "1 or more"),
            "seed": (0 <= self.seed < 2**31, "in [0, 2**31)"),
            "init": _one_of(self.init, Init),
            "monitor": _one_of(self.monitor, Monitor),
            "freeze": _one_of(self.freeze, Freeze),
            "boxes": (self.boxes in (None, *get_args(Boxes)), "scr or pcr"),
            "tune": _one_of(self.tune, Tune),
            "precision": _one_of(self.precision, Precision),
            "copied_rate": (0 < self.copied_rate <= 1, "in (0, 1]"),
            "accumulate": (
                self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
                divides,
            ),
        }

    @property
    def defaults(self) -> dict[str, float]:
        """The numbers of fields that are None."""
        usual = OPTIMIZER_DEFAULTS.get(self.optimizer, {})
        return {**usual, "learning_rate": BOXES_RATE} if usual and self.boxes else usual

    @property
    def trained_layers(self) -> tuple[str, ...] | None:
        """The names of the layers that are trained; None: all."""
        if self.boxes:
            return ("fc1", "fc2", "boxes") if self.tune == "fc" else None
        return TRAINED_LAYERS[self.freeze]

    def another_run(self, out: Path) -> str:
        """Return in words how a new run goes on from `out`; of boxes it starts anew.

        Boxes start from a classifier, and from no other boxes.
        """
        return "another run with --out" + ("" if self.boxes else f" and --init-from {out}")

    @property
    def first_rate(self) -> float:
        """The initial learning rate: `learning_rate`, in proportion to the batch size."""
        assert self.learning_rate is not None  # since __post_init__
        return self.learning_rate * self.batch_size / PAPER_BATCH

    @property
    def l2_penalty(self) -> float:
        """Multiplier of the L2 penalty in the model; adamw decays the weights itself."""
        assert self.weight_decay is not None  # since __post_init__
        return self.weight_decay if self.optimizer == "sgd" else 0.0

    @property
    def one_hot(self) -> bool:
        """Whether labels are probabilities of all classes in training, not numbers of classes."""
        return self.label_smoothing > 0 or self.mixup > 0

    @property
    def images_per_step(self) -> int:
        """The number of images that one step sees."""
        return self.batch_size // self.accumulate


def _one_of(value: str, choices: object) -> tuple[bool, str]:
    return value in get_args(choices), ", ".join(get_args(choices))


def scale_range(scale: str | None, crop: int) -> tuple[int, int]:
    """Return the lowest and highest training scale S, px, of a recipe's `scale`.

    Args:
        scale: a number, a range, or None for 256/224 of the crop.
        crop: side of the crop, px.

    Raises:
        InputError (a ValueError): not a scale, a reversed range, or a scale below the crop.
    """
    if scale is None:
        return (rescaled_side(crop),) * 2
    sides = scale.split(":")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise InputError(
            "scale must be a number of pixels, such as 256, or a range, 256:512; "
            f"received {scale!r}."
        )
    low, high = int(sides[0]), int(sides[-1])
    if low > high:
        raise InputError(
            f"scale must be a range from the smaller side to the larger, {high}:{low}; "
            f"received {scale}."
        )
    if low < crop:
        raise InputError(
            f"scale must be at least the side of the crop, {crop} px, for it to fit; "
            f"received {scale}: give a larger --scale or a smaller --image-size."
        )
    if high > LARGEST_SCALE:
        raise InputError(f"scale must be {LARGEST_SCALE} px or less; received {scale}.")
    return low, high
