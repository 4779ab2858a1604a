"""One picture's answers by several models: those of `predict`, and what explains them."""

from __future__ import annotations

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import CLASSES, photo, saved, stored
from PIL import Image

import vggkeras
from vggkeras import files
from vggkeras.batch.labelling import classify
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.features import extraction
from vggkeras.report import side_by_side
from vggkeras.report.side_by_side import Models, model_files, write_examples

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def models(run, exports) -> Models:
    """All files of the trained network."""
    return Models([vggkeras.load(path) for path in model_files([run.path])])


@pytest.fixture
def picture(tmp_path) -> Path:
    """A picture that a camera stored on its side."""
    path = tmp_path / "picture.png"
    path.write_bytes(stored(Image.fromarray(photo(3, 70, 50)), 6))
    return path


def pixels(picture) -> np.ndarray:
    encoded = base64.b64decode(picture.src.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_the_answers_are_those_of_predict(run, models, picture):
    shown = models.answer(picture)
    names = ["model.keras", "saved_model", "model.onnx", "model.tflite"]
    assert sorted(a.predictor.path.name for a in shown.answers) == sorted(names)
    for answer in shown.answers:
        (expected,) = classify(answer.predictor, [picture])
        assert answer.best == tuple(zip(expected.classes, expected.probabilities, strict=True))
        assert answer.milliseconds > 0
    first = models.predictors[0]
    assert first.path == run.path / "model.keras"
    (crop,) = shown.crops  # all see the same
    upright = decoding.decode(picture.read_bytes(), exif=True)
    expected = augment.center_crop(upright, first.scale, first.input_shape[:2])
    np.testing.assert_array_equal(pixels(crop.picture), expected)
    assert crop.scale == first.scale
    assert shown.overlay
    assert shown.overlay.label == shown.answers[0].best[0][0]
    assert shown.neighbours == []


def test_models_of_two_sizes_see_two_crops_and_gray_ones_gray(picture, tmp_path):
    shapes = [(32, 32, 3), (40, 40, 1)]
    paths = [
        saved(tmp_path / f"{i}.keras", vggkeras.build("A", s, 2, width=0.05, fc_units=8))
        for i, s in enumerate(shapes)
    ]
    shown = Models([vggkeras.load(path) for path in paths]).answer(picture)
    sizes = [pixels(crop.picture).shape for crop in shown.crops]
    assert sizes == [(32, 32, 3), (40, 40, 3)]
    gray = pixels(shown.crops[1].picture)
    assert (gray == gray[..., :1]).all()


def test_the_nearest_neighbour_of_an_image_is_itself(run, tmp_path):
    folder = Path(shutil.copytree(run.path, tmp_path / "run", ignore=lambda *_: ["export"]))
    predictor = vggkeras.load(folder)
    described = extraction.describe(predictor, vggkeras.load_data("digits"), ["validation"])
    extraction.write(described, folder / side_by_side.FEATURES)
    examples = write_examples(predictor, tmp_path)
    assert len(examples) == side_by_side.EXAMPLES
    models, labels = Models([predictor]), set()
    for example in examples:
        first, *others = models.answer(example).neighbours
        index = int(example.stem.removeprefix("example-"))
        assert first.name == f"validation[{index}]"
        assert first.label == described.label(described.indices.tolist().index(index))
        assert first.cosine == pytest.approx(1, abs=1e-5)  # 64 products of float32
        assert [one.cosine for one in others] == sorted((o.cosine for o in others), reverse=True)
        labels.add(first.label)
    assert len(labels) == len(examples)  # of as many classes


def test_features_of_another_model_or_damaged_are_refused(run, tmp_path):
    folder = Path(shutil.copytree(run.path, tmp_path / "run", ignore=lambda *_: ["export"]))
    predictor, data = vggkeras.load(folder), vggkeras.load_data("digits")
    described = extraction.describe(predictor, data, ["validation"])
    path = folder / side_by_side.FEATURES
    extraction.write(described, path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"features.npz holds no features .*: write it again"):
        Models([predictor])
    elsewhere = replace(described, about=replace(described.about, data="hf:somebody/set"))
    extraction.write(elsewhere, path)
    with pytest.raises(InputError, match="nothing is downloaded because a model"):
        Models([predictor])
    path.write_bytes(content)
    other = vggkeras.build("A", (32, 32, 3), 10, width=0.05, fc_units=64)
    saved(folder / "model.keras", other, list("0123456789"))
    assert files.sha256(folder / "model.keras") != described.about.sha256
    with pytest.raises(InputError, match=r"the features of another model than .*model.keras"):
        Models([vggkeras.load(folder)])


def test_models_of_other_classes_are_refused(run, tmp_path):
    path = saved(tmp_path / "two.keras", vggkeras.build("A", (32, 32, 3), 2, width=0.05), CLASSES)
    with pytest.raises(InputError, match="cannot be shown side by side: expected the same classes"):
        Models([vggkeras.load(run.path), vggkeras.load(path)])
    with pytest.raises(InputError, match="64 features, not probabilities"):
        Models([vggkeras.load(run.path).features_form()])


@pytest.mark.parametrize("name", ["text.jpg", "huge.png", "phone.heic"])
def test_pictures_that_are_none_get_the_message_of_predict(models, tmp_path, name):
    if name == "huge.png":  # 100 megapixels with transparency: 800 MB
        Image.new("RGBA", (10_000, 10_000)).save(tmp_path / name, compress_level=1)
    else:
        heic = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(100)
        (tmp_path / name).write_bytes(heic if name == "phone.heic" else b"no picture")
    (expected,) = classify(models.predictors[0], [tmp_path / name])
    assert expected.error
    with pytest.raises(InputError) as caught:
        models.answer(tmp_path / name)
    assert str(caught.value) == f"{name} {expected.error}"


def test_of_a_folder_the_classifiers_that_passed_are_shown(run, dense_exports, tmp_path):
    names = {path.name for path in model_files([dense_exports])}
    assert names == {"saved_model", "model.onnx", "model.tflite"}
    one = run.path / "model.keras"
    assert model_files([one, dense_exports])[0] == one
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(InputError, match="names no artifact"):
        model_files([tmp_path])


def test_examples_need_the_data(run, tmp_path):
    path = saved(tmp_path / "two.keras", vggkeras.build("A", (32, 32, 3), 2, width=0.05))
    assert write_examples(vggkeras.load(path), tmp_path) == []
