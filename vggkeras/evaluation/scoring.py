"""TODO"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vggkeras.data import decoding
from vggkeras.data.splits import Split
from vggkeras.errors import InputError
from vggkeras.evaluation.protocols import GRID, WINDOW, Plan, check_classes, windows
from vggkeras.evaluation.statistics import Evaluation
from vggkeras.runtimes.predictor import Predictor


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
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> list[Evaluation]:
    """Score models on every labelled image of a split, in one pass: each image is read, and rescaled, once for all rows.

    Memory holds a window of images, and a few bytes an image of what was answered.

    Args:
        predictors: one or more.
        class_names: of the data; they must be the predictors', or as many where they carry none of their own.
        protocols: one or more of `PROTOCOLS`.
        scales: test scales Q, px; by default the one each model was trained for.
        mirrors: whether dense and multicrop see the mirror too (center never does).
        grid: crops a side of multicrop's grid.
        fuse: also the average of all models' posteriors.
        skipped: a list to put the names of images into that cannot be read; without it they are an error.
        track: wraps the iteration over images, with their number, for a progress bar.

    Returns:
        A row for each model (and for the fusion), protocol, and scale alone where there are several, then for all scales.

    Raises:
        InputError (a ValueError): classes that differ, unreadable images (counted and named), labels that are no class,
            no images, a scale below the input, a model without a dense form where one is needed.
    """
    models = [predictors] if isinstance(predictors, Predictor) else list(predictors)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    for model in models:
        check_classes(model, class_names)
    plan = Plan(models, names, scales, mirrors, grid)
    if fuse and len(models) < 2:
        raise InputError("To fuse, give two models or more.")
    if not split.count:
        raise InputError(f"{split.name} has no images to evaluate: choose another split.")
    rows = plan.rows(fuse)
    plan.warm_up()
    answers: list[list[tuple]] = [[] for _ in rows]
    seen: list[tuple[int, int]] = []
    unreadable: list[str] = []

    def prepare(index: int, encoded: bytes, label: int):
        try:
            image = decoding.decode(encoded, split.image_name(index))
        except InputError as error:
            return index, label, error
        return index, label, plan.rescaled(image)

    def readable() -> Iterator[tuple[int, int, dict[int, np.ndarray]]]:
        for index, label, images in track(
            decoding.in_threads(prepare, split.examples()), split.count
        ):
            if isinstance(images, InputError):
                unreadable.append(split.image_name(index))
            elif not 0 <= label < len(class_names):
                raise InputError(
                    f"{split.image_name(index)} is labelled {label}, and the model's {len(class_names)} classes are 0 to "
                    f"{len(class_names) - 1}: choose a split with labels that are the model's."
                )
            elif (
                skipped is not None or not unreadable
            ):  # what is lost already is only read on, and counted
                yield index, label, images

    for window in windows(readable(), WINDOW):
        indices, labels, images = zip(*window, strict=True)
        seen += zip(indices, labels, strict=True)
        parts = plan.posteriors(list(images))
        for row, answer in zip(rows, answers, strict=True):
            p = np.mean([parts[key] for key in row.keys], axis=0)
            best = np.argsort(-p, axis=1, kind="stable")[:, :5]
            hit = (best == np.array(labels)[:, None]).any(axis=1)
            answer.append((best[:, 0].astype(np.int32), p[np.arange(len(p)), best[:, 0]], hit))
    if unreadable and skipped is None:
        raise decoding.unreadable(unreadable, f"the {split.count} of {split.name}")
    if skipped is not None:
        skipped += unreadable
    if not seen:
        raise InputError(f"{split.name} has no image that can be read.")
    found, labelled = (np.array(column) for column in zip(*seen, strict=True))
    evaluations = []
    for row, answer in zip(rows, answers, strict=True):
        predictions, confidences, in5 = (
            np.concatenate(column) for column in zip(*answer, strict=True)
        )
        chosen = [models[i] for i in row.models]
        evaluations.append(
            Evaluation(
                tuple(str(model.path) for model in chosen),
                " + ".join(dict.fromkeys(f"{model.runtime} {model.version}" for model in chosen)),
                " + ".join(dict.fromkeys(model.provider for model in chosen)),
                row.protocol,
                row.scales,
                list(class_names),
                found.astype(np.int64),
                labelled.astype(np.int32),
                predictions,
                confidences,
                in5,
                sum(plan.seconds[key] for key in row.keys),
            )
        )
    return evaluations
