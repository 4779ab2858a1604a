"""What is left of a training run that stopped by an error, and what its user is told."""

from __future__ import annotations

from vggkeras import files, locks
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.training import checkpoints
from vggkeras.training.progress import Job, Progress
from vggkeras.training.record import RUN


def leave_a_stopped_run(error: BaseException, progress: Progress, new: bool) -> None:
    """Record that the run stopped; remove it where there is nothing to go on with."""
    out = progress.job.out
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
    """Return what to do where memory was short or an image unreadable, None for other errors."""
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
                    tf.constant(encoded), job.size, job.scale, uniform, False, split.exif
                )
            except (InputError, tf.errors.OpError) as unreadable:
                reason = " ".join(str(unreadable).split())[:200]
                return InputError(
                    f"{name} cannot be read any more ({reason}): replace it and --resume; {kept}."
                )
    return None
