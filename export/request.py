"""What was asked for: the arguments of an export, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export import FORMATS, PRECISIONS, TOLERANCES, Pixels
from vggkeras.card import Form
from vggkeras.errors import InputError

PARITY_IMAGES = 256  # of the validation split, as many of each class as there are
GATE_IMAGES = 1000  # where a precision may cost accuracy: one image of 256 would be 0.4 points
OPSETS = range(14, 19)  # ONNX operator sets that the operators here are written for


@dataclass(frozen=True)
class Request:
    """What was asked for: the arguments of `export.export_model`."""

    model: Path
    format: str = "all"
    precision: str = "float32"
    data: str | None = None
    out: Path | None = None
    images: int | None = None
    opset: int | None = None
    dense: bool = False
    features: bool = False
    calibration: int | None = None
    input: Pixels | None = None
    logits: bool = False

    @property
    def form(self) -> Form:
        """Return which form of the model is written."""
        return Form.DENSE if self.dense else Form.FEATURES if self.features else Form.CLASSIFIER

    @property
    def count(self) -> int:
        """Return how many images to compare; 0 for all."""
        if self.images is not None:
            return self.images
        return PARITY_IMAGES if self.precision == "float32" else GATE_IMAGES


def chosen_files(request: Request) -> list[tuple[str, str]]:
    """Return (format, precision) of what to write."""
    format, precision = request.format, request.precision
    if request.dense and request.features:
        raise InputError(
            "--dense and --features write other files each: give one of them at a time."
        )
    if format != "all" and format not in FORMATS:
        raise InputError(f"Unknown format {format!r}: expected one of {', '.join(FORMATS)}, all.")
    if precision != "all" and precision not in TOLERANCES:
        raise InputError(
            f"Unknown precision {precision!r}: expected one of {', '.join(TOLERANCES)}, all."
        )
    formats = list(FORMATS) if format == "all" else [format]
    precisions = list(PRECISIONS) if precision == "all" else [precision]
    chosen = [
        (name, kind) for name in formats for kind in precisions if kind in FORMATS[name].precisions
    ]
    if not chosen:
        raise InputError(
            f"{format} has no precision {precision!r}: expected one of "
            f"{', '.join(FORMATS[format].precisions)}, or all; float16 and int8 are of onnx and tflite."
        )
    if request.opset not in (None, *OPSETS):
        raise InputError(
            f"opset must be {OPSETS.start} to {OPSETS.stop - 1}; received {request.opset}."
        )
    if request.calibration is not None and "int8" not in {p for _, p in chosen}:
        raise InputError("--calibration is of int8: give --precision int8 or all too.")
    if request.count < 0:
        raise InputError(
            f"images must be 1 or more, or 0 for all of the validation split; received {request.images}."
        )
    return chosen


def source_of(model: Path) -> Path:
    """Return the .keras file of a run's folder, or the file itself."""
    source = model / "model.keras" if model.is_dir() else model
    if not source.is_file():
        raise InputError(
            f"No trained model at {source}: expected a run's folder or a .keras file; train one with "
            "`python -m vggkeras train`, or give --model."
        )
    if source.suffix != ".keras":
        raise InputError(f"Expected a run's folder or a .keras file to export; received {source}.")
    return source.resolve()


def default_folder(source: Path) -> Path:
    beside = source.parent / "export"
    package = (beside / "__init__.py").exists()
    return source.parent / f"{source.stem}-export" if package else beside
