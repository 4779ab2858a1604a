"""Data of Hugging Face datasets: by name, or of a local folder that the library can load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras.data import imagenet, labeled
from vggkeras.data.decoding import check_names
from vggkeras.data.splits import VALIDATION_NAMES, Data, Split, Stored
from vggkeras.errors import InputError
from vggkeras.hub import OWNED, PREFIX, not_installed, one_line

if TYPE_CHECKING:
    import datasets

LABELS = ("label", "labels", "fine_label", "class")
NAME = re.compile(rf"{OWNED}|[A-Za-z0-9][\w.-]*")
# Names with which the library reads whatever lies in the current folder.
BUILDERS = (
    *("arrow", "audiofolder", "csv", "eval", "hdf5", "imagefolder", "json", "lance", "nifti"),
    *("pandas", "parquet", "pdffolder", "sql", "text", "videofolder", "webdataset", "xml"),
)


def load(spec: str, held_out: float, fetch: bool, whole: bool) -> Data:
    """Return a data set of Hugging Face datasets; see `sources.load_data`.

    Raises:
        InputError (a ValueError): the library is missing; there is no such data set, or it would
            have to be fetched; it has no images, or no labels.
    """
    spec, found = _loaded(spec, fetch)
    first = next(iter(found.values()))
    image, label = _columns(spec, first.features)
    rows = {name: found[name] for name in found if _is_labeled(found[name], label)}
    known = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")
    rows = {known.get(name, name): part for name, part in rows.items() if whole or name in known}
    if "train" not in rows and not whole:
        raise InputError(f"{spec} has no labeled split train; it has {', '.join(found)}.")
    classes = _classes(rows, label)
    check_names((), classes)
    if len(classes) < 2:
        raise InputError(f"{spec} has fewer than two classes: a classifier needs two or more.")
    name = spec.removeprefix(PREFIX)
    splits = {
        split: _split(f"{name}/{split}", part, image, label, classes)
        for split, part in rows.items()
    }
    divided = not whole and "validation" not in splits
    origin = "the split validation" if "validation" in splits else ""
    if divided:
        splits |= _divided(spec, splits["train"], held_out)
        origin = f"held out: {held_out:.6g} of the images, by a hash of their number"
    return Data(
        spec,
        imagenet.readable(classes),
        splits,
        validation=origin,
        held_out=held_out if divided else None,
    )


def _loaded(spec: str, fetch: bool) -> tuple[str, Mapping[str, datasets.Dataset]]:
    """Return the data string, with the whole path of a folder, and the splits by name."""
    name, _, config = spec.removeprefix(PREFIX).partition(":")
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        name = str(folder.resolve())
        spec = f"hf:{name}:{config}" if config else f"hf:{name}"
    elif not NAME.fullmatch(name) or not re.fullmatch(r"[\w.-]*", config) or name in BUILDERS:
        raise InputError(
            f"Unknown data {spec!r}: expected hf:NAME, hf:OWNER/NAME, with :CONFIG where there are "
            "several, or hf:FOLDER."
        )
    elif not fetch:  # the library would ask the hub whether it has that name
        raise InputError(
            f"{spec} is not on this machine, and nothing is downloaded because a model's file "
            f"names it: give --data {spec}."
        )
    try:
        import datasets
    except ImportError as error:
        raise not_installed(spec, "Hugging Face datasets", "hf") from error
    once = datasets.DownloadConfig(max_retries=1)
    try:
        return spec, datasets.load_dataset(name, config or None, download_config=once)
    except Exception as error:  # of the library, of the network, of the data set
        raise InputError(
            f"Unknown data {spec!r}: Hugging Face datasets cannot load it ({one_line(error)}). "
            "Expected hf:NAME, hf:NAME:CONFIG or hf:FOLDER."
        ) from error


def _columns(spec: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the column of images and of that of labels."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in LABELS if _is_text_or_whole(features.get(name))]
    preferred = [name for name in LABELS if name in labels]
    if len(images) != 1 or not labels:
        raise InputError(
            f"{spec} is not for classification: expected a column of images and one of labels; "
            f"received {', '.join(f'{name}: {kind}' for name, kind in features.items())[:300]}."
        )
    return images[0], (preferred or labels)[0]


def _is_text_or_whole(kind: Any) -> bool:
    return re.fullmatch(r"u?int\d+|(large_)?string", str(getattr(kind, "dtype", ""))) is not None


def _is_labeled(rows: datasets.Dataset, column: str) -> bool:
    """Return whether all rows have a label: those of a contest's test split are -1."""
    labels = rows.with_format("arrow")[:][column]
    return len(rows) > 0 and not labels.null_count and "-1" not in map(str, labels.unique())


def _classes(rows: Mapping[str, datasets.Dataset], column: str) -> list[str]:
    """Return the names of the classes, in the order of the labels where they are numbers."""
    kind = next(iter(rows.values())).features[column]
    if names := getattr(kind, "names", None):
        return list(names)
    known = [rows["train"]] if "train" in rows else list(rows.values())
    return labeled.sorted_classes({str(label) for part in known for label in part.unique(column)})


def _split(name: str, rows: datasets.Dataset, image: str, label: str, classes: list[str]) -> Split:
    import datasets

    values = rows.with_format("arrow")[:][label].to_pylist()
    if not hasattr(rows.features[label], "names"):
        numbers = {class_name: number for number, class_name in enumerate(classes)}
        unknown = sorted({str(value) for value in values} - numbers.keys())
        if unknown:
            raise InputError(f"{name} has a class {unknown[0]!r} that train has not.")
        values = [numbers[str(value)] for value in values]
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(index: int) -> bytes:
        found = encoded[index][image]
        if found["bytes"] is not None:
            return found["bytes"]
        with open(found["path"], "rb") as file:
            return file.read()

    return Split(name, len(rows), np.array(values, np.int64), Stored(read, range(len(rows))))


def _divided(spec: str, split: Split, fraction: float) -> dict[str, Split]:
    held = [i for i in range(split.count) if labeled.is_held_out(str(i), fraction)]
    rest = sorted(set(range(split.count)) - set(held))
    if not held or not rest:
        raise InputError(
            f"{spec} has too few images to hold out {fraction:.6g} of them: give another "
            "--validation, or data with a validation split."
        )
    name = split.name.removesuffix("train")
    return {
        "train": split.without(held),
        "validation": split.without(rest).named(f"{name}validation"),
    }
