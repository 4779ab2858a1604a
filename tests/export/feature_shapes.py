"""What the tests of exported features share: names, sizes and images."""

from __future__ import annotations

import numpy as np

# A classifier's file -> that of its features.
PLAIN = {
    "model.onnx": "model.features.onnx",
    "model.tflite": "model.features.tflite",
    "saved_model": "saved_model.features",
}
NAMES = tuple(PLAIN.values())
UNITS, SMALLEST = 24, (64, 96)
SIZES = (SMALLEST, (65, 96), (101, 163), (64, 230))


def shown(size, count=3) -> np.ndarray:
    return np.random.default_rng(sum(size)).integers(0, 256, (count, *size, 3), dtype=np.uint8)
