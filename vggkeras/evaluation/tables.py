"""Show the rows of an evaluation as a table for people, and write them as JSON (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vggkeras.evaluation.paper import paper_errors
from vggkeras.evaluation.statistics import Comparison, Evaluation, wilson
from vggkeras.evaluation.statistics import with_interval as with_interval
from vggkeras.runtimes.predictor import Predictor

# Beside a row: the paper's top-1 and top-5 error, %, or None.
PaperErrors = tuple[float | None, float | None] | None

CAPTION = (
    "gained, lost: images that this row alone has right, or row 1 alone; p: exact McNemar test"
)


@dataclass(frozen=True)
class Results:
    """The rows of one evaluation, with the models, data and images that they come from."""

    rows: Sequence[Evaluation]
    predictors: Sequence[Predictor]
    data: str  # as the user named it
    split: str
    image_name: Callable[[int], str]  # of an index of the rows
    seconds: float  # of the whole evaluation
    skipped: Sequence[str] = ()  # names of unreadable images

    @property
    def paper(self) -> list[PaperErrors]:
        """The paper's errors beside each row."""
        return [paper_errors(self.predictors, row) for row in self.rows]

    def table(self) -> Table:
        """Return the rows as a table; each is compared with the first."""
        first = self.rows[0]
        title = (
            f"{self.data}, {self.split}: {first.images:,} images, {len(first.class_names)} "
            "classes; errors with Wilson 95% intervals"
        )
        return table(self.rows, self.paper, title)

    def notes(self) -> list[str]:
        """Return the lines below the table: the models, costs, and images that flip where few."""
        return [
            *self._models(),
            f"{self.rows[0].images:,} images in {self.seconds:.1f} s; images/s are of each row's "
            "own crops and runs",
            *cost_ratios(self.rows),
            *flips(self.rows, self.image_name),
        ]

    def _models(self) -> list[str]:
        """Return a line a model: its short name, its path, and where it ran."""
        short = short_names([str(predictor.path) for predictor in self.predictors])
        return [
            f"{short[str(p.path)]}: {p.path} in {p.runtime} {p.version}, {p.provider}"
            + (f", threads: {p.threads}" if p.threads else "")
            for p in self.predictors
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """Return an object a row, as `evaluate --json` writes them."""
        about = {"data": self.data, "split": self.split, "skipped": list(self.skipped)}
        return records(self.rows, self.paper, self.image_name, about)


def table(rows: Sequence[Evaluation], paper: Sequence[PaperErrors], title: str) -> Table:
    """Return rows as a table; each is compared with the first."""
    several, has_paper = len(rows) > 1, any(paper)
    short = short_names([path for row in rows for path in row.models])
    columns = ["", "model", "protocol", "Q", "top-1 error, %", "top-5 error, %"]
    columns += [*rows[0].cells(), "correct", "images/s"]
    columns += ["the paper's"] * has_paper + ["gained", "lost", "p"] * several
    result = Table(title=title, caption=CAPTION if several else None)
    for column in columns:
        justify: Any = "left" if column in ("model", "protocol", "Q") else "right"
        result.add_column(column, justify=justify, overflow="fold", no_wrap=column != "model")
    for number, (row, errors) in enumerate(zip(rows, paper, strict=True), start=1):
        cells = [str(number), " + ".join(short[path] for path in row.models), *_cells(row)]
        if has_paper:
            cells.append(" / ".join("-" if e is None else f"{e}" for e in errors or ()))
        if several:
            cells += _comparison_cells(rows[0], row) if number > 1 else [""] * 3
        last_of_model = number == len(rows) or rows[number].models != row.models
        result.add_row(*cells, end_section=last_of_model)
    return result


def _cells(row: Evaluation) -> list[str]:
    """Return the cells of a row that need no other row, from protocol to images/s."""
    top5 = with_interval(row.images - row.correct5, row.images) if row.has_top5 else "-"
    speed = row.images / row.seconds
    return [
        row.protocol,
        " ".join(map(str, row.scales)),
        with_interval(row.images - row.correct, row.images),
        top5,
        *row.cells().values(),
        f"{row.correct:,}",
        f"{speed:.0f}" if speed > 10 else f"{speed:.2f}",
    ]


def _comparison_cells(first: Evaluation, row: Evaluation) -> list[str]:
    comparison = Comparison.of(first, row)
    gained, lost = len(comparison.gained), len(comparison.lost)
    return [f"+{gained}", f"-{lost}", f"{comparison.p:.2g}"]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the fewest last parts of each path that tell it from the others.

    A run's model.keras goes by the name of the run.
    """
    parts = {path: Path(path).parts for path in paths}
    for path, names in parts.items():
        if names[-1] == "model.keras" and len(names) > 1:
            parts[path] = names[:-1]
    for count in range(1, max(map(len, parts.values())) + 1):
        short = {path: "/".join(names[-count:]) for path, names in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {path: path for path in paths}


def cost_ratios(rows: Sequence[Evaluation]) -> list[str]:
    """Return the cost of dense over multicrop at all scales, a line a model that has both."""
    multicrop = {(row.models, row.scales): row for row in rows if row.protocol == "multicrop"}
    lines = []
    for dense in rows:
        other = multicrop.get((dense.models, dense.scales))
        scales = max(len(row.scales) for row in rows if row.models == dense.models)
        if dense.protocol == "dense" and other and len(dense.scales) == scales:
            lines.append(
                f"cost of dense : multicrop = {dense.seconds / other.seconds:.3f} "
                f"({dense.seconds:.1f} s, {other.seconds:.1f} s; {dense.runtime}, "
                f"Q {' '.join(map(str, dense.scales))})"
            )
    return lines


def flips(rows: Sequence[Evaluation], name: Callable[[int], str], most: int = 10) -> list[str]:
    """Name the images that flip between the first row and each other one, where they are few."""
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        comparison = Comparison.of(rows[0], row)
        changes = {"gained": comparison.gained, "lost": comparison.lost}
        if 0 < sum(map(len, changes.values())) <= most:
            texts = [f"{what} {', '.join(map(name, i))}" for what, i in changes.items() if i]
            lines.append(f"row {number} " + "; ".join(texts))
    return lines


def records(
    rows: Sequence[Evaluation],
    paper: Sequence[PaperErrors],
    name: Callable[[int], str],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return rows as JSON, an object a row, with `about` in each.

    Each row is compared with all before it ("against"), so that every pair is there once.
    """
    return [
        _record(row, errors, about) | {"against": _against(rows[:number], row, name)}
        for number, (row, errors) in enumerate(zip(rows, paper, strict=True))
    ]


def _record(row: Evaluation, paper: PaperErrors, about: Mapping[str, Any]) -> dict[str, Any]:
    runtime = version = row.runtime
    if len(row.models) == 1:
        runtime, version = row.runtime.split(" ", 1)
    matrix, (top1, top5) = row.confusion_matrix(), paper or (None, None)
    return {
        "model": " + ".join(row.models),
        "runtime": runtime,
        "version": version,
        "provider": row.provider,
        **about,
        "protocol": row.protocol,
        "scales": list(row.scales),
        "images": row.images,
        "correct": row.correct,
        "correct5": row.correct5,
        "top1_error": 1 - row.accuracy,
        "top1_error_interval": wilson(row.images - row.correct, row.images),
        "top5_error": 1 - row.accuracy5,
        "top5_error_interval": wilson(row.images - row.correct5, row.images),
        "paper_top1_error": top1 and top1 / 100,
        "paper_top5_error": top5 and top5 / 100,
        **row.figures(),
        "recall": {
            label: None if np.isnan(recall) else float(recall)
            for label, recall in zip(row.class_names, row.recalls(), strict=True)
        },
        "confusions": [  # [label, prediction, images], none left out
            [row.class_names[i], row.class_names[j], int(matrix[i, j])]
            for i, j in np.argwhere(matrix)
        ],
        "seconds": row.seconds,
    }


def _against(
    earlier: Sequence[Evaluation], row: Evaluation, name: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Compare a row with each of the rows before it."""
    comparisons = [Comparison.of(other, row) for other in earlier]
    return [
        {
            "row": number,
            "gained": [name(i) for i in comparison.gained],
            "lost": [name(i) for i in comparison.lost],
            "mcnemar_p": comparison.p,
        }
        for number, comparison in enumerate(comparisons)
    ]
