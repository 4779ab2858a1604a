"""Answer one picture by several models side by side, and explain it: what `demo --ui` shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vggkeras import files
from vggkeras.card import Form
from vggkeras.data import decoding, sources
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols
from vggkeras.evaluation.checks import check_fusible
from vggkeras.features import neighbours, stored
from vggkeras.features.extraction import Described, Extractor
from vggkeras.pages import Picture, encode_picture, read_some
from vggkeras.report.grad_cam import Overlay, can_explain, grad_cam, overlay
from vggkeras.report.pictures import crop_and_thumbnail
from vggkeras.report.sources import read_source
from vggkeras.runtimes.predictor import Predictor

TOP = 5
FEATURES = "features.npz"  # beside the first model, from `vggkeras features --out`
EXAMPLES = 8


@dataclass(frozen=True)
class Answer:
    """The classes that one model finds most probable, the most probable first."""

    predictor: Predictor
    best: tuple[tuple[str, float], ...]  # (class, probability)
    milliseconds: float  # that the call took, after a first one


@dataclass(frozen=True)
class Crop:
    """What a network sees of a picture."""

    picture: Picture
    scale: int  # smallest side that the picture was rescaled to, px


@dataclass(frozen=True)
class SideBySide:
    """A picture's answers, a model each, and what explains them."""

    image: str  # its name
    answers: list[Answer]
    crops: list[Crop]  # different ones alone
    overlay: Overlay | None  # Grad-CAM of the first Keras model's answer
    neighbours: list[neighbours.Shown]


class Models:
    """Models of the same classes, warm, with what explains their answers."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        """Take classifiers, and the file `FEATURES` beside the first one, if there is one.

        Raises:
            InputError (a ValueError): other models than classifiers; other classes than the first
                one's; the features of another model.
        """
        self.plan = protocols.Plan(list(predictors), ["center"], None, mirrors=False, grid=1)
        check_fusible(predictors, "shown side by side")
        self.predictors, first = predictors, predictors[0]
        self.explained = next((p for p in predictors if can_explain(p.network)), None)
        self.described: Described | None = None
        if (path := first.path.parent / FEATURES).is_file():
            self.described = stored.read(path, first.card)
            about = self.described.about
            self.extractor = Extractor(first, about.scales, about.aggregate, about.mirrors)
            if about.sha256 != files.sha256(self.extractor.form.path):
                raise InputError(
                    f"{path} holds the features of another model than {first.path}: write it "
                    "again with `python -m vggkeras features`, or remove it."
                )
        self.plan.warm_up()

    def answer(self, path: Path) -> SideBySide:
        """Answer an image file as `predict` does: upright, by its central crop.

        Raises:
            InputError (a ValueError): it cannot be read as an image.
        """
        crops, explained, rescaled = decoding.decoded(path, path.name, self._shown, exif=True)
        different = {(p.input_shape, p.scale): crops[i] for i, p in enumerate(self.predictors)}
        answers = [
            _timed(predictor, crop) for predictor, crop in zip(self.predictors, crops, strict=True)
        ]
        closest: list[neighbours.Shown] = []
        if self.described:
            (row,) = self.extractor.rows([rescaled])
            closest = neighbours.closest_to(self.described, row)
        return SideBySide(
            image=path.name,
            answers=answers,
            crops=[Crop(_png(crop), scale) for (_, scale), crop in different.items()],
            overlay=self._overlay(answers, *explained) if explained else None,
            neighbours=closest,
        )

    def _shown(
        self, image: Image.Image
    ) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray] | None, list[np.ndarray]]:
        """Return each model's crop, what Grad-CAM needs, and what the features are of."""
        crops = [crop for (crop,) in self.plan.shown(image).values()]
        explained = crop_and_thumbnail(self.explained, image) if self.explained else None
        return crops, explained, self.extractor.rescaled(image) if self.described else []

    def _overlay(self, answers: list[Answer], crop: np.ndarray, thumbnail: np.ndarray) -> Overlay:
        """Explain the answer of the model that can be explained."""
        assert self.explained
        best, _ = next(a.best[0] for a in answers if a.predictor is self.explained)
        index = self.explained.class_names.index(best)
        (heat,) = grad_cam(self.explained.network, crop[None], [index])
        return overlay(best, thumbnail, heat)


def model_files(paths: Sequence[Path]) -> list[Path]:
    """Return model files; of a run's or an export's folder, its classifiers that passed.

    Raises:
        InputError (a ValueError): a run or an export that is damaged or has no model.
    """
    found: list[Path] = []
    for path in paths:
        if not any((path / name).is_file() for name in ("run.json", "certificate.json")):
            found.append(path)
            continue
        source = read_source(path)
        passed = [name for name, entry in source.certificate.items() if entry.passed]
        forms = {form.value for form in Form}
        exported = [source.exports / name for name in passed if not forms & {*name.split(".")}]
        of_folder = [*(source.models if source.is_run else ()), *exported]
        if not of_folder:
            raise InputError(f"{path} has no model yet that can be shown: name one, or train on.")
        found += of_folder
    return found


def write_examples(predictor: Predictor, folder: Path) -> list[Path]:
    """Write some images of the data that a model was trained on as .png files; none without data.

    Raises:
        InputError (a ValueError): the data are not there, or damaged.
    """
    card = predictor.card
    if not card.data:
        return []
    data = sources.load_data_of([card], card.data, skip_unreadable=True, fetch=False)
    split = data.upright(card.exif).split(data.default_split)
    labels = np.zeros(split.count, np.int64) if split.labels is None else split.labels
    chosen = np.array(split.indices())[neighbours.choose_queries(labels, EXAMPLES)]
    examples = []
    for index, pixels in read_some(split, chosen, decoding.pixels):
        examples.append(folder / f"example-{index}.png")
        Image.fromarray(pixels).save(examples[-1])
    return examples


def _timed(predictor: Predictor, crop: np.ndarray) -> Answer:
    start = time.perf_counter()
    probabilities = predictor(crop[None])[0]
    seconds = time.perf_counter() - start
    best = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
    return Answer(
        predictor,
        tuple((predictor.class_names[i], float(probabilities[i])) for i in best),
        1000 * seconds,
    )


def _png(crop: np.ndarray) -> Picture:
    return encode_picture(crop.repeat(3 // crop.shape[2], axis=2), "PNG")
