"""Weights from elsewhere into a network of ours: pre-initialisation from a trained, shallower one (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras

from vggkeras import models
from vggkeras.errors import InputError

FIRST_CONVOLUTIONS = 4  # of a shallower network are taken over, and its FC layers


def trained_file(path: Path | str) -> Path:
    """The .keras file of a run's folder, or the file itself. Raises InputError where there is none."""
    file = Path(path) / "model.keras" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"--init-from {path}: expected a run's folder with model.keras in it, or a .keras file; there is none."
        )
    return file


def init_from(model: keras.Model, path: Path | str, class_names: Sequence[str]) -> dict[str, str | None]:
    """Copy a trained network's weights into a new one, layer by layer of the same name.

    - The same configuration: every layer.
    - A shallower one: its first four convolutions (with their batch normalisation) and its FC layers, as the paper did;
      the rest keeps the initialisation it has.
    - Where the classes are others: not the last layer, `predictions`.

    Args:
        model: of `build()`.
        path: a run's folder or a .keras file.
        class_names: the new model's classes, in order.

    Returns:
        Layer name -> where its weights came from, or None where they stay; in the network's order.

    Raises:
        InputError (a ValueError): no such file; a deeper or another kind of network; a layer whose shapes differ.
    """
    source, about = models.load_model(trained_file(path))
    theirs = {layer.name: layer for layer in source.layers if layer.weights}
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    surplus = [name for name in theirs if name not in ours]
    if surplus:
        raise InputError(
            f"--init-from {path} is {source.name} with a layer {surplus[0]!r} that {model.name} has not: start from the "
            "same configuration or a shallower one, with batch normalisation in both or in neither."
        )
    taken = set(theirs)
    if len(theirs) < len(ours):
        missing_norms = {name.replace("bn", "conv") for name in ours if "_bn" in name} & set(theirs)
        if missing_norms and not any("_bn" in name for name in theirs):
            raise InputError(
                f"--init-from {path} is {source.name} without batch normalisation, which {model.name} has: start from a "
                "run with --batch-norm, or train without it."
            )
        convolutions = [name for name in theirs if "_conv" in name][:FIRST_CONVOLUTIONS]
        norms = [name.replace("conv", "bn") for name in convolutions]
        taken = {*convolutions, *norms, "fc1", "fc2", "predictions"} & set(theirs)
    if list(about.get("class_names") or ()) != list(class_names):
        taken.discard("predictions")
    copied: dict[str, str | None] = {}
    for name, layer in ours.items():
        if name not in taken:
            copied[name] = None
            continue
        mine = [tuple(v.shape) for v in layer.weights]
        given = [tuple(v.shape) for v in theirs[name].weights]
        if mine != given:
            hint = (
                "the image size or --fc-units differ"
                if name.startswith("fc")
                else "the --width or configuration differ"
            )
            raise InputError(
                f"--init-from {path}: layer {name} has shapes {given} there and {mine} here ({hint}): give this network "
                "the other's sizes."
            )
        copied[name] = f"{source.name} {name}"
    for name in taken:
        ours[name].set_weights(theirs[name].get_weights())
    return copied
