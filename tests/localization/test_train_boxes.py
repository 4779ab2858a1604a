"""Training networks of boxes: what they start from, what is frozen, resume, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import assert_same_end, bare_run, cut_at, equal_layers, history, photo, tiny
from PIL import Image

import vggkeras
from vggkeras import models
from vggkeras.card import Form
from vggkeras.departures import recipe_text
from vggkeras.errors import InputError
from vggkeras.recipe import Recipe
from vggkeras.training.optimizer import compile_model
from vggkeras.training.train import train

CLASSES = ("cat", "dog")


def write_textured(root: Path, split: str, count: int, seed: int, side: int = 48) -> list[list]:
    """Write images of one textured rectangle on a busy background; return their rows.

    The class says which way the texture is striped.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        name = CLASSES[i % 2]
        image = photo(int(rng.integers(1 << 30)), side, side).astype(np.int64) // 2
        image += rng.integers(0, 64, (side, side, 3))
        height, width = rng.integers(side // 3, side // 4 * 3, 2)
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        y, x = np.mgrid[:height, :width]
        stripes = ((x if name == "cat" else y) // 2 % 2)[..., None]
        image[top : top + height, left : left + width] = np.where(stripes, 255, 90)
        file = f"{split}/{name}/{i:04d}.png"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / file, compress_level=1)
        rows.append([file, name, left, top, left + width, top + height])
    return rows


def write_boxes(root: Path, rows: list[list]) -> Path:
    with open(root / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "xmin", "ymin", "xmax", "ymax"], *rows])
    return root


@pytest.fixture(scope="module")
def textured(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("textured")
    rows = write_textured(root, "train", 20, 0) + write_textured(root, "val", 8, 1)
    return write_boxes(root, rows)


@pytest.fixture(scope="module")
def classifier(textured, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return train(tiny(folder, data=str(textured), scale=37, epochs=1)).path


def boxes(out: Path, textured: Path, **changes) -> Recipe:
    return tiny(out, **{"data": str(textured), "boxes": "pcr", "scale": 37, **changes})


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("scr", marks=pytest.mark.full), "pcr"])
def test_a_run_starts_from_a_classifier_and_says_what_it_measures(
    kind, textured, classifier, tmp_path, capsys
):
    run = train(boxes(tmp_path / "run", textured, boxes=kind, init_from=str(classifier), tune="fc"))
    out = capsys.readouterr().out
    assert "boxes starts anew" in out
    assert "trained: fc1, fc2, boxes" in out
    assert "localized 0." in out
    assert "best validation localization (IoU > 0.5)" in out
    assert "random weights" not in out
    given, card = models.load_model(classifier / "model.keras")
    # Frozen layers stay bit for bit, moving averages too.
    convolutions = {layer.name for layer in given.layers if layer.weights} - {
        *("fc1", "fc2", "predictions")
    }
    assert equal_layers(run.model, given) == convolutions
    row = history(run.path)[-1]
    assert {"accuracy", "val_accuracy", "iou", "val_iou", "loss", "val_loss"} <= row.keys()
    assert run.record.card.boxes == kind
    assert run.record.card.scale == card.scale
    predictor = vggkeras.load(run.path / "model.keras")
    assert (predictor.form, predictor.boxes) == (Form.BOXES, kind)
    assert predictor.class_names == list(CLASSES)
    keras.saving.load_model(run.path / "model.keras")  # without anything of this package in it
    with pytest.raises(InputError, match="network of boxes: expected a classifier"):
        train(boxes(tmp_path / "other", textured, init_from=str(run.path)))


@pytest.mark.full  # test_resume.py, with classes
@pytest.mark.integration
def test_a_run_that_was_cut_off_ends_with_the_same_bits(textured, classifier, tmp_path, capsys):
    recipe = boxes(tmp_path / "whole", textured, init_from=str(classifier))
    whole = train(recipe)
    part = dataclasses.replace(recipe, out=tmp_path / "part")
    cut_at(part, 3)
    assert_same_end(train(part, resume=True), whole)
    with pytest.raises(InputError, match="boxes was 'pcr' and is 'scr'"):
        train(dataclasses.replace(part, boxes="scr"), resume=True)
    assert "random weights" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.integration
def test_without_a_classifier_it_is_said(textured, tmp_path, capsys):
    train(boxes(tmp_path / "run", textured, epochs=1))
    out = capsys.readouterr().out
    assert "without a classifier to start from: all weights are random" in out
    assert "boxes from random weights" in out


@pytest.mark.slow
@pytest.mark.integration
def test_only_a_classifier_of_these_classes_scale_and_size_is_taken(textured, classifier, tmp_path):
    for changes, expected in {
        ("scale", 40): "of 32 px at scale 37, and the boxes are to be of 32 px at scale 40: give "
        "--image-size 32 --scale 37",
        ("image_size", 36): "of 32 px at scale 37, and the boxes are to be of 36 px at scale 37",
    }.items():
        recipe = boxes(tmp_path / "run", textured, init_from=str(classifier))
        with pytest.raises(InputError, match=expected):
            train(dataclasses.replace(recipe, **dict([changes])))
    other = bare_run(tmp_path / "other", ["cat", "hen"], "digits")
    with pytest.raises(InputError, match="has no class dog, of which there are boxes"):
        train(boxes(tmp_path / "run", textured, init_from=str(other), scale=32))
    with pytest.raises(InputError, match="digits has no boxes"):
        train(boxes(tmp_path / "run", textured, data="digits", init_from=str(classifier)))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mixup": 0.2}, "mixup apply to classifiers, and boxes is pcr"),
        ({"label_smoothing": 0.1, "class_weights": "balanced"}, "label_smoothing, class_weights"),
        ({"randaugment": True}, "randaugment apply to classifiers"),
        ({"monitor": "val_cross_entropy"}, "monitor apply to classifiers"),
        ({"freeze": "conv", "init_from": "x"}, "freeze apply to classifiers.*tune says"),
        ({"tune": "fc"}, "tune fc keeps the convolutions as they are: set init_from"),
        ({"boxes": None, "tune": "fc", "init_from": "x"}, "tune is of networks of boxes"),
        ({"boxes": "both"}, "boxes must be scr or pcr; received 'both'"),
        ({"tune": "last"}, "tune must be fc, all; received 'last'"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes, expected):
    with pytest.raises(InputError, match=expected):
        Recipe(**{"boxes": "pcr", "image_size": 32, **changes})


def test_the_papers_learning_rate_of_boxes_is_the_default():
    assert Recipe(boxes="pcr").learning_rate == 1e-3
    assert Recipe(boxes="scr", optimizer="adamw").learning_rate == 1e-3
    assert Recipe().learning_rate == 1e-2
    assert recipe_text(Recipe(boxes="pcr", init_from="runs/D", tune="fc")) == "the paper's recipe"
    assert recipe_text(Recipe(boxes="pcr")) == "not the paper's: boxes from random weights"


def test_only_a_classifiers_run_is_advised_to_go_on_from():
    assert Recipe().another_run(Path("a")) == "another run with --out and --init-from a"
    assert Recipe(boxes="pcr").another_run(Path("a")) == "another run with --out"


def test_one_step_moves_the_weights_by_the_gradient_of_the_loss():
    """Against the gradient of the sum of squares by hand, in the last layer."""
    recipe = Recipe(
        "A", boxes="pcr", image_size=32, weight_decay=0.0, momentum=0.0, batch_size=256, dropout=0
    )
    model = vggkeras.build(
        "A",
        (32, 32, 3),
        2,
        boxes="pcr",
        width=1 / 64,
        fc_units=8,
        dropout=0,
        weight_decay=0,
        seed=1,
    )
    compile_model(model, recipe)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.float32)
    targets = np.concatenate([[[0], [1]] * 3, rng.uniform(0, 1, (6, 4))], 1).astype(np.float32)
    bias = keras.ops.convert_to_numpy(model.layers[-1].bias)
    outputs = keras.ops.convert_to_numpy(model(images)).reshape(6, 2, 4)
    gradient = np.zeros((6, 2, 4))
    for i, label in enumerate(targets[:, 0].astype(int)):
        gradient[i, label] = 2 * (outputs[i, label] - targets[i, 1:]) / 6
    model.train_on_batch(images, targets)
    moved = keras.ops.convert_to_numpy(model.layers[-1].bias) - bias
    np.testing.assert_allclose(moved, -1e-3 * gradient.sum(0).ravel(), rtol=1e-3, atol=1e-8)


@pytest.mark.full
def test_a_textured_rectangle_is_found_on_images_held_out(tmp_path):
    """The whole chain: 95% of 200 images that no training saw have a box with IoU > 0.5."""
    rows = write_textured(tmp_path, "train", 800, 0) + write_textured(tmp_path, "val", 100, 1)
    data = str(write_boxes(tmp_path, rows + write_textured(tmp_path, "test", 200, 2)))
    shared = {"width": 0.25, "fc_units": 128, "dropout": 0.0, "scale": 40, "image_size": 32}
    recipe = tiny(tmp_path / "cls", data=data, epochs=4, batch_size=16, **shared)
    recipe = dataclasses.replace(recipe, optimizer="adamw", learning_rate=1.6e-2)
    classifier = train(recipe).path
    run = train(
        dataclasses.replace(
            recipe,
            out=tmp_path / "boxes",
            boxes="pcr",
            init_from=str(classifier),
            epochs=12,
            schedule="cosine",
            learning_rate=1.6e-2,
        )
    )
    from vggkeras.training.pipeline import validation_batches

    split = vggkeras.load_data(data, boxes=True).upright(True).split("test")
    model = run.model
    compile_model(model, recipe_of(run))
    scores = model.evaluate(validation_batches(split, 50, 32, 40), return_dict=True, verbose=0)
    assert scores["accuracy"] >= 0.95, scores


def recipe_of(run) -> Recipe:
    recipe = run.record.card.recipe
    assert recipe
    return recipe
