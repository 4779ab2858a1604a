"""Data of a Python program: arrays, or a tf.data.Dataset of its own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vggkeras.configs import MINIMUM_SIDE
from vggkeras.data import labeled
from vggkeras.data.decoding import decoded, in_threads
from vggkeras.data.labeled import Labeled
from vggkeras.data.splits import Data
from vggkeras.errors import InputError

PREFIX = "arrays:"  # of their data string, which ends in a digest of them
NATIVE_SIZE = 224  # px; of smaller images, their smallest side

Pair = tuple[Any, Any]  # images and labels


def from_arrays(
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    *,
    validation: float | Pair = labeled.HELD_OUT,
    test: Pair | None = None,
    mirrors: bool = True,
) -> Data:
    """Return data of arrays; see `Data.from_arrays`."""
    splits = {"train": _encoded(images, labels, "images")}
    if isinstance(validation, tuple | list):
        splits["validation"] = _encoded(*validation, "validation")
    if test is not None:
        splits["test"] = _encoded(*test, "test")
    fraction = None if isinstance(validation, tuple | list) else validation
    return _to_data(splits, class_names, fraction, mirrors)


def from_tf_data(
    dataset: Any,
    class_names: Sequence[str] | None = None,
    *,
    validation: float | Any = labeled.HELD_OUT,
    test: Any = None,
    mirrors: bool = True,
) -> Data:
    """Return data of tf.data.Datasets; see `Data.from_tf_data`."""
    splits = {"train": _elements(dataset)}
    if not isinstance(validation, int | float):
        splits["validation"] = _elements(validation)
    if test is not None:
        splits["test"] = _elements(test)
    fraction = validation if isinstance(validation, int | float) else None
    return _to_data(splits, class_names, fraction, mirrors)


def _to_data(
    splits: dict[str, list[tuple[bytes, int]]],
    class_names: Sequence[str] | None,
    fraction: float | None,
    mirrors: bool,
) -> Data:
    if fraction is not None:
        labeled.check_fraction(fraction)
    largest = max(label for members in splits.values() for _, label in members)
    given = range(largest + 1) if class_names is None else class_names
    names = [str(name) for name in given]
    if largest >= len(names):
        raise InputError(
            f"labels must be below {len(names)}, the number of class_names; received {largest}."
        )
    if len(set(names)) < len(names):
        raise InputError("class_names must differ from each other.")
    digest, sides = hashlib.sha256(str(mirrors).encode()), []
    images: dict[str, list[Labeled]] = {}
    for split, members in splits.items():
        images[split] = []
        for number, (content, label) in enumerate(members):
            digest.update(hashlib.sha256(content).digest() + label.to_bytes(8, "big"))
            images[split].append(Labeled(content, names[label], f"{names[label]}/{number}"))
    data = labeled.to_data(
        PREFIX + digest.hexdigest()[:16],
        "arrays",
        images,
        classes=names,
        held_out=fraction,
        validation="" if fraction else "given as validation",
    )
    for number, (content, _) in enumerate(splits["train"]):
        sides.append(decoded(content, f"image {number}", lambda image: min(image.size), exif=False))
    native = min(NATIVE_SIZE, max(MINIMUM_SIDE, min(sides)))
    return data.suited(native, mirrors)


def _encoded(images: Any, labels: Any, what: str) -> list[tuple[bytes, int]]:
    """Return images as PNG files, which lose nothing, with their labels."""
    numbers = _checked_labels(labels, what)
    if len(images) != len(numbers):
        raise InputError(
            f"{what}: expected a label an image; received {len(images)} images and "
            f"{len(numbers)} labels."
        )
    if not len(images):
        raise InputError(f"{what}: expected images; received none.")
    pictures = in_threads(_png, ((image, f"{what}[{i}]") for i, image in enumerate(images)))
    return list(zip(pictures, numbers, strict=True))


def _checked_labels(labels: Any, what: str) -> list[int]:
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:  # as keras.datasets gives them
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        advice = ": give labels.argmax(axis=1)" if array.ndim == 2 else ""
        raise InputError(
            f"{what}: labels must be whole numbers [N]; received {array.dtype} of shape "
            f"{list(array.shape)}{advice}."
        )
    if array.size and array.min() < 0:
        raise InputError(f"{what}: labels must be 0 or more; received {array.min()}.")
    return [int(label) for label in array]


def _png(image: Any, name: str) -> bytes:
    """Return an image, uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, as a PNG file."""
    array = np.asarray(image)
    good = array.ndim in (2, 3) and array.shape[2:] in ((), (1,), (3,)) and array.size
    if array.dtype != np.uint8 or not good:
        is_float = array.dtype.kind == "f" and array.size and array.max() <= 1
        advice = ": give np.round(255 * images).astype('uint8')" if is_float else ""
        raise InputError(
            f"{name}: expected uint8 [H, W, 3] or [H, W, 1], 0-255; received {array.dtype} of "
            f"shape {list(array.shape)}{advice}."
        )
    buffer = io.BytesIO()
    picture = array[..., 0] if array.shape[2:] == (1,) else array
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _elements(dataset: Any) -> list[tuple[bytes, int]]:
    """Return the images of a tf.data.Dataset, encoded, with their labels."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise InputError(
            f"Expected a tf.data.Dataset of (image, label); received {type(dataset).__name__}."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("Expected a tf.data.Dataset with an end; received one that repeats.")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise InputError(f"Expected a tf.data.Dataset of (image, label); received {spec}.")
    if spec[1].shape.rank not in (0, None) and spec[1].shape != (1,):
        raise InputError(
            f"Expected a label an image, a whole number; received {spec[1]}: is it batched, or one-"
            "hot? Give dataset.unbatch(), or map labels to their tf.argmax."
        )
    found = []
    for number, (image, label) in enumerate(_examples(dataset)):
        numbers = np.asarray(label).reshape(-1)
        if numbers.dtype.kind not in "iu" or len(numbers) != 1:
            raise InputError(f"Expected labels that are whole numbers; received {label!r}.")
        name = f"dataset[{number}]"
        found.append((image if isinstance(image, bytes) else _png(image, name), int(numbers[0])))
    if not found:
        raise InputError("Expected a tf.data.Dataset of images; received an empty one.")
    _checked_labels([label for _, label in found], "dataset")
    return found


def _examples(dataset: Any) -> Iterator[tuple[Any, Any]]:
    examples: Iterable[tuple[Any, Any]] = dataset.as_numpy_iterator()
    yield from examples
