"""TODO"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.errors import InputError
from vggkeras.evaluation import tables
from vggkeras.report.figures import INK, VALIDATION, new_figure, svg


def speed(path: Path, number: int) -> dict[str, Any]:
    """Bars as SVG and rows, from the JSON of `python -m export.benchmark --json`; `number` keeps apart what is in a page."""
    expected = "expected the JSON that `python -m export.benchmark --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No benchmark at {path}: {expected}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = found["settings"], found["rows"]
        short = tables.short_names([row["file"] for row in rows])
        shown: list[dict[str, Any]] = []
        for row in rows:
            single, offline = row["single_stream"], row["offline"]
            figures = {name: float(single[name]) for name in ("p50_ms", "p90_ms", "p99_ms")}
            figures |= {"images_per_second": float(offline["images_per_second"])}
            figures |= {
                name: float(row[name]) for name in ("cold_start_s", "peak_memory_mib", "bytes")
            }
            if not all(math.isfinite(value) and value > 0 for value in figures.values()):
                raise ValueError(f"a figure of {row['file']} is not a number above 0")
            threads = (
                f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
            )
            shown.append(
                {
                    "file": short[row["file"]],
                    "precision": str(row["precision"]),
                    "runtime": f"{row['runtime']} {row['version']}, {row['provider']}{threads}",
                    "queries": int(single["queries"]),
                    **{
                        f"{name}_ratio": _ratio(part, not shown)
                        for name, part in (("latency", single), ("rate", offline))
                    },
                    **figures,
                }
            )
        if not shown:
            raise ValueError("no row")
        how = (
            "the smallest lengths of MLPerf"
            if settings["official"]
            else f"rounds in turn: {settings['rounds']:d}"
        )
        gpu = f", {settings['gpu']}" if settings["gpu"] else ""
        told = (
            f"{path.name}: {settings['processor']}, {settings['cores']} cores{gpu}; LoadGen {settings['loadgen']}, {how}; "
            f"offline in batches of {settings['batch']}"
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no benchmark ({type(error).__name__}: {error}): {expected}."
        ) from error
    return {
        "told": told,
        "rows": shown,
        "latency": _bars(
            shown, "p50_ms", ("p90_ms", "p99_ms"), "ms", f"latency{number}", "Latency by file"
        ),
        "rate": _bars(
            shown, "images_per_second", (), "images/s", f"rate{number}", "Images a second by file"
        ),
    }


def _ratio(part: dict[str, Any], first: bool) -> str:
    """The median of the rounds' ratios, and the smallest and the largest where there is more than one round."""
    low, high = part["ratio_range"]
    spread = f" [{low:.2f}, {high:.2f}]" if len(part["rounds"]) > 1 and not first else ""
    return f"{part['ratio']:.2f}{spread}"


def _bars(
    rows: list[dict[str, Any]], value: str, marks: Sequence[str], unit: str, name: str, told: str
) -> str:
    """A horizontal bar a row, its name above it and its value after it; marks are ticks on a line from the bar's end."""
    figure, axes = new_figure(height=0.7 + 0.55 * len(rows))
    places = np.arange(len(rows))
    values = [row[value] for row in rows]
    axes.barh(places, values, 0.36, color=VALIDATION, alpha=0.6)
    for place, row in zip(places, rows, strict=True):
        label = row["file"] + ("" if row["precision"] == "float32" else f", {row['precision']}")
        number = f"{row[value]:.3g}" if row[value] < 1000 else f"{row[value]:.0f}"
        axes.text(0, place - 0.26, f"{label}: {number}", va="bottom", color=INK, parse_math=False)
        ends = [row[mark] for mark in marks]
        if ends:
            axes.plot([row[value], ends[-1]], [place, place], color=INK, linewidth=0.8)
            axes.plot(ends, [place] * len(ends), "|", color=INK, markersize=9)
    axes.set_ylim(len(rows) - 0.6, -0.85)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    return svg(figure, name, told)
