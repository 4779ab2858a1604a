"""A network of gray images: trained, exported, evaluated and asked from the command line."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import EXPORTED, photo, tiny
from PIL import Image
from rich.console import Console

import vggkeras
from export.__main__ import cli as export_cli
from export.verify import cli as verify_cli
from vggkeras.__main__ import cli
from vggkeras.data import augment, statistics
from vggkeras.errors import InputError
from vggkeras.training.pipeline import Crops, training_batches, validation_batches
from vggkeras.training.train import train


@pytest.fixture(scope="module")
def gray_run(tmp_path_factory):
    """A small network that reads gray digits well enough for its int8 file to pass."""
    recipe = tiny(
        tmp_path_factory.mktemp("gray") / "run",
        channels=1,
        width=0.125,
        fc_units=32,
        epochs=4,
        batch_size=64,
        learning_rate=0.04,
        dropout=0.0,
    )
    log = Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipe.out.parent)
        return train(recipe, log), log.file.getvalue()


def test_gray_is_pillows(photos):
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    gray = augment.in_channels(image, 1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(image).convert("L")))
    np.testing.assert_array_equal(augment.crop_in_channels(image, 1), gray)
    assert augment.in_channels(image, 3) is image


def test_batches_are_the_gray_of_batches_in_rgb(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    recipe = tiny(Path("out"), data=str(photos))
    of_channels = {}
    for channels in (1, 3):
        crops = Crops(32, (36, 40), True, None, channels)
        images, _ = next(iter(training_batches(split, recipe, crops)))
        of_channels[channels] = images.numpy()
        images, _ = next(iter(validation_batches(split, 4, 32, 40, channels)))
        of_channels[channels, "validation"] = images.numpy()
    assert of_channels[1].shape == (4, 32, 32, 1)
    for gray, rgb in ((1, 3), ((1, "validation"), (3, "validation"))):
        expected = np.stack([augment.in_channels(image, 1) for image in of_channels[rgb]])
        np.testing.assert_array_equal(of_channels[gray], expected)


def test_the_mean_is_of_gray_pixels(photos):
    split = vggkeras.load_data(str(photos)).split("train")
    mean, covariance = statistics.rgb_statistics(
        (pixels for _, pixels in statistics.read_all(split, 1)), 1
    )
    pixels = [np.asarray(Image.open(path).convert("L")).astype(float) for path in split.sources]
    np.testing.assert_allclose(mean, np.mean([p.mean() for p in pixels]))
    np.testing.assert_allclose(
        covariance, [[np.mean([(p**2).mean() for p in pixels]) - mean[0] ** 2]]
    )


@pytest.mark.slow
def test_the_run_says_that_it_is_gray(gray_run):
    run, said = gray_run
    assert "gray, so without the color shift" in said
    assert run.model.input_shape == (None, 32, 32, 1)
    assert len(run.record.card.mean_rgb) == 1
    assert run.record.metrics["val_accuracy"] > 0.5


@pytest.mark.slow
def test_every_command_takes_a_gray_network(gray_run, command, tmp_path):
    run, _ = gray_run
    folder = tmp_path / "export"
    code, out, err = command(
        export_cli, "--model", run.path, "--precision", "all", "--out", folder, "--format", "all"
    )
    assert code == 0, out + err
    files = [folder / name for name in EXPORTED]
    assert command(verify_cli, *files)[0] == 0
    models = [run.path, folder / "model.onnx", folder / "model.tflite"]
    scores = tmp_path / "scores.json"
    code, out, err = command(
        cli, "evaluate", "--data", "digits", "--model", *models, "--json", scores
    )
    assert code == 0, out + err
    rows = json.loads(scores.read_text())
    assert len(rows) == 3
    assert len({row["top1_error"] for row in rows}) == 1
    Image.fromarray(photo(1)).save("photo.png")
    Image.fromarray(photo(1)).convert("L").save("gray.png")
    answers = []
    for model in models:
        code, out, _ = command(cli, "predict", "--json", "--model", model, "photo.png", "gray.png")
        assert code == 0
        answers += [json.loads(line)["classes"] for line in out.splitlines()]
    assert [a[0]["class"] for a in answers] == [answers[0][0]["class"]] * 6
    assert command(cli, "report", run.path)[0] == 0
    assert command(cli, "report", folder)[0] == 0
    assert (
        command(
            cli,
            "features",
            "--model",
            run.path,
            "--data",
            "digits",
            "--split",
            "validation",
            "--out",
            "features.npz",
        )[0]
        == 0
    )


@pytest.mark.full
def test_a_gray_run_goes_on_and_starts_others(gray_run, tmp_path, photos):
    run, _ = gray_run
    recipe = dataclasses.replace(
        run.record.card.recipe, out=tmp_path / "other", init_from=str(run.path), epochs=1
    )
    log = Console(file=io.StringIO(), width=200)
    train(recipe, log)
    assert "subtracts the mean gray of" in log.file.getvalue()
    with pytest.raises(InputError, match=r"1 channels, and --channels is 3: give --channels 1"):
        train(dataclasses.replace(recipe, channels=3, out=tmp_path / "rgb"), log)
    with pytest.raises(InputError, match="channels was 1 and is 3"):
        train(dataclasses.replace(recipe, channels=3, init_from=None), log, resume=True)


@pytest.mark.parametrize("channels", [2, 0, True, 1.0, "1"])
def test_other_channels_are_refused(channels):
    with pytest.raises(InputError, match="channels must be 1 or 3"):
        vggkeras.Recipe(channels=channels)
