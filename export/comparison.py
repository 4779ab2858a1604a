"""Compare any two models on the same images: do they give the same answers, and if not, why?

    python -m export.compare model.onnx --reference model.keras --data photos/

Names, shapes and values are compared, then the classes. Where the answers differ, every usual
difference of preprocessing is tried on one model and then on the other; a difference is named when
undoing it makes the two agree. Where none does, the first layer that differs is named.

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
from PIL import Image

from export import TOLERANCES, image_model
from export.diagnosis import SIDES, Diagnosis, Pair, diagnosed, softmax
from export.first_layer import first_layer
from export.image_changes import Array
from export.parity import LEAST_AGREEMENT, MOST_LOST, Failure
from export.request import GATE_IMAGES, PARITY_IMAGES
from vggkeras import configs
from vggkeras.data import augment, sources
from vggkeras.data.reading import read_images
from vggkeras.errors import InputError, parsed, run_command
from vggkeras.evaluation import statistics, tables

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vggkeras.data.splits import Data

RANDOM = "random"  # the --data that asks for random images
RANDOM_IMAGES = 64


@dataclass(frozen=True)
class Comparison:
    """How a candidate's answers differ from a reference's, on the same images."""

    reference: image_model.ImageModel
    candidate: image_model.ImageModel
    evidence: str  # which images were shown
    images: int
    precision: str  # the lower of the two files'
    # Of the reference and the candidate: probabilities, scores, features or boxes.
    kinds: tuple[str, str] = ("", "")
    max_abs_error: float = np.inf  # infinite where the answers cannot be compared
    max_rel_error: float = np.inf  # over the reference's largest answer
    agreeing: int | None = None  # images with the same top class; None without classes
    correct: tuple[int, int] | None = None  # reference, candidate; None where no labels fit
    mcnemar_p: float | None = None  # exact, two-sided
    diagnosis: Diagnosis | None = None
    first_layer: str = ""  # the first layer that differs, where no preprocessing explains it
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tolerance(self) -> float | None:
        """Return the largest error that passes; None for int8, which is judged by its classes."""
        least, models = TOLERANCES[self.precision], (self.reference, self.candidate)
        return least and max(least, *(model.card.tolerance or 0.0 for model in models))

    @property
    def passed(self) -> bool:
        """Return whether nothing differs but names of tensors."""
        return not self.failures

    @property
    def answers_differ(self) -> bool:
        """Return whether more differs than names."""
        return any(failure.kind != "class names" for failure in self.failures)

    def verdict(self) -> str:
        """Return one line: the same, or how they differ, and why."""
        if self.passed:
            bound = f"tolerance {self.tolerance:g}" if self.tolerance else "int8: no bound"
            error = f"largest error {self.max_abs_error:.2g} on {self.evidence} ({bound})"
            return "; ".join([f"the same: {error}", *self.notes])
        if self.diagnosis:
            return f"they differ: {self.diagnosis.message}"
        if self.first_layer:
            return (
                f"they differ: {self.failures[-1]}; the first layer that differs: "
                f"{self.first_layer}"
            )
        unexplained = ""
        if any(failure.kind == "values" for failure in self.failures):
            unexplained = "; no usual difference of preprocessing explains it"
        return f"they differ: {'; '.join(map(str, self.failures))}{unexplained}"

    def table(self) -> Table:
        """Return a table: what each of the two files has, row by row."""
        from rich.table import Table

        title = f"{self.candidate.path} against {self.reference.path}, on {self.evidence}"
        table = Table("", "reference", "candidate", title=title)
        both = (self.reference, self.candidate)
        outputs = [f"{m.output_name}: {k}" for m, k in zip(both, self.kinds, strict=True)]
        table.add_row("file", *(model.path.name for model in both))
        table.add_row("runtime", *(model.runtime for model in both))
        table.add_row("input", *(f"{model.input.name}: {model.input}" for model in both))
        table.add_row("output", *outputs)
        table.add_row("precision", *(model.card.precision for model in both))
        if self.correct is not None:
            accuracies = [tables.with_interval(count, self.images) for count in self.correct]
            table.add_row("accuracy [95%]", *accuracies)
            table.add_row("exact McNemar p", "", f"{self.mcnemar_p:.3g}")
        if np.isfinite(self.max_abs_error):
            table.add_row("largest error", "", f"{self.max_abs_error:.2g}")
            table.add_row("relative", "", f"{self.max_rel_error:.2g}")
        if self.agreeing is not None:
            low, high = statistics.wilson(self.agreeing, self.images)
            interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
            agreement = f"{self.agreeing / self.images:.2%} {interval}"
            table.add_row("top-1 agreement [95%]", "", agreement)
        return table


def compare(
    candidate: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: str | Data | None = None,
    images: int | None = None,
    console: Console | None = None,
    trust_saved_model: bool = False,
) -> Comparison:
    """Compare any two models on the same images.

    Args:
        candidate: a .keras, .onnx or .tflite file, a SavedModel folder, or a run's folder.
        reference: what it should agree with; of any of these kinds, too.
        data: whose validation images to show: digits, tfds:NAME, hf:NAME, a folder, a list, or
            random (weak evidence). By default the data that one of the two models says it was
            trained on; where neither says, random images.
        images: how many; 0 for all; by default 256, or 1,000 where a file is float16 or int8.
        console: where progress is shown; by default nowhere.
        trust_saved_model: that of `vggkeras.load`.

    Raises:
        InputError (a ValueError): a file that is no model of one image input and one output;
            unknown data; a number of images below 0.
    """
    from vggkeras.terminal import Console, load_tensorflow, plain

    console = plain(console or Console(quiet=True))
    if images is not None and images < 0:
        raise InputError(f"images must be 1 or more, or 0 for all; received {images}.")
    load_tensorflow(console, Path(candidate), Path(reference))
    with console.status("loading both models"):
        pair = Pair(*(image_model.load(path, trust_saved_model) for path in (candidate, reference)))
    one, other = pair.models["reference"], pair.models["candidate"]
    precision = max(one.card.precision, other.card.precision, key=list(TOLERANCES).index)
    result = Comparison(one, other, "no images", 0, precision, failures=_shape_failures(pair))
    if one.channels != other.channels:
        return result
    if images is None:
        images = PARITY_IMAGES if precision == "float32" else GATE_IMAGES
    with console.status("reading images"):
        samples = _samples(pair, data, images)
    with console.status(f"asking both about {len(samples.images)} images"):
        answers = {side: pair.answers(side, pair.plain[side], samples.images) for side in SIDES}
    result = _with_answers(pair, result, samples, answers)
    if not result.answers_differ or not np.isfinite(result.max_abs_error):
        return result
    with console.status("trying usual differences of preprocessing"):
        diagnosis = diagnosed(pair, samples.images, answers, result.tolerance)
    with console.status("comparing layers"):
        layer = "" if diagnosis else first_layer(pair, samples.images, precision)
    return replace(result, diagnosis=diagnosis, first_layer=layer)


@dataclass(frozen=True)
class Samples:
    """The images that both models are shown."""

    images: Array  # uint8 [N, H, W, C]
    evidence: str  # what they are, in words
    labels: Array | None = None  # int64 [N]
    class_names: tuple[str, ...] = ()  # of the data


def _samples(pair: Pair, data: str | Data | None, count: int) -> Samples:
    """Return central crops of validation images, of the size that the larger input takes."""
    cards = [model.card for model in pair.models.values()]
    channels = pair.models["reference"].channels
    spec = data or next((card.data for card in cards if card.data), RANDOM)
    if spec == RANDOM:
        shape = (min(count or RANDOM_IMAGES, RANDOM_IMAGES), *pair.size, channels)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return Samples(noise, f"{len(noise)} random images: weak evidence; give --data")
    try:
        trained = sources.trained_on(cards, spec)
        loaded = sources.load_data_of(trained, spec, fetch=bool(data))
        loaded = loaded.upright(any(card.exif for card in cards))
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (A model was trained on it: give --data, or --data {RANDOM}.)"
        ) from error
    split = loaded.split("validation")
    # Evenly spaced: folders list class after class, so every class has its part.
    count = min(count or split.count, split.count)
    chosen = np.unique(np.linspace(0, split.count - 1, count).astype(int))
    split = split.without({*split.indices()} - {split.indices()[i] for i in chosen})
    scale = next((card.scale for card in cards if card.scale), None)
    scale = scale or configs.rescaled_side(max(pair.size))

    def prepare(image: Image.Image) -> Array:
        crop = augment.center_crop(image, max(scale, *pair.size), pair.size)
        return augment.in_channels(crop, channels)

    _, labels, crops = zip(*read_images(split, prepare), strict=True)
    evidence = f"{len(crops)} images of {split.name}"
    return Samples(np.stack(crops), evidence, np.array(labels), tuple(loaded.class_names))


def _with_answers(
    pair: Pair, result: Comparison, samples: Samples, answers: dict[str, Array]
) -> Comparison:
    """Add what the answers say; one side's scores are replaced by their soft-max in `answers`."""
    kinds = {side: _kind(pair.models[side], answers[side]) for side in SIDES}
    result = replace(
        result,
        evidence=samples.evidence,
        images=len(samples.images),
        kinds=(kinds["reference"], kinds["candidate"]),
        failures=(*result.failures, *_output_failures(pair, answers, kinds)),
    )
    kinds_differ = kinds["candidate"] != kinds["reference"]
    if answers["candidate"].shape != answers["reference"].shape or (
        kinds_differ and _have_no_classes(kinds)
    ):
        return result
    notes = [f"{result.precision} by its own description"] if result.precision != "float32" else []
    if kinds_differ:
        side = next(side for side in SIDES if kinds[side] == "scores")
        pair.softmax_side, answers[side] = side, softmax(answers[side])
        notes.append(f"soft-max was applied to the scores of {pair.name(side)}")
    if len(samples.images) > 1 and _hardly_vary(answers["reference"], result.tolerance):
        notes.append("weak evidence: the reference's answers hardly depend on the image")
    result = _with_errors(replace(result, notes=tuple(notes)), answers)
    if _have_no_classes(kinds) or answers["reference"].shape[1] < 2:
        return result
    return _with_classes(result, answers, _labels_that_fit(pair, samples, answers["reference"]))


def _kind(model: image_model.ImageModel, answers: Array) -> str:
    """Return whether answers `[N, answers]` are probabilities, scores, features or boxes."""
    if model.kind:
        return model.kind
    sums = np.abs(answers.sum(axis=1) - 1)  # quantized probabilities add up to nearly 1
    return "probabilities" if (answers >= -1e-6).all() and (sums <= 0.02).all() else "scores"


def _have_no_classes(kinds: dict[str, str]) -> bool:
    return not {"features", "boxes"}.isdisjoint(kinds.values())


def _shape_failures(pair: Pair) -> tuple[Failure, ...]:
    one, other = pair.models["candidate"], pair.models["reference"]
    same_channels = (one.channels, one.channels_first) == (other.channels, other.channels_first)
    if same_channels and not pair.larger and not pair.plain["candidate"].swapped:
        return ()
    names = [pair.name(side) for side in SIDES]
    return (Failure("input", f"{names[0]} takes {one.input}, {names[1]} {other.input}"),)


def _output_failures(
    pair: Pair, answers: dict[str, Array], kinds: dict[str, str]
) -> Iterator[Failure]:
    counts = {side: answers[side].shape[1] for side in SIDES}
    if counts["candidate"] != counts["reference"]:
        message = "{candidate} answers an image against {reference}".format(**counts)
        yield Failure("output", message)
    if kinds["candidate"] != kinds["reference"] and _have_no_classes(kinds):
        yield Failure("output", "{candidate} against {reference}".format(**kinds))
    one, other = (pair.models[side].card.class_names for side in SIDES)
    if one and other and one != other:
        pairs = zip(one, other, strict=False)
        received, expected = next(
            ((a, b) for a, b in pairs if a != b), (f"{len(one)} of them", f"{len(other)}")
        )
        yield Failure("class names", f"{received!r} where the reference has {expected!r}")


def _labels_that_fit(pair: Pair, samples: Samples, answers: Array) -> Array | None:
    """Return the labels, where the data's classes are the models', as far as these name them."""
    names = [model.card.class_names for model in pair.models.values()]
    fit = all(one == samples.class_names for one in names if one)
    return samples.labels if fit and len(samples.class_names) == answers.shape[1] else None


def _with_errors(result: Comparison, answers: dict[str, Array]) -> Comparison:
    """Add the largest errors, and whether they fail."""
    reference, candidate = answers["reference"], answers["candidate"]
    n, failures = len(reference), list(result.failures)
    not_finite = int((~np.isfinite(candidate) | ~np.isfinite(reference)).any(axis=1).sum())
    if not_finite:
        message = f"the answers to {not_finite} of {n} images are NaN or infinite"
        failures.append(Failure("values", message))
    errors = np.nan_to_num(np.abs(candidate.astype(np.float64) - reference), nan=np.inf)
    error = float(errors.max())
    relative = error / max(float(np.abs(reference).max()), 1e-30)
    # Scores, features and boxes may be of any size.
    bounded = max(error, relative) if "probabilities" in result.kinds else relative
    if result.tolerance is not None and bounded > result.tolerance:
        sizes = f"{error:.2g} ({relative:.2g} relative)"
        failures.append(Failure("values", f"largest error {sizes} exceeds {result.tolerance:g}"))
    return replace(result, max_abs_error=error, max_rel_error=relative, failures=tuple(failures))


def _with_classes(
    result: Comparison, answers: dict[str, Array], labels: Array | None
) -> Comparison:
    """Add agreement and accuracies, which int8 is judged by."""
    reference, candidate = (answers[side].argmax(axis=1) for side in ("reference", "candidate"))
    n, failures, is_judged = len(reference), list(result.failures), result.tolerance is None
    agreeing = int((reference == candidate).sum())
    if is_judged and agreeing < LEAST_AGREEMENT * n:
        message = (
            f"{agreeing} of {n} images have the same top class; expected {LEAST_AGREEMENT:.0%}"
        )
        failures.append(Failure("agreement", message))
    result = replace(result, agreeing=agreeing)
    if labels is not None:
        right, still_right = reference == labels, candidate == labels
        lost, gained = int((right & ~still_right).sum()), int((still_right & ~right).sum())
        if is_judged and lost - gained > MOST_LOST * n:
            message = f"{(lost - gained) / n:.2%} of the images lost; at most {MOST_LOST:.1%}"
            failures.append(Failure("accuracy", message))
        result = replace(
            result,
            correct=(int(right.sum()), int(still_right.sum())),
            mcnemar_p=statistics.mcnemar(gained, lost),
        )
    return replace(result, failures=tuple(failures))


def _hardly_vary(answers: Array, tolerance: float | None) -> bool:
    """Return whether answers are nearly the same for all images, and so show little."""
    values = answers.astype(np.float64)
    return bool(np.ptp(values, axis=0).max() <= 100 * (tolerance or 1e-3) * np.abs(values).max())


@dataclass
class Arguments:
    """Compare any two models on the same images, and say how they differ, and why.

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
    trust_saved_model: bool = False
    """Load a SavedModel even if its operators may touch files, sockets or Python."""


def main() -> int:
    """Parse, compare, and print the table and the verdict."""
    from vggkeras.terminal import Console, print_table

    given = parsed(
        lambda: tyro.cli(
            Arguments, prog="python -m export.compare", config=(tyro.conf.DisallowNone,)
        )
    )
    console = Console()
    asked = (given.data, given.images, console, given.trust_saved_model)
    result = compare(given.file, given.reference, *asked)
    print_table(result.table(), console)
    for failure in result.failures:
        console.print(str(failure), style="red", soft_wrap=True)
    console.print(result.verdict(), soft_wrap=True)
    return 0 if result.passed else 1


def cli() -> int:
    """Run the command and return its exit code."""
    return run_command(main)
