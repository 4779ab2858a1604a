"""The splits of a data set: encoded images with labels, in order or shuffled for training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras.data.boxes import Boxes
from vggkeras.data.decoding import read_file
from vggkeras.data.order import ALL, Share, shuffled_indices
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VALIDATION_NAMES = ("validation", "val", "valid")
WAITING = 10_000  # encoded records from which the next one is drawn


@dataclass(frozen=True)
class Records:
    """The records of a split in TensorFlow Datasets."""

    builder: tfds.core.DatasetBuilder
    split: str  # as TFDS names it: "train", or "train[:90%]"

    def dataset(self):
        """Return a tf.data.Dataset of (encoded image, label), always in the same order."""
        import tensorflow_datasets as tfds

        data = self.examples({"image": tfds.decode.SkipDecoding()})
        return data.map(lambda example: (example["image"], example["label"]))

    def examples(self, decoders: Mapping[str, Any]):
        """Return a tf.data.Dataset of all features, joined splits one after the other.

        TFDS itself would mix them.
        """
        parts = [
            self.builder.as_dataset(split=part, shuffle_files=False, decoders=decoders)
            for part in self.split.split("+")
        ]
        return functools.reduce(lambda one, other: one.concatenate(other), parts)


class Stored(Sequence[bytes]):
    """Encoded images that are read one at a time, from where a library stores them."""

    def __init__(self, read: Callable[[int], bytes], indices: Sequence[int]) -> None:
        """Hold the images that `read` gives for these indices."""
        self.read, self.indices = read, indices

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """Return an image, or some of them, which are not read yet."""
        if isinstance(index, slice):
            return Stored(self.read, self.indices[index])
        return self.read(self.indices[index])

    def some(self, indices: Sequence[int]) -> Stored:
        """Return some of the images, which are not read yet."""
        return Stored(self.read, [self.indices[i] for i in indices])

    @classmethod
    def joined(cls, parts: Sequence[Stored]) -> Stored:
        """Return the images of all parts, in order."""
        places = [(part, i) for part in parts for i in range(len(part))]
        return cls(lambda index: places[index][0][places[index][1]], range(len(places)))


@dataclass(frozen=True)
class Split:
    """Encoded images with labels, always in the same order."""

    name: str
    count: int
    labels: np.ndarray | None  # int64 [count]; None: they are in the records
    sources: Sequence[str | bytes] | Records  # paths, encoded images, or TFDS records
    left_out: frozenset[int] = frozenset()  # indices of records to pass over
    exif: bool = False  # whether its images are turned upright, as their EXIF data say
    boxes: Boxes | None = None  # by the index of `examples`; where they were asked for

    def image_name(self, index: int) -> str:
        """Return an image's name for messages: its path, or its index in the split."""
        source = self.sources[index] if isinstance(self.sources, list) else None
        return source if isinstance(source, str) else f"{self.name}[{index}]"

    def indices(self) -> list[int]:
        """Return the indices of `examples`: in the split, or in all of the TFDS records."""
        return [i for i in range(self.count + len(self.left_out)) if i not in self.left_out]

    def without(self, indices: Iterable[int]) -> Split:
        """Return the split without some of its images, by index."""
        removed = frozenset(indices)
        if isinstance(self.sources, Records):
            left_out = self.left_out | removed
            return replace(self, count=self.count - len(removed), left_out=left_out)
        kept = [i for i in range(self.count) if i not in removed]
        assert self.labels is not None
        if isinstance(self.sources, Stored):
            sources: Sequence[str | bytes] = self.sources.some(kept)
        else:
            sources = [self.sources[i] for i in kept]
        boxes = self.boxes and self.boxes.some(kept)
        labels = self.labels[kept]
        return replace(self, count=len(kept), labels=labels, sources=sources, boxes=boxes)

    def named(self, name: str) -> Split:
        """Return the split under another name."""
        return replace(self, name=name)

    def turned(self, upright: bool) -> Split:
        """Return the split with images, and boxes, upright by EXIF data or as they are stored."""
        boxes = self.boxes and self.boxes.turned(upright)
        return replace(self, exif=upright, boxes=boxes)

    def examples(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (index, encoded image, label) in order. Only TFDS records load TensorFlow."""
        for index, source, label in self.sourced():
            yield index, read_file(source) if isinstance(source, str) else source, label

    def sourced(self) -> Iterator[tuple[int, bytes | str, int]]:
        """Yield (index, encoded image or path of its file, label) in order."""
        if isinstance(self.sources, Records):
            for index, (encoded, label) in enumerate(self.sources.dataset().as_numpy_iterator()):
                if index not in self.left_out:
                    yield index, encoded, int(label)
            return
        assert self.labels is not None
        for index, (source, label) in enumerate(zip(self.sources, self.labels, strict=True)):
            yield index, source, int(label)

    def shuffled(self, seed: int, start: int = 0, share: Share = ALL):
        """Return an endless tf.data.Dataset of (epoch, index, encoded image, label).

        Every epoch has another order, a pure function of (seed, epoch). The data set begins at the
        `start`-th example of the endless row, the first one of a batch of `share`, and does not
        decode those before. Of each batch it has those of `share`, and reads no others, but for
        TFDS records: they are read in turn and drawn from `WAITING` encoded ones.
        """
        import tensorflow as tf

        if not isinstance(self.sources, Records):
            lookup = self._lookup()
            return shuffled_indices(self.count, seed, start, share).map(
                lambda epoch, index: (epoch, *lookup(index)), tf.data.AUTOTUNE
            )
        records = self._enumerated_records()
        variant = tf.data.experimental.to_variant(records)

        def one_pass(epoch):
            # Dataset.shuffle() takes no tensor for a seed.
            drawn = tf.raw_ops.ShuffleDataset(
                input_dataset=variant,
                buffer_size=min(self.count, WAITING),
                seed=seed,
                seed2=epoch + 1,  # where both are 0, the order is random
                reshuffle_each_iteration=False,
                output_types=[spec.dtype for spec in records.element_spec],
                output_shapes=[spec.shape for spec in records.element_spec],
            )
            dataset = tf.data.experimental.from_variant(drawn, records.element_spec)
            return dataset.map(lambda index, encoded, label: (epoch, index, encoded, label))

        first_epoch, passed = divmod(start, self.count)
        endless = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(one_pass).skip(passed)
        if share.hosts == 1:
            return endless
        own = endless.enumerate().filter(lambda position, _: share.has(position))
        return own.map(lambda _, example: example)

    def _lookup(self) -> Callable:
        """Return index -> (index, encoded image, label), as TensorFlow ops."""
        import tensorflow as tf

        assert not isinstance(self.sources, Records)
        labels = tf.constant(self.labels)
        if isinstance(self.sources, Stored):
            stored = self.sources

            def read(i):
                encoded = tf.numpy_function(
                    lambda i: stored[int(i)], [i], tf.string, stateful=False
                )
                return i, tf.ensure_shape(encoded, []), labels[i]

            return read
        sources = tf.constant(self.sources)
        in_files = isinstance(self.sources[0], str)
        return lambda i: (i, tf.io.read_file(sources[i]) if in_files else sources[i], labels[i])

    def _enumerated_records(self):
        import tensorflow as tf

        assert isinstance(self.sources, Records)
        records = self.sources.dataset().enumerate()
        records = records.map(lambda index, example: (index, *example))
        if self.left_out:
            left_out = tf.constant(sorted(self.left_out), tf.int64)
            records = records.filter(lambda index, *_: tf.reduce_all(index != left_out))
        return records


@dataclass(frozen=True)
class Data:
    """The classes and splits of the data set that a data string names."""

    spec: str  # folders resolved to absolute paths
    class_names: list[str]
    splits: dict[str, Split]  # train, validation, and test where there is one
    native_size: int = 224  # training crop that suits the images, px
    mirrors: bool = True  # whether a mirrored image is still one of its class
    skipped: tuple[str, ...] = ()  # names of unreadable images that were left out
    # Files in class folders that have no image's suffix: suffix -> number.
    unread: Mapping[str, int] = field(default_factory=dict)
    validation: str = ""  # where the validation images come from, in words
    held_out: float | None = None  # their fraction of the training images, where these were divided
    no_box: Mapping[str, int] = field(default_factory=dict)  # split -> images left out for that

    def upright(self, exif: bool | None) -> Data:
        """Return the data with images that are turned upright by their EXIF data, or are not."""
        splits = {name: split.turned(bool(exif)) for name, split in self.splits.items()}
        return replace(self, splits=splits)

    def suited(self, native_size: int, mirrors: bool) -> Data:
        """Return the data with another training crop, px, and mirroring."""
        return replace(self, native_size=native_size, mirrors=mirrors)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        class_names: Sequence[str] | None = None,
        *,
        validation: float | tuple[Any, Any] = 0.2,
        test: tuple[Any, Any] | None = None,
        mirrors: bool = True,
    ) -> Data:
        """Return data of arrays, for `train(recipe, data=...)`, `export_model` and `report`.

        They are kept in memory as PNG files, which lose nothing. The training crop that suits them
        is their smallest side, from 32 to 224 px.

        Args:
            images: uint8 `[N, H, W, 3]`, 0-255, RGB, or `[N, H, W, 1]` or `[N, H, W]`, gray; or a
                sequence of images of different sizes.
            labels: whole numbers `[N]`, from 0 on.
            class_names: by default the numbers.
            validation: the fraction of the images to hold out, or (images, labels).
            test: (images, labels).
            mirrors: whether a mirrored image is still one of its class.

        Raises:
            InputError (a ValueError): another shape, dtype or range; too few images.
        """
        from vggkeras.data import in_memory

        return in_memory.from_arrays(
            images, labels, class_names, validation=validation, test=test, mirrors=mirrors
        )

    @classmethod
    def from_tf_data(
        cls,
        dataset: Any,
        class_names: Sequence[str] | None = None,
        *,
        validation: Any = 0.2,
        test: Any = None,
        mirrors: bool = True,
    ) -> Data:
        """Return data of a tf.data.Dataset, as `from_arrays` does of arrays.

        All its images are read once, and kept in memory as files.

        Args:
            dataset: of (image, label), not batched, with an end. Images are encoded files
                (strings), or as for `from_arrays`.
            class_names: by default the numbers.
            validation: the fraction of the images to hold out, or another tf.data.Dataset.
            test: a tf.data.Dataset.
            mirrors: whether a mirrored image is still one of its class.

        Raises:
            InputError (a ValueError): as `from_arrays`; a batched or endless dataset.
        """
        from vggkeras.data import in_memory

        return in_memory.from_tf_data(
            dataset, class_names, validation=validation, test=test, mirrors=mirrors
        )

    @property
    def default_split(self) -> str:
        """The split to score a model on: validation, else test, else all images."""
        return next((name for name in ("validation", "test") if name in self.splits), "all")

    def split(self, name: str) -> Split:
        """Return a split by name; val and valid mean validation.

        Several are joined by +, and all means all there are. Of TensorFlow Datasets, what TFDS'
        own syntax says (train[:10%]).

        Raises:
            InputError (a ValueError): there is no such split; the message names those there are.
        """
        names = list(self.splits) if name == "all" else name.split("+")
        names = ["validation" if each in VALIDATION_NAMES else each for each in names]
        if names and all(each in self.splits for each in names):
            return _joined([self.splits[each] for each in dict.fromkeys(names)])
        if isinstance(self._any_split.sources, Records):
            return self._part_of_records(self._any_split.sources.builder, "+".join(names))
        if list(self.splits) == ["all"]:
            raise InputError(
                f"{self.spec} has no split {name!r}, for it is class folders or a list alone: "
                "choose all, or validation, which training would hold out."
            )
        raise InputError(
            f"{self.spec} has no split {name!r}: choose one of {', '.join(self.splits)}, several, "
            "or all."
        )

    @property
    def _any_split(self) -> Split:
        return next(iter(self.splits.values()))

    def _part_of_records(self, builder: tfds.core.DatasetBuilder, name: str) -> Split:
        """Return what TFDS' own syntax says of a data set."""
        try:
            count = builder.info.splits[name].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(
                f"{self.spec} has no split {name!r}: choose one of {', '.join(self.splits)}, "
                "several, all, or a part as TensorFlow Datasets writes it, such as train[:10%]."
            ) from error
        if not count:
            raise InputError(f"{self.spec}: {name} has no images: choose a larger part.")
        records = Records(builder, name)
        name, exif = f"{self.spec.removeprefix('tfds:')}/{name}", self._any_split.exif
        split = Split(name, count, None, records)
        if self._any_split.boxes:
            from vggkeras.data.records import with_boxes

            split = with_boxes(self.spec, split)
        return split.turned(exif)


def _joined(splits: Sequence[Split]) -> Split:
    """Return splits of one data set as one, in order."""
    first = splits[0]
    if len(splits) == 1:
        return first
    folder = first.name.rpartition("/")[0]
    name = f"{folder}/{'+'.join(split.name.removeprefix(f'{folder}/') for split in splits)}"
    count = sum(split.count for split in splits)
    boxed = [split.boxes for split in splits if split.boxes]
    boxes = Boxes.joined(boxed) if boxed else None
    if isinstance(first.sources, Records):
        split = "+".join(s.sources.split for s in splits if isinstance(s.sources, Records))
        records = Records(first.sources.builder, split)
        starts = np.cumsum([0, *(s.count + len(s.left_out) for s in splits)]).tolist()
        left_out = frozenset(
            start + i for start, s in zip(starts, splits, strict=False) for i in s.left_out
        )
        return Split(name, count, None, records, left_out, first.exif, boxes)
    parts = [s.sources for s in splits if not isinstance(s.sources, Records)]
    stored = [part for part in parts if isinstance(part, Stored)]
    sources = Stored.joined(stored) if stored else [source for part in parts for source in part]
    labels = np.concatenate([split.labels for split in splits if split.labels is not None])
    return Split(name, count, labels, sources, exif=first.exif, boxes=boxes)


def stratified(split: Split, count: int) -> Split:
    """Return a sample of `count` images of a split, each class in proportion, evenly spaced.

    Records tell their labels only when they are read, so all of them are.
    """
    if count >= split.count:
        return split
    indices = np.array(split.indices())
    labels = split.labels
    if labels is None:
        labels = np.array([label for _, _, label in split.sourced()])
    # Sorted by class, so that evenly spaced positions give each class its share.
    by_class = indices[np.argsort(labels, kind="stable")]
    kept = by_class[np.floor((np.arange(count) + 0.5) * (split.count / count)).astype(int)]
    return split.without(set(indices.tolist()) - set(kept.tolist()))
