"""Hostile images: huge ones in few bytes, what is no file, and names that terminals act on."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

HEAD = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, color: int = 0, depth: int = 8, rows: int = -1, extra: bytes = b""
) -> bytes:
    """Return a black PNG; `rows` of it are there, by default all."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = bytes(1 + (width * samples * depth + 7) // 8)
    packer, parts = zlib.compressobj(1), []
    for _ in range(height if rows < 0 else rows):
        parts.append(packer.compress(row))
    parts.append(packer.flush())
    palette = _chunk(b"PLTE", bytes(6)) if color == 3 else b""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return HEAD + header + extra + palette + _chunk(b"IDAT", b"".join(parts)) + _chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join([packer.compress(block) for _ in range(count >> 20)] + [packer.flush()])


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _gif(width: int, height: int, frame: tuple[int, int] = (1, 1)) -> bytes:
    """Return a GIF with a screen of that size, and a small frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00" + b";"


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + header + bytes(100)


BOMBS: dict[str, Callable[[], bytes]] = {
    "1 x 10,000": lambda: png(1, 10_000),
    "10,000 x 1": lambda: png(10_000, 1),
    "1,000,000 x 1": lambda: png(1_000_000, 1),
    "1 x 1,000,000": lambda: png(1, 1_000_000),
    "13,300 x 13,300": lambda: png(13_300, 13_300),
    "13,300 x 13,300, RGB": lambda: png(13_300, 13_300, 2),
    "13,300 x 13,300, one bit": lambda: png(13_300, 13_300, 0, 1),
    "13,300 x 13,300, palette": lambda: png(13_300, 13_300, 3),
    "9,400 x 9,400, RGBA": lambda: png(9_400, 9_400, 6),
    "9,400 x 9,400, 16 bits": lambda: png(9_400, 9_400, 0, 16),
    "100,000 x 100,000": lambda: png(100_000, 100_000, rows=10),
    "2^31 - 1 a side": lambda: png(2**31 - 1, 2**31 - 1, rows=0),
    "0 x 0": lambda: png(0, 0),
    "pixels without an end": lambda: png(64, 64)[:-12] + _chunk(b"IDAT", _zeros(1 << 30)),
    "a text that inflates": lambda: png(64, 64, extra=_chunk(b"zTXt", b"a\0\0" + _zeros(1 << 30))),
    "a profile that inflates": lambda: png(
        64, 64, extra=_chunk(b"iCCP", b"a\0\0" + _zeros(1 << 30))
    ),
    "a GIF's screen of 65,535": lambda: _gif(65_535, 65_535),
    "a GIF's screen of 13,000": lambda: _gif(13_000, 13_000),
    "a BMP of 60,000": lambda: _bmp(60_000, 60_000),
    "a BMP of a negative side": lambda: _bmp(-10, 2**31 - 1),
    "a JPEG of 65,500 x 1": lambda: _encoded(Image.new("RGB", (65_500, 1)), "JPEG"),
    "a JPEG of 13,000 x 13,000": lambda: _encoded(Image.new("L", (13_000, 13_000)), "JPEG"),
    "a JPEG cut short": lambda: _encoded(Image.new("RGB", (9_000, 9_000)), "JPEG")[:5_000],
}

NAMES: dict[str, bytes] = {
    "markup": b"[edited].png",
    "markup that closes": b"[/b].png",
    "a style": b"[bold red]x[/].png",
    "a link": b"[link=file:passwd]x.png",
    "colors": b"\x1b[31mred.png",
    "a title": b"\x1b]0;title\x07.png",
    "a cleared screen": b"\x1b[2J\x1b[H.png",
    "a carriage return": b"good\rbad.png",
    "a line": b"good\nerror: bad.png",
    "other encodings": b"caf\xe9.png",
    "a C1 code": "\x9b31m.png".encode(),
}


def not_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Make what has an image's name and is no file, each in a folder of its own."""
    for name in (
        "a FIFO",
        "a device",
        "a link to itself",
        "a folder",
        "a link to a FIFO",
        "a link",
    ):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        path = place / "x.png"
        if name == "a FIFO":
            os.mkfifo(path)
        elif name == "a device":
            path.symlink_to("/dev/zero")
        elif name == "a link to itself":
            path.symlink_to(path)
        elif name == "a folder":
            path.mkdir()
        elif name == "a link to a FIFO":
            os.mkfifo(place / "fifo")
            path.symlink_to(place / "fifo")
        else:
            path.symlink_to(place / "nothing")
        yield name, path
