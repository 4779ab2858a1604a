"""A state dict that the tests of weights share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    """VGG-11's tensors as torchvision names them, narrow, for 64 px."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    indices, filters = (0, 3, 6, 8, 11, 13, 16, 18), (8, 16, 32, 32, 64, 64, 64, 64)
    for index, outputs in zip(indices, filters, strict=True):
        shapes[f"features.{index}"] = (outputs, channels, 3, 3)
        channels = outputs
    shapes |= {"classifier.0": (24, 64 * 4), "classifier.3": (24, 24), "classifier.6": (10, 24)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(0, 0.2, shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.2, shape[0]).astype(np.float32)
    return tensors
