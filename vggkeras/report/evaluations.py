"""Read the report's error table from the JSON of `python -m vggkeras evaluate --json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkeras.errors import InputError
from vggkeras.evaluation.tables import short_names, with_interval


@dataclass(frozen=True)
class ErrorRow:
    """One row of the error table, as shown."""

    model: str
    runtime: str
    provider: str
    protocol: str
    scales: str
    top1: str  # error with its interval, %
    top5: str
    paper: str | None  # the paper's errors, %
    images: int
    ece: float | None  # expected calibration error; None of boxes
    # Against the first row of its group; None in that row:
    gained: int | None
    lost: int | None
    p: str | None


@dataclass(frozen=True)
class ErrorGroup:
    """Rows that are compared with the first of them."""

    title: str
    rows: list[ErrorRow]


def read_evaluation(path: Path) -> ErrorGroup:
    """Return the rows of an evaluation's JSON file.

    Raises:
        InputError (a ValueError): no such file; not an evaluation's.
    """
    expected = "expected the JSON that `python -m vggkeras evaluate --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No evaluation at {path}: {expected}.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(records, list) or not records:
            raise ValueError("not a list of rows")
        if any(not 0 <= row["correct"] <= row["correct5"] <= row["images"] for row in records):
            raise ValueError("a row has more right answers than images")
        title = f"{path.name}: {records[0]['data']}, {records[0]['split']}"
        return error_group(title, records)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no evaluation ({type(error).__name__}: {error}): {expected}."
        ) from error


def error_group(title: str, records: Sequence[Mapping[str, Any]]) -> ErrorGroup:
    """Return rows from the JSON that `evaluation.tables.records` makes."""
    paths = [path for record in records for path in record["model"].split(" + ")]
    names = short_names(paths)
    first, *others = records
    return ErrorGroup(
        title, [_row(first, names, None), *(_row(r, names, _against_first(r)) for r in others)]
    )


def _against_first(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((against for against in record["against"] if against["row"] == 0), None)


def _row(
    record: Mapping[str, Any], names: Mapping[str, str], against: Mapping[str, Any] | None
) -> ErrorRow:
    images, models = int(record["images"]), record["model"].split(" + ")
    paper = [record["paper_top1_error"], record["paper_top5_error"]]
    version = f" {record['version']}" if len(models) == 1 else ""
    top5 = with_interval(images - int(record["correct5"]), images)
    return ErrorRow(
        model=" + ".join(names[path] for path in models),
        runtime=f"{record['runtime']}{version}",
        provider=str(record["provider"]),
        protocol=str(record["protocol"]),
        scales=" ".join(f"{side:d}" for side in record["scales"]),
        top1=with_interval(images - int(record["correct"]), images),
        top5=top5 if len(record["recall"]) > 5 else "-",
        paper=None if None in paper else " / ".join(f"{100 * error:.1f}" for error in paper),
        images=images,
        ece=record.get("calibration_error"),
        gained=len(against["gained"]) if against else None,
        lost=len(against["lost"]) if against else None,
        p=f"{against['mcnemar_p']:.2g}" if against else None,
    )
