"""Write self-contained HTML pages from Jinja2 templates: text is escaped, pictures are inside.

Pictures that TensorBoard shows too are drawn here.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from vggkeras.data import decoding
from vggkeras.data.splits import Split
from vggkeras.errors import visible

T = TypeVar("T")
KERNELS_A_ROW, KERNEL_SCALE, KERNEL_GAP = 16, 8, 4  # px


@dataclass(frozen=True)
class Picture:
    """The attributes of an HTML `img`."""

    src: str  # the encoded picture itself, as a data: URL
    width: int  # px
    height: int


def encode_picture(pixels: np.ndarray, kind: Literal["JPEG", "PNG"] = "JPEG") -> Picture:
    """Encode pixels uint8 `[H, W, 3]` (or 4, with opacity, as PNG) for a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=82, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return Picture(f"data:image/{kind.lower()};base64,{encoded}", width, height)


def read_some(
    split: Split, indices: Iterable[int], prepare: Callable[[Image.Image], T]
) -> Iterator[tuple[int, T]]:
    """Yield (index, what `prepare` makes of it) of some images of a split, in its order."""
    wanted = sorted({int(i) for i in indices})
    some = split.without(set(split.indices()) - set(wanted))
    for index, (_, source, _) in zip(wanted, some.sourced(), strict=True):
        yield index, decoding.decoded(source, split.image_name(index), prepare, exif=split.exif)


def kernel_sheet(kernel: np.ndarray) -> np.ndarray | None:
    """Draw kernels `[k, k, C, n]`, each stretched over the whole range on its own.

    Returns:
        uint8 `[H, W, 4]`, RGBA with transparent gaps; None where C is neither 1 nor 3.
    """
    side, _, channels, count = kernel.shape
    if channels not in (1, 3):
        return None
    low, high = kernel.min(axis=(0, 1, 2)), kernel.max(axis=(0, 1, 2))
    stretched = np.round(255 * (kernel - low) / np.maximum(high - low, np.finfo(np.float32).tiny))
    columns, tile_side = min(count, KERNELS_A_ROW), side * KERNEL_SCALE
    cell = tile_side + KERNEL_GAP
    sheet = np.zeros((-(-count // columns) * cell, columns * cell, 4), np.uint8)
    for i in range(count):
        y, x = (n * cell for n in divmod(i, columns))
        tile = sheet[y : y + tile_side, x : x + tile_side]  # the gaps stay transparent
        tile[..., :3] = stretched[..., i].repeat(KERNEL_SCALE, 0).repeat(KERNEL_SCALE, 1)
        tile[..., 3] = 255
    return sheet


def render(template: Path, **values: Any) -> str:
    """Render a template file with the values that it names, as HTML, or as Markdown.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "thousands": lambda number: f"{number:,}",
        "markdown": lambda text: jinja2.utils.markupsafe.Markup(markdown(text)),
        "svg": jinja2.utils.markupsafe.Markup,
    }
    return environment.get_template(template.name).render(**values)


def markdown(text: str) -> str:
    """Return text in which Markdown and HTML mean nothing, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>&#|~!$])", r"\\\1", visible(" ".join(text.split())))


def percent(fraction: float) -> str:
    """Format a fraction as a percentage, such as 98.25%."""
    return f"{100 * fraction:.2f}%"


def data_title(spec: str) -> str:
    """Return what a page calls the data of a data string: a folder's name, or TFDS' name."""
    return spec.removeprefix("tfds:") if spec.startswith("tfds:") else Path(spec).name
