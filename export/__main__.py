"""python -m export --format onnx: a trained model -> proven files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from export import Pixels, export_model
from vggkeras.errors import parsed, run_command


@dataclass
class Arguments:
    """Export a trained model to SavedModel, ONNX and TFLite, and prove that each file gives Keras' answers.

    Exit code 0: written and proven; 1: a file failed its proof (it keeps the suffix .rejected); 2: bad input.
    """

    format: Literal["saved_model", "onnx", "tflite", "all"] = "all"
    """Which files to write."""
    model: Path = Path("runs/latest")
    """A run's folder or a .keras file, of any Keras 3 image classifier."""
    precision: Literal["float32", "float16", "int8", "all"] = "float32"
    """float16 and int8 are of ONNX and TFLite, and of networks of vggkeras."""
    data: str | None = None
    """Whose validation images to prove it on: digits, tfds:NAME, a folder, or random (weak evidence). By default the
    data the model was trained on."""
    out: Path | None = None
    """Folder; by default `export` beside the .keras file, so inside the run."""
    images: int | None = None
    """Images to compare; 0 for the whole validation split. 256 when not given, 1,000 where a precision may cost
    accuracy."""
    opset: int | None = None
    """ONNX operator set, 14 to 18; 18 when not given."""
    dense: bool = False
    """Write fully convolutional files instead (model.dense.onnx and so on): images of any height and width from the
    training crop up, as the paper's dense evaluation needs them."""
    features: bool = False
    """Write files that give the features of the paper's Appendix B instead (model.features.onnx and so on): the last FC
    layer dropped, fc2's activations averaged over space; of images of any size, as with --dense."""
    calibration: int | None = None
    """Training images that int8's ranges come from, as many of each class: 100 when not given, or one a class."""
    input: Pixels | None = None
    """What a model not built by vggkeras takes: 0-255 when not given, caffe for keras.applications' VGG16 and VGG19; caffe
    and torch are keras.applications' names. The exported files take 0-255 all the same."""
    logits: bool = False
    """Say that such a model gives class scores: a soft-max is added. Otherwise its last activation tells."""


def main() -> int:
    """Parse, and call one function."""
    arguments = parsed(lambda: tyro.cli(Arguments, prog="python -m export"))
    os.environ["KERAS_BACKEND"] = (
        "tensorflow"  # the exporters', whatever backend the model was trained on
    )
    entries = export_model(**vars(arguments), console=Console())
    return 0 if all(entry["passed"] for entry in entries.values()) else 1


def cli() -> int:
    """The console script vggkeras-export."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
