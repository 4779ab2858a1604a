"""Classify image files: `python -m vggkeras predict photo.jpg --model vgg16.keras`."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from vggkeras.commands import rows
from vggkeras.commands.common import Compute, console
from vggkeras.commands.predictions import FEW, Tally, show
from vggkeras.errors import InputError, visible
from vggkeras.terminal import Console, progress_bar

if TYPE_CHECKING:
    import numpy as np

    from vggkeras.runtimes import Predictor

PREDICTIONS = rows.kind("a file of `vggkeras predict`", "image", "class", "probability", "error")


@dataclass(frozen=True)
class Predict:
    """Classify image files, or the images of folders, by their central crops.

    Attributes:
        files: Image files, or folders of them (and of folders): JPEG, PNG, WebP, HEIC and others.
        model: A run's folder, a .keras, .onnx or .tflite file, or a SavedModel folder.
        top: How many classes to show, most probable first; 0 is all of them.
        json: Print one JSON object per line, as soon as an image is classified, instead of a table.
        out: Write a row per image to this .csv, .jsonl or .parquet file.
        exif: Turn images upright, as the orientation in their EXIF data says.
        skip_unreadable: Exit with 0 if some images cannot be read. They are named and counted in
            either case.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    compute: tyro.conf.OmitArgPrefixes[Compute]
    model: Path = Path("runs/latest")
    top: int = 5
    json: bool = False
    out: Path | None = None
    exif: bool = True
    skip_unreadable: bool = False

    def run(self) -> int:
        """Classify, print the classes, and write the file."""
        if self.top < 0:
            raise InputError(f"--top must be 1 or more, or 0 for all classes; received {self.top}.")
        if self.out:
            rows.check_out(self.out, PREDICTIONS)
        unread: Counter[str] = Counter()
        images = image_files(self.files, unread)
        (predictor,) = self.compute.load(self.model)
        tally = self._classified(predictor, images)
        notes = Console(stderr=True) if self.json else console
        if not self.json:
            show(tally, notes)
        for line in self._notes(predictor, tally, unread):
            notes.print(line, soft_wrap=True, highlight=False)
        return (
            1 if tally.failed == len(images) or (tally.failed and not self.skip_unreadable) else 0
        )

    def _classified(self, predictor: Predictor, images: Sequence[str]) -> Tally:
        """Classify, print and write each image as soon as its answer is there."""
        tally = Tally()
        predictions: Iterable[Prediction] = classify(predictor, images, self.top, exif=self.exif)
        with contextlib.ExitStack() as stack:
            write = None
            if self.out:
                about = {"model": str(predictor.path), "class_names": predictor.class_names}
                columns = _columns(predictor.class_names, self.top)
                write = stack.enter_context(rows.writing(self.out, columns, about))
            if not self.json:  # the bar would take the lines for its own output
                # Lines of progress would stand between the answers, which may go into a file.
                shown = console if console.is_terminal else Console(stderr=True)
                bar = stack.enter_context(progress_bar(shown, announced=False))
                predictions = bar.track(predictions, len(images), description="predict")
            for prediction in predictions:
                tally.add(prediction)
                if self.json:
                    line = json.dumps(prediction.to_json(), ensure_ascii=False)
                    print(visible(line), flush=True)
                if write:
                    write(prediction.to_row(self.top))
        return tally

    def _notes(self, predictor: Predictor, tally: Tally, unread: Counter[str]) -> Iterator[str]:
        """Yield the lines below the answers: the model, what was not read, and the file."""
        from vggkeras.data import reading

        total = tally.read + tally.failed
        if not self.json:
            yield f"{total:,} images by {predictor.path} in {predictor.runtime}"
        if unread:
            yield reading.unread(unread)
        if tally.failed:
            advice = ": replace or remove them, or pass --skip-unreadable to exit with 0"
            is_error = tally.read and not self.skip_unreadable
            yield (
                f"{tally.failed:,} of {total:,} images could not be read"
                f"{advice if is_error else ''}"
            )
        if self.out:
            yield f"wrote {total:,} rows to {self.out}"
        elif not self.json and total > FEW:
            yield "--out FILE.csv, .jsonl or .parquet keeps each image's row, and --json prints it"


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, most probable first, or why it could not be read."""

    image: Path | str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    # Of all classes, in the order of the model: float32 [classes].
    posteriors: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `predict --json` prints."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": p} for name, p in pairs]
        return {"image": str(self.image), "classes": classes}

    def to_row(self, top: int) -> rows.Row:
        """Return the row that `predict --out` writes."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        return {
            "image": str(self.image),
            "class": self.classes[0],
            "probability": self.probabilities[0],
            "classes": self.classes,
            "probabilities": self.probabilities if top else self.posteriors,
        }


def _columns(class_names: Sequence[str], top: int) -> list[rows.Column]:
    """Return the columns of the file; all classes have the model's order, some have names."""
    first = [rows.Column("image"), rows.Column("class"), rows.Column("probability", "number")]
    last = rows.Column("error")
    if not top:
        return [*first, rows.probabilities(class_names), last]
    ranks = range(1, min(top, len(class_names)) + 1)
    classes = rows.Column("classes", "text", tuple(f"class_{rank}" for rank in ranks))
    each = tuple(f"probability_{rank}" for rank in ranks)
    return [*first, classes, rows.Column("probabilities", "number", each), last]


def classify(
    predictor: Predictor, paths: Sequence[str | Path], top: int = 5, *, exif: bool = True
) -> Iterator[Prediction]:
    """Yield the `top` most probable classes of each image file, by its central crop, in order.

    Files are decoded in threads ahead of the model. Memory holds a window of images. A file that
    cannot be read is a prediction with an error.

    Args:
        predictor: gives probabilities.
        paths: of image files.
        top: how many classes; 0 is all of them.
        exif: turn the images upright, as their EXIF data say.

    Raises:
        InputError (a ValueError): a model that gives no probabilities or takes no images.
    """
    import numpy as np

    from vggkeras.data.decoding import in_threads
    from vggkeras.evaluation.protocols import WINDOW, Plan, prepared, windows

    plan = Plan([predictor], ["center"], None, mirrors=False, grid=1)
    (row,) = plan.rows(fuse=False)
    names = predictor.class_names

    def read(path: str | Path) -> dict[Any, list[np.ndarray]] | str:
        try:
            return prepared(path, plan.shown, exif)
        except (InputError, OSError) as error:
            return str(error).removeprefix(f"{path} ")

    images = in_threads(read, ((path,) for path in paths))
    for window in windows(zip(paths, images, strict=True), WINDOW):
        shown = [image for _, image in window if not isinstance(image, str)]
        answers = iter(row.average(plan.posteriors(shown)) if shown else ())
        for path, image in window:
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            p = next(answers)
            best = np.argsort(-p, kind="stable")[: top or None]
            classes = tuple(names[i] for i in best)
            yield Prediction(path, classes, tuple(map(float, p[best])), posteriors=p)


def image_files(paths: Sequence[Path], unread: Counter[str] | None = None) -> list[str]:
    """Return files as given, and of folders all image files within, sorted; none that is hidden.

    Args:
        paths: files and folders.
        unread: counts the other files of the folders, by suffix.

    Raises:
        InputError (a ValueError): no such file, a folder without images, a name that is not UTF-8,
            or no path at all.
    """
    from vggkeras.data import formats, reading
    from vggkeras.data.decoding import check_names

    images: list[str] = []
    for path in paths:
        if not path.is_dir():
            if not path.is_file():
                raise InputError(
                    f"No image at {path}: expected a {formats.NAMES} file, or a folder."
                )
            images.append(str(path))
            continue
        others: Counter[str] = Counter()
        count = len(images)
        for file in _files_within("" if path == Path() else str(path)):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in formats.SUFFIXES:
                images.append(file)
            else:
                others[suffix] += 1
        if len(images) == count:
            also = f"; {reading.unread(others)}" if others else ""
            raise InputError(f"{path} has no images ({', '.join(formats.SUFFIXES)}){also}.")
        if unread is not None:
            unread += others
    if not images:
        raise InputError("Expected image files or folders; received none.")
    check_names(images)
    return images


def _files_within(folder: str) -> Iterator[str]:
    """Yield all files in a folder and in its folders, in the order of their paths' parts."""
    with os.scandir(folder or ".") as entries:
        listed = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if not entry.name.startswith(".")
        )
    for name, is_folder in listed:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _files_within(path)
        elif not os.path.isdir(path):  # a link to a folder may lead back
            yield path
