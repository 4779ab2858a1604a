"""The way of a model through an export.

`run` leads: every step takes what the steps before returned, and returns here. The steps are what
is asked for (request.py), the model (subjects.py), the images and Keras' answers (samples.py),
int8's ranges (quantize.py), the files (to_onnx.py, to_tflite.py, to_saved_model.py, or
keras_export.py), the seal (artifact.py), the proof (parity.py), and the certificate
(certificate.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from export import signature
from export.formats import ENGINES, FORMATS, Target, writer_of
from export.request import Request
from vggkeras import files, locks
from vggkeras.card import Calibration, Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.terminal import load_tensorflow, plain, progress_bar

if TYPE_CHECKING:
    from export.certificate import Row
    from export.measure import Peak
    from export.parity import Parity
    from export.quantize import Int8Plan
    from export.samples import Evidence
    from export.subjects import Subject
    from vggkeras.certificate import Entry
    from vggkeras.runtimes.predictor import Predictor

ROUNDING_IMAGES = 64  # on which int8's integers are held against the same computation in float32


def run(request: Request, console: Console | None = None) -> dict[str, Entry]:
    """Export a model, and return the certificate's entries by file name: see `export_model`."""
    console = plain(console)
    request.targets()  # what cannot be is said before anything is read
    request = request.resolved()  # a training that ends meanwhile moves runs/latest
    targets = request.targets()
    request = replace(request, out=targets[0].folder)
    files.check_writable(request.folder)
    with locks.locked(request.folder):
        return _run(request, targets, console)


def _run(request: Request, targets: Sequence[Target], console: Console) -> dict[str, Entry]:
    """Export into a folder that is this process' own."""
    signer = signature.signer(request.sign, request.folder) if request.sign else None
    _load_tensorflow(console)
    from export import certificate, samples, subjects

    subject = subjects.load(request, targets, console)
    evidence = samples.gather(request, subject, targets, console)
    plan = _quantized(subject, evidence, targets, console)
    # From here on, the answers stand for the reference; neither its weights need memory any more,
    # nor do the images that int8 was calibrated on.
    subject = replace(subject, reference=evidence.reference)
    evidence = replace(evidence, calibration=None)
    export = _Export(request, subject, evidence, plan, console)
    with files.claimed(request.folder):  # for Target.beside
        kept = _kept_sizes(request, subject.model_sha256)
        peaks = [export.write(target) for target in targets]
        if plan is None:  # int8 may have to be written again
            subject = replace(subject, graph=None)
            export = replace(export, subject=subject)
            gc.collect()  # a Keras model refers to itself
        written = zip(targets, peaks, strict=True)
        rows = [export.prove(target, peak) for target, peak in written]
        beside = _golden_file(request.form, evidence, evidence.sizes or kept)
        entries, stale = certificate.place(rows, beside, subject.model_sha256)
        passed = all(entry.passed for entry in entries.values())
        signed = signature.renewed(request.folder, signer if passed else None)
    certificate.print_table(console, rows)
    if signed:
        console.print(signed, soft_wrap=True, markup=False)
    if stale:
        console.print(
            f"not of this model: {', '.join(stale)} in {request.folder}; export them again or "
            "remove them",
            style="yellow",
            soft_wrap=True,
        )
    return entries


def _load_tensorflow(console: Console) -> None:
    """Import TensorFlow and Keras, which must compute with it."""
    load_tensorflow(console)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "Exporting needs Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow and start "
            "again."
        )


def _quantized(
    subject: Subject, evidence: Evidence, targets: Sequence[Target], console: Console
) -> Int8Plan | None:
    """Return int8's ranges, None where no file is int8; check that float16 holds the network."""
    from export import activations, quantize, samples

    if any(target.precision == "float16" for target in targets):
        images = evidence.samples.images[: samples.CALIBRATION_IMAGES]
        activations.check_float16(subject.graph, images)
    if evidence.calibration is None:
        return None
    images, labels = evidence.calibration

    def track(starts: Sequence[int]) -> Iterator[int]:
        with progress_bar(console, "batches") as bar:
            yield from bar.track(starts, description="measuring ranges")

    symmetric = any(target.engine == "tensorrt" for target in targets)
    plan = quantize.calibrate(
        subject.graph, images, len(np.unique(labels)), track, symmetric=symmetric
    )
    if any(target.engine == "npu" for target in targets):
        plan = quantize.with_scores(subject.graph, plan, images)
    some = images[:: -(-len(images) // activations.BATCH)]
    noise = quantize.signal_to_noise(subject.graph, plan, some)
    console.print(
        f"int8: ranges from {plan.images} training images of {plan.classes} classes",
        soft_wrap=True,
    )
    return replace(plan, signal_to_noise_db=noise)


def _kept_sizes(request: Request, sha256: str) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return golden answers at other sizes, of the same model's dense files, which stay.

    Raises:
        InputError (a ValueError): the certificate there or its golden answers are damaged, before
            anything is written.
    """
    from export import golden
    from vggkeras import certificate

    entries = certificate.read(request.folder)
    dense = {
        Target(request.folder, format, precision, Form.DENSE, engine).name
        for format, kind in FORMATS.items()
        for precision in kind.precisions
        for engine in ENGINES
    }
    for name in sorted(entries.keys() & dense):
        if request.form is Form.CLASSIFIER and entries[name].model_sha256 == sha256:
            beside = golden.certified_golden(request.folder, Form.DENSE, entries[name])
            return beside.sizes if beside else ()
    return ()


@dataclass(frozen=True)
class _Export:
    """What all files of one export share."""

    request: Request
    subject: Subject
    evidence: Evidence
    plan: Int8Plan | None
    console: Console

    def write(self, target: Target, kept: Sequence[str] = ()) -> Peak:
        """Write a file beside its place; int8 with some layers kept in float32."""
        from export.measure import Peak

        write = writer_of(target.format, self.subject.is_vgg)
        plan = self.plan and self.plan.keeping(kept)
        files.remove(target.beside)
        with self.console.status(f"writing {target.path}"), Peak() as peak:
            card = self.card(target, plan)
            write(self.subject.graph, target.beside, card, self.request.opset, plan)
        return peak

    def card(self, target: Target, plan: Int8Plan | None) -> ModelCard:
        """Return what travels in a file."""
        from export import artifact

        subject, data = self.subject, self.evidence.samples.data
        card = artifact.describe(
            subject.card, subject.reference, subject.model_sha256, target.form, target.precision
        )
        card = replace(card, target=target.engine)
        if target.precision != "int8" or plan is None or data is None:
            return card
        noise = {layer: round(db, 2) for layer, db in plan.signal_to_noise_db.items()}
        return replace(
            card,
            calibration=Calibration(plan.images, plan.classes, f"{data.spec} train"),
            left_in_float=plan.kept_in_float32,
            signal_to_noise_db=noise,
        )

    def prove(self, target: Target, peak: Peak) -> Row:
        """Prove a written file, in int8 with as many layers in float32 as that takes."""
        from export import certificate, measure

        proof = self.compared(target, peak)
        if target.precision == "int8" and proof.parity.is_too_inaccurate:
            del proof  # its runtime holds the file that is written again

            def attempt(kept: Sequence[str]) -> _Proof:
                return self.compared(target, self.write(target, kept))

            assert self.plan is not None
            noise = dict(self.plan.signal_to_noise_db)
            proof = _keeping_fewest(attempt, noise, target.name, self.console)
        samples, milliseconds = self.evidence.samples, None
        if proof.parity.passed:
            milliseconds = measure.milliseconds_of(proof.candidate, samples.images)
        entry = certificate.entry_of(
            target.beside, proof.candidate, proof.parity, samples.evidence, milliseconds
        )
        return certificate.Row(target, entry, proof.peak)

    def compared(self, target: Target, peak: Peak) -> _Proof:
        """Seal a written file, and compare it with Keras."""
        from export import integers, parity

        evidence, reference = self.evidence, self.subject.reference
        images, answers = evidence.samples.images, evidence.answers
        with self.console.status(f"proving {target.path}"):
            candidate = self.sealed(target)
            gate = parity.gate_of(
                target.precision,
                target.form,
                labels_tell=evidence.labels_tell,
                tolerance=self.subject.card.tolerance,
            )
            labels = evidence.samples.truth
            parts = [parity.compare((reference, answers), candidate, images, labels, gate)]
            parts += [
                parity.compare((reference, others), candidate, shown, None, gate)
                for shown, others in evidence.sizes
            ]
            result = parity.merged(parts)
            if target.precision == "int8" and target.format == "onnx" and result.passed:
                result = integers.with_integers_checked(
                    result, candidate, images[:ROUNDING_IMAGES], answers[:ROUNDING_IMAGES]
                )
        return _Proof(candidate, result, peak)

    def sealed(self, target: Target) -> Predictor:
        """Put golden images into a file, with the answers it gives itself, and load it."""
        from export import artifact

        path, golden = target.beside, self.evidence.golden
        reference = replace(self.subject.reference, card=self.card(target, self.plan))
        count = artifact.golden_count(path, golden.images)
        candidate = _loaded(path, reference)
        try:
            answers = candidate(golden.images[:count])
        except Exception as error:  # whatever a runtime raises is a failure of the file's proof
            return _failing(candidate, error)
        del candidate  # two of them would hold a large network's weights twice
        inside = replace(
            golden,
            images=golden.images[:count],
            probabilities=golden.probabilities[:count],
            labels=None if golden.labels is None else golden.labels[:count],
            answers=answers,
        )
        artifact.seal(path, inside)
        return _loaded(path, reference)


@dataclass(frozen=True)
class _Proof:
    """A file in its runtime, and how it compares with Keras."""

    candidate: Predictor
    parity: Parity
    peak: Peak  # of writing it


def _keeping_fewest(
    attempt: Callable[[Sequence[str]], _Proof],
    noise: dict[str, float],
    file: str,
    console: Console,
) -> _Proof:
    """Keep in float32 the fewest layers with which int8 passes; half of them at most.

    Args:
        attempt: writes and proves the file with some layers kept in float32.
        noise: signal-to-noise ratio of each layer, dB; those with the least are kept first.
        file: its name.
        console: for what was done.
    """
    ranked = sorted(noise, key=lambda layer: noise[layer])
    for count in range(1, len(ranked) // 2 + 1):
        kept = ranked[:count]
        if attempt(kept).parity.passed:
            break
    else:
        console.print(
            f"{file}: {count} layers in float32 do not fix it: calibrate on more images "
            "(--calibration 500), or export float16 (--precision float16)",
            style="yellow",
            soft_wrap=True,
        )
        return attempt(())
    for layer in ranked[: count - 1]:  # the last one was needed; was this one?
        without = [other for other in kept if other != layer]
        if attempt(without).parity.passed:
            kept = without
    named = ", ".join(f"{layer} ({noise[layer]:.0f} dB)" for layer in kept)
    console.print(
        f"{file}: kept in float32, as int8 hurts them most: {named}", style="yellow", soft_wrap=True
    )
    return attempt(kept)  # what lies on the disk is what was written last


def _loaded(path: Path, reference: Predictor) -> Predictor:
    """Return a file in its runtime; one that does not load fails when it is run, in its proof."""
    from vggkeras import runtimes

    try:
        return runtimes.load(path, verify=False)  # it was written just now
    except InputError as error:
        return _failing(replace(reference, path=path), error)


def _failing(predictor: Predictor, reason: Exception) -> Predictor:
    """Return a predictor that raises whenever it is run."""

    def run(images: np.ndarray) -> np.ndarray:
        raise reason

    return replace(predictor, run=run)


def _golden_file(
    form: Form, evidence: Evidence, sizes: Sequence[tuple[np.ndarray, np.ndarray]]
) -> bytes:
    """Return the content of golden.npz."""
    from export import golden, samples

    images, labels = evidence.samples.images, evidence.samples.labels
    count = samples.GOLDEN_IMAGES
    content = golden.GoldenFile(
        images[:count],
        None if labels is None else labels[:count],
        evidence.answers[:count],
        tuple((shown[:2], answers[:2]) for shown, answers in sizes),
    )
    return content.pack(form)
