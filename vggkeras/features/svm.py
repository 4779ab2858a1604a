"""TODO"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from vggkeras.data.splits import Data
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

from vggkeras.features.extraction import chosen_splits

COSTS = tuple(10.0**k for k in range(-2, 4))  # the SVM's C is one of these
HELD_OUT = 5  # one training image in five chooses it


@dataclass(frozen=True)
class SvmRecall:
    """How well a linear SVM on features tells classes apart, over random splits of n training images a class."""

    labels: np.ndarray  # int64 [classes]
    costs: list[float]  # C of each split
    recalls: (
        np.ndarray
    )  # float64 [splits, classes]: share of each class's test images that were recognised

    @property
    def means(self) -> np.ndarray:
        """Mean class recall of each split, float64 `[splits]`."""
        return self.recalls.mean(axis=1)

    @property
    def mean(self) -> float:
        """Mean class recall over all splits, in [0, 1]."""
        return float(self.means.mean())

    @property
    def spread(self) -> float | None:
        """Standard deviation of the splits' mean class recalls; None for a single split."""
        return float(self.means.std(ddof=1)) if len(self.means) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95% interval of the mean over splits, in [0, 1]; None for a single split.

        Of how the splits are drawn alone: all are drawn from one pool, and share images.
        """
        if self.spread is None:
            return None
        from scipy.stats import t

        count = len(self.means)
        reach = float(t.ppf(0.975, count - 1)) * self.spread / count**0.5
        return max(0.0, self.mean - reach), min(1.0, self.mean + reach)


def check_split(
    data: Data, splits: Sequence[str], train_images: int, test_images: int, repeats: int, seed: int
) -> None:
    """`svm_recall`'s errors, before features are computed; of TFDS' records the labels are not known yet."""
    chosen = chosen_splits(data, splits).values()
    labels = [split.labels for split in chosen if split.labels is not None]
    known = np.concatenate(labels) if len(labels) == len(chosen) else None
    _check_split(known, train_images, test_images, repeats, seed, data.class_names)


def _check_split(
    labels: np.ndarray | None,
    train_images: int,
    test_images: int,
    repeats: int,
    seed: int,
    class_names: Sequence[str] | None,
) -> None:
    for name, value, least in (
        ("train-images", train_images, 2),  # one of them chooses C
        ("test-images", test_images, 1),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} must be {least} or more; received {value}.")
    if labels is None:
        return
    known = labels[labels >= 0]
    classes = np.arange(len(class_names)) if class_names else np.unique(known)
    if len(classes) < 2:
        raise InputError(
            f"A linear SVM tells two classes or more apart; received labels of {len(classes)}: give images in class folders."
        )
    counts = np.array([(known == label).sum() for label in classes])
    i = int(counts.argmin())
    if counts[i] <= train_images:
        name = class_names[classes[i]] if class_names else str(classes[i])
        fewer = f"give --train-images {counts[i] - 1} or less, or " if counts[i] > 2 else ""
        raise InputError(
            f"Class {name!r} has {counts[i]} images; asked were {train_images} for training and up to {test_images} others "
            f"to test: {fewer}give more images of it, or more splits."
        )


def svm_recall(
    features: np.ndarray,
    labels: np.ndarray,
    train_images: int = 30,
    test_images: int = 50,
    repeats: int = 3,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
) -> SvmRecall:
    """Caltech-101's protocol: random splits of n training and up to m test images a class; mean class recall.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`; images labelled -1 are left out.
        train_images: n, 2 or more.
        test_images: m, 1 or more, of those that n leaves.
        repeats: how many splits.
        seed: decides the splits and all else that is random.
        class_names: all classes, each of which must have images; those of the labels when not given.

    Raises:
        InputError (a ValueError): fewer than two classes; a class of too few images.
    """
    _check_split(labels, train_images, test_images, repeats, seed, class_names)
    classes = np.unique(labels[labels >= 0])
    costs, recalls = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        train = np.concatenate([places[:train_images] for places in drawn])
        test = np.concatenate(
            [places[train_images : train_images + test_images] for places in drawn]
        )
        cost, classifier = fit_svm(features[train], labels[train], seed)
        costs.append(cost)
        recalls.append(class_recalls(classifier, features[test], labels[test]))
    return SvmRecall(classes, costs, np.array(recalls))


def fit_svm(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[float, LinearSVC]:
    """A linear SVM, one class against the rest, L2-regularised, squared hinge loss; and its C.

    C is the one of `COSTS`, powers of ten from 0.01 to 1000, that has the highest mean class recall on a fifth of each
    class's images, at least one, when fitted to the others; of equal ones the smallest. Then all are fitted.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`, of two classes or more, each with two images or more.
        seed: decides which images are held out.

    Raises:
        InputError (a ValueError): fewer classes, or images of one.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        few = (
            f"class {classes[counts.argmin()]} with one"
            if len(classes) > 1
            else f"{len(classes)} classes"
        )
        raise InputError(
            f"A linear SVM needs two classes or more and two images or more of each; received {few}."
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    held = [max(1, round(len(places) / HELD_OUT)) for places in drawn]
    chooses = np.concatenate([places[:count] for places, count in zip(drawn, held, strict=True)])
    fitted = np.concatenate([places[count:] for places, count in zip(drawn, held, strict=True)])

    def score(cost: float) -> float:
        classifier = _linear_svm(cost).fit(features[fitted], labels[fitted])
        return float(class_recalls(classifier, features[chooses], labels[chooses]).mean())

    best = max(COSTS, key=score)  # the first of equal ones
    return best, _linear_svm(best).fit(features, labels)


def _linear_svm(cost: float) -> LinearSVC:
    from sklearn.svm import LinearSVC

    # The primal is solved without chance, and in a few steps at any C; the dual takes tens of thousands at a large one.
    return LinearSVC(C=cost, dual=False)


def class_recalls(classifier: LinearSVC, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are recognised, float64 `[classes]`; NaN for a class without images.

    The classes are the classifier's (`classes_`), in order; features are float `[N, D]`, labels int `[N]`.
    """
    right = classifier.predict(features) == labels
    return np.array(
        [right[labels == c].mean() if (labels == c).any() else np.nan for c in classifier.classes_]
    )


def svm_table(found: SvmRecall, train_images: int, test_images: int) -> Table:
    """A split a row, and the mean with its spread, for people."""
    reach = f"; 95% interval of the mean {interval_text(found.interval)}" if found.interval else ""
    table = Table(
        title=f"linear SVM: {len(found.labels)} classes, {train_images} training and up to {test_images} test images each",
        caption=f"chance: {100 / len(found.labels):.1f}%{reach}",
    )
    for column in ("split", "C", "mean class recall, %"):
        table.add_column(column, justify="right")
    for number, (cost, mean) in enumerate(zip(found.costs, found.means, strict=True), start=1):
        table.add_row(
            str(number), f"{cost:g}", f"{100 * mean:.2f}", end_section=number == len(found.costs)
        )
    spread = f" ± {100 * found.spread:.2f}" if found.spread is not None else ""
    table.add_row("mean", "", f"{100 * found.mean:.2f}{spread}", style="bold")
    return table


def svm_record(found: SvmRecall, class_names: Sequence[str]) -> dict[str, Any]:
    """A result as JSON: of each split, of each class, and all together."""
    shares = {
        class_names[label]: found.recalls[:, i].tolist() for i, label in enumerate(found.labels)
    }
    return {
        "c": found.costs,
        "mean_class_recalls": found.means.tolist(),
        "mean": found.mean,
        "spread": found.spread,
        "interval": found.interval,
        "recall": {name: float(np.mean(each)) for name, each in shares.items()},
        "recalls": shares,  # of each split
    }


def interval_text(ends: tuple[float, float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]%"
