"""Images in every format, images that cost far more than their files' bytes, and no images."""

from __future__ import annotations

import functools
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from helpers import encoded, photo
from PIL import Image, ImageCms

PNG_TYPES = {
    "L": (8, 0, 1),
    "RGB": (8, 2, 3),
    "RGBA": (8, 6, 4),
    "P": (8, 3, 1),
    "I;16": (16, 0, 2),
}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, mode: str = "RGB", *, whole: bool = True, extra: bytes = b""
) -> bytes:
    """A black PNG; not `whole`, it only claims its size."""
    bits, color, pixel_bytes = PNG_TYPES[mode]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    packer = zlib.compressobj(1)
    row = bytes(1 + width * pixel_bytes if whole else 1)
    height = height if whole else 1
    rows = [packer.compress(row) for _ in range(height)]
    palette = chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", b"\x00") if mode == "P" else b""
    data = chunk(b"IDAT", b"".join(rows) + packer.flush())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + extra + data + chunk(b"IEND", b"")
    )


def jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size than its own."""
    start = next(
        data.index(bytes([0xFF, kind])) for kind in (0xC0, 0xC2) if bytes([0xFF, kind]) in data
    )
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(photo(1)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


@functools.cache
def refused_images() -> dict[str, bytes]:
    """What must be refused without a pixel decoded, by name: the message names the reason."""
    photograph = encoded(Image.fromarray(photo(1)), "JPEG")
    progressive = encoded(Image.fromarray(photo(1)), "JPEG", progressive=True)
    bmp = bytearray(encoded(Image.fromarray(photo(1)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 2_000_000_000, 2_000_000_000)
    gif = bytearray(encoded(Image.fromarray(photo(1)).quantize(16), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    return {
        "square.png": png(13_300, 13_300, whole=False),
        "clear.png": png(8_300, 8_300, "RGBA", whole=False),
        "endless.png": png(2**31 - 1, 2**31 - 1, "L", whole=False),
        "text.png": png(8, 8, extra=text),
        "claims.jpg": jpeg_of_size(photograph, 65_500, 65_500),
        "progressive.jpg": jpeg_of_size(progressive, 7_400, 7_400),
        "scans.jpg": jpeg_of_scans(300),
        "claims.bmp": bytes(bmp),
        "screen.gif": bytes(gif),
        "cut.jpg": photograph[:-100],
        "cut.png": png(300, 300)[:-60],
    }


def costly_images() -> dict[str, bytes]:
    """What is read, by name: long ones, and the largest of each mode."""
    noise = np.random.default_rng(0).integers(0, 256, (5_000, 5_000), np.uint8)
    return {
        "line.png": png(1, 10_000),
        "thread.png": png(1_000_000, 1, "L"),
        "long.png": png(300, 448_000),
        "square.png": png(11_550, 11_550),
        "gray.png": png(10_380, 10_380, "L"),
        "clear.png": png(8_200, 8_200, "RGBA"),
        "palette.png": png(10_380, 10_380, "P"),
        "deep.png": png(8_200, 8_200, "I;16"),
        "photo.jpg": encoded(Image.fromarray(noise).convert("RGB"), "JPEG", quality=75),
        "progressive.jpg": encoded(Image.fromarray(noise), "JPEG", progressive=True, quality=50),
    }


MODES = (
    *("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "I;16", "I;16B", "F"),
)
ODDITIES: dict[str, tuple[str, dict]] = {  # suffix, options
    "progressive": (".jpg", {"progressive": True}),
    "full color": (".jpg", {"subsampling": 0}),
    "restarts": (".jpg", {"restart_marker_blocks": 3}),
    "comment": (".jpg", {"comment": "one"}),
    "interlaced": (".gif", {"interlace": 1}),
    "transparent color": (".png", {"transparency": (0, 0, 0)}),
    "lossless": (".webp", {"lossless": True}),
    "exact": (".webp", {"lossless": True, "exact": True}),
    "full color ": (".avif", {"subsampling": "4:4:4"}),
    "reversible": (".jp2", {"irreversible": False}),
    "irreversible": (".jp2", {"irreversible": True}),
    "tiles": (".jp2", {"tile_size": (16, 16)}),
    "codestream": (".j2k", {}),
    "lzw": (".tif", {"compression": "tiff_lzw"}),
    "deflate": (".tif", {"compression": "tiff_deflate"}),
    "packbits": (".tif", {"compression": "packbits"}),
    "jpeg inside": (".tif", {"compression": "jpeg"}),
    "big": (".tif", {"big_tiff": True}),
    "predictor": (".tif", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
}


def every_image(folder: Path) -> list[Path]:
    """Write a picture in every format and mode that Pillow can write, and in odd ways of some.

    Formats that need more than a file (WMF's drivers, BUFR's …) are left out by Pillow itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Image.init()
    picture = Image.fromarray(photo(1))
    depth = np.asarray(picture.convert("L")).astype(np.int32)
    made = {mode: picture.convert(mode) for mode in ("1", "L", "RGB", "CMYK", "YCbCr", "HSV")}
    made |= {"P": picture.quantize(64), "LAB": _lab(picture), "F": Image.fromarray(depth / 255.0)}
    made |= {
        "I": Image.fromarray(depth * 257),
        "I;16": Image.fromarray((depth * 257).astype("<u2")),
    }
    made["I;16B"] = Image.fromarray((depth * 257).astype(">u2"))
    for mode, base in (("RGBA", "RGB"), ("LA", "L"), ("PA", "P")):
        made[mode] = made[base].convert(mode)
        made[mode].putalpha(Image.fromarray(photo(2)).convert("L"))
    for suffix, kind in sorted(Image.registered_extensions().items()):
        if kind not in Image.SAVE or kind not in Image.OPEN:
            continue
        for mode in MODES:
            _save(made[mode], folder / f"{mode.replace(';', '-')}{suffix}", kind)
    for name, (suffix, options) in ODDITIES.items():
        _save(made["RGB"], folder / f"{name}{suffix}", None, **options)
    frames = {"save_all": True, "append_images": [Image.fromarray(photo(n)) for n in (3, 4)]}
    for suffix in (".gif", ".png", ".apng", ".webp", ".avif", ".tif", ".mpo", ".heic"):
        _save(made["RGB"], folder / f"frames{suffix}", None, **frames)
    _save(made["RGBA"], folder / "transparent frames.webp", None, **frames)
    clear = made["P"].copy()
    clear.info["transparency"] = 3
    _save(clear, folder / "a clear color.gif", None, transparency=3)
    _save(clear, folder / "clear colors.png", None, transparency=bytes(range(0, 256, 4)))
    return sorted(folder.iterdir())


def _lab(picture: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    assert made is not None
    return made


def _save(image: Image.Image, path: Path, kind: str | None, **options) -> None:
    """Save an image, or leave nothing where Pillow has no such file."""
    try:
        image.save(path, kind, **options)
    except (OSError, ValueError, KeyError, SyntaxError, TypeError):
        path.unlink(missing_ok=True)


def no_files(folder: Path) -> list[Path]:
    """Put what is no regular file into a folder, each with an image's name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{name}.jpg" for name in ("pipe", "folder", "loop", "nothing", "device", "socket")
    ]
    pipe, inside, loop, nothing, device, listening = paths
    os.mkfifo(pipe)
    inside.mkdir()
    loop.symlink_to(loop)
    nothing.symlink_to(folder / "missing")
    device.symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")  # a cycle of folders
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have some 100 characters only
        try:
            server.bind(listening.name)
        finally:
            os.chdir(here)
    return paths
