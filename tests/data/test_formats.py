"""Every format and mode that Pillow writes is read as plain Pillow reads it, or named."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded, photo, write_photos
from image_gallery import every_image
from PIL import Image, ImageOps

import vggkeras
from vggkeras.data import decoding, formats
from vggkeras.data.reading import unread
from vggkeras.errors import InputError

FLOATS = {"F.tif", "F.tiff"}
# Other suffixes of formats that are read, for which there are clearer ones.
ALIASES = (".dib", ".mpo", ".avifs", ".heics", ".heifs")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> list[Path]:
    return every_image(tmp_path_factory.mktemp("gallery"))


def plain(path: Path) -> np.ndarray:
    """What Pillow alone makes of an image: upright, transparent pixels on white, RGB."""
    with Image.open(path) as image:
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        turned = ImageOps.exif_transpose(image)
        return np.asarray(turned.convert("RGB"))


def test_the_gallery_has_every_format_that_is_read(gallery):
    found = {path.suffix for path in gallery}
    assert found > set(formats.SUFFIXES) - {".hif"}
    assert len(found - set(formats.SUFFIXES)) > 20
    assert len(gallery) > 150


def test_what_is_read_is_what_pillow_reads_and_the_rest_is_named(gallery):
    refused = {}
    for path in gallery:
        if path.suffix not in formats.SUFFIXES:
            continue
        try:
            pixels = decoding.decoded(str(path), str(path), decoding.pixels, exif=True)
        except InputError as error:
            refused[path.name] = str(error)
            continue
        np.testing.assert_array_equal(pixels, plain(path), path.name)
    assert refused.keys() == FLOATS
    for name, reason in refused.items():
        assert re.search(rf"/{name} cannot be read as an image \(its pixels are floats", reason)


def test_files_of_other_formats_are_named_by_suffix(gallery, tmp_path):
    for name in ("cat", "dog"):
        write_photos(tmp_path / "set" / name, 20)
    others = Counter(path.suffix for path in gallery if path.suffix not in formats.SUFFIXES)
    for path in gallery:
        if path.suffix in others:
            (tmp_path / "set" / "cat" / path.name).write_bytes(path.read_bytes())
    data = vggkeras.load_data(str(tmp_path / "set"))
    assert data.unread == others
    line = unread(data.unread)
    assert line.startswith(f"not read: {sum(others.values()):,} files (")
    assert "others" in line


def test_another_format_under_a_suffix_that_is_read_is_no_image(gallery, tmp_path):
    """EPS runs a program, and many formats of Pillow are seldom used: none is found by content."""
    for path in gallery:
        if path.suffix in formats.SUFFIXES or path.suffix in ALIASES:
            continue
        content = path.read_bytes()
        assert not formats.is_image(content[: formats.START_BYTES]), path.name
        with pytest.raises(InputError, match=r"^x cannot be read as an image .it is no JPEG, PNG"):
            decoding.decode(content, "x")


@pytest.mark.parametrize("each", formats.READ, ids=lambda each: each.name)
def test_a_format_is_known_by_its_first_bytes_and_cut_short_it_is_named(each, gallery):
    paths = [p for p in gallery if p.suffix in each.suffixes and p.name not in FLOATS]
    for path in paths:
        content = path.read_bytes()
        assert formats.is_image(content[: formats.START_BYTES]), path.name
        with pytest.raises(InputError, match=r"^x cannot be read as an image"):
            decoding.decode(content[: len(content) // (9 if "frames" in path.name else 3)], "x")


def test_16_bits_are_scaled_and_32_refused():
    levels = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray(levels)
    for kind in ("PNG", "TIFF"):
        pixels = decoding.decode(encoded(image, kind))
        np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    many = Image.fromarray(levels.astype(np.int32) * 1000)
    with pytest.raises(InputError, match="32 bits"):
        decoding.decode(encoded(many, "TIFF"))


def test_a_heic_file_is_read_or_told_how(monkeypatch):
    start = b"\0\0\0\x18ftypheic"
    assert formats.is_image(start) == formats.READS_HEIC
    without = [each for each in formats.FORMATS if each.name != "HEIC"]
    heic = formats.ImageFormat(
        "HEIC", "HEIF", (".heic",), formats.BY_PLUGIN["HEIF"].start, is_read=False
    )
    monkeypatch.setattr(formats, "FORMATS", [*without, heic])
    assert formats.why_not(start) == formats.HEIF_HINT
    assert formats.HEIF_HINT in unread({".heic": 3})


def test_pillows_warnings_are_not_printed(tmp_path):
    """Its lines would show paths of the installation; the image's name and one reason are ours."""
    palette = Image.fromarray(photo(1)).quantize(16)
    palette.save(tmp_path / "x.png", transparency=bytes(16))
    code = (
        "import sys; from vggkeras.data import decoding; "
        "decoding.decode(open(sys.argv[1], 'rb').read())"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert told.stderr == ""
