"""TODO"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor


def form_path(path: Path, form: Form) -> Path:
    """Return where another form of a file lies: model.onnx -> model.dense.onnx."""
    return path.with_name(f"{path.stem}.{form}{path.suffix}")


def forms_beside(
    path: Path, card: ModelCard, loader: Callable[[Path], Predictor]
) -> Callable[[Form], Predictor]:
    """Return a function that loads another form of a file, which lies beside it.

    Raises (the function): InputError where there is none, or it is of another model.
    """

    def load_form(form: Form) -> Predictor:
        file = form_path(path, form)
        if not file.exists():
            kind = {".onnx": "onnx", ".tflite": "tflite"}.get(path.suffix, "saved_model")
            wanted = "" if card.precision == "float32" else f" --precision {card.precision}"
            does, otherwise = "gives probabilities", ""
            if form is Form.DENSE:
                does = "takes images of one size"
                otherwise = ", or use --protocol center or multicrop"
            raise InputError(
                f"{path} {does}, and there is no {form} form of it at {file}: write it with "
                f"`python -m export --{form} --format {kind}{wanted} --model RUN`{otherwise}."
            )
        loaded = loader(file)
        if loaded.form is not form or loaded.card.model_sha256 != card.model_sha256:
            raise InputError(
                f"{file} is not the {form} form of {path}, but of another model: export both again."
            )
        return loaded

    return load_form


def form_of(any_size: bool, output_name: str) -> Form:
    """Return the form of a file whose input takes any size or not, by the name of its output."""
    if not any_size:
        return Form.CLASSIFIER
    return Form.FEATURES if output_name == Form.FEATURES.output_name else Form.DENSE


def smallest_shape(path: Path, card: ModelCard) -> tuple[int, int, int]:
    """Return the smallest (height, width, channels) that a form of any size takes: the training crop.

    Raises:
        InputError (a ValueError): the file does not say.
    """
    if card.input_shape is None:
        raise InputError(
            f"{path} takes images of any size and does not say its training size: export it with "
            "`python -m export --dense` or --features."
        )
    return card.input_shape


def check_takes_bytes(path: Path, is_uint8: bool, shapes: Sequence[Sequence[Any]]) -> None:
    """Raises InputError for a model that does not take one array of images as bytes, as exported files do."""
    if not is_uint8 or len(shapes) != 1 or len(shapes[0]) != 4:
        what = (
            f"{len(shapes)} inputs" if len(shapes) > 1 else f"an input of shape {list(shapes[0])}"
        )
        raise InputError(
            f"{path} has {what}{'' if is_uint8 else ', not of bytes'}: expected uint8 images [batch, H, W, C], as in files "
            "of `python -m export`; export its .keras file with that, or compare it with `python -m export.compare`."
        )


def has_mean(model: Any) -> bool:
    return any(layer.name == "mean_rgb" for layer in model.layers)
