"""The paper's test protocols (section 3.2), over any `Predictor`, and the statistics of what they answer.

center      the central crop of the image rescaled to smallest side Q
dense       the network made fully convolutional, on the whole rescaled image: the class scores are averaged over
            space, then soft-max; the posteriors of the image and of its mirror are averaged
multicrop   a 5 x 5 grid of crops over the rescaled image, with mirrors: 50 posteriors are averaged
both        the average of dense and multicrop

Several scales Q, and several models (fusion), are averaged again, posterior by posterior.

python -m vggkeras evaluate --model runs/latest --data digits --protocol center dense multicrop both
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.table import Table

from vggkeras import augment, datasets
from vggkeras.configs import LARGEST_SCALE
from vggkeras.datasets import Split
from vggkeras.errors import InputError
from vggkeras.runtimes import MAX_BATCH, Predictor, check_probabilities

PROTOCOLS = ("center", "dense", "multicrop", "both")
PARTS = {
    "center": ("center",),
    "dense": ("dense",),
    "multicrop": ("multicrop",),
    "both": ("dense", "multicrop"),
}
GRID = 5  # crops a side of multicrop's grid
WINDOW = 32  # images in memory at once; those of one shape go through a dense network together
CALIBRATION_BINS = 15

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """One row of a table: what a model (or several, fused) answered about every image of a split under one protocol."""

    models: tuple[str, ...]  # paths; several where fused
    runtime: str  # with its version
    provider: str
    protocol: str
    scales: tuple[int, ...]
    class_names: list[str] = field(repr=False)
    indices: np.ndarray = field(repr=False)  # int64 [N]: what Split.image_name takes
    labels: np.ndarray = field(repr=False)  # int32 [N]
    predictions: np.ndarray = field(repr=False)  # int32 [N], the most probable class
    confidences: np.ndarray = field(repr=False)  # float32 [N], its probability
    in5: np.ndarray = field(
        repr=False
    )  # bool [N]: the label is among the five most probable (all, where fewer)
    seconds: float  # of cutting the crops and running the models, for this row alone; decoding runs beside it

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """bool `[N]`: the most probable class is the label."""
        return self.predictions == self.labels

    @property
    def correct(self) -> int:
        """Images whose most probable class is the label."""
        return int(self.right.sum())

    @property
    def correct5(self) -> int:
        """Images whose label is among the five most probable classes."""
        return int(self.in5.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return self.correct / self.images

    @property
    def accuracy5(self) -> float:
        """Top-5, in [0, 1]."""
        return self.correct5 / self.images

    def confusion_matrix(self) -> np.ndarray:
        """Counts int64 `[classes, classes]`: rows are labels, columns predictions."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(
            self.labels, self.predictions, labels=np.arange(len(self.class_names))
        )

    def recalls(self) -> np.ndarray:
        """Share of each class's images that were recognised, float64 `[classes]`; NaN for a class without images."""
        matrix = self.confusion_matrix()
        with np.errstate(invalid="ignore"):
            return matrix.diagonal() / matrix.sum(axis=1)

    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): 15 bins of equal width, weighted by their images."""
        bins = np.minimum((self.confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gaps = np.bincount(bins, self.confidences.astype(np.float64) - self.right, CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / self.images)


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same images."""

    gained: list[int]  # indices of images that only the second has right
    lost: list[int]  # indices of images that only the first has right
    p: float  # exact McNemar test, two-sided

    @staticmethod
    def of(first: Evaluation, second: Evaluation) -> Comparison:
        """Raises InputError when the rows are not of the same images."""
        if not np.array_equal(first.indices, second.indices) or not np.array_equal(
            first.labels, second.labels
        ):
            raise InputError(
                "Two rows can only be compared on the same images with the same labels."
            )
        gained = first.indices[second.right & ~first.right].tolist()
        lost = first.indices[first.right & ~second.right].tolist()
        return Comparison(gained, lost, mcnemar(len(gained), len(lost)))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(gained: int, lost: int) -> float:
    """p of the exact two-sided McNemar test: would as many be gained as lost, if neither were the better?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def checked_scales(
    predictor: Predictor, protocol: str, scales: Sequence[int] | None
) -> tuple[int, ...]:
    """The test scales Q (smallest side, px) of a protocol; by default the one the model was trained for.

    Raises InputError for an unknown protocol, a scale below the model's input, or one given twice.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if scales is not None and (
        not isinstance(scales, Sequence) or not all(isinstance(scale, int) for scale in scales)
    ):
        raise InputError(
            f"scales must be a list of whole numbers of pixels, such as (256, 384, 512); received {scales!r}."
        )
    scales = tuple(scales or (predictor.scale,))
    smallest = max(predictor.input_shape[:2])
    for scale in scales:
        if scale < smallest:
            raise InputError(
                f"Scale {scale} is below the model's input of {smallest} px: give {smallest} or more."
            )
        if scale > LARGEST_SCALE:  # the whole rescaled image is held in memory
            raise InputError(
                f"Scale {scale} is above {LARGEST_SCALE} px: give {smallest} to {LARGEST_SCALE}."
            )
    if len(set(scales)) < len(scales):
        raise InputError(
            f"Scales must differ, for each counts once; received {' '.join(map(str, scales))}."
        )
    return scales


def evaluate(
    predictors: Predictor | Sequence[Predictor],
    split: Split,
    class_names: Sequence[str],
    protocols: str | Sequence[str] = "center",
    scales: Sequence[int] | None = None,
    *,
    mirrors: bool = True,
    grid: int = GRID,
    fuse: bool = False,
    skipped: list[str] | None = None,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> list[Evaluation]:
    """Score models on every labelled image of a split, in one pass: each image is read, and rescaled, once for all rows.

    Memory holds a window of images, and a few bytes an image of what was answered.

    Args:
        predictors: one or more.
        class_names: of the data; they must be the predictors', or as many where they carry none of their own.
        protocols: one or more of `PROTOCOLS`.
        scales: test scales Q, px; by default the one each model was trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.
        fuse: also the average of all models' posteriors.
        skipped: a list to put the names of images into that cannot be read; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.

    Returns:
        A row for each model (and for the fusion), protocol, and scale alone where there are several, then for all scales.

    Raises:
        InputError (a ValueError): classes that differ, unreadable images (counted and named), labels that are no class,
            no images, a scale below the input, a model without a dense form where one is needed.
    """
    models = [predictors] if isinstance(predictors, Predictor) else list(predictors)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    for model in models:
        check_classes(model, class_names)
    plan = _Plan(models, names, scales, mirrors, grid)
    if fuse and len(models) < 2:
        raise InputError("To fuse, give two models or more.")
    if not split.count:
        raise InputError(f"{split.name} has no images to evaluate: choose another split.")
    rows = plan.rows(fuse)
    plan.warm_up()
    answers: list[list[tuple]] = [[] for _ in rows]
    seen: list[tuple[int, int]] = []
    unreadable: list[str] = []

    def prepare(index: int, encoded: bytes, label: int):
        try:
            image = datasets.decode(encoded, split.image_name(index))
        except InputError as error:
            return index, label, error
        return index, label, plan.rescaled(image)

    def readable() -> Iterator[tuple[int, int, dict[int, np.ndarray]]]:
        for index, label, images in track(
            datasets.in_threads(prepare, split.examples()), split.count
        ):
            if isinstance(images, InputError):
                unreadable.append(split.image_name(index))
            elif not 0 <= label < len(class_names):
                raise InputError(
                    f"{split.image_name(index)} is labelled {label}, and the model's {len(class_names)} classes are 0 to "
                    f"{len(class_names) - 1}: choose a split with labels that are the model's."
                )
            elif (
                skipped is not None or not unreadable
            ):  # what is lost already is only read on, and counted
                yield index, label, images

    for window in windows(readable(), WINDOW):
        indices, labels, images = zip(*window, strict=True)
        seen += zip(indices, labels, strict=True)
        parts = plan.posteriors(list(images))
        for row, answer in zip(rows, answers, strict=True):
            p = np.mean([parts[key] for key in row.keys], axis=0)
            best = np.argsort(-p, axis=1, kind="stable")[:, :5]
            hit = (best == np.array(labels)[:, None]).any(axis=1)
            answer.append((best[:, 0].astype(np.int32), p[np.arange(len(p)), best[:, 0]], hit))
    if unreadable and skipped is None:
        raise datasets.unreadable(unreadable, f"the {split.count} of {split.name}")
    if skipped is not None:
        skipped += unreadable
    if not seen:
        raise InputError(f"{split.name} has no image that can be read.")
    found, labelled = (np.array(column) for column in zip(*seen, strict=True))
    evaluations = []
    for row, answer in zip(rows, answers, strict=True):
        predictions, confidences, in5 = (
            np.concatenate(column) for column in zip(*answer, strict=True)
        )
        chosen = [models[i] for i in row.models]
        evaluations.append(
            Evaluation(
                tuple(str(model.path) for model in chosen),
                " + ".join(dict.fromkeys(f"{model.runtime} {model.version}" for model in chosen)),
                " + ".join(dict.fromkeys(model.provider for model in chosen)),
                row.protocol,
                row.scales,
                list(class_names),
                found.astype(np.int64),
                labelled.astype(np.int32),
                predictions,
                confidences,
                in5,
                sum(plan.seconds[key] for key in row.keys),
            )
        )
    return evaluations


# Top-1 and top-5 error, %, on ILSVRC-2012's validation images: (configuration, S of training) -> (one test scale, several).
PAPER_DENSE: dict[
    tuple[str, str], tuple[tuple[float, float] | None, tuple[float, float] | None]
] = {  # Tables 3 and 4
    ("A", "256"): ((29.6, 10.4), None),
    ("A-LRN", "256"): ((29.7, 10.5), None),
    ("B", "256"): ((28.7, 9.9), (28.2, 9.6)),
    ("C", "256"): ((28.1, 9.4), (27.7, 9.2)),
    ("C", "384"): ((28.1, 9.3), (27.8, 9.2)),
    ("C", "256:512"): ((27.3, 8.8), (26.3, 8.2)),
    ("D", "256"): ((27.0, 8.8), (26.6, 8.6)),
    ("D", "384"): ((26.8, 8.7), (26.5, 8.6)),
    ("D", "256:512"): ((25.6, 8.1), (24.8, 7.5)),
    ("E", "256"): ((27.3, 9.0), (26.9, 8.7)),
    ("E", "384"): ((26.9, 8.7), (26.7, 8.6)),
    ("E", "256:512"): ((25.5, 8.0), (24.8, 7.5)),
}
PAPER_JITTERED: dict[
    tuple[tuple[str, ...], str], tuple[float, float]
] = {  # Tables 5 and 6: S in [256, 512], three Q
    (("D",), "multicrop"): (24.6, 7.5),
    (("D",), "both"): (24.4, 7.2),
    (("E",), "multicrop"): (24.6, 7.4),
    (("E",), "both"): (24.4, 7.1),
    (("D", "E"), "dense"): (24.0, 7.1),
    (("D", "E"), "multicrop"): (23.9, 7.2),
    (("D", "E"), "both"): (23.7, 6.8),
}
PAPER_CLASSES = 1000


def paper_errors(predictors: Sequence[Predictor], row: Evaluation) -> tuple[float, float] | None:
    """The paper's top-1 and top-5 error, %, for a row's networks, protocol and scales; None where it has none.

    Only for ImageNet's 1000 classes. A model that does not say how it was trained is taken for one of S in [256, 512],
    which the published weights are.
    """
    if len(row.class_names) != PAPER_CLASSES:
        return None
    trained = {
        (_arch(model), str((model.about.get("recipe") or {}).get("scale") or "256:512"))
        for model in predictors
        if str(model.path) in row.models
    }
    archs, sides = tuple(sorted({arch for arch, _ in trained})), {side for _, side in trained}
    if len(sides) != 1:
        return None
    (side,) = sides
    three = (
        (256, 384, 512)
        if side == "256:512"
        else tuple(int(side) + d for d in (-32, 0, 32))
        if side.isdigit()
        else ()
    )
    if row.protocol == "dense" and len(archs) == 1:
        one, several = PAPER_DENSE.get((archs[0], side), (None, None))
        return one if row.scales == (three[1],) else several if row.scales == three else None
    if side == "256:512" and row.scales == three:
        return PAPER_JITTERED.get((archs, row.protocol))
    return None


def _arch(model: Predictor) -> str:
    """The paper's letter of a model, from what travels with it: a recipe's D, or a network's name, vgg_d."""
    about = model.about.get("provenance", {}) | model.about
    return str(about.get("arch", "")).lower().removeprefix("vgg_").upper().replace("_", "-")


def table(
    rows: Sequence[Evaluation], paper: Sequence[tuple[float, float] | None], title: str
) -> Table:
    """Rows for people; each is compared with the first."""
    found = Table(title=title)
    several, known = len(rows) > 1, any(paper)
    short = short_names([path for row in rows for path in row.models])
    columns = [
        "",
        "model",
        "protocol",
        "Q",
        "top-1 error, %",
        "top-5 error, %",
        "correct",
        "ECE",
        "images/s",
    ]
    for column in [*columns, *["the paper's"] * known, *["gained", "lost", "p"] * several]:
        text = column in ("model", "protocol", "Q")
        found.add_column(
            column, justify="left" if text else "right", overflow="fold", no_wrap=column != "model"
        )
    for number, (row, theirs) in enumerate(zip(rows, paper, strict=True), start=1):
        cells = [
            str(number),
            " + ".join(short[path] for path in row.models),
            row.protocol,
            " ".join(map(str, row.scales)),
            with_interval(row.images - row.correct, row.images),
            with_interval(row.images - row.correct5, row.images)
            if len(row.class_names) > 5
            else "-",
            f"{row.correct:,}",
            f"{row.calibration_error():.3f}",
            f"{row.images / row.seconds:.0f}"
            if row.images > 10 * row.seconds
            else f"{row.images / row.seconds:.2f}",
        ]
        if known:
            cells.append(f"{theirs[0]} / {theirs[1]}" if theirs else "")
        if several:
            against = Comparison.of(rows[0], row)
            gained, lost = len(against.gained), len(against.lost)
            cells += [""] * 3 if number == 1 else [f"+{gained}", f"-{lost}", f"{against.p:.2g}"]
        last = number == len(rows) or rows[number].models != row.models
        found.add_row(*cells, end_section=last)
    if several:
        found.caption = "gained, lost: images that this row alone has right, or row 1 alone; p: exact McNemar test"
    return found


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The fewest last parts of each path that tell it from the others; of a run's model.keras, the run."""
    parts = {path: Path(path).parts for path in paths}
    parts = {
        path: p[:-1] if p[-1] == "model.keras" and len(p) > 1 else p for path, p in parts.items()
    }
    for count in range(1, max(len(p) for p in parts.values()) + 1):
        short = {path: "/".join(p[-count:]) for path, p in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {path: path for path in paths}


def with_interval(errors: int, images: int) -> str:
    """An error rate with Wilson's 95% interval, %, for people: 19.46 [18.2, 20.7]."""
    low, high = wilson(errors, images)
    return f"{100 * errors / images:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def cost_ratios(rows: Sequence[Evaluation]) -> list[str]:
    """What dense costs beside multicrop over all scales, for each model that went through both."""
    lines = []
    for dense in rows:
        for multicrop in rows:
            several = max(len(row.scales) for row in rows if row.models == dense.models)
            alike = (dense.models, dense.scales) == (multicrop.models, multicrop.scales)
            if alike and (dense.protocol, multicrop.protocol, len(dense.scales)) == (
                "dense",
                "multicrop",
                several,
            ):
                lines.append(
                    f"cost of dense : multicrop = {dense.seconds / multicrop.seconds:.3f} ({dense.seconds:.1f} s, "
                    f"{multicrop.seconds:.1f} s; {dense.runtime}, Q {' '.join(map(str, dense.scales))})"
                )
    return lines


def flips(rows: Sequence[Evaluation], name: Callable[[int], str], most: int = 10) -> list[str]:
    """The images that flip between the first row and each other one, where they are few."""
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        against = Comparison.of(rows[0], row)
        if 0 < len(against.gained) + len(against.lost) <= most:
            told = [
                f"{what} {', '.join(map(name, i))}"
                for what, i in (("gained", against.gained), ("lost", against.lost))
                if i
            ]
            lines.append(f"row {number} " + "; ".join(told))
    return lines


def records(
    rows: Sequence[Evaluation],
    paper: Sequence[tuple[float, float] | None],
    name: Callable[[int], str],
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows as JSON: an object a row; each is compared with all before it ("against"), so every pair is there once."""
    found = []
    for number, row in enumerate(rows):
        matrix = row.confusion_matrix()
        against = []
        for other, before in enumerate(rows[:number]):
            comparison = Comparison.of(before, row)
            against.append(
                {
                    "row": other,
                    "gained": [name(i) for i in comparison.gained],
                    "lost": [name(i) for i in comparison.lost],
                    "mcnemar_p": comparison.p,
                }
            )
        found.append(
            {
                "model": " + ".join(row.models),
                "runtime": row.runtime.split(" ")[0] if len(row.models) == 1 else row.runtime,
                "version": row.runtime.split(" ", 1)[1] if len(row.models) == 1 else row.runtime,
                "provider": row.provider,
                **about,
                "protocol": row.protocol,
                "scales": list(row.scales),
                "images": row.images,
                "correct": row.correct,
                "correct5": row.correct5,
                "top1_error": 1 - row.accuracy,
                "top1_error_interval": wilson(row.images - row.correct, row.images),
                "top5_error": 1 - row.accuracy5,
                "top5_error_interval": wilson(row.images - row.correct5, row.images),
                "paper_top1_error": theirs[0] / 100 if (theirs := paper[number]) else None,
                "paper_top5_error": theirs[1] / 100 if theirs else None,
                "calibration_error": row.calibration_error(),
                "recall": {
                    label: None if np.isnan(share) else float(share)
                    for label, share in zip(row.class_names, row.recalls(), strict=True)
                },
                "confusions": [  # [label, prediction, images], none left out
                    [row.class_names[i], row.class_names[j], int(matrix[i, j])]
                    for i, j in np.argwhere(matrix)
                ],
                "seconds": row.seconds,
                "against": against,
            }
        )
    return found


def check_classes(predictor: Predictor, class_names: Sequence[str]) -> None:
    """Raises InputError when a model's classes are not the data's, or it has none."""
    check_probabilities(predictor)
    own = predictor.about.get("class_names")
    if len(class_names) != len(predictor.class_names):
        raise InputError(
            f"{predictor.path} has {len(predictor.class_names)} classes and the data {len(class_names)}: "
            "give the data it was trained for."
        )
    if own and list(own) != list(class_names):
        first = next(i for i, (a, b) in enumerate(zip(own, class_names, strict=True)) if a != b)
        raise InputError(
            f"{predictor.path} and the data name class {first} differently, {own[first]!r} and {class_names[first]!r}: "
            "give the data it was trained for."
        )


def check_channels(predictor: Predictor) -> None:
    """Raises InputError when a model cannot be shown what image files hold."""
    channels = predictor.input_shape[2]
    if channels not in (1, 3):
        raise InputError(
            f"{predictor.path} takes images of {channels} channels, and image files have 3 (or 1, if grey)."
        )


def check_fusible(predictors: Sequence[Predictor]) -> None:
    """Raises InputError when models do not have the same classes in the same order."""
    first, *others = predictors
    for other in others:
        if other.class_names != first.class_names:
            raise InputError(
                f"{first.path} and {other.path} cannot be fused: expected the same classes in the same order, received "
                f"{len(first.class_names)} ({_listed(first.class_names)}) and {len(other.class_names)} "
                f"({_listed(other.class_names)})."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def central_crops(predictor: Predictor, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What the center protocol shows a predictor of a whole split: uint8 `[N, H, W, C]`, labels int64 `[N]`."""

    def prepare(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        image = augment.rescale(datasets.decode(encoded, split.image_name(index)), predictor.scale)
        return _center(predictor, augment.in_channels(image, predictor.input_shape[2])), label

    crops, labels = zip(*datasets.in_threads(prepare, split.examples()), strict=True)
    return np.stack(crops), np.array(labels, np.int64)


def posteriors(
    predictors: Predictor | Sequence[Predictor],
    images: Iterable[str | os.PathLike | np.ndarray],
    protocol: str = "center",
    scales: Sequence[int] | None = None,
    *,
    mirrors: bool = True,
    grid: int = GRID,
) -> np.ndarray:
    """Class posteriors float32 `[N, classes]` of images of any size, each rescaled and shown as the protocol says.

    Args:
        predictors: one, or several whose posteriors are averaged (fusion).
        images: paths of JPEG, PNG, BMP or GIF files, or RGB arrays uint8 `[H, W, 3]`.
        protocol: center, dense, multicrop or both (see the module).
        scales: test scales Q, px, whose posteriors are averaged; by default the one each model was trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.

    Raises:
        InputError (a ValueError): an image that cannot be read or has another shape or type; a scale below the input;
            models of different classes; a file without a dense form under dense or both.
    """
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected a list of paths or arrays; received one path, {str(images)!r}: put it into a list."
        )
    models = [predictors] if isinstance(predictors, Predictor) else list(predictors)
    plan = _Plan(models, [protocol], scales, mirrors, grid)
    row = plan.rows(fuse=len(models) > 1)[-1]
    prepared = datasets.in_threads(
        lambda image: plan.rescaled(pixels(image)), ((image,) for image in images)
    )
    answers = []
    for window in windows(prepared, WINDOW):
        parts = plan.posteriors(window)
        answers.append(np.mean([parts[key] for key in row.keys], axis=0))
    return (
        np.concatenate(answers)
        if answers
        else np.empty((0, len(models[0].class_names)), np.float32)
    )


def pixels(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """A file's image, or an array as it is: RGB, uint8 `[H, W, 3]`; InputError for what is neither."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(
                f"Expected an RGB image, uint8 [H, W, 3], 0-255; received {image.dtype} of shape {list(image.shape)}."
            )
        return image
    if not Path(image).is_file():
        raise InputError(f"No image at {image}: expected a JPEG, PNG, BMP or GIF file.")
    return datasets.decode(Path(image).read_bytes(), str(image))


_Key = tuple[int, str, int]  # place of the model, what it is shown (a value of PARTS), scale


@dataclass(frozen=True)
class _Row:
    models: tuple[int, ...]
    protocol: str
    scales: tuple[int, ...]
    keys: tuple[_Key, ...]  # whose posteriors are averaged


class _Plan:
    """What has to be asked, once each, for all rows: (model, crops or the whole image, scale)."""

    def __init__(
        self,
        models: list[Predictor],
        protocols: list[str],
        scales: Sequence[int] | None,
        mirrors: bool,
        grid: int,
    ) -> None:
        if not models or not protocols:
            raise InputError(
                f"Expected one model or more and one protocol or more of {', '.join(PROTOCOLS)}."
            )
        if grid < 1:
            raise InputError(f"grid must be 1 or more; received {grid}.")
        if len(set(protocols)) < len(protocols):
            raise InputError(f"Protocols must differ; received {' '.join(protocols)}.")
        self.models, self.protocols, self.mirrors, self.grid = models, protocols, mirrors, grid
        self.scales = [
            checked_scales(model, protocol, scales)
            for model in models
            for protocol in self.protocols
        ]
        self.scales = self.scales[:: len(self.protocols)]  # of each model
        for model in models:
            check_probabilities(model)
            check_channels(model)
        needed = dict.fromkeys(part for protocol in self.protocols for part in PARTS[protocol])
        self.keys = [
            (m, part, q) for m in range(len(models)) for part in needed for q in self.scales[m]
        ]
        self.dense = [model.dense_form() for model in models] if "dense" in needed else []
        self.seconds = dict.fromkeys(self.keys, 0.0)

    def rows(self, fuse: bool) -> list[_Row]:
        """Rows of each model, then of the fusion; each scale alone where there are several, then all."""
        groups: list[tuple[int, ...]] = [(m,) for m in range(len(self.models))]
        if fuse:
            check_fusible(self.models)
            groups.append(tuple(range(len(self.models))))
        rows = []
        for group in groups:
            alike = len({self.scales[m] for m in group}) == 1
            for protocol in self.protocols:
                own = self.scales[group[0]]
                alone = [{q} for q in own] if alike and len(own) > 1 else []
                for chosen in [*alone, {q for m in group for q in self.scales[m]}]:
                    keys = tuple(
                        (m, part, q)
                        for m in group
                        for part in PARTS[protocol]
                        for q in self.scales[m]
                        if q in chosen
                    )
                    rows.append(_Row(group, protocol, tuple(sorted(chosen)), keys))
        return rows

    def warm_up(self) -> None:
        """Run every model once: a first call compiles and plans, which is no row's time."""
        for model in [*self.models, *self.dense]:
            model(np.zeros((1, *model.input_shape), np.uint8))

    def rescaled(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """An image at every scale: Q -> uint8 `[h, w, 3]`."""
        return {
            q: augment.rescale(image, q)
            for q in sorted({q for scales in self.scales for q in scales})
        }

    def posteriors(self, images: list[dict[int, np.ndarray]]) -> dict[_Key, np.ndarray]:
        """Posteriors float32 `[n, classes]` of a window of images, of every key."""
        answers = {}
        for key in self.keys:
            start = time.perf_counter()
            m, part, q = key
            model = self.models[m]
            shown = [augment.in_channels(image[q], model.input_shape[2]) for image in images]
            if part == "dense":
                answers[key] = of_whole_images(self.dense[m], shown, self.mirrors)
            else:
                views = (1, False) if part == "center" else (self.grid, self.mirrors)
                answers[key] = _of_crops(model, shown, *views)
            self.seconds[key] += time.perf_counter() - start
        return answers


def _of_crops(model: Predictor, images: list[np.ndarray], grid: int, mirrors: bool) -> np.ndarray:
    """The average posterior of each image's crops: uint8 `[h, w, C]` each -> float32 `[n, classes]`.

    Crops of several images share a batch, so that all batches but the last are full.
    """
    crops = (crop for image in images for crop in _with_mirrors(_grid(model, image, grid), mirrors))
    p = np.concatenate([model(np.stack(batch)) for batch in windows(crops, MAX_BATCH)])
    return p.reshape(len(images), -1, p.shape[-1]).mean(axis=1)


def _with_mirrors(crops: Iterable[np.ndarray], mirrors: bool) -> Iterator[np.ndarray]:
    for crop in crops:
        yield crop
        if mirrors:
            yield crop[:, ::-1]


def _grid(model: Predictor, image: np.ndarray, grid: int) -> Iterator[np.ndarray]:
    h, w = model.input_shape[:2]
    return augment.grid_crops(image, (h, w), grid)


def _center(model: Predictor, image: np.ndarray) -> np.ndarray:
    return next(_grid(model, image, 1))


def of_whole_images(model: Predictor, images: list[np.ndarray], mirrors: bool) -> np.ndarray:
    """Posteriors, or features, of whole images by a dense model: uint8 `[h, w, C]` each -> float32 `[n, classes]`.

    The model averages its class scores over space, then takes the soft-max (in the graph, so that every runtime does
    the same: `models.dense_classifier`); the mirror's posterior is averaged here. Images of one shape go together, in
    batches of as many pixels as a full batch of crops has, for every new shape costs a runtime some planning.
    """
    h, w = model.input_shape[:2]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    answers = np.empty((len(images), model.features or len(model.class_names)), np.float32)
    views = 2 if mirrors else 1
    for shape, places in sorted(by_shape.items()):
        count = max(1, MAX_BATCH * h * w // (shape[0] * shape[1] * views))
        for some in windows(places, count):
            stack = np.stack([view for i in some for view in _with_mirrors([images[i]], mirrors)])
            answers[some] = model(stack).reshape(len(some), views, -1).mean(axis=1)
    return answers


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, but for the last."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window
