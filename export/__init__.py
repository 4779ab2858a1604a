"""A trained network -> SavedModel, ONNX and TFLite files, each proven to give the same answers.

python -m export --format all

The public functions are `export_model` and `compare`. Nothing heavy is imported with the package: `export.verify` needs
NumPy, Pillow and a file's runtime alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggkeras.card import Form, ModelCard
from vggkeras.runtimes.forms import form_path

if TYPE_CHECKING:
    from rich.console import Console

    from export.comparison import Comparison

# What the images of a Keras model not built by vggkeras are scaled to, as keras.applications names it.
Pixels = Literal["0-255", "0-1", "-1-1", "caffe", "torch"]
Write = Callable[[Any, Path, ModelCard, "int | None", Any], None]


@dataclass(frozen=True)
class Format:
    """One kind of exported file."""

    file: str
    write: Write  # of a network of vggkeras.build()
    precisions: tuple[str, ...]
    write_other: Write  # of any other Keras classifier, by Keras' own exporter

    def named(self, precision: str, form: Form = Form.CLASSIFIER) -> str:
        """Return the file's name: model.onnx, model.int8.onnx, model.dense.onnx, saved_model.features."""
        path = Path(self.file)
        if precision != "float32":
            path = path.with_name(f"{path.stem}.{precision}{path.suffix}")
        return (path if form is Form.CLASSIFIER else form_path(path, form)).name


def _saved_model(*arguments: Any) -> None:
    from export import to_saved_model

    to_saved_model.write(*arguments)


def _onnx(*arguments: Any) -> None:
    from export import to_onnx

    to_onnx.write(*arguments)


def _tflite(*arguments: Any) -> None:
    from export import to_tflite

    to_tflite.write(*arguments)


def _other_onnx(*arguments: Any) -> None:
    from export import keras_export

    keras_export.write_onnx(*arguments)


def _other_tflite(*arguments: Any) -> None:
    from export import keras_export

    keras_export.write_tflite(*arguments)


PRECISIONS = ("float32", "float16", "int8")
FORMATS = {
    "saved_model": Format("saved_model", _saved_model, ("float32",), _saved_model),
    "onnx": Format("model.onnx", _onnx, PRECISIONS, _other_onnx),
    "tflite": Format("model.tflite", _tflite, PRECISIONS, _other_tflite),
}
# Largest error of a probability, absolute and relative to the largest; of a feature, relative alone. float16 keeps 11
# binary digits; of int8, accuracy and agreement are what is bounded.
TOLERANCES: dict[str, float | None] = {"float32": 1e-5, "float16": 1e-2, "int8": None}


def export_model(
    model: str | os.PathLike = "runs/latest",
    format: str = "all",
    precision: str = "float32",
    data: str | None = None,
    out: str | os.PathLike | None = None,
    images: int | None = None,
    opset: int | None = None,
    dense: bool = False,
    features: bool = False,
    calibration: int | None = None,
    input: Pixels | None = None,
    logits: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Export a trained model, and prove every file on real images in the runtime that will serve it.

    Writes the files, golden.npz (for features golden.features.npz) and certificate.json into `out`. A file that fails
    keeps the suffix .rejected.

    Args:
        model: a run's folder or a .keras file: of `vggkeras.build()`, of keras.applications' VGG16 and VGG19, or, through
            Keras' own exporters and as float32, any other Keras 3 classifier with one image input.
        format: saved_model, onnx, tflite or all (that have the precision).
        precision: float32, float16, int8 or all. float16 and int8 may lose 0.5 points of top-1 accuracy, and int8 must
            agree with Keras on 97% of the images. Where int8 loses more, the fewest layers with which it passes stay in
            float32, those first that it hurts most, by their signal to noise.
        data: whose validation images parity is checked on: digits, tfds:NAME, a folder, or random. By default the data
            the model was trained on; where the model names none, random images, which is weak evidence.
        out: folder; by default `export` beside the .keras file, so inside the run (NAME-export for a NAME.keras beside
            a Python package of that name, such as this one).
        images: how many images to compare; 0 for the whole validation split; by default 256, 1,000 where a precision may
            cost accuracy.
        opset: ONNX operator set, 14 to 18.
        dense: write fully convolutional files instead (model.dense.onnx and so on), which take images of any height and
            width from the training crop up (paper, section 3.2): the class scores averaged over space, then soft-max.
        features: write files that give the features of Appendix B instead (model.features.onnx and so on): fc2's
            activations, the last FC layer dropped, averaged over space; float32 `[N, fc_units]`, of images of any height
            and width from the training crop up. Mirrors, scales and normalization are the user's. `data` may have other
            classes than the model.
        calibration: how many images of the training split int8's ranges come from, as many of each class; by default 100,
            one a class where there are more classes.
        input: what a model not built by vggkeras takes: 0-255 (the default), 0-1, -1-1, or what keras.applications calls
            caffe and torch. The exported files take 0-255 all the same.
        logits: such a model's output is class scores, to which a soft-max is added; otherwise its last activation
            tells.

    Returns:
        certificate.json's entries of the files just written, by file name; each has "passed".

    Raises:
        InputError (a ValueError): no model, or none that classifies images; unknown format or precision; classes that
            differ from the data's; too few images, to calibrate on too; weights or activations that are not finite, or
            too large for float16, by layer; features that are all zero.
        OSError: a folder that cannot be written.
    """
    from export import pipeline
    from export.request import Request

    request = Request(
        model=Path(model),
        format=format,
        precision=precision,
        data=data,
        out=Path(out) if out else None,
        images=images,
        opset=opset,
        dense=dense,
        features=features,
        calibration=calibration,
        input=input,
        logits=logits,
    )
    return pipeline.run(request, console)


def compare(
    candidate: str | os.PathLike, reference: str | os.PathLike, *arguments: Any, **options: Any
) -> Comparison:
    """Compare two models of any make on real images: see `export.comparison.compare`."""
    from export import comparison

    return comparison.compare(candidate, reference, *arguments, **options)
