"""Find the splits and the class names of the data that a data string names.

digits                scikit-learn's 1,797 handwritten digits, embedded, no download
tfds:NAME[/CONFIG]    TensorFlow Datasets; TFDS_DATA_DIR says where
a folder              train/ and val/ (or valid/, validation/), perhaps test/, each with a folder a
                      class; or class folders alone, of which a stable hash of the file names holds
                      out a fifth for training, or another fraction; to score a model they are
                      one split, all, and there may be only val/ or test/
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from vggkeras.data import formats, imagenet, records
from vggkeras.data.decoding import check_names
from vggkeras.data.reading import unread
from vggkeras.data.splits import VALIDATION_NAMES, Data, Records, Split
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.card import ModelCard

HELD_OUT = 0.2  # fraction of the training images, where data have no validation split of their own
FIRST_HELD_OUT = 0.1  # of a TFDS data set by version 0.1, whose cards do not say it
LARGEST_HELD_OUT = 0.5


def load_data(
    spec: str,
    *,
    validation: float | None = None,
    skip_unreadable: bool = False,
    fetch: bool = True,
    whole: bool = False,
) -> Data:
    """Find a data set's splits and class names, and check the first bytes of every file.

    Args:
        spec: digits, tfds:NAME, tfds:NAME/CONFIG, or a folder (see the module's docstring).
        validation: fraction of the training images to hold out for validation, in (0, 0.5]: of
            class folders by a hash of class and file name, of TFDS records the last ones. By
            default a fifth, where the data have no validation split of their own.
        skip_unreadable: leave out files that are not images, instead of refusing them.
        fetch: whether TensorFlow Datasets may download and build. Not where a model's file names
            the data: then only what is prepared on this machine is read.
        whole: hold nothing out, and ask for no training split: to score a model on other data than
            it was trained on.

    Raises:
        InputError (a ValueError): unknown string; missing, empty or one-class folder; a file that
            is not an image; data that would have to be fetched; a `validation` out of its range, or
            of data that have a validation split.
    """
    if validation is not None and not 0 < validation <= LARGEST_HELD_OUT:
        raise InputError(
            f"validation must be a fraction in (0, {LARGEST_HELD_OUT}]; received {validation}."
        )
    data = _load(spec, validation or HELD_OUT, skip_unreadable, fetch, whole)
    if validation is not None and not whole and data.held_out is None:
        raise InputError(
            f"{spec} has validation images of its own, {data.validation}: leave out --validation, "
            "which holds out training images where there are none."
        )
    return data


def load_data_of(
    cards: Sequence[ModelCard], spec: str, *, skip_unreadable: bool = False, fetch: bool = True
) -> Data:
    """Load data as `load_data` does, and hold out what the training of some models held out.

    Where they held out different fractions, it is the smallest: its images are among those of the
    larger ones, so that no model was trained on them.

    Args:
        cards: of the models; without any, a fifth is held out.
        spec: the data string.
        skip_unreadable: as for `load_data`.
        fetch: as for `load_data`.
    """
    held_out = min(map(_held_out_by, cards), default=HELD_OUT)
    return _load(spec, held_out, skip_unreadable, fetch, whole=False)


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
        options: skip_unreadable and fetch, as for `load_data`.
    """
    if "validation" in data.splits and data.held_out is None:  # training holds out no other images
        return data
    asked = {name for several in names for name in several.split("+")}
    missing = asked & {"train", *VALIDATION_NAMES} - set(data.splits)
    trained = [card for card in cards if card.data == data.spec]
    return load_data_of(trained, data.spec, **options) if trained or missing else data


def _held_out_by(card: ModelCard) -> float:
    """Return the fraction that a model's training held out, if its data had to be divided."""
    return card.held_out or (FIRST_HELD_OUT if card.data.startswith("tfds:") else HELD_OUT)


def _load(spec: str, held_out: float, skip_unreadable: bool, fetch: bool, whole: bool) -> Data:
    if spec == "digits":
        return _digits()
    if not fetch and spec.startswith(("//", "\\\\")):
        raise InputError(f"{spec} is on another machine, and a model's file names it: give --data.")
    if spec.startswith("tfds:"):
        return _tfds(spec, held_out, fetch, whole)
    return _folder(spec, held_out, skip_unreadable, whole)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()  # images [1797, 8, 8], 0-16
    labels = digits.target.astype(np.int64)
    # A fixed split, so that two people's results are of the same images.
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )

    def split(name: str, indices: np.ndarray) -> Split:
        sources = [_digit_png(digits.images[i]) for i in indices]
        return Split(f"digits/{name}", len(indices), labels[indices], sources)

    splits = {"train": split("train", train), "validation": split("validation", validation)}
    classes = [str(i) for i in range(10)]
    origin = "a fixed fifth of each class"
    return Data("digits", classes, splits, native_size=32, mirrors=False, validation=origin)


def _digit_png(digit: np.ndarray) -> bytes:
    """Return a digit, `[8, 8]`, 0-16, as a PNG of 32 x 32 px."""
    gray = Image.fromarray(np.uint8(np.round(digit * (255 / 16))))
    buffer = io.BytesIO()
    rgb = gray.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")
    rgb.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _tfds(spec: str, held_out: float, fetch: bool, whole: bool) -> Data:
    builder = records.builder(spec, fetch)
    name, available = spec.removeprefix("tfds:"), builder.info.splits
    # A data set without a validation split holds out the last part of its training split.
    tfds_names = {"train": "train", "validation": "validation", "test": "test"}
    divided = not whole and "train" in available and "validation" not in available
    if whole:
        tfds_names = {split: split for split in available}
    elif divided:
        cut = _cut(available["train"].num_examples, held_out)
        tfds_names |= {"train": f"train[:{cut}]", "validation": f"train[{cut}:]"}
    splits = {
        split: Split(
            f"{name}/{split}", available[tfds_name].num_examples, None, Records(builder, tfds_name)
        )
        for split, tfds_name in tfds_names.items()
        if tfds_name.split("[")[0] in available
    }
    if "train" not in splits and not whole:
        raise InputError(f"{spec} has no split train; it has {', '.join(available)}.")
    empty = [name for name, split in splits.items() if divided and not split.count]
    if empty:
        raise InputError(
            f"{spec} has too few images to hold out {held_out:.6g} of them: {empty[0]} would get "
            "none. Give another --validation, or data with a validation split."
        )
    return Data(
        spec,
        _readable(list(builder.info.features["label"].names)),
        splits,
        validation="" if whole else f"split {tfds_names['validation']}",
        held_out=held_out if divided else None,
    )


def _cut(count: int, held_out: float) -> str:
    """Return where TFDS' syntax cuts a split of `count` images, to hold out its last part."""
    percent = 100 * (1 - held_out)
    if math.isclose(percent, round(percent)):
        return f"{round(percent)}%"
    return str(round(count * (1 - held_out)))


class _File(NamedTuple):
    path: str
    class_name: str


def _folder(spec: str, held_out: float, skip_unreadable: bool, whole: bool) -> Data:
    root = Path(spec).expanduser()
    if not spec or not root.is_dir():
        raise InputError(
            f"Unknown data {spec!r}: {records.EXPECTED}; there is no such folder here."
        )
    root = root.resolve()
    others: Counter[str] = Counter()
    files = _files_of_splits(spec, root, whole, others)
    known = files.values() if "train" not in files else [files["train"]]
    classes = sorted({file.class_name for members in known for file in members})
    check_names((file.path for members in files.values() for file in members), classes)
    if not classes:
        raise InputError(
            f"{spec} has no images in class folders: expected {root.name}/train/CLASS/*.jpg or "
            f"{root.name}/CLASS/*.jpg ({', '.join(formats.SUFFIXES)})"
            + (f"; {unread(others)}." if others else ".")
        )
    if len(classes) < 2:
        raise InputError(
            f"{spec} has one class, {classes[0]!r}: a classifier needs images in two class folders "
            "or more."
        )
    divided = "validation" not in files and not whole
    origin = f"the folder {root.name}/{_validation_folder(root)}" if "validation" in files else ""
    if divided:
        files |= _hold_out(spec, files["train"], classes, held_out)
        origin = f"held out: {held_out:.6g} of the images, by a hash of class and file name"
    numbers = {name: number for number, name in enumerate(classes)}
    splits: dict[str, Split] = {}
    skipped: list[str] = []
    for name, members in files.items():
        _check_members(spec, name, members, classes)
        unreadable = _without_signature([file.path for file in members])
        if unreadable and not skip_unreadable:
            more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
            raise InputError(
                f"{unreadable[0]}{more} is no {formats.NAMES} file: replace or remove it, or pass "
                "--skip-unreadable where the command has it."
            )
        skipped += unreadable
        left_out = set(unreadable)
        kept = [file for file in members if file.path not in left_out]
        if not kept:
            raise InputError(f"{spec}: split {name} has no readable image.")
        labels = np.array([numbers[file.class_name] for file in kept], np.int64)
        splits[name] = Split(f"{root.name}/{name}", len(kept), labels, [file.path for file in kept])
    return Data(
        str(root),
        _readable(classes),
        splits,
        skipped=tuple(skipped),
        unread=others,
        validation=origin,
        held_out=held_out if divided else None,
    )


def _readable(names: list[str]) -> list[str]:
    """Return the names, or ImageNet's class names where these are its 1000 WordNet ids."""
    return imagenet.class_names() if names == imagenet.wnids() else names


def _files_of_splits(
    spec: str, root: Path, whole: bool, others: Counter[str]
) -> dict[str, list[_File]]:
    """Return the image files of each split; class folders alone are split train, or all.

    The other files are counted in `others`, by suffix.

    Raises:
        InputError (a ValueError): not `whole`, and there are folders of splits, but no train/.
    """
    folders = {folder.name: folder for folder in _folders(root)}
    names = {"train": "train", "test": "test", "validation": _validation_folder(root)}
    if "train" not in folders:
        # A class may be called test: then it has images, and folders beside it.
        alone = not folders or not set(folders) <= {"test", *VALIDATION_NAMES}
        if alone or _class_files(root, Counter()):
            return {"all" if whole else "train": _class_files(root, others)}
        if not whole:
            raise InputError(
                f"{spec} has {'/, '.join(sorted(folders))}/, and no train/ to train on: expected "
                f"{root.name}/train/CLASS/*.jpg, or class folders alone."
            )
    order = ("train", "validation", "test")
    return {s: _class_files(folders[names[s]], others) for s in order if names.get(s) in folders}


def _validation_folder(root: Path) -> str:
    """Return the name of the folder of validation images: the first of several that is there."""
    return next((name for name in VALIDATION_NAMES if (root / name).is_dir()), "")


def _folders(root: Path) -> list[Path]:
    return sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _class_files(root: Path, others: Counter[str]) -> list[_File]:
    """Return what has an image's name in all class folders, sorted; count the others by suffix."""
    found = []
    for folder in _folders(root):
        for name in sorted(os.listdir(folder)):
            if name.startswith("."):
                continue
            if name.lower().endswith(formats.SUFFIXES):
                found.append(_File(str(folder / name), folder.name))
            elif not (folder / name).is_dir():
                others[os.path.splitext(name)[1].lower()] += 1
    return found


def _hold_out(
    spec: str, files: list[_File], classes: list[str], fraction: float
) -> dict[str, list[_File]]:
    """Split files into train and validation by a hash of class/file.

    So neither the folder's path nor the other files move an image from one split to the other, and
    what a smaller fraction holds out, a larger one does too.
    """
    splits: dict[str, list[_File]] = {"train": [], "validation": []}
    for file in files:
        key = "/".join(Path(file.path).parts[-2:])
        digest = hashlib.sha256(key.encode()).digest()
        # Evenly spread over [0, 5). Its integer part is version 0.1's rule, which held out a fifth.
        position = (
            int.from_bytes(digest[:8], "big") % 5 + int.from_bytes(digest[8:12], "big") / 2**32
        )
        splits["validation" if position < 5 * fraction else "train"].append(file)
    empty = sorted(set(classes) - {file.class_name for file in splits["train"]})
    if empty or not splits["validation"]:
        raise InputError(
            f"{spec} has too few images to hold out {fraction:.6g} of them for validation: give "
            f"more images ({f'class {empty[0]!r}' if empty else 'validation'} would get none), or "
            "folders train/ and val/."
        )
    return splits


def _check_members(spec: str, split: str, files: list[_File], classes: list[str]) -> None:
    """Raise InputError when a split has no images, or a class that train does not have."""
    unknown = sorted({file.class_name for file in files} - set(classes))
    if unknown:
        raise InputError(
            f"{spec}: split {split} has a class {unknown[0]!r} that train has not: expected the "
            "class folders of train."
        )
    if not files:
        raise InputError(f"{spec}: split {split} has no images.")


def _without_signature(paths: list[str]) -> list[str]:
    """Return the paths whose first bytes are not those of an image."""

    def is_image(path: str) -> bool:
        if not os.path.isfile(path):  # a folder, a link to nothing, a pipe that would be waited for
            return False
        with open(path, "rb") as file:
            return formats.is_image(file.read(formats.START_BYTES))

    with ThreadPoolExecutor() as pool:
        images = pool.map(is_image, paths, chunksize=64)
        return [path for path, image in zip(paths, images, strict=True) if not image]
