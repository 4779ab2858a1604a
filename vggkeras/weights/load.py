"""TODO"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from vggkeras import models
from vggkeras.configs import FC
from vggkeras.errors import InputError
from vggkeras.weights.identify import Source, open_source

FIRST_CONVOLUTIONS = 4  # of a shallower network are taken over, and its FC layers


# ---- into a network ----------------------------------------------------------------------------------------------------


def weighted(model: keras.Model) -> dict[str, Any]:
    return {layer.name: layer for layer in model.layers if layer.weights}


def fill(layer: Any, source: Source, name: str, *, in_place: bool = False) -> None:
    """A layer's weights from a source.

    Args:
        in_place: write TensorFlow's variables row by row, of a network that nobody has seen yet: a tensor that was read
            from one before would change too, and there must be one device.
    """
    if not in_place or keras.backend.backend() != "tensorflow":
        layer.set_weights(source.layers[name]())
        return
    import tensorflow as tf

    if any(isinstance(weight.value, tf.distribute.DistributedValues) for weight in layer.weights):
        layer.set_weights(source.layers[name]())
        return
    for number, rows, block in source.parts[name]():
        weight = layer.weights[number]
        if len(block) == weight.shape[0]:
            weight.assign(block)
            continue
        # variable[rows].assign() would do, but first copies the whole, and leaves a variable that is copied at each read.
        tf.raw_ops.InplaceUpdate(x=weight.value.value(), i=rows.astype(np.int32), v=block)
        if not np.array_equal(
            weight.value[int(rows[-1])], block[-1]
        ):  # its documentation does not promise it
            layer.set_weights(source.layers[name]())
            return


def init_from(
    model: keras.Model, source: Source | str | os.PathLike, class_names: Sequence[str]
) -> dict[str, str | None]:
    """Copy trained weights into a new network, layer by layer.

    - The same configuration: every layer.
    - A shallower one: its first four convolutions (with their batch normalisation) and its FC layers, as the paper did;
      the rest keeps the initialisation it has.
    - Where the classes are others: not the last layer, `predictions`.
    - Where the images are of another size, so that fc1 covers another map, or the source has no FC layers: none of these.

    The mean that `model` subtracts stays as it is. `explain` says in words what was not taken.

    Args:
        model: of `build()`.
        source: of `open_source()`, or what that takes.
        class_names: the new model's classes, in order.

    Returns:
        Layer name -> where its weights came from, or None where they stay; in the network's order.

    Raises:
        InputError (a ValueError): see `open_source`; a deeper or another kind of network; a layer whose shapes differ.
    """
    source = source if isinstance(source, Source) else open_source(source)
    theirs, ours = source.shapes, weighted(model)
    surplus = [name for name in theirs if name not in ours]
    if surplus:
        raise InputError(
            f"--init-from {source.name} is {source.network} with a layer {surplus[0]!r} that {model.name} has not: start "
            "from the same configuration or a shallower one, with batch normalisation in both or in neither."
        )
    convolutions = [name for name in theirs if "_conv" in name]
    taken = set(theirs)
    if len(convolutions) < sum("_conv" in name for name in ours) or source.batch_norm != any(
        "_bn" in n for n in ours
    ):
        if any("_bn" in name for name in ours) and not source.batch_norm:
            raise InputError(
                f"--init-from {source.name} is {source.network} without batch normalisation, which {model.name} has: start "
                "from a run with --batch-norm, or train without it."
            )
        first = convolutions[:FIRST_CONVOLUTIONS]
        taken = {*first, *(name.replace("conv", "bn") for name in first), *FC} & set(theirs)
    if list(source.card.class_names) != list(class_names):
        taken.discard("predictions")
    if "fc1" in theirs and "fc1" in ours and _other_map(theirs["fc1"], ours["fc1"], source, model):
        taken -= set(FC)
    copied: dict[str, str | None] = {}
    for name, layer in ours.items():
        if name not in taken:
            copied[name] = None
            continue
        mine = [tuple(v.shape) for v in layer.weights]
        if mine != theirs[name]:
            hint = (
                "the --fc-units differ"
                if name.startswith("fc")
                else "the --width or configuration differ"
            )
            raise InputError(
                f"--init-from {source.name}: layer {name} has shapes {theirs[name]} there and {mine} here ({hint}): give this "
                "network the other's sizes."
            )
        copied[name] = source.origin(name)
    for name in taken:
        fill(ours[name], source, name)
    return copied


def _map(shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int]:
    """The feature map (h, w, c) that an fc1 reads in a network for images of a shape."""
    h, w = shape[0] // 32, shape[1] // 32
    return h, w, kernel[0] // (h * w)


def _other_map(
    theirs: Sequence[tuple[int, ...]], layer: Any, source: Source, model: keras.Model
) -> bool:
    """Whether an fc1 is the same but for the size of the map it covers."""
    mine = [tuple(v.shape) for v in layer.weights]
    here, there = _map(model.input_shape[1:], mine[0]), _map(source.input_shape, theirs[0])
    return here[:2] != there[:2] and here[2] == there[2] and mine[1] == theirs[1]


def explain(copied: dict[str, str | None], source: Source, model: keras.Model) -> list[str]:
    """What `init_from` did not take and why, a sentence each."""
    ours = weighted(model)
    told = []
    fresh = [name for name, origin in copied.items() if origin is None]
    middle = [name for name in fresh if name not in FC]
    if middle:
        told.append(
            f"{len(middle)} layers start anew ({', '.join(middle[:3])}{' …' if len(middle) > 3 else ''}): {source.name} is a "
            f"shallower network, of which the first {FIRST_CONVOLUTIONS} convolutions are taken"
        )
    if "fc1" in fresh and "fc1" not in source.shapes:
        told.append(
            f"{', '.join(n for n in FC if n in fresh)} start anew: {source.name} has no FC layers"
        )
    elif "fc1" in fresh:
        there = _map(source.input_shape, source.shapes["fc1"][0])
        here = _map(model.input_shape[1:], ours["fc1"].weights[0].shape)
        told.append(
            f"fc1 starts anew: its kernel covers {' x '.join(map(str, there))} there and {' x '.join(map(str, here))} here; "
            "so do fc2 and predictions, which read it"
        )
    elif "predictions" in fresh:
        here = ours["predictions"].weights[1].shape[0]
        if source.classes is None:
            told.append(f"predictions starts anew: {source.name} has none")
        elif source.classes != here:
            told.append(f"predictions starts anew: {source.classes} classes there, {here} here")
        else:
            told.append(
                f"predictions starts anew: the {here} classes there have other names, or none"
            )
    return told


def load_weights(
    model: keras.Model, source: Source | str | os.PathLike, *, head: bool = True
) -> dict[str, str]:
    """Fill a network with a source's weights, all of them, so that it gives the source's own answers.

    Every tensor of the source is used exactly once and every weight of the model filled exactly once. The model's first
    layer then subtracts the source's mean RGB, and functions that it had traced (predict, evaluate, fit) are made anew.

    Args:
        model: of `build()`, of the same configuration and sizes as the source.
        source: of `open_source()`, or what that takes.
        head: False leaves `predictions` as it is, and the other FC layers too where the source has none.

    Returns:
        Layer name -> where its weights came from.

    Raises:
        InputError (a ValueError): see `open_source`; what is missing and what is left over, by name; a layer whose shapes
            differ; other class counts, or a source without FC layers, with head=True. The model is then as it was.
    """
    return _load(model, source if isinstance(source, Source) else open_source(source), head=head)


def _load(
    model: keras.Model, source: Source, *, head: bool = True, in_place: bool = False
) -> dict[str, str]:
    ours = weighted(model)
    left = () if head else tuple(n for n in FC if n == "predictions" or n not in source.shapes)
    wanted = [name for name in ours if name not in left]
    given = [name for name in source.shapes if name not in left]
    missing, unexpected = [n for n in wanted if n not in given], [n for n in given if n not in ours]
    if head and missing == [n for n in FC if n not in source.shapes] and missing and not unexpected:
        raise InputError(
            f"{source.name} has no {', '.join(missing)}: pass head=False to fill the other layers alone, and train these."
        )
    lrn = any(layer.name == "lrn" for layer in model.layers)
    if missing or unexpected or lrn != (source.arch == "A-LRN"):
        told = [
            f"{len(names)} {what}, first {', '.join(names[:3])}"
            for what, names in (
                ("layers of the model are not in it", missing),
                ("of its layers are not in the model", unexpected),
            )
            if names
        ] or ["one of them has local response normalisation"]
        raise InputError(
            f"{source.name} is {source.network}{' with batch normalisation' if source.batch_norm else ''} and the model "
            f"{model.name}: {'; '.join(told)}. Build the same configuration, or use vggkeras.pretrained(source)."
        )
    for name in wanted:
        mine = [tuple(v.shape) for v in ours[name].weights]
        if mine != source.shapes[name]:
            if name == "predictions" and mine[0][0] == source.shapes[name][0][0]:
                raise InputError(
                    f"{source.name} has {source.classes} classes and the model {mine[1][0]}: build it with "
                    f"classes={source.classes}, or pass head=False to keep its own last layer."
                )
            raise InputError(
                f"{source.name}: layer {name} has shapes {source.shapes[name]} there and {mine} in the model: build it with "
                f"input_shape={source.input_shape}, width={source.width:g}, fc_units={source.fc_units}."
            )
    if not any(layer.name == "mean_rgb" for layer in model.layers):
        raise InputError(
            f"load_weights expects a model of vggkeras.build(); {model.name!r} has no layer mean_rgb."
        )
    for name in wanted:
        fill(ours[name], source, name, in_place=in_place)
    model.get_layer("mean_rgb").offset = [-value for value in source.mean_rgb]
    # They hold the mean that they were traced with.
    model.predict_function = model.test_function = model.train_function = None
    return {name: source.origin(name) for name in wanted}


def pretrained(source: Source | str | os.PathLike) -> keras.Model:
    """The network that weights are of, filled with them: it takes images 0-255, RGB, and gives the source's own answers.

    Args:
        source: of `open_source()`, or what that takes; with its FC layers.

    Raises:
        InputError (a ValueError): see `open_source`; a source without FC layers.
    """
    source = source if isinstance(source, Source) else open_source(source)
    if source.fc_units is None or source.classes is None:
        lacks = ", ".join(name for name in FC if name not in source.shapes)
        raise InputError(
            f"{source.name} has no {lacks}, so it classifies nothing: start a training from it with --init-from "
            f"{source.name}, or give a file with the FC layers."
        )
    model = models.build(
        source.arch,
        source.input_shape,
        source.classes,
        batch_norm=source.batch_norm,
        width=source.width,
        fc_units=source.fc_units,
        mean_rgb=source.mean_rgb,
        init="zeros",
    )
    _load(model, source, in_place=True)
    return model
