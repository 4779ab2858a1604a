"""Training as the paper trained (section 3.1): mini-batch SGD with momentum, L2 penalty, dropout, a falling rate.

python -m vggkeras train --arch A --data digits --batch-norm --width 0.25 --fc-units 256 --epochs 20
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

import vggkeras
from vggkeras import augment, configs, datasets, files, models
from vggkeras.configs import Recipe
from vggkeras.datasets import Data, Split
from vggkeras.errors import InputError
from vggkeras.terminal import progress_bar

CACHE_BYTES = 1 << 30  # rescaled images are kept in memory when all of them take less


@dataclass(frozen=True)
class Run:
    """A finished training run and the folder it left: model.keras, run.json, history.csv, tensorboard/."""

    path: Path
    metadata: dict[str, Any]  # what run.json says

    @property
    def model(self) -> keras.Model:
        """The best model by validation accuracy, loaded from model.keras."""
        return models.load_model(self.path / "model.keras")[0]


def train(recipe: Recipe, console: Console | None = None) -> Run:
    """Train one network and keep the best model by validation accuracy.

    Writes the run's folder (see `Run`) and points `runs/latest` to it. Before the first step it reads every training
    and validation image once, which finds the unreadable ones and the mean RGB.

    Raises:
        InputError (a ValueError): anything wrong with the recipe, the data or an existing run; nothing is written.
        OSError: the run's folder cannot be written.
    """
    console = console or Console()
    data = datasets.load_data(recipe.data, skip_unreadable=recipe.skip_unreadable)
    size = recipe.image_size or data.native_size
    scale = configs.rescaled_side(size)
    out = Path(recipe.out or Path("runs") / f"{recipe.arch}-{_slug(recipe.data)}")
    if (out / "run.json").exists():
        raise InputError(f"{out} holds a run already: give another --out, or remove it first.")
    files.check_writable(out)

    data, mean = _read_through(data, recipe.skip_unreadable, console)
    train_split, validation = data.split("train"), data.split("validation")
    if recipe.batch_size > train_split.count:  # an epoch is a pass over the images, not several
        recipe = dataclasses.replace(recipe, batch_size=train_split.count)
        console.print(f"batch size {recipe.batch_size}: there are no more training images")
    keras.utils.set_random_seed(recipe.seed)
    model = models.build(
        recipe.arch,
        (size, size, 3),
        len(data.class_names),
        batch_norm=recipe.batch_norm,
        width=recipe.width,
        fc_units=recipe.fc_units,
        dropout=recipe.dropout,
        mean_rgb=mean,
        init=recipe.init,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
    )
    compile_model(model, recipe)
    about = {
        "arch": recipe.arch,
        "recipe": {**dataclasses.asdict(recipe), "out": str(out)},
        "data": data.spec,
        "class_names": data.class_names,
        "mean_rgb": list(mean),
        "image_size": size,
        "scale": scale,
        "seed": recipe.seed,
        "skipped": list(data.skipped),
        "versions": versions(),
        "images": {name: split.count for name, split in data.splits.items()},
    }
    steps = train_split.count // recipe.batch_size
    console.print(
        f"{recipe.arch} at {size} px, {model.count_params():,} parameters, {train_split.count:,} training and "
        f"{validation.count:,} validation images of {len(data.class_names)} classes, "
        f"{steps} steps an epoch, on {keras.backend.backend()}: {out}"
    )
    new = not out.exists()
    files.write_json(out / "run.json", {**about, "status": "training", "best_epoch": None, "metrics": {}})
    keeper = _Keeper(out, about, recipe, steps, console)
    try:
        model.fit(
            training_batches(train_split, recipe, size, scale, data.mirrors),
            validation_data=validation_batches(validation, recipe.batch_size, size, scale),
            epochs=recipe.epochs,
            steps_per_epoch=steps,
            shuffle=False,  # tf.data has shuffled
            verbose=0,
            callbacks=[
                keras.callbacks.ReduceLROnPlateau(
                    monitor="val_accuracy",
                    mode="max",
                    factor=0.1,
                    patience=recipe.patience,
                    min_delta=0,
                    # Three drops, section 3.1; a hair above, so that float32 cannot find room for a fourth.
                    min_lr=recipe.learning_rate * 1e-3 * (1 + 1e-6),
                ),
                keeper,
                keras.callbacks.TensorBoard(out / "tensorboard", write_graph=False),
            ],
        )
    except BaseException as error:
        if keeper.best is None:  # nothing to keep: leave no half of a run behind
            files.remove(out if new else out / "run.json")
        _explain(error, train_split, validation, scale, out)
        raise
    finally:
        keeper.progress.stop()
    metadata = keeper.write("done")
    console.print(
        f"best validation accuracy {metadata['metrics']['val_accuracy']:.4f} at epoch {metadata['best_epoch']}, "
        f"{keeper.seconds():.0f} s: {out / 'model.keras'}"
    )
    return Run(out, metadata)


def compile_model(model: keras.Model, recipe: Recipe) -> None:
    """Compile with the paper's optimizer and loss: SGD with momentum on multinomial logistic regression.

    The L2 penalty is in the model (`build(weight_decay=...)`). XLA is used where it helps: always by JAX, by
    TensorFlow on a GPU; on a CPU it halves TensorFlow's speed.
    """
    model.compile(
        optimizer=keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
        ],
        jit_compile=keras.backend.backend() == "jax" or _has_gpu(),
    )


def _has_gpu() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def training_batches(split: Split, recipe: Recipe, size: int, scale: int, mirrors: bool = True):
    """tf.data.Dataset without end of (images uint8 `[B, size, size, 3]`, labels int64 `[B]`), a new order every pass.

    Each image is rescaled to smallest side `scale`; a random crop of it is taken, mirrored half of the time. Order and
    crops are a pure function of the recipe's seed.
    """
    import tensorflow as tf

    def decoded(encoded, label):
        return augment.decode_and_rescale(encoded, scale), label

    if split.count * scale * scale * 3 * 4 / 3 < CACHE_BYTES:  # photographs are about 4:3
        data = split.encoded().map(decoded, tf.data.AUTOTUNE).cache().shuffle(split.count, recipe.seed)
    else:
        data = split.encoded(recipe.seed).map(decoded, tf.data.AUTOTUNE)

    def crop(number, example):
        image, label = example
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        return augment.random_crop(image, size, seed, recipe.flip and mirrors), label

    # Batches straddle the passes, so that all are full and every image is seen equally often.
    return data.repeat().enumerate().map(crop, tf.data.AUTOTUNE).batch(recipe.batch_size).prefetch(tf.data.AUTOTUNE)


def validation_batches(split: Split, batch_size: int, size: int, scale: int):
    """tf.data.Dataset of (central crops uint8 `[B, size, size, 3]`, labels int64 `[B]`): just what `evaluate` reads."""
    import tensorflow as tf

    def crops() -> Iterator[tuple[np.ndarray, int]]:
        yield from ((crop, label) for _, crop, label in augment.center_crops(split, (size, size), scale))

    signature = (tf.TensorSpec((size, size, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(crops, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(split.count)).batch(batch_size)
    if split.count * size * size * 3 < CACHE_BYTES:
        data = data.cache()
    return data.prefetch(tf.data.AUTOTUNE)


def _read_through(data: Data, skip: bool, console: Console) -> tuple[Data, tuple[float, float, float]]:
    """Read every training and validation image once: the mean RGB, and with `skip` the data less what is unreadable."""
    splits, skipped, means = dict(data.splits), list(data.skipped), []
    for name, split in data.splits.items():
        if name == "test" and not skip:
            continue
        bad: dict[int, str] = {}
        with progress_bar(console) as bar:
            for index, result in bar.track(
                datasets.read_all(split), total=split.count, description=f"reading {split.name}"
            ):
                if not isinstance(result, InputError):
                    means += [result] if name == "train" else []
                elif skip:
                    bad[index] = split.image_name(index)
                else:
                    raise result
        if len(bad) == split.count:
            raise InputError(f"{data.spec}: split {name} has no readable image.")
        splits[name] = split.without(bad)
        skipped += bad.values()
    if skipped:
        console.print(f"skipped {len(skipped)} unreadable images: " + ", ".join(skipped), soft_wrap=True)
    return dataclasses.replace(data, splits=splits, skipped=tuple(skipped)), datasets.mean_rgb(means)


def _explain(error: BaseException, train_split: Split, validation: Split, scale: int, out: Path) -> None:
    """Name the image that stopped tf.data, whose own message cannot."""
    import tensorflow as tf

    if not isinstance(error, tf.errors.OpError):
        return
    kept = f"the best model so far is kept in {out}" if (out / "model.keras").exists() else "no epoch was finished"
    for split in (train_split, validation):
        for index, encoded, _ in split.examples():
            try:
                augment.decode_and_rescale(tf.constant(encoded), scale)
            except tf.errors.OpError as found:
                raise InputError(
                    f"{split.image_name(index)} cannot be read ({str(found)[:200]}): replace or remove it; {kept}."
                ) from error


class _Keeper(keras.callbacks.Callback):
    """Keeps the best model, history.csv and run.json as training goes, and shows where it is."""

    def __init__(self, out: Path, about: dict[str, Any], recipe: Recipe, steps: int, console: Console) -> None:
        super().__init__()
        self.out, self.about, self.recipe, self.steps = out, about, recipe, steps
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.progress = progress_bar(console)
        self.start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def on_train_begin(self, logs=None):
        self.progress.start()
        self.all = self.progress.add_task("all epochs", total=self.recipe.epochs * self.steps)
        self.rate = float(self.model.optimizer.learning_rate)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_start = time.monotonic()
        self.progress.update(self.all, description=f"epoch {epoch + 1} of {self.recipe.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.progress.advance(self.all)

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {k: round(float(v), 6) for k, v in (logs or {}).items() if k != "learning_rate"}
        row |= {"learning_rate": self.rate, "seconds": round(time.monotonic() - self.epoch_start, 3)}
        self.rows.append(row)
        better = self.best is None or row["val_accuracy"] > self.best["val_accuracy"]
        if better:
            models.save_model(self.model, self.out / "model.keras", {**self.about, "epoch": epoch + 1})
            if self.best is None:
                _point_latest(self.out)
            self.best = row
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row))
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.out / "history.csv", table.getvalue())
        self.write("training")
        rate = float(self.model.optimizer.learning_rate)  # after ReduceLROnPlateau, which stands before this callback
        drop = f"; no better for {self.recipe.patience} epochs, rate drops to {rate:.1e}" if rate < self.rate else ""
        self.progress.console.print(
            f"epoch {epoch + 1:3d}/{self.recipe.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
            f"validation {row['val_accuracy']:.4f}{' best' if better else '     '}  rate {self.rate:.1e}  "
            f"{row['seconds']:.0f} s{drop}",
            highlight=False,
            soft_wrap=True,
        )
        self.rate = rate

    def write(self, status: str) -> dict[str, Any]:
        """Write run.json, and return it."""
        best = self.best or {}
        metrics = {k: v for k, v in best.items() if k != "epoch"} | {"train_seconds": round(self.seconds(), 1)}
        metadata = {**self.about, "status": status, "best_epoch": best.get("epoch"), "metrics": metrics}
        files.write_json(self.out / "run.json", metadata)
        return metadata


def versions() -> dict[str, str]:
    """Of what decides a run's numbers."""
    names = ("keras", keras.backend.backend(), "numpy", "pillow")
    return {"vggkeras": vggkeras.__version__, "python": platform.python_version()} | {n: version(n) for n in names}


def _slug(spec: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in spec).strip("-")


def _point_latest(out: Path) -> None:
    """Make runs/latest a relative link to the newest run, wherever that is; a folder of that name is left alone."""
    latest = Path("runs/latest")
    if latest.is_dir() and not latest.is_symlink():
        return
    with files.replacing(latest) as beside:
        beside.symlink_to(os.path.relpath(out.resolve(), latest.parent.resolve()))


def read_run(path: Path) -> dict[str, Any]:
    """A run's run.json."""
    return json.loads((path / "run.json").read_text(encoding="utf-8"))
