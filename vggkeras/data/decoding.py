"""Decode JPEG, PNG, BMP and GIF files to RGB, in threads, and name those that cannot be read."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from vggkeras.errors import UNSEEN, InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8")
NAMED = 10  # unreadable images named in an error

T = TypeVar("T")


def decode(encoded: bytes, name: str = "image") -> np.ndarray:
    """Decode a JPEG, PNG, BMP or GIF (first frame) to RGB, uint8 `[H, W, 3]`.

    Grayscale and CMYK are converted; transparent pixels are laid on white. EXIF orientation is not
    applied, as in training. Raises InputError naming the image when it cannot be read whole.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "BMP", "GIF")) as image:
            image.load()
            return np.asarray(_to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is none of them" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"{name} cannot be read as a JPEG, PNG, BMP or GIF image ({reason}): replace or remove "
            "it, or pass --skip-unreadable where the command has it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip, not scale
        levels = (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def unreadable(names: list[str], where: str) -> InputError:
    """Return the error that counts the images that cannot be read, and names the first of them."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return InputError(
        f"{', '.join(names[:NAMED])}{more} cannot be read as JPEG, PNG, BMP or GIF images "
        f"({len(names)} of {where}): replace or remove them, or pass --skip-unreadable."
    )


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
                f"The class {name!r} has characters that cannot be seen: rename its folder."
            )


def in_threads(function: Callable[..., T], items: Iterable[tuple]) -> Iterator[T]:
    """Yield `function(*item)` for every item, in order; a few items a core are worked on ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, *item))
                if len(waiting) > 8 * workers:  # so that memory stays bounded
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
