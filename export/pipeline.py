"""The way of a model through an export: plan, write, prove, certify."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from export import FORMATS
from export.request import Request, chosen_files, default_folder, source_of
from vggkeras import files
from vggkeras.card import Calibration, Form, ModelCard
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from export import certificate
    from export.certificate import Peak
    from export.golden import Golden
    from export.parity import Parity
    from export.quantize import Plan
    from export.samples import Samples
    from export.subjects import Subject
    from vggkeras.runtimes.predictor import Predictor

ROUNDING_IMAGES = 64  # on which int8's integers are held against the same computation in float


@dataclass
class Proof:
    """What every file is proven against."""

    samples: Samples
    answers: np.ndarray  # the reference's, float32 [N, classes] or [N, units]
    sizes: Sequence[
        tuple[np.ndarray, np.ndarray]
    ]  # (images, answers) at other sizes, of dense files
    golden: Golden
    labels_tell: bool  # whether the labels are evidence of accuracy


def run(request: Request, console: Console | None = None) -> dict[str, dict[str, Any]]:
    """Export a model: see `export.export_model`."""
    from vggkeras.terminal import load_tensorflow

    console = console or Console()
    chosen = chosen_files(request)
    source = source_of(request.model)
    folder = request.out or default_folder(source)
    files.check_writable(folder)
    load_tensorflow(console)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "Exporting needs Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow and start again."
        )
    from export import subjects

    subject = subjects.load(request, source, chosen, console)
    proof, plan, noise = _proof(request, subject, chosen, console)
    # From here on the answers stand for the reference, whose weights go with the graph once that is written.
    answers = proof.answers
    subject.reference = replace(subject.reference, run=lambda _: answers, make_form=None)
    export = _Export(
        request, subject, files.sha256(subject.source), proof, folder, plan, noise, console
    )
    return export.files(chosen)


def _proof(
    request: Request, subject: Subject, chosen: list[tuple[str, str]], console: Console
) -> tuple[Proof, Plan | None, dict[str, float]]:
    """Ask Keras about the images that every file is shown, and calibrate int8."""
    from export import parity, quantize, samples

    precisions = {precision for _, precision in chosen}
    reference, found = samples.parity_images(
        subject.reference, request.data, request.count, console
    )
    calibration = None
    if "int8" in precisions:
        calibration = samples.calibration_images(
            reference, found.data, request.calibration, console
        )
    with console.status(f"asking Keras about {len(found.images)} images"):
        answers = parity.in_batches(reference, found.images, (32,))
        _check_answers(request, subject, found.images, answers)
        any_size = request.form.takes_any_size
        dense = reference if request.features else reference.dense_form() if any_size else None
        sizes = samples.other_sizes(dense, found.split) if dense else []
        graph = subject.graph if subject.is_vgg else None
        if "float16" in precisions:
            assert graph is not None
            quantize.check_float16(graph, found.images[: samples.CALIBRATION_IMAGES])
        golden = samples.golden_images(reference, graph, found, answers)
    subject.reference = reference
    tell = not request.features and parity.labels_tell(answers, found.labels)
    if found.labels is not None and not tell and not request.features:
        advice = "" if subject.is_vgg else "; is --input right?"
        if precisions != {"float32"}:
            advice = ", and float16 and int8 are judged by agreement alone"
        console.print(
            f"Keras is right no more often than guessing: the labels are no evidence{advice}",
            style="yellow",
            soft_wrap=True,
        )
    plan, noise = None, {}
    if calibration is not None:
        assert graph is not None
        shown, labels = calibration
        plan = quantize.calibrate(
            graph, shown, len(np.unique(labels)), lambda parts: _tracked(parts, console)
        )
        noise = quantize.signal_to_noise(graph, plan, shown[:: -(-len(shown) // quantize.BATCH)])
        console.print(
            f"int8: ranges from {plan.images} training images of {plan.classes} classes",
            soft_wrap=True,
        )
    return Proof(found, answers, sizes, golden, tell), plan, noise


def _check_answers(
    request: Request, subject: Subject, images: np.ndarray, answers: np.ndarray
) -> None:
    """Raise InputError for answers that no file could be proven by."""
    from export import quantize

    if not subject.is_vgg:
        from export import keras_export

        keras_export.check_answers(answers, scores=subject.has_softmax)
        return
    if not np.isfinite(answers).all():
        assert subject.graph is not None
        quantize.check_finite(subject.graph, images[~np.isfinite(answers).all(axis=1)][:1])
    if request.features and not answers.any():  # which any file would give as well
        raise InputError(
            f"{subject.source}: fc2 gives zeros alone for all {len(images)} images: expected a trained network; train it "
            "again with a lower rate, or export an earlier one."
        )


def _tracked(parts: Sequence[int], console: Console) -> Iterator[int]:
    """Yield the parts of a calibration, with a progress bar."""
    from vggkeras.terminal import progress_bar

    with progress_bar(console) as bar:
        yield from bar.track(parts, description="measuring ranges")


@dataclass
class _Export:
    """One export: writes, proves and certifies the files of one model."""

    request: Request
    subject: Subject
    sha256: str  # of the .keras file
    proof: Proof
    folder: Path
    plan: Plan | None
    noise: dict[str, float]  # dB, layer by layer
    console: Console

    def files(self, chosen: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
        """Write and prove every file, and return the certificate's entries."""
        from export import certificate
        from export import golden as golden_module

        form, sha256 = self.request.form, self.sha256
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.folder)
        # A damaged certificate is said before anything is written.
        certified = files.read_certificate(self.folder)
        kept = {name for name, entry in certified.items() if entry["model_sha256"] == sha256}
        if form is Form.CLASSIFIER and any(
            kind.named(precision, Form.DENSE) in kept
            for kind in FORMATS.values()
            for precision in kind.precisions
        ):
            self.proof.sizes = golden_module.golden_sizes(
                self.folder
            )  # of the dense files, which stay
        besides = [self.beside(*key) for key in chosen]
        entries, rows = {}, []
        try:
            peaks = {key: self.write(*key) for key in chosen}
            if "int8" not in {precision for _, precision in chosen}:
                self.subject.graph = None  # int8 may have to be written again
                gc.collect()  # a Keras model refers to itself
            for key in chosen:
                row, entry = self.certified(*key, peak=peaks[key])
                rows.append(row)
                entries[self.name(*key)] = entry
            self.save_golden()
            stale = certificate.update(self.folder, entries, sha256)
        finally:
            for beside in besides:
                files.remove(beside)
            if new and not any(self.folder.iterdir()):
                self.folder.rmdir()
        certificate.print_table(self.console, rows, self.proof.samples.evidence)
        if stale:
            self.console.print(
                f"not of this model: {', '.join(stale)} in {self.folder}; export them again or remove them",
                style="yellow",
                soft_wrap=True,
            )
        return entries

    def name(self, format: str, precision: str) -> str:
        """Return a file's name."""
        return FORMATS[format].named(precision, self.request.form)

    def beside(self, format: str, precision: str) -> Path:
        """Return where a file is written before it is renamed."""
        return files.partial(self.folder / self.name(format, precision))

    def write(self, format: str, precision: str, floats: Sequence[str] = ()) -> Peak:
        """Write a file beside its place, with some layers kept in float32."""
        from export import certificate

        card = self.card(precision, floats)
        beside, kind = self.beside(format, precision), FORMATS[format]
        writer = kind.write if self.subject.is_vgg else kind.write_other
        files.remove(beside)
        status = f"writing {self.folder / self.name(format, precision)}"
        with self.console.status(status), certificate.Peak() as peak:
            plan = self.plan and self.plan.leaving(floats)
            writer(self.subject.graph, beside, card, self.request.opset, plan)
        return peak

    def card(self, precision: str, floats: Sequence[str] = ()) -> ModelCard:
        """Return what travels in a file of a precision."""
        from export import artifact

        reference, plan, data = self.subject.reference, self.plan, self.proof.samples.data
        card = artifact.describe(
            self.subject.card, reference, self.sha256, self.request.form, precision
        )
        if precision != "int8" or plan is None or data is None:
            return card
        return replace(
            card,
            calibration=Calibration(plan.images, plan.classes, f"{data.spec} train"),
            left_in_float=tuple(floats),
            signal_to_noise_db={layer: round(db, 2) for layer, db in self.noise.items()},
        )

    def prove(self, format: str, precision: str) -> tuple[Predictor, Parity]:
        """Seal a written file, and compare it with Keras."""
        from export import parity

        proof, beside = self.proof, self.beside(format, precision)
        with self.console.status(f"proving {self.folder / self.name(format, precision)}"):
            described = replace(self.subject.reference, card=self.card(precision))
            candidate = _sealed(beside, proof.golden, described)
            tolerance = self.subject.card.tolerance
            gate = parity.gate_of(
                precision,
                self.request.form,
                labels_tell=proof.labels_tell,
                tolerance=tolerance,
            )
            reference = self.subject.reference
            images, labels = proof.samples.images, proof.samples.labels
            parts = [parity.compare((reference, proof.answers), candidate, images, labels, gate)]
            parts += [
                parity.compare((reference, answers), candidate, shown, None, gate)
                for shown, answers in proof.sizes
                if self.request.form.takes_any_size
            ]
            result = parity.merged(parts)
            if precision == "int8" and format == "onnx" and not result.failures:
                result = parity.with_integers_checked(
                    result, candidate, images[:ROUNDING_IMAGES], proof.answers[:ROUNDING_IMAGES]
                )
        return candidate, result

    def certified(
        self, format: str, precision: str, *, peak: Peak
    ) -> tuple[certificate.Row, dict[str, Any]]:
        """Prove a written file and move it into its place; return its row and its entry."""
        from export import certificate

        name, beside = self.name(format, precision), self.beside(format, precision)
        candidate, result = self.prove(format, precision)
        if precision == "int8" and result.is_too_inaccurate:
            del candidate

            def attempt(floats: Sequence[str]) -> tuple[Predictor, Parity]:
                nonlocal peak
                peak = self.write(format, precision, floats)
                return self.prove(format, precision)

            candidate, result = _least_in_float(attempt, self.noise, name, self.console)
        milliseconds = (
            certificate.milliseconds_of(candidate, self.proof.samples.images)
            if result.passed
            else None
        )
        entry = certificate.entry(
            beside,
            candidate,
            result,
            self.proof.samples.evidence,
            self.sha256,
            milliseconds,
        )
        del candidate
        final = self.folder / (name if result.passed else f"{name}.rejected")
        files.move(beside, final)
        if result.passed:
            files.remove(self.folder / f"{name}.rejected")
        return certificate.Row(final, result, peak, milliseconds), entry

    def save_golden(self) -> None:
        """Write the golden answers beside the files."""
        from export import golden as golden_module
        from export import samples

        found, count = self.proof.samples, samples.GOLDEN_IMAGES
        golden = golden_module.GoldenFile(
            found.images[:count],
            None if found.labels is None else found.labels[:count],
            self.proof.answers[:count],
            tuple((shown[:2], answers[:2]) for shown, answers in self.proof.sizes),
        )
        golden_module.save_golden(self.folder, golden, self.request.form)


def _least_in_float(
    attempt: Callable[[Sequence[str]], tuple[Predictor, Parity]],
    noise: dict[str, float],
    file: str,
    console: Console,
) -> tuple[Predictor, Parity]:
    """Keep in float32 the fewest layers with which int8 passes, those it hurts most first; half of them at most."""
    ranked = sorted(noise, key=lambda layer: noise[layer])
    for count in range(1, len(ranked) // 2 + 1):
        floats = ranked[:count]
        if attempt(floats)[1].passed:
            break
    else:
        console.print(
            f"{file}: {count} layers in float32 do not fix it: calibrate on more images (--calibration 500), or "
            "export float16 (--precision float16)",
            style="yellow",
            soft_wrap=True,
        )
        return attempt(())
    for layer in ranked[: count - 1]:  # the last one was needed; was this one?
        without = [other for other in floats if other != layer]
        if attempt(without)[1].passed:
            floats = without
    named = ", ".join(f"{layer} ({noise[layer]:.0f} dB)" for layer in floats)
    console.print(
        f"{file}: kept in float32, as int8 hurts them most: {named}", style="yellow", soft_wrap=True
    )
    return attempt(floats)  # what lies on the disk is what was written last


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
    del candidate  # two of them would hold a large network's weights twice
    labels = None if golden.labels is None else golden.labels[:count]
    inside = replace(
        golden,
        images=golden.images[:count],
        probabilities=golden.probabilities[:count],
        labels=labels,
    )
    artifact.seal(path, replace(inside, answers=answers))
    return _loaded(path, reference)


def _loaded(path: Path, reference: Predictor) -> Predictor:
    """Return the file in its runtime; one that does not load says so when it is run, which is a failure of its proof."""
    from vggkeras import runtimes

    try:
        return runtimes.load(path)
    except InputError as error:
        return _failing(replace(reference, path=path), error)


def _failing(predictor: Predictor, reason: Exception) -> Predictor:
    """Return a predictor that raises whenever it is run."""

    def run(images: np.ndarray) -> np.ndarray:
        raise reason

    return replace(predictor, run=run)
