"""What is shown of an image, and what a model says of it: classes, or features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras import rows
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from vggkeras.runtimes import Predictor


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, most probable first, or why it could not be read."""

    image: Path | str
    classes: tuple[str, ...] = ()  # none where the model gives features
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    # The model's answer, in its order: float32 [classes], or [features].
    answer: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `predict --json` prints."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": p} for name, p in pairs]
        return {"image": str(self.image), "classes": classes}

    def to_row(self, top: int) -> rows.Row:
        """Return the row that `predict --out` writes."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        if not self.classes:
            return {"image": str(self.image), "features": self.answer}
        return {
            "image": str(self.image),
            "class": self.classes[0],
            "probability": self.probabilities[0],
            "classes": self.classes,
            "probabilities": self.probabilities if top else self.answer,
        }


def columns(predictor: Predictor, top: int) -> list[rows.Column]:
    """Return the columns of a file of predictions.

    All classes have the model's order; some have names. A model of features has those instead.
    """
    image, error = rows.Column("image"), rows.Column("error")
    if predictor.features:
        each = tuple(f"feature_{i}" for i in range(predictor.features))
        return [image, rows.Column("features", "number", each), error]
    first = [image, rows.Column("class"), rows.Column("probability", "number")]
    names = predictor.class_names
    if not top:
        return [*first, rows.probabilities(names), error]
    ranks = range(1, min(top, len(names)) + 1)
    classes = rows.Column("classes", "text", tuple(f"class_{rank}" for rank in ranks))
    each = tuple(f"probability_{rank}" for rank in ranks)
    return [*first, classes, rows.Column("probabilities", "number", each), error]


class Labeller:
    """A model, and what it is asked of images: their central crops, or features of them whole."""

    def __init__(
        self, predictor: Predictor, top: int = 5, *, exif: bool = True, fast: bool = False
    ) -> None:
        """Raise InputError for a model that takes no images.

        Args:
            predictor: gives probabilities, or features: then as `extract_features` by default.
            top: how many classes; 0 is all of them.
            exif: turn the images upright, as their EXIF data say.
            fast: decode large JPEGs at their `decoding.reduction`.
        """
        import numpy as np

        from vggkeras.evaluation.protocols import Plan
        from vggkeras.features.extraction import Extractor

        self.predictor, self.top, self.exif = predictor, top, exif
        blank = np.zeros((*predictor.input_shape[:2], 3), np.uint8)
        side = predictor.scale
        self._shown: Callable[[Any], Any]
        self._answers: Callable[[list[Any]], np.ndarray]
        if predictor.features:
            extractor = Extractor(predictor)
            self._shown, self._answers = extractor.rescaled, extractor.rows
            side = max(extractor.scales)
        else:
            plan = Plan([predictor], ["center"], None, mirrors=False, grid=1)
            (row,) = plan.rows(fuse=False)
            self._shown = plan.shown
            self._answers = lambda images: row.average(plan.posteriors(images))
        self._blank = self._shown(blank)
        self._side = side if fast else None

    def read(self, name: str, source: str | Path | bytes | None) -> Any:
        """Return what the model is shown of an image, or a text: why it cannot be read.

        Args:
            name: of the image.
            source: where its file is (a path or a URL), or its bytes.
        """
        from vggkeras.batch.storage import fetched
        from vggkeras.data.decoding import decoded

        try:
            if source is None:
                return "has no image: its row of the list is empty"
            return decoded(fetched(source), name, self._shown, exif=self.exif, side=self._side)
        except (InputError, OSError) as error:
            return str(error).removeprefix(f"{name} ").removeprefix(f"{name}: ")

    def label(self, window: Sequence[tuple[str | Path, Any]]) -> Iterator[Prediction]:
        """Yield what the model says of images that go through it together, in order.

        One that cannot be read takes its place in the batch too, black, so that the answers for the
        others have the same bits whatever happened to it.

        Args:
            window: the name of each, and what `read` gave.
        """
        import numpy as np

        shown = [self._blank if isinstance(image, str) else image for _, image in window]
        answers, names = self._answers(shown), self.predictor.class_names
        best: Iterable[list[int]] = itertools.repeat([])
        probable: Iterable[list[float]] = itertools.repeat([])
        if names:
            order = np.argsort(-answers, axis=1, kind="stable")[:, : self.top or None]
            best, probable = order.tolist(), np.take_along_axis(answers, order, axis=1).tolist()
        for (name, image), answer, i, p in zip(window, answers, best, probable, strict=False):
            if isinstance(image, str):
                yield Prediction(name, error=image)
            else:
                classes = tuple([names[k] for k in i])
                yield Prediction(name, classes, tuple(p), answer=answer)


def classify(
    predictor: Predictor,
    paths: Sequence[str | Path],
    top: int = 5,
    *,
    exif: bool = True,
    fast: bool = False,
) -> Iterator[Prediction]:
    """Yield the `top` most probable classes of each image file, by its central crop, in order.

    Files are decoded in threads ahead of the model. Memory holds a window of images. A file that
    cannot be read is a prediction with an error.

    Args:
        predictor: gives probabilities.
        paths: of image files.
        top: how many classes; 0 is all of them.
        exif: turn the images upright, as their EXIF data say.
        fast: decode large JPEGs at their `decoding.reduction`.

    Raises:
        InputError (a ValueError): a model that gives no probabilities or takes no images.
    """
    from vggkeras.data.decoding import in_threads
    from vggkeras.evaluation.protocols import WINDOW, windows
    from vggkeras.runtimes.predictor import check_probabilities

    check_probabilities(predictor)
    labeller = Labeller(predictor, top, exif=exif, fast=fast)
    images = in_threads(labeller.read, ((str(path), path) for path in paths))
    for window in windows(zip(paths, images, strict=True), WINDOW):
        yield from labeller.label(window)
