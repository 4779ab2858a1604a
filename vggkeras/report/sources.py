"""Read what a report is about: a run's or an export's files, its models, and their data."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggkeras import certificate, runtimes
from vggkeras.card import ModelCard
from vggkeras.certificate import Entry
from vggkeras.data import sources
from vggkeras.data.splits import Data
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor
from vggkeras.training.record import RunRecord

if TYPE_CHECKING:
    import keras

HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


@dataclass(frozen=True)
class ReportSource:
    """What the folder of a run or an export holds."""

    folder: Path
    card: ModelCard  # of the run, or of an exported file
    record: RunRecord | None  # of a run
    history: list[dict[str, float]]  # a row an epoch
    certificate: dict[str, Entry]  # artifact's file name -> entry
    exports: Path  # the certificate's folder
    models: list[Path]  # to evaluate
    # Filled in by `load_models`:
    predictors: tuple[Predictor, ...] = ()
    network: keras.Model | None = None  # of a run

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's."""
        return self.record is not None

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch whose model is kept: the first of the best ones by what the recipe monitors."""
        recipe = self.card.recipe
        if recipe and recipe.monitor == "val_cross_entropy":
            return min(self.history, key=lambda row: row["val_cross_entropy"], default=None)
        return max(self.history, key=lambda row: row["val_accuracy"], default=None)

    @property
    def drops(self) -> list[float]:
        """The epochs that began with a lower learning rate than the one before, on a plateau."""
        if self.card.recipe and self.card.recipe.schedule == "cosine":
            return []
        return [
            after["epoch"]
            for before, after in itertools.pairwise(self.history)
            if after["learning_rate"] < before["learning_rate"]
        ]


def read_source(folder: Path) -> ReportSource:
    """Read a folder's files, without its models.

    Raises:
        InputError (a ValueError): no such folder; neither run.json nor certificate.json; a damaged
            file.
    """
    if not folder.is_dir():
        raise InputError(
            f"No folder {folder}: expected a run's or an export's; train one with `python -m "
            "vggkeras train`, or name it."
        )
    is_run = (folder / "run.json").is_file()
    has_certificate = (folder / "certificate.json").is_file()
    if not is_run and not has_certificate:
        raise InputError(
            f"{folder} holds neither run.json nor certificate.json: expected the folder of a run "
            "(`python -m vggkeras "
            "train`) or of an export (`python -m export`)."
        )
    exports = folder if has_certificate else folder / "export"
    record = RunRecord.read(folder) if is_run else None
    history = _read_history(folder / "history.csv") if is_run else []
    entries = certificate.read(exports)
    if not is_run and not entries:
        raise InputError(
            f"{exports / 'certificate.json'} names no artifact: export again with `python -m "
            "export`."
        )
    if is_run:
        models = [folder / "model.keras"]
    else:
        models = [exports / name for name, entry in entries.items() if entry.passed]
    models = [path for path in models if path.exists()]
    card = record.card if record else ModelCard()
    return ReportSource(folder, card, record, history, entries, exports, models)


def _read_history(path: Path) -> list[dict[str, float]]:
    """Return a row an epoch; none where no epoch is finished."""
    if not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
        if any(None in row or None in row.values() for row in lines):
            raise ValueError("a row is cut short, or has too many values")
        rows = [{key: float(value) for key, value in row.items()} for row in lines]
        if not rows:
            raise ValueError("no epoch")
        missing = set(HISTORY) - set(rows[0])
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        if not all(math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("a value is not finite")
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}): expected a row of numbers an epoch, under "
            f"{', '.join(HISTORY)}; "
            "restore it, or remove it to have the report without curves."
        ) from error
    return rows


def load_models(source: ReportSource) -> ReportSource:
    """Return a source with its models loaded; an export's card is that of its first file.

    Raises:
        InputError (a ValueError): a run on another Keras backend than TensorFlow; a damaged model.
    """
    if not source.models:
        return source
    if not source.is_run:
        # A dense form answers as the file it is of, by the central crop.
        predictors = tuple(p for p in map(runtimes.load, source.models) if not p.dense)
        first = predictors[0] if predictors else runtimes.load(source.models[0])
        card = dataclasses.replace(first.card, image_size=max(first.input_shape))
        return dataclasses.replace(source, card=card, predictors=predictors)
    from keras.backend import backend

    from vggkeras import models
    from vggkeras.runtimes.keras import keras_predictor

    if backend() != "tensorflow":
        raise InputError(
            "A run's report needs Keras' TensorFlow backend, for Grad-CAM: set "
            "KERAS_BACKEND=tensorflow and start again."
        )
    (path,) = source.models
    network, card = models.load_model(path)
    predictor = keras_predictor(network, card, path)
    return dataclasses.replace(source, predictors=(predictor,), network=network)


def load_evaluation_data(
    source: ReportSource, data: str | Data | None, skip_unreadable: bool
) -> Data | None:
    """Return the data to evaluate on: those given, or those the model was trained on, or None.

    Raises:
        InputError (a ValueError): no such data; unreadable images.
    """
    spec = data or source.card.data
    if not spec:
        return None
    try:
        trained = sources.trained_on([source.card], spec)
        loaded = sources.load_data_of(
            trained,
            spec,
            skip_unreadable=skip_unreadable,
            fetch=bool(data),
            boxes=source.card.boxes is not None,
        )
        return loaded.upright(source.card.exif)
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data where they are now.)"
        ) from error
