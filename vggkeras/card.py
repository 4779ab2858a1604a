"""The card that travels with a model: its class names, preprocessing, origin and form.

`ModelCard` is read from JSON and written to JSON only here: for a .keras file and a run's run.json
by `to_json`, for an exported file by `to_description`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vggkeras.errors import InputError
from vggkeras.processor import Processor
from vggkeras.recipe import Recipe

INPUT_NAME = "images"
FEATURES_USE = (
    "Not normalised: average an image's and its mirror's and divide by their length at each scale, "
    "then average or stack the scales and divide by the length again."
)


class Form(StrEnum):
    """What a file computes from an image."""

    CLASSIFIER = "classifier"  # class probabilities of images of one size
    DENSE = "dense"  # class probabilities of images of any size (section 3.2)
    FEATURES = "features"  # fc2's output, averaged over images of any size (Appendix B)

    @property
    def takes_any_size(self) -> bool:
        """Whether images may be larger than the training crop."""
        return self is not Form.CLASSIFIER

    @property
    def output_name(self) -> str:
        """The name of the output tensor in every exported file."""
        return "features" if self is Form.FEATURES else "probabilities"


@dataclass(frozen=True)
class Calibration:
    """The training images from which int8's ranges were measured."""

    images: int
    classes: int
    data: str


@dataclass(frozen=True)
class ModelCard:
    """What travels with a model. Everything is empty in a file that vggkeras did not write."""

    class_names: tuple[str, ...] = ()
    mean_rgb: tuple[float, ...] = ()  # what the first layer subtracts, 0-255
    image_size: int | None = None  # side of the training crop, px
    scale: int | None = None  # smallest side to which test images are rescaled, px

    # Where the network comes from.
    arch: str = ""
    recipe: Recipe | None = None
    data: str = ""  # as --data names it
    seed: int | None = None
    epoch: int | None = None  # whose weights these are
    images: Mapping[str, int] = field(default_factory=dict)  # split -> count
    skipped: tuple[str, ...] = ()  # names of images that could not be read
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version, in training
    initialized: Mapping[str, str | None] = field(default_factory=dict)  # layer -> origin
    pretrained: str = ""  # the source of converted weights

    # Statistics of the training images, for exact resume.
    rgb_covariance: tuple[tuple[float, ...], ...] = ()
    unreadable: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # split -> indices
    smallest_sides: Mapping[str, int] = field(default_factory=dict)  # px -> count

    # What an exported file adds.
    form: Form = Form.CLASSIFIER
    precision: str = "float32"  # float32, float16 or int8
    input_shape: tuple[int, int, int] | None = None  # smallest (H, W, C) that it takes
    outputs: int = 0  # number of classes, or of features
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
        return f"smallest side to {self.scale} px (Pillow BILINEAR), then {rest}"

    @property
    def shapes(self) -> tuple[list[str | int], list[str | int]]:
        """The shapes of input and output: ["batch", 224, 224, 3], ["batch", 1000]."""
        assert self.input_shape is not None
        h, w, c = self.input_shape
        sides: list[str | int] = ["height", "width"] if self.form.takes_any_size else [h, w]
        return ["batch", *sides, c], ["batch", self.outputs]

    @classmethod
    def from_json(cls, value: Any, where: str | Path) -> ModelCard:
        """Return the card of a .keras file, of run.json, or of an exported file's description.

        Args:
            value: the parsed JSON.
            where: the file that it comes from, for the message.

        Raises:
            InputError (a ValueError): a field is missing or of another type.
        """
        try:
            return cls(**(_exported(value) if "provenance" in value else _trained(value)))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"{where}: its description is damaged ({type(error).__name__}: "
                f"{str(error)[:200]}): expected what vggkeras writes; train or export it again."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return what a .keras file and run.json hold."""
        values = {
            "arch": self.arch,
            "pretrained": self.pretrained,
            "recipe": recipe_json(self.recipe),
            "data": self.data,
            "class_names": list(self.class_names),
            "mean_rgb": list(self.mean_rgb),
            "rgb_covariance": [list(row) for row in self.rgb_covariance],
            "unreadable": {split: list(indices) for split, indices in self.unreadable.items()},
            "smallest_sides": dict(self.smallest_sides),
            "image_size": self.image_size,
            "scale": self.scale,
            "seed": self.seed,
            "skipped": list(self.skipped),
            "versions": dict(self.versions),
            "images": dict(self.images),
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
        }
        provenance = {key: v for key, v in provenance.items() if v not in (None, "", {})}
        output = {"name": self.form.output_name, "type": "float32", "shape": output_shape}
        optional = {
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
                "type": "uint8",
                "shape": input_shape,
                "smallest": list(self.input_shape),
                "order": "RGB" if c == 3 else "as trained",
            },
            "output": output | ({"use": FEATURES_USE} if self.form is Form.FEATURES else {}),
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
        return description


def recipe_json(recipe: Recipe | None) -> dict[str, Any]:
    """Return a recipe as JSON, {} without one."""
    if recipe is None:
        return {}
    return {**dataclasses.asdict(recipe), "out": None if recipe.out is None else str(recipe.out)}


def _recipe(value: Any) -> Recipe | None:
    """Return a recipe from JSON; fields that this version does not have are left out."""
    if not value:
        return None
    fields = {f.name for f in dataclasses.fields(Recipe)}
    values = {key: v for key, v in value.items() if key in fields}
    return Recipe(**values | {"out": Path(values["out"]) if values.get("out") else None})


def _trained(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's fields from the JSON of a .keras file or a run."""
    unreadable = value.get("unreadable", {})
    return {
        "class_names": tuple(value.get("class_names") or ()),
        "mean_rgb": tuple(value.get("mean_rgb") or ()),
        "image_size": value.get("image_size"),
        "scale": value.get("scale"),
        "arch": value.get("arch") or "",
        "recipe": _recipe(value.get("recipe")),
        "data": value.get("data") or "",
        "seed": value.get("seed"),
        "epoch": value.get("epoch"),
        "images": dict(value.get("images") or {}),
        "skipped": tuple(value.get("skipped") or ()),
        "versions": dict(value.get("versions") or {}),
        "initialized": dict(value.get("initialised") or {}),
        "pretrained": value.get("pretrained") or "",
        "rgb_covariance": tuple(map(tuple, value.get("rgb_covariance") or ())),
        "unreadable": {split: tuple(indices) for split, indices in unreadable.items()},
        "smallest_sides": dict(value.get("smallest_sides") or {}),
    }


def _exported(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's fields from the description inside an exported file."""
    provenance, (h, w, c) = value["provenance"], value["input"]["smallest"]
    features = value["output"]["name"] == "features"
    any_size = value["input"]["shape"][1] == "height"
    form = Form.FEATURES if features else Form.DENSE if any_size else Form.CLASSIFIER
    trained = {**provenance, "versions": provenance.get("trained_with")}
    shared = {key: value[key] for key in ("class_names", "mean_rgb", "scale")}
    calibration = value.get("calibration")
    return _trained({**trained, **shared}) | {
        "form": form,
        "precision": value.get("precision", "float32"),
        "input_shape": (h, w, c),
        "outputs": value["output"]["shape"][-1],
        "pixels": value.get("pixels", ""),
        "tolerance": value.get("tolerance"),
        "model_sha256": provenance["model_sha256"],
        "written_with": value["versions"]["vggkeras"],
        "processor": Processor.from_json(value["processor"]) if "processor" in value else None,
        "calibration": Calibration(**calibration) if calibration else None,
        "left_in_float": tuple(value.get("left_in_float", ())),
        "signal_to_noise_db": dict(value.get("signal_to_noise_db", {})),
    }
