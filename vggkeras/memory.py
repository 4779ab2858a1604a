"""How much memory a network takes at least, held against what this machine has."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vggkeras.configs import Layer
from vggkeras.errors import InputError

VALUE_BYTES = 4  # of float32
TRAINING_COPIES = 3  # weights, their gradients, and the momentum


def activation_bytes(layers: Iterable[Layer], value_bytes: int = VALUE_BYTES) -> int:
    """Return the bytes of all layers' outputs for one image.

    A forward pass that keeps them for the backward pass needs as many.
    """
    # Flatten's output is the pool's, in another shape.
    return sum(
        value_bytes * math.prod(layer.output_shape) for layer in layers if layer.kind != "flatten"
    )


def needed_bytes(
    layers: Iterable[Layer], copies: int = 1, images: int = 0, value_bytes: int = VALUE_BYTES
) -> int:
    """Return the least bytes that a network takes, whatever else there is.

    Args:
        layers: its plan.
        copies: of its weights, float32.
        images: whose activations are held at once.
        value_bytes: of an activation.
    """
    layers = list(layers)
    weights = VALUE_BYTES * sum(layer.parameters for layer in layers)
    return copies * weights + images * activation_bytes(layers, value_bytes)


def check(needed: int, what: str) -> None:
    """Check that memory suffices, before any of it is taken.

    Args:
        needed: bytes, from `needed_bytes`.
        what: takes them, in words.

    Raises:
        InputError (a ValueError): it does not; the message says how much there is.
    """
    import psutil  # here, as those who only read files can do without it

    available = psutil.virtual_memory().available + psutil.swap_memory().free
    if needed > available:
        raise InputError(
            f"{what} needs {amount(needed)} of memory or more, and this machine has "
            f"{amount(available)} available: give a smaller image size, width, fc_units, number of "
            "classes or batch."
        )


def amount(number: int) -> str:
    """Return a number of bytes in words, such as 3.2 TB."""
    if number >= 10**18:
        return "over a million TB"
    units = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"))
    unit, name = next((u for u in units if number >= u[0]), units[-1])
    return f"{number / unit:,.1f} {name}"
