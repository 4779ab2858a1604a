"""Classify images: `python -m vggkeras predict photo.jpg --model vgg16.keras`.

python -m vggkeras predict photos --model vgg16.onnx --out labels labels any number into a folder.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import tyro

from vggkeras import rows
from vggkeras.batch.labelling import Prediction, classify, columns
from vggkeras.batch.listing import image_files, is_of_many
from vggkeras.commands.common import Compute, Provider, console
from vggkeras.commands.predictions import FEW, Tally, show
from vggkeras.errors import InputError, visible
from vggkeras.terminal import Console, progress_bar

if TYPE_CHECKING:
    from vggkeras.batch.parts import Advance, Labelled
    from vggkeras.runtimes import Predictor

PREDICTIONS = rows.kind("a file of `vggkeras predict`", "image", "class", "probability", "error")


@dataclass(frozen=True)
class Predict:
    """Classify image files, or the images of folders, by their central crops.

    Attributes:
        files: Image files, or folders of them (and of folders): JPEG, PNG, WebP, HEIC and others.
            For a folder of labels also patterns, .csv or .parquet lists, and URLs (s3://, gs://).
        model: A run's folder, a .keras, .onnx or .tflite file, a SavedModel folder, or a published
            file, hf:USER/NAME[@REV][:FILE].
        top: How many classes to show, most probable first; 0 is all of them.
        classifier: Of a network of boxes (`train --boxes`): the run, or the file, that names the
            classes.
        draw: Of a network of boxes: write each image with its box into this folder.
        json: Print one JSON object per line, as soon as an image is classified, instead of a table.
        out: Write a row per image to this .csv, .jsonl or .parquet file; or label any number of
            images into this folder, a name without a suffix.
        resume: Go on with a folder of labels where a killed job was.
        engine: What labels into a folder: this process, or Ray's workers.
        workers: Workers of Ray; by default as many as fit.
        exif: Turn images upright, as the orientation in their EXIF data says.
        fast_decode: Decode large JPEGs reduced, as training does: several times as fast, and other
            pixels by less than two levels on average.
        skip_unreadable: Exit with 0 if some images cannot be read. They are named and counted in
            either case.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    compute: tyro.conf.OmitArgPrefixes[Compute]
    model: Path = Path("runs/latest")
    top: int = 5
    classifier: Path | None = None
    draw: Path | None = None
    json: bool = False
    out: Path | None = None
    resume: bool = False
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    exif: bool = True
    fast_decode: bool = False
    skip_unreadable: bool = False

    def run(self) -> int:
        """Classify, print the classes, and write the file."""
        if self.top < 0:
            raise InputError(f"--top must be 1 or more, or 0 for all classes; received {self.top}.")
        unread: Counter[str] = Counter()
        notes = Console(stderr=True) if self.json else console
        if self.out and (self.out.is_dir() or not self.out.suffix):
            return self._label(self.out, unread)
        self._check_few()
        images = image_files(list(map(Path, self.files)), unread)
        (predictor,) = self.compute.load(self.model)
        if predictor.boxes:
            return self._locate(predictor, images)
        if self.classifier or self.draw:
            raise InputError(
                f"--classifier and --draw are of networks of boxes, and {self.model} is none: give "
                "one that `train --boxes` trained."
            )
        if self.out:
            rows.check_out(self.out, PREDICTIONS)
        tally = self._classified(predictor, images)
        if not self.json:
            show(tally, notes)
        for line in self._notes(f"{predictor.path} in {predictor.runtime}", tally, unread):
            notes.print(line, soft_wrap=True, highlight=False)
        return self._exit_code(tally)

    def _exit_code(self, tally: Tally) -> int:
        return 1 if not tally.read or (tally.failed and not self.skip_unreadable) else 0

    def _check_few(self) -> None:
        """Raise InputError for what only a folder of labels can have."""
        if self.resume or self.engine != "local" or self.workers is not None:
            raise InputError(
                "--resume, --engine and --workers are for a folder of labels: expected --out DEST, "
                f"a name without a suffix; received {f'--out {self.out}' if self.out else 'none'}."
            )
        if many := [name for name in self.files if is_of_many(name)]:
            raise InputError(
                f"{many[0]}: patterns, lists and URLs are labelled into a folder: expected --out "
                "DEST, a name without a suffix."
            )
        if self.out:
            rows.check_out(self.out, PREDICTIONS)

    def _label(self, out: Path, unread: Counter[str]) -> int:
        """Label into a folder, and print what was labelled."""
        from vggkeras.batch import jobs
        from vggkeras.runtimes.providers import Options

        if self.json:
            raise InputError(f"--json prints rows, and {out} is a folder for them: give one.")
        if self.classifier or self.draw:
            raise InputError(
                f"--classifier and --draw are of boxes, and {out} is a folder of labels: give "
                "--out FILE.csv, .jsonl or .parquet for boxes."
            )
        options = Options(
            self.compute.provider,
            self.compute.threads,
            trust_saved_model=self.compute.trust_saved_model,
            batch_sizes=self.compute.batch_sizes,
        )
        request = jobs.Request(
            self.files,
            out,
            options,
            self.top,
            self.exif,
            self.engine,
            self.workers,
            self.resume,
            self.fast_decode,
        )

        def load(options: Options) -> Predictor:
            provider = cast(Provider, options.provider)
            threads, sizes = options.threads, options.batch_sizes
            there = replace(self.compute, provider=provider, threads=threads, batch_sizes=sizes)
            return there.load(self.model)[0]

        with progress_bar(console) as bar:

            def begin(total: int, done: int) -> Advance:
                task = bar.add_task("predict", total=total, completed=done)
                return lambda more: bar.advance(task, more)

            labelled = jobs.run(request, load, begin, unread)
        tally = tally_of(labelled)
        show(tally, console)
        for line in self._notes(str(self.model), tally, unread):
            console.print(line, soft_wrap=True, highlight=False)
        return self._exit_code(tally)

    def _locate(self, predictor: Predictor, images: Sequence[str]) -> int:
        from vggkeras.commands import locating

        if self.fast_decode:
            raise InputError("--fast-decode is of classifiers, not of boxes: leave it out.")
        classifier = self.compute.load(self.classifier)[0] if self.classifier else None
        return locating.run(
            predictor,
            classifier,
            images,
            self.top,
            locating.Output(self.json, self.out, self.draw),
            exif=self.exif,
            skip_unreadable=self.skip_unreadable,
        )

    def _classified(self, predictor: Predictor, images: Sequence[str]) -> Tally:
        """Classify, print and write each image as soon as its answer is there."""
        tally = Tally()
        predictions: Iterable[Prediction] = classify(
            predictor, images, self.top, exif=self.exif, fast=self.fast_decode
        )
        with contextlib.ExitStack() as stack:
            write = None
            if self.out:
                about = {"model": str(predictor.path), "class_names": predictor.class_names}
                of_rows = columns(predictor, self.top)
                write = stack.enter_context(rows.writing(self.out, of_rows, about))
            if not self.json:  # the bar would take the lines for its own output
                # Lines of progress would stand between the answers, which may go into a file.
                shown = console if console.is_terminal else Console(stderr=True)
                bar = stack.enter_context(progress_bar(shown, announced=False))
                predictions = bar.track(predictions, len(images), description="predict")
            for prediction in predictions:
                tally.add(prediction)
                if self.json:
                    line = json.dumps(prediction.to_json(), ensure_ascii=False)
                    print(visible(line), flush=True)
                if write:
                    write(prediction.to_row(self.top))
        return tally

    def _notes(self, model: str, tally: Tally, unread: Counter[str]) -> Iterator[str]:
        """Yield the lines below the answers: the model, what was not read, and the file."""
        from vggkeras.data import reading

        total = tally.read + tally.failed
        if not self.json:
            yield f"{total:,} images by {model}"
        if unread:
            yield reading.unread(unread)
        if tally.failed:
            advice = ": replace or remove them, or pass --skip-unreadable to exit with 0"
            is_error = tally.read and not self.skip_unreadable
            yield (
                f"{tally.failed:,} of {total:,} images could not be read"
                f"{advice if is_error else ''}"
            )
        if self.out:
            yield f"wrote {total:,} rows to {self.out}"
        elif not self.json and total > FEW:
            yield "--out FILE.csv, .jsonl or .parquet keeps each image's row, and --json prints it"


def tally_of(labelled: Labelled) -> Tally:
    """Return what is shown of a folder of labels."""
    unreadable = [Prediction(image, error=error) for image, error in labelled.unreadable]
    return Tally(
        unreadable=unreadable,
        read=labelled.images - labelled.failed,
        failed=labelled.failed,
        images=labelled.classes,
        probability=labelled.probability,
    )
