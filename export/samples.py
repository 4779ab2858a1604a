"""Which images prove a file, calibrate int8, and travel as golden ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from export import golden, quantize
from vggkeras.data import augment, decoding, sources
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols

if TYPE_CHECKING:
    from rich.console import Console

    from vggkeras.data.splits import Data, Split
    from vggkeras.runtimes.predictor import Predictor

RANDOM = "random"  # the --data that asks for random images
RANDOM_IMAGES = 64
CALIBRATION_IMAGES = 100  # of the training split; one a class where there are more classes
GOLDEN_IMAGES = 32  # that lie beside the files
# (height, width) beyond the training size, at which dense files are proven: odd, tall, wide, and large ones.
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


def parity_images(
    reference: Predictor, spec: str | None, count: int, console: Console
) -> tuple[Predictor, Samples]:
    """Return the reference, with the data's class names if it had none, and the images to prove files on.

    Args:
        spec: the data; None for what the model was trained on, or random images where it names none.
        count: how many images; 0 for the whole validation split.
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
    # What training went on without.
    skipped = set() if spec else set(reference.card.skipped)
    try:
        data = sources.load_data(named, skip_unreadable=bool(skipped))
    except InputError as error:
        if spec:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data, or --data {RANDOM}.)"
        ) from error
    if not reference.features:  # which are of any images
        protocols.check_classes(reference, data.class_names)
        if not reference.card.class_names:
            card = replace(reference.card, class_names=tuple(data.class_names))
            reference = replace(reference, card=card)
    split = data.split("validation")
    split = split.without(i for i in split.indices() if skipped and split.image_name(i) in skipped)
    # Evenly spaced: folders list class after class, so every class has its share.
    places = np.linspace(0, split.count - 1, min(count or split.count, split.count)).astype(int)
    kept = np.array(split.indices())[np.unique(places)]
    split = split.without(set(split.indices()) - set(kept.tolist()))
    with console.status(f"reading {split.count} images of {split.name}"):
        images, labels = protocols.central_crops(reference, split)
    evidence = f"{split.count} images of {split.name}"
    return reference, Samples(images, labels, evidence, data, split)


def calibration_images(
    reference: Predictor, data: Data | None, count: int | None, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Return central crops and labels of training images, as many of each class: as the model will see images."""
    if data is None:
        raise InputError(
            "int8 takes its ranges from training images, and there are none: give --data digits, tfds:NAME or a folder."
        )
    classes = len(data.class_names)
    count = max(CALIBRATION_IMAGES, classes) if count is None else count
    if count < classes:
        raise InputError(
            f"calibration: expected at least one image for each of {classes} classes; received {count}: give "
            f"--calibration {classes} or more."
        )
    split = data.split("train")
    skipped = set(data.skipped) | set(reference.card.skipped)
    split = split.without(i for i in split.indices() if skipped and split.image_name(i) in skipped)
    kept = _balanced(split, classes, count)
    split = split.without(i for i in split.indices() if i not in kept)
    if split.count < classes:
        raise InputError(
            f"calibration: {split.name} has only {split.count} images for {classes} classes: expected one a class at "
            "least; add training images, or give other --data."
        )
    if split.count < count:
        console.print(
            f"calibration: {split.count} images, all that {split.name} has for {count}",
            style="yellow",
        )
    with console.status(f"reading {split.count} images of {split.name}, to calibrate on"):
        return protocols.central_crops(reference, split)


def _balanced(split: Split, classes: int, count: int) -> set[int]:
    """Return the indices of `count` images of a split, as many of each class."""
    quota = [count // classes + (label < count % classes) for label in range(classes)]
    if split.labels is not None:  # evenly spaced in each class
        places = [np.flatnonzero(split.labels == label) for label in range(classes)]
        return {
            int(own[i])
            for own, most in zip(places, quota, strict=True)
            for i in np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)
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

    The first image comes with the photograph it was cut from, and with the channel means of every layer's output.

    Args:
        graph: what `to_saved_model.inference_model` made; None for a network of another architecture, whose layers are
            not compared.
        answers: the reference's, to all images.
    """
    images, answers = samples.images[:GOLDEN_IMAGES], answers[:GOLDEN_IMAGES]
    labels = None if samples.labels is None else samples.labels[:GOLDEN_IMAGES]
    # The least certain first: a certain answer hides much of what may be wrong with a file. Features have no such order.
    unsure = (
        np.arange(len(answers))
        if reference.features
        else answers.max(axis=1).argsort(kind="stable")
    )
    original, layers = None, {}
    if samples.split is not None:
        # The one of most color comes first: in a grey one the order of the channels cannot be told.
        color = np.abs(images - images.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
        order = [int(color.argmax()), *(int(i) for i in unsure if i != color.argmax())]
        images, answers = images[order], answers[order]
        labels = labels if labels is None else labels[order]
        encoded = next(itertools.islice(samples.split.examples(), order[0], None))[1]
        original = golden.small_original(encoded, reference.scale)
        decoded = decoding.decode(original)
        layers["decode"] = golden.decoded_samples(decoded)
        crop = augment.center_crop(decoded, reference.scale, reference.input_shape[:2])
        images[0] = augment.in_channels(crop, reference.input_shape[2])  # of what travels
        answers[0] = reference(images[:1])[0]
    else:
        images, answers = images[unsure], answers[unsure]
    if graph is not None:
        for layer, values in quantize.activations(graph, images[:1]).items():
            means = values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64)
            layers[layer] = means.astype(np.float32)
    return golden.Golden(images, labels, answers, answers[:0], layers, original)


def other_sizes(dense: Predictor, split: Split | None) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return (images, a dense predictor's answers) at several sizes, of a split's images or random ones."""
    h, w, c = dense.input_shape
    first = itertools.islice(split.examples(), SIZE_IMAGES) if split else ()
    originals = [decoding.decode(encoded) for _, encoded, _ in first]
    found = []
    for down, right in MARGINS:
        size = (h + down, w + right)
        if originals:
            crops = [augment.center_crop(image, max(size), size) for image in originals]
            images = np.stack([augment.in_channels(crop, c) for crop in crops])
        else:
            images = np.random.default_rng(0).integers(0, 256, (SIZE_IMAGES, *size, c), np.uint8)
        found.append((images, dense(images)))
    return found
