"""The card that travels with a model: its class names, preprocessing, origin and form.

`ModelCard` is read from JSON and written to JSON only here: for a .keras file and a run's run.json
by `to_json`, for an exported file by `to_description`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from vggkeras import typed
from vggkeras.configs import box_outputs
from vggkeras.errors import InputError
from vggkeras.processor import Processor
from vggkeras.recipe import LARGEST_HELD_OUT, Recipe

Side = Annotated[int, range(1, 1 << 16)]  # px
Count = Annotated[int, range(1 << 63)]

INPUT_NAME = "images"
FEATURES_USE = (
    "Not normalised: average an image's and its mirror's and divide by their length at each scale, "
    "then average or stack the scales and divide by the length again."
)
BOXES_USE = (
    "(center x, center y, width, height) in fractions of the crop; one box a class, class after "
    "class, where there are more than four numbers. At row i and column j of a map the crop's "
    "corner is at (32 j, 32 i) px."
)


class Form(StrEnum):
    """What a file computes from an image."""

    CLASSIFIER = "classifier"  # class probabilities of images of one size
    DENSE = "dense"  # class probabilities of images of any size (section 3.2)
    FEATURES = "features"  # fc2's output, averaged over images of any size (Appendix B)
    BOXES = "boxes"  # a box, or one a class, of images of one size (Appendix A)
    DENSE_BOXES = "dense_boxes"  # a map of boxes of images of any size
    MAP = "map"  # class probabilities at every place of images of any size, to rate boxes

    @property
    def takes_any_size(self) -> bool:
        """Whether images may be larger than the training crop."""
        return self not in (Form.CLASSIFIER, Form.BOXES)

    @property
    def is_boxes(self) -> bool:
        """Whether it gives boxes, `card.boxes`, in fractions of the crop."""
        return self in (Form.BOXES, Form.DENSE_BOXES)

    @property
    def gives_probabilities(self) -> bool:
        """Whether it gives class probabilities."""
        return not self.is_boxes and self is not Form.FEATURES

    @property
    def flags(self) -> str:
        """What `python -m export` is given to write it: " --dense"; "" of a classifier."""
        if self.is_boxes:
            return " --boxes --dense" if self.takes_any_size else " --boxes"
        return "" if self is Form.CLASSIFIER else f" --{self}"

    @property
    def output_name(self) -> str:
        """The name of the output tensor in every exported file."""
        if self.is_boxes:
            return "boxes"
        return "features" if self is Form.FEATURES else "probabilities"


def form_of(any_size: bool, output_name: str) -> Form:
    """Return the form of a file whose input takes any size or not, by the name of its output."""
    if output_name == Form.BOXES.output_name:
        return Form.DENSE_BOXES if any_size else Form.BOXES
    if not any_size:
        return Form.CLASSIFIER
    return Form.FEATURES if output_name == Form.FEATURES.output_name else Form.DENSE


@dataclass(frozen=True)
class Calibration:
    """The training images from which int8's ranges were measured."""

    images: Count
    classes: Count
    data: str


@dataclass(frozen=True)
class ModelCard:
    """What travels with a model. Everything is empty in a file that vggkeras did not write."""

    class_names: tuple[str, ...] = ()
    mean_rgb: tuple[float, ...] = ()  # what the first layer subtracts, 0-255
    image_size: Side | None = None  # side of the training crop, px
    scale: Side | None = None  # smallest side to which test images are rescaled, px

    # Where the network comes from.
    arch: str = ""
    recipe: Recipe | None = None
    data: str = ""  # as --data names it
    seed: int | None = None
    epoch: Count | None = None  # whose weights these are
    images: Mapping[str, Count] = field(default_factory=dict)  # split -> count
    validation: str = ""  # where the validation images came from, in words
    held_out: float | None = None  # their fraction of the training images, where these were divided
    skipped: tuple[str, ...] = ()  # names of images that could not be read
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version, in training
    initialized: Mapping[str, str | None] = field(default_factory=dict)  # layer -> origin
    pretrained: str = ""  # the source of converted weights
    boxes: Literal["scr", "pcr"] | None = None  # what a network of boxes gives (see `build`)

    # Statistics of the training images, for exact resume.
    rgb_covariance: tuple[tuple[float, ...], ...] = ()
    unreadable: Mapping[str, tuple[Count, ...]] = field(default_factory=dict)  # split -> indices
    smallest_sides: Mapping[str, Count] = field(default_factory=dict)  # px -> count
    # Whether images were turned upright by their EXIF data; None: nothing says so, and they were
    # not by vggkeras 0.2 and before.
    exif: bool | None = None

    # What an exported file adds.
    form: Form = Form.CLASSIFIER
    precision: Annotated[str, ("float32", "float16", "int8")] = "float32"
    target: Annotated[str, ("", "tensorrt", "npu")] = ""  # what alone an int8 file is for
    input_shape: tuple[Side, Side, Side] | None = None  # smallest (H, W, C) that it takes
    outputs: Count = 0  # number of classes, or of features
    pixels: str = ""  # preprocessing inside the file, where build() did not make the network
    tolerance: float | None = None  # of a deep network; None: the precision's own
    model_sha256: str = ""  # of the .keras file
    written_with: str = ""  # version of vggkeras
    processor: Processor | None = None  # on which the file was proven
    calibration: Calibration | None = None  # of int8
    left_in_float: tuple[str, ...] = ()  # layers of an int8 file that compute in float32
    signal_to_noise_db: Mapping[str, float] = field(default_factory=dict)  # layer -> dB

    @property
    def resize(self) -> str:
        """How an image becomes an input, in words."""
        assert self.input_shape is not None
        h, w, _ = self.input_shape
        rest = "the whole image" if self.form.takes_any_size else f"the central {h} x {w} crop"
        upright = "upright by its EXIF orientation, then " if self.exif else ""
        return f"{upright}smallest side to {self.scale} px (Pillow BILINEAR), then {rest}"

    @property
    def types(self) -> tuple[str, str]:
        """The types of a file's images and answers; int8 by a scale and zero point that it has."""
        return ("int8", "int8") if self.target == "npu" else ("uint8", "float32")

    @property
    def shapes(self) -> tuple[list[str | int], list[str | int]]:
        """The shapes of input and output: ["batch", 224, 224, 3], ["batch", 1000]; of npu, 1."""
        assert self.input_shape is not None
        h, w, c = self.input_shape
        sides: list[str | int] = ["height", "width"] if self.form.takes_any_size else [h, w]
        cells: list[str | int] = ["rows", "columns"] if self.form is Form.DENSE_BOXES else []
        images = 1 if self.target == "npu" else "batch"
        return [images, *sides, c], [images, *cells, self.outputs]

    @classmethod
    def from_text(cls, text: str | bytes, where: str | Path) -> ModelCard:
        """Return the card that a JSON text holds: see `from_json`."""
        try:
            value = typed.parse(text)
        except ValueError as error:
            raise _damaged(where, error) from error
        return cls.from_json(value, where)

    @classmethod
    def from_json(cls, value: Any, where: str | Path) -> ModelCard:
        """Return the card of a .keras file, of run.json, or of an exported file's description.

        Args:
            value: the parsed JSON.
            where: the file that it comes from, for the message.

        Raises:
            InputError (a ValueError): a field is missing, of another type, or out of its range.
        """
        try:
            fields = _exported(value) if "provenance" in value else _trained(value)
            card = typed.instance(cls, fields, "description")
            card._check_together()
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise _damaged(where, error) from error
        return card

    def _check_together(self) -> None:
        """Raise ValueError where fields contradict each other."""
        classes = len(self.class_names)
        expected = box_outputs(self.boxes, classes) if self.boxes else classes
        if self.form is not Form.FEATURES and classes and self.outputs not in (0, expected):
            raise ValueError(f"it names {classes} classes, and has {self.outputs} outputs")
        if self.form.is_boxes and not self.boxes:
            raise ValueError("boxes is missing")
        if self.held_out is not None and not 0 < self.held_out <= LARGEST_HELD_OUT:
            raise ValueError(f"held_out: expected a fraction, received {self.held_out}")
        if not all(side.isdecimal() and side.isascii() for side in self.smallest_sides):
            raise ValueError("smallest_sides: expected numbers of pixels")

    def to_json(self) -> dict[str, Any]:
        """Return what a .keras file and run.json hold."""
        values = {
            "arch": self.arch,
            "pretrained": self.pretrained,
            "boxes": self.boxes,
            "recipe": recipe_json(self.recipe),
            "data": self.data,
            "class_names": list(self.class_names),
            "mean_rgb": list(self.mean_rgb),
            "rgb_covariance": [list(row) for row in self.rgb_covariance],
            "unreadable": {split: list(indices) for split, indices in self.unreadable.items()},
            "smallest_sides": dict(self.smallest_sides),
            "image_size": self.image_size,
            "scale": self.scale,
            "exif": self.exif,
            "seed": self.seed,
            "skipped": list(self.skipped),
            "versions": dict(self.versions),
            "images": dict(self.images),
            "validation": self.validation,
            "held_out": self.held_out,
            "initialised": dict(self.initialized),
            "epoch": self.epoch,
        }
        always = ("unreadable", "skipped") if self.recipe else ()
        return {key: v for key, v in values.items() if v not in (None, "", [], {}) or key in always}

    def to_description(self) -> dict[str, Any]:
        """Return what an exported file holds."""
        assert self.input_shape is not None
        (input_shape, output_shape), c = self.shapes, self.input_shape[2]
        provenance = {
            "arch": self.arch,
            "recipe": recipe_json(self.recipe),
            "data": self.data,
            "seed": self.seed,
            "epoch": self.epoch,
            "images": dict(self.images),
            "validation": self.validation,
            "held_out": self.held_out,
        }
        provenance = {key: v for key, v in provenance.items() if v not in (None, "", {})}
        image_type, type_ = self.types
        output = {"name": self.form.output_name, "type": type_, "shape": output_shape}
        if not self.form.gives_probabilities:
            output["use"] = BOXES_USE if self.form.is_boxes else FEATURES_USE
        optional = {
            "target": self.target,
            "boxes": self.boxes,
            "pixels": self.pixels,
            "tolerance": self.tolerance,
            "processor": self.processor and self.processor.to_json(),
        }
        description = {
            "precision": self.precision,
            "class_names": list(self.class_names),
            "mean_rgb": list(self.mean_rgb),
            "input": {
                "name": INPUT_NAME,
                "type": image_type,
                "shape": input_shape,
                "smallest": list(self.input_shape),
                "order": {1: "gray", 3: "RGB"}.get(c, "as trained"),
            },
            "output": output,
            "scale": self.scale,
            "resize": self.resize,
            "provenance": provenance
            | {"trained_with": dict(self.versions) or None, "model_sha256": self.model_sha256},
            "versions": {"vggkeras": self.written_with},
            **{key: v for key, v in optional.items() if v},
        }
        if self.calibration:
            description |= {
                "calibration": dataclasses.asdict(self.calibration),
                "left_in_float": list(self.left_in_float),
                "signal_to_noise_db": dict(self.signal_to_noise_db),
            }
        if self.exif is not None:
            description["exif"] = self.exif
        return description


def turns_upright(cards: Iterable[ModelCard], asked: bool = True) -> bool:
    """Return whether images are to be turned upright by their EXIF data: as models were trained.

    Models that do not say, because another program or an earlier version trained them, are shown
    what the others are, and alone images as they are stored.

    Args:
        cards: of the models.
        asked: false where images are to be shown as they are stored.

    Raises:
        InputError (a ValueError): the models were not trained alike.
    """
    alike = {card.exif for card in cards if card.exif is not None}
    if asked and len(alike) > 1:
        raise InputError(
            "Some of these models were trained on images that EXIF data turned upright, others on "
            "images as they are stored: score them one at a time, or give --no-exif for all."
        )
    return asked and alike == {True}


def recipe_json(recipe: Recipe | None) -> dict[str, Any]:
    """Return a recipe as JSON, {} without one."""
    if recipe is None:
        return {}
    return {**dataclasses.asdict(recipe), "out": None if recipe.out is None else str(recipe.out)}


def _damaged(where: str | Path, error: Exception) -> InputError:
    return InputError(
        f"{where}: its description is damaged ({type(error).__name__}: {str(error)[:200]}): "
        "expected what vggkeras writes; train or export it again."
    )


# What the JSON of a .keras file or a run holds; "initialised" there is `initialized` here.
TRAINED = (
    "class_names",
    "mean_rgb",
    "image_size",
    "scale",
    "arch",
    "recipe",
    "data",
    "seed",
    "epoch",
    "images",
    "validation",
    "held_out",
    "skipped",
    "versions",
    "initialised",
    "pretrained",
    "rgb_covariance",
    "unreadable",
    "smallest_sides",
    "exif",
    "boxes",
)

# What a description may say beside that.
EXPORTED = (
    "boxes",
    "exif",
    "precision",
    "target",
    "pixels",
    "tolerance",
    "processor",
    "calibration",
    "left_in_float",
    "signal_to_noise_db",
)


def _trained(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's fields, as JSON, from the JSON of a .keras file or a run."""
    known = {key: value[key] for key in TRAINED if value.get(key) is not None}
    if "initialised" in known:
        known["initialized"] = known.pop("initialised")
    if known.get("recipe") == {}:
        del known["recipe"]
    elif isinstance(known.get("recipe"), dict):  # of runs from before there was a choice
        known["recipe"] = {"fast_decode": False, **known["recipe"]}
    return known


def _exported(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's fields, as JSON, from the description inside an exported file."""
    provenance, output = value["provenance"], value["output"]
    any_size = value["input"]["shape"][1] == "height"
    form = form_of(any_size, str(output["name"]))
    shared = {key: value[key] for key in ("class_names", "mean_rgb", "scale")}
    return {
        **_trained({**provenance, "versions": provenance.get("trained_with"), **shared}),
        **{key: value[key] for key in EXPORTED if value.get(key) is not None},
        "form": Form.FEATURES if output["name"] == Form.FEATURES.output_name else form,
        "input_shape": value["input"]["smallest"],
        "outputs": output["shape"][-1],
        "model_sha256": provenance["model_sha256"],
        "written_with": value["versions"]["vggkeras"],
    }
