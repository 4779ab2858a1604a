"""The forms of a network, and the files that hold them: model.onnx, model.dense.onnx and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor


def form_path(path: Path, form: Form) -> Path:
    """Return where another form of a file lies: model.onnx -> model.dense.onnx.

    Of model.boxes.onnx that is model.dense_boxes.onnx.
    """
    suffix = f".{Form.BOXES}"
    path = path.with_suffix("") if path.suffix == suffix else path  # a SavedModel's folder
    return path.with_name(f"{path.stem.removesuffix(suffix)}.{form}{path.suffix}")


def smallest_shape(path: Path, card: ModelCard) -> tuple[int, int, int]:
    """Return the smallest (height, width, channels) that a form of any size takes.

    It is the training crop.

    Raises:
        InputError (a ValueError): the file does not say.
    """
    if card.input_shape is None:
        raise InputError(
            f"{path} takes images of any size and does not say its training size: export it with "
            "`python -m export --dense` or --features."
        )
    return card.input_shape


def forms_beside(
    path: Path, card: ModelCard, load: Callable[[Path], Predictor]
) -> Callable[[Form], Predictor]:
    """Return a function that loads another form of a file, which lies beside it.

    The function raises InputError where there is none, or it is of another model.
    """

    def load_form(form: Form) -> Predictor:
        file = form_path(path, form)
        if not file.exists():
            raise InputError(_no_form(path, card, form))
        predictor = load(file)
        if predictor.form is not form or predictor.card.model_sha256 != card.model_sha256:
            raise InputError(
                f"{file} is not the {form} form of {path}, but of another model: export both again."
            )
        return predictor

    return load_form


def check_takes_bytes(path: Path, is_uint8: bool, shapes: Sequence[Sequence[Any]]) -> None:
    """Raise InputError for a model that does not take one array of images as bytes.

    Args:
        path: the file, for the message.
        is_uint8: whether its first input is.
        shapes: of all its inputs.
    """
    if is_uint8 and len(shapes) == 1 and len(shapes[0]) == 4:
        return
    several = len(shapes) > 1
    received = f"{len(shapes)} inputs" if several else f"an input of shape {list(shapes[0])}"
    raise InputError(
        f"{path} has {received}{'' if is_uint8 else ', not of bytes'}: expected uint8 images "
        "[batch, H, W, C], as in files of `python -m export`; export its .keras file with that, or "
        "compare it with `python -m export.compare`."
    )


def _no_form(path: Path, card: ModelCard, form: Form) -> str:
    """Return the message for a form that was not exported."""
    file_format = {".onnx": "onnx", ".tflite": "tflite"}.get(path.suffix, "saved_model")
    precision = "" if card.precision == "float32" else f" --precision {card.precision}"
    if card.target == "npu":
        return f"{path} is for NPUs and has no {form} form: give the folder's other int8 file."
    precision += f" --target {card.target}" if card.target else ""
    does, otherwise = "gives probabilities", ""
    if form is not Form.FEATURES:
        does, otherwise = "takes images of one size", ", or use --protocol center or multicrop"
    return (
        f"{path} {does}, and there is no {form} form of it at {form_path(path, form)}: write it "
        f"with `python -m export{form.flags} --format {file_format}{precision} --model RUN`"
        f"{otherwise}."
    )
