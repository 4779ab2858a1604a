"""Print what `export.benchmark` measured: a row a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_benchmark(figures: dict[str, Any], console: Console) -> None:
    """Print what `benchmark` returned: a row a file, and below it what was measured how."""
    from rich.table import Table

    from vggkeras.evaluation import tables
    from vggkeras.terminal import print_table

    settings, rows = figures["settings"], figures["rows"]
    short = tables.short_names([row["file"] for row in rows])
    gpu = f", {settings['gpu']}" if settings["gpu"] else ""
    machine = f"{settings['processor']}, {settings['cores']} cores{gpu}"
    table = Table(title=f"{machine}; each x is of the first file's")
    table.add_column("file")
    table.add_column("runtime")
    scored = any("accuracy" in row for row in rows)
    if scored:
        table.add_column("top-1, % [95%]", justify="right")
    columns = ("p50, ms", "x", "p90", "p99", "images/s", "x", "cold start, s", "peak MiB", "bytes")
    for column in columns:
        table.add_column(column, justify="right")
    for number, row in enumerate(rows):
        table.add_row(*_cells(row, short[row["file"]], settings["interleaved"] and number > 0))
    print_table(table, console)
    lines = [_what(settings, rows), *_lengths(settings, rows, lambda row: short[row["file"]])]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


def _cells(row: dict[str, Any], name: str, with_range: bool) -> list[str]:
    """Return a file's row of the table."""
    from vggkeras.evaluation import tables

    single, offline = row["single_stream"], row["offline"]
    threads = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""

    scored = row.get("accuracy")
    accuracy = [tables.with_interval(scored["correct"], scored["images"])] if scored else []

    def ratio(part: dict[str, Any]) -> str:
        low, high = part["ratio_range"]
        return f"{part['ratio']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if with_range else "")

    return [
        name + ("" if row["precision"] == "float32" else f", {row['precision']}"),
        f"{row['runtime']} {row['version']}, {row['provider']}{threads}",
        *accuracy,
        f"{single['p50_ms']:.2f}",
        ratio(single),
        f"{single['p90_ms']:.2f}",
        f"{single['p99_ms']:.2f}",
        f"{offline['images_per_second']:.1f}",
        ratio(offline),
        f"{row['cold_start_s']:.2f}",
        f"{row['peak_memory_mib']:.0f}",
        f"{row['bytes']:,}",
    ]


def _what(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the line on what was asked of the files."""
    queries = ", ".join(f"{row['single_stream']['queries']:,}" for row in rows)
    images = ", ".join(f"{row['offline']['images']:,}" for row in rows)
    shown = ", ".join(dict.fromkeys(row["images"] for row in rows))
    scored = [row["accuracy"] for row in rows if "accuracy" in row]
    accuracy = f"; top-1 with its Wilson interval on {scored[0]['evidence']}" if scored else ""
    return (
        f"LoadGen {settings['loadgen']}; single-stream: {queries} queries; offline: {images} "
        f"images in batches of {settings['batch']}; shown: {shown}{accuracy}"
    )


def _lengths(
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    name_of: Callable[[dict[str, Any]], str],
) -> list[str]:
    """Return the lines on how long the tests were, and which LoadGen calls invalid."""
    if not settings["official"]:
        return [
            f"rounds in turn: {settings['rounds']}, of {settings['seconds']:g} s or more; x: "
            "median of the rounds' ratios [smallest, largest]"
        ]
    scenarios = ("single_stream", "offline")
    single, offline = (rows[0][scenario]["rounds"][0] for scenario in scenarios)
    lengths = (
        f"MLPerf's own smallest lengths: {single['min_seconds']:g} s and "
        f"{single['min_queries']:,} queries; {offline['min_seconds']:g} s and "
        f"{offline['min_queries']:,} images; files one after another, in one turn"
    )
    return [lengths] + [
        f"{name_of(row)}: LoadGen calls the {scenario} test invalid"
        for row in rows
        for scenario in scenarios
        if not row[scenario]["rounds"][0]["valid"]
    ]
