"""What an export is asked for, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from export import Engine, FormatName, Io, Pixels, Precision
from export.formats import FORMATS, PRECISIONS, TOLERANCES, Target
from vggkeras import archives, certificate, files
from vggkeras.card import Form, ModelCard
from vggkeras.certificate import Entry
from vggkeras.errors import InputError

PARITY_IMAGES = 256  # of the validation split, as many of each class as there are
GATE_IMAGES = 1000  # where a precision may cost accuracy: one image of 256 would be 0.4 points
OPSETS = range(14, 19)  # ONNX operator sets that the operators here are written for


@dataclass(frozen=True)
class Request:
    """Export a trained model to SavedModel, ONNX and TFLite, and prove each file.

    Proven is that a file gives Keras' answers, in the runtime that will serve it. Exit code 0:
    written and proven; 1: a file failed its proof (it keeps the suffix .rejected); 2: bad input.
    """

    format: FormatName = "all"
    """Which files to write; all: those that have the precision."""
    model: Path = Path("runs/latest")
    """A run's folder or a .keras file: of vggkeras, of keras.applications' VGG16 and VGG19, or,
    through Keras' own exporters and as float32, any Keras 3 classifier with one image input."""
    precision: Precision = "float32"
    """float16 and int8 are for ONNX and TFLite, and for networks of vggkeras. They may lose 0.5
    points of top-1 accuracy, and the 95% interval of int8's agreement with Keras must reach 97%.
    Where int8 loses more, the fewest layers with which it passes are kept in float32, those first
    that it hurts most, by their signal to noise. Boxes have no int8."""
    data: str | None = None
    """Whose images to prove it on: digits, tfds:NAME, hf:NAME, a folder, a list, or random (weak
    evidence). They are those of validation, else of test, else all (int8 needs training images
    too). By default the data the model was trained on; random where the model names none."""
    out: Path | None = None
    """Folder; by default `export` beside the .keras file, so inside the run (NAME-export for a
    NAME.keras beside a Python package called export)."""
    images: int | None = None
    """Images to compare; 0 for the whole validation split. 256 when not given, 1,000 where a
    precision may cost accuracy."""
    opset: int | None = None
    """ONNX operator set, 14 to 18; 18 when not given."""
    dense: bool = False
    """Write fully convolutional files instead (model.dense.onnx and so on): images of any height
    and width from the training crop up, as the paper's dense evaluation (section 3.2) needs them;
    the class scores are averaged over space, then go through soft-max."""
    features: bool = False
    """Write files that give the features of the paper's Appendix B instead (model.features.onnx
    and so on): the last FC layer dropped, fc2's activations averaged over space, float32
    [N, fc_units]; of images of any size, as with --dense. Mirrors, scales and normalization are
    the user's. The data may have other classes than the model."""
    boxes: bool = False
    """Say that the model is a network of boxes (Appendix A), which a run's file says itself: then
    model.boxes.onnx and so on are written, float32 [N, 4], or [N, 4 x classes], and with --dense
    model.dense_boxes.onnx, which gives a map of them. The images of the proof need boxes too."""
    calibration: int | None = None
    """Training images from which int8's ranges come, as many of each class: 100 when not given, or
    one a class where there are more classes."""
    input: Pixels | None = None
    """What a model not built by vggkeras takes: 0-255 when not given, caffe for keras.applications'
    VGG16 and VGG19; caffe and torch are keras.applications' names. The exported files take 0-255
    all the same."""
    logits: bool = False
    """Say that such a model gives class scores: a soft-max is added. Otherwise its last activation
    tells."""
    target: Engine | None = None
    """With --format onnx --precision int8: write what TensorRT takes, model.int8.tensorrt.onnx, of
    which activations too are signed and every zero point is 0. It is proven on the CPU."""
    io: Io | None = None
    """With --format tflite --precision int8: write what NPUs take, model.int8.npu.tflite, of which
    images and probabilities are int8 too, by their own scale and zero point, one image at a
    time."""
    sign: Path | None = None
    """Private key, a PEM file of an elliptic curve: model.sig signs every file of the folder, for
    `export.verify --public-key`. Without it, a signature that no longer holds is removed."""

    web: Path | None = None
    """Export nothing; write a folder for any static server instead: a page that runs the smallest
    .onnx file of --model (or a FILE.onnx, or an export's folder) that passed its proof, and proves
    it again in the browser."""
    bundle: Path | None = None
    """node_modules whose onnxruntime-web --web copies into the page; by default the page loads it
    from a CDN."""
    card: Path | None = None
    """Export nothing; write a folder for a model hub instead: the files of --model's export that
    passed their proof (or one, --model FILE), their certificate, labels, and a model card."""
    license: str | None = None
    """What --card says of the weights: an identifier of the hub's, such as cc-by-4.0. When not
    given, apache-2.0, and unknown where the weights began as somebody else's."""

    @property
    def form(self) -> Form:
        """The form of the model that is written."""
        if self.boxes:
            return Form.DENSE_BOXES if self.dense else Form.BOXES
        return Form.DENSE if self.dense else Form.FEATURES if self.features else Form.CLASSIFIER

    def resolved(self) -> Request:
        """Return the same with the model's file, and whether that gives boxes, as it says.

        Raises:
            InputError (a ValueError): there is no model, or a damaged one.
        """
        source = self.source
        card = ModelCard.from_json(archives.read_keras_archive(source)[1], source)
        return replace(self, model=source, boxes=self.boxes or card.boxes is not None)

    @property
    def count(self) -> int:
        """How many images to compare; 0 for all."""
        if self.images is not None:
            return self.images
        return PARITY_IMAGES if self.precision == "float32" else GATE_IMAGES

    @property
    def source(self) -> Path:
        """The .keras file: of a run's folder, or the file itself.

        Raises:
            InputError (a ValueError): there is none.
        """
        source = self.model / "model.keras" if self.model.is_dir() else self.model
        if not source.is_file():
            raise InputError(
                f"No trained model at {source}: expected a run's folder or a .keras file; train "
                "one with `python -m vggkeras train`, or give --model."
            )
        if source.suffix != ".keras":
            raise InputError(
                f"Expected a run's folder or a .keras file to export; received {source}."
            )
        return source.resolve()

    @property
    def folder(self) -> Path:
        """The folder to write to; by default beside the model, and no Python package."""
        source = self.source
        if self.out:
            return self.out
        beside = source.parent / "export"
        package = (beside / "__init__.py").exists()
        return source.parent / f"{source.stem}-export" if package else beside

    def targets(self) -> list[Target]:
        """Return the files to write.

        Raises:
            InputError (a ValueError): an argument that cannot be, or no model.
        """
        self._check_choices()
        formats = list(FORMATS) if self.format == "all" else [self.format]
        every = PRECISIONS[:2] if self.boxes else PRECISIONS
        precisions = every if self.precision == "all" else (self.precision,)
        chosen = [(f, p) for f in formats for p in precisions if p in FORMATS[f].precisions]
        if not chosen:
            raise InputError(
                f"{self.format} has no precision {self.precision!r}: expected one of "
                f"{', '.join(FORMATS[self.format].precisions)}, or all; float16 and int8 are of "
                "onnx and tflite."
            )
        if self.opset not in (None, *OPSETS):
            raise InputError(
                f"opset must be {OPSETS.start} to {OPSETS.stop - 1}; received {self.opset}."
            )
        if self.calibration is not None and "int8" not in {precision for _, precision in chosen}:
            raise InputError("--calibration is of int8: give --precision int8 or all too.")
        if self.count < 0:
            raise InputError(
                "images must be 1 or more, or 0 for all of the validation split; received "
                f"{self.images}."
            )
        folder = self.folder
        engine = self.target or ("npu" if self.io else "")
        return [
            Target(folder, format, precision, self.form, engine) for format, precision in chosen
        ]

    def _check_choices(self) -> None:
        """Raise InputError for names that do not exist, which Python's callers may give."""
        if self.features and self.boxes:
            raise InputError(
                "Features are of classifiers, and this is a network of boxes: leave out --features."
            )
        if self.features and self.dense:
            raise InputError(
                "--dense and --features write other files each: give one of them at a time."
            )
        if self.boxes and self.precision == "int8":
            raise InputError(
                "Boxes have no int8: a box is four numbers that must be near, and int8 is proven "
                "by answers that stay the same, as classes do; give float32 or float16."
            )
        if self.target not in (None, "tensorrt"):
            raise InputError(f"Unknown target {self.target!r}: expected tensorrt, or none.")
        if self.target and (self.format, self.precision) != ("onnx", "int8"):
            raise InputError(
                "--target is of int8 in ONNX: give --format onnx --precision int8 too; received "
                f"--format {self.format} --precision {self.precision}."
            )
        if self.io not in (None, "int8"):
            raise InputError(f"Unknown io {self.io!r}: expected int8, or none.")
        if self.io and (self.format, self.precision, self.form) != (
            "tflite",
            "int8",
            Form.CLASSIFIER,
        ):
            raise InputError(
                "--io int8 is of a classifier in TFLite: give --format tflite --precision int8 "
                f"with it, and no other form; received --format {self.format} --precision "
                f"{self.precision}{'' if self.form is Form.CLASSIFIER else f' --{self.form}'}."
            )
        if self.format != "all" and self.format not in FORMATS:
            raise InputError(
                f"Unknown format {self.format!r}: expected one of {', '.join(FORMATS)}, all."
            )
        if self.precision != "all" and self.precision not in TOLERANCES:
            raise InputError(
                f"Unknown precision {self.precision!r}: expected one of {', '.join(TOLERANCES)}, "
                "all."
            )


def finished(model: Path) -> tuple[Path, dict[str, Entry]]:
    """Return the folder of a finished export, and the entries of its files that passed.

    Args:
        model: an export's folder, or the run or the .keras file that was exported.

    Raises:
        InputError (a ValueError): it is none of them; the folder's files are of another model.
    """
    request = None if (model / certificate.CERTIFICATE).is_file() else Request(model=model)
    folder = request.folder if request else model
    passed = {name: entry for name, entry in certificate.read(folder).items() if entry.passed}
    models = {entry.model_sha256 for entry in passed.values()}
    if request and models - {files.sha256(request.source)}:
        raise InputError(
            f"{folder} has files of another model than {request.source}: export it again, or give "
            f"--model {folder} if these are meant."
        )
    return folder, passed
