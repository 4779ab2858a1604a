"""The model that is exported: what it is, the graph that is written, and Keras' own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from export import Pixels, keras_export, to_saved_model
from export.activations import check_finite
from export.formats import TOLERANCES, Target
from vggkeras import files, layers, models
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.keras import keras_predictor

if TYPE_CHECKING:
    from rich.console import Console

    from export.request import Request
    from vggkeras.runtimes.predictor import Predictor


@dataclass(frozen=True)
class Subject:
    """The model that is exported."""

    source: Path
    model_sha256: str  # of that file
    graph: keras.Model | None  # what is written; None once it is, for its memory
    reference: Predictor  # Keras' own answers
    card: ModelCard
    is_vgg: bool  # whether the graph is of vggkeras.build()'s layers
    has_softmax: bool = False  # whether one was added to a model not built by vggkeras


def load(request: Request, targets: Sequence[Target], console: Console) -> Subject:
    """Load the model, find out what it is, and make the graph that is written.

    Raises:
        InputError (a ValueError): what was asked for cannot be had of this model.
    """
    source = request.source
    with console.status(f"loading {source}"):
        network, card = models.load_model(source)
    gives_boxes = network.layers[-1].name == "boxes"
    if gives_boxes != request.boxes:
        raise InputError(
            f"{source} gives {'boxes' if gives_boxes else 'none'}: expected a network of "
            f"{'classes; give' if gives_boxes else '`train --boxes`; leave out'} --boxes."
        )
    if gives_boxes and not card.boxes:  # Keras alone saved it
        card = replace(card, boxes="scr" if network.output_shape[-1] == 4 else "pcr")
    if not to_saved_model.is_vgg(network):
        name = keras_export.applications_network(network)
        if name is None:
            _check_any_keras(request, targets, network)
            return _any_keras(request, network, card, console)
        pixels = request.input or "caffe"
        console.print(
            f"{source.name} is keras.applications' {name}, taken to expect images as {pixels} "
            "(--input): exported as the same network of vggkeras",
            soft_wrap=True,
        )
        network, card = keras_export.lean(network, pixels)
    elif request.input not in (None, "0-255"):
        raise InputError(
            f"--input {request.input}: {source} is a network of vggkeras, which takes 0-255: "
            "leave it out."
        )
    if not gives_boxes and to_saved_model.ends_in_scores(network):
        console.print(f"{source.name} ends in class scores: a soft-max is added", soft_wrap=True)
        to_saved_model.add_softmax(network)
    graph = to_saved_model.inference_model(network, request.form)
    check_finite(graph)
    mean = card.mean_rgb or layers.mean_rgb(network)
    card = replace(card, mean_rgb=mean, arch=card.arch or network.name)
    reference = keras_predictor(network, card, source)
    if request.features:
        reference = reference.features_form()
    elif request.form is Form.DENSE_BOXES:
        reference = reference.dense_form()
    return Subject(source, files.sha256(source), graph, reference, card, is_vgg=True)


def check_answers(subject: Subject, images: np.ndarray, answers: np.ndarray) -> None:
    """Check that Keras' answers to images are such that a file can be proven by them.

    Raises:
        InputError (a ValueError): they are not finite, not probabilities, or all zeros; boxes
            that are the same for all images, within float32's tolerance.
    """
    if not subject.is_vgg:
        keras_export.check_answers(answers, scores=subject.has_softmax)
        return
    finite = np.isfinite(answers).reshape(len(answers), -1).all(axis=1)
    if not finite.all():
        assert subject.graph is not None
        check_finite(subject.graph, images[~finite][:1])
    if subject.reference.features and not answers.any():  # which any file would give as well
        raise InputError(
            f"{subject.source}: fc2 gives zeros alone for all {len(images)} images: expected a "
            "trained network; train it again with a lower learning rate, or export an earlier one."
        )
    apart = TOLERANCES["float32"]
    assert apart is not None
    if subject.reference.boxes and len(images) > 1 and np.ptp(answers, axis=0).max() <= apart:
        raise InputError(
            f"{subject.source}: gives the same boxes for all {len(images)} images, as any file "
            "could: expected a trained network, and images that differ; train it again with a "
            "lower learning rate, or export an earlier one."
        )


def _check_any_keras(request: Request, targets: Sequence[Target], network: keras.Model) -> None:
    """Raise InputError unless a model not built by vggkeras can be exported as asked."""
    if request.form is not Form.CLASSIFIER:
        what = "fully convolutional form" if request.dense else f"form that gives {request.form}"
        last = ", ".join(layer.name for layer in network.layers[-3:])
        raise InputError(
            f"{request.form.flags[1:]}: {request.source} has no {what}: that is made of the layers "
            f"flatten, fc1, fc2 and predictions of vggkeras.build(), and {network.name!r} has "
            f"{last} at its end; leave out{request.form.flags}."
        )
    if others := sorted({target.precision for target in targets} - {"float32"}):
        raise InputError(
            f"{' and '.join(others)}: {request.source} is not of vggkeras.build(), and Keras' own "
            "exporters write float32: leave out --precision."
        )
    keras_export.check_classifier(network)
    check_finite(network)


def _any_keras(
    request: Request, network: keras.Model, card: ModelCard, console: Console
) -> Subject:
    """Return a model not built by vggkeras, wrapped for Keras' own exporters."""
    source = request.source
    pixels: Pixels = request.input or "0-255"
    scores = request.logits or keras_export.ends_in_scores(network)
    graph = keras_export.inference_model(network, pixels, scores)
    if request.logits:
        _check_scores(keras_export.inference_model(network, pixels, False))
    added = ", and to end in class scores: a soft-max is added (--logits)" if scores else ""
    console.print(
        f"{source.name} is not of vggkeras.build(): written by Keras' own exporters; it is taken "
        f"to expect images as {pixels} (--input){added}",
        soft_wrap=True,
    )
    card = replace(
        card,
        mean_rgb=card.mean_rgb or (0.0,) * graph.input_shape[-1],
        arch=card.arch or network.name,
        pixels=pixels,
        tolerance=rounding_tolerance(network),
    )
    plain = keras.Model(graph.inputs, graph.output["probabilities"], name=network.name)
    reference = replace(keras_predictor(plain, card, source), make_form=None)
    return Subject(source, files.sha256(source), graph, reference, card, False, scores)


def rounding_tolerance(network: keras.Model) -> float:
    """Return the largest error that float32's rounding explains, relative to the largest answer.

    Two runtimes add up a layer's products in different orders, which differs by 2^-24 of the sum,
    and by some 16 times as much where large terms cancel; every layer passes on the difference of
    those before it. Networks of few layers keep the tolerance of all other files.
    """
    weighted = sum(hasattr(layer, "kernel") for layer in keras_export.all_layers(network))
    return max(TOLERANCES["float32"] or 0.0, weighted * 2.0**-20)


def _check_scores(model: keras.Model) -> None:
    """Check that a model that is said to give class scores does not give probabilities already.

    Args:
        model: of `keras_export.inference_model`, without a soft-max added.

    Raises:
        InputError (a ValueError): its answers to random images are probabilities.
    """
    images = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:]), np.uint8)
    answers = np.asarray(model(images, training=False)["probabilities"])
    if answers.min() >= 0 and np.abs(answers.sum(axis=1) - 1).max() <= 1e-3:
        raise InputError(
            f"The model {model.name!r} gives probabilities already: expected class scores; leave "
            "out --logits."
        )
