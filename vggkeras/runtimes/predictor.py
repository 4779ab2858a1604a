"""`Predictor`, the one interface through which evaluation, parity and benchmarks see a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vggkeras.card import Form, ModelCard
from vggkeras.configs import rescaled_side
from vggkeras.errors import InputError

Sealed = Literal["yes", "no", "foreign"]
MAX_BATCH = 64  # images a call of the runtime; more are passed in parts


@dataclass(frozen=True)
class Predictor:
    """A model in some runtime: uint8 RGB images `[N, H, W, C]` in, float32 probabilities out.

    A dense one takes images of any size from `input_shape` up and answers as
    `models.dense_classifier` does. One of features takes images of any size too, and answers
    `models.dense_features`', float32 `[N, units]`, instead. One of boxes answers `build(boxes=)`'s,
    float32 `[N, outputs]`, and a dense one of boxes a map of them, `[N, h, w, outputs]`. Any thread
    may call it: where a runtime holds the state of a call (LiteRT, MNN, OpenVINO, Keras without
    TensorFlow, GPUs), calls take turns.
    """

    path: Path
    runtime: str  # keras, tensorflow, onnxruntime, litert, mnn or openvino
    version: str
    provider: str  # what really computes: cpu, cuda, tensorrt, mnn or openvino
    input_shape: tuple[int, int, int]  # (H, W, C)
    outputs: int  # number of classes, of features, or of the boxes' numbers
    input_name: str
    output_name: str
    card: ModelCard = field(repr=False)
    run: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    form: Form = Form.CLASSIFIER
    make_form: Callable[[Form], Predictor] | None = field(default=None, repr=False)
    threads: int | None = None  # CPU threads of one operation; None: not known
    tf32: bool = False  # whether a GPU may round factors to TensorFloat-32 (10 bits)
    # yes: the file is as it was sealed. no: it has no seal (a .keras file), or was not checked.
    # foreign: vggkeras did not write it.
    sealed: Sealed = "no"
    network: Any = field(default=None, repr=False, compare=False)  # the Keras model it runs, if any

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, or their numbers where the file has no names; [] of features."""
        if self.features:
            return []
        classes = 0 if self.boxes == "scr" else self.outputs // (4 if self.boxes else 1)
        return list(self.card.class_names or map(str, range(classes)))

    @property
    def dense(self) -> bool:
        """Whether it takes images of any size."""
        return self.form.takes_any_size

    @property
    def features(self) -> int:
        """How many features it gives; 0 where it gives probabilities."""
        return self.outputs if self.form is Form.FEATURES else 0

    @property
    def boxes(self) -> Literal["scr", "pcr"] | None:
        """Whether it gives one box or one a class; None where it gives none."""
        return self.card.boxes if self.form.is_boxes else None

    @property
    def scale(self) -> int:
        """Smallest side, px, that images are rescaled to before the central crop is taken."""
        return int(self.card.scale or rescaled_side(max(self.input_shape[:2])))

    def dense_form(self) -> Predictor:
        """Return the same network as a dense predictor; of a file, the one that `--dense` wrote.

        Raises:
            InputError (a ValueError): there is none, it is of another model, or this one gives
                features.
        """
        if not self.boxes:
            check_probabilities(self)
        if self.dense:
            return self
        if self.make_form is None:
            raise InputError(f"{self.path} has no dense form.")
        return self.make_form(Form.DENSE_BOXES if self.boxes else Form.DENSE)

    def features_form(self) -> Predictor:
        """Return the same network's features; of a file, the one that `--features` wrote.

        Raises:
            InputError (a ValueError): there is none, or it is of another model.
        """
        if self.features:
            return self
        if self.make_form is None or self.dense or self.boxes:
            raise InputError(
                f"{self.path} has no form that gives features: give the classifier that it is a "
                "form of."
            )
        return self.make_form(Form.FEATURES)

    def map_form(self) -> Predictor:
        """Return a classifier's probabilities at every place, `[N, h, w, classes]`: of a run's.

        Raises:
            InputError (a ValueError): this one gives no probabilities, or is an exported file.
        """
        check_probabilities(self)
        if self.runtime != "keras" or self.make_form is None or self.dense:
            raise InputError(
                f"{self.path} gives no probabilities at every place of an image, which rate the "
                "boxes there: give the run's folder, or its .keras file."
            )
        return self.make_form(Form.MAP)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 probabilities `[N, classes]` of uint8 images `[N, H, W, C]`.

        Raises:
            InputError (a ValueError): an array of another shape or type: nothing is resized or
                rescaled here.
        """
        self._check(images)
        parts = [self.run(images[i : i + MAX_BATCH]) for i in range(0, len(images), MAX_BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, self.outputs), np.float32)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Return float32 probabilities `[N, classes]` of each batch, in order; N may change.

        A batch is taken when its answer is asked for, and none is kept. On a GPU the batches of
        .onnx files go through the same memory of the card for as long as their shape stays the
        same.

        Raises:
            InputError (a ValueError): as a call does.
        """
        return map(self, batches)

    def _check(self, images: Any) -> None:
        """Raise InputError for what is not an array of images that this model takes."""
        shape = ", ".join(map(str, self.input_shape))
        expected = f"uint8 images, 0-255, RGB, of shape [N, {shape}]{' or larger' * self.dense}"
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise InputError(f"Expected {expected}; received {_of_other_type(images)}.")
        if not self._fits(images.shape):
            raise InputError(
                f"Expected {expected}; received shape {list(images.shape)}: rescale and crop first "
                "(vggkeras.posteriors does), and add the batch axis to a single image."
            )

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if not self.dense:
            return shape[1:] == self.input_shape
        smallest_height, smallest_width, channels = self.input_shape
        return (
            len(shape) == 4
            and shape[1] >= smallest_height
            and shape[2] >= smallest_width
            and shape[3] == channels
        )


def taking_turns(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that calls another, from any thread, one call at a time."""
    lock = threading.Lock()

    def run_alone(images: np.ndarray) -> np.ndarray:
        with lock:
            return run(images)

    return run_alone


def check_probabilities(predictor: Predictor) -> None:
    """Raise InputError when a predictor gives boxes, or features, which name no class."""
    if predictor.boxes:
        raise InputError(
            f"{predictor.path} gives boxes, not probabilities: expected a classifier, such as the "
            "one that training began with."
        )
    if predictor.features:
        classifier = predictor.path.with_name(predictor.path.name.replace(".features", ""))
        advice = "the one it was made of" if classifier == predictor.path else classifier
        raise InputError(
            f"{predictor.path} gives {predictor.features} features, not probabilities: expected a "
            f"classifier; give {advice}, or the run's folder."
        )


def _of_other_type(images: Any) -> str:
    """Return what was received instead of uint8 images, and what to do."""
    kind = getattr(images, "dtype", type(images).__name__)
    if isinstance(images, np.ndarray) and images.size and np.issubdtype(kind, np.floating):
        return (
            f"{kind} in [{images.min():.4g}, {images.max():.4g}]: give the image's bytes, before "
            "any scaling or mean subtraction (the model does that)"
        )
    return f"{kind}: convert with numpy.asarray(images, dtype='uint8') if they are 0-255 already"
