"""Fit a linear SVM on features of a fixed network, by Caltech-101's protocol (Appendix B).

python -m vggkeras features --model runs/latest --data FOLDER --out features.npz --svm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from vggkeras.data.splits import Data
from vggkeras.errors import InputError
from vggkeras.features.extraction import chosen_splits

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

COSTS = tuple(10.0**k for k in range(-2, 4))  # candidates for the SVM's C
HELD_OUT = 5  # one training image in five chooses C


@dataclass(frozen=True)
class SvmRecall:
    """The recall of a linear SVM on features, over random splits of n training images a class."""

    labels: np.ndarray  # int64 [classes]
    costs: list[float]  # C of each split
    recalls: np.ndarray  # float64 [splits, classes]

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
        """Student's 95% confidence interval of the mean, in [0, 1]; None for a single split.

        It covers only how splits are drawn: all are drawn from the same images.
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
    """Raise `svm_recall`'s errors before features are computed.

    The labels of TFDS' records are not known yet: they are checked by `svm_recall`.
    """
    chosen = chosen_splits(data, splits).values()
    labels = [split.labels for split in chosen if split.labels is not None]
    _check_counts(train_images, test_images, repeats, seed)
    if len(labels) == len(chosen):
        _check_classes(np.concatenate(labels), train_images, test_images, data.class_names)


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
    """Measure a linear SVM on random splits of n training and up to m test images a class.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`; images labeled -1 are left out.
        train_images: n, 2 or more.
        test_images: m, 1 or more, of the images that are left.
        repeats: number of splits.
        seed: random seed for the splits and for choosing C.
        class_names: all classes, each of which must have images; by default those in `labels`.

    Raises:
        InputError (a ValueError): fewer than two classes; a class with too few images.
    """
    _check_counts(train_images, test_images, repeats, seed)
    _check_classes(labels, train_images, test_images, class_names)
    classes = np.unique(labels[labels >= 0])
    costs, recalls = [], []
    for repeat in range(repeats):
        orders = _shuffled_by_class(labels, classes, np.random.default_rng([seed, repeat]))
        train = np.concatenate([order[:train_images] for order in orders])
        test = np.concatenate([order[train_images:][:test_images] for order in orders])
        cost, classifier = fit_svm(features[train], labels[train], seed)
        costs.append(cost)
        recalls.append(class_recalls(classifier, features[test], labels[test]))
    return SvmRecall(classes, costs, np.array(recalls))


def fit_svm(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[float, LinearSVC]:
    """Fit a linear SVM, one class against the rest; return its C and the SVM.

    The loss is the squared hinge, L2-regularized. C is the one of `COSTS`, powers of ten from 0.01
    to 1000, that has the highest mean class recall on the images that `held_out` keeps for it; of
    equal ones the smallest. Then the SVM is fitted to all images.

    Args:
        features: float `[N, D]`, rows of length 1.
        labels: int `[N]`, of two classes or more, each with two images or more.
        seed: random seed for the held-out images.

    Raises:
        InputError (a ValueError): fewer classes, or a class with one image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        few = f"class {classes[counts.argmin()]} with one"
        raise InputError(
            "A linear SVM needs two classes or more and two images or more of each; received "
            f"{few if len(classes) > 1 else f'{len(classes)} classes'}."
        )
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    # The primal is solved without randomness, in a few iterations at any C. The dual takes tens of
    # thousands at a large C.
    search = GridSearchCV(
        LinearSVC(dual=False), {"C": COSTS}, scoring="recall_macro", cv=[held_out(labels, seed)]
    ).fit(features, labels)
    return search.best_params_["C"], search.best_estimator_


def held_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images to fit each C to, and of those to choose the best C by.

    The latter are a random fifth of each class's images, at least one.
    """
    orders = _shuffled_by_class(labels, np.unique(labels), np.random.default_rng(seed))
    counts = [max(1, round(len(order) / HELD_OUT)) for order in orders]
    fitted = [order[count:] for order, count in zip(orders, counts, strict=True)]
    chooses = [order[:count] for order, count in zip(orders, counts, strict=True)]
    return np.concatenate(fitted), np.concatenate(chooses)


def class_recalls(classifier: LinearSVC, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the recall of each class, float64 `[classes]`; NaN for a class without images.

    Args:
        classifier: its `classes_` give the order.
        features: float `[N, D]`.
        labels: int `[N]`.
    """
    from sklearn.metrics import recall_score

    return recall_score(
        labels,
        classifier.predict(features),
        labels=classifier.classes_,
        average=None,
        zero_division=np.nan,
    )


def svm_table(result: SvmRecall, train_images: int, test_images: int) -> Table:
    """Return a table with a row a split, and the mean with its standard deviation."""
    classes = len(result.labels)
    interval = (
        f"; 95% interval of the mean {interval_text(result.interval)}" if result.interval else ""
    )
    table = Table(
        title=f"linear SVM: {classes} classes, {train_images} training and up to {test_images} "
        "test images each",
        caption=f"chance: {100 / classes:.1f}%{interval}",
    )
    for column in ("split", "C", "mean class recall, %"):
        table.add_column(column, justify="right")
    for number, (cost, mean) in enumerate(zip(result.costs, result.means, strict=True), start=1):
        table.add_row(str(number), f"{cost:g}", f"{100 * mean:.2f}")
    table.add_section()
    spread = f" ± {100 * result.spread:.2f}" if result.spread is not None else ""
    table.add_row("mean", "", f"{100 * result.mean:.2f}{spread}", style="bold")
    return table


def svm_record(result: SvmRecall, class_names: Sequence[str]) -> dict[str, Any]:
    """Return a result as JSON: of each split, of each class, and over all."""
    recalls = dict(
        zip((class_names[i] for i in result.labels), result.recalls.T.tolist(), strict=True)
    )
    return {
        "c": result.costs,
        "mean_class_recalls": result.means.tolist(),
        "mean": result.mean,
        "spread": result.spread,
        "interval": result.interval,
        "recall": {name: float(np.mean(of_splits)) for name, of_splits in recalls.items()},
        "recalls": recalls,  # of each split
    }


def interval_text(interval: tuple[float, float]) -> str:
    """Format an interval of fractions in percent, such as [77.5, 80.1]%."""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]%"


def _shuffled_by_class(
    labels: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the indices of each class's images, in random order."""
    return [rng.permutation(np.flatnonzero(labels == label)) for label in classes]


def _check_counts(train_images: int, test_images: int, repeats: int, seed: int) -> None:
    for name, value, least in (
        ("train-images", train_images, 2),  # one of them chooses C
        ("test-images", test_images, 1),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} must be {least} or more; received {value}.")


def _check_classes(
    labels: np.ndarray, train_images: int, test_images: int, class_names: Sequence[str] | None
) -> None:
    labels = labels[labels >= 0]
    classes = np.arange(len(class_names)) if class_names else np.unique(labels)
    if len(classes) < 2:
        raise InputError(
            f"A linear SVM separates two classes or more; received labels of {len(classes)}: give "
            "images in class folders."
        )
    counts = np.array([(labels == label).sum() for label in classes])
    i = int(counts.argmin())
    if counts[i] <= train_images:
        name = class_names[classes[i]] if class_names else str(classes[i])
        fewer = f"give --train-images {counts[i] - 1} or less, or " if counts[i] > 2 else ""
        raise InputError(
            f"Class {name!r} has {counts[i]} images; asked were {train_images} for training and up "
            f"to {test_images} others "
            f"to test: {fewer}give more images of it, or more splits."
        )
