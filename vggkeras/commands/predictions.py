"""Show predictions: few as a table of images, many as a table of classes; no name is folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from vggkeras.errors import visible
from vggkeras.terminal import Console, fits

if TYPE_CHECKING:
    from vggkeras.batch.labelling import Prediction

FEW = 20  # images that are shown one by one
NAMED = 10  # unreadable images that are named among many


@dataclass
class Tally:
    """What is kept of predictions, however many there are."""

    first: list[Prediction] = field(default_factory=list)  # FEW and one more, at most
    unreadable: list[Prediction] = field(default_factory=list)  # the first FEW
    read: int = 0
    failed: int = 0
    images: Counter[str] = field(default_factory=Counter)  # by most probable class
    probability: dict[str, float] = field(default_factory=dict)  # of that class, summed

    def add(self, prediction: Prediction) -> None:
        """Count a prediction."""
        if len(self.first) <= FEW:
            self.first.append(prediction)
        if prediction.error is not None:
            self.failed += 1
            if len(self.unreadable) < FEW:
                self.unreadable.append(prediction)
            return
        self.read += 1
        best, p = prediction.classes[0], prediction.probabilities[0]
        self.images[best] += 1
        self.probability[best] = self.probability.get(best, 0.0) + p


def show(tally: Tally, console: Console) -> None:
    """Print the predictions, a line each where no table can be shown whole.

    A table is for terminals that are wide enough: elsewhere it would fold names.
    """
    if 0 < len(tally.first) <= FEW:
        table = predictions_table(tally.first)
        lines = [_line(prediction) for prediction in tally.first]
        below = [_line(prediction) for prediction in tally.unreadable]
    else:
        table = classes_table(tally)
        below = _unreadable_lines(tally)
        lines = _class_lines(tally) + below
    if fits(table, console):
        console.print(table)
        lines = below
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """Return the predictions of several images, a row a class."""
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        image = one_line(str(prediction.image))
        for name, p in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(image, one_line(name), f"{p:.4f}")
            image = ""
        if prediction.error is not None:
            table.add_row(image, "cannot be read", "", style="red")
        table.add_section()
    return table


def classes_table(tally: Tally) -> Table:
    """Return how many images have each class as the most probable one, most frequent first."""
    table = Table()
    table.add_column("class", overflow="fold")
    for name in ("images", "fraction", "mean probability"):
        table.add_column(name, justify="right")
    for cells in _classes(tally):
        table.add_row(*cells)
    return table


def _classes(tally: Tally) -> Iterator[tuple[str, str, str, str]]:
    """Yield each class, its images, their fraction of all that were read, and the mean."""
    for name, count in sorted(tally.images.items(), key=lambda item: (-item[1], item[0])):
        mean = tally.probability[name] / count
        yield one_line(name), f"{count:,}", f"{100 * count / tally.read:.1f}%", f"{mean:.4f}"


def _class_lines(tally: Tally) -> list[str]:
    return [
        f"{name}: {count} images ({fraction}), mean probability {mean}"
        for name, count, fraction, mean in _classes(tally)
    ]


def _unreadable_lines(tally: Tally) -> list[str]:
    lines = [_line(prediction) for prediction in tally.unreadable[:NAMED]]
    more = tally.failed - len(lines)
    return [*lines, f"and {more:,} more that could not be read"] if more else lines


def _line(prediction: Prediction) -> str:
    """Return a prediction as one line: photo.jpg: cat 0.9312, dog 0.0688."""
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    text = prediction.error or ", ".join(f"{name} {p:.4f}" for name, p in pairs)
    return one_line(f"{prediction.image}: {text}")


def one_line(text: str) -> str:
    """Return text as one line, with tabs and newlines as the escapes that `visible` gives."""
    return visible(text).replace("\t", "\\u0009").replace("\n", "\\u000a")
