"""Small files that claim or cost much, and what is no file: refused by name, or read in bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded, photo, write_photos
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_gallery import costly_images, no_files, png, refused_images
from PIL import Image

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.data import augment, decoding, resampling, statistics
from vggkeras.data.reading import readable_images
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation.protocols import prepared
from vggkeras.features.extraction import load_images

posix = pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")


@pytest.mark.parametrize("name", refused_images())
def test_a_bomb_is_refused_by_name_before_a_pixel_is_decoded(name):
    with pytest.raises(InputError, match=f"^{name} cannot be read") as refused:
        decoding.decode(refused_images()[name], name)
    reason = str(refused.value)
    if name in ("square.png", "clear.png", "progressive.jpg"):
        assert "would take" in reason
        assert f"MB of memory, of at most {decoding.MAX_BYTES / 1e6:.0f}" in reason
    elif name == "scans.jpg":
        assert "scans" in reason


def split_of(*images: bytes) -> Split:
    return Split("x", len(images), np.zeros(len(images), np.int64), list(images))


def test_a_long_image_can_be_skipped_where_it_is_shown_whole():
    """1 x 10,000 px are 64 x 640,000 once rescaled: too long to hold, not to crop."""
    ordinary, line = (encoded(Image.fromarray(photo(1)), "PNG"), png(1, 10_000))
    split = split_of(ordinary, line)
    message = r"x\[1\].* \(1 of the 2 of x\).*1 x 10,000 px rescaled .* 64 px are 64 x 640,000"
    with pytest.raises(InputError, match=message):
        list(readable_images({"x": split}, lambda image: augment.rescale(image, 64), "x"))
    skipped: list[str] = []
    crops = list(
        readable_images({"x": split}, lambda i: augment.center_crop(i, 64, (64, 64)), "x", skipped)
    )
    assert skipped == []
    assert [crop.image.shape for crop in crops] == [(64, 64, 3)] * 2


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resized=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    where=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 99),
)
@example(size=(10, 1), resized=(2560, 256), where=(0.5, 0.5, 0.1, 0.9), seed=0)
@example(size=(7, 300), resized=(7, 300), where=(0, 0, 1, 1), seed=0)
def test_a_window_has_the_bits_of_the_whole(size, resized, where, seed):
    """Pillow resizes the whole, a pass after the other: it chooses itself which goes first."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))
    height, width = (1 + int(u * (side - 1)) for u, side in zip(where, resized, strict=False))
    top = int(where[2] * (resized[0] - height))
    left = int(where[3] * (resized[1] - width))
    whole = image.resize((resized[1], size[0]), Image.Resampling.BILINEAR)
    whole = whole.resize((resized[1], resized[0]), Image.Resampling.BILINEAR)
    window = resampling.window(
        image, (size[0], resized[0], top, height), (size[1], resized[1], left, width)
    )
    expected = np.asarray(whole)[top : top + height, left : left + width]
    np.testing.assert_array_equal(window, expected)


def test_crops_of_a_long_image_are_those_of_the_whole(monkeypatch):
    image = Image.fromarray(photo(3, 40, 900))
    whole = augment.rescale(image, 96)
    expected = list(augment.grid_crops(whole, (64, 80), 5))
    monkeypatch.setattr(augment, "LONG_PIXELS", 0)
    rescaled = augment.Rescaled(image, 96)
    assert rescaled.is_long
    for crop, other in zip(rescaled.crops((64, 80), 5), expected, strict=True):
        np.testing.assert_array_equal(crop, other)


def test_photographs_are_rescaled_whole_at_every_scale():
    for size in ((500, 375), (4_000, 3_000), (1_000, 8_000)):
        for scale in (64, 256, 512, 8_192):
            assert not augment.Rescaled(Image.new("RGB", size), scale).is_long


def test_statistics_have_the_bits_of_all_pixels_at_once(monkeypatch):
    image = Image.fromarray(photo(5, 211, 97))
    rgb = np.asarray(image).reshape(-1, 3).astype(np.float64)
    for band in (1 << 18, 1_000, 50):  # all at once; some rows; a part of a row
        monkeypatch.setattr(decoding, "BAND", band)
        pixels = statistics._pixels(image)
        np.testing.assert_array_equal(pixels.mean, rgb.mean(axis=0))
        np.testing.assert_array_equal(pixels.products, rgb.T @ rgb / len(rgb))


def test_bands_change_no_pixel(monkeypatch):
    image = np.dstack([photo(2), photo(3)[..., 0]])
    data = encoded(Image.fromarray(image), "PNG")
    expected = decoding.decode(data)
    monkeypatch.setattr(decoding, "BAND", 30)
    np.testing.assert_array_equal(decoding.decode(data), expected)


@posix
def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path, command, run):
    for name in ("cat", "dog"):
        write_photos(tmp_path / "set" / name, 20)
    paths = no_files(tmp_path / "set" / "cat")
    with pytest.raises(InputError, match=r"cat/.*\.jpg \(and \d more\) is no JPEG"):
        vggkeras.load_data(str(tmp_path / "set"))
    data = vggkeras.load_data(str(tmp_path / "set"), skip_unreadable=True)
    assert sorted(data.skipped) == sorted(map(str, paths))
    assert sum(split.count for split in data.splits.values()) == 40
    flat = tmp_path / "flat"
    write_photos(flat, 2)
    os.mkfifo(flat / "pipe.jpg")
    (split,) = load_images(str(flat)).splits.values()
    skipped: list[str] = []
    assert len(list(readable_images({"x": split}, np.asarray, "x", skipped))) == 2
    assert skipped == [str((flat / "pipe.jpg").resolve())]
    for path in paths:
        with pytest.raises(InputError, match="No image at"):
            prepared(path, np.asarray)
    code, _, err = command(cli, "predict", paths[0], "--model", run.path)
    assert (code, err.count("\n")) == (2, 1)


MEASURE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from vggkeras.data import augment, decoding, statistics
from vggkeras.errors import InputError

def prepare(image):
    statistics._pixels(image)
    return [list(augment.Rescaled(image, q).crops((224, 224), 5)) for q in (256, 384)]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for path in sorted(Path(sys.argv[2]).iterdir()):
    if os.fork():  # each image in a process of its own
        os.wait()
        continue
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    rest, start = resident(), time.process_time()
    try:
        decoding.decoded(path, path.name, prepare, exif=True)
    except InputError as error:
        print("refused:", error, file=sys.stderr)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    taken = int(peak.split()[1]) * 1024 - rest
    print(path.name, taken, f"{time.process_time() - start:.2f}", flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_image_takes_600_mb(tmp_path):
    for kind, images in (("refused", refused_images()), ("costly", costly_images())):
        for name, data in images.items():
            (tmp_path / f"{kind}-{name}").write_bytes(data)
    here = str(Path(vggkeras.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, here, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    taken = {name: int(taken) for name, taken, _ in map(str.split, run.stdout.splitlines())}
    print(run.stdout)
    assert len(taken) == len(list(tmp_path.iterdir()))
    assert run.stderr.count("refused:") == len(refused_images())
    assert max(taken.values()) < 600e6, run.stdout
