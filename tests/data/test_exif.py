"""EXIF orientation: eight ways of storing one photograph give one image, everywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import cut_at, encoded, history, photo, stored, tiny
from PIL import ExifTags, Image, ImageOps

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard, turns_upright
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError
from vggkeras.training.train import train

ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientations_of_one_photograph_are_one_image(orientation):
    image = Image.fromarray(photo(3, 50, 70))
    lossless = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    for kind, options in lossless.items():
        data = stored(image, orientation, kind, **options)
        np.testing.assert_array_equal(decoding.decode(data, exif=True), np.asarray(image), kind)
        if orientation > 1 and kind != "TIFF":  # which Pillow turns itself
            assert not np.array_equal(decoding.decode(data), np.asarray(image))
    for kind in ("JPEG", "AVIF", "WEBP"):  # not lossless: as Pillow turns it
        data = stored(image, orientation, kind)
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(decoding.decode(data, exif=True), np.asarray(turned), kind)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(90, 141), (300, 77)])
def test_training_crops_are_those_of_the_upright_image(orientation, kind, size):
    """Of a JPEG, only a window of the image as it is stored is decoded."""
    import tensorflow as tf

    options = {"quality": 90} if kind == "JPEG" else {}
    data = stored(Image.fromarray(photo(7, *size)), orientation, kind, **options)
    upright = encoded(Image.fromarray(decoding.decode(data, exif=True)), "PNG")
    for index in range(6):
        uniform, _ = augment.draws(0, 1, index)
        crops = [
            augment.random_crop(tf.constant(source), 48, (56, 120), uniform, True, exif).numpy()
            for source, exif in ((data, True), (upright, False))
        ]
        # The box of the window is rounded to float32: see test_augment.
        difference = np.abs(crops[0].astype(int) - crops[1])
        assert difference.max() <= 2
        assert difference.mean() < 0.4


def test_damaged_exif_data_say_nothing():
    image = Image.fromarray(photo(1))
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        data = encoded(image, "JPEG", exif=exif)
        np.testing.assert_array_equal(decoding.decode(data, exif=True), decoding.decode(data))
    for orientation in (0, 9, 600):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data = encoded(image, "JPEG", exif=exif.tobytes())
        np.testing.assert_array_equal(decoding.decode(data, exif=True), decoding.decode(data))


def test_an_upright_copy_counts_as_memory(monkeypatch):
    data = stored(Image.fromarray(photo(1, 100, 100)), 6, "JPEG")
    monkeypatch.setattr(decoding, "MAX_BYTES", 5 * 100 * 100 + len(data))
    decoding.decode(data)
    with pytest.raises(InputError, match="would take"):
        decoding.decode(data, exif=True)


def write_set(folder: Path, *orientations: int) -> Path:
    """Write train/ and val/ of two classes; the images are stored in the given ways, in turn."""
    for split, count in (("train", 8), ("val", 8)):
        for c, name in enumerate(("cat", "dog")):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                seed = 100 * c + i + 50 * (split == "val")
                data = stored(Image.fromarray(photo(seed)), orientations[i % len(orientations)])
                (place / f"{i}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    """The same photographs, stored upright and in eight ways."""
    folder = tmp_path_factory.mktemp("sets")
    return write_set(folder / "upright", 1), write_set(folder / "eight", *ORIENTATIONS)


@pytest.mark.full  # crops of all eight are compared above
def test_eight_orientations_train_as_one_and_are_scored_and_predicted_as_one(
    sets, tmp_path, command
):
    upright, eight = sets
    options = {"learning_rate": 0.1, "scale": "36:44", "batch_norm": False, "epochs": 1}
    runs = [
        train(tiny(tmp_path / name, data=str(folder), exif=exif, **options))
        for name, folder, exif in (
            ("a", upright, True),
            ("b", eight, True),
            ("c", eight, False),
        )
    ]
    assert [run.record.card.exif for run in runs] == [True, True, False]
    weights = [run.model.get_weights() for run in runs]
    for one, other in zip(weights[0], weights[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(not np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))

    figures = []
    for flags in ((upright,), (eight,), (eight, "--no-exif")):
        out = tmp_path / "rows.jsonl"
        out.unlink(missing_ok=True)
        folder, *rest = flags
        arguments = ["--model", runs[0].path, "--data", folder, "--per-image", out, *rest]
        code, _, err = command(cli, "evaluate", *arguments)
        assert code == 0, err
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        figures.append([row["probabilities"] for row in rows])
    assert figures[0] == figures[1] != figures[2]

    answers = []
    for flags in ((upright,), (eight,), (eight, "--no-exif")):
        arguments = [flags[0] / "val", "--model", runs[2].path, "--json", *flags[1:]]
        _, out, _ = command(cli, "predict", *arguments)
        answers.append([json.loads(line)["classes"] for line in out.splitlines()])
    assert answers[0] == answers[1] != answers[2]  # predict turns images whatever the training did

    code, _, err = command(cli, "evaluate", "--model", runs[0].path, runs[2].path, "--data", eight)
    assert code == 2
    assert "--no-exif" in err


@pytest.mark.full
def test_a_run_of_before_goes_on_with_what_it_read(sets, tmp_path):
    """Version 0.2 recorded no orientation, applied none, and read no WebP."""
    folder = write_set(tmp_path / "set", *ORIENTATIONS)
    recipe = {"data": str(folder), "batch_norm": False}
    before = train(tiny(tmp_path / "whole", exif=False, **recipe))

    out = tmp_path / "cut"
    cut_at(tiny(out, exif=False, **recipe), 4)  # steps, an epoch
    about = json.loads((out / "run.json").read_text())
    del about["exif"], about["recipe"]["exif"]
    (out / "run.json").write_text(json.dumps(about))
    Image.fromarray(photo(5)).save(folder / "train" / "cat" / "new.webp")
    after = train(tiny(out, **recipe), resume=True)
    assert after.record.card.exif is None
    assert history(out) == history(tmp_path / "whole")
    for a, b in zip(after.model.get_weights(), before.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_card_says_decides():
    new, raw, old = (ModelCard(exif=exif) for exif in (True, False, None))
    assert turns_upright([new])
    assert turns_upright([new, new])
    assert not turns_upright([raw, old])
    assert not turns_upright([old])
    assert turns_upright([new, old])
    assert not turns_upright([new], asked=False)
    with pytest.raises(InputError, match="--no-exif"):
        turns_upright([new, raw])
    assert not turns_upright([new, raw], asked=False)
    card = ModelCard(exif=True, input_shape=(32, 32, 3), scale=36)
    assert card.resize.startswith("upright by its EXIF orientation, then smallest side to 36 px")
    assert card.to_description()["exif"] is True
    assert "exif" not in ModelCard(input_shape=(32, 32, 3), scale=36).to_description()


def test_the_python_functions_read_files_upright(sets, run, exports):
    _upright, _eight = sets
    predictor = vggkeras.load(exports / "model.onnx")
    files = [sorted(map(str, folder.glob("val/*/*.png"))) for folder in sets]
    answers = [vggkeras.posteriors(predictor, each) for each in files]
    np.testing.assert_array_equal(*answers)
