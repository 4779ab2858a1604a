"""Write self-contained HTML pages from Jinja2 templates: text is escaped, pictures are inside."""

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
