"""Training as in section 3.1: SGD with momentum, L2 penalty, dropout, a falling learning rate.

python -m vggkeras train --arch A --data digits --batch-norm --width 0.25 --fc-units 256 --epochs 20
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from vggkeras import files, locks, models
from vggkeras import recipe as recipe_module
from vggkeras.card import ModelCard
from vggkeras.data import in_memory, sources
from vggkeras.data.decoding import some
from vggkeras.data.reading import unread
from vggkeras.data.splits import Data
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import plain
from vggkeras.training import checkpoints, devices, failures
from vggkeras.training.callbacks import asked_to_stop
from vggkeras.training.first_pass import read_through
from vggkeras.training.fitting import fit
from vggkeras.training.hosts import Hosts
from vggkeras.training.meeting import joined
from vggkeras.training.optimizer import balanced_weights, compile_model, freeze
from vggkeras.training.printing import print_copied, print_job
from vggkeras.training.progress import Job, Progress
from vggkeras.training.record import RunRecord
from vggkeras.training.runs import (
    Run,
    as_begun,
    begun_run,
    check_hosts,
    check_unchanged,
    default_folder,
    facts,
    versions,
)
from vggkeras.training.schedule import monitored
from vggkeras.weights import identify, load


def train(
    recipe: Recipe,
    console: Console | None = None,
    *,
    data: Data | None = None,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train one network and keep the best model by what the recipe monitors.

    Writes the run's folder (see `Run`) and points `runs/latest` to it. Before the first step it
    reads every training and validation image once, which finds the unreadable ones, the mean RGB
    and its covariance. It does not where the same files were read before (see `read_through`).

    Where Keras' KERAS_DISTRIBUTION_* variables are set, several hosts train it together (see
    `hosts`), and the first of them writes.

    Args:
        recipe: what to train, on what, and how.
        console: where to print.
        data: of Python (`Data.from_arrays`, `Data.from_tf_data`), instead of those that the recipe
            names. To resume, give the same again.
        resume: go on where the run in the recipe's folder was cut off, even by kill -9. On the same
            machine with the same libraries it ends, on a CPU, with the bits it would have ended
            with. A folder without a run is started. Other `recipe.epochs` than it began with
            lengthen or shorten the run, also a finished one.
        callbacks: Keras callbacks for `fit`. Their own state is not kept across a resume, only what
            they keep themselves; after a resume within an epoch, `fit` is called twice. One that
            stops training ends the run.

    Raises:
        InputError (a ValueError): anything wrong with the recipe, the data or an existing run, or
            another process trains into its folder (nothing is written); or the loss became NaN or
            infinite (the best model and the last checkpoint are kept); or the hosts differ, or one
            of several ended.
        OSError: the run's folder cannot be written.
    """
    console = plain(console)
    if data is not None:
        if recipe.validation is not None:
            raise InputError(
                "validation is of data that a string names: leave it out of the recipe, and give "
                "it to Data.from_arrays or Data.from_tf_data."
            )
        recipe = dataclasses.replace(recipe, data=data.spec)
    out = Path(recipe.out or default_folder(recipe))
    recipe = dataclasses.replace(recipe, out=out)
    with joined(console) as hosts:
        if not hosts.is_first:
            console.print("the first host writes the run, and tells how it goes")
            quiet = Console(quiet=True)
            return _train(recipe, data, quiet, callbacks, resume, False, hosts)
        files.check_writable(out)
        with locks.locked(out) as new:
            return _train(recipe, data, console, callbacks, resume, new, hosts)


def _train(
    recipe: Recipe,
    given: Data | None,
    console: Console,
    callbacks: Sequence[keras.callbacks.Callback],
    resume: bool,
    new: bool,
    hosts: Hosts,
) -> Run:
    """Train in a folder that is this process' own; `new`: it has just been made."""
    out = recipe.out
    assert out
    begun = hosts.of_first(lambda: begun_run(out, resume), RunRecord)
    data = _data(recipe, given, begun, console)
    size = recipe.image_size or data.native_size
    scale = recipe_module.scale_range(recipe.scale, size)
    devices.check_memory(recipe, size, len(data.class_names), data.split("train").count)
    if hosts.count > 1:
        hosts.agree(facts(recipe, data, resume))
        devices.check_divides(recipe, hosts.count, "hosts")
        hosts.start(recipe.seed)
    if begun:
        data, card = as_begun(data, begun.card, out), begun.card
        reading = begun.reading_seconds
    else:
        if resume:
            console.print(f"{out} holds no run to resume: a new one begins", soft_wrap=True)
        if recipe.init_from:
            # Its faults are reported before long work.
            _check_source(recipe, size, sum(scale) // 2, data.class_names)
        data, card, reading = read_through(data, recipe, console, hosts)
        card = dataclasses.replace(card, exif=recipe.exif)
    recipe = _with_a_batch_that_fits(recipe, data.split("train").count, console)
    if begun:
        assert begun.card.recipe
        if not begun.card.recipe.fast_decode:  # as in version 0.2, which had no choice
            recipe = dataclasses.replace(recipe, fast_decode=False)
        check_unchanged(recipe, begun.card, out, console)
        check_hosts(begun, hosts.count, out, console)
        done = begun.status == "done"  # the first host alone has the run's files
        if done and hosts.gather(hosts.is_first and _stays_finished(begun, recipe, out))[0]:
            return _finished(begun, out, console)
    card = _with_the_run(card, recipe, data, size, scale)
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced_weights(data.split("train"), data.class_names)
    job = Job(recipe, data, card, out, size, scale, console, reading, weights, hosts)
    strategy = devices.distribution_strategy(recipe)
    with asked_to_stop() as stop, devices.around_training(strategy):
        return _run(job, strategy, begun, stop, callbacks, new)


def _data(recipe: Recipe, given: Data | None, begun: RunRecord | None, console: Console) -> Data:
    """Return the data of a recipe, with the split that a begun run began with."""
    options = {"skip_unreadable": recipe.skip_unreadable, "boxes": recipe.boxes is not None}
    if begun:
        data = sources.load_data_of([begun.card], given or recipe.data, **options)
    else:
        data = sources.load_data(given or recipe.data, validation=recipe.validation, **options)
    if not recipe.boxes:  # data of Python may have them all the same
        splits = {name: dataclasses.replace(s, boxes=None) for name, s in data.splits.items()}
        data = dataclasses.replace(data, splits=splits)
    data = data.upright(begun.card.exif if begun else recipe.exif)
    if data.unread:
        console.print(unread(data.unread), soft_wrap=True, highlight=False)
    for name, count in data.no_box.items():
        console.print(f"{name}: {count:,} images have no box and are left out", highlight=False)
    return data


def _check_source(recipe: Recipe, size: int, scale: int, class_names: Sequence[str]) -> None:
    """Raise InputError where the weights to start from cannot be those of such a network."""
    source = identify.open_source(str(recipe.init_from))
    channels = source.input_shape[2]
    if channels != recipe.channels:
        raise InputError(
            f"--init-from {source.name} takes images of {channels} channels, and --channels is "
            f"{recipe.channels}: give --channels {channels}, or weights of such a network."
        )
    if not recipe.boxes:
        return
    there, side = source.input_shape[0], source.card.scale or scale
    if (there, side) != (size, scale):
        raise InputError(
            f"--init-from {source.name} is a classifier of {there} px at scale {side}, and the "
            f"boxes are to be of {size} px at scale {scale}: give --image-size {there} --scale "
            f"{side}, or such a classifier."
        )
    names = source.card.class_names
    missing = [name for name in class_names if name not in names]
    if names and missing:
        raise InputError(
            f"--init-from {source.name} has no class {some(missing)}, of which there are boxes: "
            "train a classifier of these classes (it may itself start from another), and give that."
        )


def _with_a_batch_that_fits(recipe: Recipe, images: int, console: Console) -> Recipe:
    """Return the recipe with at most all images in a batch: an epoch is one pass over them."""
    if recipe.batch_size <= images:
        return recipe
    if recipe.accumulate > 1:
        raise InputError(
            f"batch_size must be at most the number of training images, {images}; received "
            f"{recipe.batch_size}: give a smaller one."
        )
    console.print(f"batch size {images}: there are no more training images")
    return dataclasses.replace(recipe, batch_size=images)


def _with_the_run(
    card: ModelCard, recipe: Recipe, data: Data, size: int, scale: tuple[int, int]
) -> ModelCard:
    """Return a card of the data's statistics, with what is trained on them."""
    recipe = dataclasses.replace(recipe, exif=bool(card.exif))  # old runs' recipes do not say it
    return dataclasses.replace(
        card,
        arch=recipe.arch,
        boxes=recipe.boxes,
        recipe=recipe,
        data=data.spec,
        class_names=tuple(data.class_names),
        image_size=size,
        scale=(scale[0] + scale[1]) // 2,  # the validation scale, as in Table 3
        seed=recipe.seed,
        skipped=data.skipped,
        versions=versions(),
        images={name: split.count for name, split in data.splits.items()},
        validation=data.validation,
        held_out=data.held_out,
    )


def _stays_finished(begun: RunRecord, recipe: Recipe, out: Path) -> bool:
    """Return whether a finished run has as many epochs as are asked for.

    Raises:
        InputError (a ValueError): it can neither stay as it is nor be lengthened.
    """
    if not (out / "model.keras").exists():
        raise InputError(f"{out} is finished, but its model.keras is missing: start another run.")
    assert begun.card.recipe
    if recipe.epochs == begun.card.recipe.epochs:
        return True
    if not checkpoints.newest_first(out / "resume"):
        raise InputError(
            f"{out} is finished and has no checkpoint in resume/, which more epochs would go on "
            f"from: start {recipe.another_run(out)}."
        )
    return False


def _finished(begun: RunRecord, out: Path, console: Console) -> Run:
    assert begun.card.recipe
    console.print(f"{out} is finished: best {monitored(begun.card.recipe, begun.metrics)}")
    return Run(out, begun)


def _run(
    job: Job,
    strategy: Any,
    begun: RunRecord | None,
    stop: threading.Event,
    callbacks: Sequence[keras.callbacks.Callback],
    new: bool,
) -> Run:
    """Build the model, and train it from the start or from a checkpoint."""
    recipe, out = job.recipe, job.out
    keras.utils.set_random_seed(recipe.seed)
    job, model = _compiled_model(job, begun is None, strategy)
    # Mixed precision is for training: the saved file computes in float32, as does all that is made
    # from it.
    # What is compiled for boxes could not be loaded without this package.
    shared = recipe.precision == "float32" and not recipe.boxes
    kept = model if shared else _network(job, "float32")
    print_job(job, model, devices.device_text(strategy, job.hosts.count))
    progress = Progress(job, stop, begun)
    if begun and progress.restore(model):
        progress.change_epochs()
    else:
        if job.hosts.is_first:
            files.remove(out / "resume")
        if begun and recipe.init_from:
            load.init_from(model, recipe.init_from, job.data.class_names)
        progress.write_record("training")
    try:
        fit(model, progress, kept, callbacks, strategy)
    except BaseException as error:
        failures.leave_a_stopped_run(error, progress, new)
        explained = failures.explained(error, job)
        if explained:
            raise explained from error
        raise
    record = progress.write_record("done")
    job.console.print(
        f"best {monitored(job.recipe, record.metrics)} at epoch "
        f"{record.best_epoch}, {record.seconds:.0f} s: {out / 'model.keras'}. "
        f"Next: {_next_step(job)}",
        soft_wrap=True,
    )
    return Run(out, record)


def _next_step(job: Job) -> str:
    if job.data.spec.startswith(in_memory.PREFIX):
        return f"export.export_model({str(job.out)!r}, data=...), with the same data"
    return f"python -m export --model {job.out}"


def _compiled_model(job: Job, copies: bool, strategy) -> tuple[Job, keras.Model]:
    """Return the model to train, and the job with what its weights come from.

    Args:
        job: what to train.
        copies: whether the recipe's pretrained weights are copied; a resumed run has its own.
        strategy: from `distribution_strategy`.
    """
    recipe, card = job.recipe, job.card
    source = identify.open_source(recipe.init_from) if recipe.init_from and copies else None
    if source:  # kernels need the mean that was subtracted when they were trained
        card = dataclasses.replace(card, mean_rgb=source.mean_rgb)
        job = dataclasses.replace(job, card=card)
    with strategy.scope() if strategy else nullcontext():
        model = _network(job, recipe.precision)
        if source:
            copied = load.init_from(model, source, job.data.class_names)
            print_copied(job, source, copied, model)
            card = dataclasses.replace(card, initialized=copied)
            job = dataclasses.replace(job, card=card)
        freeze(model, recipe, card.initialized)
        slower = [layer for layer, origin in card.initialized.items() if origin]
        compile_model(model, recipe, slower, job.steps, padded=devices.is_padded(strategy))
        model.optimizer.build(model.trainable_variables)
    return job, model


def _network(job: Job, precision: str) -> keras.Model:
    recipe = job.recipe
    return models.build(
        recipe.arch,
        (job.size, job.size, recipe.channels),
        len(job.data.class_names),
        batch_norm=recipe.batch_norm,
        width=recipe.width,
        fc_units=recipe.fc_units,
        dropout=recipe.dropout,
        mean_rgb=job.card.mean_rgb,
        init=recipe.init,
        weight_decay=recipe.l2_penalty,
        precision=precision,
        seed=recipe.seed,
        boxes=recipe.boxes,
    )
