"""The formats that a model is exported to, and the files that come of it.

A new format is one entry in FORMATS, one in `writer_of`, and one module that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vggkeras import files
from vggkeras.card import Form, ModelCard
from vggkeras.runtimes.forms import form_path

if TYPE_CHECKING:
    from export.quantize import Int8Plan

PRECISIONS = ("float32", "float16", "int8")
ENGINES = ("", "tensorrt", "npu")  # what a file may be for alone; "": any
# Largest error of a probability, absolute and relative to the largest; of a feature, relative
# alone. float16 keeps 11 binary digits; of int8, accuracy and agreement are what is bounded.
TOLERANCES: dict[str, float | None] = {"float32": 1e-5, "float16": 1e-2, "int8": None}
# How much more an engine rounds, by (runtime, precision); docs/export.md derives both. MNN's
# Winograd F(6 x 6, 3 x 3), at points up to 3, amplifies the roundings of a sum 964.5 times (root
# mean square); bfloat16, in which OpenVINO computes float16 files, keeps 8 digits instead of 11.
ROUNDING = {("mnn", "float32"): 964.5, ("openvino", "float16"): 8.0}


def tolerance_of(precision: str, runtime: str, of_model: float | None = None) -> float | None:
    """Return the largest error of a file in a runtime; None for int8.

    `of_model` is a deep network's own tolerance, in its format's own runtime.
    """
    tolerance = of_model or TOLERANCES[precision]
    return tolerance and tolerance * ROUNDING.get((runtime, precision), 1.0)


@dataclass(frozen=True)
class Format:
    """One kind of exported file."""

    file: str  # its name, as a classifier in float32
    precisions: tuple[str, ...] = PRECISIONS


FORMATS = {
    "saved_model": Format("saved_model", ("float32",)),
    "onnx": Format("model.onnx"),
    "tflite": Format("model.tflite"),
}


class Write(Protocol):
    """Write a graph to a path, at the precision and in the form that its card names."""

    def __call__(
        self,
        model: Any,
        path: Path,
        card: ModelCard,
        opset: int | None = None,
        plan: Int8Plan | None = None,
    ) -> None:
        """Write one file: `opset` is ONNX's, `plan` int8's."""


def writer_of(format: str, is_vgg: bool) -> Write:
    """Return the function that writes a format; the libraries it needs are imported now.

    Args:
        format: a key of FORMATS.
        is_vgg: whether the model is a network of `vggkeras.build()`, not any other Keras model.
    """
    from export import keras_export, to_onnx, to_saved_model, to_tflite

    writers: dict[str, tuple[Write, Write]] = {
        "saved_model": (to_saved_model.write, to_saved_model.write),
        "onnx": (to_onnx.write, keras_export.write_onnx),
        "tflite": (to_tflite.write, keras_export.write_tflite),
    }
    of_vgg, of_any = writers[format]
    return of_vgg if is_vgg else of_any


@dataclass(frozen=True)
class Target:
    """One file of an export: where it lies, its format, its precision, and the model's form."""

    folder: Path
    format: str
    precision: str = "float32"
    form: Form = Form.CLASSIFIER
    engine: str = ""  # what alone an int8 file is for: tensorrt or npu

    @property
    def name(self) -> str:
        """The file's name: model.onnx, model.int8.onnx, model.dense.onnx, saved_model.features."""
        path = Path(FORMATS[self.format].file)
        for part in (self.precision, self.engine):
            if part not in ("float32", ""):
                path = path.with_name(f"{path.stem}.{part}{path.suffix}")
        return (path if self.form is Form.CLASSIFIER else form_path(path, self.form)).name

    @property
    def path(self) -> Path:
        """Where the file lies once it is proven."""
        return self.folder / self.name

    @property
    def rejected(self) -> Path:
        """Where the file lies when its proof failed."""
        return self.folder / f"{self.name}.rejected"

    @property
    def beside(self) -> Path:
        """Where the file is written and proven, before it is renamed."""
        return files.partial(self.path)
