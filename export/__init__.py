"""A trained network becomes SavedModel, ONNX and TFLite files, each proven to give Keras' answers.

    python -m export --format all

The public functions are `export_model` and `compare`. Nothing heavy is imported with the package:
`export.verify` needs NumPy, Pillow and a file's runtime alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.formats import FORMATS, PRECISIONS, TOLERANCES, Format

if TYPE_CHECKING:
    from rich.console import Console

    from export.comparison import Comparison
    from vggkeras.data.splits import Data

# What the images of a Keras model not built by vggkeras are scaled to, as keras.applications
# names it.
Pixels = Literal["0-255", "0-1", "-1-1", "caffe", "torch"]
FormatName = Literal["saved_model", "onnx", "tflite", "all"]
Precision = Literal["float32", "float16", "int8", "all"]
Engine = Literal["tensorrt"]
Io = Literal["int8"]

__all__ = ["FORMATS", "PRECISIONS", "TOLERANCES", "Format", "Pixels", "compare", "export_model"]


def export_model(
    model: str | os.PathLike[str] = "runs/latest",
    format: FormatName = "all",
    precision: Precision = "float32",
    data: str | Data | None = None,
    out: str | os.PathLike[str] | None = None,
    images: int | None = None,
    opset: int | None = None,
    dense: bool = False,
    features: bool = False,
    boxes: bool = False,
    calibration: int | None = None,
    input: Pixels | None = None,
    logits: bool = False,
    sign: str | os.PathLike[str] | None = None,
    target: Engine | None = None,
    io: Io | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Export a trained model, and prove every file on real images in the runtime that serves it.

    Writes the files, golden.npz (golden.FORM.npz of features and boxes) and certificate.json. A
    file that fails its proof keeps the suffix .rejected. The arguments are the fields of
    `export.request.Request`, which explains each; `console` is for progress and tables. Arrays are
    given as a `vggkeras.Data`.

    Returns:
        certificate.json's entries of the files just written, by file name; each has "passed".

    Raises:
        InputError (a ValueError): no model, or none of classes or boxes; unknown format or
            precision; classes that differ from the data's; too few images, to calibrate on too;
            weights or activations that are not finite, or too large for float16, by layer;
            features that are all zero; boxes that are the same for all images; a key that cannot be
            used; another process exports into the folder.
        OSError: a folder that cannot be written.
    """
    from export import pipeline
    from export.request import Request

    request = Request(
        model=Path(model),
        format=format,
        precision=precision,
        data=data,  # type: ignore[arg-type]  # the command line has strings alone
        out=Path(out) if out else None,
        images=images,
        opset=opset,
        dense=dense,
        features=features,
        boxes=boxes,
        calibration=calibration,
        input=input,
        logits=logits,
        sign=Path(sign) if sign else None,
        target=target,
        io=io,
    )
    return {name: entry.to_json(name) for name, entry in pipeline.run(request, console).items()}


def compare(
    candidate: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *arguments: Any,
    **options: Any,
) -> Comparison:
    """Compare two models of any make on real images: see `export.comparison.compare`."""
    from export import comparison

    return comparison.compare(candidate, reference, *arguments, **options)
