"""Large JPEGs decoded reduced: which, how close to the whole ones, and that nothing is moved."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from helpers import encoded, history, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_augment import assert_same_pixels
from textures import jpeg, spectrum, textures

from vggkeras.__main__ import cli
from vggkeras.data import augment, decoding, statistics, windows
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.training.train import train

ORIENTATIONS = range(1, 9)


def crop(data: bytes, side: int, uniform=(0.0, 0.4, 0.7, 0.9), fast: bool = True, size: int = 0):
    """Cut a training crop of `size` px, or nearly all, at scale `side`."""
    import tensorflow as tf

    u = tf.constant(uniform, tf.float32)
    args = (size or side - 3, (side, side), u, True, True, fast)
    return augment.random_crop(tf.constant(data), *args).numpy()


def rescaled(data: bytes, side: int, fast: bool = True) -> np.ndarray:
    """Rescale all of an image as Pillow does for test crops and cached training images."""
    asked = side if fast else None
    return decoding.decoded(data, "x", lambda p: augment.rescale(p, side), exif=True, side=asked)


@settings(deadline=None)  # the first call loads TensorFlow
@given(st.integers(1, 70_000), st.integers(1, 70_000), st.integers(1, 8192))
def test_a_reduction_is_the_largest_that_keeps_the_gap(height, width, side):
    factor = decoding.reduction((height, width), side)
    keeps = [f for f in (2, 4, 8) if min(height, width) >= 2.9 * f * side - 1e-6]
    assert factor == max(keeps, default=1)
    assert factor == decoding.reduction((width, height), side)
    assert factor == decoding.FACTORS[windows._branch(np.array([height, width], np.int32), side)]


def test_reductions_of_phone_photographs():
    """12 megapixels at the paper's scales, and at 64 px; small photographs stay whole."""
    sides = (73, 146, 256, 384, 512, 518)
    assert [decoding.reduction((3024, 4032), side) for side in sides] == [8, 4, 4, 2, 2, 2]
    assert [decoding.reduction((3000, 4000), side) for side in sides] == [8, 4, 4, 2, 2, 1]
    assert decoding.reduction((375, 500), 64) == 2
    assert decoding.reduction((375, 500), 256) == 1


def test_textures_stay_within_two_levels_on_average_and_eight_for_999_in_a_thousand():
    """At the smallest gap, on textures that are worse than photographs.

    The largest differences are where a pattern is nearly as fine as the pixels of the reduced
    image: of black and white noise, of zone plates, of edges in color.
    """
    side, differences = 48, {}
    for factor in (2, 4, 8):
        height = -(-decoding.GAP_TENTHS * factor * side // 10)
        for i, (name, pixels) in enumerate(textures(height, height * 9 // 8)):
            data = jpeg(pixels, i % 8 + 1)
            assert decoding.reduction(pixels.shape[:2], side) == factor
            both = [crop(data, side, fast=fast).astype(int) for fast in (True, False)]
            differences[name, factor] = np.abs(both[0] - both[1])
    worst = max(differences.values(), key=np.mean)
    together = np.concatenate([each.ravel() for each in differences.values()])
    assert together.mean() <= 2
    assert (together <= 8).mean() >= 0.999
    # No texture hides behind the others.
    assert worst.mean() <= 2.5
    assert min((each <= 8).mean() for each in differences.values()) > 0.99
    photographs = [each for (name, _), each in differences.items() if "photograph" in name]
    assert max(each.mean() for each in photographs) < 1
    assert max(each.max() for each in photographs) <= 8


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_nothing_is_moved(orientation, factor):
    """Of waves as steep as these, a tenth of a pixel changes pixels by seven levels.

    No side is a whole number of reduced pixels, so the last of them reach beyond the image, which
    is the first row or column of an image that is stored the other way round. There the encoder
    repeats the outermost pixels.
    """
    side, short, long = 40, 120 * factor + 1, 151 * factor + factor - 1
    y, x = np.mgrid[:long, :short] / short * 2 * np.pi
    waves = [np.sin(4 * x), np.sin(4 * y), np.cos(3 * x + 3 * y)]
    data = jpeg((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8), orientation, 95, 0)
    assert decoding.reduction((short, long), side) == factor
    for uniform in ((0.0, 0.0, 0.0, 0.9), (0.0, 0.999, 0.999, 0.9), (0.0, 0.5, 0.3, 0.2)):
        fast, full = (crop(data, side, uniform, fast, 32).astype(int) for fast in (True, False))
        assert np.abs(fast - full)[1:-1, 1:-1].max() <= 2
        assert np.abs(fast - full).max() <= 6
    fast, full = (rescaled(data, side, fast).astype(int) for fast in (True, False))
    assert fast.shape == full.shape
    assert np.abs(fast - full)[1:-1, 1:-1].max() <= 2
    assert np.abs(fast - full).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "subsampling"), [*((o, 2) for o in ORIENTATIONS), (6, 0), (3, 1), (8, "4:1:1")]
)
def test_the_window_of_a_reduced_image_is_the_reduced_image_cut(orientation, subsampling):
    """In TensorFlow and in Pillow, whatever the resolution of color, also at the edges."""
    pixels = spectrum(601, 743, 0.8).clip(0, 255).astype(np.uint8)
    data = jpeg(pixels, orientation, 90, subsampling)
    for side in (50, 24):
        whole = rescaled(data, side)
        for u in (0.0, 0.55, 1 - 2**-23):
            part = crop(data, side, (0.0, u, u, 0.9), size=20)
            top, left = (int(np.float32(u) * np.float32(n - 19)) for n in whole.shape[:2])
            assert_same_pixels(part, whole[top : top + 20, left : left + 20])


@pytest.mark.parametrize("kind", ["progressive", "gray", "CMYK"])
def test_other_jpegs_are_reduced_too(kind):
    image = Image.fromarray(spectrum(300, 320, 1.1).clip(0, 255).astype(np.uint8))
    image = image.convert({"gray": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
    data = encoded(image, "JPEG", progressive=kind == "progressive")
    assert decoding.decoded(data, "x", lambda p: p.size, exif=True, side=24) == (80, 75)
    for read in (crop, rescaled):
        fast, full = (read(data, 24, fast=fast).astype(int) for fast in (True, False))
        assert 0 < np.abs(fast - full).mean() < 1.5


def test_small_jpegs_and_other_formats_are_decoded_whole():
    pixels = spectrum(300, 320, 0.5).clip(0, 255).astype(np.uint8)
    for data, side in ((jpeg(pixels), 52), (encoded(Image.fromarray(pixels), "PNG"), 24)):
        for read in (crop, rescaled):
            np.testing.assert_array_equal(read(data, side), read(data, side, fast=False))


def test_the_mean_of_a_reduced_image_is_its_mean():
    """Up to rounding; the covariance is that of averages of squares of pixels."""
    pixels = (spectrum(744, 800, 1.1) * 0.7 + 30).clip(0, 255).astype(np.uint8)
    data = jpeg(pixels, 6, subsampling=0)
    split = Split("x", 1, np.zeros(1, np.int64), [data], exif=True)
    ((_, fast),), ((_, full),) = (list(statistics.read_all(split, fast=f)) for f in (True, False))
    assert fast.smallest_side == full.smallest_side == 744
    np.testing.assert_allclose(fast.mean, full.mean, atol=0.1)
    averages = statistics._pixels(decoding.decoded(data, "x", lambda p: p.reduce(2), exif=True))
    (_, one), (_, other) = (statistics.rgb_statistics([each]) for each in (fast, averages))
    np.testing.assert_allclose(one, other, rtol=0.01)


def test_prediction_decodes_reduced_only_where_asked(exports, tmp_path, command):
    """At the model's scale of 36 px, the photograph is reduced by 4."""
    pixels = spectrum(500, 600, 1.1).clip(0, 255).astype(np.uint8)
    (tmp_path / "photo.jpg").write_bytes(jpeg(pixels, 6))
    answers = []
    for flags in ((), ("--no-fast-decode",), ("--fast-decode",)):
        arguments = (tmp_path / "photo.jpg", "--model", exports / "model.onnx", "--json", *flags)
        code, out, err = command(cli, "predict", *arguments)
        assert code == 0, err
        answers.append({c["class"]: c["probability"] for c in json.loads(out)["classes"]})
    assert answers[0] == answers[1] != answers[2]
    assert answers[2] == pytest.approx(answers[0], abs=0.2)


@pytest.mark.full
@pytest.mark.integration
def test_a_run_of_before_goes_on_with_whole_images(tmp_path):
    """Version 0.2 recorded no fast decoding, and had none; a new run keeps what it began with."""
    data = tmp_path / "set"
    for i in range(24):
        file = data / ("train" if i < 16 else "val") / ("cat", "dog")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(spectrum(260, 240, 1.0), 30 * i, axis=i % 2) + 20 * (i % 2)
        file.write_bytes(jpeg(pixels.clip(0, 255).astype(np.uint8), i % 8 + 1))
    recipe = {"data": str(data), "batch_norm": False}
    whole, fast = (
        train(tiny(tmp_path / str(choice), fast_decode=choice, **recipe))
        for choice in (False, True)
    )
    assert history(whole.path) != history(fast.path)

    class Stop(Exception):
        pass

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Stop

    with pytest.raises(Stop):
        train(tiny(tmp_path / "cut", fast_decode=False, **recipe), callbacks=[Cut()])
    about = json.loads((tmp_path / "cut" / "run.json").read_text())
    del about["recipe"]["fast_decode"]
    (tmp_path / "cut" / "run.json").write_text(json.dumps(about))
    after = train(tiny(tmp_path / "cut", **recipe), resume=True)
    assert after.record.card.recipe.fast_decode is False
    assert history(after.path) == history(whole.path)
    with pytest.raises(InputError, match="fast_decode was True and is False"):
        train(tiny(fast.path, fast_decode=False, **recipe), resume=True)
