"""TODO"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vggkeras.evaluation.statistics import Comparison, Evaluation, wilson


def table(
    rows: Sequence[Evaluation], paper: Sequence[tuple[float, float] | None], title: str
) -> Table:
    """Rows for people; each is compared with the first."""
    found = Table(title=title)
    several, known = len(rows) > 1, any(paper)
    short = short_names([path for row in rows for path in row.models])
    columns = [
        "",
        "model",
        "protocol",
        "Q",
        "top-1 error, %",
        "top-5 error, %",
        "correct",
        "ECE",
        "images/s",
    ]
    for column in [*columns, *["the paper's"] * known, *["gained", "lost", "p"] * several]:
        text = column in ("model", "protocol", "Q")
        found.add_column(
            column, justify="left" if text else "right", overflow="fold", no_wrap=column != "model"
        )
    for number, (row, theirs) in enumerate(zip(rows, paper, strict=True), start=1):
        cells = [
            str(number),
            " + ".join(short[path] for path in row.models),
            row.protocol,
            " ".join(map(str, row.scales)),
            with_interval(row.images - row.correct, row.images),
            with_interval(row.images - row.correct5, row.images)
            if len(row.class_names) > 5
            else "-",
            f"{row.correct:,}",
            f"{row.calibration_error():.3f}",
            f"{row.images / row.seconds:.0f}"
            if row.images > 10 * row.seconds
            else f"{row.images / row.seconds:.2f}",
        ]
        if known:
            cells.append(f"{theirs[0]} / {theirs[1]}" if theirs else "")
        if several:
            against = Comparison.of(rows[0], row)
            gained, lost = len(against.gained), len(against.lost)
            cells += [""] * 3 if number == 1 else [f"+{gained}", f"-{lost}", f"{against.p:.2g}"]
        last = number == len(rows) or rows[number].models != row.models
        found.add_row(*cells, end_section=last)
    if several:
        found.caption = "gained, lost: images that this row alone has right, or row 1 alone; p: exact McNemar test"
    return found


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The fewest last parts of each path that tell it from the others; of a run's model.keras, the run."""
    parts = {path: Path(path).parts for path in paths}
    parts = {
        path: p[:-1] if p[-1] == "model.keras" and len(p) > 1 else p for path, p in parts.items()
    }
    for count in range(1, max(len(p) for p in parts.values()) + 1):
        short = {path: "/".join(p[-count:]) for path, p in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {path: path for path in paths}


def with_interval(errors: int, images: int) -> str:
    """An error rate with Wilson's 95% interval, %, for people: 19.46 [18.2, 20.7]."""
    low, high = wilson(errors, images)
    return f"{100 * errors / images:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def cost_ratios(rows: Sequence[Evaluation]) -> list[str]:
    """What dense costs beside multicrop over all scales, for each model that went through both."""
    lines = []
    for dense in rows:
        for multicrop in rows:
            several = max(len(row.scales) for row in rows if row.models == dense.models)
            alike = (dense.models, dense.scales) == (multicrop.models, multicrop.scales)
            if alike and (dense.protocol, multicrop.protocol, len(dense.scales)) == (
                "dense",
                "multicrop",
                several,
            ):
                lines.append(
                    f"cost of dense : multicrop = {dense.seconds / multicrop.seconds:.3f} ({dense.seconds:.1f} s, "
                    f"{multicrop.seconds:.1f} s; {dense.runtime}, Q {' '.join(map(str, dense.scales))})"
                )
    return lines


def flips(rows: Sequence[Evaluation], name: Callable[[int], str], most: int = 10) -> list[str]:
    """The images that flip between the first row and each other one, where they are few."""
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        against = Comparison.of(rows[0], row)
        if 0 < len(against.gained) + len(against.lost) <= most:
            told = [
                f"{what} {', '.join(map(name, i))}"
                for what, i in (("gained", against.gained), ("lost", against.lost))
                if i
            ]
            lines.append(f"row {number} " + "; ".join(told))
    return lines


def records(
    rows: Sequence[Evaluation],
    paper: Sequence[tuple[float, float] | None],
    name: Callable[[int], str],
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows as JSON: an object a row; each is compared with all before it ("against"), so every pair is there once."""
    found = []
    for number, row in enumerate(rows):
        matrix = row.confusion_matrix()
        against = []
        for other, before in enumerate(rows[:number]):
            comparison = Comparison.of(before, row)
            against.append(
                {
                    "row": other,
                    "gained": [name(i) for i in comparison.gained],
                    "lost": [name(i) for i in comparison.lost],
                    "mcnemar_p": comparison.p,
                }
            )
        found.append(
            {
                "model": " + ".join(row.models),
                "runtime": row.runtime.split(" ")[0] if len(row.models) == 1 else row.runtime,
                "version": row.runtime.split(" ", 1)[1] if len(row.models) == 1 else row.runtime,
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
                "paper_top1_error": theirs[0] / 100 if (theirs := paper[number]) else None,
                "paper_top5_error": theirs[1] / 100 if theirs else None,
                "calibration_error": row.calibration_error(),
                "recall": {
                    label: None if np.isnan(share) else float(share)
                    for label, share in zip(row.class_names, row.recalls(), strict=True)
                },
                "confusions": [  # [label, prediction, images], none left out
                    [row.class_names[i], row.class_names[j], int(matrix[i, j])]
                    for i, j in np.argwhere(matrix)
                ],
                "seconds": row.seconds,
                "against": against,
            }
        )
    return found
