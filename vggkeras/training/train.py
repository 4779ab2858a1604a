"""Training as the paper trained (section 3.1): mini-batch SGD with momentum, L2 penalty, dropout, a falling rate.

python -m vggkeras train --arch A --data digits --batch-norm --width 0.25 --fc-units 256 --epochs 20
"""

from __future__ import annotations

import dataclasses
import threading
import traceback
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from vggkeras import files, models
from vggkeras import recipe as recipe_module
from vggkeras.card import ModelCard
from vggkeras.data import augment, decoding, sources
from vggkeras.data.splits import Data, Split
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import print_table
from vggkeras.training import checkpoints
from vggkeras.training.callbacks import Keeper, asked_to_stop
from vggkeras.training.devices import device_text, distribution_strategy
from vggkeras.training.optimizer import compile_model, freeze
from vggkeras.training.pipeline import rescaled_images, training_batches, validation_batches
from vggkeras.training.record import RUN, RunRecord
from vggkeras.training.runs import (
    Run,
    as_begun,
    check_alone,
    check_unchanged,
    read_through,
    slug,
    versions,
)
from vggkeras.weights import identify, load


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
    data = sources.load_data(recipe.data, skip_unreadable=recipe.skip_unreadable)
    size = recipe.image_size or data.native_size
    scale = recipe_module.scale_range(recipe.scale, size)
    out = Path(recipe.out or Path("runs") / f"{recipe.arch}-{slug(recipe.data)}")
    begun = RunRecord.read(out) if (out / RUN).exists() else None
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
        check_alone(begun, out)
    if recipe.init_from and not begun:
        identify.open_source(recipe.init_from)  # what is wrong with it is said before long work
    if begun:
        data, seen = as_begun(data, begun.card, out), begun.card
    else:
        data, seen = read_through(data, recipe.skip_unreadable, console)
    count = data.split("train").count
    if recipe.batch_size > count:  # an epoch is a pass over the images, not several
        if recipe.accumulate > 1:
            raise InputError(
                f"batch_size {recipe.batch_size} is more than the {count} training images: give a smaller one."
            )
        recipe = dataclasses.replace(recipe, batch_size=count)
        console.print(f"batch size {recipe.batch_size}: there are no more training images")
    if begun:
        check_unchanged(recipe, begun.card, out, console)
        if begun.status == "done":
            if not (out / "model.keras").exists():
                raise InputError(
                    f"{out} is finished, but its model.keras is gone: start another run."
                )
            console.print(
                f"{out} is finished: best validation accuracy {begun.metrics['val_accuracy']:.4f}"
            )
            return Run(out, begun)
    with asked_to_stop() as asked:
        return _run(recipe, data, seen, begun, out, size, scale, asked, console)


def _run(
    recipe: Recipe,
    data: Data,
    seen: ModelCard,
    begun: RunRecord | None,
    out: Path,
    size: int,
    scale: tuple[int, int],
    asked: threading.Event,
    console: Console,
) -> Run:
    """Build, train from the start or from a checkpoint, and leave the run's folder as `train` says."""
    train_split, validation = data.split("train"), data.split("validation")
    keras.utils.set_random_seed(recipe.seed)
    strategy = distribution_strategy(recipe)
    source = identify.open_source(recipe.init_from) if recipe.init_from and not begun else None
    if source:  # kernels go with what was subtracted when they were trained
        seen = dataclasses.replace(seen, mean_rgb=source.mean_rgb)
    copied = {} if begun is None else dict(begun.card.initialized)
    with strategy.scope() if strategy else nullcontext():
        model = _network(recipe, size, data, seen.mean_rgb, recipe.precision)
        if source:
            copied = _initialise(model, source, recipe, data, console)
            source = None  # whose weights would stay in memory
        freeze(model, recipe, copied)
        compile_model(model, recipe, [layer for layer, origin in copied.items() if origin])
        model.optimizer.build(model.trainable_variables)
    # Mixed precision is of training: the file that is kept computes in float32, as all that is made of it.
    kept = (
        model
        if recipe.precision == "float32"
        else _network(recipe, size, data, seen.mean_rgb, "float32")
    )
    card = dataclasses.replace(
        seen,
        arch=recipe.arch,
        recipe=dataclasses.replace(recipe, out=out),
        data=data.spec,
        class_names=tuple(data.class_names),
        image_size=size,
        scale=(scale[0] + scale[1]) // 2,  # what it is validated at, as in Table 3
        seed=recipe.seed,
        skipped=data.skipped,
        versions=versions(),
        images={name: split.count for name, split in data.splits.items()},
        initialized=copied,
    )
    steps = train_split.count // recipe.batch_size * recipe.accumulate
    console.print(
        f"{recipe.arch} at {size} px, {model.count_params():,} parameters, {train_split.count:,} training and "
        f"{validation.count:,} validation images of {len(data.class_names)} classes, "
        f"{steps} steps an epoch, on {device_text(strategy)}: {out}"
    )
    _tell_recipe(recipe, scale, seen, train_split, console)
    keeper = Keeper(model, kept, out, card, recipe, steps, asked, console)
    new = not out.exists()
    if not (begun and keeper.go_on()):
        files.remove(out / "resume")  # none that can be gone on from
        if begun and recipe.init_from:
            load.init_from(model, recipe.init_from, data.class_names)
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
    record = keeper.write("done")
    console.print(
        f"best validation accuracy {record.metrics['val_accuracy']:.4f} at epoch {record.best_epoch}, "
        f"{record.seconds:.0f} s: {out / 'model.keras'}. Next: python -m export --model {out}",
        soft_wrap=True,
    )
    return Run(out, record)


def _fit(
    model: keras.Model,
    keeper: Keeper,
    train_split: Split,
    validation: Split,
    data: Data,
    seen: ModelCard,
    scale: tuple[int, int],
    size: int,
) -> None:
    recipe, steps = keeper.recipe, keeper.steps
    rescaled = rescaled_images(train_split, scale, keeper.console)
    basis = augment.color_basis(np.array(seen.rgb_covariance)) if recipe.color else None
    validation_data = validation_batches(
        validation, recipe.batch_size, size, keeper.card.scale or size
    )
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
    recipe: Recipe, size: int, data: Data, mean_rgb: tuple[float, ...], precision: str
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


def _tell_recipe(
    recipe: Recipe, scale: tuple[int, int], seen: ModelCard, split: Split, console: Console
) -> None:
    parts = [f"rate {recipe.learning_rate:g}"]
    if recipe.batch_size != recipe_module.PAPER_BATCH:
        parts[0] += f" x {recipe.batch_size}/{recipe_module.PAPER_BATCH} = {recipe.first_rate:g}"
    batch = f"batch {recipe.batch_size}"
    if recipe.accumulate > 1:
        batch += f" = {recipe.accumulate} x {recipe.batch_size // recipe.accumulate}"
    parts += [
        batch,
        f"scale {scale[0]}" if scale[0] == scale[1] else f"scale {scale[0]} to {scale[1]}",
    ]
    parts += [recipe.precision, f"seed {recipe.seed}"]
    if recipe.freeze != "none":
        parts.append(f"trained: {', '.join(recipe_module.FROZEN[recipe.freeze] or ())}")
    if recipe.copied_rate != 1:
        parts.append(f"copied layers at {recipe.copied_rate:g} of the rate")
    console.print(", ".join(parts), highlight=False, soft_wrap=True)
    small = sum(count for side, count in seen.smallest_sides.items() if int(side) < scale[0])
    if small:
        console.print(
            f"{small:,} of {split.count:,} training images are smaller than the scale, {scale[0]} px, and are enlarged"
        )


def _initialise(
    model: keras.Model, source: identify.Source, recipe: Recipe, data: Data, console: Console
) -> dict[str, str | None]:
    """Copy weights from what the recipe names, and print which layer came from where."""
    copied = load.init_from(model, source, data.class_names)
    table = Table(title=f"weights from {recipe.init_from}")
    table.add_column("layer")
    table.add_column("from")
    for layer, origin in copied.items():
        table.add_row(layer, origin or f"[dim]{recipe.init}, seed {recipe.seed}[/]")
    print_table(table, console)
    for line in load.explain(copied, source, model):
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
                decoding.decode(encoded, split.image_name(index))
                augment.random_crop(tf.constant(encoded), size, scale, uniform, False)
            except (InputError, tf.errors.OpError) as found:
                reason = " ".join(str(found).split())[:200]
                raise InputError(
                    f"{split.image_name(index)} cannot be read any more ({reason}): replace it and --resume; {kept}."
                ) from error
