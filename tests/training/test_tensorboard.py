"""What TensorBoard finds in a run's event files, and that writing it changes no bit of the run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import assert_same_end, tiny, write_photos
from PIL import Image

import vggkeras
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.training import fitting, tensorboard
from vggkeras.training.record import RunRecord
from vggkeras.training.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]
KERNELS = "kernels of block1_conv1"
TESTS = Path(__file__).parents[1]


def read(run: Path):
    """Return what TensorBoard itself reads of a run's own event files, none of it left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    return events.Reload()


def pictures(events, tag: str) -> dict[int, list[np.ndarray]]:
    """Return the images of a tag by step."""
    shown = {}
    for event in events.Tensors(tag):
        _, _, *encoded = event.tensor_proto.string_val  # after width and height
        shown[event.step] = [np.asarray(Image.open(io.BytesIO(png))) for png in encoded]
    return shown


def hyperparameters(events) -> dict[str, object]:
    """Return those of the HParams page, as its own code reads them."""
    from tensorboard.plugins.hparams import metadata

    (content,) = events.PluginTagToContent(metadata.PLUGIN_NAME).values()
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in values.items()}


def wrong_tags(events) -> list[str]:
    return [tag for tag in events.Tags()["tensors"] if tag.startswith("mistakes/")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of photographs, eight of each class to train on and four to validate."""
    root = tmp_path_factory.mktemp("tensorboard") / "photos"
    for number, name in enumerate(("cat", "dog")):
        write_photos(root / "train" / name, 8, 100 * number)
        write_photos(root / "val" / name, 4, 100 * number + 50)
    return root


@pytest.fixture(scope="module")
def run(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)  # where runs/latest is made
        return train(tiny(folder.parent / "run", data=str(folder), learning_rate=0.5))


def test_a_run_shows_its_hyperparameters_crops_and_kernels(run):
    events = read(run.path)
    expected = {"arch": "A", "width": 0.05, "batch_norm": True, "image_size": 32, "epochs": 2}
    assert expected.items() <= hyperparameters(events).items()

    (crops,) = pictures(events, "crops").values()
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    assert len(crops) == 4  # a batch's
    assert len({crop.tobytes() for crop in crops}) == 4

    kernels = pictures(events, KERNELS)
    assert list(kernels) == [0, 2]  # epochs
    final = run.model.get_layer("block1_conv1").kernel.numpy()
    (sheet,) = kernels[2]
    np.testing.assert_array_equal(sheet, tensorboard.kernel_sheet(final))
    assert not np.array_equal(sheet, kernels[0][0])
    assert set(events.Tags()["tensors"]) == {
        *("_hparams_/session_start_info", "crops", KERNELS),
        *wrong_tags(events),
    }


def test_mistakes_are_those_of_the_best_model_the_most_confident_first(run, folder):
    split = vggkeras.load_data(str(folder)).split("validation")
    crops = list(augment.center_crops(split, (32, 32), run.record.card.scale))
    answers = vggkeras.load(run.path)(np.stack([crop for _, crop, _ in crops]))
    events, names, expected = read(run.path), ("cat", "dog"), {}
    for (index, crop, label), answer in zip(crops, answers, strict=True):
        if answer.argmax() != label:
            name = f"mistakes/{split.image_name(index)}: {names[label]} taken for "
            expected[f"{name}{names[answer.argmax()]}, {answer.max():.0%}"] = answer.max(), crop
    assert expected  # it has learned little in two epochs
    ranked = sorted(expected, key=lambda tag: -expected[tag][0])
    assert wrong_tags(events) == ranked
    for tag in ranked:
        ((picture,),) = pictures(events, tag).values()
        np.testing.assert_array_equal(picture, expected[tag][1])


def test_a_few_of_the_crops_that_the_first_step_trains_on(folder, tmp_path, monkeypatch):
    """Gray ones; and few mistakes are looked for among few images."""
    monkeypatch.setattr(tensorboard, "SHOWN", 2)
    monkeypatch.setattr(tensorboard, "LOOKED_AT", 3)
    first_batches = []

    def note(*arguments):
        batches = training_batches(*arguments)
        first_batches.append(next(iter(batches))[0].numpy())
        return batches

    training_batches = fitting.training_batches
    monkeypatch.setattr(fitting, "training_batches", note)
    run = train(tiny(tmp_path / "run", data=str(folder), epochs=1, channels=1))
    events = read(run.path)
    (shown,) = pictures(events, "crops").values()
    (of_fit,) = first_batches  # made once, for both
    assert len(shown) == 2
    for crop, image in zip(shown, of_fit, strict=False):
        np.testing.assert_array_equal(crop.reshape(32, 32, 1), np.rint(image).clip(0, 255))
    every_third = [f"{name}/{i:03d}.jpg" for name, i in (("cat", 0), ("cat", 3), ("dog", 2))]
    wrong = [tag.split(":")[0] for tag in wrong_tags(events)]
    assert len(wrong) <= 2
    assert all(tag.endswith(tuple(every_third)) for tag in wrong), wrong


def test_an_image_that_went_bad_leaves_a_run_finished(folder, tmp_path, monkeypatch):
    def went_bad(*arguments):
        raise InputError("val/cat/000.jpg cannot be read as an image")

    # Where TensorBoard alone comes by; the validation of every epoch has gone well.
    monkeypatch.setattr(tensorboard, "keras_predictor", went_bad)
    run = train(tiny(tmp_path / "run", data=str(folder), epochs=1))
    assert RunRecord.read(run.path).status == "done"
    assert not wrong_tags(read(run.path))


def test_it_changes_no_bit_of_the_run(run, tmp_path, monkeypatch):
    def keras_own(progress, batches):
        return keras.callbacks.TensorBoard(progress.job.out / "tensorboard", write_graph=False)

    monkeypatch.setattr(fitting, "TensorBoard", keras_own)
    without = train(replace(run.record.card.recipe, out=tmp_path / "without"))
    assert read(without.path).Tags()["tensors"] == []
    assert_same_end(run, without)


ON_JAX = """
import sys
from pathlib import Path
from helpers import tiny
from vggkeras.training.train import train
train(tiny(Path(sys.argv[2]), data=sys.argv[1], learning_rate=0.5))
"""


@pytest.mark.full  # on TensorFlow, above
def test_it_is_the_same_on_jax(run, folder, tmp_path):
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": path}
    command = [sys.executable, "-c", ON_JAX, folder, tmp_path / "jax"]
    subprocess.run(command, check=True, env=environment)
    ours, others = read(run.path), read(tmp_path / "jax")
    assert hyperparameters(ours) == hyperparameters(others)
    (crops,), (others_crops,) = (pictures(e, "crops").values() for e in (ours, others))
    np.testing.assert_array_equal(crops, others_crops)
    assert list(pictures(others, KERNELS)) == [0, 2]
    assert wrong_tags(others)
