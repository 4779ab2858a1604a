"""TODO"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from vggkeras.evaluation.statistics import CALIBRATION_BINS, Evaluation, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from vggkeras.report.sources import ReportSource

# Stand-ins that Matplotlib takes for colours; the page's own, light or dark, are put in their place.
INK, TRAINING, VALIDATION = "#010101", "#010102", "#010103"
INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
PLOT: dict[Any, Any] = dict.fromkeys(INKED, INK) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.6,
    "font.size": 11,
    "figure.constrained_layout.use": True,
}
COLOURS = {INK: "currentColor", TRAINING: "rgb(var(--training))", VALIDATION: "rgb(var(--right))"}


def curves(source: ReportSource) -> list[dict[str, str]]:
    """Loss, accuracy and learning rate by epoch, as SVG; rate drops are dotted, the best epoch is a dot."""
    history, best = source.history, source.best
    if best is None:
        return []
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, PercentFormatter

    epochs = [row["epoch"] for row in history]
    few = {"marker": "o", "markersize": 3} if len(history) < 3 else {}

    def draw(name: str, title: str, columns: list[tuple[str, str, str]]) -> dict[str, str]:
        figure, axes = new_figure()
        for drop in source.drops:
            axes.axvline(drop - 0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
        for column, colour, style in columns:
            if column in best:
                axes.plot(epochs, [row[column] for row in history], style, color=colour, **few)
        if columns[-1][1] == VALIDATION:
            axes.plot(best["epoch"], best[columns[1][0]], "o", color=VALIDATION, markersize=6)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if name == "rate":
            rates = sorted({row["learning_rate"] for row in history})
            axes.step(
                epochs, [row["learning_rate"] for row in history], where="mid", color=INK, **few
            )
            axes.plot(best["epoch"], best["learning_rate"], "o", color=VALIDATION, markersize=6)
            axes.set_yscale("log")
            axes.set_ylim(rates[0] / 2, rates[-1] * 2)
            axes.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlabel("epoch")
        told = f"{title} by epoch, {epochs[0]:.0f} to {epochs[-1]:.0f}"
        return {"title": title, "svg": svg(figure, name, told)}

    both = [("loss", TRAINING, "-"), ("val_loss", VALIDATION, "-")]
    entropies = [("cross_entropy", TRAINING, ":"), ("val_cross_entropy", VALIDATION, ":")]
    return [
        draw("loss", "Loss", [*both, *entropies]),
        draw(
            "accuracy", "Accuracy", [("accuracy", TRAINING, "-"), ("val_accuracy", VALIDATION, "-")]
        ),
        draw("rate", "Learning rate", [("", INK, "")]),
    ]


def reliability(row: Evaluation) -> str:
    """How often an answer of some confidence is right, as SVG: the bins are those of the calibration error."""
    from matplotlib.ticker import PercentFormatter

    bins = np.minimum((row.confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    figure, (axes, counts) = new_figure(rows=2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)), alpha=0.6)
    for number in np.unique(bins):
        here = bins == number
        images, right, mean = (
            int(here.sum()),
            int(row.right[here].sum()),
            float(row.confidences[here].mean()),
        )
        low, high = wilson(right, images)
        axes.plot([mean, mean], [low, high], color=VALIDATION, linewidth=1.2, alpha=0.6)
        axes.plot(mean, right / images, "o", color=VALIDATION, markersize=5)
        edge = number / CALIBRATION_BINS
        counts.bar(
            edge,
            images / row.images,
            1 / CALIBRATION_BINS,
            align="edge",
            color=VALIDATION,
            alpha=0.6,
        )
    axes.set_ylim(-0.02, 1.04)
    axes.set_ylabel("right")
    counts.set_ylabel("share")
    counts.set_xlabel("confidence")
    counts.set_xlim(0, 1.02)
    for some in (axes.yaxis, counts.yaxis, counts.xaxis):
        some.set_major_formatter(PercentFormatter(1, decimals=0))
    return svg(
        figure,
        "reliability",
        "Share of right answers by confidence, and the share of images of each confidence",
    )


def new_figure(rows: int = 1, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure as wide as a phone, `height` inches high (or two axes, 4.4), without pyplot's state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PLOT):
        figure = Figure((4.4, height if rows == 1 else 4.4))
        heights = [1] if rows == 1 else [4, 1]
        return figure, figure.subplots(rows, 1, sharex=True, height_ratios=heights)


def svg(figure: Figure, name: str, told: str) -> str:
    """A figure as an `svg` element in the page's own colours and fonts; `name` keeps its ids apart from other figures'."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(PLOT | {"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for ours, theirs in COLOURS.items():
        text = text.replace(ours, theirs)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    body = text[text.index(">") + 1 :]
    return f'<svg class="plot" {box[0]} role="img" aria-label="{told}">{body}'
