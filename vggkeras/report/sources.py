"""TODO"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras import files, runtimes
from vggkeras.card import ModelCard
from vggkeras.data import sources
from vggkeras.data.splits import Data
from vggkeras.errors import InputError
from vggkeras.runtimes import keras as keras_module
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    import keras

from vggkeras.report.rows import error_rows
from vggkeras.training.record import RunRecord

HISTORY = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


@dataclass(frozen=True)
class ReportSource:
    """What a folder holds."""

    folder: Path
    card: ModelCard  # of the run, or of an exported file
    record: RunRecord | None  # of a run
    history: list[dict[str, float]]  # a row an epoch
    certificate: dict[str, dict[str, Any]]  # artifact's file name -> entry
    exports: Path  # the certificate's folder
    models: list[Path]  # to evaluate

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's."""
        return self.record is not None

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch whose model is kept: the first of the highest validation accuracy."""
        return max(self.history, key=lambda row: row["val_accuracy"], default=None)

    @property
    def drops(self) -> list[float]:
        """The epochs that began with a lower learning rate than the one before."""
        pairs = itertools.pairwise(self.history)
        return [
            after["epoch"]
            for before, after in pairs
            if after["learning_rate"] < before["learning_rate"]
        ]


def read_source(folder: Path) -> ReportSource:
    if not folder.is_dir():
        raise InputError(
            f"No folder {folder}: expected a run's or an export's; train one with `python -m vggkeras train`, or name it."
        )
    is_run = (folder / "run.json").is_file()
    exports = (
        folder / "export" if is_run and not (folder / "certificate.json").is_file() else folder
    )
    if not is_run and not (exports / "certificate.json").is_file():
        raise InputError(
            f"{folder} holds neither run.json nor certificate.json: expected the folder of a run (`python -m vggkeras "
            "train`) or of an export (`python -m export`)."
        )
    record = RunRecord.read(folder) if is_run else None
    if not is_run and not files.read_certificate(exports):
        raise InputError(
            f"{exports / 'certificate.json'} names no artifact: export again with `python -m export`."
        )
    history = _read_history(folder / "history.csv") if is_run else []
    certificate = files.read_certificate(exports)
    if is_run:
        models = [path for path in [folder / "model.keras"] if path.is_file()]
    else:
        models = [
            exports / name
            for name, entry in certificate.items()
            if entry["passed"] and (exports / name).exists()
        ]
    card = record.card if record else ModelCard()
    return ReportSource(folder, card, record, history, certificate, exports, models)


def _read_history(path: Path) -> list[dict[str, float]]:
    """A row an epoch; none where no epoch is finished."""
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
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}): expected a row of numbers an epoch, under {', '.join(HISTORY)}; "
            "restore it, or remove it to have the report without curves."
        ) from error
    return rows


def read_evaluation(path: Path) -> dict[str, Any]:
    """A group of rows for `error_rows`, from the JSON of `python -m vggkeras evaluate --json`."""
    expected = "expected the JSON that `python -m vggkeras evaluate --json FILE` writes"
    if not path.is_file():
        raise InputError(f"No evaluation at {path}: {expected}.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no evaluation ({error}): {expected}.") from error
    if (
        not isinstance(records, list)
        or not records
        or not all(isinstance(record, dict) for record in records)
    ):
        raise InputError(f"{path} is no evaluation, a list of rows: {expected}.")
    try:
        if any(not 0 <= row["correct"] <= row["correct5"] <= row["images"] for row in records):
            raise ValueError("a row has more right answers than images")
        group: dict[str, Any] = {
            "title": f"{path.name}: {records[0]['data']}, {records[0]['split']}",
            "records": records,
        }
        error_rows(
            **group
        )  # a figure that is missing, or no number, is said before anything is evaluated
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no evaluation ({type(error).__name__}: {error}): {expected}."
        ) from error
    return group


def loaded(source: ReportSource) -> tuple[ReportSource, list[Predictor], keras.Model | None]:
    """The folder's models, ready to run, and the Keras network where one of them is; what an export's file says of itself."""
    if not source.models:
        return source, [], None
    if source.is_run:
        from keras.backend import backend

        from vggkeras import models as models_module

        if backend() != "tensorflow":
            raise InputError(
                "A run's report needs Keras' TensorFlow backend, for Grad-CAM: set KERAS_BACKEND=tensorflow and start again."
            )
        network, card = models_module.load_model(source.models[0])
        return source, [keras_module.keras_predictor(network, card, source.models[0])], network
    # A dense form answers as the file it is of, by the central crop.
    predictors = [p for p in map(runtimes.load, source.models) if not p.dense]
    first = predictors[0] if predictors else runtimes.load(source.models[0])
    card = dataclasses.replace(first.card, image_size=max(first.input_shape))
    return dataclasses.replace(source, card=card), predictors, None


def found_data(source: ReportSource, data: str | None, skip_unreadable: bool) -> Data | None:
    """None where the model names no data and none are given."""
    spec = data or source.card.data
    if not spec:
        return None
    try:
        return sources.load_data(spec, skip_unreadable=skip_unreadable)
    except InputError as error:
        if data:
            raise
        raise InputError(
            f"{error} (The model was trained on it: give --data where they are now.)"
        ) from error
