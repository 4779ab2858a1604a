"""Print, write and draw the boxes of images: `predict` with a network of boxes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vggkeras import files, rows
from vggkeras.commands.common import console, print_note
from vggkeras.data import decoding
from vggkeras.errors import InputError, visible

if TYPE_CHECKING:
    from vggkeras.localization.votes import Located, Locator
    from vggkeras.runtimes import Predictor

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LOCATED = rows.kind("a file of boxes of `vggkeras predict`", "image", "class", *CORNERS, "error")
MARK = b"drawn by vggkeras predict --draw"
FEW = 20  # images that are shown one by one


def _is_drawn(path: Path) -> bool:
    with Image.open(path) as image:
        return image.info.get("comment") == MARK


DRAWN = files.Kind("a picture of `vggkeras predict --draw`", _is_drawn)


@dataclass(frozen=True)
class Output:
    """What becomes of the boxes."""

    json: bool = False  # print an object a line
    out: Path | None = None  # of rows
    draw: Path | None = None  # folder of pictures


def run(
    predictor: Predictor,
    classifier: Predictor | None,
    images: Sequence[str],
    top: int,
    output: Output,
    *,
    exif: bool = True,
    skip_unreadable: bool = False,
) -> int:
    """Locate what images show; print, write and draw it; return the exit code.

    Raises:
        InputError (a ValueError): as `localization.votes.locate`; a file that cannot be written.
    """
    from vggkeras.localization.votes import Locator

    if output.out:
        rows.check_out(output.out, LOCATED)
    pictures = _pictures(images, output.draw) if output.draw else {}
    names = classifier.class_names if classifier else []
    locator = Locator([predictor], classifier, top=top or len(names))
    failed = 0
    with contextlib.ExitStack() as stack:
        write = None
        if output.out:
            columns = [rows.Column("image"), rows.Column("class")]
            columns += [rows.Column(name, "number") for name in ("probability", *CORNERS)]
            about = {"model": str(predictor.path), "class_names": names}
            write = stack.enter_context(
                rows.writing(output.out, [*columns, rows.Column("error")], about)
            )
        for number, (path, found) in enumerate(_located(locator, images, exif)):
            failed += isinstance(found, str)
            if output.json:
                print(visible(json.dumps(_object(path, found), ensure_ascii=False)), flush=True)
            elif number < FEW or isinstance(found, str):
                print_note(_line(path, found))
            if write:
                write(_row(path, found))
            if output.draw and not isinstance(found, str):
                draw(path, found, pictures[path], exif)
    _print_notes(len(images), failed, predictor, output, skip_unreadable)
    return 1 if failed == len(images) or (failed and not skip_unreadable) else 0


def _print_notes(
    count: int, failed: int, predictor: Predictor, output: Output, skip_unreadable: bool
) -> None:
    lines = [f"{count:,} images by {predictor.path} in {predictor.runtime}; boxes in px"]
    if count > FEW and not output.out:
        lines.append("--out FILE.csv, .jsonl or .parquet keeps each image's box")
    if failed:
        advice = "" if skip_unreadable else ": replace or remove them, or pass --skip-unreadable"
        lines.append(f"{failed:,} of {count:,} images could not be read{advice}")
    lines += [f"wrote {count:,} rows to {output.out}"] * bool(output.out)
    lines += [f"drew {count - failed:,} pictures in {output.draw}"] * bool(output.draw)
    for line in lines:
        if output.json:
            print(line, file=sys.stderr)
        else:
            console.print(line, soft_wrap=True, highlight=False)


def _located(
    locator: Locator, images: Sequence[str], exif: bool
) -> Iterator[tuple[str, Located | str]]:
    """Yield each image with its boxes, or why it cannot be read, a window in memory at a time."""
    from vggkeras.evaluation.protocols import WINDOW, prepared, windows

    def read(path: str) -> Any:
        try:
            return prepared(path, locator.plan.see, exif)
        except (InputError, OSError) as error:
            return str(error).removeprefix(f"{path} ")

    shown = decoding.in_threads(read, ((path,) for path in images))
    for window in windows(zip(images, shown, strict=True), WINDOW):
        read_ones = [image for _, image in window if not isinstance(image, str)]
        found = iter(locator(read_ones) if read_ones else ())
        for path, image in window:
            yield path, image if isinstance(image, str) else next(found)


def _guesses(found: Located) -> list[dict[str, Any]]:
    """Return what JSON says of an image's boxes."""
    boxes = [{"box": [round(x, 2) for x in box]} for box in found.boxes.tolist()]
    if not found.classes:
        return boxes
    pairs = zip(found.classes, found.probabilities, boxes, strict=True)
    return [{"class": name, "probability": p, **box} for name, p, box in pairs]


def _object(path: str, found: Located | str) -> dict[str, Any]:
    about = {"error": found} if isinstance(found, str) else {"boxes": _guesses(found)}
    return {"image": path, **about}


def _line(path: str, found: Located | str) -> str:
    if isinstance(found, str):
        return visible(f"{path}: {found}")
    texts = []
    for guess in _guesses(found):
        label = f"{guess['class']} {guess['probability']:.4f} " if "class" in guess else ""
        texts.append(label + " ".join(f"{x:.1f}" for x in guess["box"]))
    return visible(f"{path}: {', '.join(texts)}")


def _row(path: str, found: Located | str) -> rows.Row:
    if isinstance(found, str):
        return {"image": path, "error": found}
    first = _guesses(found)[0]
    corners = dict(zip(CORNERS, first.pop("box"), strict=True))
    return {"image": path, **first, **corners}


def _pictures(images: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return where each image is drawn: in the folder, as it lies below what they all share.

    Raises:
        InputError (a ValueError): two would have one name; a file of another kind is there.
    """
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in images])
    pictures: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for path in images:
        picture = folder / Path(os.path.relpath(os.path.abspath(path), shared)).with_suffix(".jpg")
        if taken.setdefault(picture, path) != path:
            raise InputError(
                f"{path} and {taken[picture]} would both be drawn as {picture}: draw them into two "
                "folders, one after the other."
            )
        files.check_file(picture, DRAWN)
        pictures[path] = picture
    return pictures


def draw(path: str, found: Located, picture: Path, exif: bool = True) -> None:
    """Write an image with its first box, in its own size, as a JPEG."""
    label = f"{found.classes[0]} {found.probabilities[0]:.2f}" if found.classes else ""
    from vggkeras.localization.drawing import with_box

    image = decoding.decoded(path, path, Image.Image.copy, exif=exif)
    with_box(image, found.boxes[0], label)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(picture) as beside:
        image.save(beside, "JPEG", quality=90, subsampling=0, comment=MARK)
