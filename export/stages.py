"""Find the stage, from photograph to answer, at which a file first differs from its golden answers.

python -m export.verify --explain model.onnx
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export import artifact, layer_means
from export.golden import Golden, decoded_samples
from vggkeras.card import Form, ModelCard
from vggkeras.containers import DamagedError
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.localization import geometry

# Largest error of a layer's channel means, or of features, relative to the largest of them.
LAYER = {"float32": 1e-5, "float16": 1e-2, "int8": 0.2}
SOFTMAX = {"float32": 1e-5, "float16": 1e-2, "int8": 0.3}  # largest error of a probability
LEVELS = 1.0  # of 255: a pixel that another decoder rounds the other way
RESIZED = 0.5  # levels, on average
# What people call these layers.
NAMES = {"mean_rgb": "normalize (mean_rgb)", "predictions": "predictions (scores)"}


@dataclass(frozen=True)
class Stage:
    """One stage, and how far its result is from the expected one."""

    name: str
    error: float
    tolerance: float
    unit: str  # of error and tolerance
    note: str = ""  # what is wrong, and what to do

    @property
    def passed(self) -> bool:
        """Return whether the error is within its tolerance."""
        return self.error <= self.tolerance


def as_text(results: list[Stage]) -> str:
    """Return a line for each stage, and one for the first that differs."""
    width = max(len(stage.name) for stage in results)
    lines = []
    for stage in results:
        verdict = "ok" if stage.passed else "DIFFERS"
        line = f"  {verdict:8}{stage.name:{width}}  {stage.error:9.2e} {stage.unit}"
        lines.append(f"{line}  {stage.note}" if stage.note else line)
    first = next((stage for stage in results if not stage.passed), None)
    if first is None:
        return "\n".join([*lines, "  no difference"])
    note = f": {first.note}" if first.note else ""
    return "\n".join([*lines, f"  first difference: {first.name}{note}"])


def stages(path: Path) -> list[Stage]:
    """Return every stage of a .onnx or .tflite file, for its golden photograph, on the CPU.

    They are decode, resize, each layer, and the answer. A layer is compared with the Keras model's
    by the mean of each of its channels.

    Raises:
        InputError (a ValueError): a file that vggkeras did not write, or whose golden answers were
            changed; a SavedModel.
    """
    if path.is_dir():
        raise InputError(f"--explain looks inside .onnx and .tflite files; {path} is a SavedModel.")
    contents, golden = golden_of(path)
    card = contents.card
    # The layer of boxes is the answer itself, which is held against corners, as the proof does.
    layers = [name for name in golden.layers if name not in ("decode", "boxes")]
    outputs, answers = layer_means.file_means(path, layers, golden.images[:1])
    return [
        *_photograph_stages(card, golden),
        *(
            _layer_stage(name, golden.layers[name], outputs.get(name), LAYER[card.precision])
            for name in layers
        ),
        _answer_stage(card, golden.probabilities[0], answers, outputs),
    ]


def golden_of(path: Path) -> tuple[artifact.Contents, Golden]:
    """Return what travels inside a file.

    Raises:
        InputError (a ValueError): the file is damaged, or its golden answers were changed.
    """
    try:
        contents = artifact.read(path)
    except DamagedError as error:
        raise InputError(f"{path} cannot be explained: {error}.") from error
    if contents.golden is None:
        raise InputError(
            f"{path} cannot be explained: its golden answers are not what they were; export it "
            "again."
        )
    return contents, contents.golden


def mean_difference(image: np.ndarray, other: np.ndarray) -> float:
    """Return the mean difference of two images, in levels of 255; infinite for different shapes."""
    if image.shape != other.shape:
        return np.inf
    return float(np.abs(image.astype(np.float64) - other).mean())


def _photograph_stages(card: ModelCard, golden: Golden) -> list[Stage]:
    """Return decode and resize; [] where no photograph travels along."""
    if golden.original is None:
        return []
    assert card.input_shape is not None
    assert card.scale is not None
    try:
        decoded = decoding.decode(golden.original)
    except InputError as cause:
        return [Stage("decode", np.inf, LEVELS, "levels", str(cause))]
    error = float(np.abs(decoded_samples(decoded) - golden.layers["decode"]).max())
    height, width, channels = card.input_shape
    crop = augment.center_crop(decoded, card.scale, (height, width))
    resized = mean_difference(augment.in_channels(crop, channels), golden.images[0])
    return [
        Stage("decode", error, LEVELS, "levels"),
        Stage("resize", resized, RESIZED, "levels"),
    ]


def _layer_stage(
    name: str, expected: np.ndarray, received: np.ndarray | None, tolerance: float
) -> Stage:
    label = NAMES.get(name, name)
    if received is None:
        return Stage(label, np.inf, tolerance, "relative", "no such tensor in the file")
    if received.shape != expected.shape:
        note = f"{len(received)} channels, expected {len(expected)}"
        return Stage(label, np.inf, tolerance, "relative", note)
    error = _largest_error(received, expected) / max(float(np.abs(expected).max()), 1e-12)
    return Stage(label, error, tolerance, "relative")


def _answer_stage(
    card: ModelCard, expected: np.ndarray, answers: np.ndarray, layers: dict[str, np.ndarray]
) -> Stage:
    """Return the last stage: boxes, the features' average over space, or the scores' soft-max."""
    answer, note = answers[0], ""
    if card.form.is_boxes and answer.shape == expected.shape:
        assert card.input_shape is not None
        crop = card.input_shape[:2]
        answer, expected = (
            geometry.in_pixels(value[None], crop) / max(crop) for value in (answer, expected)
        )
    error = _largest_error(answer, expected) if answer.shape == expected.shape else np.inf
    tolerance = LAYER[card.precision]
    if card.form.is_boxes:
        return Stage("boxes", error, tolerance, "of the crop")
    if card.form is Form.FEATURES:
        average = layers.get("fc2")
        if average is not None and average.shape == answer.shape:
            apart = np.abs(average - answer).max()
            if not apart <= tolerance * np.abs(answer).max():
                note = "not the average over space of its own fc2"
        relative = error / max(float(expected.max()), 1e-12)
        return Stage("features", relative, tolerance, "relative", note)
    scores = layers.get("predictions")
    if scores is not None and scores.shape == answer.shape:
        powers = np.exp(scores - scores.max())
        if np.abs(powers / powers.sum() - answer).max() > tolerance:
            note = "not the soft-max of its own scores"
    return Stage("soft-max", error, SOFTMAX[card.precision], "absolute", note)


def _largest_error(received: np.ndarray, expected: np.ndarray) -> float:
    return float(np.nan_to_num(np.abs(received - expected), nan=np.inf).max())
