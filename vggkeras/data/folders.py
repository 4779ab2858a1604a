"""Data of folders: train/, val/ and test/ with a folder a class, or class folders alone."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vggkeras.data import box_files, formats, labeled, lists
from vggkeras.data.labeled import Labeled
from vggkeras.data.reading import unread
from vggkeras.data.splits import VALIDATION_NAMES, Data
from vggkeras.errors import InputError

VOC = ("JPEGImages", "Annotations")  # the folders of Pascal VOC
VOC_SPLITS = "ImageSets/Main"


def load(root: Path, held_out: float, skip_unreadable: bool, whole: bool, boxes: bool) -> Data:
    """Return the data of a folder; see `sources.load_data`."""
    given, root = root, root.resolve()
    others: Counter[str] = Counter()
    is_voc = all((root / name).is_dir() for name in VOC)
    images = (
        _images_of_voc(root, whole) if is_voc else _images_of_splits(given, root, whole, others)
    )
    if not any(images.values()):
        raise InputError(
            f"{given} has no images in class folders: expected {root.name}/train/CLASS/*.jpg or "
            f"{root.name}/CLASS/*.jpg ({', '.join(formats.SUFFIXES)})"
            + (f"; {unread(others)}." if others else ".")
        )
    if boxes and not is_voc:
        images = _with_boxes(root, images, others)
    if is_voc and not boxes:
        images = {s: [image._replace(boxes=None) for image in images[s]] for s in images}
    has_validation = "validation" in images
    voc, folder = f"{VOC_SPLITS}/val.txt", f"folder {root.name}/{_validation_folder(root)}"
    return labeled.to_data(
        str(root),
        root.name,
        images,
        held_out=None if has_validation or whole else held_out,
        validation=f"the {voc if is_voc else folder}" if has_validation else "",
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


def _with_boxes(
    root: Path, images: dict[str, list[Labeled]], others: Counter[str]
) -> dict[str, list[Labeled]]:
    """Return images with their boxes: of boxes.csv, or of the XML files beside them, if any."""
    path = root / box_files.FILE
    if path.is_file():
        return box_files.from_file(path, lists.boxes_of_files(path), images)
    if others.pop(".xml", 0):
        return box_files.in_class_folders(images)
    raise InputError(
        f"{root} has no boxes: expected {box_files.FILE} in it (file, label, "
        f"{', '.join(box_files.CORNERS)}), or Pascal VOC's .xml beside each image."
    )


def _images_of_voc(root: Path, whole: bool) -> dict[str, list[Labeled]]:
    """Return the images of Pascal VOC's folders, with the boxes of the class of the largest.

    Raises:
        InputError (a ValueError): an image without a box, or boxes without an image.
    """
    names = {
        os.path.splitext(name)[0]: root / VOC[0] / name
        for name in sorted(os.listdir(root / VOC[0]))
        if name.lower().endswith(formats.SUFFIXES) and not name.startswith(".")
    }
    found = {path.stem: path for path in sorted((root / VOC[1]).glob("*.xml"))}
    if alone := sorted(found.keys() - names.keys()):
        raise InputError(
            f"{found[alone[0]]}: boxes without an image: expected one of that name in {VOC[0]}."
        )
    images: dict[str, Labeled] = {}
    for name, path in names.items():
        boxes = box_files.read_voc(str(found[name])) if name in found else []
        if not boxes:
            raise InputError(f"{path} has no box: expected {VOC[1]}/{name}.xml with an <object>.")
        label = max(boxes, key=lambda box: box.area).label
        of_class = tuple(box for box in boxes if box.label == label)
        images[name] = Labeled(str(path), label, f"{label}/{path.name}", of_class)
    return _splits_of_voc(root, whole, images)


def _splits_of_voc(root: Path, whole: bool, images: dict[str, Labeled]) -> dict[str, list[Labeled]]:
    """Return the splits that Pascal VOC's lists name, or all images as one."""
    lists_of = {"train": "train", "validation": "val", "test": "test"}
    splits = {
        split: [images[n] for n in path.read_text(encoding="utf-8").split() if n in images]
        for split, name in lists_of.items()
        if (path := root / VOC_SPLITS / f"{name}.txt").is_file()
    }
    if "train" not in splits:
        return {"all" if whole else "train": list(images.values())}
    return splits
