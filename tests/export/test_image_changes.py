"""Two independent ways to one rescaled image."""

from __future__ import annotations

import numpy as np
import pytest

from export import image_changes


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("antialias", [False, True])
def test_filters_are_those_of_tensorflow_and_pillow(filter, antialias):
    import tensorflow as tf

    images = np.random.default_rng(0).uniform(0, 255, (2, 23, 31, 3)).astype(np.float32)
    size = (11, 17)
    expected = tf.image.resize(images, size, filter, antialias=antialias).numpy()
    name = f"{filter} {'with' if antialias else 'without'} antialiasing"
    name = filter if filter == "nearest" else name
    # TensorFlow reads its cubic kernel from a table of 1,024 values.
    atol = 0.3 if name == "bicubic without antialiasing" else 1e-2
    np.testing.assert_allclose(image_changes.rescaled(images, size, name), expected, atol=atol)


def test_box_and_lanczos_are_pillows():
    from PIL import Image

    image = np.random.default_rng(0).uniform(0, 255, (23, 31)).astype(np.float32)
    for name, kind in (("box", Image.Resampling.BOX), ("lanczos", Image.Resampling.LANCZOS)):
        expected = np.asarray(Image.fromarray(image).resize((17, 11), kind))
        result = image_changes.rescaled(image[None, :, :, None], (11, 17), name)[0, :, :, 0]
        np.testing.assert_allclose(result, expected, atol=1e-2)
