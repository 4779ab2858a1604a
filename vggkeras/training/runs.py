"""TODO"""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
from rich.console import Console

import vggkeras
from vggkeras import files, models
from vggkeras.card import ModelCard, recipe_json
from vggkeras.data import statistics
from vggkeras.data.splits import Data
from vggkeras.data.statistics import Pixels
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.terminal import progress_bar
from vggkeras.training.record import RunRecord


@dataclass(frozen=True)
class Run:
    """A finished training run and its folder: model.keras, run.json, history.csv, resume/, tensorboard/."""

    path: Path
    record: RunRecord

    @property
    def metadata(self) -> dict[str, Any]:
        """What run.json says, as JSON."""
        return self.record.to_json()

    @property
    def model(self) -> keras.Model:
        """The best model by validation accuracy, loaded from model.keras."""
        return models.load_model(self.path / "model.keras")[0]


def read_through(data: Data, skip: bool, console: Console) -> tuple[Data, ModelCard]:
    """Read every training and validation image once.

    Returns the data, with `skip` less what is unreadable, and a card with the mean and the covariance of RGB, the
    indices of unreadable images, and how many training images have which smallest side.
    """
    splits, skipped, unreadable = dict(data.splits), list(data.skipped), {}
    pixels: list[Pixels] = []
    for name, split in data.splits.items():
        if name == "test" and not skip:
            continue
        bad: dict[int, str] = {}
        with progress_bar(console) as bar:
            for index, result in bar.track(
                statistics.read_all(split), total=split.count, description=f"reading {split.name}"
            ):
                if not isinstance(result, InputError):
                    pixels += [result] if name == "train" else []
                elif skip:
                    bad[index] = split.image_name(index)
                else:
                    raise result
        if len(bad) == split.count:
            raise InputError(f"{data.spec}: split {name} has no readable image.")
        splits[name] = split.without(bad)
        skipped += bad.values()
        unreadable[name] = tuple(sorted(bad))
    if skipped:
        console.print(
            f"skipped {len(skipped)} unreadable images: " + ", ".join(skipped), soft_wrap=True
        )
    mean, covariance = statistics.rgb_statistics(pixels)
    sides, counts = np.unique([image.smallest_side for image in pixels], return_counts=True)
    seen = ModelCard(
        mean_rgb=mean,
        rgb_covariance=tuple(map(tuple, covariance.tolist())),
        unreadable=unreadable,
        smallest_sides={str(s): int(count) for s, count in zip(sides, counts, strict=True)},
    )
    return dataclasses.replace(data, splits=splits, skipped=tuple(skipped)), seen


def as_begun(data: Data, begun: ModelCard, out: Path) -> Data:
    """Return the data as the run in `out` began with them.

    Raises:
        InputError (a ValueError): they are not the same data any more.
    """
    if not begun.rgb_covariance:
        raise InputError(
            f"{out} is of an earlier version of vggkeras, which could not resume: start another run."
        )
    splits = {
        name: split.without(begun.unreadable.get(name, ())) for name, split in data.splits.items()
    }
    for name, split in splits.items():
        if split.count != begun.images.get(name):
            raise InputError(
                f"{out} was begun with {begun.images.get(name, 0)} images in split {name} of {begun.data}; "
                f"{data.spec} has {split.count} now: bring the data back as they were, or start another run."
            )
    if list(begun.class_names) != data.class_names:
        raise InputError(
            f"{out} was begun with other classes than {data.spec} has now: start another run."
        )
    return dataclasses.replace(data, splits=splits, skipped=begun.skipped)


def check_alone(begun: RunRecord, out: Path) -> None:
    """Raises InputError where another process is at work on the run."""
    if begun.status != "training" or begun.host != platform.node():
        return
    try:
        started = psutil.Process(begun.process).create_time()
    except psutil.NoSuchProcess:
        return
    # A later process of the same number is another one.
    if begun.process != os.getpid() and started < (out / "run.json").stat().st_mtime:
        raise InputError(
            f"{out} is being trained by process {begun.process}: wait for it, or end it first."
        )


def check_unchanged(recipe: Recipe, begun: ModelCard, out: Path, console: Console) -> None:
    """Raises InputError naming the fields of a recipe that are not those of the run it should go on with."""
    now, then = recipe_json(recipe), recipe_json(begun.recipe)
    changed = [
        f"{field} was {then.get(field)!r} and is {value!r}"
        for field, value in now.items()
        if field not in ("out", "data")
        and value != then.get(field)  # what the data are, was compared before
    ]
    if changed:
        raise InputError(
            f"--resume goes on with the run of {out} as it was begun, but {'; '.join(changed)}: give what it was begun with, "
            "or start another run with --out (and --init-from, to go on from its weights)."
        )
    if begun.versions != versions():
        console.print(
            f"[yellow]{out} was begun with {begun.versions}, and goes on with {versions()}: "
            "the last bits may differ from those of a run that was not cut off[/]",
            soft_wrap=True,
        )


def versions() -> dict[str, str]:
    """Of what decides a run's numbers."""
    names = ("keras", keras.backend.backend(), "numpy", "pillow")
    return {"vggkeras": vggkeras.__version__, "python": platform.python_version()} | {
        n: version(n) for n in names
    }


def slug(spec: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in spec).strip("-")


def point_latest(out: Path) -> None:
    """Make runs/latest a relative link to the newest run, wherever that is; a folder of that name is left alone."""
    latest = Path("runs/latest")
    if latest.is_dir() and not latest.is_symlink():
        return
    with files.replacing(latest) as beside:
        beside.symlink_to(os.path.relpath(out.resolve(), latest.parent.resolve()))
