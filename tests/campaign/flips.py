"""Damaged files: exports through verify and load, .keras files through convert, checkpoints."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
from damage import damaged, other_json
from machinery import Case, Outcome, Trial
from subjects import (
    FORMATS,
    answers,
    clone,
    command,
    load,
    prepare_exports,
    refusals,
    refused,
)

BESIDE = ("golden.npz", "certificate.json")


def damage_file(path: Path, case: Case) -> str:
    """Damage a file, and return what was done."""
    data, rng = path.read_bytes(), case.rng
    if path.suffix == ".json" and rng.random() < 0.5:
        path.write_text(json.dumps(other_json(json.loads(data), rng), indent=2) + "\n")
        return f"{path.name}: another value"
    changed, edits = damaged(data, rng)
    path.write_bytes(changed)
    return f"{path.name}: {edits}"


def chosen_file(folder: Path, case: Case, names: tuple[str, ...]) -> Path:
    """Return one of some files, or one of a SavedModel's, relative to their folder."""
    name = names[case.index % len(names)]
    inside = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    return case.rng.choice(inside).relative_to(folder) if inside else Path(name)


def verify_damaged(case: Case) -> Outcome:
    """Damage an export, its golden answers or its certificate: `verify` must notice."""
    exports = case.subject / "run" / "export"
    own = chosen_file(exports, case, FORMATS + BESIDE)
    folder = clone(exports, case.scratch / "export", own)
    done = damage_file(folder / own, case)
    # What lies beside the files must be noticed by one of them.
    is_beside = str(own) in BESIDE
    files = FORMATS[:2] if is_beside else (own.parts[0],)
    ended = command("export.verify", *(folder / name for name in files))
    if ended.failure or ended.code != 0:
        return refused(ended, "", codes=(1, 2))
    if is_beside and _same_content(exports / own, folder / own):
        return Outcome(note="harmless")
    return Outcome("accepted change", detail=done)


def _same_content(path: Path, other: Path) -> bool:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text()) == json.loads(other.read_text())
        with np.load(path) as a, np.load(other) as b:
            return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
    except Exception:  # whatever cannot be read is not the same
        return False


def load_damaged(case: Case) -> Outcome:
    """Damage an export and load it: it is refused, or gives the same answers."""
    exports = case.subject / "run" / "export"
    own = chosen_file(exports, case, FORMATS)
    folder = clone(exports, case.scratch / "export", own)
    done = damage_file(folder / own, case)
    images, expected = answers(case.subject, own.parts[0])
    with refusals() as ends:
        model = load(folder / own.parts[0])
        names = list(model.class_names)
        given = model(images)
    if ends:
        return ends[0]
    if str(getattr(model, "sealed", "")) == "foreign":
        return Outcome(note="told that it is foreign", detail=done)
    if given.shape != expected.shape or not np.abs(given - expected).max() <= 1e-7:
        return Outcome("other answer", detail=done)
    if names != list("0123456789"):
        return Outcome("other names", detail=done)
    return Outcome(note="harmless", detail=done)


def convert_damaged(case: Case) -> Outcome:
    """Damage a .keras file and convert it: it is refused, or the new file is as it would be."""
    source, target = case.scratch / "damaged.keras", case.scratch / "new.keras"
    shutil.copy(case.subject / "run" / "model.keras", source)
    done = damage_file(source, case)
    ended = command("vggkeras", "convert", source, target)
    if ended.failure or ended.code != 0:
        return refused(ended, "not refused in one line")
    from vggkeras import models

    model, card = models.load_model(target)
    expected, expected_card = models.load_model(case.subject / "run" / "model.keras")
    if not all(map(np.array_equal, model.get_weights(), expected.get_weights())):
        return Outcome("other weights", detail=done)
    if (card.class_names, card.scale) != (expected_card.class_names, expected_card.scale):
        return Outcome("other names", detail=done)
    return Outcome(note="harmless", detail=done)


# ---- checkpoints --------------------------------------------------------------------------------


def _recipe(out: Path):
    import vggkeras

    return vggkeras.Recipe(
        "A",
        "digits",
        out,
        batch_norm=True,
        width=0.03,
        fc_units=4,
        epochs=2,
        batch_size=256,
        learning_rate=0.1,
    )


class Stopped(Exception):
    """Training came to its next step, and was stopped before it."""


def _resumed(out: Path, resume: bool = True, steps: int = 0) -> list[np.ndarray]:
    """Train for some steps, or go on from a checkpoint; return every variable."""
    import keras

    from vggkeras.training import callbacks
    from vggkeras.training.train import train

    callbacks.CHECKPOINT_SECONDS = 0.0  # a checkpoint a step

    variables: list[np.ndarray] = []

    class Stop(keras.callbacks.Callback):
        left = steps

        def on_train_batch_begin(self, batch, logs=None):
            if self.left == 0:
                both = [*self.model.variables, *self.model.optimizer.variables]
                variables.extend(np.asarray(variable) for variable in both)
                raise Stopped
            self.left -= 1

    try:
        train(_recipe(out), callbacks=[Stop()], resume=resume)
    except Stopped:
        return variables
    raise AssertionError("the run ended")


def prepare_checkpoints(subject: Path) -> None:
    """Cut off a run after three steps; keep what it goes on from: either checkpoint, or none."""
    out = subject / "cut"
    if (subject / "variables.npz").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    _resumed(out, resume=False, steps=3)
    good = {"newest": _resumed(clone(out, subject / "cut-0"))}
    newest, _ = _checkpoints(out)
    before = clone(out, subject / "cut-1")
    (before / "resume" / newest.name).unlink()
    good["before"] = _resumed(before)
    anew = clone(out, subject / "cut-2")
    shutil.rmtree(anew / "resume")
    good["start"] = _resumed(anew)
    arrays = {f"{name} {i:04d}": v for name, vs in good.items() for i, v in enumerate(vs)}
    np.savez(subject / "variables.npz", **arrays)


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "resume").glob("*.npz"), reverse=True)


def resume_damaged(case: Case) -> Outcome:
    """Damage checkpoints and resume: training goes on from one that is whole, or says why not."""
    out = case.scratch / "run"
    shutil.copytree(case.subject / "cut", out)
    newest, before = _checkpoints(out)
    chosen = {0: [newest, before], 1: [before]}.get(case.index % 8, [newest])
    for path in chosen:
        if case.index % 4 == 3:
            _rewritten(path, case)
        else:
            damage_file(path, case)
    with refusals() as ends:
        variables = _resumed(out)
    if ends:
        return ends[0]
    with np.load(case.subject / "variables.npz") as arrays:
        for name in ("newest", "before", "start")[: 3 if len(chosen) == 2 else 2]:
            good = [arrays[key] for key in sorted(arrays) if key.startswith(name)]
            if len(good) == len(variables) and all(map(np.array_equal, good, variables)):
                return Outcome(note=f"from the {name}")
    return Outcome("other state", detail=f"{[path.name for path in chosen]}")


def _rewritten(path: Path, case: Case) -> None:
    """Write a checkpoint whose archive is whole, and whose content no reader expects."""
    rng = case.rng
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    state = json.loads(np.load(io.BytesIO(members["state.npy"])).tobytes())
    name = rng.choice([name for name in members if name != "state.npy"])
    match rng.randrange(6):
        case 0:
            del members[name]
        case 1:
            members[name] = _npy(np.zeros((3, 3, 3), np.float32))
        case 2:
            members[name] = _npy(np.array([{}], object))
        case 3:
            members[name] = b"\x93NUMPY\x01\x00" + rng.randbytes(200)
        case 4:
            members["state.npy"] = _npy(np.frombuffer(b"[1, 2]", np.uint8))
        case _:
            state.pop(rng.choice(sorted(state)), None)
            state["unheard"] = "of"
            members["state.npy"] = _npy(np.frombuffer(json.dumps(state).encode(), np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        for key, content in members.items():
            archive.writestr(key, content)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


TRIALS = (
    Trial("flips-verify", 2000, 100, verify_damaged, prepare_exports),
    Trial("flips-load", 1000, 60, load_damaged, prepare_exports),
    Trial("flips-convert", 300, 12, convert_damaged, prepare_exports),
    Trial("checkpoints", 400, 10, resume_damaged, prepare_checkpoints),
)
