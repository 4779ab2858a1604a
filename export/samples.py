"""Which images prove a file, calibrate int8, and travel inside the files as golden ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from export import golden, parity, subjects
from export.activations import activations
from vggkeras.data import augment, decoding, sources
from vggkeras.errors import InputError
from vggkeras.evaluation import checks, protocols
from vggkeras.localization import geometry, regression

if TYPE_CHECKING:
    from rich.console import Console

    from export.formats import Target
    from export.request import Request
    from vggkeras.data.splits import Data, Split
    from vggkeras.runtimes.predictor import Predictor

RANDOM = "random"  # the --data that asks for random images
RANDOM_IMAGES = 64
CALIBRATION_IMAGES = 100  # of the training split; one a class where there are more classes
GOLDEN_IMAGES = 32  # that lie beside the files
# (height, width) beyond the training size, at which dense files are proven: odd, tall, wide, and
# large ones.
MARGINS = ((1, 0), (0, 45), (37, 77), (96, 3), (130, 130))
SIZE_IMAGES = 8  # shown at each


@dataclass(frozen=True)
class Samples:
    """The images that a file is proven on."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int64 [N]
    evidence: str  # what they are, in words
    data: Data | None = None  # None: random images
    split: Split | None = None
    targets: np.ndarray | None = None  # of `regression.targets`, for boxes, float32 [N, 1 + 4 K]

    @property
    def truth(self) -> np.ndarray | None:
        """What answers are right: labels, or targets of boxes."""
        return self.labels if self.targets is None else self.targets


@dataclass(frozen=True)
class Evidence:
    """What every file of an export is proven against: images, and Keras' answers to them."""

    samples: Samples
    reference: Predictor  # gives these answers alone: Keras' weights are not kept for them
    answers: np.ndarray  # Keras' own, float32 [N, outputs], or a map of boxes
    # (images, answers) at other sizes, for forms that take any size.
    sizes: Sequence[tuple[np.ndarray, np.ndarray]]
    golden: golden.Golden  # what travels inside the files, but for their own answers
    labels_tell: bool  # whether the labels are evidence of accuracy
    calibration: tuple[np.ndarray, np.ndarray] | None  # images and labels, for int8


def gather(
    request: Request, subject: subjects.Subject, targets: Sequence[Target], console: Console
) -> Evidence:
    """Choose the images that every file is shown, and ask Keras about them.

    Raises:
        InputError (a ValueError): data of other classes, too few images to calibrate on, answers
            by which no file can be proven.
    """
    precisions = {target.precision for target in targets}
    reference, samples = parity_images(
        subject.reference, request.data, request.count, console, whole="int8" not in precisions
    )
    calibration = None
    if "int8" in precisions:
        calibration = calibration_images(reference, samples.data, request.calibration, console)
    with console.status(f"asking Keras about {len(samples.images)} images"):
        answers = parity.in_batches(reference, samples.images, (32,))
        subjects.check_answers(subject, samples.images, answers)
        sizes: Sequence[tuple[np.ndarray, np.ndarray]] = ()
        if request.form.takes_any_size:
            dense = reference if reference.dense else reference.dense_form()
            sizes = other_sizes(dense, samples.split)
        graph = subject.graph if subject.is_vgg else None
        inside = golden_images(reference, graph, samples, answers)
    tell = False
    if reference.boxes and samples.targets is not None:
        tell = bool(geometry.localized(answers, samples.targets, reference.boxes).any())
        if not tell:
            console.print(
                "None of Keras' boxes overlaps with a true one by more than half: the true boxes "
                "are no evidence",
                style="yellow",
                soft_wrap=True,
            )
    if request.form.gives_probabilities:
        tell = parity.labels_tell(answers, samples.labels)
    if samples.labels is not None and not tell and request.form.gives_probabilities:
        advice = "" if subject.is_vgg else "; is --input right?"
        if precisions != {"float32"}:
            advice = ", and float16 and int8 are judged by agreement alone"
        console.print(
            "Keras is right no more often than guessing: the labels are no evidence" + advice,
            style="yellow",
            soft_wrap=True,
        )
    reference = replace(reference, run=lambda _: answers, make_form=None, network=None)
    return Evidence(samples, reference, answers, sizes, inside, tell, calibration)


def parity_images(
    reference: Predictor,
    spec: str | Data | None,
    count: int,
    console: Console,
    *,
    whole: bool = True,
) -> tuple[Predictor, Samples]:
    """Return the reference and the images to prove files on.

    The reference gets the data's class names if it had none.

    Args:
        reference: the Keras model.
        spec: the data; None for what the model was trained on, or random images where it names
            none.
        count: how many images; 0 for the whole split.
        console: for progress and warnings.
        whole: whether all of a folder may be taken that has no splits, and that the model was not
            trained on. Not where training images are needed beside these, to calibrate on.
    """
    named = spec or reference.card.data or RANDOM
    if named == RANDOM:
        console.print(
            "parity on random images: weak evidence; give --data to prove it on real ones",
            style="yellow",
        )
        shape = (min(count or RANDOM_IMAGES, RANDOM_IMAGES), *reference.input_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return reference, Samples(images, None, "random images: weak evidence")
    # Images without which the model was trained.
    skipped = set() if spec else set(reference.card.skipped)
    data = _data_of_proof(reference, spec, bool(skipped), whole)
    if not reference.features:  # for which any images do
        if reference.boxes != "scr" or reference.card.class_names:
            checks.check_names(reference, data.class_names)
        if not reference.card.class_names:
            card = replace(reference.card, class_names=tuple(data.class_names))
            reference = replace(reference, card=card)
    split = _without(data.split(data.default_split), skipped)
    # Evenly spaced: folders list class after class, so every class has its part.
    indices = np.linspace(0, split.count - 1, min(count or split.count, split.count)).astype(int)
    kept = np.array(split.indices())[np.unique(indices)]
    split = split.without(set(split.indices()) - set(kept.tolist()))
    with console.status(f"reading {split.count} images of {split.name}"):
        images, labels = protocols.central_crops(reference, split)
    evidence = f"{split.count} images of {split.name}"
    targets = _targets(reference, split, labels) if reference.boxes else None
    return reference, Samples(images, labels, evidence, data, split, targets)


def _targets(reference: Predictor, split: Split, labels: np.ndarray) -> np.ndarray:
    """Return the true boxes in the central crops of a split's images, as `regression.targets`."""
    assert split.boxes
    pairs = zip(split.indices(), labels.tolist(), strict=True)
    scale, crop = reference.scale, reference.input_shape[:2]
    return np.stack([regression.central_target(split.boxes, *pair, scale, crop) for pair in pairs])


def _data_of_proof(
    reference: Predictor, spec: str | Data | None, skip_unreadable: bool, whole: bool
) -> Data:
    """Return the data to prove files on, read as the model's training read them."""
    card, boxes = reference.card, reference.boxes is not None
    if spec and whole:
        data = sources.load_data(spec, whole=True, boxes=boxes)
        data = sources.as_trained(data, (), [card], boxes=boxes)
        return data.upright(card.exif)
    try:
        named = spec or card.data
        data = sources.load_data_of(
            sources.trained_on([card], named),
            named,
            skip_unreadable=skip_unreadable,
            fetch=bool(spec),
            boxes=boxes,
        )
    except InputError as error:
        if spec:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data, or --data {RANDOM}.)"
        ) from error
    return data.upright(card.exif)


def calibration_images(
    reference: Predictor, data: Data | None, count: int | None, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Return central crops and labels of training images, as many of each class.

    They are cropped as the model will see images: uint8 `[N, H, W, C]`, int64 `[N]`.
    """
    if data is None:
        raise InputError(
            "int8 takes its ranges from training images, and there are none: give --data digits, "
            "tfds:NAME, a folder or a list."
        )
    classes = len(data.class_names)
    count = max(CALIBRATION_IMAGES, classes) if count is None else count
    if count < classes:
        raise InputError(
            f"calibration: expected at least one image for each of {classes} classes; received "
            f"{count}: give --calibration {classes} or more."
        )
    split = _without(data.split("train"), set(data.skipped) | set(reference.card.skipped))
    kept = _balanced(split, classes, count)
    split = split.without(i for i in split.indices() if i not in kept)
    if split.count < classes:
        raise InputError(
            f"calibration: {split.name} has only {split.count} images for {classes} classes: "
            "expected one a class at least; add training images, or give other --data."
        )
    if split.count < count:
        console.print(
            f"calibration: {split.count} images, all that {split.name} has for {count}",
            style="yellow",
        )
    with console.status(f"reading {split.count} images of {split.name}, to calibrate on"):
        return protocols.central_crops(reference, split)


def _without(split: Split, skipped: set[str]) -> Split:
    """Return a split without the images of these names."""
    return split.without(i for i in split.indices() if skipped and split.image_name(i) in skipped)


def _balanced(split: Split, classes: int, count: int) -> set[int]:
    """Return the indices of `count` images of a split, as many of each class."""
    quota = [count // classes + (label < count % classes) for label in range(classes)]
    if split.labels is not None:  # evenly spaced in each class
        by_class = [np.flatnonzero(split.labels == label) for label in range(classes)]
        return {
            int(indices[i])
            for indices, most in zip(by_class, quota, strict=True)
            for i in np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)
        }
    kept = set()  # records tell their labels only when they are read: the first of each class
    for index, _, label in split.examples():
        if quota[label]:
            quota[label] -= 1
            kept.add(index)
            if not any(quota):
                break
    return kept


def golden_images(
    reference: Predictor, graph: Any, samples: Samples, answers: np.ndarray
) -> golden.Golden:
    """Return what travels inside the files, but for their own answers.

    The first image comes with the photograph it was cut from, and with the channel means of every
    layer's output.

    Args:
        reference: the Keras model.
        graph: what `to_saved_model.inference_model` made; None for a network of another
            architecture, whose layers are not compared.
        samples: of which the first images are taken.
        answers: the reference's, to all images.
    """
    images, answers = samples.images[:GOLDEN_IMAGES], answers[:GOLDEN_IMAGES]
    labels = None if samples.labels is None else samples.labels[:GOLDEN_IMAGES]
    order = np.arange(len(answers))
    if reference.form.gives_probabilities:
        # The least certain first: a certain answer hides much of what may be wrong with a file.
        order = answers.max(axis=1).argsort(kind="stable")
    if samples.split is not None:
        # The one of most color first: in a gray one the order of the channels cannot be told.
        color = np.abs(images - images.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3)).argmax()
        order = np.array([color, *order[order != color]])
    images, answers = images[order], answers[order]
    labels = None if labels is None else labels[order]
    original, means = None, {}
    if samples.split is not None:
        encoded = next(itertools.islice(samples.split.examples(), int(order[0]), None))[1]
        exif = samples.split.exif
        original = golden.small_original(encoded, reference.scale, exif)
        decoded = decoding.decode(original)
        means["decode"] = golden.decoded_samples(decoded)
        crop = augment.center_crop(decoded, reference.scale, reference.input_shape[:2])
        images[0] = augment.in_channels(crop, reference.input_shape[2])  # of what travels
        answers[0] = reference(images[:1])[0]
    if graph is not None:
        for layer, values in activations(graph, images[:1]).items():
            mean = values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64)
            means[layer] = mean.astype(np.float32)
    return golden.Golden(images, labels, answers, answers[:0], means, original)


def other_sizes(dense: Predictor, split: Split | None) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return (images, a dense predictor's answers) at several sizes.

    The images are a split's, or random ones.
    """
    h, w, c = dense.input_shape
    sizes = [(h + down, w + right) for down, right in MARGINS]

    def crops(image: Image.Image) -> list[np.ndarray]:
        cut = (augment.center_crop(image, max(size), size) for size in sizes)
        return [augment.in_channels(crop, c) for crop in cut]

    if split:
        first = itertools.islice(split.sourced(), SIZE_IMAGES)
        cut = [
            decoding.decoded(source, split.image_name(i), crops, exif=split.exif)
            for i, source, _ in first
        ]
        shown = [np.stack(images) for images in zip(*cut, strict=True)]
    else:
        shown = [
            np.random.default_rng(0).integers(0, 256, (SIZE_IMAGES, *size, c), np.uint8)
            for size in sizes
        ]
    return [(images, dense(images)) for images in shown]
