"""Extract features (Appendix B), and use them: an SVM, nearest neighbours.

python -m vggkeras features --model runs/latest --data FOLDER --out features.npz --svm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.table import Table

from vggkeras import files
from vggkeras.commands.common import Compute, console, print_note, print_skipped, print_unread
from vggkeras.terminal import print_table, progress_bar

if TYPE_CHECKING:
    from vggkeras.data.splits import Data
    from vggkeras.features.extraction import Described
    from vggkeras.runtimes import Predictor


FIGURES = files.Kind(
    "of `vggkeras features`", files.json_with("dimensions", "aggregate", "seconds")
)


@dataclass(frozen=True)
class Features:
    """Extract a network's features (Appendix B), for a linear SVM and a page of neighbours.

    Attributes:
        model: A run's folder, a .keras, .onnx or .tflite file, a SavedModel folder, or a published
            file, hf:USER/NAME[@REV][:FILE]. An exported file needs its form for features beside it
            (`python -m export --features`).
        data: digits, tfds:NAME[/CONFIG], hf:NAME[:CONFIG], a .csv or .parquet list, or a folder: of
            class folders, or of images alone, which have no labels.
        out: The .npz or .parquet file to write.
        split: One or more; all there are when not given. A folder of images alone has images.
        scales: Smallest sides Q that images are rescaled to, px; by default the one the model was
            trained for.
        aggregate: What becomes of the features of several scales.
        mirrors: Average with the features of the mirror (never for digits).
        svm: Fit a linear SVM on the features, by Caltech-101's protocol, and print its mean class
            recall.
        train_images: Training images of each class for the SVM, drawn from all images.
        test_images: Test images of each class for the SVM, at most, drawn from those left.
        repeats: Random splits for the SVM.
        seed: Random seed for the SVM's splits.
        neighbours: Write a page of queries with their closest images to this .html file.
        json: Write what was done, and the figures of the SVM and the neighbours, to this file too.
        exif: Turn images upright by their EXIF data, if the model was trained on images that were.
        skip_unreadable: Go on without images that cannot be read, and say which.
    """

    model: Path
    data: str
    out: Path
    compute: tyro.conf.OmitArgPrefixes[Compute]
    split: tuple[Literal["train", "validation", "val", "valid", "test", "images"], ...] = ()
    scales: tuple[int, ...] = ()
    aggregate: Literal["average", "stack"] = "average"
    mirrors: bool = True
    svm: bool = False
    train_images: int = 30
    test_images: int = 50
    repeats: int = 3
    seed: int = 0
    neighbours: Path | None = None
    json: Path | None = None
    exif: bool = True
    skip_unreadable: bool = False

    def run(self) -> int:
        """Extract, write the features, print what they are, and use them as asked."""
        from vggkeras.card import turns_upright
        from vggkeras.data.sources import as_trained
        from vggkeras.features.extraction import write

        data = self._checked_data()
        (predictor,) = self.compute.load(self.model)
        if data.held_out:  # as much as this model's training held out
            skip = self.skip_unreadable
            data = as_trained(data, self.split, [predictor.card], skip_unreadable=skip)
        data = data.upright(turns_upright([predictor.card], self.exif))
        skipped = list(data.skipped)
        described = self._described(predictor, data, skipped)
        write(described, self.out)
        about = described.about
        print_note(
            f"{about.model} in {about.runtime} {about.version}, {about.provider}, on "
            f"{self.data}: {', '.join(about.splits)}"
        )
        print_table(self._table(described), console)
        print_unread(data)
        print_skipped(skipped, self.json)
        if described.flatters and (self.svm or self.neighbours):
            console.print(described.flatters, style="yellow", soft_wrap=True)
        record = {**about.to_json(), "seconds": described.seconds, "skipped": skipped}
        if self.svm:
            record["svm"] = self._fit_svm(described, data.class_names)
        if self.neighbours:
            record["neighbours"] = self._write_page(described, self.neighbours)
        elif not self.svm:
            svm = "--svm fits a linear SVM on them, " if data.class_names else ""
            console.print(
                f"{svm}--neighbours PAGE.html shows images with their closest ones",
                highlight=False,
            )
        if self.json:
            files.write_json(self.json, record)
        return 0

    def _checked_data(self) -> Data:
        """Return the data; fails before long work is done for files that cannot be written."""
        from vggkeras.features.extraction import check_out, load_images
        from vggkeras.features.neighbours import check_page
        from vggkeras.features.svm import check_split

        check_out(self.out)
        if self.neighbours:
            check_page(self.neighbours)
        if self.json:
            files.check_file(self.json, FIGURES)
        data = load_images(self.data, self.split, skip_unreadable=self.skip_unreadable)
        if self.svm:
            check_split(
                data, self.split, self.train_images, self.test_images, self.repeats, self.seed
            )
        return data

    def _described(self, predictor: Predictor, data: Data, skipped: list[str]) -> Described:
        from vggkeras.features.extraction import describe

        with progress_bar(console) as bar:
            return describe(
                predictor,
                data,
                self.split,
                self.scales,
                self.aggregate,
                mirrors=self.mirrors,
                skipped=skipped if self.skip_unreadable else None,
                track=lambda items, total: bar.track(items, total=total, description="features"),
            )

    def _table(self, described: Described) -> Table:
        about = described.about
        cells = {
            "images": f"{about.images:,}",
            "Q": " ".join(map(str, about.scales)),
            "aggregate": f"{self.aggregate}{', mirrors' if about.mirrors else ''}",
            "features": f"{about.dimensions:,}",
            "seconds": f"{described.seconds:.1f}",
            "images/s": f"{about.images / described.seconds:.1f}",
            "file": str(self.out),
        }
        table = Table()
        for column in cells:
            is_text = column in ("Q", "aggregate", "file")
            table.add_column(column, justify="left" if is_text else "right")
        table.add_row(*cells.values())
        return table

    def _fit_svm(self, described: Described, class_names: Sequence[str]) -> dict[str, Any]:
        """Fit an SVM, print its recall, and return it as JSON."""
        from vggkeras.features.svm import svm_recall, svm_record, svm_table

        flags = ("train_images", "test_images", "repeats", "seed")
        protocol = {name: getattr(self, name) for name in flags}
        with console.status("linear SVM"):
            recall = svm_recall(
                described.features, described.labels, **protocol, class_names=class_names
            )
        print_table(svm_table(recall, self.train_images, self.test_images), console)
        return {**protocol, **svm_record(recall, class_names)}

    def _write_page(self, described: Described, page: Path) -> dict[str, Any] | None:
        """Write the page of neighbours, and return how many are of the image's class, as JSON."""
        from vggkeras.features.neighbours import write_page

        with console.status("nearest neighbours"):
            same_class = write_page(described, page)
        print_note(f"neighbours: {page}" + (f"; {same_class}" if same_class else ""))
        return same_class.record() if same_class else None
