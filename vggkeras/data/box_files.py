"""Read the boxes of images: boxes.csv, Pascal VOC's XML, and what they have to be of an image.

boxes.csv has the columns of a list (`lists`) and xmin, ymin, xmax, ymax: edges in px of the upright
image, 0 to its width or height. Pascal VOC counts pixels from 1 and includes the last, so its box
begins one px before its minimum; a minimum of 0, which other programs write, is the edge itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vggkeras.data import formats
from vggkeras.data.boxes import Boxes
from vggkeras.data.decoding import EXCHANGED, UPRIGHT, in_threads, opened, orientation_of, some
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.data.labeled import Labeled

FILE = "boxes.csv"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGEST_XML = 1 << 20  # bytes; an image's has a thousand


class Box(NamedTuple):
    """One box of an image, as a file says."""

    label: str
    corners: tuple[float, ...]  # xmin, ymin, xmax, ymax, px of the upright image
    where: str  # the file, and the row or the object in it

    @property
    def area(self) -> float:
        """Its area, px."""
        xmin, ymin, xmax, ymax = self.corners
        return (xmax - xmin) * (ymax - ymin)


def box(label: str, values: Sequence[Any], where: str) -> Box:
    """Return a box.

    Raises:
        InputError (a ValueError): values that are no numbers, a minimum above its maximum, no area.
    """
    try:
        xmin, ymin, xmax, ymax = corners = tuple(map(float, values))
    except (TypeError, ValueError):
        xmin, ymin, xmax, ymax = corners = (math.nan,) * 4
    if not all(map(math.isfinite, corners)):
        received = ", ".join(map(str, values))
        raise InputError(
            f"{where}: expected four numbers, {', '.join(CORNERS)}; received {received}."
        )
    for name, low, high in (("x", xmin, xmax), ("y", ymin, ymax)):
        if low >= high:
            wrong = "no area" if low == high else "its minimum above its maximum"
            raise InputError(
                f"{where}: a box with {wrong}, {name}min {low:g} and {name}max {high:g}: expected "
                f"{name}min below {name}max."
            )
    return Box(label, corners, where)


# ---- Pascal VOC ---------------------------------------------------------------------------------


def read_voc(path: str) -> list[Box]:
    """Return the boxes of all objects in a file of Pascal VOC's annotations.

    Raises:
        InputError (a ValueError): it is no such file, or has a bad box.
    """
    try:
        if os.path.getsize(path) > LARGEST_XML:
            raise ValueError(f"it has more than {LARGEST_XML:,} bytes")
        root = ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(f"its element is <{root.tag}>")
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is no annotation of Pascal VOC ({error}): expected <annotation> with <object>,"
            " <name> and <bndbox>."
        ) from error
    return [_object(path, number, found) for number, found in enumerate(root.iter("object"), 1)]


def _object(path: str, number: int, found: ElementTree.Element) -> Box:
    where = f"{path}, object {number}"
    values = [found.findtext(f"bndbox/{name}") for name in CORNERS]
    name = (found.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{where}: expected a <name>; received none.")
    given = box(name, values, where)
    xmin, ymin, xmax, ymax = given.corners
    return given._replace(corners=(max(0.0, xmin - 1), max(0.0, ymin - 1), xmax, ymax))


def in_class_folders(images: Mapping[str, list[Labeled]]) -> dict[str, list[Labeled]]:
    """Return images with the boxes that the XML files beside them give of their class.

    Raises:
        InputError (a ValueError): an XML file without an image.
    """
    paths = {_xml(image) for members in images.values() for image in members}
    for folder in sorted({os.path.dirname(path) for path in paths}):
        own = (os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".xml"))
        if alone := [path for path in own if path not in paths]:
            raise InputError(f"{some(alone)}: boxes without an image: add it, or remove the file.")

    def with_boxes(image: Labeled) -> Labeled:
        boxes = read_voc(_xml(image)) if os.path.exists(_xml(image)) else []
        return image._replace(boxes=tuple(b for b in boxes if b.label == image.class_name))

    return {split: list(map(with_boxes, members)) for split, members in images.items()}


def _xml(image: Labeled) -> str:
    return f"{os.path.splitext(str(image.source))[0]}.xml"


# ---- boxes.csv beside class folders -------------------------------------------------------------


def from_file(
    path: Path, rows: Mapping[str, list[Box]], images: Mapping[str, list[Labeled]]
) -> dict[str, list[Labeled]]:
    """Return images with the boxes that a file gives, by their paths.

    Raises:
        InputError (a ValueError): boxes without an image, or of another class than their folder's.
    """
    names = {os.path.normpath(str(i.source)): i for members in images.values() for i in members}
    classes = {image.class_name for image in names.values()}
    for file, boxes in rows.items():
        if file not in names:
            raise InputError(
                f"{boxes[0].where}: a box without an image: {file} is no image of "
                f"{path.parent}; paths are taken from the folder of {path.name} on."
            )
        for each in boxes:
            if each.label != names[file].class_name:
                known = "" if each.label in classes else ", which no folder has"
                raise InputError(
                    f"{each.where}: the class {each.label!r}{known}, and {file} is in the folder "
                    f"of {names[file].class_name!r}: expected the folder's class."
                )

    def with_boxes(image: Labeled) -> Labeled:
        return image._replace(boxes=tuple(rows.get(os.path.normpath(str(image.source)), ())))

    return {split: list(map(with_boxes, members)) for split, members in images.items()}


# ---- the boxes of a split -----------------------------------------------------------------------


def to_boxes(name: str, images: Sequence[Labeled]) -> Boxes:
    """Return the boxes of the images of a split, in px of the images as they are stored.

    Raises:
        InputError (a ValueError): images without a box, a box outside its image.
    """
    without = [_name(name, i, image) for i, image in enumerate(images) if not image.boxes]
    if without:
        raise InputError(
            f"{some(without)}: {len(without):,} of the {len(images):,} images of {name} have no "
            "box of their class: add one for each, or remove the images."
        )
    measured = list(in_threads(measure, ((image.source,) for image in images)))
    for i, (image, (size, orientation)) in enumerate(zip(images, measured, strict=True)):
        if size is not None:
            for each in image.boxes or ():
                _check_inside(each, _name(name, i, image), size, orientation)
    return made(
        [[each.corners for each in image.boxes or ()] for image in images], measured, upright=True
    ).turned(upright=False)


def made(
    corners: Iterable[Sequence[Sequence[float]] | np.ndarray],
    measured: Sequence[tuple[tuple[int, int] | None, int]],
    upright: bool,
) -> Boxes:
    """Return boxes, the largest of each image first, of images that were measured.

    Args:
        corners: of each image's boxes, px.
        measured: of each image, the result of `measure`.
        upright: whether `corners` are of the images turned upright by their EXIF data.
    """

    def area(each: Sequence[float] | np.ndarray) -> float:
        return (each[2] - each[0]) * (each[3] - each[1])

    orientations = np.array([orientation for _, orientation in measured], np.int64)
    sizes = np.array([size or (0, 0) for size, _ in measured], np.int64)
    if not upright:
        exchanged = orientations >= EXCHANGED
        sizes[exchanged] = sizes[exchanged, ::-1]
    ordered = tuple(
        np.array(sorted(several, key=area, reverse=True), np.float64) for several in corners
    )
    return Boxes(ordered, sizes, orientations, upright)


def measure(source: bytes | str) -> tuple[tuple[int, int] | None, int]:
    """Return (height, width) of an image once it is upright, and its EXIF orientation.

    The size is None where its first bytes do not say: reading the image will say what is wrong.
    """
    try:
        with opened(source) as file, Image.open(file, formats=formats.PLUGINS) as image:
            orientation = orientation_of(image)
            height, width = image.size[:: 1 if orientation >= EXCHANGED else -1]
            return (height, width), orientation
    except Exception:  # Pillow raises what its parts raise
        return None, UPRIGHT


def _check_inside(each: Box, image: str, size: tuple[int, int], orientation: int) -> None:
    xmin, ymin, xmax, ymax = each.corners
    height, width = size
    if min(xmin, ymin) < 0 or xmax > width or ymax > height:
        numbers = ", ".join(f"{value:g}" for value in each.corners)
        turned = f", upright (its EXIF orientation is {orientation})" * (orientation != UPRIGHT)
        raise InputError(
            f"{each.where}: the box {numbers} is outside its image, {image} of {width} x {height} "
            f"px{turned}: expected 0 to the width, and 0 to the height."
        )


def _name(split: str, index: int, image: Labeled) -> str:
    return image.source if isinstance(image.source, str) else f"{split}[{index}]"
