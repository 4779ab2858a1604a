"""Training as the paper trained (section 3.1): mini-batch SGD with momentum, L2 penalty, dropout, a falling rate.

python -m vggkeras train --arch A --data digits --batch-norm --width 0.25 --fc-units 256 --epochs 20
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
from keras import ops
from rich.console import Console
from rich.table import Table

import vggkeras
from vggkeras import augment, checkpoints, configs, datasets, files, models, weights
from vggkeras.configs import Recipe
from vggkeras.datasets import Data, Pixels, Split
from vggkeras.errors import InputError
from vggkeras.terminal import print_table, progress_bar

CACHE_BYTES = 1 << 30  # rescaled images are kept in memory when all of them take less
CHECKPOINT_SECONDS = 300.0  # between checkpoints within an epoch; one is made at every epoch's end
DROPS = 3  # of the learning rate, by 10 each (section 3.1)


@dataclass(frozen=True)
class Run:
    """A finished training run and the folder it left: model.keras, run.json, history.csv, resume/, tensorboard/."""

    path: Path
    metadata: dict[str, Any]  # what run.json says

    @property
    def model(self) -> keras.Model:
        """The best model by validation accuracy, loaded from model.keras."""
        return models.load_model(self.path / "model.keras")[0]


def train(recipe: Recipe, console: Console | None = None, *, resume: bool = False) -> Run:
    """Train one network and keep the best model by validation accuracy.

    Writes the run's folder (see `Run`) and points `runs/latest` to it. Before the first step it reads every training
    and validation image once, which finds the unreadable ones, the mean RGB and its covariance.

    Args:
        recipe: what to train, on what, how.
        console: where to tell of it.
        resume: go on where the run in the recipe's folder was cut off, even by kill -9; on the same machine with the
            same libraries it ends, on a CPU, with the bits it would have ended with. A folder without a run is started.

    Raises:
        InputError (a ValueError): anything wrong with the recipe, the data or an existing run (nothing is written); a
            loss that is no number any more (the best model and the last checkpoint are kept).
        OSError: the run's folder cannot be written.
    """
    console = console or Console()
    data = datasets.load_data(recipe.data, skip_unreadable=recipe.skip_unreadable)
    size = recipe.image_size or data.native_size
    scale = configs.scale_range(recipe.scale, size)
    out = Path(recipe.out or Path("runs") / f"{recipe.arch}-{_slug(recipe.data)}")
    begun = read_run(out) if (out / "run.json").exists() else None
    left = [name for name in ("model.keras", "history.csv", "resume") if (out / name).exists()]
    if (begun or left) and not resume:
        raise InputError(
            f"{out} holds a run already: go on with it with --resume, give another --out, or remove it first."
        )
    if left and not begun:
        raise InputError(
            f"{out} holds {left[0]} of a run, but no run.json to go on by: give another --out, or remove it."
        )
    files.check_writable(out)
    if begun:
        _check_alone(begun, out)
    if recipe.init_from and not begun:
        weights.open_source(recipe.init_from)  # what is wrong with it is said before long work
    if begun:
        data, seen = _as_begun(data, begun, out)
    else:
        data, seen = _read_through(data, recipe.skip_unreadable, console)
    count = data.split("train").count
    if recipe.batch_size > count:  # an epoch is a pass over the images, not several
        if recipe.accumulate > 1:
            raise InputError(
                f"batch_size {recipe.batch_size} is more than the {count} training images: give a smaller one."
            )
        recipe = dataclasses.replace(recipe, batch_size=count)
        console.print(f"batch size {recipe.batch_size}: there are no more training images")
    if begun:
        _check_unchanged(recipe, begun, out, console)
        if begun["status"] == "done":
            if not (out / "model.keras").exists():
                raise InputError(
                    f"{out} is finished, but its model.keras is gone: start another run."
                )
            console.print(
                f"{out} is finished: best validation accuracy {begun['metrics']['val_accuracy']:.4f}"
            )
            return Run(out, begun)
    with _asked_to_stop() as asked:
        return _run(recipe, data, seen, begun, out, size, scale, asked, console)


def _run(
    recipe: Recipe,
    data: Data,
    seen: dict[str, Any],
    begun: dict[str, Any] | None,
    out: Path,
    size: int,
    scale: tuple[int, int],
    asked: threading.Event,
    console: Console,
) -> Run:
    """Build, train from the start or from a checkpoint, and leave the run's folder as `train` says."""
    train_split, validation = data.split("train"), data.split("validation")
    keras.utils.set_random_seed(recipe.seed)
    strategy = _strategy(recipe)
    source = weights.open_source(recipe.init_from) if recipe.init_from and not begun else None
    if source:  # kernels go with what was subtracted when they were trained
        seen["mean_rgb"] = list(source.mean_rgb)
    copied: dict[str, str | None] = {} if begun is None else begun.get("initialised", {})
    with strategy.scope() if strategy else nullcontext():
        model = _network(recipe, size, data, seen["mean_rgb"], recipe.precision)
        if source:
            copied = _initialise(model, source, recipe, data, console)
            source = None  # whose weights would stay in memory
        _freeze(model, recipe, copied)
        compile_model(model, recipe, [layer for layer, origin in copied.items() if origin])
        model.optimizer.build(model.trainable_variables)
    # Mixed precision is of training: the file that is kept computes in float32, as all that is made of it.
    kept = (
        model
        if recipe.precision == "float32"
        else _network(recipe, size, data, seen["mean_rgb"], "float32")
    )
    about = {
        "arch": recipe.arch,
        "recipe": {**dataclasses.asdict(recipe), "out": str(out)},
        "data": data.spec,
        "class_names": data.class_names,
        **seen,
        "image_size": size,
        "scale": (scale[0] + scale[1]) // 2,  # what it is validated at, as in Table 3
        "seed": recipe.seed,
        "skipped": list(data.skipped),
        "versions": versions(),
        "images": {name: split.count for name, split in data.splits.items()},
    }
    if copied:
        about["initialised"] = copied
    steps = train_split.count // recipe.batch_size * recipe.accumulate
    console.print(
        f"{recipe.arch} at {size} px, {model.count_params():,} parameters, {train_split.count:,} training and "
        f"{validation.count:,} validation images of {len(data.class_names)} classes, "
        f"{steps} steps an epoch, on {_where(strategy)}: {out}"
    )
    _tell_recipe(recipe, scale, seen, train_split, console)
    keeper = _Keeper(model, kept, out, about, recipe, steps, asked, console)
    new = not out.exists()
    if not (begun and keeper.go_on()):
        files.remove(out / "resume")  # none that can be gone on from
        if begun and recipe.init_from:
            weights.init_from(model, recipe.init_from, data.class_names)
        keeper.write("training")
    keeper.progress.start()
    try:
        if not keeper.finished:
            _fit(model, keeper, train_split, validation, data, seen, scale, size)
    except BaseException as error:
        if keeper.best is None and not checkpoints.newest_first(out / "resume"):
            files.remove(
                out if new else out / "run.json"
            )  # nothing to keep: leave no half of a run behind
        else:
            keeper.write("stopped")
            if not isinstance(error, InputError):  # a loss that is no number would be none again
                console.print(
                    f"stopped: the same command with --resume goes on with {out}", soft_wrap=True
                )
        _explain(error, train_split, validation, size, scale, out)
        raise
    finally:
        keeper.progress.stop()
    metadata = keeper.write("done")
    console.print(
        f"best validation accuracy {metadata['metrics']['val_accuracy']:.4f} at epoch {metadata['best_epoch']}, "
        f"{metadata['seconds']:.0f} s: {out / 'model.keras'}. Next: python -m export --model {out}",
        soft_wrap=True,
    )
    return Run(out, metadata)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Within it Ctrl-C and SIGTERM set an event, to be heard after the step under way; a second one is KeyboardInterrupt.

    Raised wherever Python happens to be, a first KeyboardInterrupt is lost where that is a destructor, and TensorFlow has
    many.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # no other gets signals
        yield asked
        return

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fit(
    model: keras.Model,
    keeper: _Keeper,
    train_split: Split,
    validation: Split,
    data: Data,
    seen: dict[str, Any],
    scale: tuple[int, int],
    size: int,
) -> None:
    recipe, steps = keeper.recipe, keeper.steps
    rescaled = rescaled_images(train_split, scale, keeper.console)
    basis = augment.color_basis(seen["rgb_covariance"]) if recipe.color else None
    validation_data = validation_batches(validation, recipe.batch_size, size, keeper.about["scale"])
    while not keeper.finished:
        # The rest of an epoch that was cut off is a fit of its own: fit() knows no other way to begin in the middle.
        last = keeper.epoch + 1 if keeper.step else recipe.epochs
        left = steps - keeper.step
        start = (keeper.epoch * steps + keeper.step) * (recipe.batch_size // recipe.accumulate)
        try:
            model.fit(
                training_batches(
                    train_split, recipe, size, scale, data.mirrors, basis, start, rescaled
                ),
                validation_data=validation_data,
                initial_epoch=keeper.epoch,
                epochs=last,
                steps_per_epoch=left,
                shuffle=False,  # tf.data has shuffled
                verbose=0,
                callbacks=[
                    keeper,
                    keras.callbacks.TensorBoard(keeper.out / "tensorboard", write_graph=False),
                ],
            )
        except BaseException as error:
            # Lets go of fit()'s iterators now: their threads call Python, and would wait for ever on one that is ending.
            traceback.clear_frames(error.__traceback__)
            raise


def _network(
    recipe: Recipe, size: int, data: Data, mean_rgb: list[float], precision: str
) -> keras.Model:
    return models.build(
        recipe.arch,
        (size, size, 3),
        len(data.class_names),
        batch_norm=recipe.batch_norm,
        width=recipe.width,
        fc_units=recipe.fc_units,
        dropout=recipe.dropout,
        mean_rgb=mean_rgb,
        init=recipe.init,
        weight_decay=recipe.weight_decay,
        precision=precision,
        seed=recipe.seed,
    )


def _freeze(model: keras.Model, recipe: Recipe, copied: dict[str, str | None]) -> None:
    """Take the layers that the recipe freezes out of training; their batch normalisation keeps its statistics."""
    trained = configs.FROZEN[recipe.freeze]
    if trained is None:
        return
    frozen = [layer for layer in model.layers if layer.weights and layer.name not in trained]
    anew = [layer.name for layer in frozen if not copied.get(layer.name)]
    if anew:
        raise InputError(
            f"--freeze {recipe.freeze} would keep {', '.join(anew[:3])}{' …' if len(anew) > 3 else ''} as they were drawn, for "
            f"{recipe.init_from} does not give {'them' if len(anew) > 1 else 'it'}: give --freeze "
            f"{'conv' if all(name.startswith('fc') for name in anew) else 'none'}, or another --init-from."
        )
    for layer in frozen:
        layer.trainable = False


@keras.saving.register_keras_serializable(package="vggkeras")
class LayerwiseSGD(keras.optimizers.SGD):
    """SGD that multiplies the rate of some layers; a rate for each variable is not Keras'."""

    def __init__(
        self, *args: Any, slower: Sequence[str] = (), multiplier: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.slower, self.multiplier = list(slower), multiplier
        self.multipliers: list[float] = []

    def build(self, variables):
        super().build(variables)
        self.multipliers = [
            self.multiplier if v.path.split("/")[0] in self.slower else 1.0 for v in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        multiplier = self.multipliers[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * multiplier)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slower": self.slower, "multiplier": self.multiplier}


def compile_model(model: keras.Model, recipe: Recipe, copied: Sequence[str] = ()) -> None:
    """Compile with the paper's optimizer and loss: SGD with momentum on multinomial logistic regression.

    The layers `copied` learn at `recipe.copied_rate` of the rate.

    The L2 penalty is in the model (`build(weight_decay=...)`). XLA is used where it helps: always by JAX, by
    TensorFlow on a GPU; on a CPU it halves TensorFlow's speed. float16's gradients are scaled, and steps in which they
    overflow are left out.
    """
    options: dict[str, Any] = {"momentum": recipe.momentum}
    if recipe.accumulate > 1:
        options["gradient_accumulation_steps"] = recipe.accumulate
    if recipe.copied_rate == 1:
        optimizer = keras.optimizers.SGD(recipe.first_rate, **options)
    else:
        optimizer = LayerwiseSGD(
            recipe.first_rate, slower=copied, multiplier=recipe.copied_rate, **options
        )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
        ],
        jit_compile=keras.backend.backend() == "jax" or bool(_gpus()),
        auto_scale_loss=False,
    )


def _gpus() -> list:
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU")


def _strategy(recipe: Recipe):
    """MirroredStrategy where TensorFlow has several devices: all GPUs, or CPUs that someone has divided; else None.

    Raises InputError where a step's images cannot be shared out evenly: the gradient would weigh them unequally.
    """
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        if tf.config.list_physical_devices("GPU"):
            tf.config.set_visible_devices(
                [], "GPU"
            )  # tf.data needs none, and TensorFlow would take its memory
        return None
    devices = _gpus() or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        return None
    images = recipe.batch_size // recipe.accumulate
    if images % len(devices):
        raise InputError(
            f"A step's {images} images cannot be shared out evenly to {len(devices)} devices: give a --batch-size that is a "
            f"multiple of {len(devices) * recipe.accumulate}."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _where(strategy) -> str:
    return keras.backend.backend() + (
        f" with {strategy.num_replicas_in_sync} devices" if strategy else ""
    )


def training_batches(
    split: Split,
    recipe: Recipe,
    size: int,
    scale: tuple[int, int],
    mirrors: bool = True,
    basis: np.ndarray | None = None,
    start: int = 0,
    rescaled: Rescaled | None = None,
):
    """tf.data.Dataset without end of (images `[B, size, size, 3]`, labels int64 `[B]`), a new order every epoch.

    A batch is what one step sees. Which image comes when, its scale, crop, mirroring and colour are pure functions of
    (seed, epoch, index of the image). Batches straddle the epochs, so that all are full and every image is seen equally
    often. What waits is bounded: as many images as there are cores, and two batches.

    Args:
        split: the training images.
        recipe: its seed, batch and whether to flip.
        size: side of the crop, px.
        scale: (lowest, highest) training scale S, px.
        mirrors: whether a mirrored image is still one of its class.
        basis: of `augment.color_basis`; images are then float32, with their colours shifted, otherwise uint8.
        start: how many images to pass over from the very first one on.
        rescaled: the images in memory, from `rescaled_images`, where they fit.
    """
    import tensorflow as tf

    flip = recipe.flip and mirrors

    def example(epoch, index, crop, label):
        uniform, normal = augment.draws(recipe.seed, epoch, index)
        image = crop(uniform)
        return (image if basis is None else augment.color_shift(image, basis, normal)), label

    if rescaled is not None:

        def of_rescaled(epoch, index):
            image = rescaled.image(index)
            return example(
                epoch,
                index,
                lambda u: augment.crop_of_rescaled(image, size, u, flip),
                rescaled.labels[index],
            )

        data = datasets.shuffled_indices(split.count, recipe.seed, start).map(
            of_rescaled, tf.data.AUTOTUNE
        )
    else:

        def of_encoded(epoch, index, encoded, label):
            return example(
                epoch, index, lambda u: augment.random_crop(encoded, size, scale, u, flip), label
            )

        data = split.shuffled(recipe.seed, start).map(of_encoded, tf.data.AUTOTUNE)
    return data.batch(recipe.batch_size // recipe.accumulate, drop_remainder=True).prefetch(2)


@dataclass(frozen=True)
class Rescaled:
    """A split's images, rescaled to one scale, in memory: end to end in one tensor, for they differ in size."""

    pixels: Any  # uint8 [all bytes]
    starts: Any  # int64 [count]
    sizes: Any  # int64 [count, 2], height and width
    labels: Any  # int64 [count]

    def image(self, index):
        """Image `index` as TensorFlow ops, uint8 `[h, w, 3]`."""
        import tensorflow as tf

        h, w = self.sizes[index][0], self.sizes[index][1]
        return tf.reshape(
            self.pixels[self.starts[index] : self.starts[index] + h * w * 3], [h, w, 3]
        )


def rescaled_images(split: Split, scale: tuple[int, int], console: Console) -> Rescaled | None:
    """The images rescaled once for all, where there is one scale and all of them take less than `CACHE_BYTES`."""
    import tensorflow as tf

    if (
        scale[0] != scale[1] or split.count * scale[0] ** 2 * 3 * 4 / 3 > CACHE_BYTES
    ):  # photographs are about 4:3
        return None

    def one(index: int, encoded: bytes, label: int) -> tuple[np.ndarray, int]:
        return augment.rescale(datasets.decode(encoded, split.image_name(index)), scale[0]), label

    with progress_bar(console) as bar:
        read = list(
            bar.track(
                datasets.in_threads(one, split.examples()),
                total=split.count,
                description=f"rescaling {split.name}",
            )
        )
    sizes = np.array([image.shape[:2] for image, _ in read], np.int64)
    lengths = sizes.prod(axis=1) * 3
    with tf.device("CPU"):
        return Rescaled(
            tf.constant(np.concatenate([image.reshape(-1) for image, _ in read])),
            tf.constant(np.cumsum(lengths) - lengths),
            tf.constant(sizes),
            tf.constant([label for _, label in read], tf.int64),
        )


def validation_batches(split: Split, batch_size: int, size: int, scale: int):
    """tf.data.Dataset of (central crops uint8 `[B, size, size, 3]`, labels int64 `[B]`): just what `evaluate` reads."""
    import tensorflow as tf

    def crops() -> Iterator[tuple[np.ndarray, int]]:
        yield from (
            (crop, label) for _, crop, label in augment.center_crops(split, (size, size), scale)
        )

    signature = (tf.TensorSpec((size, size, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(crops, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(split.count)).batch(batch_size)
    if split.count * size * size * 3 < CACHE_BYTES:
        data = data.cache()
    return data.prefetch(2)


def _read_through(data: Data, skip: bool, console: Console) -> tuple[Data, dict[str, Any]]:
    """Read every training and validation image once.

    Returns the data, with `skip` less what is unreadable, and what run.json keeps: mean and covariance of RGB, indices
    of unreadable images, and the training images' smallest sides (how many of which).
    """
    splits, skipped, unreadable = dict(data.splits), list(data.skipped), {}
    pixels: list[Pixels] = []
    for name, split in data.splits.items():
        if name == "test" and not skip:
            continue
        bad: dict[int, str] = {}
        with progress_bar(console) as bar:
            for index, result in bar.track(
                datasets.read_all(split), total=split.count, description=f"reading {split.name}"
            ):
                if not isinstance(result, InputError):
                    pixels += [result] if name == "train" else []
                elif skip:
                    bad[index] = split.image_name(index)
                else:
                    raise result
        if len(bad) == split.count:
            raise InputError(f"{data.spec}: split {name} has no readable image.")
        splits[name] = split.without(bad)
        skipped += bad.values()
        unreadable[name] = sorted(bad)
    if skipped:
        console.print(
            f"skipped {len(skipped)} unreadable images: " + ", ".join(skipped), soft_wrap=True
        )
    mean, covariance = datasets.rgb_statistics(pixels)
    sides, counts = np.unique([image.smallest_side for image in pixels], return_counts=True)
    seen = {
        "mean_rgb": list(mean),
        "rgb_covariance": covariance.tolist(),
        "unreadable": unreadable,
        "smallest_sides": {
            str(side): int(count) for side, count in zip(sides, counts, strict=True)
        },
    }
    return dataclasses.replace(data, splits=splits, skipped=tuple(skipped)), seen


def _as_begun(data: Data, begun: dict[str, Any], out: Path) -> tuple[Data, dict[str, Any]]:
    """The data as the run in `out` began with them, and what it saw in them. Raises InputError where they are others."""
    if "rgb_covariance" not in begun:
        raise InputError(
            f"{out} is of an earlier version of vggkeras, which could not resume: start another run."
        )
    splits = {
        name: split.without(begun["unreadable"].get(name, ()))
        for name, split in data.splits.items()
    }
    for name, split in splits.items():
        if split.count != begun["images"].get(name):
            raise InputError(
                f"{out} was begun with {begun['images'].get(name, 0)} images in split {name} of {begun['data']}; "
                f"{data.spec} has {split.count} now: bring the data back as they were, or start another run."
            )
    if begun["class_names"] != data.class_names:
        raise InputError(
            f"{out} was begun with other classes than {data.spec} has now: start another run."
        )
    seen = {
        key: begun[key] for key in ("mean_rgb", "rgb_covariance", "unreadable", "smallest_sides")
    }
    return dataclasses.replace(data, splits=splits, skipped=tuple(begun["skipped"])), seen


def _check_alone(begun: dict[str, Any], out: Path) -> None:
    """Raises InputError where another process is at work on the run."""
    if begun["status"] != "training" or begun.get("host") != platform.node():
        return
    try:
        started = psutil.Process(begun["process"]).create_time()
    except psutil.NoSuchProcess:
        return
    # A later process of the same number is another one.
    if begun["process"] != os.getpid() and started < (out / "run.json").stat().st_mtime:
        raise InputError(
            f"{out} is being trained by process {begun['process']}: wait for it, or end it first."
        )


def _check_unchanged(recipe: Recipe, begun: dict[str, Any], out: Path, console: Console) -> None:
    """Raises InputError naming the fields of a recipe that are not those of the run it should go on with."""
    now, then = dataclasses.asdict(recipe), dataclasses.asdict(Recipe()) | begun["recipe"]
    changed = [
        f"{field} was {then.get(field)!r} and is {value!r}"
        for field, value in now.items()
        if field not in ("out", "data")
        and value != then.get(field)  # what the data are, was compared before
    ]
    if changed:
        raise InputError(
            f"--resume goes on with the run of {out} as it was begun, but {'; '.join(changed)}: give what it was begun with, "
            "or start another run with --out (and --init-from, to go on from its weights)."
        )
    if begun["versions"] != versions():
        console.print(
            f"[yellow]{out} was begun with {begun['versions']}, and goes on with {versions()}: "
            "the last bits may differ from those of a run that was not cut off[/]",
            soft_wrap=True,
        )


def _tell_recipe(
    recipe: Recipe, scale: tuple[int, int], seen: dict[str, Any], split: Split, console: Console
) -> None:
    parts = [f"rate {recipe.learning_rate:g}"]
    if recipe.batch_size != configs.PAPER_BATCH:
        parts[0] += f" x {recipe.batch_size}/{configs.PAPER_BATCH} = {recipe.first_rate:g}"
    batch = f"batch {recipe.batch_size}"
    if recipe.accumulate > 1:
        batch += f" = {recipe.accumulate} x {recipe.batch_size // recipe.accumulate}"
    parts += [
        batch,
        f"scale {scale[0]}" if scale[0] == scale[1] else f"scale {scale[0]} to {scale[1]}",
    ]
    parts += [recipe.precision, f"seed {recipe.seed}"]
    if recipe.freeze != "none":
        parts.append(f"trained: {', '.join(configs.FROZEN[recipe.freeze] or ())}")
    if recipe.copied_rate != 1:
        parts.append(f"copied layers at {recipe.copied_rate:g} of the rate")
    console.print(", ".join(parts), highlight=False, soft_wrap=True)
    small = sum(count for side, count in seen["smallest_sides"].items() if int(side) < scale[0])
    if small:
        console.print(
            f"{small:,} of {split.count:,} training images are smaller than the scale, {scale[0]} px, and are enlarged"
        )


def _initialise(
    model: keras.Model, source: weights.Source, recipe: Recipe, data: Data, console: Console
) -> dict[str, str | None]:
    """Copy weights from what the recipe names, and print which layer came from where."""
    copied = weights.init_from(model, source, data.class_names)
    table = Table(title=f"weights from {recipe.init_from}")
    table.add_column("layer")
    table.add_column("from")
    for layer, origin in copied.items():
        table.add_row(layer, origin or f"[dim]{recipe.init}, seed {recipe.seed}[/]")
    print_table(table, console)
    for line in weights.explain(copied, source, model):
        console.print(line, soft_wrap=True, highlight=False)
    mean = ", ".join(f"{value:.3f}" for value in source.mean_rgb)
    console.print(
        f"images are centred by the mean RGB of {source.name}: {mean}",
        soft_wrap=True,
        highlight=False,
    )
    return copied


def _explain(
    error: BaseException,
    train_split: Split,
    validation: Split,
    size: int,
    scale: tuple[int, int],
    out: Path,
) -> None:
    """Say what a user can do about it where tf.data stopped at an image, whose name it does not know, or memory was short."""
    import tensorflow as tf

    if not isinstance(error, Exception) or isinstance(error, InputError):
        return
    kept = (
        f"the best model so far is kept in {out}"
        if (out / "model.keras").exists()
        else "no epoch was finished"
    )
    if isinstance(error, tf.errors.ResourceExhaustedError) or "RESOURCE_EXHAUSTED" in str(error):
        raise InputError(
            f"A step does not fit in memory: give --accumulate 2 (or 4, 8 …), which divides the batch and trains the same, "
            f"a smaller --batch-size, --width or --image-size; {kept}."
        ) from error
    if not isinstance(error, tf.errors.OpError):
        return
    uniform = tf.zeros(4)
    for split in (train_split, validation):
        for index, encoded, _ in split.examples():
            try:
                datasets.decode(encoded, split.image_name(index))
                augment.random_crop(tf.constant(encoded), size, scale, uniform, False)
            except (InputError, tf.errors.OpError) as found:
                reason = " ".join(str(found).split())[:200]
                raise InputError(
                    f"{split.image_name(index)} cannot be read any more ({reason}): replace it and --resume; {kept}."
                ) from error


class _Keeper(keras.callbacks.Callback):
    """Follows a run: the schedule, the best model, history.csv, run.json and checkpoints; shows where it is."""

    def __init__(
        self,
        network: keras.Model,
        kept: keras.Model,
        out: Path,
        about: dict[str, Any],
        recipe: Recipe,
        steps: int,
        asked: threading.Event,
        console: Console,
    ) -> None:
        super().__init__()
        self.network, self.kept, self.out, self.about, self.recipe = (
            network,
            kept,
            out,
            about,
            recipe,
        )
        self.steps, self.asked, self.console = steps, asked, console
        self.epoch = 0  # finished ones
        self.step = 0  # finished ones of the epoch under way
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.waited = 0  # epochs since the best one or the last drop
        self.drops = 0
        self.finished = False
        self.metrics: list[np.ndarray] = []  # of the epoch under way, to go on with
        self.progress = progress_bar(console)
        self.all = self.progress.add_task("all epochs", total=recipe.epochs * steps)
        self.seconds_before = 0.0
        self.start = self.saved = time.monotonic()

    @property
    def rate(self) -> float:
        """Learning rate of this moment."""
        return self.recipe.first_rate / 10**self.drops

    def seconds(self) -> float:
        """Spent on the run, before it was cut off and since."""
        return self.seconds_before + time.monotonic() - self.start

    def go_on(self) -> bool:
        """Take up the run's last whole checkpoint; False where there is none, and the run begins anew."""
        arrays, state, damaged = checkpoints.load(self.out / "resume")
        instead = "the run begins anew" if state is None else "the one before is used"
        for reason in damaged:
            self.console.print(f"[yellow]{reason}: {instead}[/]", soft_wrap=True)
        if state is None:
            if not damaged:
                self.console.print(f"{self.out} has no checkpoint yet: {instead}")
            return False
        if state["best"] and not (self.out / "model.keras").exists():
            self.console.print(
                f"[yellow]{self.out / 'model.keras'} is gone: the run begins anew[/]",
                soft_wrap=True,
            )
            return False
        variables = self._variables()
        for variable, array in zip(variables, arrays, strict=False):
            variable.assign(array)
        self.metrics = arrays[len(variables) :]
        for field in ("epoch", "step", "rows", "best", "waited", "drops", "finished"):
            setattr(self, field, state[field])
        self.seconds_before = state["seconds"]
        self.progress.update(self.all, completed=self.epoch * self.steps + self.step)
        self.console.print(f"goes on after step {self.step} of epoch {self.epoch + 1}")
        return True

    def on_epoch_begin(self, epoch, logs=None):
        if self.metrics:  # fit() has just reset those there are; a first batch makes the rest
            batch = self.recipe.batch_size // self.recipe.accumulate
            images = np.zeros((batch, *self.network.input_shape[1:]), np.uint8)
            self.network.test_on_batch(images, np.zeros(batch, np.int64))
            for variable, array in zip(self.model.metrics_variables, self.metrics, strict=True):
                variable.assign(array)
            self.metrics = []
        self.epoch_start, self.epoch_step = time.monotonic(), self.step
        self.progress.update(self.all, description=f"epoch {epoch + 1} of {self.recipe.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.progress.advance(self.all)
        if not math.isfinite(
            float(logs["loss"])
        ):  # a mean over the epoch: no number from the first such step on
            self._diverged("the loss is")
        due = time.monotonic() - self.saved > CHECKPOINT_SECONDS
        if (due or self.asked.is_set()) and self.step < self.steps:
            self._checkpoint()
        if self.asked.is_set() and self.step < self.steps:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        row: dict[str, Any] = {"epoch": epoch + 1}
        row |= {k: round(float(v), 6) for k, v in (logs or {}).items() if k != "learning_rate"}
        row["learning_rate"] = self.rate
        if not math.isfinite(row["val_loss"]):
            self._diverged("the validation loss is")
        self.rows.append(row)
        better = self.best is None or row["val_accuracy"] > self.best["val_accuracy"]
        # Of a few validation images, as many are often right: then the surer model is kept. The schedule still waits.
        surer = not better and self.best is not None and _surer(row, self.best)
        if better or surer:
            if self.kept is not self.network:
                self.kept.set_weights(self.network.get_weights())
            models.save_model(
                self.kept, self.out / "model.keras", {**self.about, "epoch": epoch + 1}
            )
            if self.best is None:
                _point_latest(self.out)
            self.best = row
        self.epoch, self.step = epoch + 1, 0
        told = self._schedule(better)
        self._write_history()
        self.write("training")
        self._checkpoint()
        spent = time.monotonic() - self.epoch_start
        images = (self.steps - self.epoch_step) * self.recipe.batch_size // self.recipe.accumulate
        self.console.print(
            f"epoch {epoch + 1:3d}/{self.recipe.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
            f"validation {row['val_accuracy']:.4f}{' best' if better or surer else '     '}  rate {row['learning_rate']:.1e}  "
            f"{spent:.0f} s, {images / spent:.0f} images/s{told}",
            highlight=False,
            soft_wrap=True,
        )
        if self.asked.is_set() and not self.finished:
            raise KeyboardInterrupt

    def _schedule(self, better: bool) -> str:
        """Section 3.1: divide the rate by 10 when validation accuracy stops improving, three times, then stop.

        Returns what the epoch's line says about it.
        """
        assert self.best is not None
        self.waited = 0 if better else self.waited + 1
        if self.epoch == self.recipe.epochs:
            self.finished = True
            return ""
        if self.waited < self.recipe.patience:
            return ""
        best = f"{self.best['val_accuracy']:.4f} of epoch {self.best['epoch']} not bettered for {self.waited} epochs"
        if self.drops == DROPS:
            self.finished = self.model.stop_training = True
            return f"; {best} after {DROPS} drops of the rate: training stops, that epoch's model is kept"
        self.waited = 0
        self.drops += 1
        self.model.optimizer.learning_rate = self.rate
        return f"; {best}: rate drops to {self.rate:.1e}, {self.drops} of {DROPS}"

    def _diverged(self, what: str) -> None:
        kept = [f"{self.out / 'model.keras'} of epoch {self.best['epoch']}"] if self.best else []
        kept += [str(path) for path in checkpoints.newest_first(self.out / "resume")[:1]]
        raise InputError(
            f"{what} no finite number any more at step {self.step} of epoch {self.epoch + 1}, learning rate {self.rate:g}: "
            f"start another run with a lower --learning-rate"
            + (f", perhaps with --init-from {self.out}" if self.best else "")
            + f"; kept as last good: {' and '.join(kept) or 'nothing yet'}."
        )

    def _variables(self) -> list[keras.Variable]:
        return [*self.network.variables, *self.network.optimizer.variables]

    def _checkpoint(self) -> None:
        if keras.backend.backend() == "jax":
            self.network.jax_state_sync()
        arrays = [ops.convert_to_numpy(v) for v in self._variables()]
        if not all(np.isfinite(array).all() for array in arrays):
            self._diverged("a weight is")
        metrics = (
            [ops.convert_to_numpy(v) for v in self.network.metrics_variables] if self.step else []
        )
        fields = ("epoch", "step", "rows", "best", "waited", "drops", "finished")
        state = {field: getattr(self, field) for field in fields} | {"seconds": self.seconds()}
        checkpoints.save(
            self.out / "resume", self.epoch * self.steps + self.step, arrays + metrics, state
        )
        self.saved = time.monotonic()

    def _write_history(self) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.out / "history.csv", table.getvalue())

    def write(self, status: str) -> dict[str, Any]:
        """Write run.json, and return it."""
        best = self.best or {}
        metrics = {k: v for k, v in best.items() if k != "epoch"}
        metadata = {
            **self.about,
            "status": status,
            "best_epoch": best.get("epoch"),
            "epochs_trained": self.epoch,
            "metrics": metrics,
            "seconds": round(self.seconds(), 1),
            "host": platform.node(),
            "process": os.getpid(),
        }
        files.write_json(self.out / "run.json", metadata)
        return metadata


def _surer(row: dict[str, float], best: dict[str, float]) -> bool:
    """Whether an epoch is as good as the best one by validation accuracy, and better by cross-entropy."""
    same = row["val_accuracy"] == best["val_accuracy"]
    return same and row["val_cross_entropy"] < best["val_cross_entropy"]


def versions() -> dict[str, str]:
    """Of what decides a run's numbers."""
    names = ("keras", keras.backend.backend(), "numpy", "pillow")
    return {"vggkeras": vggkeras.__version__, "python": platform.python_version()} | {
        n: version(n) for n in names
    }


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
    """A run's run.json. Raises InputError where that is damaged."""
    try:
        metadata = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        metadata = error
    if not isinstance(metadata, dict) or not {"recipe", "status", "images"} <= set(metadata):
        raise InputError(f"{path / 'run.json'} is damaged: give another --out, or remove the run.")
    return metadata
