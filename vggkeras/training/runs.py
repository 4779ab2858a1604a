"""A run's folder, and whether the run in it may be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

import vggkeras
from vggkeras import files, models
from vggkeras.card import ModelCard, recipe_json
from vggkeras.data import in_memory
from vggkeras.data.formats import FIRST_SUFFIXES
from vggkeras.data.splits import Data, Records, Split
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.record import RUN, RunRecord


@dataclass(frozen=True)
class Run:
    """A finished run. Its folder has model.keras, run.json, history.csv, resume/, tensorboard/."""

    path: Path
    record: RunRecord

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of run.json."""
        return self.record.to_json()

    @property
    def model(self) -> keras.Model:
        """The best epoch's model, loaded from model.keras."""
        return models.load_model(self.path / "model.keras")[0]


def default_folder(recipe: Recipe) -> Path:
    """Return the folder of a run without `out`: runs/ARCH-DATA."""
    data = "".join(c if c.isalnum() else "-" for c in recipe.data).strip("-")
    return Path("runs") / f"{recipe.arch}-{data}"


def begun_run(out: Path, resume: bool) -> RunRecord | None:
    """Return the record of the run in `out`, None where there is no run.

    Raises:
        InputError (a ValueError): there is one and it is not to be resumed, or its run.json is
            missing or damaged.
    """
    begun = RunRecord.read(out) if (out / RUN).exists() else None
    left = [name for name in ("model.keras", "history.csv", "resume") if (out / name).exists()]
    if (begun or left) and not resume:
        raise InputError(
            f"{out} holds a run already: go on with it with --resume, give another --out, or "
            "remove it first."
        )
    if left and not begun:
        raise InputError(
            f"{out} holds {left[0]} of a run, but no run.json to resume from: give another --out, "
            "or remove it."
        )
    return begun


def as_begun(data: Data, begun: ModelCard, out: Path) -> Data:
    """Return the data with which the run in `out` began.

    Raises:
        InputError (a ValueError): the data have changed since.
    """
    if not begun.rgb_covariance:
        raise InputError(
            f"{out} was written by an earlier version of vggkeras, which could not resume: start "
            "another run."
        )
    if data.spec != begun.data and data.spec.startswith(in_memory.PREFIX):
        raise InputError(
            f"{out} was begun with {begun.data}; {data.spec} are other arrays, as their digest "
            "says: give those with which it was begun, or start another run."
        )
    splits = {name: _as_read_before(split, name, begun) for name, split in data.splits.items()}
    for name, split in splits.items():
        if split.count != begun.images.get(name):
            raise InputError(
                f"{out} was begun with {begun.images.get(name, 0)} images in split {name} of "
                f"{begun.data}; {data.spec} has {split.count} now: restore the data, or start "
                "another run."
            )
    if list(begun.class_names) != data.class_names:
        raise InputError(
            f"{out} was begun with other classes than {data.spec} has now: start another run."
        )
    return dataclasses.replace(data, splits=splits, skipped=begun.skipped)


def _as_read_before(split: Split, name: str, begun: ModelCard) -> Split:
    """Return a split without the files that a run did not read, or not any more, when it began."""
    unreadable = begun.unreadable.get(name, ())
    if not isinstance(split.sources, list):
        return split.without(unreadable)
    paths = {i: source for i, source in enumerate(split.sources) if isinstance(source, str)}
    of_before = FIRST_SUFFIXES if begun.exif is None else ("",)
    others = {i for i, path in paths.items() if not path.lower().endswith(of_before)}
    names = set(begun.skipped)
    skipped = {i for i, path in paths.items() if path in names}
    if len(skipped) >= len(unreadable):  # also of those that Pillow has learnt to read since
        return split.without(others | skipped)
    return split.without(others).without(unreadable)  # the data lie elsewhere now


def check_unchanged(recipe: Recipe, begun: ModelCard, out: Path, console: Console) -> None:
    """Check that a recipe is that of the run to be resumed; print where the libraries are others.

    The number of epochs may differ (see `Progress.change_epochs`), and where a run was begun by a
    version that did not turn images upright, what the recipe says of it. A run that was begun
    without fast decoding goes on without it: `train` sees to that.

    Raises:
        InputError (a ValueError): other fields differ; the message names them.
    """
    now, then = recipe_json(recipe), recipe_json(begun.recipe)
    free = {"out", "data", "epochs"} | ({"exif"} if begun.exif is None else set())
    changed = [
        f"{field} was {then.get(field)!r} and is {value!r}"
        for field, value in now.items()
        if field not in free and value != then.get(field)  # data: see as_begun
    ]
    if changed:
        raise InputError(
            f"--resume needs the recipe with which {out} was begun, but {'; '.join(changed)}: give "
            f"that recipe, or start {recipe.another_run(out)}."
        )
    if recipe.schedule == "cosine" and then.get("epochs") != now["epochs"]:
        raise InputError(
            f"{out} was begun with {then.get('epochs')} epochs, and along a cosine the learning "
            f"rate of every epoch depends on their number; received {now['epochs']}: resume it "
            f"with the number that it began with, or start {recipe.another_run(out)}."
        )
    if begun.versions != versions():
        console.print(
            f"{out} was begun with {begun.versions}, and goes on with {versions()}: the "
            "last bits may differ from those of a run that was not cut off",
            style="yellow",
            soft_wrap=True,
        )


def check_hosts(begun: RunRecord, hosts: int, out: Path, console: Console) -> None:
    """Print where a run goes on on another number of hosts."""
    if begun.hosts != hosts:
        console.print(
            f"{out} was trained on {begun.hosts} host{'s'[: begun.hosts - 1]}, and goes on on "
            f"{hosts}: sums are rounded in another order, so the last bits may differ",
            style="yellow",
            soft_wrap=True,
        )


def facts(recipe: Recipe, data: Data, resume: bool) -> dict[str, Any]:
    """Return what has to be the same on all hosts: the recipe, the data and the libraries.

    Files may lie elsewhere, so data are told by their classes and labels, and by names and sizes of
    files.
    """
    fields = {k: v for k, v in recipe_json(recipe).items() if k not in ("out", "data")}
    known = {"--resume": resume, "the classes": _digest(*map(str.encode, data.class_names))}
    for name, split in data.splits.items():
        known[f"the number of images in split {name}"] = split.count
        known[f"the digest of split {name}"] = _digest(*_content(split))
    libraries = {name: version(name) for name in ("jaxlib", "tensorflow")}
    return fields | known | versions() | libraries


def _content(split: Split) -> Iterator[bytes]:
    """Yield what tells a split from another one, as far as no image has to be read for it."""
    if split.boxes:
        yield from (corners.tobytes() for corners in split.boxes.corners)
        yield split.boxes.sizes.tobytes()
    if isinstance(split.sources, Records):
        yield f"{split.sources.builder.info.full_name} {split.sources.split}".encode()
        yield repr(sorted(split.left_out)).encode()
        return
    assert split.labels is not None
    yield split.labels.tobytes()
    for source in split.sources if isinstance(split.sources, list) else ():
        if isinstance(source, str):
            source = f"{Path(source).name} {os.stat(source).st_size}".encode()
        yield source


def _digest(*parts: bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(b"%d " % len(part) + part)
    return state.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of what decides a run's numbers."""
    names = ("keras", keras.backend.backend(), "numpy", "pillow")
    return {"vggkeras": vggkeras.__version__, "python": platform.python_version()} | {
        n: version(n) for n in names
    }


def point_latest(out: Path) -> None:
    """Make runs/latest a relative link to the newest run; what else has that name is left alone."""
    latest = Path("runs/latest")
    if latest.exists() and not latest.is_symlink():
        return
    with files.replacing(latest) as beside:
        beside.symlink_to(os.path.relpath(out.resolve(), latest.parent.resolve()))
