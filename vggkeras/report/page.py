"""A run's folder, or an export's, as one page: report.html, which needs no network and no script.

python -m vggkeras report runs/latest
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from vggkeras import files
from vggkeras.data.splits import Data
from vggkeras.evaluation import paper as paper_module
from vggkeras.evaluation import scoring, tables
from vggkeras.evaluation.statistics import Evaluation, wilson
from vggkeras.runtimes.predictor import Predictor
from vggkeras.terminal import load_tensorflow, progress_bar

if TYPE_CHECKING:
    import keras

from vggkeras.pages import rendered
from vggkeras.report.figures import curves, reliability
from vggkeras.report.pictures import LOOKED_AT, Pictures, answer_text, kernels, looked_at
from vggkeras.report.rows import error_rows
from vggkeras.report.sources import ReportSource, found_data, loaded, read_evaluation, read_source
from vggkeras.report.speeds import speed
from vggkeras.report.tables import artifacts, command, confusions, page_title, recalls, run_facts

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MISTAKES = 24  # most confident ones shown


def report(
    folder: str | os.PathLike = "runs/latest",
    data: str | None = None,
    evaluations: Sequence[str | os.PathLike] = (),
    benchmarks: Sequence[str | os.PathLike] = (),
    out: str | os.PathLike | None = None,
    console: Console | None = None,
    *,
    skip_unreadable: bool = False,
) -> Path:
    """Write a run or an export down as one self-contained HTML page.

    A run's model is evaluated on the validation split by the central crop and densely, at its own scale; an export's files
    by the central crop. A run without a model yet has its curves alone, and needs no data.

    Args:
        folder: of a run (run.json) or of an export (certificate.json).
        data: whose validation split to evaluate on; by default the data the model was trained on.
        evaluations: files that `python -m vggkeras evaluate --json` wrote, whose rows are shown too.
        benchmarks: files that `python -m export.benchmark --json` wrote, shown as bars and rows.
        out: the page; by default report.html in the folder.
        console: where to tell of it.
        skip_unreadable: go on without images that cannot be read; so does the report of a run that did.

    Returns:
        The page's path.

    Raises:
        InputError (a ValueError): no such folder; neither run.json nor certificate.json; a damaged file; data that are
            not there; for a Keras model, a backend other than TensorFlow, whose gradients Grad-CAM takes.
        OSError: the page cannot be written.
    """
    console, folder = console or Console(), Path(folder)
    source = read_source(folder)
    page = Path(out) if out else folder / "report.html"
    groups = [read_evaluation(Path(path)) for path in evaluations]
    speeds = [speed(Path(path), number) for number, path in enumerate(benchmarks)]
    files.check_file(page)
    recipe = source.card.recipe
    skip_unreadable |= recipe is not None and recipe.skip_unreadable

    if source.models:
        load_tensorflow(console, *source.models)
    values: dict[str, Any] = {
        "curves": curves(source),
        "drops": source.drops,
        "written": datetime.datetime.now(),
    }
    with console.status(f"loading {folder}"):
        source, predictors, network = loaded(source)
        found = found_data(source, data, skip_unreadable) if predictors else None
    if found:
        values |= _evaluated(source, found, predictors, network, console, skip_unreadable)
        groups = [{"title": "This report", "records": values["records"]}, *groups]
    values |= {
        "source": source,
        "title": page_title(source, found),
        "facts": run_facts(source, network),
        "command": command(source.card.recipe) if source.card.recipe else None,
        "groups": [error_rows(**group) for group in groups],
        "artifacts": artifacts(source),
        "speeds": speeds,
        "kernels": kernels(network) if network else None,
    }
    files.write_text(page, rendered(TEMPLATE, wilson=wilson, **values))
    console.print(f"report: {page}", soft_wrap=True)
    return page


def _evaluated(
    source: ReportSource,
    data: Data,
    predictors: list[Predictor],
    network: keras.Model | None,
    console: Console,
    skip_unreadable: bool,
) -> dict[str, Any]:
    """Everything of the page that the validation images are needed for."""
    split, skipped = data.split("validation"), list(data.skipped)
    with progress_bar(console) as bar:
        rows = scoring.evaluate(
            predictors,
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

    def name(index: int) -> str:
        return split.image_name(index).removeprefix(data.spec.removeprefix("tfds:") + "/")

    about = {"data": data.spec, "split": split.name}
    paper = [paper_module.paper_errors(predictors, row) for row in rows]
    certain = np.argsort(
        -first.confidences, kind="stable"
    )  # places in the row, the surest answer first
    wrong, right = certain[~first.right[certain]], certain[first.right[certain]]
    shown, explained = wrong[:MISTAKES], []
    if network is not None:
        explained = [
            *_of_many_classes(first, right, LOOKED_AT),
            *_of_many_classes(first, wrong, LOOKED_AT),
        ]
    console.print(
        f"{first.correct:,} of {first.images:,} images of {split.name} are right", highlight=False
    )
    pictures = Pictures(split, first.indices[[*shown, *explained]], predictors[0])
    return {
        "data": data,
        "split": split,
        "skipped": skipped,
        "first": first,
        "records": tables.records(rows, paper, name, about),
        "confusions": confusions(first),
        "recalls": recalls(first),
        "reliability": reliability(first),
        "mistakes": [answer_text(first, place, name, pictures) for place in shown],
        "mistakes_in_all": len(wrong),
        "looks": looked_at(network, first, explained, name, pictures)
        if network is not None
        else None,
    }


def _of_many_classes(row: Evaluation, places: np.ndarray, count: int) -> list[int]:
    """The first places of as many classes as can be, then the first that are left."""
    _, firsts = np.unique(row.labels[places], return_index=True)
    firsts = np.sort(firsts)[:count]
    others = np.setdiff1d(np.arange(len(places)), firsts)[: count - len(firsts)]
    return places[np.sort(np.concatenate([firsts, others]))].tolist()
