"""Data of lists: .csv or .parquet files with a row an image.

image    the path of its file, from the list's folder on; in .parquet also the file itself
label    its class: text or a whole number
split    train, validation (or val, valid) or test; where there is none, images are held out

With xmin, ymin, xmax, ymax, a row is a box (see `box_files`), and an image may have several.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggkeras.data import box_files, labeled
from vggkeras.data.box_files import Box
from vggkeras.data.decoding import NAMED, read_file, some
from vggkeras.data.labeled import Labeled
from vggkeras.data.splits import VALIDATION_NAMES, Data
from vggkeras.errors import InputError

SUFFIXES = (".csv", ".parquet")
MOST_ROWS = 20_000_000
COLUMNS = {  # by the names that they may have
    "image": ("image", "path", "file", "filename", "file_name", "filepath"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset"),
} | {name: (name,) for name in box_files.CORNERS}
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")


class _Table(NamedTuple):
    """The columns of a list."""

    images: Sequence[Any]  # text, bytes, or a mapping of both
    labels: Sequence[Any]
    splits: Sequence[Any] | None
    class_names: list[str] | None = None  # of labels that are numbers
    corners: Sequence[Sequence[Any]] | None = None  # of a box a row


def load(path: Path, held_out: float, skip_unreadable: bool, whole: bool, boxes: bool) -> Data:
    """Return the data of a list; see `sources.load_data`.

    Raises:
        InputError (a ValueError): no list, or a column of it is missing or cannot be what it is to
            be; images that are not there, or that are listed twice.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is no list of images: expected a .csv or .parquet file, or a folder."
        )
    path = path.resolve()
    table = _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)
    if not table.images:
        raise InputError(f"{path} has no rows: expected one an image.")
    names = _class_names(path, table)
    sources = [_source(path, number, image) for number, image in enumerate(table.images, 1)]
    in_files = [source for source in sources if isinstance(source, str)]
    _check_files(path, list(dict.fromkeys(in_files)) if table.corners else in_files)
    if 0 < len(in_files) < len(sources):  # some inside, some beside the list
        sources = [read_file(s) if isinstance(s, str) else s for s in sources]
    images: dict[str, list[Labeled]] = {}
    splits = _splits(path, table, whole)
    for source, name, split, found in _images(path, table, sources, names, splits, boxes):
        images.setdefault(split, []).append(Labeled(source, name, _key(source, name), found))
    images = {
        split: images[split] for split in ("train", "validation", "test", "all") if split in images
    }
    if "train" not in images and not whole:
        raise InputError(
            f"{path} has rows of {', '.join(images)}, and none of train to train on: add them, or "
            "leave out the column of splits."
        )
    has_validation = "validation" in images
    return labeled.to_data(
        str(path),
        path.stem,
        images,
        classes=table.class_names,
        held_out=None if has_validation or whole else held_out,
        validation=f"the rows of validation in {path.name}" if has_validation else "",
        skip_unreadable=skip_unreadable,
    )


def _csv(path: Path) -> _Table:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            mark = separator(first)
            rows = list(csv.DictReader(file, delimiter=mark, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no UTF-8 .csv file ({error}): save it as one.") from error
    found = find_columns(path, list(rows[0]) if rows else next(csv.reader([first], delimiter=mark)))
    uneven = [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]
    if uneven:
        raise InputError(
            f"{path}: line {uneven[0]} has more or fewer fields than the first line: expected a "
            "field a column; quote fields that contain the separator."
        )
    columns = {name: [row[column] for row in rows] for name, column in found.items()}
    corners = _corners(columns)
    return _Table(columns["image"], columns["label"], columns.get("split"), None, corners)


def _parquet(path: Path) -> _Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        about = parquet.ParquetFile(path)
        schema, rows = about.schema_arrow, about.metadata.num_rows
        found = find_columns(path, schema.names)
        if rows > MOST_ROWS:
            raise InputError(f"{path} has {rows:,} rows; {MOST_ROWS:,} are the most that are read.")
        table = parquet.read_table(path, columns=list(found.values()))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no .parquet file ({str(error)[:200]}).") from error
    columns = {name: table.column(column).to_pylist() for name, column in found.items()}
    names = _hub_names(schema, found["label"])
    corners = _corners(columns)
    return _Table(columns["image"], columns["label"], columns.get("split"), names, corners)


def _hub_names(schema: Any, column: str) -> list[str] | None:
    """Return the class names that Hugging Face datasets writes into a .parquet file, if any."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in about["info"]["features"][column]["names"]] or None
    except (KeyError, TypeError, ValueError):
        return None


def separator(first: str) -> str:
    """Return what separates the fields of a .csv file, by its first line."""
    return next((mark for mark in ",;\t" if mark in first), ",")


def find_columns(
    path: str | Path,
    columns: Sequence[str],
    kinds: Mapping[str, Sequence[str]] = COLUMNS,
    needed: Sequence[str] = ("image", "label"),
) -> dict[str, str]:
    """Return the column of each kind, by its names: the first of them that there is.

    Raises:
        InputError (a ValueError): there is none of a kind that is needed.
    """
    lowered = {str(column).strip().lower(): column for column in columns}
    found = {
        kind: lowered[name]
        for kind, names in kinds.items()
        for name in reversed(names)
        if name in lowered
    }
    for kind in needed:
        if kind not in found:
            raise InputError(
                f"{path} has no column {kind}: expected one of {', '.join(kinds[kind])}; "
                f"received {', '.join(map(str, columns)) or 'none'}."
            )
    return found


def _corners(columns: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]] | None:
    """Return the corners of each row, where the table has all four columns."""
    if not set(box_files.CORNERS) <= columns.keys():
        return None
    return list(zip(*(columns[name] for name in box_files.CORNERS), strict=True))


def boxes_of_files(path: Path) -> dict[str, list[Box]]:
    """Return the boxes in a .csv file, by the paths of their images.

    Raises:
        InputError (a ValueError): a column is missing, or a row has no image, label or good box.
    """
    path = path.resolve()
    table = _csv(path)
    names = _class_names(path, table)
    found: dict[str, list[Box]] = {}
    for number, (image, name) in enumerate(zip(table.images, names, strict=True), 1):
        file = os.path.normpath(str(_source(path, number, image)))
        found.setdefault(file, []).append(_box(path, table, number, name))
    return found


def _box(path: Path, table: _Table, number: int, name: str) -> Box:
    """Return the box of a row, by its number."""
    if table.corners is None:
        raise InputError(
            f"{path} has no boxes: expected the columns {', '.join(box_files.CORNERS)}, px."
        )
    return box_files.box(name, table.corners[number - 1], f"{path}: row {number}")


def _images(
    path: Path,
    table: _Table,
    sources: Sequence[str | bytes],
    names: Sequence[str],
    splits: Sequence[str],
    boxes: bool,
) -> Iterator[tuple[str | bytes, str, str, tuple[Box, ...] | None]]:
    """Yield (source, class, split, boxes) of every image; where rows are boxes, it has several."""
    rows: dict[str | bytes | int, list[int]] = {}
    for i, source in enumerate(sources):
        rows.setdefault(i if table.corners is None else source, []).append(i)
    for first, *others in rows.values():
        for other in others:
            for what, values in (("class", names), ("split", splits)):
                if values[first] != values[other]:
                    raise InputError(
                        f"{path}: row {other + 1} has another {what}, {values[other]!r}, for the "
                        f"image of row {first + 1}, {values[first]!r}: expected one an image."
                    )
        found = (_box(path, table, i + 1, names[i]) for i in (first, *others))
        yield sources[first], names[first], splits[first], tuple(found) if boxes else None


def _class_names(path: Path, table: _Table) -> list[str]:
    """Return the class of every row.

    Raises:
        InputError (a ValueError): a label that is missing, neither text nor a whole number, or not
            the number of a class that has a name.
    """
    for number, label in enumerate(table.labels, 1):
        if isinstance(label, str):
            label = label.strip()
        if label is None or label == "" or not isinstance(label, str | int | float):
            raise InputError(f"{path}: row {number} has no label: expected text or a whole number.")
    numbers = [label for label in table.labels if _is_fraction(label)]
    if numbers and len(numbers) == sum(not _is_whole(label) for label in table.labels):
        raise InputError(
            f"{path}: labels such as {numbers[0]} are no classes: expected text or whole numbers."
        )
    names = table.class_names
    if names is None:
        return [str(label).strip() for label in table.labels]
    wrong = [
        label for label in table.labels if not (_is_whole(label) and 0 <= int(label) < len(names))
    ]
    if wrong:
        raise InputError(
            f"{path}: label {wrong[0]!r} is none of 0 to {len(names) - 1}, the classes that the "
            "file names."
        )
    return [names[int(label)] for label in table.labels]


def _is_whole(label: Any) -> bool:
    return isinstance(label, int) or (
        isinstance(label, str) and label.strip().lstrip("-").isdecimal()
    )


def _is_fraction(label: Any) -> bool:
    if _is_whole(label):
        return False
    try:
        float(label)
    except ValueError:
        return False
    return True


def _source(path: Path, number: int, image: Any) -> str | bytes:
    """Return the path or the bytes of a row's image."""
    if isinstance(image, dict):  # as Hugging Face datasets writes them
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes) and image:
        return image
    if isinstance(image, str) and image.strip():
        return os.path.join(path.parent, os.path.expanduser(image.strip()))
    raise InputError(f"{path}: row {number} has no image: expected the path of one.")


def _key(source: str | bytes, class_name: str) -> str:
    """Return what decides whether an image is held out: as in class folders, where it can be."""
    if isinstance(source, str):
        return f"{class_name}/{os.path.basename(source)}"
    return f"{class_name}/{hashlib.sha256(source).hexdigest()}"


def _check_files(path: Path, sources: Sequence[str]) -> None:
    """Raise InputError where listed files are not there, or are listed twice."""
    counts = Counter(os.path.normpath(source) for source in sources)
    missing = [source for source in counts if not os.path.exists(source)]
    if missing:
        raise InputError(
            f"{path} names {len(missing):,} files that are not there, of {len(counts):,}: "
            f"{some(missing)}. Paths are taken from the list's folder on."
        )
    twice = [source for source, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            f"{path} names {len(twice):,} files more than once: {some(twice)}. Expected a row an "
            "image, or one image would train and validate."
        )


def _splits(path: Path, table: _Table, whole: bool) -> list[str]:
    """Return the split of every row."""
    if table.splits is None:
        return ["all" if whole else "train"] * len(table.images)
    names = [str(split if split is not None else "").strip().lower() for split in table.splits]
    unknown = sorted(set(names) - SPLITS.keys())
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise InputError(
            f"{path} has splits {', '.join(map(repr, unknown[:NAMED]))}{more}: expected train, "
            "validation (or val, valid) or test in every row."
        )
    return [SPLITS[name] for name in names]
