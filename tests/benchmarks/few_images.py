"""New classes from few images: from scratch, by frozen features and a linear SVM, and by fine-tuning, beside one another.

    TFDS_DATA_DIR=… python tests/benchmarks/few_images.py --work few

A network is trained on every other class of a data set. The classes it has not seen are then learnt from n images each,
drawn anew for every repeat: four in five are trained on, the fifth chooses (the epoch, or the SVM's C), and all images of
the data set's validation split, which chose nothing, are the test. What was done is kept in --work, and not done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
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
BATCH, RATE = 16, 0.005  # images a step, and its rate


def main(
    work: Path,
    data: str = "tfds:imagenette/160px-v2",
    images: tuple[int, ...] = (5, 20, 100),
    repeats: int = 5,
    svm_repeats: int = 20,
    epochs: int = 60,
    steps: int = 300,
    pretraining_epochs: int = 40,
    scales: tuple[int, ...] = (64, 80, 96),
    image_size: int = 64,
    width: float = 0.25,
    fc_units: int = 256,
    json_file: Path | None = None,
) -> None:
    """Pretrain, learn the other classes each way, and print accuracy on the test images with intervals.

    Args:
        work: folder for images, runs and figures.
        data: every other class of it is trained on first.
        images: of each new class, how many are given.
        repeats: how often they are drawn.
        svm_repeats: how often for the SVMs, which take seconds; the first draws are the same.
        epochs: of learning the new classes, at a constant rate,
        steps: or as many more as make so many steps.
        pretraining_epochs: of the first network.
        scales: test scales Q of the features, px.
        image_size: of the networks, px.
        width: of their filters.
        fc_units: of fc1 and fc2.
        json_file: write the figures to this file too.
    """
    loaded = vggkeras.load_data(data)
    old, new = loaded.class_names[::2], loaded.class_names[1::2]
    for split in ("train", "validation"):
        _write(loaded.split(split), loaded.class_names, old, work / "old" / split)
        _write(loaded.split(split), loaded.class_names, new, work / "new" / split)
    recipe = vggkeras.Recipe(
        "A",
        str(work / "old"),
        work / "runs" / "old",
        image_size=image_size,
        width=width,
        fc_units=fc_units,
        batch_norm=True,
        batch_size=64,
        epochs=pretraining_epochs,
    )
    pretrained = vggkeras.train(recipe, console, resume=True)
    pool = {split: _images(work / "new" / split, new) for split in ("train", "validation")}
    described = _features(work, pretrained.path, pool, scales)

    found: dict[str, dict[int, list[float]]] = {}

    def note(way: str, count: int, accuracy: float) -> None:
        found.setdefault(way, {}).setdefault(count, []).append(accuracy)

    for count in images:
        for repeat in range(max(repeats, svm_repeats)):
            chosen = _drawn(pool["train"][1], count, seed=repeat)
            for way, (train, test) in described.items():
                _, svm = fit_svm(train[chosen], pool["train"][1][chosen], seed=repeat)
                note(
                    f"SVM, {way}", count, float(np.mean(svm.predict(test) == pool["validation"][1]))
                )
            if repeat >= repeats:
                continue
            few = work / "few" / f"{count}-{repeat}"
            trained = len(new) * (count - max(1, count // HELD_OUT))
            lasts = max(epochs, -(-steps // max(1, trained // BATCH)))
            _write_few(few, pool, new, chosen, repeat)
            for way, changes in (
                ("from scratch", {}),
                ("fine-tuned", {"init_from": str(pretrained.path), "copied_rate": 0.1}),
            ):
                out = work / "runs" / f"{way.replace(' ', '-')}-{count}-{repeat}"
                learnt = dataclasses.replace(
                    recipe,
                    **{
                        "data": str(few),
                        "out": out,
                        "seed": repeat,
                        "epochs": lasts,
                        "patience": lasts,
                    }
                    | {
                        "batch_size": BATCH,
                        "learning_rate": RATE * recipe_module.PAPER_BATCH / BATCH,
                    }
                    | changes,
                )
                vggkeras.train(learnt, console, resume=True)
                note(way, count, _accuracy(out, few))
                keras.utils.clear_session()
    _tell(found, len(new), pool, images, repeats)
    if json_file:
        files.write_json(json_file, found)


def _write(split: Split, names: list[str], wanted: list[str], folder: Path) -> None:
    """Some classes' images as files, once; none was decoded."""
    if folder.exists():
        return
    with files.replacing(folder) as beside:
        for index, encoded, label in split.examples():
            if names[label] in wanted:
                path = beside / names[label] / f"{index:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)


def _images(folder: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    paths = [path for name in names for path in sorted((folder / name).iterdir())]
    return paths, np.array([names.index(path.parent.name) for path in paths])


def _drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of `count` images of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)]
    )


def _write_few(folder: Path, pool: dict, names: list[str], chosen: np.ndarray, seed: int) -> None:
    """train/ and val/ of the images drawn, and test/, linked."""
    if folder.exists():
        return
    paths, labels = pool["train"]
    with files.replacing(folder) as beside:
        for c, name in enumerate(names):
            own = np.random.default_rng(seed).permutation(chosen[labels[chosen] == c])
            held = max(1, len(own) // HELD_OUT)
            for split, some in (("val", own[:held]), ("train", own[held:])):
                (beside / split / name).mkdir(parents=True)
                for i in some:
                    shutil.copy(paths[i], beside / split / name)
        os.symlink(Path(pool["validation"][0][0]).parents[1].resolve(), beside / "test")


def _features(
    work: Path, run: Path, pool: dict, scales: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Way -> features of the training and of the test images: one scale, and several averaged or stacked."""
    predictor = None
    described = {}
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
                for split, (paths, _) in pool.items():
                    shown = bar.track(paths, description=f"{way}: {split}")
                    parts[split] = vggkeras.features(predictor, shown, some, aggregate)
            with files.replacing(file) as beside, open(beside, "wb") as stream:
                np.savez(stream, **parts)
        with np.load(file) as stored:
            described[way] = stored["train"], stored["validation"]
    return described


def _accuracy(run: Path, few: Path) -> float:
    """Top-1 on the test images, by the central crop."""
    noted = run / "test.json"
    if not noted.exists():
        loaded = sources.load_data(str(few))
        (row,) = scoring.evaluate(runtimes.load(run), loaded.split("test"), loaded.class_names)
        files.write_json(noted, row.accuracy)
    return json.loads(noted.read_text())


def _interval(values: list[float]) -> str:
    """Mean and Student's 95% interval over the repeats, %."""
    mean, spread = np.mean(values), np.std(values, ddof=1)
    reach = student.ppf(0.975, len(values) - 1) * spread / np.sqrt(len(values))
    return f"{100 * mean:.1f} ± {100 * reach:.1f}"


def _tell(found: dict, classes: int, pool: dict, images: tuple[int, ...], repeats: int) -> None:
    svms = max(len(values) for counts in found.values() for values in counts.values())
    table = Table(
        title=f"{classes} new classes, accuracy on {len(pool['validation'][1]):,} test images, %: "
        f"mean and 95% interval of {repeats} draws ({svms} of the SVMs)"
    )
    table.add_column("")
    for count in images:
        table.add_column(f"{count} images a class", justify="right")
    for way, counts in found.items():
        table.add_row(way, *(_interval(counts[count]) for count in images))
    console.print(table)
    stacked, averaged = (
        next(w for w in found if w.endswith(end)) for end in ("stacked", "averaged")
    )
    tuned, svms = "fine-tuned", [way for way in found if way.startswith("SVM")]
    for one, other in (
        (stacked, averaged),
        (tuned, svms[0]),
        (svms[0], "from scratch"),
        (tuned, "from scratch"),
    ):
        apart = [
            f"{count}: {_interval([a - b for a, b in zip(found[one][count], found[other][count], strict=False)])}"
            for count in images
        ]
        console.print(f"{one} less {other}, points: {'; '.join(apart)}", highlight=False)


if __name__ == "__main__":
    tyro.cli(main)
