"""Write a run or an export as one page, report.html, which needs no network and no script.

`report` gives the template report.html.jinja its values, in the order in which the page shows them.
To add one: return it from a function (an SVG from figures.py, a dataclass from tables.py), name it
in `report`, or in `Scored` if it is of the validation images, and show it in the template.

python -m vggkeras report runs/latest
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from vggkeras import files
from vggkeras.data.splits import Data, Split
from vggkeras.departures import command
from vggkeras.evaluation import paper, scoring, tables
from vggkeras.evaluation.statistics import Evaluation, wilson
from vggkeras.localization.evaluation import evaluate_boxes
from vggkeras.pages import render
from vggkeras.report.boxes import Boxed, boxed
from vggkeras.report.evaluations import ErrorGroup, error_group, read_evaluation
from vggkeras.report.figures import curves, reliability
from vggkeras.report.grad_cam import Looks, explain
from vggkeras.report.header import page_title, run_facts
from vggkeras.report.pictures import Answer, Answers, kernels
from vggkeras.report.sources import (
    ReportSource,
    load_evaluation_data,
    load_models,
    read_source,
)
from vggkeras.report.speeds import read_benchmark
from vggkeras.report.tables import (
    Confusions,
    Recalls,
    artifacts,
    confusions,
    recalls,
)
from vggkeras.terminal import load_tensorflow, plain, progress_bar

TEMPLATE = Path(__file__).with_name("report.html.jinja")
REPORT = files.Kind("a report", files.page_of(" report"))
MISTAKES = 24  # most confident ones shown
EXPLAINED = 4  # right answers, and as many wrong ones, that Grad-CAM explains


def report(
    folder: str | os.PathLike = "runs/latest",
    data: str | Data | None = None,
    evaluations: Sequence[str | os.PathLike] = (),
    benchmarks: Sequence[str | os.PathLike] = (),
    out: str | os.PathLike | None = None,
    console: Console | None = None,
    *,
    skip_unreadable: bool = False,
) -> Path:
    """Write a run or an export as one self-contained HTML page, and return the page's path.

    A run's model is evaluated on the validation split by the central crop and densely, at its own
    scale; an export's files by the central crop. A run without a model yet has its curves alone,
    and needs no data.

    Args:
        folder: of a run (run.json) or of an export (certificate.json).
        data: whose validation split to evaluate on; by default what the model was trained on.
        evaluations: files that `python -m vggkeras evaluate --json` wrote, shown as more rows.
        benchmarks: files that `python -m export.benchmark --json` wrote, shown as bars and rows.
        out: the page; by default report.html in the folder.
        console: where to print progress and the path.
        skip_unreadable: go on without images that cannot be read, as a run's recipe may say too.

    Raises:
        InputError (a ValueError): no such folder; neither run.json nor certificate.json; a damaged
            file; data that are not there; a run on another backend than TensorFlow (Grad-CAM).
        OSError: the page cannot be written.
    """
    console, folder = plain(console), Path(folder)
    page = Path(out) if out else folder / "report.html"
    source = read_source(folder)
    groups = [read_evaluation(Path(path)) for path in evaluations]
    speeds = [read_benchmark(Path(path), number) for number, path in enumerate(benchmarks)]
    files.check_file(page, REPORT)
    if recipe := source.card.recipe:
        skip_unreadable |= recipe.skip_unreadable
    source, images = _load(source, data, console, skip_unreadable)
    found = _found(source, images, console, skip_unreadable) if images else None
    text = render(
        TEMPLATE,
        source=source,
        title=page_title(source.card, images),
        facts=run_facts(source),
        command=command(source.card.recipe) if source.card.recipe else None,
        curves=curves(source),
        groups=[found.errors, *groups] if found else groups,
        scored=found if isinstance(found, Scored) else None,  # classes, confidence, mistakes …
        boxed=found if isinstance(found, Boxed) else None,
        kernels=kernels(source.network) if source.network else None,
        artifacts=artifacts(source),
        speeds=speeds,
        wilson=wilson,
        written=datetime.datetime.now(),
    )
    files.write_text(page, text)
    console.print(f"report: {page}", soft_wrap=True)
    return page


@dataclass(frozen=True)
class Scored:
    """What the page shows of the validation images."""

    evaluation: Evaluation  # of the first model, by the central crop
    errors: ErrorGroup  # of all models
    skipped: list[str]  # names of unreadable images
    confusions: Confusions
    recalls: Recalls
    reliability: str  # SVG
    mistakes: list[Answer]  # the most confident ones
    mistakes_in_all: int
    looks: Looks | None  # of a Keras model


def _load(
    source: ReportSource, data: str | Data | None, console: Console, skip_unreadable: bool
) -> tuple[ReportSource, Data | None]:
    """Load a source's models and, where there are any, the data to evaluate them on."""
    if source.models:
        load_tensorflow(console, *source.models)
    with console.status(f"loading {source.folder}"):
        source = load_models(source)
        images = load_evaluation_data(source, data, skip_unreadable) if source.predictors else None
    return source, images


def _found(
    source: ReportSource, data: Data, console: Console, skip_unreadable: bool
) -> Scored | Boxed:
    """Evaluate a source's models, of classes or of boxes, on the validation images."""
    score = _score_boxes if source.card.boxes else _score
    return score(source, data, console, skip_unreadable)


def _score_boxes(
    source: ReportSource, data: Data, console: Console, skip_unreadable: bool
) -> Boxed:
    """Locate what the validation images show by the central crop, the class given."""
    split, skipped = data.split("validation"), list(data.skipped)
    with progress_bar(console) as bar:
        rows = evaluate_boxes(
            source.predictors,
            split,
            data.class_names,
            skipped=skipped if skip_unreadable else None,
            track=lambda items, total: bar.track(
                items, total=total, description=f"locating on {split.name}"
            ),
        )
    first = rows[0]
    counts = f"{first.correct:,} of {first.images:,} images of {split.name} are localized"
    console.print(counts, highlight=False)
    name = _image_names(split, data)
    return boxed(rows, source.predictors, split, name, data.spec, skipped)


def _image_names(split: Split, data: Data) -> Callable[[int], str]:
    """Return what the page calls an image, by its index."""
    folder = data.spec.removeprefix("tfds:") + "/"
    return lambda index: split.image_name(index).removeprefix(folder)


def _score(source: ReportSource, data: Data, console: Console, skip_unreadable: bool) -> Scored:
    """Evaluate a source's models on the validation images."""
    split, skipped = data.split("validation"), list(data.skipped)
    with progress_bar(console) as bar:
        rows = scoring.evaluate(
            source.predictors,
            split,
            data.class_names,
            ("center", "dense") if source.is_run else "center",
            mirrors=data.mirrors,
            skipped=skipped if skip_unreadable else None,
            track=lambda items, total: bar.track(
                items, total=total, description=f"evaluating on {split.name}"
            ),
        )
    first = rows[0]
    counts = f"{first.correct:,} of {first.images:,} images of {split.name} are right"
    console.print(counts, highlight=False)

    name = _image_names(split, data)
    papers = [paper.paper_errors(source.predictors, row) for row in rows]
    records = tables.records(rows, papers, name, {"data": data.spec, "split": split.name})
    by_confidence = np.argsort(-first.confidences, kind="stable")
    is_right = first.right[by_confidence]
    right, wrong = by_confidence[is_right], by_confidence[~is_right]
    mistakes, explained = wrong[:MISTAKES].tolist(), []
    if source.network:
        explained = [*_of_many_classes(first, right), *_of_many_classes(first, wrong)]
    answers = Answers.read(first, [*mistakes, *explained], split, name, source.predictors[0])
    return Scored(
        evaluation=first,
        errors=error_group("This report", records),
        skipped=skipped,
        confusions=confusions(first),
        recalls=recalls(first),
        reliability=reliability(first),
        mistakes=[answers.answer(position) for position in mistakes],
        mistakes_in_all=len(wrong),
        looks=explain(source.network, answers, explained) if source.network else None,
    )


def _of_many_classes(
    evaluation: Evaluation, positions: np.ndarray, count: int = EXPLAINED
) -> list[int]:
    """Return the first positions of as many classes as possible, then the first that are left."""
    _, firsts = np.unique(evaluation.labels[positions], return_index=True)
    firsts = np.sort(firsts)[:count]
    others = np.setdiff1d(np.arange(len(positions)), firsts)[: count - len(firsts)]
    return positions[np.sort(np.concatenate([firsts, others]))].tolist()
