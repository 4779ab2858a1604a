"""Extract features of images, for other data than the network was trained on (Appendix B).

The network without its last layer is run densely on whole images of smallest side Q. fc2's
activations are averaged over space and over the image and its mirror, and divided by their
Euclidean length. Those of several Q are averaged or stacked.

python -m vggkeras features --model runs/latest --data FOLDER --out features.npz
"""

from __future__ import annotations

import dataclasses
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
from PIL import Image

import vggkeras
from vggkeras import files
from vggkeras.data import augment, decoding, formats, sources
from vggkeras.data.reading import Track, readable_images, untracked
from vggkeras.data.splits import Data, Split
from vggkeras.errors import InputError
from vggkeras.evaluation import checks, protocols
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
    exif: bool = True,
) -> np.ndarray:
    """Return features of images of any size: float32 `[N, D]`, every row of Euclidean length 1.

    A row is all zeros where all of fc2's activations are. Memory holds the rows and a few images.

    Args:
        predictor: a model in any runtime. A file needs the form that `python -m export --features`
            writes beside it. Every call makes or loads that form, unless it is given:
            `predictor.features_form()`.
        images: paths of image files, or RGB arrays uint8 `[H, W, 3]`.
        scales: smallest sides Q, px, that images are rescaled to; by default the one the model was
            trained for. Each has the same weight: its features have length 1 before they are
            averaged or stacked.
        aggregate: average: D is the number of fc2's units; stack: that number for every scale.
        mirrors: average with the features of the mirrored image.
        exif: turn the images of files upright, as their EXIF data say.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a
            scale below the input, or given twice; an unknown aggregate; a model that has no form
            for features.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into "
            "a list."
        )
    extractor = Extractor(predictor, scales, aggregate, mirrors)
    rescaled = decoding.in_threads(
        lambda image: protocols.prepared(image, extractor.rescaled, exif),
        ((image,) for image in images),
    )
    rows = [extractor.rows(window) for window in protocols.windows(rescaled, protocols.WINDOW)]
    return np.concatenate(rows) if rows else np.empty((0, extractor.dimensions), np.float32)


@dataclass(frozen=True)
class Provenance:
    """The model, settings and data that features were made with, as their file records it."""

    model: str  # its path
    sha256: str | None  # of its file; None for a model in memory
    runtime: str
    version: str  # of the runtime
    provider: str
    data: str
    splits: tuple[str, ...]
    scales: tuple[int, ...]  # smallest sides Q, px
    aggregate: str
    mirrors: bool
    images: int
    dimensions: int  # D
    class_names: tuple[str, ...]
    versions: dict[str, str]  # package -> version

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that a file of features holds."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Described:
    """The features of a data set's images."""

    data: Data = field(repr=False)
    features: np.ndarray = field(repr=False)  # float32 [N, D]
    labels: np.ndarray = field(repr=False)  # int64 [N]; -1: unknown
    splits: np.ndarray = field(repr=False)  # str [N]: train, validation, test
    indices: np.ndarray = field(repr=False)  # int64 [N]: what Split.image_name takes
    about: Provenance
    seconds: float  # of reading the images and running the model
    flatters: str | None  # warning: why results on these images look better than they are

    def name(self, row: int) -> str:
        """Return an image's path within the data's folder, or its index in the data set."""
        return image_name(self.data, self.splits[row], int(self.indices[row]))

    def label(self, row: int) -> str | None:
        """Return the name of an image's class; None where it is unknown."""
        return self.data.class_names[self.labels[row]] if self.labels[row] >= 0 else None


def image_name(data: Data, split: str, index: int) -> str:
    """Return an image's path within the data's folder, or its index in the data set."""
    name = data.splits[split].image_name(index)
    return name.removeprefix(f"{data.spec.removeprefix('tfds:')}/")


def load_images(
    spec: str, splits: Sequence[str] = (), *, skip_unreadable: bool = False, fetch: bool = True
) -> Data:
    """Return whole data, or one split "images", labeled -1, of a folder of images alone.

    Args:
        spec: as for `load_data`.
        splits: names that are asked for. Class folders alone are one split, all, unless train or
            validation are asked for, as training splits them.
        skip_unreadable: as for `load_data`.
        fetch: as for `load_data`.

    Raises:
        InputError (a ValueError): as `load_data`.
    """
    root = Path(spec).expanduser()
    if spec and root.is_dir():
        entries = [path for path in root.resolve().iterdir() if path.name[0] != "."]
        paths = sorted(str(p) for p in entries if p.suffix.lower() in formats.SUFFIXES)
        if paths and not any(path.is_dir() for path in entries):
            decoding.check_names(paths)
            labels = np.full(len(paths), -1, np.int64)
            split = Split(f"{root.resolve().name}/images", len(paths), labels, paths)
            return Data(str(root.resolve()), [], {"images": split})
    data = sources.load_data(spec, skip_unreadable=skip_unreadable, whole=True, fetch=fetch)
    return sources.as_trained(data, splits, (), skip_unreadable=skip_unreadable, fetch=fetch)


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
    """Return the features of every image of a data set's splits, in order.

    Args:
        predictor: a model in any runtime, as for `extract_features`.
        data: from `load_images`.
        splits: their names; all splits by default.
        scales: as for `extract_features`.
        aggregate: as for `extract_features`.
        mirrors: as for `extract_features`; digits are never mirrored.
        skipped: a list to put the names of unreadable images into; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.

    Raises:
        InputError (a ValueError): as `extract_features`; no such split; unreadable images (counted
            and named); no images.
    """
    extractor = Extractor(predictor, scales, aggregate, mirrors and data.mirrors)
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
    return Described(
        data=data,
        features=rows[: len(seen)],
        labels=labels.astype(np.int64),
        splits=names,
        indices=indices.astype(np.int64),
        about=_provenance(extractor, data, chosen, len(seen)),
        seconds=seconds,
        flatters=_overlap_warning(predictor, data, chosen),
    )


def chosen_splits(data: Data, names: Sequence[str]) -> dict[str, Split]:
    """Return splits by name, each once; all splits where no name is given."""
    chosen = [data.split(name) for name in names]  # "val" is "validation"
    return {
        name: split
        for name, split in data.splits.items()
        if not names or any(split is other for other in chosen)
    }


def check_out(path: Path) -> None:
    """Check that features can be written to a path, before they are computed.

    Raises:
        InputError (a ValueError): a folder, a model's name, another suffix, or a read-only folder.
    """
    files.check_file(path, files.Kind("a file of features", _holds_features))
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}; received "
            f"{path.suffix!r}."
        )


def _holds_features(path: Path) -> bool:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {"features", "about"} <= set(arrays.files)
    from pyarrow import parquet

    return b"vggkeras" in (parquet.read_schema(path).metadata or {})


def write(described: Described, path: Path) -> None:
    """Write features in one step as a .npz or a .parquet file, with their provenance as JSON.

    .npz: features float32 `[N, D]`, labels int64 `[N]` (-1: unknown), names and split str `[N]`,
    class_names str, and about, a string of JSON. .parquet: a row an image with image, split, label,
    class (null: unknown) and features, a list of D float32; the JSON is "vggkeras" in the schema's
    metadata.
    """
    names = [described.name(i) for i in range(len(described.labels))]
    about = json.dumps(described.about.to_json(), ensure_ascii=False)
    with files.replacing(path) as beside:
        if path.suffix == ".npz":
            np.savez(
                beside,
                allow_pickle=False,
                features=described.features,
                about=np.array(about),
                labels=described.labels,
                names=np.array(names),
                split=described.splits,
                class_names=np.array(described.data.class_names, np.str_),  # strings, even if none
            )
        else:
            _write_parquet(described, names, about, beside)


def _write_parquet(described: Described, names: list[str], about: str, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array(described.features.reshape(-1))
    table = pa.table(
        {
            "image": pa.array(names, pa.string()),
            "split": pa.array(described.splits.tolist(), pa.string()),
            "label": pa.array(described.labels),
            "class": pa.array([described.label(i) for i in range(len(names))], pa.string()),
            "features": pa.FixedSizeListArray.from_arrays(values, described.features.shape[1]),
        }
    )
    parquet.write_table(table.replace_schema_metadata({"vggkeras": about}), path)


class Extractor:
    """A network's form for features, and how its outputs are combined."""

    def __init__(
        self,
        predictor: Predictor,
        scales: Sequence[int] | None = None,
        aggregate: str = "average",
        mirrors: bool = True,
    ) -> None:
        """Raise InputError as `extract_features`, whose arguments these are."""
        if aggregate not in AGGREGATES:
            raise InputError(
                f"aggregate must be one of {', '.join(AGGREGATES)}; received {aggregate!r}."
            )
        checks.check_channels(predictor)
        self.scales = protocols.checked_scales(predictor, "dense", scales)
        self.form = predictor.features_form()
        self.aggregate, self.mirrors = aggregate, mirrors
        self.dimensions = self.form.features * (len(self.scales) if aggregate == "stack" else 1)

    def warm_up(self) -> None:
        """Run the network once: a first call compiles and plans."""
        self.form(np.zeros((1, *self.form.input_shape), np.uint8))

    def rescaled(self, image: np.ndarray | Image.Image) -> list[np.ndarray]:
        """Return an image at every scale: uint8 `[h, w, C]` each."""
        return [
            augment.in_channels(augment.rescale(image, q), self.form.input_shape[2])
            for q in self.scales
        ]

    def rows(self, images: list[list[np.ndarray]]) -> np.ndarray:
        """Return features float32 `[n, D]` of a window of images, each at every scale."""
        parts = [
            _unit_length(protocols.of_whole_images(self.form, list(at_scale), self.mirrors))
            for at_scale in zip(*images, strict=True)
        ]
        stacked = self.aggregate == "stack"
        return _unit_length(np.concatenate(parts, axis=1) if stacked else np.mean(parts, axis=0))


def _unit_length(rows: np.ndarray) -> np.ndarray:
    """Divide rows `[n, D]` by their Euclidean length; a row of zeros stays as it is.

    scikit-learn's `normalize` also leaves rows that are shorter than 1e-6 as they are.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _provenance(extractor: Extractor, data: Data, splits: Iterable[str], images: int) -> Provenance:
    form = extractor.form
    return Provenance(
        model=str(form.path),
        sha256=files.sha256(form.path) if form.path.exists() else None,
        runtime=form.runtime,
        version=form.version,
        provider=form.provider,
        data=data.spec,
        splits=tuple(splits),
        scales=extractor.scales,
        aggregate=extractor.aggregate,
        mirrors=extractor.mirrors,
        images=images,
        dimensions=extractor.dimensions,
        class_names=tuple(data.class_names),
        versions={"vggkeras": vggkeras.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "pillow")},
    )


def _overlap_warning(predictor: Predictor, data: Data, splits: Iterable[str]) -> str | None:
    """Return a warning where features are of the data that the network was trained on."""
    if data.spec != predictor.card.data:
        return None
    images = ", and has seen training images among these" if {"train", "all"} & {*splits} else ""
    return (
        f"The network was trained on {data.spec}: it learned these very classes{images}, which "
        "flatters its features."
    )
