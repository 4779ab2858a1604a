"""The image formats that are read: their names, suffixes and first bytes, and what a pixel takes.

What the installed Pillow decodes is read; HEIC where pillow-heif is installed too.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from PIL import Image, features

try:
    from pillow_heif import register_heif_opener
except ImportError:  # without the extra `heif`
    READS_HEIC = False
else:
    register_heif_opener()
    READS_HEIC = True

# Pillow warns of odd metadata and of large images with a line of its own source. A file that it
# can read is read, what it cannot read is named, and how large it may be is checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageFormat:
    """A format of image files."""

    name: str
    plugin: str  # of Pillow
    suffixes: tuple[str, ...]
    start: bytes  # a regular expression of a file's first bytes
    is_read: bool = True  # whether the installed Pillow decodes it
    # Bytes of memory that decoding takes beside the file and Pillow's image, measured at 12 million
    # pixels: for each pixel, and for each pixel and channel.
    pixel_bytes: int = 0
    channel_bytes: int = 0


FORMATS = (
    ImageFormat("JPEG", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    ImageFormat("PNG", "PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("BMP", "BMP", (".bmp",), rb"BM"),
    ImageFormat("GIF", "GIF", (".gif",), rb"GIF8"),
    ImageFormat(
        "WebP", "WEBP", (".webp",), rb"RIFF....WEBP", features.check("webp") or False, 13
    ),  # libwebp composes animations, of which a photograph is one, in RGBA
    ImageFormat(
        "AVIF", "AVIF", (".avif",), rb"....ftypavi[fs]", features.check("avif") or False, 12
    ),
    ImageFormat(
        "TIFF", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", channel_bytes=1
    ),  # a strip, which may be all of the image
    ImageFormat(
        "JPEG 2000",
        "JPEG2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        features.check("jpg_2000") or False,
        channel_bytes=6,
    ),  # OpenJPEG holds 32 bits a sample
    ImageFormat(
        "HEIC",
        "HEIF",
        (".heic", ".heif", ".hif"),
        rb"....ftyp(?:hei|hev|mif1|msf1)",
        READS_HEIC,
        6,
    ),
)
READ = tuple(each for each in FORMATS if each.is_read)
PLUGINS = tuple(each.plugin for each in READ)
SUFFIXES = tuple(suffix for each in READ for suffix in each.suffixes)
BY_PLUGIN = {each.plugin: each for each in FORMATS}
NAMES = f"{', '.join(each.name for each in READ[:-1])} or {READ[-1].name}"
FIRST_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # all that version 0.2 read
START_BYTES = 12  # of a file that tell its format
HEIF_HINT = "HEIC images are read where pillow-heif is installed: pip install 'vggkeras[heif]'"


def is_image(start: bytes) -> bool:
    """Return whether a file's first `START_BYTES` are those of a format that is read."""
    return any(re.match(each.start, start, re.DOTALL) for each in READ)


def why_not(start: bytes) -> str:
    """Return why a file that begins with these bytes is not read as any format."""
    named = (each for each in FORMATS if re.match(each.start, start, re.DOTALL))
    found = next((each for each in named if not each.is_read), None)
    if found is None:
        return f"it is no {NAMES} file"
    return HEIF_HINT if found.name == "HEIC" else f"this Pillow was built without {found.name}"


def held_bytes(image: Image.Image) -> int:
    """Return the bytes that decoding an opened image takes beside its file and its pixels."""
    each = BY_PLUGIN.get(image.format or "")
    if each is None:  # MPO, which is JPEG
        return 0
    channels = len(image.getbands())
    return image.width * image.height * (each.pixel_bytes + channels * each.channel_bytes)
