"""Find the splits and the class names of the data that a data string names.

digits                scikit-learn's 1,797 handwritten digits, embedded, no download
tfds:NAME[/CONFIG]    TensorFlow Datasets; TFDS_DATA_DIR says where
hf:NAME[:CONFIG]      Hugging Face datasets, by name or of a local folder
LIST.csv, .parquet    a row an image: its path or bytes, its label, perhaps its split
a folder              train/ and val/ (or valid/, validation/), perhaps test/, each with a folder a
                      class; or class folders alone, of which a stable hash of the file names holds
                      out a fifth for training, or another fraction; to score a model they are
                      one split, all, and there may be only val/ or test/
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vggkeras.data import folders, hub, in_memory, labeled, lists, records
from vggkeras.data.splits import VALIDATION_NAMES, Data, Split
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.card import ModelCard

FIRST_HELD_OUT = 0.1  # of a TFDS data set by versions 0.1 and 0.2, whose cards do not say it


def load_data(
    spec: str | Data,
    *,
    validation: float | None = None,
    skip_unreadable: bool = False,
    fetch: bool = True,
    whole: bool = False,
    boxes: bool = False,
) -> Data:
    """Find a data set's splits and class names, and check the first bytes of every file.

    Args:
        spec: a data string (see the module's docstring), or data of Python, which are returned.
        validation: fraction of the training images to hold out for validation, in (0, 0.5]: of
            class folders and lists by a hash of class and file name, of Hugging Face datasets by
            one of the image's number, of TFDS records the last ones. By default a fifth, where the
            data have no validation split of their own.
        skip_unreadable: leave out files that are not images, instead of refusing them.
        fetch: whether TensorFlow Datasets and Hugging Face datasets may download and build. Not
            where a model's file names the data: then only what is on this machine is read.
        whole: hold nothing out, and ask for no training split: to score a model on other data than
            it was trained on.
        boxes: read the boxes of the images too (see `box_files`), into `Split.boxes`.

    Raises:
        InputError (a ValueError): unknown string; missing, empty or one-class folder; a file that
            is not an image; data that would have to be fetched; a `validation` out of its range, or
            of data that have a validation split; no boxes, or bad ones, where they are asked for.
    """
    if validation is not None:
        labeled.check_fraction(validation)
    data = _load(spec, validation or labeled.HELD_OUT, skip_unreadable, fetch, whole, boxes)
    if validation is not None and not whole and data.held_out is None:
        raise InputError(
            f"{spec} has validation images of its own, {data.validation}: leave out --validation, "
            "which holds out training images where there are none."
        )
    return data


def load_data_of(
    cards: Sequence[ModelCard],
    spec: str | Data,
    *,
    skip_unreadable: bool = False,
    fetch: bool = True,
    boxes: bool = False,
) -> Data:
    """Load data as `load_data` does, and hold out what the training of some models held out.

    Where they held out different fractions, it is the smallest: its images are among those of the
    larger ones, so that no model was trained on them.

    Args:
        cards: of models that were trained on these data (see `trained_on`); without any, a fifth
            is held out.
        spec: the data string.
        skip_unreadable: as for `load_data`.
        fetch: as for `load_data`.
        boxes: as for `load_data`.
    """
    held_out = min(map(_held_out_by, cards), default=labeled.HELD_OUT)
    return _load(spec, held_out, skip_unreadable, fetch, whole=False, boxes=boxes)


def trained_on(cards: Iterable[ModelCard], spec: str | Data) -> list[ModelCard]:
    """Return the cards of those models that were trained on these data."""
    if isinstance(spec, Data):
        name = spec.spec
    else:
        kind, path = ("hf:", spec[3:]) if spec.startswith("hf:") else ("", spec)
        exists = path and os.path.exists(os.path.expanduser(path))
        name = f"{kind}{Path(path).expanduser().resolve()}" if exists else spec
    return [card for card in cards if card.data == name]


def as_trained(
    data: Data, names: Iterable[str], cards: Iterable[ModelCard], **options: bool
) -> Data:
    """Return whole data as training splits them, where that is meant.

    It is where a model was trained on these data: the images that training held out are to be
    scored. It is also where a split is asked for by a name that only training has.

    Args:
        data: from `load_data(..., whole=True)`.
        names: of the splits that are asked for, as `Data.split` takes them.
        cards: of the models.
        options: skip_unreadable, fetch and boxes, as for `load_data`.
    """
    if "validation" in data.splits and data.held_out is None:  # training holds out no other images
        return data
    if data.spec.startswith(in_memory.PREFIX):
        return data
    asked = {name for several in names for name in several.split("+")}
    missing = asked & {"train", *VALIDATION_NAMES} - set(data.splits)
    trained = [card for card in cards if card.data == data.spec]
    return load_data_of(trained, data.spec, **options) if trained or missing else data


def _held_out_by(card: ModelCard) -> float:
    """Return the fraction that a model's training held out, if its data had to be divided."""
    return card.held_out or (FIRST_HELD_OUT if card.data.startswith("tfds:") else labeled.HELD_OUT)


def _load(
    spec: str | Data, held_out: float, skip_unreadable: bool, fetch: bool, whole: bool, boxes: bool
) -> Data:
    data = _found(spec, held_out, skip_unreadable, fetch, whole, boxes)
    if boxes and any(split.boxes is None for split in data.splits.values()):
        raise InputError(
            f"{data.spec} has no boxes: expected a folder with boxes.csv or Pascal VOC's .xml, a "
            "list with the columns xmin, ymin, xmax, ymax, or a data set of TensorFlow Datasets "
            "with a feature of boxes."
        )
    return data


def _found(
    spec: str | Data, held_out: float, skip_unreadable: bool, fetch: bool, whole: bool, boxes: bool
) -> Data:
    if isinstance(spec, Data):
        return spec
    if spec == "digits":
        return _digits()
    if spec.startswith(in_memory.PREFIX):
        raise InputError(
            f"{spec} are arrays of a Python program, which no other has: give other data with "
            "--data, or call the function there and give it the arrays' vggkeras.Data."
        )
    if not fetch and spec.startswith(("//", "\\\\")):
        raise InputError(f"{spec} is on another machine, and a model's file names it: give --data.")
    if spec.startswith("tfds:"):
        return records.load(spec, held_out, fetch, whole, boxes)
    if spec.startswith("hf:"):
        return hub.load(spec, held_out, fetch, whole)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return folders.load(path, held_out, skip_unreadable, whole, boxes)
    if path.is_file():
        return lists.load(path, held_out, skip_unreadable, whole, boxes)
    raise InputError(
        f"Unknown data {spec!r}: {records.EXPECTED}; there is nothing of that name here."
    )


def _digits() -> Data:
    from sklearn.model_selection import train_test_split

    encoded, labels = _encoded_digits()
    # A fixed split, so that two people's results are of the same images.
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )

    def split(name: str, indices: np.ndarray) -> Split:
        sources = [encoded[i] for i in indices]
        return Split(f"digits/{name}", len(indices), labels[indices], sources)

    splits = {"train": split("train", train), "validation": split("validation", validation)}
    classes = [str(i) for i in range(10)]
    origin = "a fixed fifth of each class"
    return Data("digits", classes, splits, native_size=32, mirrors=False, validation=origin)


@functools.cache
def _encoded_digits() -> tuple[list[bytes], np.ndarray]:
    """Return all digits as PNGs, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()  # images [1797, 8, 8], 0-16
    return [_digit_png(digit) for digit in digits.images], digits.target.astype(np.int64)


def _digit_png(digit: np.ndarray) -> bytes:
    """Return a digit, `[8, 8]`, 0-16, as a PNG of 32 x 32 px."""
    gray = Image.fromarray(np.uint8(np.round(digit * (255 / 16))))
    buffer = io.BytesIO()
    rgb = gray.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")
    rgb.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
