"""Compare ways to learn new classes from few images: from scratch, an SVM of features, fine-tuning.

    TFDS_DATA_DIR=… python tests/benchmarks/few_images.py --work few

A network is trained on every other class of a data set. The classes it has not seen are then learnt
from n images each, drawn anew for every repeat: four in five are trained on, the fifth chooses (the
epoch, or the SVM's C), and all images of the data set's validation split, which chose nothing, are
the test. What was done is kept in --work, and not done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

import vggkeras
from vggkeras import files, runtimes
from vggkeras import recipe as recipe_module
from vggkeras.data import sources
from vggkeras.data.splits import Split
from vggkeras.evaluation import scoring
from vggkeras.features.svm import fit_svm
from vggkeras.terminal import progress_bar

console = Console()
HELD_OUT = 5  # one in five of the few chooses
BATCH, RATE = 16, 0.005  # images a step, and its learning rate


@dataclass(frozen=True)
class Arguments:
    """Learn new classes from few images each way, and print accuracy with intervals."""

    work: Path
    """Folder for images, runs and figures."""
    data: str = "tfds:imagenette/160px-v2"
    """Every other class of it is trained on first."""
    images: tuple[int, ...] = (5, 20, 100)
    """Of each new class, how many are given."""
    repeats: int = 5
    """How often they are drawn."""
    svm_repeats: int = 20
    """How often for the SVMs, which take seconds; the first draws are the same."""
    epochs: int = 60
    """Of learning the new classes, at a constant learning rate,"""
    steps: int = 300
    """or as many more as make so many steps."""
    pretraining_epochs: int = 40
    """Of the first network."""
    scales: tuple[int, ...] = (64, 80, 96)
    """Test scales Q of the features, px."""
    image_size: int = 64
    """Of the networks, px."""
    width: float = 0.25
    """Of their filters."""
    fc_units: int = 256
    """Of fc1 and fc2."""
    json_file: Path | None = None
    """Write the figures to this file too."""


@dataclass(frozen=True)
class Pool:
    """The images of the new classes, of one split."""

    paths: list[Path]
    labels: np.ndarray  # int [N]


def main(arguments: Arguments) -> None:
    """Pretrain, learn the other classes each way, and print accuracy on the test images."""
    work, data = arguments.work, vggkeras.load_data(arguments.data)
    old, new = data.class_names[::2], data.class_names[1::2]
    for split in ("train", "validation"):
        _write(data.split(split), data.class_names, old, work / "old" / split)
        _write(data.split(split), data.class_names, new, work / "new" / split)
    recipe = vggkeras.Recipe(
        "A",
        str(work / "old"),
        work / "runs" / "old",
        image_size=arguments.image_size,
        width=arguments.width,
        fc_units=arguments.fc_units,
        batch_norm=True,
        batch_size=64,
        epochs=arguments.pretraining_epochs,
    )
    pretrained = vggkeras.train(recipe, console, resume=True)
    train, test = (_images(work / "new" / split, new) for split in ("train", "validation"))
    described = _features(work, pretrained.path, {"train": train, "validation": test}, arguments)

    accuracies: dict[str, dict[int, list[float]]] = {}

    def note(way: str, count: int, accuracy: float) -> None:
        accuracies.setdefault(way, {}).setdefault(count, []).append(accuracy)

    for count in arguments.images:
        for repeat in range(max(arguments.repeats, arguments.svm_repeats)):
            chosen = _drawn(train.labels, count, seed=repeat)
            for way, (features, test_features) in described.items():
                _, svm = fit_svm(features[chosen], train.labels[chosen], seed=repeat)
                right = svm.predict(test_features) == test.labels
                note(f"SVM, {way}", count, float(np.mean(right)))
            if repeat < arguments.repeats:
                few = work / "few" / f"{count}-{repeat}"
                _write_few(few, train, test, new, chosen, repeat)
                for way, accuracy in _trained(arguments, recipe, few, count, repeat, len(new)):
                    note(way, count, accuracy)
    _print(accuracies, len(new), len(test.labels), arguments)
    if arguments.json_file:
        files.write_json(arguments.json_file, accuracies)


def _trained(
    arguments: Arguments, recipe: vggkeras.Recipe, few: Path, count: int, repeat: int, classes: int
) -> Iterator[tuple[str, float]]:
    """Yield each way of training, and the accuracy of a network trained so on few images."""
    trained = classes * (count - max(1, count // HELD_OUT))
    lasts = max(arguments.epochs, -(-arguments.steps // max(1, trained // BATCH)))
    recipe = dataclasses.replace(
        recipe,
        data=str(few),
        seed=repeat,
        epochs=lasts,
        patience=lasts,
        batch_size=BATCH,
        learning_rate=RATE * recipe_module.PAPER_BATCH / BATCH,
    )
    fine_tuned = dataclasses.replace(recipe, init_from=str(recipe.out), copied_rate=0.1)
    for way, learning in (("from scratch", recipe), ("fine-tuned", fine_tuned)):
        out = arguments.work / "runs" / f"{way.replace(' ', '-')}-{count}-{repeat}"
        vggkeras.train(dataclasses.replace(learning, out=out), console, resume=True)
        yield way, _accuracy(out, few)
        keras.utils.clear_session()


def _write(split: Split, names: list[str], wanted: list[str], folder: Path) -> None:
    """Write some classes' images as files, once; none is decoded."""
    if folder.exists():
        return
    with files.replacing(folder) as beside:
        for index, encoded, label in split.examples():
            if names[label] in wanted:
                path = beside / names[label] / f"{index:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)


def _images(folder: Path, names: list[str]) -> Pool:
    paths = [path for name in names for path in sorted((folder / name).iterdir())]
    return Pool(paths, np.array([names.index(path.parent.name) for path in paths]))


def _drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the indices of `count` images of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)]
    )


def _write_few(
    folder: Path, train: Pool, test: Pool, names: list[str], chosen: np.ndarray, seed: int
) -> None:
    """Write train/ and val/ of the images drawn, and link test/."""
    if folder.exists():
        return
    with files.replacing(folder) as beside:
        for c, name in enumerate(names):
            of_class = chosen[train.labels[chosen] == c]
            indices = np.random.default_rng(seed).permutation(of_class)
            held = max(1, len(indices) // HELD_OUT)
            for split, some in (("val", indices[:held]), ("train", indices[held:])):
                (beside / split / name).mkdir(parents=True)
                for i in some:
                    shutil.copy(train.paths[i], beside / split / name)
        os.symlink(test.paths[0].parents[1].resolve(), beside / "test")


def _features(
    work: Path, run: Path, pools: dict[str, Pool], arguments: Arguments
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features of the training and of the test images, by way.

    The ways are one scale, and several averaged or stacked.
    """
    predictor, described, scales = None, {}, arguments.scales
    ways = {f"Q = {scales[len(scales) // 2]}": (scales[len(scales) // 2 :][:1], "average")}
    ways |= {
        f"{len(scales)} scales averaged": (scales, "average"),
        f"{len(scales)} scales stacked": (scales, "stack"),
    }
    for way, (some, aggregate) in ways.items():
        file = work / "features" / f"{aggregate}-{'-'.join(map(str, some))}.npz"
        if not file.exists():
            predictor = predictor or runtimes.load(run)
            parts = {}
            with progress_bar(console) as bar:
                for split, pool in pools.items():
                    shown = bar.track(pool.paths, description=f"{way}: {split}")
                    parts[split] = vggkeras.extract_features(predictor, shown, some, aggregate)
            with files.replacing(file) as beside, open(beside, "wb") as stream:
                np.savez(stream, **parts)
        with np.load(file) as stored:
            described[way] = stored["train"], stored["validation"]
    return described


def _accuracy(run: Path, few: Path) -> float:
    """Return top-1 accuracy on the test images, by the central crop."""
    file = run / "test.json"
    if not file.exists():
        loaded = sources.load_data(str(few))
        (row,) = scoring.evaluate(runtimes.load(run), loaded.split("test"), loaded.class_names)
        files.write_json(file, row.accuracy)
    return json.loads(file.read_text())


def _interval(values: list[float]) -> str:
    """Return the mean and Student's 95% interval over the repeats, %."""
    mean, spread = np.mean(values), np.std(values, ddof=1)
    reach = student.ppf(0.975, len(values) - 1) * spread / np.sqrt(len(values))
    return f"{100 * mean:.1f} ± {100 * reach:.1f}"


def _print(
    accuracies: dict[str, dict[int, list[float]]], classes: int, tests: int, arguments: Arguments
) -> None:
    """Print a row a way, and the differences of some, draw by draw."""
    draws = max(len(values) for counts in accuracies.values() for values in counts.values())
    table = Table(
        title=f"{classes} new classes, accuracy on {tests:,} test images, %: mean and 95% interval "
        f"of {arguments.repeats} draws ({draws} of the SVMs)"
    )
    table.add_column("")
    for count in arguments.images:
        table.add_column(f"{count} images a class", justify="right")
    for way, counts in accuracies.items():
        table.add_row(way, *(_interval(counts[count]) for count in arguments.images))
    console.print(table)
    stacked, averaged = (
        next(way for way in accuracies if way.endswith(end)) for end in ("stacked", "averaged")
    )
    tuned, svms = "fine-tuned", [way for way in accuracies if way.startswith("SVM")]
    for one, other in (
        (stacked, averaged),
        (tuned, svms[0]),
        (svms[0], "from scratch"),
        (tuned, "from scratch"),
    ):
        parts = []
        for count in arguments.images:
            draws_of_both = zip(accuracies[one][count], accuracies[other][count], strict=False)
            parts.append(f"{count}: {_interval([a - b for a, b in draws_of_both])}")
        console.print(f"{one} less {other}, points: {'; '.join(parts)}", highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
