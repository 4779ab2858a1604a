"""Very deep features, for other data than the network was trained on (Appendix B), and what is done with them.

The network without its last layer is run densely on whole images of smallest side Q; fc2's activations are averaged over
space and with the mirror's, and made a vector of length 1. Those of several Q are averaged or stacked. On top: a linear
SVM by Caltech-101's protocol, the network kept fixed, and a page of each image's nearest neighbours.

python -m vggkeras features --model runs/latest --data FOLDER --out features.npz --svm --neighbours neighbours.html
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import vggkeras
from vggkeras import files
from vggkeras.data import augment, decoding, sources
from vggkeras.data.reading import Track, readable_images, untracked
from vggkeras.data.splits import Data, Split
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols
from vggkeras.runtimes.predictor import Predictor

AGGREGATES = ("average", "stack")
SUFFIXES = (".npz", ".parquet")


def extract_features(
    predictor: Predictor,
    images: Iterable[str | os.PathLike | np.ndarray],
    scales: Sequence[int] | None = None,
    aggregate: str = "average",
    *,
    mirrors: bool = True,
) -> np.ndarray:
    """Very deep features of images of any size: float32 `[N, D]`, every row of length 1.

    Args:
        predictor: of any runtime; a file needs the form that `python -m export --features` writes beside it. Every call makes
            or loads that form, unless it is given: `predictor.features_form()`.
        images: paths of JPEG, PNG, BMP or GIF files, or RGB arrays uint8 `[H, W, 3]`.
        scales: smallest sides Q, px, that images are rescaled to; by default the one the model was trained for. Each
            counts alike: its features have length 1 before they are put together.
        aggregate: average: D is the number of fc2's units; stack: as many for every scale.
        mirrors: average with the features of the mirror.

    A row is all zeros where all of fc2's units are, for they have no direction. Memory holds a window of images, and the rows.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a scale below the input, or
            given twice; an unknown aggregate; a model that has no form for features.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into a list."
        )
    extractor = _Extractor(predictor, scales, aggregate, mirrors)
    prepared = decoding.in_threads(
        lambda image: extractor.rescaled(protocols.pixels(image)), ((image,) for image in images)
    )
    rows = [extractor.rows(window) for window in protocols.windows(prepared, protocols.WINDOW)]
    return np.concatenate(rows) if rows else np.empty((0, extractor.dimensions), np.float32)


class _Extractor:
    """What makes features of images: the network's form, and how its answers are put together."""

    def __init__(
        self, predictor: Predictor, scales: Sequence[int] | None, aggregate: str, mirrors: bool
    ) -> None:
        if aggregate not in AGGREGATES:
            raise InputError(
                f"aggregate must be one of {', '.join(AGGREGATES)}; received {aggregate!r}."
            )
        protocols.check_channels(predictor)
        self.scales = protocols.checked_scales(predictor, "dense", scales)
        self.form = predictor.features_form()
        self.stacked, self.mirrors = aggregate == "stack", mirrors
        self.dimensions = self.form.features * (len(self.scales) if self.stacked else 1)

    def warm_up(self) -> None:
        """Run the network once: a first call compiles and plans."""
        self.form(np.zeros((1, *self.form.input_shape), np.uint8))

    def rescaled(self, image: np.ndarray) -> list[np.ndarray]:
        """An image at every scale: uint8 `[h, w, C]` each."""
        return [
            augment.in_channels(augment.rescale(image, q), self.form.input_shape[2])
            for q in self.scales
        ]

    def rows(self, images: list[list[np.ndarray]]) -> np.ndarray:
        """Features float32 `[n, D]` of a window of images."""
        parts = [
            _of_length_1(protocols.of_whole_images(self.form, list(of_scale), self.mirrors))
            for of_scale in zip(*images, strict=True)
        ]
        return _of_length_1(
            np.concatenate(parts, axis=1) if self.stacked else np.mean(parts, axis=0)
        )


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    """Rows `[n, D]` divided by their Euclidean length; one of zeros stays as it is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


@dataclass(frozen=True)
class Described:
    """A data set's images, described by their features."""

    data: Data = field(repr=False)
    features: np.ndarray = field(repr=False)  # float32 [N, D]
    labels: np.ndarray = field(repr=False)  # int64 [N]; -1: not known
    splits: np.ndarray = field(repr=False)  # str [N]: train, validation, test
    indices: np.ndarray = field(repr=False)  # int64 [N]: what Split.image_name takes
    about: dict[str, Any]  # the model, how it was asked, the data, versions
    seconds: float  # of reading the images and running the model
    flatters: (
        str | None
    )  # why figures on these images look better than the features are, where they do

    def name(self, place: int) -> str:
        """What to call an image: its path within the data's folder, or its place in the data set."""
        name = self.data.splits[self.splits[place]].image_name(int(self.indices[place]))
        return name.removeprefix(f"{self.data.spec.removeprefix('tfds:')}/")

    def label(self, place: int) -> str | None:
        """An image's class by name; None where it is not known."""
        return self.data.class_names[self.labels[place]] if self.labels[place] >= 0 else None


def load_images(spec: str, *, skip_unreadable: bool = False) -> Data:
    """`datasets.load_data`, and beside it a folder that directly holds image files: a split "images", labelled -1.

    Raises InputError as that does.
    """
    root = Path(spec).expanduser()
    if (
        spec
        and root.is_dir()
        and not any(e.is_dir() for e in root.iterdir() if not e.name.startswith("."))
    ):
        suffixes = decoding.SUFFIXES
        paths = sorted(
            str(p)
            for p in root.resolve().iterdir()
            if p.suffix.lower() in suffixes and p.name[0] != "."
        )
        if paths:
            split = Split(
                f"{root.resolve().name}/images",
                len(paths),
                np.full(len(paths), -1, np.int64),
                paths,
            )
            return Data(str(root.resolve()), [], {"images": split})
    return sources.load_data(spec, skip_unreadable=skip_unreadable)


def describe(
    predictor: Predictor,
    data: Data,
    splits: Sequence[str] = (),
    scales: Sequence[int] | None = None,
    aggregate: str = "average",
    *,
    mirrors: bool = True,
    skipped: list[str] | None = None,
    track: Track = untracked,
) -> Described:
    """`features` of every image of a data set's splits, in order; images that are other than their mirrors have none.

    Args:
        predictor, scales, aggregate, mirrors: of `features`.
        data: of `load_images`.
        splits: their names; all there are when not given.
        skipped: a list to put the names of images into that cannot be read; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.

    Raises:
        InputError (a ValueError): as `features`; no such split; unreadable images (counted and named); no images.
    """
    extractor = _Extractor(predictor, scales, aggregate, mirrors and data.mirrors)
    chosen = chosen_splits(data, splits)
    extractor.warm_up()
    start = time.monotonic()
    count = sum(split.count for split in chosen.values())
    rows = np.empty((count, extractor.dimensions), np.float32)
    seen: list[tuple[str, int, int]] = []
    images = readable_images(chosen, extractor.rescaled, data.spec, skipped, track)
    for window in protocols.windows(images, protocols.WINDOW):
        part = extractor.rows([example.image for example in window])
        rows[len(seen) : len(seen) + len(window)] = part
        seen += [(example.split, example.index, example.label) for example in window]
    if not seen:
        raise InputError(f"{data.spec} has no image that can be read in {', '.join(chosen)}.")
    seconds = time.monotonic() - start
    names, indices, labels = (np.array(column) for column in zip(*seen, strict=True))
    form = extractor.form
    about = {
        "model": str(form.path),
        "sha256": files.sha256(form.path)
        if form.path.exists()
        else None,  # None: a model in memory
        "runtime": form.runtime,
        "version": form.version,
        "provider": form.provider,
        "data": data.spec,
        "splits": list(chosen),
        "scales": list(extractor.scales),
        "aggregate": aggregate,
        "mirrors": extractor.mirrors,
        "images": len(seen),
        "dimensions": extractor.dimensions,
        "class_names": data.class_names,
        "versions": {"vggkeras": vggkeras.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "pillow")},
    }
    flatters = None
    if data.spec == predictor.card.data:
        seen_too = (
            ", and has seen images of its train split among these" if "train" in chosen else ""
        )
        flatters = f"The network was trained on {data.spec}: it learnt these very classes{seen_too}, which flatters its features."
    labels, indices = labels.astype(np.int64), indices.astype(np.int64)
    return Described(data, rows[: len(seen)], labels, names, indices, about, seconds, flatters)


def chosen_splits(data: Data, names: Sequence[str]) -> dict[str, Split]:
    """Splits by name, each once; all there are where no name is given."""
    asked = [id(data.split(name)) for name in names]
    return {name: split for name, split in data.splits.items() if not names or id(split) in asked}


def check_out(path: Path) -> None:
    """Raises InputError when features cannot be written to a path, before they are computed."""
    files.check_file(path)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}; received {path.suffix!r}."
        )


def write(found: Described, path: Path) -> None:
    """Write features in one step, as a .npz or a .parquet file, with what made them as JSON.

    .npz: features float32 `[N, D]`, labels int64 `[N]` (-1: not known), names and split str `[N]`, class_names str, and
    about, a string of JSON. .parquet: a row an image with image, split, label, class (null: not known) and features, a list
    of D float32; the JSON is "vggkeras" in the schema's metadata.
    """
    names, about = (
        [found.name(i) for i in range(len(found.labels))],
        json.dumps(found.about, ensure_ascii=False),
    )
    with files.replacing(path) as beside:
        if path.suffix == ".npz":
            # class_names may be empty, and would then be no array of strings.
            classes = np.array(found.data.class_names, np.str_)
            columns = {
                "labels": found.labels,
                "names": np.array(names),
                "split": found.splits,
                "class_names": classes,
            }
            np.savez(
                beside,
                allow_pickle=False,
                features=found.features,
                about=np.array(about),
                **columns,
            )
            return
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table(
            {
                "image": pa.array(names, pa.string()),
                "split": pa.array(found.splits.tolist(), pa.string()),
                "label": pa.array(found.labels),
                "class": pa.array([found.label(i) for i in range(len(names))], pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(
                    pa.array(found.features.reshape(-1)), found.features.shape[1]
                ),
            }
        )
        parquet.write_table(table.replace_schema_metadata({"vggkeras": about}), beside)
