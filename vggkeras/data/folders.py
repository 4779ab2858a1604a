"""Data of folders: train/, val/ and test/ with a folder a class, or class folders alone."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vggkeras.data import formats, labeled
from vggkeras.data.labeled import Labeled
from vggkeras.data.reading import unread
from vggkeras.data.splits import VALIDATION_NAMES, Data
from vggkeras.errors import InputError


def load(root: Path, held_out: float, skip_unreadable: bool, whole: bool) -> Data:
    """Return the data of a folder; see `sources.load_data`."""
    given, root = root, root.resolve()
    others: Counter[str] = Counter()
    images = _images_of_splits(given, root, whole, others)
    if not any(images.values()):
        raise InputError(
            f"{given} has no images in class folders: expected {root.name}/train/CLASS/*.jpg or "
            f"{root.name}/CLASS/*.jpg ({', '.join(formats.SUFFIXES)})"
            + (f"; {unread(others)}." if others else ".")
        )
    has_validation = "validation" in images
    return labeled.to_data(
        str(root),
        root.name,
        images,
        held_out=None if has_validation or whole else held_out,
        validation=f"the folder {root.name}/{_validation_folder(root)}" if has_validation else "",
        skip_unreadable=skip_unreadable,
        unread=others,
    )


def _images_of_splits(
    given: Path, root: Path, whole: bool, others: Counter[str]
) -> dict[str, list[Labeled]]:
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
                f"{given} has {'/, '.join(sorted(folders))}/, and no train/ to train on: expected "
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


def _class_files(root: Path, others: Counter[str]) -> list[Labeled]:
    """Return what has an image's name in all class folders, sorted; count the others by suffix."""
    found = []
    for folder in _folders(root):
        for name in sorted(os.listdir(folder)):
            if name.startswith("."):
                continue
            if name.lower().endswith(formats.SUFFIXES):
                path = os.path.join(folder, name)
                found.append(Labeled(path, folder.name, f"{folder.name}/{name}"))
            elif not (folder / name).is_dir():
                others[os.path.splitext(name)[1].lower()] += 1
    return found
