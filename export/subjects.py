"""The model that is exported: what it is, the graph that is written, and Keras' own answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export import TOLERANCES, Pixels
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from export.request import Request
    from vggkeras.runtimes.predictor import Predictor


@dataclass
class Subject:
    """The model that is exported."""

    source: Path
    graph: keras.Model | None  # what the writers take; dropped once it is written, for its memory
    reference: Predictor  # Keras' own answers
    card: ModelCard
    is_vgg: bool  # whether the graph is of vggkeras.build()'s layers
    has_softmax: bool = False  # whether one was added to a model of another make


def load(
    request: Request, source: Path, chosen: list[tuple[str, str]], console: Console
) -> Subject:
    """Load the model, find out what it is, and make the graph that is written."""
    from export import quantize, to_saved_model
    from vggkeras import layers, models
    from vggkeras.runtimes import keras as keras_module

    with console.status(f"loading {source}"):
        network, card = models.load_model(source)
    if not to_saved_model.is_vgg(network):
        from export import keras_export

        name = keras_export.applications_network(network)
        if name is None:
            return _other(request, source, network, card, chosen, console)
        pixels = request.input or "caffe"
        console.print(
            f"{source.name} is keras.applications' {name}, taken to expect images as {pixels} (--input): exported as the "
            "same network of vggkeras",
            soft_wrap=True,
        )
        network, card = keras_export.lean(network, pixels)
    elif request.input not in (None, "0-255"):
        raise InputError(
            f"--input {request.input}: {source} is a network of vggkeras, which takes 0-255: leave it out."
        )
    if to_saved_model.ends_in_scores(network):
        console.print(f"{source.name} ends in class scores: a soft-max is added", soft_wrap=True)
        to_saved_model.add_softmax(network)
    graph = to_saved_model.inference_model(network, request.form)
    quantize.check_finite(graph)
    mean = card.mean_rgb or layers.mean_rgb(network)
    card = replace(card, mean_rgb=mean, arch=card.arch or network.name)
    reference = keras_module.keras_predictor(network, card, source)
    reference = reference.features_form() if request.features else reference
    return Subject(source, graph, reference, card, True)


def _other(
    request: Request,
    source: Path,
    network: keras.Model,
    card: ModelCard,
    chosen: list[tuple[str, str]],
    console: Console,
) -> Subject:
    """Wrap a Keras classifier that vggkeras did not build, for Keras' own exporters."""
    import keras

    from export import keras_export, quantize
    from vggkeras.runtimes import keras as keras_module

    if request.form is not Form.CLASSIFIER:
        what = "fully convolutional form" if request.dense else "form that gives features"
        raise InputError(
            f"--{request.form}: {source} has no {what}: that is made of the layers flatten, fc1, fc2 and predictions of "
            f"vggkeras.build(), and {network.name!r} has {', '.join(layer.name for layer in network.layers[-3:])} at its "
            f"end; leave out --{request.form}."
        )
    if others := sorted({p for _, p in chosen} - {"float32"}):
        raise InputError(
            f"{' and '.join(others)}: {source} is not of vggkeras.build(), and Keras' own exporters write float32: leave "
            "out --precision."
        )
    keras_export.check_classifier(network)
    quantize.check_finite(network)
    pixels: Pixels = request.input or "0-255"
    scores = request.logits or keras_export.ends_in_scores(network)
    graph = keras_export.inference_model(network, pixels, scores)
    if request.logits:
        _check_scores(keras_export.inference_model(network, pixels, False))
    console.print(
        f"{source.name} is not of vggkeras.build(): written by Keras' own exporters; it is taken to expect images as "
        f"{pixels} (--input){', and to end in class scores: a soft-max is added (--logits)' if scores else ''}",
        soft_wrap=True,
    )
    card = replace(
        card,
        mean_rgb=card.mean_rgb or (0.0,) * graph.input_shape[-1],
        arch=card.arch or network.name,
        pixels=pixels,
        tolerance=_tolerance(network),
    )
    plain = keras.Model(graph.inputs, graph.output["probabilities"], name=network.name)
    reference = keras_module.keras_predictor(plain, card, source)
    return Subject(source, graph, replace(reference, make_form=None), card, False, scores)


def _tolerance(network: keras.Model) -> float:
    """Return the largest error that float32's rounding explains, relative to the largest probability.

    Two runtimes add up a layer's products in different orders, which differs by 2^-24 of the sum, and
    by some 16 times as much where large terms cancel; every layer passes on the difference of those
    before it. Networks of few layers keep the tolerance of all other files.
    """
    from export import keras_export

    weighted = sum(hasattr(layer, "kernel") for layer in keras_export.all_layers(network))
    return max(TOLERANCES["float32"] or 0.0, weighted * 2.0**-20)


def _check_scores(model: keras.Model) -> None:
    """Check that a model that is said to give class scores does not give probabilities already.

    Args:
        model: of `inference_model`, without a soft-max added.

    Raises:
        InputError (a ValueError): its answers to random images are probabilities.
    """
    images = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:]), np.uint8)
    answers = np.asarray(model(images, training=False)["probabilities"])
    if answers.min() >= 0 and np.abs(answers.sum(axis=1) - 1).max() <= 1e-3:
        raise InputError(
            f"The model {model.name!r} gives probabilities already: expected class scores; leave out --logits."
        )
