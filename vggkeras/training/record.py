"""The file run.json of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkeras import files, typed
from vggkeras.card import ModelCard
from vggkeras.errors import InputError

RUN = "run.json"
DEFAULTS = {
    "best_epoch": None,
    "epochs_trained": 0,
    "host": "",
    "process": 0,
    "seconds": 0.0,
    "hosts": 1,
}


@dataclass(frozen=True)
class EpochsChange:
    """A resume that asked for another number of epochs."""

    after_epoch: int  # the finished epochs at that time
    before: int  # recipe.epochs until then
    now: int  # and since


@dataclass(frozen=True)
class RunRecord:
    """What run.json says: the model's card, and how far training has come."""

    card: ModelCard
    status: str  # training, stopped or done
    best_epoch: int | None  # whose model is kept; None before the first epoch's end
    epochs_trained: int
    metrics: dict[str, float]  # of the best epoch
    seconds: float  # of training, the first pass over the images included
    host: str  # where it trains; of several hosts, the first
    process: int  # its process identifier there
    reading_seconds: float = 0.0  # of the first pass; 0 in records of earlier versions
    epochs_changed: tuple[EpochsChange, ...] = ()  # in order
    hosts: int = 1  # on how many it trains

    def to_json(self) -> dict[str, Any]:
        """Return what run.json holds."""
        own = {name: getattr(self, name) for name in self._own_fields()}
        changes = [dataclasses.asdict(change) for change in self.epochs_changed]
        return self.card.to_json() | own | {"epochs_changed": changes}

    @classmethod
    def _own_fields(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls) if f.name != "card"]

    def write(self, folder: Path) -> None:
        """Write run.json in one step."""
        files.write_json(folder / RUN, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Return what a folder's run.json says.

        Raises:
            InputError (a ValueError): run.json is damaged.
        """
        path = folder / RUN
        try:
            return cls.from_json(typed.parse(path.read_bytes()), path)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({str(error)[:200]}): expected what training writes; restore "
                "it, give another --out, or remove the run."
            ) from error

    @classmethod
    def from_json(cls, value: Any, where: str | Path) -> RunRecord:
        """Return what `to_json` gave. Raises ValueError or TypeError where it is none."""
        card = ModelCard.from_json(value, where)
        record = typed.instance(cls, {**DEFAULTS, **value, "card": card}, "run")
        if card.recipe is None or not card.images or card.image_size is None:
            raise TypeError("recipe, images or image_size is missing")
        return record
