"""Two models of any make, on the same images: do they give the same answers, and if not, why?

    python -m export.compare model.onnx --reference model.keras --data photos/

Names, shapes and values are compared, then the classes. Where the answers differ, every usual
difference of preprocessing is tried on one model and then on the other; a difference is named when
undoing it makes the two agree. Where none does, the first layer that parts is named.

Exit code 0: the same. 1: they differ. 2: bad input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from export import TOLERANCES, foreign
from export.changes import Array
from export.diagnosis import SIDES, Diagnosis, Pair, diagnosed, softmax
from export.parity import LEAST_AGREEMENT, MOST_LOST
from export.parting import first_layer
from export.request import GATE_IMAGES, PARITY_IMAGES
from vggkeras import configs
from vggkeras.data import augment, decoding, sources
from vggkeras.errors import InputError, parsed, run_command
from vggkeras.evaluation import statistics, tables

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RANDOM = "random"  # the --data that asks for random images


@dataclass(frozen=True)
class Comparison:
    """How a candidate's answers differ from a reference's, on the same images."""

    reference: foreign.ImageModel
    candidate: foreign.ImageModel
    evidence: str  # which images were shown
    images: int
    precision: str  # the lower of the two files'
    kinds: tuple[str, str] = ("", "")  # probabilities, scores or features: reference, candidate
    max_abs_error: float = np.inf  # infinite where the answers cannot be compared
    max_rel_error: float = np.inf  # over the reference's largest answer
    agreeing: int | None = None  # images with the same class at the top; None without classes
    correct: tuple[int, int] | None = None  # reference, candidate; None where no labels fit
    mcnemar_p: float | None = None  # exact, two-sided
    diagnosis: Diagnosis | None = None
    first_layer: str = ""  # the first layer that parts, where no preprocessing explains it
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float | None:
        """Largest error that is let pass; None for int8, of which the classes are what counts."""
        least, models = TOLERANCES[self.precision], (self.reference, self.candidate)
        return least and max(least, *(model.card.tolerance or 0.0 for model in models))

    @property
    def passed(self) -> bool:
        """True when nothing differs but names."""
        return not self.failures

    def verdict(self) -> str:
        """Return one line: the same, or how they differ, and why."""
        if self.passed:
            bound = f"tolerance {self.tolerance:g}" if self.tolerance else "int8: no bound"
            said = f"the same: largest error {self.max_abs_error:.2g} on {self.evidence} ({bound})"
            return "; ".join([said, *self.notes])
        if self.diagnosis:
            return f"they differ: {self.diagnosis.message}"
        if self.first_layer:
            return (
                f"they differ: {self.failures[-1]}; the first layer that parts: {self.first_layer}"
            )
        unexplained = ""
        if any(failure.startswith("values: ") for failure in self.failures):
            unexplained = "; no usual difference of preprocessing explains it"
        return f"they differ: {'; '.join(self.failures)}{unexplained}"

    def table(self) -> Table:
        """Return a table: what each of the two files has, row by row."""
        from rich.table import Table

        table = Table(
            title=f"{self.candidate.path} against {self.reference.path}, on {self.evidence}"
        )
        for column in ("", "reference", "candidate"):
            table.add_column(column)
        both = (self.reference, self.candidate)
        table.add_row("file", *(model.path.name for model in both))
        table.add_row("runtime", *(model.runtime for model in both))
        table.add_row("input", *(f"{model.input_name}: {model.input_text}" for model in both))
        table.add_row(
            "output", *(f"{m.output_name}: {k}" for m, k in zip(both, self.kinds, strict=True))
        )
        table.add_row("precision", *(model.card.precision for model in both))
        if self.correct is not None:
            shares = [tables.with_interval(n, self.images) for n in self.correct]
            table.add_row("accuracy [95%]", *shares)
            table.add_row("exact McNemar p", "", f"{self.mcnemar_p:.3g}")
        if np.isfinite(self.max_abs_error):
            table.add_row("largest error", "", f"{self.max_abs_error:.2g}")
            table.add_row("relative", "", f"{self.max_rel_error:.2g}")
        if self.agreeing is not None:
            low, high = statistics.wilson(self.agreeing, self.images)
            share = self.agreeing / self.images
            table.add_row(
                "top-1 agreement [95%]", "", f"{share:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
            )
        return table


def compare(
    candidate: str | os.PathLike,
    reference: str | os.PathLike,
    data: str | None = None,
    images: int | None = None,
    console: Console | None = None,
) -> Comparison:
    """Compare two models of any make on the same images.

    Args:
        candidate: a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder.
        reference: what it should agree with; of any of these kinds, too.
        data: whose validation images to show: digits, tfds:NAME, a folder, or random (weak
            evidence). By default the data that one of the two models says it was trained on; where
            neither says, random images.
        images: how many; 0 for all; by default 256, or 1,000 where a file is float16 or int8.
        console: where progress is shown; by default nowhere.

    Raises:
        InputError (a ValueError): a file that is no model of one image input and one output;
            unknown data; a number of images below 0.
    """
    from rich.console import Console

    from vggkeras.terminal import load_tensorflow

    console = console or Console(quiet=True)
    if images is not None and images < 0:
        raise InputError(f"images must be 1 or more, or 0 for all; received {images}.")
    load_tensorflow(console, Path(candidate), Path(reference))
    with console.status("loading both models"):
        pair = Pair(foreign.load(candidate), foreign.load(reference))
    one, other = pair.models["reference"], pair.models["candidate"]
    precisions = [model.card.precision for model in (one, other)]
    precision = max(precisions, key=list(TOLERANCES).index)
    found = Comparison(one, other, "no images", 0, precision, failures=_shape_failures(pair))
    if one.channels != other.channels:
        return found
    if images is None:
        images = PARITY_IMAGES if precision == "float32" else GATE_IMAGES
    with console.status("reading images"):
        samples = _samples(pair, data, images)
    with console.status(f"asking both about {len(samples.images)} images"):
        answers = {side: pair.answers(side, pair.plain[side], samples.images) for side in SIDES}
    found = _compared(pair, replace(found, evidence=samples.evidence), samples, answers)
    if found.passed or not np.isfinite(found.max_abs_error):
        return found
    with console.status("trying usual differences of preprocessing"):
        diagnosis = diagnosed(pair, samples.images, answers, found.tolerance)
    with console.status("comparing layers"):
        layer = "" if diagnosis else first_layer(pair, samples.images, precision)
    return replace(found, diagnosis=diagnosis, first_layer=layer)


def _compared(
    pair: Pair, found: Comparison, samples: Samples, answers: dict[str, Array]
) -> Comparison:
    """Add what the answers say; scores against probabilities are given a soft-max, in place."""
    kinds = {side: _kind(pair.models[side], answers[side]) for side in SIDES}
    failures = (*found.failures, *_class_failures(pair, answers, kinds))
    found = replace(
        found,
        images=len(samples.images),
        kinds=(kinds["reference"], kinds["candidate"]),
        failures=failures,
    )
    unlike = len({*kinds.values()}) > 1
    if answers["candidate"].shape != answers["reference"].shape or (
        unlike and "features" in kinds.values()
    ):
        return found
    notes = [f"{found.precision} by its own description"] if found.precision != "float32" else []
    if unlike:
        pair.softmax = next(side for side in SIDES if kinds[side] == "scores")
        answers[pair.softmax] = softmax(answers[pair.softmax])
        notes.append(f"soft-max was applied to the scores of {pair.name(pair.softmax)}")
    if len(samples.images) > 1 and _hardly_vary(answers, found.tolerance):
        notes.append("weak evidence: the reference's answers hardly depend on the image")
    fits = samples.labels is not None and _labels_fit(pair, samples, answers["reference"])
    return _values(replace(found, notes=tuple(notes)), answers, samples.labels if fits else None)


def _kind(model: foreign.ImageModel, answers: Array) -> str:
    """Whether answers `[N, answers]` are probabilities, scores or features."""
    sums = np.abs(answers.sum(axis=1) - 1)  # quantized probabilities add up to nearly 1
    positive = bool((answers >= -1e-6).all() and (sums <= 0.02).all())
    return "features" if model.features else "probabilities" if positive else "scores"


def _shape_failures(pair: Pair) -> tuple[str, ...]:
    one, other = pair.models["candidate"], pair.models["reference"]
    if (
        (one.channels, one.channels_first) == (other.channels, other.channels_first)
        and not pair.larger
        and not pair.plain["candidate"].swapped
    ):
        return ()
    names = [pair.name(side) for side in SIDES]
    return (f"input: {names[0]} takes {one.input_text}, {names[1]} {other.input_text}",)


def _class_failures(pair: Pair, answers: dict[str, Array], kinds: dict[str, str]) -> Iterator[str]:
    counts = {side: answers[side].shape[1] for side in SIDES}
    if len({*counts.values()}) > 1:
        yield "output: {candidate} answers an image against {reference}".format(**counts)
    if len({*kinds.values()}) > 1 and "features" in kinds.values():
        yield "output: {candidate} against {reference}".format(**kinds)
    one, other = (pair.models[side].card.class_names for side in SIDES)
    if one and other and one != other:
        first = next((two for two in zip(one, other, strict=False) if len({*two}) > 1), None)
        received, expected = first or (f"{len(one)} of them", f"{len(other)}")
        yield f"class names: {received!r} where the reference has {expected!r}"


def _labels_fit(pair: Pair, samples: Samples, answers: Array) -> bool:
    """Whether the data's classes are the models', as far as these say."""
    names = [model.card.class_names for model in pair.models.values()]
    fit = all(one == samples.class_names for one in names if one)
    return fit and len(samples.class_names) == answers.shape[1]


def _values(found: Comparison, answers: dict[str, Array], labels: Array | None) -> Comparison:
    """Add errors, agreement and accuracies, and what of them fails."""
    right, output = answers["reference"], answers["candidate"]
    n, failures = len(right), list(found.failures)
    lost_images = int((~np.isfinite(output) | ~np.isfinite(right)).any(axis=1).sum())
    if lost_images:
        failures.append(f"values: the answers to {lost_images} of {n} images are NaN or infinite")
    error = float(np.nan_to_num(np.abs(output.astype(np.float64) - right), nan=np.inf).max())
    relative = error / max(float(np.abs(right).max()), 1e-30)
    bounded = "probabilities" in found.kinds  # scores and features may be of any size
    if found.tolerance is not None and max(relative, error if bounded else 0) > found.tolerance:
        failures.append(
            f"values: largest error {error:.2g} ({relative:.2g} relative) exceeds "
            f"{found.tolerance:g}"
        )
    found = replace(found, max_abs_error=error, max_rel_error=relative)
    if "features" not in found.kinds and right.shape[1] > 1:
        tops = right.argmax(axis=1), output.argmax(axis=1)
        agreeing = int((tops[0] == tops[1]).sum())
        if found.tolerance is None and agreeing < LEAST_AGREEMENT * n:
            failures.append(
                f"agreement: {agreeing} of {n} images have the same class at the top; expected "
                f"{LEAST_AGREEMENT:.0%}"
            )
        found = replace(found, agreeing=agreeing)
        if labels is not None:
            kept, had = tops[1] == labels, tops[0] == labels
            lost, gained = int((had & ~kept).sum()), int((kept & ~had).sum())
            if found.tolerance is None and lost - gained > MOST_LOST * n:
                failures.append(
                    f"accuracy: {(lost - gained) / n:.2%} of the images lost; at most "
                    f"{MOST_LOST:.1%}"
                )
            found = replace(
                found,
                correct=(int(had.sum()), int(kept.sum())),
                mcnemar_p=statistics.mcnemar(gained, lost),
            )
    return replace(found, failures=tuple(failures))


def _hardly_vary(answers: dict[str, Array], tolerance: float | None) -> bool:
    """Whether a reference's answers are nearly the same for all images, and so show little."""
    right = answers["reference"].astype(np.float64)
    return bool(np.ptp(right, axis=0).max() <= 100 * (tolerance or 1e-3) * np.abs(right).max())


@dataclass(frozen=True)
class Samples:
    """The images that both models are shown."""

    images: Array  # uint8 [N, H, W, C]
    evidence: str  # what they are, in words
    labels: Array | None = None  # int64 [N]
    class_names: tuple[str, ...] = ()  # of the data


def _samples(pair: Pair, data: str | None, count: int) -> Samples:
    """Return central crops of validation images, of the size that the larger input takes."""
    described = [model.card for model in pair.models.values()]
    channels = pair.models["reference"].channels
    spec = data or next((d.data for d in described if d.data), RANDOM)
    if spec == RANDOM:
        shape = (min(count or 64, 64), *pair.size, channels)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return Samples(noise, f"{len(noise)} random images: weak evidence; give --data")
    try:
        found = sources.load_data(spec)
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (A model was trained on it: give --data, or --data {RANDOM}.)"
        ) from error
    split = found.split("validation")
    # Evenly spaced: folders list class after class, so every class has its part.
    places = np.unique(
        np.linspace(0, split.count - 1, min(count or split.count, split.count)).astype(int)
    )
    split = split.without({*split.indices()} - {split.indices()[i] for i in places})
    scale = next((d.scale for d in described if d.scale), configs.rescaled_side(max(pair.size)))

    def prepared(index: int, encoded: bytes, label: int) -> tuple[Array, int]:
        image = decoding.decode(encoded, split.image_name(index))
        crop = augment.center_crop(image, max(scale, *pair.size), pair.size)
        return augment.in_channels(crop, channels), label

    crops, labels = zip(*decoding.in_threads(prepared, split.examples()), strict=True)
    evidence = f"{len(crops)} images of {split.name}"
    return Samples(np.stack(crops), evidence, np.array(labels), tuple(found.class_names))


@dataclass
class Arguments:
    """Compare two models of any make on the same images, and say how they differ, and why.

    Exit code 0: the same; 1: they differ; 2: bad input.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """A .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder."""
    reference: Path
    """The model that it should agree with."""
    data: str | None = None
    """Whose validation images to show: digits, tfds:NAME, a folder, or random (weak evidence). By
    default the data that one of the two was trained on, where it says so."""
    images: int | None = None
    """Images to show; 0 for all. 256 when not given, 1,000 where a file is float16 or int8."""


def main() -> int:
    """Parse, compare, and print the table and the verdict."""
    from rich.console import Console

    from vggkeras.terminal import print_table

    given = parsed(lambda: tyro.cli(Arguments, prog="python -m export.compare"))
    console = Console()
    found = compare(given.file, given.reference, given.data, given.images, console)
    print_table(found.table(), console)
    for failure in found.failures:
        console.print(failure, style="red", soft_wrap=True, markup=False)
    console.print(found.verdict(), soft_wrap=True, markup=False)
    return 0 if found.passed else 1


def cli() -> int:
    """The command, with its exit code."""
    return run_command(main)
