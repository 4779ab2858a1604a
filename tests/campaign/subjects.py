"""What the trials are about: a trained network, its exports, and commands that run in process."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machinery import REFUSALS, Case, Outcome

STORED = Path(__file__).parents[1] / "data"
RUN_FILES = {"model.keras": "digits.keras", "run.json": "digits.json", "history.csv": "digits.csv"}
FORMATS = ("model.onnx", "model.tflite", "saved_model")


def make_run(folder: Path) -> Path:
    """Make a run's folder with the network that was trained on digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stored in RUN_FILES.items():
        shutil.copy(STORED / stored, folder / name)
    return folder


def prepare_run(subject: Path) -> None:
    """Prepare the run alone."""
    if not (subject / "run").exists():
        make_run(subject / "run")


def prepare_exports(subject: Path) -> None:
    """Prepare the run, its exports, eight images, and what each file answers to them."""
    if (subject / "answers.npz").exists():
        return
    prepare_run(subject)
    code = command("export", "--model", subject / "run", "--images", "32").code
    assert code == 0, "the export failed"
    import vggkeras

    images = distinct_images(8)
    paths = {"keras": subject / "run"} | {f: subject / "run" / "export" / f for f in FORMATS}
    given = {name: vggkeras.load(path)(images) for name, path in paths.items()}
    np.savez(subject / "answers.npz", images=images, **given)


def distinct_images(count: int) -> np.ndarray:
    """Return images of digits, each of another class as far as there are classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = [int(np.flatnonzero(digits.target == i % 10)[i // 10]) for i in range(count)]
    small = np.uint8(np.round(digits.images[order] * (255 / 16)))
    return np.repeat(small.repeat(4, 1).repeat(4, 2)[..., None], 3, axis=3)


def answers(subject: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that `prepare_exports` keeps, and a file's answers to them."""
    with np.load(subject / "answers.npz") as arrays:
        return arrays["images"], arrays[name]


def clone(source: Path, target: Path, own: Path | None = None) -> Path:
    """Copy a folder by links to its files; `own`, a path in it, gets a content of its own."""
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    if own is not None:
        (target / own).unlink()
        shutil.copy(source / own, target / own)
    return target


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None  # None: with a traceback
    out: str
    err: str

    @property
    def failure(self) -> Outcome | None:
        """The failure that it is however it was meant to end: a traceback, or a wall of text."""
        if self.code is None:
            return Outcome("traceback", detail=self.err[-1500:])
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 2 and (len(lines) != 1 or "Traceback" in self.err):
            return Outcome("not one line", detail=self.err[-1500:])
        if any(ord(letter) < 32 and letter not in "\n\t" for letter in self.out + self.err):
            return Outcome("control characters", detail=repr((self.out + self.err)[-500:]))
        return None


def command(program: str, *arguments: object) -> Ended:
    """Run a command in this process: vggkeras, export, export.verify and so on."""
    module = {"vggkeras": "vggkeras.__main__", "export": "export.__main__"}.get(program, program)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    before = sys.argv
    sys.argv = [program, *(os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments)]
    # As a terminal takes them: what cannot be encoded is an error.
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)
        for errors in ("strict", "backslashreplace")
    )
    code: int | None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = importlib.import_module(module).cli()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        code = None
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return Ended(code, _text(out), _text(err))


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


@contextlib.contextmanager
def refusals() -> Iterator[list[Outcome]]:
    """Collect how a block of calls ended, where it raised: refused in one line, or a traceback."""
    ends: list[Outcome] = []
    try:
        yield ends
    except Exception as error:
        if type(error).__name__ in REFUSALS or isinstance(error, OSError):  # one line of a command
            ends.append(Outcome(note="refused", detail=str(error)[:500]))
        else:
            ends.append(Outcome("traceback", detail=traceback.format_exc()[-1500:]))


def load(path: Path) -> Any:
    """Load a model as a user does."""
    import vggkeras

    return vggkeras.load(path)


def worst(outcomes: list[Outcome]) -> Outcome:
    """Return the first failure, or else the first outcome."""
    return next((outcome for outcome in outcomes if outcome.failure), outcomes[0])


def refused(ended: Ended, what: str, codes: tuple[int, ...] = (2,)) -> Outcome:
    """Return whether a command refused something as it must."""
    if failure := ended.failure:
        return failure
    if ended.code in codes:
        return Outcome(note="refused", detail=ended.err[-300:])
    return Outcome(what, detail=f"exit code {ended.code}: {(ended.out + ended.err)[-500:]}")


def canary(case: Case) -> Path:
    """Return a path at which nothing is, and at which hostile files try to write."""
    return case.scratch / "canary"
