"""Score models by the paper's protocols (section 3.2).

python -m vggkeras evaluate --model runs/latest --data digits --protocol center dense
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from vggkeras import files
from vggkeras.commands import per_image
from vggkeras.commands.common import Compute, console, print_note, print_skipped, print_unread
from vggkeras.errors import InputError
from vggkeras.terminal import print_table, progress_bar

if TYPE_CHECKING:
    from vggkeras.data.splits import Data, Split
    from vggkeras.evaluation.paper import Errors
    from vggkeras.evaluation.statistics import Evaluation
    from vggkeras.runtimes import Predictor


FIGURES = files.Kind("of `vggkeras evaluate`", files.json_with("protocol", "correct", "against"))
JSON_HINT = (
    "--json FILE keeps these figures, recall by class, confusions and the images that flip between "
    "rows"
)


@dataclass(frozen=True)
class Evaluate:
    """Score models, in any runtime, on every image of a split, by the paper's protocols.

    Attributes:
        model: Run folders, .keras, .onnx or .tflite files, SavedModel folders, or published files,
            hf:USER/NAME[@REV][:FILE]. Each is a row, compared with the first.
        data: digits, tfds:NAME[/CONFIG], hf:NAME[:CONFIG], a .csv or .parquet list, or a folder: of
            class folders, or with train/, val/ or test/, each of class folders.
        split: One or more, or all; val and valid mean validation, and of TensorFlow Datasets a part
            is written as there: train[:10%]. By default validation, else test, else all. Of class
            folders alone, all images are scored, but of the data that a model was trained on, those
            that training held out.
        images: Score a sample of so many images, each class in proportion; 0 is all.
        protocol: One or more: center (the central crop), dense (the whole image), multicrop (50
            crops on a grid, mirrors included), both (the average of dense and multicrop). dense
            asks an exported file for its dense form beside it (`python -m export --dense`).
        scales: Smallest sides Q that images are rescaled to, px; each is shown alone, and their
            posteriors averaged. By default the one the model was trained for.
        fuse: Also average the posteriors of all models.
        mirrors: Average the mirror's answer too, where the protocol is dense or multicrop (never
            for digits).
        json: Write the figures, per-class recall, confusions and every image that flips between two
            rows to this file.
        per_image: Write each row's answer on every image, with the probabilities of all classes, to
            this .csv, .jsonl or .parquet file.
        exif: Turn images upright by their EXIF data, if the model was trained on images that were.
        skip_unreadable: Go on without images that cannot be read, and say which.
    """

    boxes: ClassVar[bool] = False  # whether boxes are scored, not classes

    model: tuple[Path, ...]
    data: str
    compute: tyro.conf.OmitArgPrefixes[Compute]
    split: tuple[str, ...] = ()
    images: int = 0
    protocol: tuple[Literal["center", "dense", "multicrop", "both"], ...] = ("center",)
    scales: tuple[int, ...] = ()
    fuse: bool = False
    mirrors: bool = True
    json: Path | None = None
    per_image: Path | None = None
    exif: bool = True
    skip_unreadable: bool = False

    def run(self) -> int:
        """Evaluate, print the table and the notes, and write the JSON file."""
        from vggkeras.card import turns_upright
        from vggkeras.data.sources import as_trained, load_data
        from vggkeras.data.splits import stratified
        from vggkeras.evaluation import tables

        if not self.model:
            raise InputError("--model expects one model or more; received none.")
        if self.images < 0:
            raise InputError(f"--images must be 1 or more, or 0 for all; received {self.images}.")
        if self.json:
            files.check_file(self.json, FIGURES)
        if self.per_image:
            per_image.check(self.per_image)
        options = {"skip_unreadable": True, "boxes": self.boxes}
        # What is wrong with the data is told before a model is loaded, which may take long.
        data = load_data(self.data, **options, whole=True)
        data = as_trained(data, self.split, (), **options)
        split = self._split(data)
        if data.skipped and not self.skip_unreadable:
            raise _unreadable(data, split)
        predictors = self.compute.load(*self.model)
        cards = [predictor.card for predictor in predictors]
        data = as_trained(data, self.split, cards, **options)
        data = data.upright(turns_upright(cards, self.exif))
        split, skipped = self._split(data), list(data.skipped)
        of_all = f" of {split.count:,}, each class in proportion" if self.images else ""
        if self.images:
            split = stratified(split, self.images)
        start = time.monotonic()
        rows = self._rows(predictors, data, split, skipped)
        seconds = time.monotonic() - start
        errors = [self._paper(predictors, row) for row in rows]
        title = (
            f"{self.data}, {self._name(data)}: {rows[0].images:,} images{of_all}, "
            f"{len(data.class_names)} classes{self._setting()}; errors with Wilson 95% intervals"
        )
        print_table(tables.table(rows, errors, title), console)
        image_name = split.image_name
        notes = [
            *_models(predictors),
            f"{rows[0].images:,} images in {seconds:.1f} s; images/s are of each row's own crops "
            "and runs",
            *tables.cost_ratios(rows),
            *tables.flips(rows, image_name),
            *self._whole(data),
        ]
        if not self.json:
            notes.append(JSON_HINT)
        if self.per_image:
            notes.append(f"every image's answers: {self.per_image}")
        print_note("\n".join(dict.fromkeys(notes)))
        print_unread(data)
        print_skipped(skipped, self.json)
        if self.json:
            about = {"data": self.data, "split": self._name(data), "skipped": skipped}
            files.write_json(self.json, tables.records(rows, errors, image_name, about))
        return 0

    def _setting(self) -> str:
        """Return what the table's title says of how the images are scored."""
        return ""

    def _paper(self, predictors: Sequence[Predictor], row: Evaluation) -> Errors | None:
        from vggkeras.evaluation.paper import paper_errors

        return paper_errors(predictors, row)

    def _name(self, data: Data) -> str:
        return "+".join(self.split) or data.default_split

    def _split(self, data: Data) -> Split:
        return data.split(self._name(data))

    def _whole(self, data: Data) -> Iterator[str]:
        """Yield a warning where training may have seen the images."""
        if "all" in data.splits:
            yield (
                "nothing is held out of these images; if the model was trained on them, "
                "--split validation scores the images that training held out"
            )

    def _rows(
        self, predictors: Sequence[Predictor], data: Data, split: Split, skipped: list[str]
    ) -> list[Evaluation]:
        from vggkeras.evaluation.scoring import evaluate

        with self._pass(predictors, data, split, skipped) as options:
            mirrors = self.mirrors and data.mirrors
            return evaluate(predictors, split, data.class_names, **options, mirrors=mirrors)

    @contextmanager
    def _pass(
        self,
        predictors: Sequence[Predictor],
        data: Data,
        split: Split,
        skipped: list[str],
    ) -> Iterator[dict[str, Any]]:
        """Give the arguments of `scoring.evaluate` that any pass over the images has."""
        name, boxes = self._name(data), self.boxes
        with (
            per_image.writing(self.per_image, predictors, data, split, name, boxes) as sink,
            progress_bar(console) as bar,
        ):
            yield {
                "protocols": self.protocol,
                "scales": self.scales,
                "fuse": self.fuse,
                "skipped": skipped if self.skip_unreadable else None,
                "track": lambda items, total: bar.track(
                    items, total=total, description=f"evaluating on {split.name}"
                ),
                "sink": sink,
            }


def _unreadable(data: Data, split: Split) -> InputError:
    """Return the error that names all unreadable images, those that are cut short too."""
    from vggkeras.data import decoding, statistics

    cut_short = [
        split.image_name(index)
        for index, pixels in statistics.read_all(split)
        if isinstance(pixels, InputError)
    ]
    return decoding.unreadable([*data.skipped, *cut_short], data.spec)


def _models(predictors: Sequence[Predictor]) -> list[str]:
    """Return a line a model: its short name, its file, its runtime, and where it computes."""
    from vggkeras.evaluation.tables import short_names

    names = short_names([str(predictor.path) for predictor in predictors])
    return [
        f"{names[str(p.path)]}: {p.path} in {p.runtime} {p.version}, {p.provider}"
        + (f", threads: {p.threads}" if p.threads else "")
        for p in predictors
    ]
