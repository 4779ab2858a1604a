"""A trained network -> SavedModel, ONNX and TFLite files, each proven to give the same answers.

python -m export --format all
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggkeras.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from export.artifact import Golden
    from export.parity import Parity
    from vggkeras.datasets import Data, Split
    from vggkeras.runtimes import Predictor

PARITY_IMAGES = 256  # of the validation split, as many of each class as there are
GATE_IMAGES = 1000  # where a precision may cost accuracy: one image of 256 would be 0.4 points
CALIBRATION_IMAGES = 100  # of the training split; one a class where there are more classes
GOLDEN_IMAGES = 32  # that lie beside the files
MOST_LOST = 0.005  # top-1 accuracy that float16 and int8 may cost, a share of the images
OPSETS = range(14, 19)  # ONNX operator sets that tf2onnx documents
RANDOM = "random"  # the --data that asks for random images
# (height, width) beyond the training size, at which dense files are proven: odd, tall, wide, and large ones.
MARGINS = ((1, 0), (0, 45), (37, 77), (96, 3), (130, 130))
SIZE_IMAGES = 8  # shown at each
# The classifier of one size; it made fully convolutional; and that without its last layer, for the features before.
Form = Literal["classifier", "dense", "features"]


@dataclass(frozen=True)
class Format:
    """One kind of exported file."""

    file: str
    write: Callable[[Any, Path, dict[str, Any], int | None, Any], None]
    precisions: tuple[str, ...]

    def named(self, precision: str, form: Form = "classifier") -> str:
        """The file's name: model.onnx, model.int8.onnx, model.dense.onnx, saved_model.features."""
        from vggkeras.runtimes import dense_path, features_path

        path = Path(self.file)
        path = (
            path
            if precision == "float32"
            else path.with_name(f"{path.stem}.{precision}{path.suffix}")
        )
        return {"classifier": path, "dense": dense_path(path), "features": features_path(path)}[
            form
        ].name


def _saved_model(*arguments: Any) -> None:
    from export import to_saved_model

    to_saved_model.write(*arguments)


def _onnx(*arguments: Any) -> None:
    from export import to_onnx

    to_onnx.write(*arguments)


def _tflite(*arguments: Any) -> None:
    from export import to_tflite

    to_tflite.write(*arguments)


FORMATS = {
    "saved_model": Format("saved_model", _saved_model, ("float32",)),
    "onnx": Format("model.onnx", _onnx, ("float32", "float16", "int8")),
    "tflite": Format("model.tflite", _tflite, ("float32", "float16", "int8")),
}
# Largest error of a probability, absolute and relative to the largest; of a feature, relative alone. float16 keeps 11
# binary digits; of int8, accuracy is what is bounded.
TOLERANCES: dict[str, float | None] = {"float32": 1e-5, "float16": 1e-2, "int8": None}


def export_model(
    model: str | os.PathLike = "runs/latest",
    format: str = "all",
    precision: str = "float32",
    data: str | None = None,
    out: str | os.PathLike | None = None,
    images: int | None = None,
    opset: int | None = None,
    dense: bool = False,
    features: bool = False,
    calibration: int | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Export a trained model, and prove every file on real images in the runtime that will serve it.

    Writes the files, golden.npz (for features golden.features.npz) and certificate.json into `out`. A file that fails
    keeps the suffix .rejected.

    Args:
        model: a run's folder or a .keras file.
        format: saved_model, onnx, tflite or all (that have the precision).
        precision: float32, float16, int8 or all. float16 and int8 may lose 0.5 points of top-1 accuracy. Where int8 loses
            more, the layers that it hurts most, by their signal to noise, are left in float: the fewest that mend it.
        data: whose validation images parity is checked on: digits, tfds:NAME, a folder, or random. By default the data
            the model was trained on; where the model names none, random images, which is weak evidence.
        out: folder; by default `export` beside the .keras file, so inside the run (NAME-export for a NAME.keras beside
            a Python package of that name, such as this one).
        images: how many images to compare; 0 for the whole validation split; by default 256, 1,000 where a precision may
            cost accuracy.
        opset: ONNX operator set, 14 to 18.
        dense: write fully convolutional files instead (model.dense.onnx and so on), which take images of any height and
            width from the training crop up (paper, section 3.2): the class scores averaged over space, then soft-max.
        features: write files that give the very deep features of Appendix B instead (model.features.onnx and so on): fc2's
            activations, the last FC layer dropped, averaged over space; float32 `[N, fc_units]`, of images of any height
            and width from the training crop up. Mirrors, scales and normalisation are the user's. `data` may have other
            classes than the model.
        calibration: how many images of the training split int8's ranges come from, as many of each class; by default 100,
            one a class where there are more classes.

    Returns:
        certificate.json's entries of the files just written, by file name; each has "passed".

    Raises:
        InputError (a ValueError): no model; unknown format or precision; classes that differ from the data's; too few
            images, to calibrate on too; weights or activations that are no numbers, or too large for float16, by layer;
            features that are all zero.
        OSError: a folder that cannot be written.
    """
    import numpy as np
    from rich.console import Console

    from vggkeras.terminal import load_tensorflow

    console = console or Console()
    if dense and features:
        raise InputError(
            "--dense and --features write other files each: give one of them at a time."
        )
    form: Form = "dense" if dense else "features" if features else "classifier"
    chosen = _chosen(format, precision, form)
    precisions = {p for _, p in chosen}
    source = _source(Path(model))
    folder = Path(out) if out else _default_folder(source)
    if opset not in (None, *OPSETS):
        raise InputError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}; received {opset}.")
    if calibration is not None and "int8" not in precisions:
        raise InputError("--calibration is of int8: give --precision int8 or all too.")
    images = (
        images
        if images is not None
        else PARITY_IMAGES
        if precisions == {"float32"}
        else GATE_IMAGES
    )
    if images < 0:
        raise InputError(
            f"images must be 1 or more, or 0 for all of the validation split; received {images}."
        )

    from vggkeras import files

    files.check_writable(folder)
    load_tensorflow(console)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "Exporting needs Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow and start again."
        )
    from export import artifact, parity, quantize, to_saved_model
    from vggkeras import models, runtimes

    with console.status(f"loading {source}"):
        network, about = models.load_model(source)
        graph = to_saved_model.inference_model(network, form)
        quantize.check_finite(graph)
        about = {
            "mean_rgb": list(models.mean_rgb(network)),
            "arch": network.name,
            **about,
        }
    reference = runtimes.keras_predictor(network, about, source)
    reference = reference.features_form() if features else reference
    reference, found, split, pictures, labels, evidence = _parity_images(
        reference, data, images, console
    )
    shown = (
        _calibration_images(reference, found, calibration, console)
        if "int8" in precisions
        else None
    )
    with console.status(f"asking Keras about {len(pictures)} images"):
        answers = parity.in_batches(reference, pictures, (32,))
        if not np.isfinite(answers).all():
            quantize.check_finite(graph, pictures[~np.isfinite(answers).all(axis=1)][:1])
        if features and not answers.any():  # which any file would give as well
            raise InputError(
                f"{source}: fc2 gives zeros alone for all {len(pictures)} images: expected a trained network; train it again "
                "with a lower rate, or export an earlier one."
            )
        any_size = form != "classifier"
        sizes = _sizes(reference if features else reference.dense_form(), split) if any_size else []
        if "float16" in precisions:
            quantize.check_float16(graph, pictures[:CALIBRATION_IMAGES])
        golden = _golden(reference, graph, split, pictures, labels, answers)
    plan, noise = None, {}
    if shown is not None:
        plan = quantize.calibrate(
            graph, shown[0], len(np.unique(shown[1])), lambda parts: _tracked(parts, console)
        )
        noise = quantize.signal_to_noise(
            graph, plan, shown[0][:: -(-len(shown[0]) // quantize.BATCH)]
        )
        console.print(
            f"int8: ranges from {plan.images} training images of {plan.classes} classes",
            soft_wrap=True,
        )
    sha256 = files.sha256(source)
    # From here on the answers stand for the reference, whose weights go with the graph once that is written.
    reference = replace(reference, run=lambda _: answers, make_dense=None, make_features=None)
    del network

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    certified = files.read_certificate(folder)  # a damaged one is said before anything is written
    ours = {name for name, entry in certified.items() if entry["model_sha256"] == sha256}
    if form == "classifier" and any(
        FORMATS[name].named("float32", "dense") in ours for name in FORMATS
    ):
        sizes = artifact.golden_sizes(folder)  # of this model's dense files, which stay
    entries: dict[str, dict[str, Any]] = {}
    rows = []

    def write(name: str, kind: str, floats: Sequence[str] = ()) -> _Peak:
        """Write a file beside its place, with some layers left in float."""
        description = artifact.describe(about, reference, sha256, any_size, kind)
        if plan is not None and found is not None and kind == "int8":
            description |= {
                "calibration": {
                    "images": plan.images,
                    "classes": plan.classes,
                    "data": f"{found.spec} train",
                },
                "left_in_float": list(floats),
                "signal_to_noise_db": {layer: round(ratio, 2) for layer, ratio in noise.items()},
            }
        files.remove(besides[name, kind])
        with console.status(f"writing {folder / FORMATS[name].named(kind, form)}"), _Peak() as peak:
            FORMATS[name].write(
                graph, besides[name, kind], description, opset, plan and plan.leaving(floats)
            )
        return peak

    def prove(name: str, kind: str) -> tuple[Predictor, Parity]:
        """Seal a written file, and compare it with Keras."""
        with console.status(f"proving {folder / FORMATS[name].named(kind, form)}"):
            candidate = _sealed(besides[name, kind], golden, reference)
            most_lost = MOST_LOST if kind != "float32" and labels is not None else None
            known = (reference, answers)
            parts = [
                parity.compare(
                    known, candidate, pictures, labels, TOLERANCES[kind], most_lost=most_lost
                )
            ]
            if any_size:
                others = [(shown, (reference, p)) for shown, p in sizes]
                parts += [
                    parity.compare(r, candidate, i, None, TOLERANCES[kind]) for i, r in others
                ]
        return candidate, parity.merged(parts)

    besides = {
        (name, kind): files.partial(folder / FORMATS[name].named(kind, form))
        for name, kind in chosen
    }
    try:
        peaks = {key: write(*key) for key in chosen}
        if "int8" not in precisions:  # which may have to be written again
            del graph
        for name, kind in chosen:
            file, beside = FORMATS[name].named(kind, form), besides[name, kind]
            candidate, result = prove(name, kind)
            if kind == "int8" and result.lost_too_much:
                del candidate

                def attempt(floats: Sequence[str], name: str = name) -> tuple[Predictor, Parity]:
                    peaks[name, "int8"] = write(name, "int8", floats)
                    return prove(name, "int8")

                candidate, result = _least_in_float(attempt, noise, file, console)
            milliseconds = _milliseconds(candidate, pictures) if result.passed else None
            entries[file] = artifact.entry(
                beside, candidate, result, evidence, sha256, milliseconds, any_size
            )
            del candidate
            final = folder / (file if result.passed else f"{file}.rejected")
            files.move(beside, final)
            if result.passed:
                files.remove(folder / f"{file}.rejected")
            rows.append((final, result, peaks[name, kind], milliseconds))
        count = min(GOLDEN_IMAGES, len(pictures))
        golden_labels = None if labels is None else labels[:count]
        shown_sizes = [(shown[:2], p[:2]) for shown, p in sizes]
        artifact.save_golden(
            folder, pictures[:count], golden_labels, answers[:count], shown_sizes, features=features
        )
        stale = artifact.update_certificate(folder, entries, sha256)
    finally:
        for beside in besides.values():
            files.remove(beside)
        if new and not any(folder.iterdir()):
            folder.rmdir()
    _tell(console, rows, evidence)
    if stale:
        console.print(
            f"not of this model: {', '.join(stale)} in {folder}; export them again or remove them",
            style="yellow",
            soft_wrap=True,
        )
    return entries


def _least_in_float(
    attempt: Callable[[Sequence[str]], tuple[Predictor, Parity]],
    noise: dict[str, float],
    file: str,
    console: Console,
) -> tuple[Predictor, Parity]:
    """Leave in float the fewest layers with which int8 passes, those it hurts most first; half of them at most."""
    ranked = sorted(noise, key=lambda layer: noise[layer])
    for count in range(1, len(ranked) // 2 + 1):
        floats = ranked[:count]
        tried = attempt(floats)
        if tried[1].passed:
            break
    else:
        console.print(
            f"{file}: {count} layers in float do not mend it", style="yellow", soft_wrap=True
        )
        return attempt(())
    for layer in ranked[: count - 1]:  # the last one was needed; was this one?
        without = [other for other in floats if other != layer]
        if attempt(without)[1].passed:
            floats = without
    told = ", ".join(f"{layer} ({noise[layer]:.0f} dB)" for layer in floats)
    console.print(
        f"{file}: left in float, as int8 hurts them most: {told}", style="yellow", soft_wrap=True
    )
    return attempt(floats)  # what lies on the disk is what was written last


def _default_folder(source: Path) -> Path:
    beside = source.parent / "export"
    return source.parent / f"{source.stem}-export" if (beside / "__init__.py").exists() else beside


def _loaded(path: Path, reference: Predictor) -> Predictor:
    """The file in its runtime; one that does not load says so when it is run, which is a failure of its proof."""
    from vggkeras import runtimes

    try:
        return runtimes.load(path)
    except InputError as error:
        return _failing(replace(reference, path=path), error)


def _failing(predictor: Predictor, reason: Exception) -> Predictor:
    """A predictor that raises whenever it is run."""

    def run(images: np.ndarray) -> np.ndarray:
        raise reason

    return replace(predictor, run=run)


def _chosen(format: str, precision: str, form: Form) -> list[tuple[str, str]]:
    """(format, precision) of what to write."""
    if format != "all" and format not in FORMATS:
        raise InputError(f"Unknown format {format!r}: expected one of {', '.join(FORMATS)}, all.")
    if precision != "all" and precision not in TOLERANCES:
        raise InputError(
            f"Unknown precision {precision!r}: expected one of {', '.join(TOLERANCES)}, all."
        )
    if form != "classifier" and precision != "float32":
        what = {"dense": "Fully convolutional files", "features": "Files of features"}[form]
        raise InputError(f"{what} are float32: leave out --{form} or --precision {precision}.")
    formats = list(FORMATS) if format == "all" else [format]
    precisions = list(TOLERANCES) if precision == "all" else [precision]
    chosen = [
        (name, kind) for name in formats for kind in precisions if kind in FORMATS[name].precisions
    ]
    if not chosen:
        raise InputError(
            f"{format} has no precision {precision!r}: expected one of {', '.join(FORMATS[format].precisions)}, or all; "
            "onnx and tflite have it."
        )
    return chosen


def _source(model: Path) -> Path:
    source = model / "model.keras" if model.is_dir() else model
    if not source.is_file():
        raise InputError(
            f"No trained model at {source}: expected a run's folder or a .keras file; train one with "
            "`python -m vggkeras train`, or give --model."
        )
    if source.suffix != ".keras":
        raise InputError(f"Expected a run's folder or a .keras file to export; received {source}.")
    return source.resolve()


def _parity_images(
    reference: Predictor, data: str | None, count: int, console: Console
) -> tuple[Predictor, Data | None, Split | None, np.ndarray, np.ndarray | None, str]:
    """The reference (a classifier with the data's class names, if it had none), the data, a split (None: random images)
    and its central crops and labels, and what evidence they are.
    """
    import numpy as np

    from vggkeras import datasets, evaluate

    spec = data or reference.about.get("data") or RANDOM
    if spec == RANDOM:
        console.print(
            "parity on random images: weak evidence; give --data to prove it on real ones",
            style="yellow",
        )
        pictures = np.random.default_rng(0).integers(
            0, 256, (min(count or 64, 64), *reference.input_shape), np.uint8
        )
        return reference, None, None, pictures, None, "random images: weak evidence"
    skipped = (
        set() if data else set(reference.about.get("skipped", ()))
    )  # what training went on without
    try:
        found = datasets.load_data(spec, skip_unreadable=bool(skipped))
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data, or --data {RANDOM}.)"
        ) from error
    if not reference.features:  # which are of any images
        evaluate.check_classes(reference, found.class_names)
        if not reference.about.get("class_names"):
            reference = replace(reference, class_names=found.class_names)
    split = found.split("validation")
    split = split.without(i for i in split.indices() if skipped and split.image_name(i) in skipped)
    # Evenly spaced: folders list class after class, so every class has its share.
    places = np.linspace(0, split.count - 1, min(count or split.count, split.count)).astype(int)
    kept = np.array(split.indices())[np.unique(places)]
    split = split.without(set(split.indices()) - set(kept.tolist()))
    with console.status(f"reading {split.count} images of {split.name}"):
        pictures, labels = evaluate.central_crops(reference, split)
    return reference, found, split, pictures, labels, f"{split.count} images of {split.name}"


def _calibration_images(
    reference: Predictor, data: Data | None, count: int | None, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Central crops and labels of training images, as many of each class: as the model will see images."""
    import numpy as np

    from vggkeras import evaluate

    if data is None:
        raise InputError(
            "int8 takes its ranges from training images, and there are none: give --data digits, tfds:NAME or a folder."
        )
    classes = len(data.class_names)
    count = max(CALIBRATION_IMAGES, classes) if count is None else count
    if count < classes:
        raise InputError(
            f"calibration: expected at least one image for each of {classes} classes; received {count}: give "
            f"--calibration {classes} or more."
        )
    split = data.split("train")
    skipped = set(data.skipped) | set(reference.about.get("skipped", ()))
    split = split.without(i for i in split.indices() if skipped and split.image_name(i) in skipped)
    quota = [count // classes + (label < count % classes) for label in range(classes)]
    if split.labels is not None:  # evenly spaced in each class
        places = [np.flatnonzero(split.labels == label) for label in range(classes)]
        kept = {
            int(own[i])
            for own, most in zip(places, quota, strict=True)
            for i in np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)
        }
    else:  # records tell their labels only when they are read: the first of each class
        kept = set()
        for index, _, label in split.examples():
            if quota[label]:
                quota[label] -= 1
                kept.add(index)
                if not any(quota):
                    break
    split = split.without(i for i in split.indices() if i not in kept)
    if split.count < classes:
        raise InputError(
            f"calibration: {split.name} has only {split.count} images for {classes} classes: expected one a class at "
            "least; add training images, or give other --data."
        )
    if split.count < count:
        console.print(
            f"calibration: {split.count} images, all that {split.name} has for {count}",
            style="yellow",
        )
    with console.status(f"reading {split.count} images of {split.name}, to calibrate on"):
        return evaluate.central_crops(reference, split)


def _tracked(parts: Sequence[int], console: Console) -> Iterator[int]:
    """The parts of a calibration, with a progress bar."""
    from vggkeras.terminal import progress_bar

    with progress_bar(console) as bar:
        yield from bar.track(parts, description="measuring ranges")


def _golden(
    reference: Predictor,
    graph: Any,
    split: Split | None,
    pictures: np.ndarray,
    labels: np.ndarray | None,
    answers: np.ndarray,
) -> Golden:
    """What travels inside the files, but for their own answers; the first image with the file it was cut from."""
    import numpy as np

    from export import artifact, quantize
    from vggkeras import augment, datasets

    pictures, answers = pictures[:GOLDEN_IMAGES], answers[:GOLDEN_IMAGES]
    known = None if labels is None else labels[:GOLDEN_IMAGES]
    # The least certain first: an answer that is sure hides much of what may be wrong with a file. Features hide nothing.
    unsure = (
        np.arange(len(answers))
        if reference.features
        else answers.max(axis=1).argsort(kind="stable")
    )
    original, layers = None, {}
    if split is not None:
        # The one of most colour comes first: in a grey one the order of the channels cannot be told.
        colour = np.abs(pictures - pictures.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
        order = [int(colour.argmax()), *(int(i) for i in unsure if i != colour.argmax())]
        pictures, answers, known = (
            pictures[order],
            answers[order],
            known if known is None else known[order],
        )
        encoded = next(itertools.islice(split.examples(), order[0], None))[1]
        original = artifact.small_original(encoded, reference.scale)
        decoded = datasets.decode(original)
        layers["decode"] = artifact.decoded_samples(decoded)
        crop = augment.center_crop(decoded, reference.scale, reference.input_shape[:2])
        pictures[0] = augment.in_channels(crop, reference.input_shape[2])  # of what travels
        answers[0] = reference(pictures[:1])[0]
    else:
        pictures, answers = pictures[unsure], answers[unsure]
    for layer, values in quantize.activations(graph, pictures[:1]).items():
        layers[layer] = (
            values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64).astype(np.float32)
        )
    return artifact.Golden(pictures, known, answers, answers[:0], layers, original)


def _sealed(path: Path, golden: Golden, reference: Predictor) -> Predictor:
    """Put as many golden images as suit it into a file, with the answers it gives itself, and load it."""
    from export import artifact

    count = artifact.golden_count(path, golden.images)
    candidate = _loaded(path, reference)
    try:
        answers = candidate(golden.images[:count])
    except (
        Exception
    ) as error:  # whatever a runtime raises: said when the file is proven, which it then never is
        return _failing(candidate, error)
    labels = None if golden.labels is None else golden.labels[:count]
    inside = replace(
        golden,
        images=golden.images[:count],
        probabilities=golden.probabilities[:count],
        labels=labels,
    )
    artifact.seal(path, replace(inside, answers=answers))
    return _loaded(path, reference)


def _sizes(dense: Predictor, split: Split | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, a dense predictor's answers) at several sizes, of a split's images or random ones."""
    import numpy as np

    from vggkeras import augment, datasets

    h, w, c = dense.input_shape
    first = itertools.islice(split.examples(), SIZE_IMAGES) if split else ()
    originals = [datasets.decode(encoded) for _, encoded, _ in first]
    found = []
    for down, right in MARGINS:
        size = (h + down, w + right)
        if originals:
            crops = [augment.center_crop(image, max(size), size) for image in originals]
            images = np.stack([augment.in_channels(crop, c) for crop in crops])
        else:
            images = np.random.default_rng(0).integers(0, 256, (SIZE_IMAGES, *size, c), np.uint8)
        found.append((images, dense(images)))
    return found


def _milliseconds(predictor: Predictor, pictures: np.ndarray) -> float:
    """Median time of a call with one image, ms."""
    times = []
    for picture in [pictures[0], *pictures[:20]]:
        start = time.perf_counter()
        predictor(picture[None])
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[len(times[1:]) // 2] * 1e3


class _Peak:
    """Seconds and peak resident memory of this process and its children, together, while a block runs."""

    seconds = gigabytes = 0.0

    def __enter__(self) -> _Peak:
        import psutil

        self.before = _lifetime_peak()
        self.start, self.stop = time.perf_counter(), threading.Event()
        me = psutil.Process()

        def look() -> None:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
                    total += process.memory_info().rss
            self.gigabytes = max(self.gigabytes, total / 1e9)

        def watch() -> None:
            while not self.stop.wait(0.02):
                look()

        look()
        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.stop.set()
        self.thread.join()
        # A spike between two looks is in the process' own count, if it was its highest so far.
        if _lifetime_peak() > self.before:
            self.gigabytes = max(self.gigabytes, _lifetime_peak())


def _lifetime_peak() -> float:
    """Peak resident memory of this process since it started, GB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _tell(console: Console, rows: list, evidence: str) -> None:
    from rich.table import Table

    from export import artifact
    from vggkeras.terminal import print_table

    sizes = [f"{h} x {w}" for h, w in rows[0][1].sizes]
    table = Table(
        title=f"Parity with Keras on {evidence}{', at ' + ', '.join(sizes) + ' px' if len(sizes) > 1 else ''}"
    )
    of_features = any(result.smallest_cosine is not None for _, result, *_ in rows)
    for column in (
        "artifact",
        "bytes",
        "max error",
        "relative",
        *(["smallest cosine"] if of_features else []),
        "agreement",
        "accuracy [95%]",
        "ms an image",
        "written in",
        "peak memory",
    ):
        table.add_column(column, justify="left" if column == "artifact" else "right")
    for path, result, peak, milliseconds in rows:
        accuracy = "-"
        if result.accuracy_artifact is not None:
            low, high = result.accuracy_interval
            accuracy = f"{result.accuracy_artifact:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
        table.add_row(
            path.name,
            f"{_bytes(path):,}",
            f"{result.max_abs_error:.1e}",
            f"{result.max_rel_error:.1e}",
            *([f"{result.smallest_cosine:.9f}"] if result.smallest_cosine is not None else []),
            "-" if result.top1_agreement is None else f"{result.top1_agreement:.2%}",
            accuracy,
            "-" if milliseconds is None else f"{milliseconds:.2f}",
            f"{peak.seconds:.1f} s",
            f"{peak.gigabytes:.2f} GB",
            style=None if result.passed else "red",
        )
    print_table(table, console)
    for path, result, *_ in rows:
        for failure in result.failures:
            console.print(f"{path.name}: {failure}", style="red", soft_wrap=True)
    folder = rows[0][0].parent
    passed = all(result.passed for _, result, *_ in rows)
    golden = artifact.golden_path(folder, features=of_features).name
    console.print(
        f"{'proven' if passed else 'NOT proven'}: {folder} (certificate.json, {golden})",
        soft_wrap=True,
    )
    if passed:
        console.print(
            f"each proves itself wherever it goes: python -m export.verify {rows[-1][0]}",
            soft_wrap=True,
        )


def _bytes(path: Path) -> int:
    from vggkeras import files

    return files.size(path)
