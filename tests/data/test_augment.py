"""Crops: the same pixels in every way of cutting them, and the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import KINDS, encoded, photo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkeras.data import augment, decoding
from vggkeras.errors import InputError


def rescaled_then_cropped(
    data: bytes, crop: int, scale: tuple[int, int], uniform: np.ndarray
) -> np.ndarray:
    """Decode and rescale the whole image, then cut and mirror: uint8 [crop, crop, 3]."""
    low, high = scale
    whole = augment.rescale(decoding.decode(data), low + int(uniform[0] * (high - low + 1)))
    top, left = (
        int(u * np.float32(side - crop + 1))
        for u, side in zip(uniform[1:3], whole.shape, strict=False)
    )
    return whole[top : top + crop, left : left + crop][:, :: -1 if uniform[3] < 0.5 else 1]


def assert_same_pixels(one: np.ndarray, other: np.ndarray) -> None:
    """Compare within rounding.

    Pillow takes the box of the window in float32: a level that lies between two may be rounded to
    the other one, in each of the filter's two passes. A box off by a tenth of a pixel differs more.
    """
    difference = np.abs(one.astype(int) - other)
    assert difference.max() <= 2
    assert difference.mean() < 0.4


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 400),
    width=st.integers(20, 400),
    # Color at full, half and quarter resolution.
    kind=st.sampled_from([("JPEG", 0), ("JPEG", 1), ("JPEG", 2), ("PNG", 0)]),
    low=st.integers(48, 160),
    extra=st.integers(0, 100),
    seed=st.integers(0, 2**31 - 1),
)
# 350 * 103 / 20 is 1,802.5, which both must round to the same side.
@example(height=20, width=350, kind=("JPEG", 0), low=100, extra=22, seed=1)
def test_one_pass_equals_rescale_then_crop(height, width, kind, low, extra, seed):
    """Enlarged and reduced, squares and panoramas."""
    import tensorflow as tf

    noisy = photo(seed % 1000, height, width).astype(int) + np.random.default_rng(seed).integers(
        -20, 20, (height, width, 1)
    )
    options = {"quality": 85, "subsampling": kind[1]} if kind[0] == "JPEG" else {}
    data = encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), kind[0], **options)
    uniform, _ = augment.draws(seed, 1, 2)
    crop = augment.random_crop(tf.constant(data), 48, (low, low + extra), uniform, True).numpy()
    assert_same_pixels(crop, rescaled_then_cropped(data, 48, (low, low + extra), uniform.numpy()))


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-23])
@pytest.mark.parametrize("shape", [(375, 500), (60, 700), (256, 256), (40, 31)])
def test_crops_at_the_edges(shape, u):
    import tensorflow as tf

    data = encoded(Image.fromarray(photo(3, *shape)), "JPEG", quality=90)
    uniform = np.array([u, u, u, 0.9], np.float32)
    for scale in ((224, 224), (256, 512)):
        crop = augment.random_crop(
            tf.constant(data), 224, scale, tf.constant(uniform), True
        ).numpy()
        assert_same_pixels(crop, rescaled_then_cropped(data, 224, scale, uniform))


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "grey jpeg", "cmyk jpeg", "png"])
def test_every_kind_is_cropped_alike_eagerly_in_a_pipeline_and_by_pillow(kind):
    import tensorflow as tf

    data = KINDS[kind][0]
    uniform, _ = augment.draws(0, 0, 5)

    def crop(encoded_):
        return augment.random_crop(encoded_, 33, (40, 40), augment.draws(0, 0, 5)[0], True)

    eager = crop(tf.constant(data)).numpy()
    (inside,) = tf.data.Dataset.from_tensors(data).map(crop).as_numpy_iterator()
    np.testing.assert_array_equal(inside, eager)
    by_hand = rescaled_then_cropped(data, 33, (40, 40), uniform.numpy())
    # CMYK: TensorFlow turns it into RGB with other roundings.
    assert np.abs(by_hand.astype(int) - eager).max() <= (2 if "cmyk" in kind else 0)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "TIFF", "JPEG2000", "GIF"])
def test_files_of_every_format_are_cropped_whole(kind):
    """Files of some formats end in zeros."""
    import tensorflow as tf

    picture = Image.fromarray(photo(6, 47, 51))
    data = next(
        content
        for content in (encoded(picture.crop((0, 0, 51, 40 + i)), kind) for i in range(8))
        if kind != "WEBP" or content.endswith(b"\0")
    )
    uniform, _ = augment.draws(0, 0, 5)

    def crop(encoded_):
        return augment.random_crop(encoded_, 33, (40, 40), augment.draws(0, 0, 5)[0], True)

    (inside,) = tf.data.Dataset.from_tensors(data).map(crop).as_numpy_iterator()
    np.testing.assert_array_equal(inside, crop(tf.constant(data)).numpy())
    assert_same_pixels(inside, rescaled_then_cropped(data, 33, (40, 40), uniform.numpy()))


def test_center_crop_is_the_middle():
    image = photo(4, 60, 40)
    np.testing.assert_array_equal(augment.center_crop(image, 40, (32, 32)), image[14:46, 4:36])
    with pytest.raises(InputError, match="does not fit"):
        augment.center_crop(image, 30, (32, 32))


def test_random_crops_reach_everywhere():
    import tensorflow as tf

    image = tf.constant(photo(5, 36, 34))
    crops = [
        augment.crop_of_rescaled(image, 32, augment.draws(0, 0, i)[0], True).numpy()
        for i in range(200)
    ]
    expected = {
        (top, left, flip): image.numpy()[top : top + 32, left : left + 32][
            :, :: -1 if flip else 1
        ].tobytes()
        for top in range(5)
        for left in range(3)
        for flip in (False, True)
    }
    assert {crop.tobytes() for crop in crops} == set(expected.values())


def test_draws_are_a_pure_function_of_seed_epoch_and_image():
    import tensorflow as tf

    keys = [
        (seed, epoch, index) for seed in (0, 7) for epoch in (0, 1, 73) for index in (0, 1, 2, 9999)
    ]
    eager = {key: [x.numpy() for x in augment.draws(*key)] for key in keys}
    for seed in (0, 7):  # in another order, in a pipeline
        of_seed = [key for key in reversed(keys) if key[0] == seed]
        data = tf.data.Dataset.from_tensor_slices(np.array(of_seed)).map(
            lambda k, s=seed: augment.draws(s, k[1], k[2])
        )
        for key, drawn in zip(of_seed, data.as_numpy_iterator(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(drawn, eager[key], strict=True))
    assert len({np.concatenate(drawn).tobytes() for drawn in eager.values()}) == len(keys)


def test_draws_are_uniform_and_normal():
    import tensorflow as tf
    from scipy import stats

    data = tf.data.Dataset.range(4000).map(lambda i: augment.draws(3, 2, i)).batch(4000)
    uniform, normal = next(data.as_numpy_iterator())
    values = np.hstack([uniform, normal])
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in uniform.T)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in normal.T)
    assert np.abs(np.corrcoef(values.T) - np.eye(7)).max() < 0.07  # five standard errors


def test_the_color_shift_follows_the_principal_components():
    """Against the formula read aloud: sum p_i alpha_i lambda_i, on pixels in 0-1."""
    import tensorflow as tf

    pixels = np.random.default_rng(0).multivariate_normal(
        [120, 110, 100], [[4000, 3500, 3000], [3500, 4200, 3600], [3000, 3600, 4500]], 500
    )
    covariance = np.cov(pixels.T)
    basis = augment.color_basis(covariance)
    values, vectors = np.linalg.eig(np.cov((pixels / 255).T))
    normal = np.array([0.3, -1.2, 2.0], np.float32)
    image = photo(1)
    shifted = augment.color_shift(tf.constant(image), basis, tf.constant(normal)).numpy()
    (inside,) = (
        tf.data.Dataset.from_tensors(image)
        .map(lambda x: augment.color_shift(x, basis, normal))
        .as_numpy_iterator()
    )
    np.testing.assert_array_equal(inside, shifted)
    shift = shifted - image
    np.testing.assert_allclose(
        shift, np.broadcast_to(shift[0, 0], shift.shape), atol=1e-4
    )  # one for all pixels
    # Along each component, alpha * lambda; the sign and the order of components are arbitrary.
    along = {
        round(float(v), 6): float(abs(vectors[:, i] @ shift[0, 0] / 255))
        for i, v in enumerate(values)
    }
    expected = {
        round(float(v), 6): 0.1 * abs(a) * v for v, a in zip(sorted(values), normal, strict=True)
    }
    assert along == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert 3 < 0.1 * 255 * max(values) < 9  # levels, one standard deviation
