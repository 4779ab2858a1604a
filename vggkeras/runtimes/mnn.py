"""Load .onnx files in MNN, on a CPU.

MNN reads a format of its own. A file is converted when it is first loaded, in a process of its own
(mnn_convert.py), and kept in the user's cache folder under its sha256, the version of MNN, and what
it is converted by. What is kept ends in the sha256 of what stands before.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import caches, files
from vggkeras.card import INPUT_NAME, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.forms import forms_beside
from vggkeras.runtimes.predictor import Predictor, taking_turns
from vggkeras.runtimes.providers import Options, cores
from vggkeras.runtimes.seal import card_of
from vggkeras.runtimes.stderr import quiet_stderr

CONVERSION = 1  # raised whenever the same file would be converted to something else
KEPT_BYTES = 4 << 30  # of converted files, the last used first: seven of VGG-16 in float32
DIGEST = 64  # hexadecimal digits at the end of a converted file
_TURN = threading.Lock()


def load(path: Path, options: Options) -> Predictor:
    """Return a predictor over an .onnx file; see `vggkeras.load`.

    float32 files compute in float32 (3 x 3 convolutions by Winograd's algorithm, whose rounding is
    larger: docs/export.md), int8 files in int8, float16 files in float32. Calls from several
    threads take turns: a module of MNN holds the state of one call.
    """
    card, sealed = card_of(path, options.verify)
    if card.input_shape is None or not card.outputs:
        raise InputError(
            f"provider mnn: {path} was not written by vggkeras, and MNN ends the process over a "
            "graph that it cannot compute: expected a file of `python -m export`; use provider cpu "
            "or openvino."
        )
    threads = options.threads or cores()
    with _TURN:
        run = _runner(_converted(path, card), card, threads)
    any_size = card.form.takes_any_size
    return Predictor(
        path=path,
        runtime="mnn",
        version=version("MNN"),
        provider="mnn",
        input_shape=card.input_shape,
        outputs=card.outputs,
        input_name=INPUT_NAME,
        output_name=card.form.output_name,
        card=card,
        run=taking_turns(run),
        form=card.form,
        make_form=None if any_size else forms_beside(path, card, lambda file: load(file, options)),
        threads=threads,
        sealed=sealed,
    )


def import_engine() -> None:
    """Import MNN, which prints what the processor has."""
    with quiet_stderr(and_stdout=True):
        importlib.import_module("MNN")


def runner(file: Path, output: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images `[N, H, W, C]` to what a .mnn file answers.

    It is for one thread at a time. MNN ends the process over images of a shape that the file does
    not take.
    """
    import_engine()
    from MNN import expr, nn

    with quiet_stderr(and_stdout=True):  # it says what it was asked for
        manager = nn.create_runtime_manager(
            ({"backend": "CPU", "numThread": threads, "precision": "high"},)
        )
        module = nn.load_module_from_file(
            str(file), [INPUT_NAME], [output], runtime_manager=manager, shape_mutable=True
        )

    def run(images: np.ndarray) -> np.ndarray:
        # NCHW says that the axes stay as they are; the file transposes them itself.
        value = expr.placeholder(list(images.shape), expr.NCHW, expr.uint8)
        value.write(np.ascontiguousarray(images))
        return np.array(module.forward(value).read(), np.float32)

    return run


def _runner(file: Path, card: ModelCard, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    try:
        return runner(file, card.form.output_name, threads)
    except SystemError as error:  # what MNN's binding raises
        raise InputError(f"MNN cannot load {file}: remove it, and load the model again.") from error


def _converted(path: Path, card: ModelCard) -> Path:
    """Return a .onnx file in MNN's format: the one that is kept, or a new one."""
    folder = caches.folder("mnn")
    if folder is None:
        raise InputError(
            "provider mnn keeps the files that it converts in ~/.cache/vggkeras, and there is no "
            "home folder: set HOME or XDG_CACHE_HOME."
        )
    entry = folder / f"{files.sha256(path)}-{version('MNN')}-{CONVERSION}.mnn"
    if _is_whole(entry):
        os.utime(entry)
        return entry
    folder.mkdir(0o700, parents=True, exist_ok=True)
    with files.replacing(entry) as beside:
        _convert(path, beside, card)
        digest = files.sha256(beside)
        with open(beside, "ab") as file:  # MNN reads what its flatbuffer points to, and not this
            file.write(digest.encode())
    _remove_old(folder, entry)
    return entry


def _is_whole(entry: Path) -> bool:
    """Return whether a converted file is there, this user's, and as it was written."""
    try:
        with caches.open_own(entry) as file:
            length = max(os.fstat(file.fileno()).st_size - DIGEST, 0)
            content, left = hashlib.sha256(), length
            while left:
                block = file.read(min(left, 1 << 20))
                content.update(block)
                left -= len(block)
            return length > 0 and file.read() == content.hexdigest().encode()
    except (OSError, InputError):
        return False  # it is written anew


def _convert(path: Path, target: Path, card: ModelCard) -> None:
    """Convert a file in a process of its own, for MNN's converter ends it where it cannot."""
    assert card.input_shape is not None
    what = [card.precision, card.form.output_name, str(card.outputs), *map(str, card.input_shape)]
    done = subprocess.run(
        [sys.executable, "-m", "vggkeras.runtimes.mnn_convert", str(path), str(target), *what],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    if done.returncode:
        said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
        last = next((line for line in reversed(said) if line), "without a word")
        raise InputError(
            f"{path} cannot be converted by MNN {version('MNN')} (code {done.returncode}: "
            f"{last[:300]}): use provider cpu or openvino, or export it again."
        )


def _remove_old(folder: Path, kept: Path) -> None:
    """Remove converted files that were not used for longest, down to KEPT_BYTES."""
    sizes: dict[Path, Any] = {
        file: file.stat() for file in folder.glob("*.mnn") if not file.name.startswith(".")
    }
    total = 0
    for file in sorted(sizes, key=lambda file: (file != kept, -sizes[file].st_mtime)):
        total += sizes[file].st_size
        if total > KEPT_BYTES and file != kept:
            file.unlink(missing_ok=True)
