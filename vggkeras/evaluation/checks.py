"""Check that models suit each other, and the data that they are tested on."""

from __future__ import annotations

from collections.abc import Sequence

from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor, check_probabilities


def check_classes(predictor: Predictor, class_names: Sequence[str]) -> None:
    """Raise InputError when a model has no classes, or others than the data."""
    check_probabilities(predictor)
    check_names(predictor, class_names)


def check_names(predictor: Predictor, class_names: Sequence[str]) -> None:
    """Raise InputError when a model has other classes than the data."""
    if len(class_names) != len(predictor.class_names):
        raise InputError(
            f"{predictor.path} has {len(predictor.class_names)} classes and the data "
            f"{len(class_names)}: give the data it was trained for."
        )
    if not predictor.card.class_names:
        return
    for i, (name, expected) in enumerate(zip(predictor.class_names, class_names, strict=True)):
        if name != expected:
            raise InputError(
                f"{predictor.path} and the data name class {i} differently, {name!r} and "
                f"{expected!r}: give the data it was trained for."
            )


def check_channels(predictor: Predictor) -> None:
    """Raise InputError when a model takes neither RGB nor gray images."""
    channels = predictor.input_shape[2]
    if channels not in (1, 3):
        raise InputError(
            f"{predictor.path} takes images of {channels} channels, and image files have 3 (or 1, "
            "if gray): give a model of 3 or 1."
        )


def check_fusible(predictors: Sequence[Predictor], purpose: str = "fused") -> None:
    """Raise InputError when models do not have the same classes in the same order."""
    first, *others = predictors
    for other in others:
        if other.class_names != first.class_names:
            raise InputError(
                f"{first.path} and {other.path} cannot be {purpose}: expected the same classes in "
                f"the same order, received {len(first.class_names)} ({_first_names(first)}) and "
                f"{len(other.class_names)} ({_first_names(other)})."
            )


def _first_names(predictor: Predictor) -> str:
    names = predictor.class_names
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
