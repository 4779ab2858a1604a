"""TODO"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.data.order import shuffled_indices
from vggkeras.errors import InputError


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


VALIDATION_NAMES = ("validation", "val", "valid")
