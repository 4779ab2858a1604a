"""Draw boxes on images."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vggkeras.errors import visible

PREDICTED, TRUE = "#ff7a1a", "#22c55e"


def with_box(image: Image.Image, box: Any, label: str = "", color: str = PREDICTED) -> None:
    """Draw a box and a label on an image, in lines that suit its size.

    Args:
        image: RGB; it is changed.
        box: corners, px; parts outside the image are not seen.
        label: text above the box, or in it where there is no room.
        color: as Pillow names colors.
    """
    line = max(1, round(max(image.size) / 200))
    canvas = ImageDraw.Draw(image)
    xmin, ymin, xmax, ymax = (float(x) for x in box)
    right, bottom = max(xmin, xmax), max(ymin, ymax)  # a network may predict a negative extent
    canvas.rectangle((xmin, ymin, right, bottom), outline=color, width=line)
    if label:
        font = ImageFont.load_default(size=max(10, round(max(image.size) / 30)))
        left, top, end, low = canvas.textbbox((0, 0), visible(label), font=font)
        width, height = end - left + 2 * line, low - top + 2 * line
        x = min(max(xmin, 0), max(image.width - width, 0))
        y = ymin - height if ymin >= height else min(max(ymin, 0), image.height - height)
        canvas.rectangle((x, y, x + width, y + height), fill=color)
        canvas.text((x + line - left, y + line - top), visible(label), fill="black", font=font)
