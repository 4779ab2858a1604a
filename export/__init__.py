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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from vggkeras.datasets import Split
    from vggkeras.runtimes import Predictor

PARITY_IMAGES = 256  # of the validation split, as many of each class as there are
GOLDEN_IMAGES = 32  # of these, that travel with the files
OPSETS = range(14, 19)  # ONNX operator sets that tf2onnx documents
RANDOM = "random"  # the --data that asks for random images
# (height, width) beyond the training size, at which dense files are proven: odd, tall, wide, and large ones.
MARGINS = ((1, 0), (0, 45), (37, 77), (96, 3), (130, 130))
SIZE_IMAGES = 8  # shown at each


@dataclass(frozen=True)
class Format:
    """One kind of exported file."""

    file: str
    write: Callable[[Any, Path, dict[str, Any], int | None], None]
    precisions: tuple[str, ...]
    tolerance: float  # largest error of a probability, absolute and relative to the largest probability


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
    "saved_model": Format("saved_model", _saved_model, ("float32",), 1e-5),
    "onnx": Format("model.onnx", _onnx, ("float32",), 1e-5),
    "tflite": Format("model.tflite", _tflite, ("float32",), 1e-5),
}


def export_model(
    model: str | os.PathLike = "runs/latest",
    format: str = "all",
    precision: str = "float32",
    data: str | None = None,
    out: str | os.PathLike | None = None,
    images: int = PARITY_IMAGES,
    opset: int | None = None,
    dense: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Export a trained model, and prove every file on real images in the runtime that will serve it.

    Writes the files, golden.npz and certificate.json into `out`. A file that fails keeps the suffix .rejected.

    Args:
        model: a run's folder or a .keras file.
        format: saved_model, onnx, tflite or all.
        precision: float32.
        data: whose validation images parity is checked on: digits, tfds:NAME, a folder, or random. By default the data
            the model was trained on; where the model names none, random images, which is weak evidence.
        out: folder; by default `export` beside the .keras file, so inside the run (NAME-export for a NAME.keras beside
            a Python package of that name, such as this one).
        images: how many images to compare; 0 for the whole validation split.
        opset: ONNX operator set, 14 to 18.
        dense: write fully convolutional files instead (model.dense.onnx and so on), which take images of any height and
            width from the training crop up (paper, section 3.2): the class scores averaged over space, then soft-max.

    Returns:
        certificate.json's entries of the files just written, by file name; each has "passed".

    Raises:
        InputError (a ValueError): no model, unknown format, classes that differ from the data's, too few images.
        OSError: a folder that cannot be written.
    """
    from rich.console import Console

    from vggkeras.terminal import load_tensorflow

    console = console or Console()
    chosen = _chosen(format, precision)
    source = _source(Path(model))
    folder = Path(out) if out else _default_folder(source)
    if opset not in (None, *OPSETS):
        raise InputError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}; received {opset}.")
    if images < 0:
        raise InputError(f"images must be 1 or more, or 0 for all of the validation split; received {images}.")

    from vggkeras import files

    files.check_writable(folder)
    load_tensorflow(console)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError("Exporting needs Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow and start again.")
    from export import artifact, parity, to_saved_model
    from vggkeras import models, runtimes

    with console.status(f"loading {source}"):
        network, about = models.load_model(source)
        graph = to_saved_model.inference_model(network, dense=dense)
        about = {"mean_rgb": list(network.get_layer("mean_rgb").mean), "arch": network.name, **about}
    reference = runtimes.keras_predictor(network, about, source)
    reference, split, pictures, labels, evidence = _parity_images(reference, data, images, console)
    with console.status(f"asking Keras about {len(pictures)} images"):
        answers = parity.in_batches(reference, pictures, (32,))
        sizes = _sizes(reference, split) if dense else []
    sha256 = files.sha256(source)
    description = artifact.describe(about, reference, sha256, dense)
    # From here on the answers stand for the reference, whose weights go with the graph once that is written.
    reference = replace(reference, run=lambda _: answers)
    del network

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    certified = files.read_certificate(folder)  # a damaged one is said before anything is written
    if not dense and any(entry["model_sha256"] == sha256 for entry in certified.values()):
        sizes = artifact.golden_sizes(folder)  # of this model's dense files, which stay
    written = {name: runtimes.dense_path(Path(f.file)).name if dense else f.file for name, f in FORMATS.items()}
    beside = {name: files.partial(folder / written[name]) for name in chosen}
    entries: dict[str, dict[str, Any]] = {}
    rows = []
    try:
        peaks = {}
        for name, path in beside.items():
            with console.status(f"writing {folder / written[name]}"), _Peak() as peaks[name]:
                FORMATS[name].write(graph, path, description, opset)
        del graph
        for name, path in beside.items():
            file = written[name]
            with console.status(f"proving {folder / file}"):
                candidate = _loaded(path, reference)
                parts = [parity.compare((reference, answers), candidate, pictures, labels, FORMATS[name].tolerance)]
                if dense:
                    known = [(shown, (reference, p)) for shown, p in sizes]
                    parts += [parity.compare(r, candidate, i, None, FORMATS[name].tolerance) for i, r in known]
                result = parity.merged(parts)
                milliseconds = _milliseconds(candidate, pictures) if result.passed else None
            entries[file] = artifact.entry(path, candidate, result, evidence, sha256, milliseconds, dense)
            del candidate
            final = folder / (file if result.passed else f"{file}.rejected")
            files.move(path, final)
            if result.passed:
                files.remove(folder / f"{file}.rejected")
            rows.append((final, result, peaks[name], milliseconds))
        count = min(GOLDEN_IMAGES, len(pictures))
        golden_labels = None if labels is None else labels[:count]
        golden = [(shown[:2], p[:2]) for shown, p in sizes]
        artifact.save_golden(folder, pictures[:count], golden_labels, answers[:count], golden)
        stale = artifact.update_certificate(folder, entries, sha256)
    finally:
        for path in beside.values():
            files.remove(path)
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


def _default_folder(source: Path) -> Path:
    beside = source.parent / "export"
    return source.parent / f"{source.stem}-export" if (beside / "__init__.py").exists() else beside


def _loaded(path: Path, reference: Predictor) -> Predictor:
    """The file in its runtime; one that does not load says so when it is run, which is a failure of its proof."""
    from vggkeras import runtimes

    try:
        return runtimes.load(path)
    except InputError as error:
        reason = error

    def run(images: np.ndarray) -> np.ndarray:
        raise reason

    return replace(reference, path=path, run=run)


def _chosen(format: str, precision: str) -> list[str]:
    if format != "all" and format not in FORMATS:
        raise InputError(f"Unknown format {format!r}: expected one of {', '.join(FORMATS)}, all.")
    chosen = list(FORMATS) if format == "all" else [format]
    for name in chosen:
        if precision not in FORMATS[name].precisions:
            raise InputError(
                f"{name} has no precision {precision!r}: expected one of {', '.join(FORMATS[name].precisions)}."
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
) -> tuple[Predictor, Split | None, np.ndarray, np.ndarray | None, str]:
    """The reference (with the data's class names, if it had none), a split (None: random images) and its central crops
    and labels, and what evidence they are.
    """
    import numpy as np

    from vggkeras import datasets, evaluate

    spec = data or reference.about.get("data") or RANDOM
    if spec == RANDOM:
        console.print("parity on random images: weak evidence; give --data to prove it on real ones", style="yellow")
        pictures = np.random.default_rng(0).integers(0, 256, (min(count or 64, 64), *reference.input_shape), np.uint8)
        return reference, None, pictures, None, "random images: weak evidence"
    skipped = set() if data else set(reference.about.get("skipped", ()))  # what training went on without
    try:
        found = datasets.load_data(spec, skip_unreadable=bool(skipped))
    except InputError as error:
        if data:
            raise
        raise InputError(f"{error} (The model was trained on it: give --data, or --data {RANDOM}.)") from error
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
    return reference, split, pictures, labels, f"{split.count} images of {split.name}"


def _sizes(reference: Predictor, split: Split | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, the dense network's answers) at several sizes, of a split's images or random ones."""
    import numpy as np

    from vggkeras import augment, datasets, evaluate

    h, w, c = reference.input_shape
    first = itertools.islice(split.examples(), SIZE_IMAGES) if split else ()
    originals = [datasets.decode(encoded) for _, encoded, _ in first]
    dense = reference.dense_form()
    found = []
    for down, right in MARGINS:
        size = (h + down, w + right)
        if originals:
            crops = [augment.center_crop(image, max(size), size) for image in originals]
            images = np.stack([evaluate.in_channels(reference, crop) for crop in crops])
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

        def watch() -> None:
            while not self.stop.wait(0.02):
                total = 0
                for process in [me, *me.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
                        total += process.memory_info().rss
                self.gigabytes = max(self.gigabytes, total / 1e9)

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

    from vggkeras.terminal import print_table

    sizes = [f"{h} x {w}" for h, w in rows[0][1].sizes]
    table = Table(
        title=f"Parity with Keras on {evidence}{', at ' + ', '.join(sizes) + ' px' if len(sizes) > 1 else ''}"
    )
    for column in (
        "artifact",
        "bytes",
        "max error",
        "relative",
        "agreement",
        "accuracy",
        "ms an image",
        "written in",
        "peak memory",
    ):
        table.add_column(column, justify="left" if column == "artifact" else "right")
    for path, result, peak, milliseconds in rows:
        accuracy = "-" if result.accuracy_artifact is None else f"{result.accuracy_artifact:.2%}"
        table.add_row(
            path.name,
            f"{_bytes(path):,}",
            f"{result.max_abs_error:.1e}",
            f"{result.max_rel_error:.1e}",
            f"{result.top1_agreement:.2%}",
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
    console.print(f"{'proven' if passed else 'NOT proven'}: {folder} (certificate.json, golden.npz)", soft_wrap=True)


def _bytes(path: Path) -> int:
    from vggkeras import files

    return files.size(path)
