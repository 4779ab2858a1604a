"""What is done about an error that ends a training: what is kept, freed, and told."""

from __future__ import annotations

import contextlib
import gc
import sys

from vggkeras import files, locks
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.training import checkpoints
from vggkeras.training.progress import Job, Progress
from vggkeras.training.record import RUN


def free_frames(error: BaseException) -> None:
    """Free what the frames hold through which an error came, up to the caller.

    Among it are the iterators of fit(). Their threads call Python, and an iterator that is freed
    while Python exits waits for them for ever. Keras leaves its own frames out of the traceback, so
    they are found as callers of the others, and what is left of them lies in cycles.
    """
    caller = sys._getframe(1)
    part = error.__traceback__
    while part:
        frame = part.tb_frame
        while frame and frame is not caller:
            with contextlib.suppress(RuntimeError):  # it still runs
                frame.clear()
            frame = frame.f_back  # type: ignore[assignment]
        part = part.tb_next
    gc.collect()


def leave_a_stopped_run(error: BaseException, progress: Progress, new: bool) -> None:
    """Record that the run stopped; remove it where there is nothing to go on with."""
    out = progress.job.out
    if not progress.job.hosts.is_first:
        return
    if progress.state.best is None and not checkpoints.newest_first(out / "resume"):
        for path in locks.others_in(out) if new else (out / RUN,):
            files.remove(path)
        return
    progress.write_record("stopped")
    if not isinstance(error, InputError):  # a diverged run would diverge again
        progress.job.console.print(
            f"stopped: the same command with --resume goes on with {out}", soft_wrap=True
        )


def explained(error: BaseException, job: Job) -> InputError | None:
    """Return what to do where memory was short or an image unreadable, None for other errors.

    Args:
        error: that ended the training.
        job: what was trained.
    """
    import tensorflow as tf

    if not isinstance(error, Exception) or isinstance(error, InputError):
        return None
    saved = (job.out / "model.keras").exists()
    kept = f"the best model so far is kept in {job.out}" if saved else "no epoch was finished"
    if isinstance(error, tf.errors.ResourceExhaustedError) or "RESOURCE_EXHAUSTED" in str(error):
        return InputError(
            "A step does not fit in memory: give --accumulate 2 (or 4, 8 …), which divides the "
            "batch and trains the same, a smaller --batch-size, --width or --image-size; "
            + kept
            + "."
        )
    if not isinstance(error, tf.errors.OpError):
        return None
    uniform = tf.zeros(4)
    for split in (job.training, job.validation):  # tf.data does not say which image it was
        for index, encoded, _ in split.examples():
            name = split.image_name(index)
            try:
                decoding.decode(encoded, name, exif=split.exif)
                augment.random_crop(
                    tf.constant(encoded),
                    job.size,
                    job.scale,
                    uniform,
                    False,
                    split.exif,
                    job.recipe.fast_decode,
                )
            except (InputError, tf.errors.OpError) as unreadable:
                reason = " ".join(str(unreadable).split())[:200]
                return InputError(
                    f"{name} cannot be read any more ({reason}): replace it and --resume; {kept}."
                )
    return None
