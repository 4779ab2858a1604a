"""Textures that show what a smaller copy of an image has lost, from photographs to worst cases."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont

CHECKERS = (1, 2, 3, 4, 5)  # px a square; of two pixels a period the first


def textures(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and images, uint8 `[height, width, 3]`."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    noise = chance.normal(size=(height, width, 1))
    light = spectrum(height, width, 1.1)
    yield "photograph", _levels(light)
    yield "photograph with grain", _levels(light + 8 * noise)
    yield "pink noise", _levels(spectrum(height, width, 0.5))
    yield "white noise", _levels(chance.uniform(0, 256, (height, width, 1)))
    yield "white noise in color", _levels(chance.uniform(0, 256, (height, width, 3)))
    yield "black and white noise", _levels(chance.integers(0, 2, (height, width, 1)) * 255)
    # Every direction and every frequency, up to one pixel black and one white at the edges.
    radius = (x - width / 2) ** 2 + (y - height / 2) ** 2
    yield "zone plate", _levels(127.5 * (1 + np.cos(np.pi * radius / max(height, width))))
    for side in CHECKERS:
        yield f"checkerboard of {side} px", _levels((x // side + y // side) % 2 * 255)
    fur = 127 + 90 * np.sin(2 * np.pi * (x / 6 + 3 * np.sin(y / 50)))
    yield "fur", _levels(fur[..., None] + 30 * noise)
    weave = 127 + 60 * np.sin(2 * np.pi * x / 3.3) + 60 * np.sin(2 * np.pi * (y / 2.7 + x / 31))
    yield "fabric", _levels(weave)
    yield "rectangles in color", np.asarray(_rectangles(height, width, chance))
    yield "text", np.asarray(_text(height, width))


def spectrum(height: int, width: int, power: float) -> np.ndarray:
    """Return an image whose amplitudes fall as frequency ** -power, in levels `[h, w, 3]`."""
    noise = np.fft.rfft2(np.random.default_rng(1).normal(size=(3, height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    picture = np.fft.irfft2(noise / frequency**power, s=(height, width)).transpose(1, 2, 0)
    gray = picture.mean(axis=2, keepdims=True)
    picture = gray + 0.4 * (picture - gray)  # the channels of a photograph are correlated
    return 120 + 55 * (picture - picture.mean()) / picture.std()


def grating(height: int, width: int, period: float) -> np.ndarray:
    """Return waves of full contrast, uint8 `[height, width, 3]`."""
    wave = 127.5 * (1 + np.cos(2 * np.pi * np.arange(width) / period))
    return _levels(np.broadcast_to(wave, (height, width)))


def jpeg(
    pixels: np.ndarray, orientation: int = 1, quality: int = 90, subsampling: int = 2
) -> bytes:
    """Encode pixels as phones do: color at half the resolution, and an orientation in EXIF."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": quality, "subsampling": subsampling, "exif": exif.tobytes()}
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _levels(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        values = values[..., None]
    levels = values.round().clip(0, 255).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def _rectangles(height: int, width: int, chance: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(height * width // 600):
        left, top, w, h = chance.integers((0, 0, 1, 1), (width, height, 40, 40)).tolist()
        draw.rectangle((left, top, left + w, top + h), tuple(chance.integers(0, 256, 3).tolist()))
    return image


def _text(height: int, width: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    line = "The quick brown fox jumps over the lazy dog. " * (width // 200 + 1)
    for row, top in enumerate(range(0, height, 14)):
        draw.text((0, top), line[row % 40 :], "black", font)
    return image
