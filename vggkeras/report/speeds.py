"""Read the report's speeds from the JSON of `python -m export.benchmark --json`: bars and rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.errors import InputError
from vggkeras.evaluation.tables import short_names
from vggkeras.report.figures import INK, VALIDATION, new_figure, svg


@dataclass(frozen=True)
class SpeedRow:
    """One file's row; a ratio is of the first file's figure."""

    file: str
    precision: str
    runtime: str
    queries: int
    p50_ms: float  # latency of one image
    p90_ms: float
    p99_ms: float
    latency_ratio: str
    images_per_second: float  # offline
    rate_ratio: str
    cold_start_s: float
    peak_memory_mib: float
    bytes: float


@dataclass(frozen=True)
class Speed:
    """A benchmark of several files."""

    settings: str
    rows: list[SpeedRow]
    latency: str  # SVG
    rate: str  # SVG


def read_benchmark(path: Path, number: int) -> Speed:
    """Return the bars and rows of a benchmark's JSON file.

    Args:
        path: the file.
        number: different for each benchmark of the page.

    Raises:
        InputError (a ValueError): no such file; not a benchmark's.
    """
    expected = "expected the JSON that `python -m export.benchmark --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No benchmark at {path}: {expected}.")
    try:
        benchmark = json.loads(path.read_text(encoding="utf-8"))
        settings, records = _settings(benchmark["settings"]), benchmark["rows"]
        names = short_names([record["file"] for record in records])
        rows = [
            _row(record, names[record["file"]], is_first=i == 0) for i, record in enumerate(records)
        ]
        if not rows:
            raise ValueError("no row")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no benchmark ({type(error).__name__}: {error}): {expected}."
        ) from error
    p50, tails = [row.p50_ms for row in rows], [[row.p90_ms, row.p99_ms] for row in rows]
    rates = [row.images_per_second for row in rows]
    return Speed(
        settings=f"{path.name}: {settings}",
        rows=rows,
        latency=_bars(rows, p50, tails, "ms", f"latency{number}", "Latency by file"),
        rate=_bars(rows, rates, [], "images/s", f"rate{number}", "Images a second by file"),
    )


def _settings(settings: Mapping[str, Any]) -> str:
    """Return how the benchmark was run, in words."""
    gpu = f", {settings['gpu']}" if settings["gpu"] else ""
    how = f"rounds in turn: {settings['rounds']:d}"
    return (
        f"{settings['processor']}, {settings['cores']} cores{gpu}; LoadGen {settings['loadgen']}, "
        f"{'the smallest lengths of MLPerf' if settings['official'] else how}; "
        f"offline in batches of {settings['batch']}"
    )


def _row(record: Mapping[str, Any], file: str, *, is_first: bool) -> SpeedRow:
    single, offline = record["single_stream"], record["offline"]
    figures = {name: float(single[name]) for name in ("p50_ms", "p90_ms", "p99_ms")}
    figures["images_per_second"] = float(offline["images_per_second"])
    figures |= {name: float(record[name]) for name in ("cold_start_s", "peak_memory_mib", "bytes")}
    if not all(math.isfinite(value) and value > 0 for value in figures.values()):
        raise ValueError(f"a figure of {record['file']} is not a number above 0")
    threads = record["threads"]
    threads = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
    return SpeedRow(
        file=file,
        precision=str(record["precision"]),
        runtime=f"{record['runtime']} {record['version']}, {record['provider']}{threads}",
        queries=int(single["queries"]),
        latency_ratio=_ratio(single, is_first),
        rate_ratio=_ratio(offline, is_first),
        **figures,
    )


def _ratio(part: Mapping[str, Any], is_first: bool) -> str:
    """Return the median of the rounds' ratios, with the smallest and the largest of several."""
    low, high = part["ratio_range"]
    spread = f" [{low:.2f}, {high:.2f}]" if len(part["rounds"]) > 1 and not is_first else ""
    return f"{part['ratio']:.2f}{spread}"


def _bars(
    rows: Sequence[SpeedRow],
    values: Sequence[float],
    ticks: Sequence[Sequence[float]],
    unit: str,
    name: str,
    label: str,
) -> str:
    """Draw a horizontal bar a row, its name above it and ticks on a line from the bar's end."""
    figure, axes = new_figure(height=0.7 + 0.55 * len(rows))
    heights = np.arange(len(rows))
    axes.barh(heights, values, 0.36, color=VALIDATION, alpha=0.6)
    for y, row, value, ends in zip_longest(heights, rows, values, ticks):
        precision = "" if row.precision == "float32" else f", {row.precision}"
        number = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
        text = f"{row.file}{precision}: {number}"
        axes.text(0, y - 0.26, text, va="bottom", color=INK, parse_math=False)
        if ends:
            axes.plot([value, ends[-1]], [y, y], color=INK, linewidth=0.8)
            axes.plot(ends, [y] * len(ends), "|", color=INK, markersize=9)
    axes.set_ylim(len(rows) - 0.6, -0.85)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    return svg(figure, name, label)
