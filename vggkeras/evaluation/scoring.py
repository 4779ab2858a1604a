"""Score models on the labeled images of a split, in one pass (sections 3.2 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vggkeras.data.reading import Example, Track, readable_images, untracked
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation.checks import check_classes
from vggkeras.evaluation.protocols import GRID, WINDOW, Plan, Row, as_list, windows
from vggkeras.evaluation.statistics import Evaluation
from vggkeras.runtimes.predictor import Predictor


class Answers(NamedTuple):
    """A row's answers on some images; the arrays are `Evaluation`'s."""

    indices: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    in5: np.ndarray


Sink = Callable[[Row, Answers, np.ndarray], None]  # (row, answers, posteriors [n, classes])


def evaluate(
    predictors: Predictor | Sequence[Predictor],
    split: Split,
    class_names: Sequence[str],
    protocols: str | Sequence[str] = "center",
    scales: Sequence[int] | None = None,
    *,
    mirrors: bool = True,
    grid: int = GRID,
    fuse: bool = False,
    skipped: list[str] | None = None,
    track: Track = untracked,
    sink: Sink | None = None,
) -> list[Evaluation]:
    """Score models on every image of a split; each is read, and rescaled, once for all rows.

    Memory holds a window of images, and a few bytes of answers an image.

    Args:
        predictors: one or more.
        split: labeled images.
        class_names: of the data; the predictors must have the same, or as many and no names.
        protocols: one or more of `PROTOCOLS`.
        scales: test scales Q, px; by default the one each model was trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.
        fuse: also score the average of all models' posteriors.
        skipped: a list to append the names of unreadable images to; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.
        sink: called with each row's answers on a window of images, to keep more of them.

    Returns:
        A row for each model (and the fusion), protocol and scale, then for all scales together.

    Raises:
        InputError (a ValueError): classes that differ, unreadable images, labels that are not a
            class, no images, a scale below the input, a model without a needed dense form.
    """
    models = as_list(predictors)
    for model in models:
        check_classes(model, class_names)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    plan = Plan(models, names, scales, mirrors, grid)
    if fuse and len(models) < 2:
        raise InputError("To fuse, give two models or more.")
    if not split.count:
        raise InputError(f"{split.name} has no images to evaluate: choose another split.")
    rows = plan.rows(fuse)
    plan.warm_up()
    images = readable_images({split.name: split}, plan.shown, split.name, skipped, track)
    examples = labeled(images, split, len(class_names))
    answers = _scored(plan, rows, examples, sink)
    if not answers[0]:
        raise InputError(f"{split.name} has no image that can be read.")
    return [
        _evaluation(plan, row, class_names, parts) for row, parts in zip(rows, answers, strict=True)
    ]


def _scored(
    plan: Plan, rows: Sequence[Row], examples: Iterator[Example], sink: Sink | None
) -> list[list[Answers]]:
    """Return the answers of each row, in parts of a window of images."""
    answers: list[list[Answers]] = [[] for _ in rows]
    for window in windows(examples, WINDOW):
        posteriors = plan.posteriors([example.image for example in window])
        indices = np.array([example.index for example in window], np.int64)
        labels = np.array([example.label for example in window], np.int32)
        for row, parts in zip(rows, answers, strict=True):
            p = row.average(posteriors)
            parts.append(_answers(p, indices, labels))
            if sink:
                sink(row, parts[-1], p)
    return answers


def labeled(images: Iterator[Example], split: Split, classes: int) -> Iterator[Example]:
    """Yield the images; raise InputError at a label that is not a class."""
    for example in images:
        if not 0 <= example.label < classes:
            raise InputError(
                f"{split.image_name(example.index)} is labeled {example.label}, and the model's "
                f"{classes} classes are 0 to {classes - 1}: choose a split with labels that are "
                "the model's."
            )
        yield example


def _answers(posteriors: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> Answers:
    best = np.argsort(-posteriors, axis=1, kind="stable")[:, :5]  # [n, 5]
    first = best[:, 0]
    confidences = posteriors[np.arange(len(posteriors)), first]
    in5 = (best == labels[:, None]).any(axis=1)
    return Answers(indices, labels, first.astype(np.int32), confidences, in5)


def _evaluation(
    plan: Plan, row: Row, class_names: Sequence[str], parts: list[Answers]
) -> Evaluation:
    answers = Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Evaluation(**described(plan, row, class_names), **answers._asdict())


def described(plan: Plan, row: Row, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what an `Evaluation` says of its models, protocol and cost."""
    models = [plan.models[m] for m in row.models]
    return {
        "models": tuple(str(model.path) for model in models),
        "runtime": " + ".join(
            dict.fromkeys(f"{model.runtime} {model.version}" for model in models)
        ),
        "provider": " + ".join(dict.fromkeys(model.provider for model in models)),
        "protocol": row.protocol,
        "scales": row.scales,
        "class_names": list(class_names),
        "seconds": sum(plan.seconds[view] for view in row.views),
    }
