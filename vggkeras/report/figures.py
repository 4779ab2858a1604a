"""Draw the report's figures with Matplotlib, as SVG in the page's own colors and fonts.

To add one, write a function here that returns `svg(figure, ...)`; page.py says how it is shown.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras.evaluation.statistics import CALIBRATION_BINS, Evaluation, wilson
from vggkeras.report.sources import ReportSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins for the page's own colors, light or dark, which `svg` puts in their place.
INK, TRAINING, VALIDATION = "#010101", "#010102", "#010103"
COLORS = {
    INK: "currentColor",
    TRAINING: "rgb(var(--training))",
    VALIDATION: "rgb(var(--right))",
}
INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
STYLE: dict[Any, Any] = dict.fromkeys(INKED, INK) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.6,
    "font.size": 11,
    "figure.constrained_layout.use": True,
}
DOTTED = {"color": INK, "linewidth": 0.8, "linestyle": (0, (1, 2)), "alpha": 0.6}


@dataclass(frozen=True)
class Curve:
    """A figure with the epoch as its x axis."""

    title: str
    svg: str


def curves(source: ReportSource) -> list[Curve]:
    """Draw loss, accuracy and learning rate by epoch.

    Drops of the learning rate are dotted lines, the best epoch is a dot.
    """
    if source.best is None:
        return []
    return [_loss(source), _accuracy(source), _learning_rate(source)]


def reliability(evaluation: Evaluation) -> str:
    """Draw how often answers of some confidence are right, in the bins of the calibration error."""
    from matplotlib.ticker import PercentFormatter

    confidences = evaluation.confidences
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    figure, (axes, counts) = new_figure(rows=2)
    axes.plot([0, 1], [0, 1], **DOTTED)
    for number in np.unique(bins):
        in_bin = bins == number
        images, right = int(in_bin.sum()), int(evaluation.right[in_bin].sum())
        mean, interval = float(confidences[in_bin].mean()), wilson(right, images)
        axes.plot([mean, mean], interval, color=VALIDATION, linewidth=1.2, alpha=0.6)
        axes.plot(mean, right / images, "o", color=VALIDATION, markersize=5)
        left, width, height = number / CALIBRATION_BINS, 1 / CALIBRATION_BINS, images / len(bins)
        counts.bar(left, height, width, align="edge", color=VALIDATION, alpha=0.6)
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel("right")
    counts.set_ylabel("fraction")
    counts.set_xlabel("confidence")
    counts.set_xlim(0, 1.02)
    for axis in (axes.yaxis, counts.yaxis, counts.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    label = "Fraction of right answers by confidence, and the fraction of images of each confidence"
    return svg(figure, "reliability", label)


def overlap_histogram(overlaps: np.ndarray) -> str:
    """Draw how many images have which intersection over union, 0 to 1; above 0.5 it is right."""
    figure, axes = new_figure()
    counts, edges = np.histogram(overlaps, np.linspace(0, 1, 21))
    colors = [VALIDATION if low >= 0.5 else TRAINING for low in edges[:-1]]
    axes.bar(edges[:-1], counts, 0.045, align="edge", color=colors, alpha=0.8)
    axes.axvline(0.5, **DOTTED)
    axes.set_xlim(0, 1)
    axes.set_xlabel("intersection over union")
    axes.set_ylabel("images")
    return svg(figure, "overlaps", "Images by intersection over union of true and predicted box")


def new_figure(rows: int = 1, height: float = 3.0) -> tuple[Figure, Any]:
    """Return a figure as wide as a phone and its axes.

    One row of axes is `height` inches high; two share an x axis, in 4.4 inches.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would keep it

    with matplotlib.rc_context(STYLE):
        figure = Figure((4.4, height if rows == 1 else 4.4))
        heights = [1] if rows == 1 else [4, 1]
        return figure, figure.subplots(rows, 1, sharex=True, height_ratios=heights)


def svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an `svg` element in the page's own colors and fonts.

    Args:
        figure: from `new_figure`.
        name: unique on the page: it goes before the element's ids.
        label: what the figure shows, for those who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    unwanted = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
    text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, color in COLORS.items():
        text = text.replace(stand_in, color)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    body = text[text.index(">") + 1 :]
    return f'<svg class="plot" {box[0]} role="img" aria-label="{label}">{body}'


def _loss(source: ReportSource) -> Curve:
    figure, axes = _epoch_axes(source)
    _plot(axes, source, "loss", TRAINING)
    _plot(axes, source, "val_loss", VALIDATION)
    _plot(axes, source, "cross_entropy", TRAINING, ":")
    _plot(axes, source, "val_cross_entropy", VALIDATION, ":")
    _plot_best(axes, source, "val_loss")
    return _curve(source, figure, "loss", "Loss")


def _accuracy(source: ReportSource) -> Curve:
    from matplotlib.ticker import PercentFormatter

    figure, axes = _epoch_axes(source)
    _plot(axes, source, "accuracy", TRAINING)
    _plot(axes, source, "val_accuracy", VALIDATION)
    _plot_best(axes, source, "val_accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    what = "Localized: IoU above 0.5" if source.card.boxes else "Accuracy"
    return _curve(source, figure, "accuracy", what)


def _learning_rate(source: ReportSource) -> Curve:
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axes = _epoch_axes(source)
    _plot(axes, source, "learning_rate", INK, drawstyle="steps-mid")
    _plot_best(axes, source, "learning_rate")
    rates = sorted({row["learning_rate"] for row in source.history})
    axes.set_yscale("log")
    axes.set_ylim(rates[0] / 2, rates[-1] * 2)
    axes.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    return _curve(source, figure, "rate", "Learning rate")


def _epoch_axes(source: ReportSource) -> tuple[Figure, Axes]:
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure()
    for drop in source.drops:
        axes.axvline(drop - 0.5, **DOTTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_xlabel("epoch")
    return figure, axes


def _plot(
    axes: Axes, source: ReportSource, column: str, color: str, style: str = "-", **options: Any
) -> None:
    """Draw a column of history.csv, where it has that column."""
    if column not in source.history[0]:
        return
    if len(source.history) < 3:  # too few for a line
        options |= {"marker": "o", "markersize": 3}
    epochs = [row["epoch"] for row in source.history]
    axes.plot(epochs, [row[column] for row in source.history], style, color=color, **options)


def _plot_best(axes: Axes, source: ReportSource, column: str) -> None:
    assert source.best is not None
    axes.plot(source.best["epoch"], source.best[column], "o", color=VALIDATION, markersize=6)


def _curve(source: ReportSource, figure: Figure, name: str, title: str) -> Curve:
    first, last = source.history[0]["epoch"], source.history[-1]["epoch"]
    return Curve(title, svg(figure, name, f"{title} by epoch, {first:.0f} to {last:.0f}"))
