"""Kills: of a training run, which goes on to the same bits; of an export that replaces another."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machinery import FORK, Case, Outcome, Trial, family, forked
from PIL import Image
from subjects import FORMATS, command, make_run

sys.path.append(str(Path(__file__).parents[1] / "training"))
import kill_trials

RENAMES = ("replace", "rename", "link", "symlink", "unlink", "rmdir")  # what puts files in place


def write_data(folder: Path) -> None:
    """Write a few smooth photographs of two classes."""
    for split, count in (("train", 8), ("val", 4)):
        for number, label in enumerate(("cat", "dog")):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng(100 * number + 10 * count + i)
                small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
                photo = small.resize((40, 48), Image.Resampling.BICUBIC)
                photo.save(folder / split / label / f"{i}.jpg")


# ---- training -----------------------------------------------------------------------------------


def prepare_whole_run(subject: Path) -> None:
    """Prepare data and the run that nobody kills, and how long it takes."""
    if (subject / "seconds").exists():
        return
    write_data(subject / "data")
    shutil.rmtree(subject / "whole", ignore_errors=True)
    os.chdir(subject)  # runs/latest goes there
    _, seconds = kill_trials.run(str(subject / "data"), subject / "whole", None, 0)
    (subject / "seconds").write_text(f"{seconds}")


def kill_training(case: Case) -> Outcome:
    """Kill a run at a random moment, resume it, and compare its end with the whole run's."""
    data, out = str(case.subject / "data"), case.scratch / "run"
    seconds = float((case.subject / "seconds").read_text())
    moment = f"{case.rng.uniform(0.05, 1.0):.4f}"
    try:
        killed, _ = kill_trials.run(data, out, moment, seconds)
        if killed:
            kill_trials.run(data, out, "", 0)
    except SystemExit as error:
        return Outcome("not resumed", detail=str(error))
    expected, digests = (kill_trials.end(path) for path in (case.subject / "whole", out))
    wrong = [name for name, digest in expected.items() if digests[name] != digest]
    if wrong:
        return Outcome("other bits", detail=f"killed at {moment}: {wrong}")
    left = [path.name for path in out.rglob(".partial-*")]
    if left:
        return Outcome("left behind", detail=f"{left}")
    return Outcome(note="same bits after a kill" if killed else "came after the end")


# ---- exports ------------------------------------------------------------------------------------


def prepare_two_exports(subject: Path) -> None:
    """Prepare two models of one architecture, each with its export, and an export's time."""
    if (subject / "export-seconds").exists():
        return
    for name in ("old", "new"):
        make_run(subject / name)
    forked(_scale_last_layer, subject / "new" / "model.keras")
    for name in ("old", "new"):
        start = time.monotonic()
        forked(_export, subject / name, subject / f"{name}-export")
        seconds = time.monotonic() - start
    (subject / "export-seconds").write_text(f"{seconds}")


def _scale_last_layer(path: Path) -> None:
    from vggkeras import models

    network, card = models.load_model(path)
    last = network.get_layer("predictions")
    last.set_weights([weight * np.float32(1.25) for weight in last.get_weights()])
    models.save_model(network, path, card)


def _export(run: Path, out: Path) -> None:
    ended = command("export", "--model", run, "--images", "16", "--out", out)
    assert ended.code == 0, ended.err


def _dying(number: int, before: bool, function: Callable[[], None]) -> None:
    """Run a function, and kill this process at the N-th change of a folder's entries."""
    left = [number]

    def watched(call: Callable) -> Callable:
        def changed(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return changed

    for name in RENAMES:
        setattr(os, name, watched(getattr(os, name)))
    function()


def kill_export(case: Case) -> Outcome:
    """Kill an export that replaces another: what is there is verifiable, and the next one works."""
    rng, out = case.rng, case.scratch / "export"
    shutil.copytree(case.subject / "old-export", out, symlinks=True)
    seconds = float((case.subject / "export-seconds").read_text())
    new = case.subject / "new"
    if case.index % 2:  # at a random moment
        moment = rng.uniform(0.1, 1.1) * seconds
        child = FORK.Process(target=_export, args=(new, out))
        child.start()
        time.sleep(moment)
        where = f"after {moment:.2f} s"
    else:  # where files change places
        number, before = rng.randrange(1, 40), rng.random() < 0.5
        child = FORK.Process(target=_dying, args=(number, before, lambda: _export(new, out)))
        child.start()
        child.join()
        where = f"{'before' if before else 'after'} change {number}"
    started = family(child.pid)[1:]
    child.kill()
    child.join()
    killed = child.exitcode == -signal.SIGKILL
    alive = _alive_after(started, 5.0)
    if alive:
        return Outcome("child left", detail=f"{where}: {alive}")
    note = "after a kill" if killed else "came after the end"
    return forked(_judged, case, out, where, note)


def _alive_after(processes: list, seconds: float) -> list[int]:
    """Return those of some processes that still run after a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(p.is_running() for p in processes):
        time.sleep(0.05)
    return [p.pid for p in processes if p.is_running()]


def _judged(case: Case, out: Path, where: str, note: str) -> Outcome:
    """Verify what a killed export left, export again, and verify that."""
    first = command("export.verify", *(out / name for name in FORMATS))
    if first.failure:
        return first.failure
    missing = [name for name in FORMATS if not (out / name).exists()]
    if missing:
        return Outcome("file lost", detail=f"{where}: {missing}, {sorted(os.listdir(out))}")
    if first.code:
        return Outcome("not verifiable", detail=f"{where}: {(first.out + first.err)[-700:]}")
    sets = {export_of(case, out / name) for name in FORMATS}
    if len(sets) > 1:
        return Outcome("old and new", detail=f"{where}: {sets}")
    again = command("export", "--model", case.subject / "new", "--images", "16", "--out", out)
    if again.failure or again.code:
        return Outcome("next export fails", detail=f"{where}: {(again.out + again.err)[-700:]}")
    last = command("export.verify", *(out / name for name in FORMATS))
    if last.failure or last.code or any(export_of(case, out / name) != "new" for name in FORMATS):
        return Outcome("next export wrong", detail=f"{where}: {(last.out + last.err)[-700:]}")
    left = [name for name in os.listdir(out) if name.startswith(".partial")]
    if left:
        return Outcome("left behind", detail=f"{where}: {left}")
    return Outcome(note=f"{sets.pop()} {note}")


def export_of(case: Case, path: Path) -> str:
    """Return which export a file is of."""
    from vggkeras import files

    def digest(path: Path) -> str:
        # A SavedModel's graph has the numbers of functions that the process traced before.
        return files.sha256(path / "variables" if path.is_dir() else path)

    for name in ("old", "new"):
        if digest(path) == digest(case.subject / f"{name}-export" / path.name):
            return name
    return "neither"


TRIALS = (
    Trial("kills-training", 100, 2, kill_training, prepare_whole_run, limit=300.0),
    Trial("kills-export", 100, 2, kill_export, prepare_two_exports, limit=300.0),
)
