"""Write every answer of an evaluation to a file, a row per image and row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vggkeras import rows
from vggkeras.rows import Column

if TYPE_CHECKING:
    import numpy as np

    from vggkeras.data.splits import Data, Split
    from vggkeras.evaluation.protocols import Row
    from vggkeras.evaluation.scoring import Answers
    from vggkeras.localization.evaluation import Answers as BoxAnswers
    from vggkeras.runtimes import Predictor

PER_IMAGE = rows.kind(
    "a file of `vggkeras evaluate`", "image", "split", "label", "prediction", "confidence"
)


def check(path: Path) -> None:
    """Check that answers can be written to a path; raises InputError as `rows.check_out` does."""
    rows.check_out(path, PER_IMAGE)


@contextmanager
def writing(
    path: Path | None,
    predictors: Sequence[Predictor],
    data: Data,
    split: Split,
    name: str,
    boxes: bool = False,
) -> Iterator[Callable[..., None] | None]:
    """Give what an evaluation hands its answers to, or None where there is no path.

    The file takes its place when the block ends; if it fails, nothing is left.

    Args:
        path: of a .csv, .jsonl or .parquet file.
        predictors: that are evaluated.
        data: its classes name labels and predictions.
        split: what is evaluated.
        name: of the split.
        boxes: whether the answers are `localization.evaluation`'s, not `scoring`'s.

    Raises:
        InputError (a ValueError): as `rows.writing`.
    """
    if path is None:
        yield None
        return
    names, image_name = data.class_names, split.image_name
    about = {"data": data.spec, "class_names": names}
    with rows.writing(path, _columns(names, boxes), about) as write:

        def keep(
            row: Row, answers: Answers | BoxAnswers, posteriors: np.ndarray | None = None
        ) -> None:
            constant = {
                "split": name,
                "protocol": row.protocol,
                "scales": " ".join(map(str, row.scales)),
                "model": " + ".join(str(predictors[m].path) for m in row.models),
            }
            for i, index in enumerate(answers.indices):
                found = {
                    "image": image_name(int(index)),
                    "label": names[answers.labels[i]],
                    "prediction": names[answers.predictions[i]],
                    "confidence": float(answers.confidences[i]),
                }
                if posteriors is None:
                    of_boxes = cast("BoxAnswers", answers)
                    found |= {
                        "box": of_boxes.boxes[i],
                        "overlap": float(of_boxes.overlaps[i]),
                        "overlap_of_label": float(of_boxes.given_class[i]),
                    }
                else:
                    found["probabilities"] = posteriors[i]
                write(found | constant)

        yield keep


def _columns(class_names: Sequence[str], boxes: bool) -> list[Column]:
    box = [rows.BOX, Column("overlap", "number"), Column("overlap_of_label", "number")]
    return [
        *map(Column, ("image", "split", "label", "prediction")),
        Column("confidence", "number"),
        *(box if boxes else [rows.probabilities(class_names)]),
        *map(Column, ("protocol", "scales", "model")),
    ]
