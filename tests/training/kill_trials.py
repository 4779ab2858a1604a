"""Kill a tiny training run with SIGKILL, resume it, and compare its end with an unbroken run's.

python tests/training/kill_trials.py DATA OUT TRIAL...

A trial is a fraction of the run's time, such as 0.37, or PLACE:N: the N-th time that a step ends
(step:N), or that a file is about to be renamed into place (before:N) or has just been (after:N).
Prints a JSON line a trial. Every training runs in a fork of this process, which has imported
TensorFlow but started nothing in it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import io

from rich.console import Console

from vggkeras import files
from vggkeras.recipe import Recipe
from vggkeras.training import callbacks
from vggkeras.training.train import train

callbacks.CHECKPOINT_SECONDS = 0.0  # after every step


def recipe(data: str, out: Path) -> Recipe:
    """Return a recipe with all there is to restore, drops and accumulation included."""
    return Recipe(
        "A",
        data,
        out,
        32,
        0.05,
        8,
        "37:48",
        batch_norm=True,
        dropout=0.3,
        epochs=3,
        batch_size=6,
        accumulate=2,
        learning_rate=0.3,
        patience=1,
    )


def die_at(place: str, number: str) -> None:
    """Arrange for this process to kill itself at a place's N-th coming."""
    left = [int(number)]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if place == "step":
        step = callbacks.StopWhenAsked.on_train_batch_end

        def counted_step(self, batch, logs=None):
            step(self, batch, logs)
            count()

        callbacks.StopWhenAsked.on_train_batch_end = counted_step
    else:
        move = files.move

        def counted_move(*arguments):
            if place == "before":
                count()
            move(*arguments)
            if place == "after":
                count()

        files.move = counted_move


def run(data: str, out: Path, trial: str | None, seconds: float) -> tuple[bool, float]:
    """One training in a fork: (whether it was killed, seconds)."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            if trial and ":" in trial:
                die_at(*trial.split(":"))
            train(recipe(data, out), Console(file=io.StringIO()), resume=trial is not None)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if trial and ":" not in trial and seconds:
        time.sleep(float(trial) * seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"trial {trial}: training failed")
    return os.WIFSIGNALED(status), time.monotonic() - start


def end(out: Path) -> dict[str, str]:
    """What must be the same, bit for bit."""
    digests = {"history.csv": (out / "history.csv").read_bytes()}
    metadata = json.loads((out / "run.json").read_text())
    kept = {
        key: metadata[key]
        for key in ("status", "metrics", "best_epoch", "epochs_trained", "mean_rgb")
    }
    digests["run.json"] = json.dumps(kept).encode()
    with zipfile.ZipFile(out / "model.keras") as archive:
        digests["model.keras"] = archive.read("model.weights.h5")
    last = max((out / "resume").glob("*.npz"))
    with zipfile.ZipFile(last) as archive:  # last weights, momentum, dropout's seed
        names = sorted(name for name in archive.namelist() if name != "state.npy")
        digests["variables"] = last.name.encode() + b"".join(archive.read(name) for name in names)
    return {name: hashlib.sha256(content).hexdigest() for name, content in digests.items()}


def main(data: str, out: str, *trials: str) -> None:
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)  # runs/latest goes there
    _, seconds = run(data, root / "whole", None, 0)
    expected = end(root / "whole")
    with open(root / "whole" / "history.csv") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    for number, trial in enumerate(trials):
        folder = root / f"{number}"
        killed, spent = run(data, folder, trial, seconds)
        if killed:
            run(data, folder, "", 0)
        digests = end(folder)
        wrong = [name for name, digest in expected.items() if digests[name] != digest]
        left = [path.name for path in folder.rglob(".partial-*")]
        print(
            json.dumps(
                {
                    "trial": trial,
                    "after": round(spent, 2),
                    "killed": killed,
                    "wrong": wrong,
                    "left": left,
                    "rates": rates,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
