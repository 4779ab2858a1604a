"""Open data sets of TensorFlow Datasets: downloaded if need be, or only as they are on disk."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras.data import box_files, fetching, imagenet
from vggkeras.data.decoding import EXCHANGED
from vggkeras.data.splits import Data, Records, Split
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

EXPECTED = (
    "expected digits, tfds:NAME or tfds:NAME/CONFIG, hf:NAME or hf:NAME:CONFIG, or the path of a "
    "folder of images or of a .csv or .parquet list of them"
)


def load(spec: str, held_out: float, fetch: bool, whole: bool, boxes: bool) -> Data:
    """Return a data set of TensorFlow Datasets; see `sources.load_data`."""
    builder = _builder(spec, fetch)
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
    no_box: dict[str, int] = {}
    if boxes:
        splits, no_box = _with_boxes(spec, splits)
    return Data(
        spec,
        imagenet.readable(list(builder.info.features["label"].names)),
        splits,
        validation="" if whole else f"split {tfds_names['validation']}",
        held_out=held_out if divided else None,
        no_box=no_box,
    )


def _with_boxes(spec: str, splits: dict[str, Split]) -> tuple[dict[str, Split], dict[str, int]]:
    """Return the splits with their boxes, and how many images of each have none.

    Those are left out, and splits that have no other: pets' test images have no boxes.
    """
    boxed = {name: with_boxes(spec, split) for name, split in splits.items()}
    no_box = {name: split.count - boxed[name].count for name, split in splits.items()}
    kept = {name: split for name, split in boxed.items() if split.count}
    if "train" in splits and not kept.keys() >= {"train", "validation"} & splits.keys():
        raise InputError(f"{spec} has no boxes of its training or validation images.")
    return kept, {name: count for name, count in no_box.items() if count}


def with_boxes(spec: str, split: Split) -> Split:
    """Return a split of records with their boxes, without the images that have none.

    TFDS' boxes are fractions of the image as it is stored, for it turns no image upright.

    Raises:
        InputError (a ValueError): the data set has no feature of boxes.
    """
    import tensorflow_datasets as tfds

    assert isinstance(split.sources, Records)
    features = split.sources.builder.info.features
    name = _box_feature(spec, features)
    skipped = {n: tfds.decode.SkipDecoding() for n in features if _is_image(features[n])}
    examples = split.sources.examples(skipped)
    corners, measured, without = [], [], []
    for index, example in enumerate(examples.as_numpy_iterator()):
        found = example[name]["bbox"] if isinstance(example[name], dict) else example[name]
        size, orientation = box_files.measure(example["image"])
        size = size or (1, 1)  # reading the image will say what is wrong with it
        height, width = size[:: -1 if orientation >= EXCHANGED else 1]
        boxes = found.reshape(-1, 4)[:, [1, 0, 3, 2]] * np.array([width, height] * 2)
        good = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        if not len(good):
            without.append(index)
        corners.append(good if len(good) else np.zeros((1, 4)))
        measured.append((size, orientation))
    boxes_of_all = box_files.made(corners, measured, upright=False)
    return replace(split.without(without), boxes=boxes_of_all)


def _box_feature(spec: str, features: Any) -> str:
    """Return the name of the feature of boxes, or of the sequence that holds them."""
    import tensorflow_datasets as tfds

    def is_boxes(feature: Any) -> bool:
        inside = getattr(feature, "feature", None)
        if isinstance(inside, tfds.features.FeaturesDict):
            return "bbox" in inside and is_boxes(inside["bbox"])
        return isinstance(feature, tfds.features.BBoxFeature)

    names = [name for name in features if is_boxes(features[name])]
    if len(names) != 1:
        raise InputError(
            f"{spec} has no boxes: expected a feature of boxes, as in stanford_dogs, "
            f"oxford_iiit_pet or caltech_birds2011; received {', '.join(features)}."
        )
    return names[0]


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image)


def _cut(count: int, held_out: float) -> str:
    """Return where TFDS' syntax cuts a split of `count` images, to hold out its last part."""
    percent = 100 * (1 - held_out)
    if math.isclose(percent, round(percent)):
        return f"{round(percent)}%"
    return str(round(count * (1 - held_out)))


def _builder(spec: str, fetch: bool) -> tfds.core.DatasetBuilder:
    """Return the builder of a classification data set.

    Args:
        spec: tfds:NAME or tfds:NAME/CONFIG.
        fetch: whether it may be downloaded and built.

    Raises:
        InputError (a ValueError): unknown, not to be had, or not for classification.
    """
    found = _fetched_builder(spec) if fetch else _prepared_builder(spec)
    _check_features(spec, found)
    return found


def _fetched_builder(spec: str) -> tfds.core.DatasetBuilder:
    """Return the builder of a classification data set that is on disk, downloaded if need be."""
    import tensorflow_datasets as tfds

    name = spec.removeprefix("tfds:")
    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split()).split(" Available")[0][:200]
        raise InputError(
            f"Unknown data {spec!r}: {EXPECTED}; TensorFlow Datasets has no {name!r} ({reason})."
        ) from error
    if not Path(builder.data_dir).exists():
        try:
            fetching.prepare(builder)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{spec} is not in {builder.data_dir} and could not be downloaded ({reason}): set "
                "TFDS_DATA_DIR to the folder that holds it, or prepare it with `tfds build`."
            ) from error
    return builder


def _prepared_builder(spec: str) -> tfds.core.DatasetBuilder:
    """Return the builder of a data set that is on disk, from its files: no code of it is run."""
    from tensorflow_datasets.core import read_only_builder, registered

    name = spec.removeprefix("tfds:")
    try:
        if not re.fullmatch(r"\w+(/\w[\w.-]*)?(:[\d.]+)?", name):  # TFDS_DATA_DIR alone is read
            raise ValueError(f"expected tfds:NAME or tfds:NAME/CONFIG; received {spec!r}")
        return read_only_builder.builder_from_files(name)
    except (registered.DatasetNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"{spec} is not prepared on this machine, and nothing is downloaded because a model's "
            f"file names it ({' '.join(str(error).split())[:200]}): give --data {spec} to fetch "
            "it, or set TFDS_DATA_DIR to the folder that holds it."
        ) from error


def _check_features(spec: str, builder: tfds.core.DatasetBuilder) -> None:
    """Raise InputError for a data set that is not for classification."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or not {"image", "label"} <= set(
        features
    ):
        raise InputError(
            f"{spec} is not for classification: expected features image and label; received "
            f"{features}."
        )
