"""A run's folder, or an export's, as one page: report.html, which needs no network and no script.

python -m vggkeras report runs/latest
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import datetime
import io
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console

from vggkeras import augment, datasets, evaluate, files, runtimes
from vggkeras.configs import Recipe
from vggkeras.datasets import Data, Split
from vggkeras.errors import InputError
from vggkeras.evaluate import CALIBRATION_BINS, Evaluation, wilson, with_interval
from vggkeras.runtimes import Predictor
from vggkeras.terminal import load_tensorflow, progress_bar

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"
MISTAKES = 24  # most confident ones shown
LOOKED_AT = 4  # right answers, and as many wrong ones, that Grad-CAM explains
NUMBERED = 30  # classes up to which the confusion matrix has numbers
CONFUSIONS = 20  # most frequent ones listed where it has none
RECALLS = 50  # classes up to which all have a bar
WORST = 30  # that have one where they are more
THUMBNAIL = 160  # px, longer side: twice what a phone shows
KERNELS_A_ROW = 16
HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
# Stand-ins that Matplotlib takes for colours; the page's own, light or dark, are put in their place.
INK, TRAINING, VALIDATION = "#010101", "#010102", "#010103"
INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
PLOT: dict[Any, Any] = dict.fromkeys(INKED, INK) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.6,
    "font.size": 11,
    "figure.constrained_layout.use": True,
}
COLOURS = {INK: "currentColor", TRAINING: "rgb(var(--training))", VALIDATION: "rgb(var(--right))"}


def report(
    folder: str | os.PathLike = "runs/latest",
    data: str | None = None,
    evaluations: Sequence[str | os.PathLike] = (),
    benchmarks: Sequence[str | os.PathLike] = (),
    out: str | os.PathLike | None = None,
    console: Console | None = None,
    *,
    skip_unreadable: bool = False,
) -> Path:
    """Write a run or an export down as one self-contained HTML page.

    A run's model is evaluated on the validation split by the central crop and densely, at its own scale; an export's files
    by the central crop. A run without a model yet has its curves alone, and needs no data.

    Args:
        folder: of a run (run.json) or of an export (certificate.json).
        data: whose validation split to evaluate on; by default the data the model was trained on.
        evaluations: files that `python -m vggkeras evaluate --json` wrote, whose rows are shown too.
        benchmarks: files that `python -m export.benchmark --json` wrote, shown as bars and rows.
        out: the page; by default report.html in the folder.
        console: where to tell of it.
        skip_unreadable: go on without images that cannot be read; so does the report of a run that did.

    Returns:
        The page's path.

    Raises:
        InputError (a ValueError): no such folder; neither run.json nor certificate.json; a damaged file; data that are
            not there; for a Keras model, a backend other than TensorFlow, whose gradients Grad-CAM takes.
        OSError: the page cannot be written.
    """
    console, folder = console or Console(), Path(folder)
    source = _source(folder)
    page = Path(out) if out else folder / "report.html"
    groups = [_read_evaluation(Path(path)) for path in evaluations]
    speeds = [_speed(Path(path), number) for number, path in enumerate(benchmarks)]
    files.check_file(page)
    skip_unreadable |= bool(source.about.get("recipe", {}).get("skip_unreadable"))

    if source.models:
        load_tensorflow(console, *source.models)
    values: dict[str, Any] = {
        "curves": _curves(source),
        "drops": source.drops,
        "written": datetime.datetime.now(),
    }
    with console.status(f"loading {folder}"):
        source, predictors, network = _loaded(source)
        found = _found_data(source, data, skip_unreadable) if predictors else None
    if found:
        values |= _evaluated(source, found, predictors, network, console, skip_unreadable)
        groups = [{"title": "This report", "records": values["records"]}, *groups]
    values |= {
        "source": source,
        "title": _title(source, found),
        "facts": _facts(source, network),
        "command": _command(source.about["recipe"]) if "recipe" in source.about else None,
        "groups": [_error_rows(**group) for group in groups],
        "artifacts": _artifacts(source),
        "speeds": speeds,
        "kernels": _kernels(network) if network else None,
    }
    files.write_text(page, rendered(TEMPLATE, wilson=wilson, **values))
    console.print(f"report: {page}", soft_wrap=True)
    return page


@dataclass(frozen=True)
class _Source:
    """What a folder holds."""

    folder: Path
    about: dict[str, Any]  # run.json, or what travels in an exported file
    is_run: bool
    history: list[dict[str, float]]  # a row an epoch
    certificate: dict[str, dict[str, Any]]  # artifact's file name -> entry
    exports: Path  # the certificate's folder
    models: list[Path]  # to evaluate

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch whose model is kept: the first of the highest validation accuracy."""
        return max(self.history, key=lambda row: row["val_accuracy"], default=None)

    @property
    def drops(self) -> list[float]:
        """The epochs that began with a lower learning rate than the one before."""
        pairs = itertools.pairwise(self.history)
        return [
            after["epoch"]
            for before, after in pairs
            if after["learning_rate"] < before["learning_rate"]
        ]


def _source(folder: Path) -> _Source:
    if not folder.is_dir():
        raise InputError(
            f"No folder {folder}: expected a run's or an export's; train one with `python -m vggkeras train`, or name it."
        )
    is_run = (folder / "run.json").is_file()
    exports = (
        folder / "export" if is_run and not (folder / "certificate.json").is_file() else folder
    )
    if not is_run and not (exports / "certificate.json").is_file():
        raise InputError(
            f"{folder} holds neither run.json nor certificate.json: expected the folder of a run (`python -m vggkeras "
            "train`) or of an export (`python -m export`)."
        )
    about = _read_run(folder / "run.json") if is_run else {}
    if not is_run and not files.read_certificate(exports):
        raise InputError(
            f"{exports / 'certificate.json'} names no artifact: export again with `python -m export`."
        )
    history = _read_history(folder / "history.csv") if is_run else []
    certificate = files.read_certificate(exports)
    if is_run:
        models = [path for path in [folder / "model.keras"] if path.is_file()]
    else:
        models = [
            exports / name
            for name, entry in certificate.items()
            if entry["passed"] and (exports / name).exists()
        ]
    return _Source(folder, about, is_run, history, certificate, exports, models)


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}): restore it, or start another run."
        ) from error
    expected = {
        "arch",
        "recipe",
        "data",
        "class_names",
        "image_size",
        "scale",
        "images",
        "status",
        "metrics",
    }
    if not isinstance(run, dict) or expected - set(run) or not isinstance(run["recipe"], dict):
        raise InputError(
            f"{path} is damaged: expected what training writes; restore it, or start another run."
        )
    return run


def _read_history(path: Path) -> list[dict[str, float]]:
    """A row an epoch; none where no epoch is finished."""
    if not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in lines):
            raise ValueError("a row is cut short, or has too many values")
        rows = [{key: float(value) for key, value in row.items()} for row in lines]
        if not rows:
            raise ValueError("no epoch")
        missing = set(HISTORY) - set(rows[0])
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        if not all(math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("a value is not finite")
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}): expected a row of numbers an epoch, under {', '.join(HISTORY)}; "
            "restore it, or remove it to have the report without curves."
        ) from error
    return rows


def _read_evaluation(path: Path) -> dict[str, Any]:
    """A group of rows for `_error_rows`, from the JSON of `python -m vggkeras evaluate --json`."""
    expected = "expected the JSON that `python -m vggkeras evaluate --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No evaluation at {path}: {expected}.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no evaluation ({error}): {expected}.") from error
    if (
        not isinstance(records, list)
        or not records
        or not all(isinstance(record, dict) for record in records)
    ):
        raise InputError(f"{path} is no evaluation, a list of rows: {expected}.")
    try:
        if any(not 0 <= row["correct"] <= row["correct5"] <= row["images"] for row in records):
            raise ValueError("a row has more right answers than images")
        group: dict[str, Any] = {
            "title": f"{path.name}: {records[0]['data']}, {records[0]['split']}",
            "records": records,
        }
        _error_rows(
            **group
        )  # a figure that is missing, or no number, is said before anything is evaluated
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no evaluation ({type(error).__name__}: {error}): {expected}."
        ) from error
    return group


def _speed(path: Path, number: int) -> dict[str, Any]:
    """Bars as SVG and rows, from the JSON of `python -m export.benchmark --json`; `number` keeps apart what is in a page."""
    expected = "expected the JSON that `python -m export.benchmark --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No benchmark at {path}: {expected}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = found["settings"], found["rows"]
        short = evaluate.short_names([row["file"] for row in rows])
        shown: list[dict[str, Any]] = []
        for row in rows:
            single, offline = row["single_stream"], row["offline"]
            figures = {name: float(single[name]) for name in ("p50_ms", "p90_ms", "p99_ms")}
            figures |= {"images_per_second": float(offline["images_per_second"])}
            figures |= {
                name: float(row[name]) for name in ("cold_start_s", "peak_memory_mib", "bytes")
            }
            if not all(math.isfinite(value) and value > 0 for value in figures.values()):
                raise ValueError(f"a figure of {row['file']} is not a number above 0")
            threads = (
                f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
            )
            shown.append(
                {
                    "file": short[row["file"]],
                    "precision": str(row["precision"]),
                    "runtime": f"{row['runtime']} {row['version']}, {row['provider']}{threads}",
                    "queries": int(single["queries"]),
                    **{
                        f"{name}_ratio": _ratio(part, not shown)
                        for name, part in (("latency", single), ("rate", offline))
                    },
                    **figures,
                }
            )
        if not shown:
            raise ValueError("no row")
        how = (
            "the smallest lengths of MLPerf"
            if settings["official"]
            else f"rounds in turn: {settings['rounds']:d}"
        )
        gpu = f", {settings['gpu']}" if settings["gpu"] else ""
        told = (
            f"{path.name}: {settings['processor']}, {settings['cores']} cores{gpu}; LoadGen {settings['loadgen']}, {how}; "
            f"offline in batches of {settings['batch']}"
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no benchmark ({type(error).__name__}: {error}): {expected}."
        ) from error
    return {
        "told": told,
        "rows": shown,
        "latency": _bars(
            shown, "p50_ms", ("p90_ms", "p99_ms"), "ms", f"latency{number}", "Latency by file"
        ),
        "rate": _bars(
            shown, "images_per_second", (), "images/s", f"rate{number}", "Images a second by file"
        ),
    }


def _ratio(part: dict[str, Any], first: bool) -> str:
    """The median of the rounds' ratios, and the smallest and the largest where there is more than one round."""
    low, high = part["ratio_range"]
    spread = f" [{low:.2f}, {high:.2f}]" if len(part["rounds"]) > 1 and not first else ""
    return f"{part['ratio']:.2f}{spread}"


def _bars(
    rows: list[dict[str, Any]], value: str, marks: Sequence[str], unit: str, name: str, told: str
) -> str:
    """A horizontal bar a row, its name above it and its value after it; marks are ticks on a line from the bar's end."""
    figure, axes = _figure(height=0.7 + 0.55 * len(rows))
    places = np.arange(len(rows))
    values = [row[value] for row in rows]
    axes.barh(places, values, 0.36, color=VALIDATION, alpha=0.6)
    for place, row in zip(places, rows, strict=True):
        label = row["file"] + ("" if row["precision"] == "float32" else f", {row['precision']}")
        number = f"{row[value]:.3g}" if row[value] < 1000 else f"{row[value]:.0f}"
        axes.text(0, place - 0.26, f"{label}: {number}", va="bottom", color=INK, parse_math=False)
        ends = [row[mark] for mark in marks]
        if ends:
            axes.plot([row[value], ends[-1]], [place, place], color=INK, linewidth=0.8)
            axes.plot(ends, [place] * len(ends), "|", color=INK, markersize=9)
    axes.set_ylim(len(rows) - 0.6, -0.85)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    return _svg(figure, name, told)


def _loaded(source: _Source) -> tuple[_Source, list[Predictor], keras.Model | None]:
    """The folder's models, ready to run, and the Keras network where one of them is; what an export's file says of itself."""
    if not source.models:
        return source, [], None
    if source.is_run:
        from keras.backend import backend

        from vggkeras import models

        if backend() != "tensorflow":
            raise InputError(
                "A run's report needs Keras' TensorFlow backend, for Grad-CAM: set KERAS_BACKEND=tensorflow and start again."
            )
        network, about = models.load_model(source.models[0])
        return source, [runtimes.keras_predictor(network, about, source.models[0])], network
    # A dense form answers as the file it is of, by the central crop.
    predictors = [p for p in map(runtimes.load, source.models) if not p.dense]
    first = predictors[0] if predictors else runtimes.load(source.models[0])
    about = {
        **first.about.get("provenance", {}),
        **first.about,
        "image_size": max(first.input_shape),
    }
    return dataclasses.replace(source, about=about), predictors, None


def _found_data(source: _Source, data: str | None, skip_unreadable: bool) -> Data | None:
    """None where the model names no data and none are given."""
    spec = data or source.about.get("data")
    if not spec:
        return None
    try:
        return datasets.load_data(spec, skip_unreadable=skip_unreadable)
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data where they are now.)"
        ) from error


def _evaluated(
    source: _Source,
    data: Data,
    predictors: list[Predictor],
    network: keras.Model | None,
    console: Console,
    skip_unreadable: bool,
) -> dict[str, Any]:
    """Everything of the page that the validation images are needed for."""
    split, skipped = data.split("validation"), list(data.skipped)
    with progress_bar(console) as bar:
        rows = evaluate.evaluate(
            predictors,
            split,
            data.class_names,
            ("center", "dense") if source.is_run else "center",
            mirrors=data.mirrors,
            skipped=skipped if skip_unreadable else None,
            track=lambda items, total: bar.track(
                items, total=total, description=f"evaluating on {split.name}"
            ),
        )
    first = rows[0]

    def name(index: int) -> str:
        return split.image_name(index).removeprefix(data.spec.removeprefix("tfds:") + "/")

    about = {"data": data.spec, "split": split.name}
    paper = [evaluate.paper_errors(predictors, row) for row in rows]
    certain = np.argsort(
        -first.confidences, kind="stable"
    )  # places in the row, the surest answer first
    wrong, right = certain[~first.right[certain]], certain[first.right[certain]]
    shown, explained = wrong[:MISTAKES], []
    if network is not None:
        explained = [
            *_of_many_classes(first, right, LOOKED_AT),
            *_of_many_classes(first, wrong, LOOKED_AT),
        ]
    console.print(
        f"{first.correct:,} of {first.images:,} images of {split.name} are right", highlight=False
    )
    pictures = _Pictures(split, first.indices[[*shown, *explained]], predictors[0])
    return {
        "data": data,
        "split": split,
        "skipped": skipped,
        "first": first,
        "records": evaluate.records(rows, paper, name, about),
        "confusions": _confusions(first),
        "recalls": _recalls(first),
        "reliability": _reliability(first),
        "mistakes": [_answer(first, place, name, pictures) for place in shown],
        "mistakes_in_all": len(wrong),
        "looks": _looks(network, first, explained, name, pictures) if network is not None else None,
    }


def _of_many_classes(row: Evaluation, places: np.ndarray, count: int) -> list[int]:
    """The first places of as many classes as can be, then the first that are left."""
    _, firsts = np.unique(row.labels[places], return_index=True)
    firsts = np.sort(firsts)[:count]
    others = np.setdiff1d(np.arange(len(places)), firsts)[: count - len(firsts)]
    return places[np.sort(np.concatenate([firsts, others]))].tolist()


class _Pictures:
    """Some images of a split: what the network was shown, and the same part of the image as people like to see it."""

    def __init__(self, split: Split, indices: np.ndarray, predictor: Predictor) -> None:
        wanted = sorted({int(i) for i in indices})
        some = split.without(set(split.indices()) - set(wanted))
        h, w = predictor.input_shape[:2]
        enlarged = THUMBNAIL / max(h, w)
        size, side = (
            (round(h * enlarged), round(w * enlarged)),
            math.ceil(predictor.scale * enlarged),
        )
        self.crops: dict[int, np.ndarray] = {}  # uint8 [H, W, 3], the model's input
        self.pictures: dict[int, np.ndarray] = {}  # uint8, the longer side THUMBNAIL
        for index, (_, encoded, _) in zip(wanted, some.examples(), strict=True):
            image = datasets.decode(encoded, split.image_name(index))
            crop = augment.center_crop(image, predictor.scale, (h, w))
            self.crops[index] = augment.in_channels(crop, predictor.input_shape[2])
            self.pictures[index] = augment.center_crop(image, side, size)


def _answer(
    row: Evaluation, place: int, name: Callable[[int], str], pictures: _Pictures
) -> dict[str, Any]:
    index = int(row.indices[place])
    return {
        "image": name(index),
        "label": row.class_names[row.labels[place]],
        "prediction": row.class_names[row.predictions[place]],
        "probability": float(row.confidences[place]),
        "picture": _picture(pictures.pictures[index], "JPEG"),
    }


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Where in each image a class' score comes from (Selvaraju et al. 2017): float32 `[N, h, w]`, 0 or more.

    The maps are as large as those of block 5's last convolution, whose rectified outputs they add up, each weighed by
    the gradient of the score before soft-max, averaged over space. What speaks against the class is left out.

    Args:
        model: of `vggkeras.build()`, on the TensorFlow backend.
        images: uint8 `[N, H, W, C]`.
        classes: one an image.
    """
    import keras
    import tensorflow as tf

    maps = model.get_layer("block5_pool").input
    last = model.get_layer("predictions")
    below, above = keras.Model(model.input, maps), keras.Model(maps, last.input)
    a = below(images, training=False)  # [N, h, w, C]
    with tf.GradientTape() as tape:
        tape.watch(a)
        scores = keras.ops.matmul(above(a, training=False), last.kernel) + last.bias  # [N, classes]
        chosen = tf.gather(scores, tf.constant(classes, tf.int32), batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, a), axis=(1, 2))  # [N, C]
    return tf.nn.relu(tf.einsum("nhwc,nc->nhw", a, weights)).numpy()


def _looks(
    model: keras.Model,
    row: Evaluation,
    places: list[int],
    name: Callable[[int], str],
    pictures: _Pictures,
) -> dict[str, Any]:
    """Answers with Grad-CAM of the class answered and, where that is wrong, of the label too."""
    if not places:
        return {"answers": [], "cells": None}
    indices = row.indices[places]
    crops = np.stack([pictures.crops[int(i)] for i in indices])
    for_answer = grad_cam(model, crops, row.predictions[places])
    for_label = grad_cam(model, crops, row.labels[places])
    answers = []
    for place, index, of_answer, of_label in zip(
        places, indices, for_answer, for_label, strict=True
    ):
        picture, right = pictures.pictures[int(index)], bool(row.right[place])
        overlays = [(row.class_names[row.predictions[place]], of_answer)]
        overlays += [] if right else [(row.class_names[row.labels[place]], of_label)]
        shown = [
            {
                "class": label,
                "picture": _picture(_overlay(picture, heat), "JPEG"),
                "empty": not heat.any(),
            }
            for label, heat in overlays
        ]
        answers.append({**_answer(row, place, name, pictures), "right": right, "overlays": shown})
    return {"answers": answers, "cells": for_answer.shape[1:]}


def _overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map `[h, w]` laid over a picture, uint8 `[H, W, 3]`, that is grey beneath it; its largest value is brightest."""
    from matplotlib import colormaps

    h, w = picture.shape[:2]
    share = heat / heat.max() if heat.any() else heat
    share = np.asarray(
        Image.fromarray(share.astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None] * np.ones(3)
    colour = colormaps["inferno"](0.15 + 0.85 * share)[..., :3] * 255
    opacity = 0.75 * share[..., None] ** 0.7
    return np.round(grey * (1 - opacity) + colour * opacity).astype(np.uint8)


def _kernels(model: keras.Model) -> dict[str, Any] | None:
    """The first convolution's kernels as one picture, each stretched over the whole range of grey or colour on its own."""
    kernel = np.asarray(model.get_layer("block1_conv1").kernel)  # [k, k, C, n]
    k, _, channels, count = kernel.shape
    if channels not in (1, 3):
        return None
    low, high = kernel.min(axis=(0, 1, 2)), kernel.max(axis=(0, 1, 2))
    shares = (kernel - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    columns, enlarged = min(count, KERNELS_A_ROW), 8
    cell = k * enlarged + 4  # px, with a gap
    sheet = np.zeros(
        (-(-count // columns) * cell, columns * cell, 4), np.uint8
    )  # RGBA, transparent between the kernels
    for i in range(count):
        y, x = (place * cell for place in divmod(i, columns))
        tile = np.repeat(np.repeat(np.round(255 * shares[..., i]), enlarged, 0), enlarged, 1)
        sheet[y : y + cell - 4, x : x + cell - 4, :3] = tile
        sheet[y : y + cell - 4, x : x + cell - 4, 3] = 255
    return {"picture": _picture(sheet, "PNG"), "count": count, "side": k, "width": columns * cell}


def _picture(pixels: np.ndarray, kind: str) -> dict[str, Any]:
    """An `img`'s source and size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=82, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{encoded}",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


def _confusions(row: Evaluation) -> dict[str, Any]:
    """The confusion matrix, with numbers where classes are few, otherwise as a picture, and its largest mistakes."""
    matrix = row.confusion_matrix()
    images = matrix.sum(axis=1)
    strength = np.sqrt(
        matrix / np.maximum(images, 1)[:, None]
    )  # of colour: few of many are seen too
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [
        (int(i), int(j))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    most = [
        {
            "label": row.class_names[i],
            "prediction": row.class_names[j],
            "count": wrong[i, j],
            "images": images[i],
        }
        for i, j in pairs
    ]
    if len(matrix) <= NUMBERED:
        return {"counts": matrix.tolist(), "strength": strength.tolist(), "most": most}
    enlarged = max(1, 720 // len(matrix))
    sheet = np.zeros((*matrix.shape, 4), np.uint8)
    sheet[..., :3] = np.where(
        np.eye(len(matrix), dtype=bool)[..., None], (58, 110, 190), (216, 84, 48)
    )
    sheet[..., 3] = np.round(255 * strength)
    return {"picture": _picture(sheet.repeat(enlarged, 0).repeat(enlarged, 1), "PNG"), "most": most}


def _recalls(row: Evaluation) -> dict[str, Any]:
    """Each class' share of images recognised, the lowest first."""
    matrix = row.confusion_matrix()
    bars = []
    for label, right, images in zip(
        row.class_names, matrix.diagonal().tolist(), matrix.sum(axis=1).tolist(), strict=True
    ):
        if images:
            low, high = wilson(right, images)
            bars.append(
                {
                    "label": label,
                    "value": right / images,
                    "low": low,
                    "high": high,
                    "images": images,
                }
            )
    bars.sort(key=lambda bar: bar["value"])
    return {"bars": bars if len(row.class_names) <= RECALLS else bars[:WORST], "classes": len(bars)}


def _error_rows(title: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `evaluate.records` for people; each is compared with the first of its group."""
    short = evaluate.short_names(
        [path for record in records for path in record["model"].split(" + ")]
    )
    rows = []
    for number, record in enumerate(records):
        images = int(record["images"])
        against = next((a for a in record["against"] if a["row"] == 0), None)
        paper = [record["paper_top1_error"], record["paper_top5_error"]]
        rows.append(
            {
                "model": " + ".join(short[path] for path in record["model"].split(" + ")),
                "runtime": f"{record['runtime']} {record['version']}"
                if " + " not in record["model"]
                else record["runtime"],
                "provider": str(record["provider"]),
                "protocol": str(record["protocol"]),
                "scales": " ".join(f"{side:d}" for side in record["scales"]),
                "top1": with_interval(images - int(record["correct"]), images),
                "top5": with_interval(images - int(record["correct5"]), images)
                if len(record["recall"]) > 5
                else "-",
                "paper": None
                if None in paper
                else " / ".join(f"{100 * error:.1f}" for error in paper),
                "images": images,
                "ece": float(record["calibration_error"]),
                "gained": len(against["gained"]) if number and against else None,
                "lost": len(against["lost"]) if number and against else None,
                "p": f"{against['mcnemar_p']:.2g}" if number and against else None,
            }
        )
    return {"title": title, "rows": rows}


def _artifacts(source: _Source) -> list[dict[str, Any]]:
    """A row an entry of the certificate, and whether the file is still the one that was proven."""
    model = source.folder / "model.keras"
    ours = files.sha256(model) if source.is_run and source.certificate and model.is_file() else None
    rows = []
    for name, entry in source.certificate.items():
        path = source.exports / (name if entry["passed"] else f"{name}.rejected")
        if not path.exists():
            doubt = "the file is gone"
        elif files.sha256(path) != entry["sha256"]:
            doubt = "the file was changed since"
        elif ours and entry["model_sha256"] != ours:
            doubt = "of another model.keras: export it again"
        else:
            doubt = None
        shares = {}
        for share, interval in (
            ("top1_agreement", "top1_agreement_interval"),
            ("accuracy_artifact", "accuracy_interval"),
        ):
            known, ends = entry.get(share), entry.get(interval)
            shown = None if known is None else _percent(known)
            shares[share] = (
                f"{shown} [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if shown and ends else shown
            )
        # What an older certificate has not, is not known.
        measured = (
            dict.fromkeys(("max_abs_error", "milliseconds", "provider", "left_in_float")) | entry
        )
        told = {"agreement": shares["top1_agreement"], "accuracy": shares["accuracy_artifact"]}
        rows.append({**measured, **told, "name": name, "doubt": doubt})
    return rows


def _title(source: _Source, data: Data | None) -> str:
    arch, spec = (
        str(source.about.get("arch", "")),
        source.about.get("data") or (data.spec if data else ""),
    )
    network = arch.replace("_", " ").upper() if arch.startswith("vgg") else f"VGG {arch}".strip()
    name = spec.removeprefix("tfds:") if spec.startswith("tfds:") else Path(spec).name
    return f"{network} on {name}" if name else network


def _facts(source: _Source, network: keras.Model | None) -> list[tuple[str, str]]:
    """(what, how it is) of a run or an export, briefly."""
    about, recipe = source.about, source.about.get("recipe") or {}
    facts = []
    if "arch" in about:
        parts = [str(about["arch"])]
        parts += ["batch normalisation"] if recipe.get("batch_norm") else []
        parts += [f"{recipe['width']:g} of the filters"] if recipe.get("width", 1) != 1 else []
        parts += [f"{network.count_params():,} parameters"] if network else []
        facts.append(("network", ", ".join(parts)))
    if "image_size" in about:
        scale = f", validated at a smallest side of {about['scale']} px" if "scale" in about else ""
        facts.append(("input", f"{about['image_size']} px crops{scale}"))
    if about.get("data"):
        counts = [f"{count:,} {name}" for name, count in (about.get("images") or {}).items()]
        facts.append(
            ("data", f"{about['data']}" + (f": {', '.join(counts)} images" if counts else ""))
        )
    if source.history:
        spent = f", {_duration(about['seconds'])}" if "seconds" in about else ""
        facts.append(
            ("training", f"{len(source.history)} of {recipe.get('epochs', '?')} epochs{spent}")
        )
    if "epoch" in about:
        facts.append(("epoch", str(about["epoch"])))
    facts += [("host", str(about["host"]))] if about.get("host") else []
    versions = about.get("trained_with") or about.get("versions") or {}
    facts += (
        [("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))]
        if versions
        else []
    )
    file = "run.json" if source.is_run else "certificate.json"
    changed = datetime.datetime.fromtimestamp((source.folder / file).stat().st_mtime)
    facts.append((file, f"last written {changed:%Y-%m-%d %H:%M}"))
    return facts


def _command(recipe: dict[str, Any]) -> list[str]:
    """The command line that gives a recipe, a flag a part: what is not a default of `Recipe` is said."""
    parts = [["python", "-m", "vggkeras", "train"]]
    parts += [
        [f"--{name}", str(recipe.get(name, getattr(Recipe, name)))] for name in ("arch", "data")
    ]
    for field in dataclasses.fields(Recipe):
        value, flag = recipe.get(field.name, field.default), field.name.replace("_", "-")
        if field.name in ("arch", "data") or value == field.default:
            continue
        parts += [
            [f"--{'' if value else 'no-'}{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        ]
    return [shlex.join(part) for part in parts]


def _curves(source: _Source) -> list[dict[str, str]]:
    """Loss, accuracy and learning rate by epoch, as SVG; rate drops are dotted, the best epoch is a dot."""
    history, best = source.history, source.best
    if best is None:
        return []
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, PercentFormatter

    epochs = [row["epoch"] for row in history]
    few = {"marker": "o", "markersize": 3} if len(history) < 3 else {}

    def draw(name: str, title: str, columns: list[tuple[str, str, str]]) -> dict[str, str]:
        figure, axes = _figure()
        for drop in source.drops:
            axes.axvline(drop - 0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
        for column, colour, style in columns:
            if column in best:
                axes.plot(epochs, [row[column] for row in history], style, color=colour, **few)
        if columns[-1][1] == VALIDATION:
            axes.plot(best["epoch"], best[columns[1][0]], "o", color=VALIDATION, markersize=6)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if name == "rate":
            rates = sorted({row["learning_rate"] for row in history})
            axes.step(
                epochs, [row["learning_rate"] for row in history], where="mid", color=INK, **few
            )
            axes.plot(best["epoch"], best["learning_rate"], "o", color=VALIDATION, markersize=6)
            axes.set_yscale("log")
            axes.set_ylim(rates[0] / 2, rates[-1] * 2)
            axes.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlabel("epoch")
        told = f"{title} by epoch, {epochs[0]:.0f} to {epochs[-1]:.0f}"
        return {"title": title, "svg": _svg(figure, name, told)}

    both = [("loss", TRAINING, "-"), ("val_loss", VALIDATION, "-")]
    entropies = [("cross_entropy", TRAINING, ":"), ("val_cross_entropy", VALIDATION, ":")]
    return [
        draw("loss", "Loss", [*both, *entropies]),
        draw(
            "accuracy", "Accuracy", [("accuracy", TRAINING, "-"), ("val_accuracy", VALIDATION, "-")]
        ),
        draw("rate", "Learning rate", [("", INK, "")]),
    ]


def _reliability(row: Evaluation) -> str:
    """How often an answer of some confidence is right, as SVG: the bins are those of the calibration error."""
    from matplotlib.ticker import PercentFormatter

    bins = np.minimum((row.confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    figure, (axes, counts) = _figure(rows=2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
    for number in np.unique(bins):
        here = bins == number
        images, right, mean = (
            int(here.sum()),
            int(row.right[here].sum()),
            float(row.confidences[here].mean()),
        )
        low, high = wilson(right, images)
        axes.plot([mean, mean], [low, high], color=VALIDATION, linewidth=1.2, alpha=0.6)
        axes.plot(mean, right / images, "o", color=VALIDATION, markersize=5)
        edge = number / CALIBRATION_BINS
        counts.bar(
            edge,
            images / row.images,
            1 / CALIBRATION_BINS,
            align="edge",
            color=VALIDATION,
            alpha=0.6,
        )
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel("right")
    counts.set_ylabel("share")
    counts.set_xlabel("confidence")
    counts.set_xlim(0, 1.02)
    for some in (axes.yaxis, counts.yaxis, counts.xaxis):
        some.set_major_formatter(PercentFormatter(1, decimals=0))
    return _svg(
        figure,
        "reliability",
        "Share of right answers by confidence, and the share of images of each confidence",
    )


def _figure(rows: int = 1, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure as wide as a phone, `height` inches high (or two axes, 4.4), without pyplot's state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PLOT):
        figure = Figure((4.4, height if rows == 1 else 4.4))
        heights = [1] if rows == 1 else [4, 1]
        return figure, figure.subplots(rows, 1, sharex=True, height_ratios=heights)


def _svg(figure: Figure, name: str, told: str) -> str:
    """A figure as an `svg` element in the page's own colours and fonts; `name` keeps its ids apart from other figures'."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(PLOT | {"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for ours, theirs in COLOURS.items():
        text = text.replace(ours, theirs)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    body = text[text.index(">") + 1 :]
    return f'<svg class="plot" {box[0]} role="img" aria-label="{told}">{body}'


def rendered(template: str, **values: Any) -> str:
    """A page of one of the templates in this folder, that misses no value; text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "thousands": lambda number: f"{number:,}",
        "svg": jinja2.utils.markupsafe.Markup,
    }
    return environment.get_template(template).render(**values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
