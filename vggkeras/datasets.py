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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from vggkeras import imagenet
from vggkeras.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8")
VALIDATION_NAMES = ("validation", "val", "valid")
NAMED = 10  # unreadable images named in an error
HELD_OUT = 5  # one image in five, where a folder has no validation split of its own
EXPECTED = "expected digits, tfds:NAME or tfds:NAME/CONFIG, or the path of a folder of images"

T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Encoded images with labels, always in the same order.

    `sources` holds paths, or encoded images themselves; where a TFDS builder is given instead, it is its records.
    """

    name: str
    count: int
    labels: np.ndarray | None = None  # int64 [count]; None while in TFDS records
    sources: list[Any] | None = None  # str paths, or bytes
    builder: Any = None  # tfds.core.DatasetBuilder
    records: str = ""  # TFDS' name of the split, such as "train" or "train[:90%]"
    left_out: frozenset[int] = frozenset()  # indices of records to pass over

    def image_name(self, index: int) -> str:
        """What to call an image in a message: its path, or its place in the data set."""
        if self.sources is not None and isinstance(self.sources[index], str):
            return str(self.sources[index])
        return f"{self.name}[{index}]"

    def examples(self) -> Iterator[tuple[int, bytes, int]]:
        """(index, encoded image, label) of every image, in order. TensorFlow is loaded for TFDS alone."""
        if self.sources is None:
            for index, (encoded, label) in enumerate(self._records().as_numpy_iterator()):
                if index not in self.left_out:
                    yield index, encoded, int(label)
            return
        assert self.labels is not None
        for index, (source, label) in enumerate(zip(self.sources, self.labels, strict=True)):
            yield (
                index,
                Path(source).read_bytes() if isinstance(source, str) else source,
                int(label),
            )

    def shuffled(self, seed: int, start: int = 0):
        """tf.data.Dataset without end of (epoch, index, encoded image, label), in a new order every epoch.

        It begins at the `start`-th example of the endless row, without decoding those before. The order of an epoch
        is a pure function of (seed, epoch). TFDS records are read in turn and drawn from 10,000 that wait, encoded.
        """
        import tensorflow as tf

        if self.sources is not None:
            lookup = self._lookup()
            return shuffled_indices(self.count, seed, start).map(
                lambda epoch, index: (epoch, *lookup(index)), tf.data.AUTOTUNE
            )
        records = self._enumerated_records()
        variant = tf.data.experimental.to_variant(records)

        def one_pass(epoch):
            # Dataset.shuffle() takes no tensor for a seed.
            drawn = tf.raw_ops.ShuffleDataset(
                input_dataset=variant,
                buffer_size=min(self.count, 10_000),
                seed=seed,
                seed2=epoch + 1,  # where both are 0, the order would be any
                reshuffle_each_iteration=False,
                output_types=[spec.dtype for spec in records.element_spec],
                output_shapes=[spec.shape for spec in records.element_spec],
            )
            dataset = tf.data.experimental.from_variant(drawn, records.element_spec)
            return dataset.map(lambda index, encoded, label: (epoch, index, encoded, label))

        first, passed = divmod(start, self.count)
        return tf.data.Dataset.range(first, tf.int64.max).flat_map(one_pass).skip(passed)

    def _lookup(self) -> Callable:
        """index -> (index, encoded image, label), as TensorFlow ops."""
        import tensorflow as tf

        assert self.sources is not None
        sources, labels = tf.constant(self.sources), tf.constant(self.labels)
        in_files = isinstance(self.sources[0], str)
        return lambda i: (i, tf.io.read_file(sources[i]) if in_files else sources[i], labels[i])

    def _enumerated_records(self):
        import tensorflow as tf

        records = self._records().enumerate().map(lambda index, example: (index, *example))
        if self.left_out:
            lost = tf.constant(sorted(self.left_out), tf.int64)
            records = records.filter(lambda index, *_: tf.reduce_all(index != lost))
        return records

    def indices(self) -> list[int]:
        """What `examples` counts by: places in the split, or, of TFDS records, in the whole of them."""
        return [i for i in range(self.count + len(self.left_out)) if i not in self.left_out]

    def without(self, indices: Iterable[int]) -> Split:
        """The split less some of its images, by index."""
        lost = frozenset(indices)
        if self.sources is None:
            return replace(self, count=self.count - len(lost), left_out=self.left_out | lost)
        kept = [i for i in range(self.count) if i not in lost]
        assert self.labels is not None
        return replace(
            self, count=len(kept), labels=self.labels[kept], sources=[self.sources[i] for i in kept]
        )

    def _records(self):
        import tensorflow_datasets as tfds

        data = self.builder.as_dataset(
            split=self.records, shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return data.map(lambda example: (example["image"], example["label"]))


@dataclass(frozen=True)
class Data:
    """What a data string names."""

    spec: str  # folders resolved to absolute paths
    class_names: list[str]
    splits: dict[str, Split]  # train, validation, and test where there is one
    native_size: int = 224  # training crop that suits it
    mirrors: bool = True  # whether a mirrored image is still one of its class
    skipped: tuple[str, ...] = ()  # unreadable images left out

    def split(self, name: str) -> Split:
        """A split by name; val and valid mean validation. Raises InputError naming the splits there are."""
        found = self.splits.get("validation" if name in VALIDATION_NAMES else name)
        if found is None:
            raise InputError(
                f"{self.spec} has no split {name!r}: choose one of {', '.join(self.splits)}."
            )
        return found


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


def unreadable(names: list[str], where: str) -> InputError:
    """The error that counts images that cannot be read, and names the first of them."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return InputError(
        f"{', '.join(names[:NAMED])}{more} cannot be read as JPEG, PNG, BMP or GIF images ({len(names)} of {where}): "
        "replace or remove them, or pass --skip-unreadable."
    )


def in_threads(function: Callable[..., T], items: Iterable[tuple]) -> Iterator[T]:
    """`function(*item)` of every item, in order, worked ahead by a few items a core: memory stays bounded."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, *item))
                if len(waiting) > 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def decode(encoded: bytes, name: str = "image") -> np.ndarray:
    """An encoded JPEG, PNG, BMP or GIF (first frame) as RGB, uint8 `[H, W, 3]`.

    Greyscale and CMYK are converted; transparent pixels are laid on white. EXIF orientation is not applied, as in
    training. Raises InputError naming the image when it cannot be read whole.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "BMP", "GIF")) as image:
            image.load()
            return np.asarray(_to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is none of them" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"{name} cannot be read as a JPEG, PNG, BMP or GIF image ({reason}): replace or remove it, "
            "or pass --skip-unreadable where the command has it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip rather than scale
        return Image.fromarray(
            (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
        ).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class Pixels(NamedTuple):
    """What a pass over the training images notes of each."""

    mean: np.ndarray  # of RGB, 0-255, float64 [3]
    products: np.ndarray  # mean of the products of two channels, float64 [3, 3]
    smallest_side: int  # px


def read_all(split: Split) -> Iterator[tuple[int, Pixels | InputError]]:
    """Every image's (index, `Pixels`), or the error where it cannot be read; in order."""

    def read(index: int, encoded: bytes, label: int):
        try:
            image = decode(encoded, split.image_name(index))
        except InputError as error:
            return index, error
        rgb = image.reshape(-1, 3).astype(
            np.float64
        )  # sums of whole numbers: exact, whatever their order
        return index, Pixels(rgb.mean(axis=0), rgb.T @ rgb / len(rgb), min(image.shape[:2]))

    return in_threads(read, split.examples())


def rgb_statistics(images: Iterable[Pixels]) -> tuple[tuple[float, float, float], np.ndarray]:
    """The training set's mean RGB, 0-255, and covariance of RGB, float64 `[3, 3]`; each image counts once."""
    mean, products, count = np.zeros(3), np.zeros((3, 3)), 0
    for image in images:
        mean += image.mean
        products += image.products
        count += 1
    mean /= count
    r, g, b = mean.tolist()
    return (r, g, b), products / count - np.outer(mean, mean)


def shuffled_indices(count: int, seed: int, start: int = 0):
    """tf.data.Dataset without end of (epoch, index), int64: the numbers below `count` in a new order every epoch.

    It begins at the `start`-th pair; an epoch's order is a pure function of (seed, epoch).
    """
    import tensorflow as tf

    def pair(place):
        epoch = place // count
        return epoch, tf.random.experimental.index_shuffle(
            place % count,
            tf.stack([tf.constant(seed, tf.int64), epoch]),
            tf.constant(count - 1, tf.int64),
        )

    return tf.data.Dataset.range(start, tf.int64.max).map(pair)
