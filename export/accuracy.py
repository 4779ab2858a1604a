"""Score files as they are benchmarked: the accuracy that stands beside their latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras.runtimes.providers import Options

if TYPE_CHECKING:
    from rich.console import Console

    from vggkeras.evaluation.statistics import Evaluation


@dataclass(frozen=True)
class Accuracy:
    """A file's top-1 accuracy on the central crops of labeled images; of boxes, those localized."""

    evidence: str  # which images, in words
    images: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """Return what --json holds of it, with the 95% Wilson interval."""
        from vggkeras.evaluation.statistics import wilson

        interval = list(wilson(self.correct, self.images))
        accuracy = self.correct / self.images
        return {**dataclasses.asdict(self), "accuracy": accuracy, "interval": interval}


def accuracies(
    paths: Sequence[Path], asked: Options, spec: str, count: int, console: Console
) -> list[Accuracy]:
    """Return the accuracy of each file, all on the same images, which are read once.

    Args:
        paths: of the files.
        asked: how they are loaded.
        spec: names the data, as --data does.
        count: images of each class in proportion; 0 for all.
        console: for a progress bar.

    Raises:
        InputError (a ValueError): what `runtimes.load` and `scoring.evaluate` raise; unknown data.
    """
    from export.serving import with_provider
    from vggkeras import runtimes
    from vggkeras.card import turns_upright
    from vggkeras.data.sources import as_trained, load_data
    from vggkeras.data.splits import stratified
    from vggkeras.evaluation.scoring import evaluate
    from vggkeras.localization.evaluation import evaluate_boxes
    from vggkeras.terminal import load_tensorflow, progress_bar

    chosen = [with_provider(path, asked) for path in paths]
    load_tensorflow(console, *(path for path, _ in chosen))
    predictors = [runtimes.load(path, **vars(own)) for path, own in chosen]
    cards, boxes = [predictor.card for predictor in predictors], predictors[0].boxes is not None
    data = load_data(spec, whole=True, boxes=boxes)
    data = as_trained(data, (), cards, boxes=boxes).upright(turns_upright(cards))
    split = data.split(data.default_split)
    split = stratified(split, count) if count else split
    score: Callable[..., Sequence[Evaluation]] = evaluate_boxes if boxes else evaluate
    with progress_bar(console) as bar:
        rows = score(
            predictors,
            split,
            data.class_names,
            track=lambda items, total: bar.track(items, total=total, description="scoring"),
        )
    evidence = f"{rows[0].images:,} images of {split.name}{', localized or not' if boxes else ''}"
    return [Accuracy(evidence, row.images, row.correct) for row in rows]
