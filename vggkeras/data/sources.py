"""A data string -> splits of encoded images with labels, class names, and the training split's mean RGB.

digits                     scikit-learn's 1,797 handwritten digits, embedded, no download
tfds:NAME[/CONFIG]         TensorFlow Datasets; TFDS_DATA_DIR says where
a folder                   train/ and val/ (or valid/, validation/), perhaps test/, each with a folder a class;
                           or class folders alone, a fifth of which is held out by a stable hash of the file's name
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vggkeras.data import imagenet
from vggkeras.data.decoding import SIGNATURES, SUFFIXES
from vggkeras.data.splits import VALIDATION_NAMES, Data, Split
from vggkeras.errors import InputError

HELD_OUT = 5  # one image in five, where a folder has no validation split of its own
EXPECTED = "expected digits, tfds:NAME or tfds:NAME/CONFIG, or the path of a folder of images"


def load_data(spec: str, *, skip_unreadable: bool = False) -> Data:
    """Find a data set's splits and class names, and take a quick look at every file's first bytes.

    Args:
        spec: digits, tfds:NAME, tfds:NAME/CONFIG, or a folder (see the module's docstring).
        skip_unreadable: leave out files that are no image, instead of refusing them.

    Raises:
        InputError (a ValueError): unknown string; missing, empty or one-class folder; a file that is no image.
    """
    if spec == "digits":
        return _digits()
    if spec.startswith("tfds:"):
        return _tfds(spec)
    return _folder(spec, skip_unreadable)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()  # images [1797, 8, 8], 0-16
    sources = []
    for image in digits.images:
        grey = Image.fromarray(np.uint8(np.round(image * (255 / 16))))
        buffer = io.BytesIO()
        grey.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB").save(
            buffer, "PNG", compress_level=1
        )
        sources.append(buffer.getvalue())
    labels = digits.target.astype(np.int64)
    # Fixed, so that two people's figures are of the same images.
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )

    def split(name: str, indices: np.ndarray) -> Split:
        return Split(f"digits/{name}", len(indices), labels[indices], [sources[i] for i in indices])

    splits = {"train": split("train", train), "validation": split("validation", validation)}
    return Data("digits", [str(i) for i in range(10)], splits, native_size=32, mirrors=False)


def _tfds(spec: str) -> Data:
    import tensorflow_datasets as tfds

    name = spec.removeprefix("tfds:")
    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split()).split(" Available")[0][:200]
        raise InputError(
            f"Unknown data {spec!r}: {EXPECTED}; TensorFlow Datasets has no {name!r} ({reason})."
        ) from error
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(
        features
    ):
        raise InputError(
            f"{spec} is not for classification: expected features image and label; received {features}."
        )
    if not Path(builder.data_dir).exists():
        try:
            builder.download_and_prepare()
        except Exception as error:
            raise InputError(
                f"{spec} is not in {builder.data_dir} and could not be downloaded ({error}): set TFDS_DATA_DIR to the "
                "folder that holds it, or prepare it with `tfds build`."
            ) from error
    found = builder.info.splits
    # A set with no validation split holds out the last tenth of its training split.
    names = {"train": "train", "validation": "validation", "test": "test"}
    if "validation" not in found:
        names |= {"train": "train[:90%]", "validation": "train[90%:]"}
    splits = {}
    for ours, theirs in names.items():
        if theirs.split("[")[0] in found:
            splits[ours] = Split(
                f"{name}/{ours}", found[theirs].num_examples, builder=builder, records=theirs
            )
    if "train" not in splits:
        raise InputError(f"{spec} has no split train; it has {', '.join(found)}.")
    return Data(spec, _readable(list(features["label"].names)), splits)


def _folder(spec: str, skip_unreadable: bool) -> Data:
    root = Path(spec).expanduser()
    if not spec or not root.is_dir():
        raise InputError(f"Unknown data {spec!r}: {EXPECTED}; there is no such folder here.")
    root = root.resolve()
    named = {folder.name: folder for folder in _folders(root)}
    found: dict[str, list[tuple[str, str]]] = {}  # split -> (path, class name)
    if "train" in named:
        found["train"] = _class_files(named["train"])
        for name in VALIDATION_NAMES:
            if name in named:
                found["validation"] = _class_files(named[name])
                break
        if "test" in named:
            found["test"] = _class_files(named["test"])
    else:
        found["train"] = _class_files(root)
    if not found["train"]:
        raise InputError(
            f"{spec} has no images: expected {root.name}/train/CLASS/*.jpg or {root.name}/CLASS/*.jpg "
            f"({', '.join(SUFFIXES)})."
        )
    classes = sorted({label for _, label in found["train"]})
    if len(classes) < 2:
        raise InputError(
            f"{spec} has one class, {classes[0]!r}: a classifier needs images in two class folders or more."
        )
    if "validation" not in found:
        held = [_hash(path) % HELD_OUT == 0 for path, _ in found["train"]]
        found["validation"] = [item for item, out in zip(found["train"], held, strict=True) if out]
        found["train"] = [item for item, out in zip(found["train"], held, strict=True) if not out]
        lost = sorted(set(classes) - {label for _, label in found["train"]})
        if lost or not found["validation"]:
            raise InputError(
                f"{spec} has too few images to hold out one in {HELD_OUT} for validation: give more images "
                f"({'class ' + repr(lost[0]) if lost else 'validation'} would get none), or folders train/ and val/."
            )
    skipped: list[str] = []
    splits = {}
    number = {name: i for i, name in enumerate(classes)}
    for name, items in found.items():
        strange = sorted({label for _, label in items} - set(classes))
        if strange:
            raise InputError(f"{spec}: split {name} has a class {strange[0]!r} that train has not.")
        if not items:
            raise InputError(f"{spec}: split {name} has no images.")
        bad = _without_signature([path for path, _ in items])
        if bad and not skip_unreadable:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise InputError(
                f"{bad[0]}{more} is not a JPEG, PNG, BMP or GIF image: replace or remove it, or pass --skip-unreadable."
            )
        skipped += bad
        lost_paths = set(bad)
        items = [item for item in items if item[0] not in lost_paths]
        if not items:
            raise InputError(f"{spec}: split {name} has no readable image.")
        labels = np.array([number[label] for _, label in items], np.int64)
        splits[name] = Split(f"{root.name}/{name}", len(items), labels, [path for path, _ in items])
    return Data(str(root), _readable(classes), splits, skipped=tuple(skipped))


def _readable(names: list[str]) -> list[str]:
    """Class names; ImageNet's own, as models of its classes call them, where these are its 1000 WordNet ids."""
    return imagenet.class_names() if names == imagenet.wnids() else names


def _folders(root: Path) -> list[Path]:
    return sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _class_files(root: Path) -> list[tuple[str, str]]:
    files = []
    for folder in _folders(root):
        names = sorted(
            e.name for e in os.scandir(folder) if not e.name.startswith(".") and not e.is_dir()
        )
        files += [
            (str(folder / name), folder.name) for name in names if name.lower().endswith(SUFFIXES)
        ]
    return files


def _hash(path: str) -> int:
    """Of class/file, so that neither the folder's place nor other files move an image between the splits."""
    return int.from_bytes(
        hashlib.sha256("/".join(Path(path).parts[-2:]).encode()).digest()[:8], "big"
    )


def _without_signature(paths: list[str]) -> list[str]:
    def bad(path: str) -> bool:
        if not os.path.exists(path):  # a link to nothing
            return True
        with open(path, "rb") as file:
            return not file.read(8).startswith(SIGNATURES)

    with ThreadPoolExecutor() as pool:
        return [
            path
            for path, is_bad in zip(paths, pool.map(bad, paths, chunksize=64), strict=True)
            if is_bad
        ]
