"""Decode image files to RGB, upright, in threads, and name those that cannot be read.

What a file can cost is bounded before it is decoded: its header says how many pixels it has.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vggkeras.data import formats
from vggkeras.errors import UNSEEN, InputError

NAMED = 10  # unreadable images named in an error

MAX_BYTES = 540_000_000  # that an image may take: its file, and its pixels (134 million of RGB)
LARGE = 1 << 27  # of the images that take more, one at a time is decoded
BAND = 1 << 18  # pixels converted at once
MAX_SCANS = 200  # of a JPEG: usual progressive ones have ten, and each costs a pass over all pixels
MAX_LEVEL = (1 << 16) - 1  # of 16 bits
START_OF_SCAN = b"\xff\xda"
SEQUENTIAL_FRAMES = (b"\xff\xc0", b"\xff\xc1")
PIXEL_BYTES = {"RGB": 4, "L": 5, "P": 5, "1": 5}  # by mode: as Pillow holds them, and as RGB
OTHER_PIXEL_BYTES = 8  # RGBA, CMYK, 16 bits …
TURNED_BYTES = 4  # a pixel of the copy that is upright
COEFFICIENT_BYTES = 2  # a pixel and channel, where libjpeg must hold all scans of an image

# EXIF's orientation -> what makes an image upright (CIPA DC-008, section 4.6.5).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED_WHEN_READ = ("TIFF", "HEIF")  # by Pillow and pillow-heif
UPRIGHT, EXCHANGED = 1, 5  # from 5 on, rows and columns are exchanged
# Stored from the other end: the rows, and the columns, of the upright image.
REVERSED = (3, 4, 7, 8), (2, 3, 6, 7)

JPEGS = ("JPEG", "MPO")
FACTORS = (1, 2, 4, 8)  # by which libjpeg reduces an image while it decodes it
# A reduced image keeps this many times the smallest side S to which the filter reduces it then, in
# tenths. libjpeg averages squares of pixels, and an average holds finer patterns as false coarse
# ones, of which the filter leaves the less the more pixels it averages itself. With 2.9 the 3,000
# rows of a photograph of 12 megapixels are 750 for S = 256, and 1,500 for 512. What it changes is
# measured by tests/benchmarks/large_photographs.py.
GAP_TENTHS = 29
WHOLE = "whole image"  # key in `Image.info`

T = TypeVar("T")

_one_large = threading.Lock()


class Whole(NamedTuple):
    """The image of which a decoded picture may be a reduction."""

    size: tuple[int, int]  # width and height, px
    box: tuple[float, float, float, float]  # left, top, right, bottom of it in the picture


def whole_of(picture: Image.Image) -> Whole:
    """Return the image that `decoded` gave as a picture, in the picture's pixels."""
    return picture.info.get(WHOLE) or Whole(picture.size, (0, 0, *picture.size))


def reduction(size: tuple[int, int], side: int) -> int:
    """Return 1, 2, 4 or 8: how many times smaller a JPEG is decoded that is then rescaled.

    Args:
        size: height and width of the image, px, in any order.
        side: the smallest side to which it is rescaled, px.
    """
    return max(f for f in FACTORS if f == 1 or 10 * min(size) >= GAP_TENTHS * f * side)


def decode(encoded: bytes, name: str = "image", *, exif: bool = False) -> np.ndarray:
    """Decode an image (its first frame) to RGB, uint8 `[H, W, 3]`, as `decoded` does."""
    return decoded(encoded, name, pixels, exif=exif)


def decoded(
    source: bytes | str | os.PathLike,
    name: str,
    prepare: Callable[[Image.Image], T],
    *,
    exif: bool,
    side: int | None = None,
) -> T:
    """Return what `prepare` makes of an image file, of the first frame where it has several.

    Grayscale and CMYK are converted; transparent pixels are laid on white. TIFF and HEIC files are
    always upright: their readers turn them.

    Args:
        source: an encoded image, or the path of a file.
        name: what to call the image in errors.
        prepare: called with the image in mode RGB, which is gone afterwards.
        exif: whether to turn it upright, as the orientation in its EXIF data says.
        side: decode a JPEG at the `reduction` for this smallest side, px; `whole_of` says what the
            picture is of. By default it is the whole image, pixel for pixel.

    Raises:
        InputError (a ValueError): naming the image: it cannot be read whole, would take more than
            `MAX_BYTES`, or `prepare` raised it.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(source))
            image = stack.enter_context(_identified(file))
            orientation = orientation_of(image) if exif else UPRIGHT
            if _checked_bytes(image, file, orientation) > LARGE:
                stack.enter_context(_one_large)
            whole = _reduced(image, side, orientation) if side else None
            image.load()
            picture = _turned(_to_rgb(image), orientation)
            if whole:
                picture.info[WHOLE] = whole
        except Exception as error:  # Pillow raises what its parts raise: OSError, struct.error …
            raise InputError(
                f"{name} cannot be read as an image ({error}): replace or remove it, or pass "
                "--skip-unreadable where the command has it."
            ) from error
        try:
            return prepare(picture)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=formats.PLUGINS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(formats.START_BYTES)
        damaged = "it is damaged" if formats.is_image(start) else formats.why_not(start)
        raise ValueError(damaged) from error


def orientation_of(image: Image.Image) -> int:
    """Return the orientation in the EXIF data of an opened image, 1 to 8; 1 is upright.

    Of PNG only the data before the pixels count: to find others, all would have to be decoded.
    """
    if image.format in TURNED_WHEN_READ:
        return UPRIGHT
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "xmp"}:
        return UPRIGHT
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged, as in many old files, whose pixels are as good as ever
        return UPRIGHT
    return orientation if orientation in TURNS else UPRIGHT


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _reduced(image: Image.Image, side: int, orientation: int) -> Whole | None:
    """Have a JPEG decoded at its `reduction`; return what its upright picture will be of."""
    factor = reduction(image.size, side)
    if factor == 1 or image.format not in JPEGS:
        return None
    size = image.size
    image.draft(image.mode, (size[0] // factor, size[1] // factor))
    reduced = image.size  # the last pixels reach beyond the image
    if orientation >= EXCHANGED:
        size, reduced = size[::-1], reduced[::-1]
    (w, h), (right, bottom) = size, reduced
    left = right - w / factor if orientation in REVERSED[1] else 0.0
    top = bottom - h / factor if orientation in REVERSED[0] else 0.0
    return Whole(size, (left, top, left + w / factor, top + h / factor))


def opened(source: bytes | str | os.PathLike) -> BinaryIO:
    """Open an image; a pipe or a device would be waited for, or never end."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if os.path.exists(source) and not os.path.isfile(source):
        raise OSError("it is not a regular file")
    return open(source, "rb")


def _checked_bytes(image: Image.Image, file: BinaryIO, orientation: int) -> int:
    """Return the bytes of memory that an image takes, its file included, before it is decoded.

    Raises:
        ValueError: they are more than `MAX_BYTES`, or its scans more than `MAX_SCANS`.
    """
    here = file.tell()
    length = file.seek(0, os.SEEK_END)
    mode = "" if image.has_transparency_data and image.mode == "RGB" else image.mode
    each = PIXEL_BYTES.get(mode, OTHER_PIXEL_BYTES)
    if image.format in JPEGS:
        file.seek(0)
        scans = sum(part.count(START_OF_SCAN) for part in iter(lambda: file.read(BAND), b""))
        if scans > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, and {MAX_SCANS} at most are read")
        each += COEFFICIENT_BYTES * len(image.getbands()) * _is_held_by_libjpeg(file)
    file.seek(here)
    each += TURNED_BYTES * (orientation != UPRIGHT)
    needed = length + image.width * image.height * each + formats.held_bytes(image)
    if needed > MAX_BYTES:
        raise ValueError(
            f"its {image.width:,} x {image.height:,} px and its file would take "
            f"{needed / 1e6:,.0f} MB of memory, of at most {MAX_BYTES / 1e6:.0f}: make it smaller"
        )
    return needed


def _is_held_by_libjpeg(file: BinaryIO) -> bool:
    """Return whether a JPEG has its pixels in several scans, all of which libjpeg then holds."""
    file.seek(2)
    components = b""
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[:2], int.from_bytes(head[2:], "big")
        if marker == START_OF_SCAN:
            return file.read(1) != components
        body = file.read(length - 2) if length > 2 else b""
        if marker in SEQUENTIAL_FRAMES:
            components = body[5:6]
    return True  # no JPEG as usual


def bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) of `BAND` pixels at most that cover an image."""
    width, height = size
    across = min(width, BAND)
    down = max(1, BAND // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def pixels(picture: Image.Image) -> np.ndarray:
    """Return an RGB image as uint8 `[H, W, 3]`, without a third copy of all of it."""
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for left, top, right, bottom in bands(picture.size):
        array[top:bottom, left:right] = np.asarray(picture.crop((left, top, right, bottom)))
    return array


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    picture = Image.new("RGB", image.size)
    for box in bands(image.size):
        picture.paste(_band_to_rgb(image.crop(box)), box)
    return picture


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known: save 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip, not scale
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > MAX_LEVEL:
            raise ValueError("its pixels have 32 bits: save 8 or 16")
        return Image.fromarray((levels // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_file(path: str) -> bytes:
    """Return an image file's bytes.

    Raises:
        InputError (a ValueError): it is not a regular file, or has more than `MAX_BYTES`.
    """
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
        raise InputError(
            f"{path} cannot be read as an image: expected a regular file of at most "
            f"{MAX_BYTES / 1e6:.0f} MB; replace or remove it."
        )
    with open(path, "rb") as file:
        return file.read()


def unreadable(names: list[str], where: str, reason: InputError | None = None) -> InputError:
    """Return the error that counts the images that cannot be read, and names the first of them.

    Args:
        names: of the images.
        where: what they are of.
        reason: the error of one of them, for the message.
    """
    because = f" {reason}" if reason else ""
    return InputError(
        f"{some(names)} cannot be read as images ({len(names):,} of "
        f"{where}): replace or remove them, or pass --skip-unreadable.{because}"
    )


def some(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are, as a list in a sentence."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def check_names(paths: Iterable[str], class_names: Iterable[str] = ()) -> None:
    """Check that names can travel with a model, and be written, before any image is read.

    Raises:
        InputError (a ValueError): the path of a file is not UTF-8, or the name of a class not a
            line of visible text.
    """
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{path!r} is not UTF-8: rename it, or its folder.") from error
    for name in class_names:
        if name.splitlines() != [name] or UNSEEN.search(name):
            raise InputError(
                f"The class {name!r} has characters that cannot be seen: rename it, or its folder."
            )


def in_threads(
    function: Callable[..., T], items: Iterable[tuple], ahead: int | None = None
) -> Iterator[T]:
    """Yield `function(*item)` for every item, in order.

    Args:
        function: called in threads, one a core.
        items: its arguments.
        ahead: how many items are worked on ahead; by default eight a core.
    """
    workers = os.cpu_count() or 1
    ahead = ahead or 8 * workers
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, *item))
                if len(waiting) > ahead:  # so that memory stays bounded
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
