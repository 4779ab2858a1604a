"""Very deep features, for other data than the network was trained on (Appendix B), and what is done with them.

The network without its last layer is run densely on whole images of smallest side Q; fc2's activations are averaged over
space and with the mirror's, and made a vector of length 1. Those of several Q are averaged or stacked. On top: a linear
SVM by Caltech-101's protocol, the network kept fixed, and a page of each image's nearest neighbours.

python -m vggkeras features --model runs/latest --data FOLDER --out features.npz --svm --neighbours neighbours.html
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.table import Table

import vggkeras
from vggkeras import augment, datasets, evaluate, files
from vggkeras.datasets import Data, Split
from vggkeras.errors import InputError
from vggkeras.runtimes import Predictor

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

AGGREGATES = ("average", "stack")
SUFFIXES = (".npz", ".parquet")
COSTS = tuple(10.0**k for k in range(-2, 4))  # the SVM's C is one of these
HELD_OUT = 5  # one training image in five chooses it
TEMPLATE = "neighbours.html.jinja"
QUERIES, CLOSEST = 24, 8  # of the page
THUMBNAIL = 160  # px: twice what a phone shows
BLOCK = 1 << 24  # similarities in memory at once


def features(
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
    prepared = datasets.in_threads(
        lambda image: extractor.rescaled(evaluate.pixels(image)), ((image,) for image in images)
    )
    rows = [extractor.rows(window) for window in evaluate.windows(prepared, evaluate.WINDOW)]
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
        evaluate.check_channels(predictor)
        self.scales = evaluate.checked_scales(predictor, "dense", scales)
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
            _of_length_1(evaluate.of_whole_images(self.form, list(of_scale), self.mirrors))
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
        suffixes = datasets.SUFFIXES
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
    return datasets.load_data(spec, skip_unreadable=skip_unreadable)


def describe(
    predictor: Predictor,
    data: Data,
    splits: Sequence[str] = (),
    scales: Sequence[int] | None = None,
    aggregate: str = "average",
    *,
    mirrors: bool = True,
    skipped: list[str] | None = None,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
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
    chosen = _chosen(data, splits)
    extractor.warm_up()
    start = time.monotonic()
    count = sum(split.count for split in chosen.values())
    rows = np.empty((count, extractor.dimensions), np.float32)
    seen: list[tuple[str, int, int]] = []
    unreadable: list[str] = []

    def prepare(name: str, index: int, encoded: bytes, label: int):
        try:
            image = datasets.decode(encoded, chosen[name].image_name(index))
        except InputError as error:
            return (name, index, label), error
        return (name, index, label), extractor.rescaled(image)

    def readable() -> Iterator[tuple[tuple[str, int, int], list[np.ndarray]]]:
        examples = (
            (name, *example) for name, split in chosen.items() for example in split.examples()
        )
        for which, images in track(datasets.in_threads(prepare, examples), count):
            if isinstance(images, InputError):
                unreadable.append(chosen[which[0]].image_name(which[1]))
            elif (
                skipped is not None or not unreadable
            ):  # what is lost already is only read on, and counted
                yield which, images

    for window in evaluate.windows(readable(), evaluate.WINDOW):
        rows[len(seen) : len(seen) + len(window)] = extractor.rows([images for _, images in window])
        seen += [which for which, _ in window]
    if unreadable and skipped is None:
        raise datasets.unreadable(unreadable, f"the {count} of {data.spec}")
    if skipped is not None:
        skipped += unreadable
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
    if data.spec == {**predictor.about.get("provenance", {}), **predictor.about}.get("data"):
        seen_too = (
            ", and has seen images of its train split among these" if "train" in chosen else ""
        )
        flatters = f"The network was trained on {data.spec}: it learnt these very classes{seen_too}, which flatters its features."
    labels, indices = labels.astype(np.int64), indices.astype(np.int64)
    return Described(data, rows[: len(seen)], labels, names, indices, about, seconds, flatters)


def _chosen(data: Data, names: Sequence[str]) -> dict[str, Split]:
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


def check_page(path: Path) -> None:
    """Raises InputError when a page cannot be written to a path, before what it shows is computed."""
    files.check_file(path)
    if path.suffix != ".html":
        raise InputError(
            f"{path}: expected a page's file that ends in .html; received {path.suffix!r}."
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


@dataclass(frozen=True)
class SvmRecall:
    """How well a linear SVM on features tells classes apart, over random splits of n training images a class."""

    labels: np.ndarray  # int64 [classes]
    costs: list[float]  # C of each split
    recalls: (
        np.ndarray
    )  # float64 [splits, classes]: share of each class's test images that were recognised

    @property
    def means(self) -> np.ndarray:
        """Mean class recall of each split, float64 `[splits]`."""
        return self.recalls.mean(axis=1)

    @property
    def mean(self) -> float:
        """Mean class recall over all splits, in [0, 1]."""
        return float(self.means.mean())

    @property
    def spread(self) -> float | None:
        """Standard deviation of the splits' mean class recalls; None for a single split."""
        return float(self.means.std(ddof=1)) if len(self.means) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95% interval of the mean over splits, in [0, 1]; None for a single split.

        Of how the splits are drawn alone: all are drawn from one pool, and share images.
        """
        if self.spread is None:
            return None
        from scipy.stats import t

        count = len(self.means)
        reach = float(t.ppf(0.975, count - 1)) * self.spread / count**0.5
        return max(0.0, self.mean - reach), min(1.0, self.mean + reach)


def check_split(
    data: Data, splits: Sequence[str], train_images: int, test_images: int, repeats: int, seed: int
) -> None:
    """`svm_recall`'s errors, before features are computed; of TFDS' records the labels are not known yet."""
    chosen = _chosen(data, splits).values()
    labels = [split.labels for split in chosen if split.labels is not None]
    known = np.concatenate(labels) if len(labels) == len(chosen) else None
    _check_split(known, train_images, test_images, repeats, seed, data.class_names)


def _check_split(
    labels: np.ndarray | None,
    train_images: int,
    test_images: int,
    repeats: int,
    seed: int,
    class_names: Sequence[str] | None,
) -> None:
    for name, value, least in (
        ("train-images", train_images, 2),  # one of them chooses C
        ("test-images", test_images, 1),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} must be {least} or more; received {value}.")
    if labels is None:
        return
    known = labels[labels >= 0]
    classes = np.arange(len(class_names)) if class_names else np.unique(known)
    if len(classes) < 2:
        raise InputError(
            f"A linear SVM tells two classes or more apart; received labels of {len(classes)}: give images in class folders."
        )
    counts = np.array([(known == label).sum() for label in classes])
    i = int(counts.argmin())
    if counts[i] <= train_images:
        name = class_names[classes[i]] if class_names else str(classes[i])
        fewer = f"give --train-images {counts[i] - 1} or less, or " if counts[i] > 2 else ""
        raise InputError(
            f"Class {name!r} has {counts[i]} images; asked were {train_images} for training and up to {test_images} others "
            f"to test: {fewer}give more images of it, or more splits."
        )


def svm_recall(
    features: np.ndarray,
    labels: np.ndarray,
    train_images: int = 30,
    test_images: int = 50,
    repeats: int = 3,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
) -> SvmRecall:
    """Caltech-101's protocol: random splits of n training and up to m test images a class; mean class recall.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`; images labelled -1 are left out.
        train_images: n, 2 or more.
        test_images: m, 1 or more, of those that n leaves.
        repeats: how many splits.
        seed: decides the splits and all else that is random.
        class_names: all classes, each of which must have images; those of the labels when not given.

    Raises:
        InputError (a ValueError): fewer than two classes; a class of too few images.
    """
    _check_split(labels, train_images, test_images, repeats, seed, class_names)
    classes = np.unique(labels[labels >= 0])
    costs, recalls = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        train = np.concatenate([places[:train_images] for places in drawn])
        test = np.concatenate(
            [places[train_images : train_images + test_images] for places in drawn]
        )
        cost, classifier = fit_svm(features[train], labels[train], seed)
        costs.append(cost)
        recalls.append(class_recalls(classifier, features[test], labels[test]))
    return SvmRecall(classes, costs, np.array(recalls))


def fit_svm(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[float, LinearSVC]:
    """A linear SVM, one class against the rest, L2-regularised, squared hinge loss; and its C.

    C is the one of `COSTS`, powers of ten from 0.01 to 1000, that has the highest mean class recall on a fifth of each
    class's images, at least one, when fitted to the others; of equal ones the smallest. Then all are fitted.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`, of two classes or more, each with two images or more.
        seed: decides which images are held out.

    Raises:
        InputError (a ValueError): fewer classes, or images of one.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        few = (
            f"class {classes[counts.argmin()]} with one"
            if len(classes) > 1
            else f"{len(classes)} classes"
        )
        raise InputError(
            f"A linear SVM needs two classes or more and two images or more of each; received {few}."
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    held = [max(1, round(len(places) / HELD_OUT)) for places in drawn]
    chooses = np.concatenate([places[:count] for places, count in zip(drawn, held, strict=True)])
    fitted = np.concatenate([places[count:] for places, count in zip(drawn, held, strict=True)])

    def score(cost: float) -> float:
        classifier = _linear_svm(cost).fit(features[fitted], labels[fitted])
        return float(class_recalls(classifier, features[chooses], labels[chooses]).mean())

    best = max(COSTS, key=score)  # the first of equal ones
    return best, _linear_svm(best).fit(features, labels)


def _linear_svm(cost: float) -> LinearSVC:
    from sklearn.svm import LinearSVC

    # The primal is solved without chance, and in a few steps at any C; the dual takes tens of thousands at a large one.
    return LinearSVC(C=cost, dual=False)


def class_recalls(classifier: LinearSVC, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are recognised, float64 `[classes]`; NaN for a class without images.

    The classes are the classifier's (`classes_`), in order; features are float `[N, D]`, labels int `[N]`.
    """
    right = classifier.predict(features) == labels
    return np.array(
        [right[labels == c].mean() if (labels == c).any() else np.nan for c in classifier.classes_]
    )


def svm_table(found: SvmRecall, train_images: int, test_images: int) -> Table:
    """A split a row, and the mean with its spread, for people."""
    reach = f"; 95% interval of the mean {_interval(found.interval)}" if found.interval else ""
    table = Table(
        title=f"linear SVM: {len(found.labels)} classes, {train_images} training and up to {test_images} test images each",
        caption=f"chance: {100 / len(found.labels):.1f}%{reach}",
    )
    for column in ("split", "C", "mean class recall, %"):
        table.add_column(column, justify="right")
    for number, (cost, mean) in enumerate(zip(found.costs, found.means, strict=True), start=1):
        table.add_row(
            str(number), f"{cost:g}", f"{100 * mean:.2f}", end_section=number == len(found.costs)
        )
    spread = f" ± {100 * found.spread:.2f}" if found.spread is not None else ""
    table.add_row("mean", "", f"{100 * found.mean:.2f}{spread}", style="bold")
    return table


def svm_record(found: SvmRecall, class_names: Sequence[str]) -> dict[str, Any]:
    """A result as JSON: of each split, of each class, and all together."""
    shares = {
        class_names[label]: found.recalls[:, i].tolist() for i, label in enumerate(found.labels)
    }
    return {
        "c": found.costs,
        "mean_class_recalls": found.means.tolist(),
        "mean": found.mean,
        "spread": found.spread,
        "interval": found.interval,
        "recall": {name: float(np.mean(each)) for name, each in shares.items()},
        "recalls": shares,  # of each split
    }


def _interval(ends: tuple[float, float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]%"


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The closest other images by cosine, the closest first; of equal ones, the first.

    Args:
        features: float32 `[N, D]`, rows of length 1.
        queries: places of images, int `[Q]`.
        count: how many, below N.

    Returns:
        Their places int64 `[Q, count]`, and cosines float32 `[Q, count]`.
    """
    places, cosines = [], []
    size = max(1, BLOCK // len(features))
    for some in (queries[i : i + size] for i in range(0, len(queries), size)):
        found = features[some] @ features.T  # [size, N]
        found[np.arange(len(some)), some] = -np.inf
        # The whole order of every row is far more work than its largest.
        best = (
            found.argmax(axis=1)[:, None]
            if count == 1
            else np.argsort(-found, axis=1, kind="stable")[:, :count]
        )
        places.append(best)
        cosines.append(np.take_along_axis(found, best, axis=1))
    return np.concatenate(places), np.concatenate(cosines)


@dataclass(frozen=True)
class NearestShare:
    """How many labelled images have one of their own class for nearest neighbour among the labelled others."""

    images: int
    right: int
    chance: float  # share of a random other image's being of the class

    @staticmethod
    def of(features: np.ndarray, labels: np.ndarray) -> NearestShare | None:
        """Of features float32 `[N, D]` and labels int64 `[N]`, -1 where not known; None for fewer than two known."""
        known = np.flatnonzero(labels >= 0)
        if len(known) < 2:
            return None
        features, labels = features[known], labels[known]
        places, _ = nearest(features, np.arange(len(known)), 1)
        counts = np.bincount(labels)
        chance = float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1)))
        return NearestShare(len(known), int((labels[places[:, 0]] == labels).sum()), chance)

    def __str__(self) -> str:
        return (
            f"{100 * self.right / self.images:.2f}% {_interval(evaluate.wilson(self.right, self.images))} of images have one "
            f"of their own class for nearest neighbour, chance {100 * self.chance:.1f}%"
        )

    def record(self) -> dict[str, Any]:
        """As JSON, with Wilson's 95% interval."""
        interval = evaluate.wilson(self.right, self.images)
        return {**vars(self), "share": self.right / self.images, "interval": interval}


def choose_queries(labels: np.ndarray, count: int = QUERIES) -> np.ndarray:
    """Places of images, int64, spread evenly over the classes, and in each class over its images, in order.

    Where there are more classes than queries, classes spread evenly have one each. Unknown labels are one class.
    """
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), count)]
    each = np.full(len(classes), count // len(classes))
    each[: count % len(classes)] += 1
    chosen = []
    for label, number in zip(classes, each, strict=True):
        own = np.flatnonzero(labels == label)
        chosen.append(own[_spread(len(own), number)])
    return np.concatenate(chosen)


def _spread(among: int, count: int) -> np.ndarray:
    """At most `count` places spread evenly over the numbers below `among`, each in the middle of its part."""
    count = min(among, count)
    return (np.arange(count) * 2 + 1) * among // (2 * count)


def write_page(found: Described, path: Path) -> NearestShare | None:
    """Write a page of queries, each with its closest images, that needs no network and no script.

    Returns the share of images whose nearest neighbour has their class; None where labels are not known.

    Raises InputError where there are fewer than two images.
    """
    count = len(found.labels)
    if count < 2:
        raise InputError(
            f"{found.data.spec} has one image that can be read: nearest neighbours need two or more."
        )
    queries = choose_queries(found.labels)
    places, cosines = nearest(found.features, queries, min(CLOSEST, count - 1))
    share = NearestShare.of(found.features, found.labels)
    pictures = _pictures(found, np.unique(np.concatenate([queries, places.ravel()])))

    def shown(place: int, **more: Any) -> dict[str, Any]:
        return {
            "name": found.name(place),
            "label": found.label(place),
            "picture": pictures[int(place)],
            **more,
        }

    rows = []
    for query, own, near in zip(queries, places, cosines, strict=True):
        label = found.label(query)
        closest = []
        for place, cosine in zip(own, near, strict=True):
            other = found.label(place)
            alike = None if label is None or other is None else label == other
            closest.append(shown(place, cosine=float(cosine), alike=alike))
        rows.append({"query": shown(query), "closest": closest})
    spec = found.data.spec
    values = {
        "title": spec.removeprefix("tfds:") if spec.startswith("tfds:") else Path(spec).name,
        "rows": rows,
        "share": share.record() if share else None,
        "about": found.about,
        "flatters": found.flatters,
        "written": datetime.datetime.now(),
    }
    from vggkeras.report import rendered

    files.write_text(path, rendered(TEMPLATE, thumbnail=THUMBNAIL, **values))
    return share


def _pictures(found: Described, places: np.ndarray) -> dict[int, str]:
    """Some images' central squares as people like to see them: place -> the source of an `img`."""
    pictures = {}
    for name, split in found.data.splits.items():
        own = {
            int(found.indices[place]): int(place) for place in places if found.splits[place] == name
        }
        some = split.without(set(split.indices()) - set(own))
        for index, (_, encoded, _) in zip(sorted(own), some.examples(), strict=True):
            image = datasets.decode(encoded, split.image_name(index))
            square = augment.center_crop(image, THUMBNAIL, (THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            Image.fromarray(square).save(buffer, "JPEG", quality=82, optimize=True)
            pictures[own[index]] = (
                f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            )
    return pictures
