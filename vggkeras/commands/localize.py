"""Score networks of boxes by the paper's protocols (Appendix A).

python -m vggkeras localize --model runs/boxes --classifier runs/classes --data photos
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from vggkeras.commands.evaluate import Evaluate

if TYPE_CHECKING:
    from vggkeras.data.splits import Data, Split
    from vggkeras.evaluation.paper import Errors
    from vggkeras.evaluation.statistics import Evaluation
    from vggkeras.runtimes import Predictor


@dataclass(frozen=True)
class Localize(Evaluate):
    """Score networks of boxes, in any runtime, on every image of a split with boxes.

    A box is right where it overlaps with a true one by more than half (intersection over union).
    `python -m vggkeras train --boxes scr` (or pcr) trains such networks.

    Attributes:
        model: Run folders, .keras, .onnx or .tflite files, SavedModel folders, of networks of
            boxes. Each is a row, compared with the first.
        data: A folder with boxes.csv or with Pascal VOC's .xml files, a .csv or .parquet list with
            xmin, ymin, xmax, ymax, or tfds:NAME of a data set with boxes.
        protocol: One or more: center (the central crop), dense (every place of the whole image
            votes for a box, and close boxes are merged), multicrop (25 crops on a grid vote).
        scales: Smallest sides Q that images are rescaled to, px; each is shown alone, and their
            boxes merged. By default the one the network was trained for.
        fuse: Also merge the boxes of all networks.
        classifier: A run's folder, or a file of a classifier, that names the class: then class and
            box must be right. Without it the class is given, as in the paper's first protocol.
            dense needs a run's.
        json: Write the figures and every image that flips between two rows to this file.
        per_image: Write each row's box of every image, px, to this .csv, .jsonl or .parquet file.
    """

    boxes: ClassVar[bool] = True

    protocol: tuple[Literal["center", "dense", "multicrop"], ...] = ("center",)  # type: ignore[assignment]
    classifier: Path | None = None
    mirrors: tyro.conf.Suppress[bool] = False

    def _setting(self) -> str:
        return f", classes by {self.classifier}" if self.classifier else ", the class given"

    def _paper(self, predictors: Sequence[Predictor], row: Evaluation) -> Errors | None:
        from vggkeras.evaluation.paper import paper_localization

        return paper_localization(predictors, row, class_given=self.classifier is None)

    def _rows(
        self, predictors: Sequence[Predictor], data: Data, split: Split, skipped: list[str]
    ) -> list[Evaluation]:
        from vggkeras.localization.evaluation import evaluate_boxes

        classifier = self.compute.load(self.classifier)[0] if self.classifier else None
        with self._pass(predictors, data, split, skipped) as options:
            rows = evaluate_boxes(
                predictors, split, data.class_names, **options, classifier=classifier
            )
        return [*rows]
