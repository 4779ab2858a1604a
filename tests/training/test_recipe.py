"""The recipe: the paper's defaults, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from vggkeras import configs
from vggkeras.departures import recipe_text
from vggkeras.errors import InputError
from vggkeras.recipe import TRAINED_LAYERS, Freeze, Precision, Recipe, scale_range


def test_the_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.batch_size, recipe.learning_rate, recipe.momentum) == (256, 1e-2, 0.9)
    assert (recipe.weight_decay, recipe.dropout, recipe.epochs) == (5e-4, 0.5, 74)
    assert (recipe.init, recipe.first_rate) == ("glorot", 1e-2)
    assert scale_range(None, 224) == (256, 256)
    assert scale_range("256:512", 224) == (256, 512)
    assert dataclasses.replace(recipe, batch_size=64).first_rate == 2.5e-3


def test_the_choices_are_those_of_the_code():
    assert get_args(Precision) == configs.PRECISIONS
    assert get_args(Freeze) == tuple(TRAINED_LAYERS)


def test_a_recipe_is_frozen_and_varied_by_replace():
    recipe = Recipe("vgg16")
    assert dataclasses.replace(recipe, width=0.5).arch == "D"
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.width = 2


@pytest.mark.parametrize(
    "bad",
    [
        {"arch": "VGG20"},
        {"image_size": 31},
        {"image_size": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"patience": 0},
        {"dropout": 1.0},
        {"width": 0.0},
        {"fc_units": 0},
        {"seed": -1},
        {"init": "zeros"},
        {"optimizer": "adam"},
        {"schedule": "step"},
        {"warmup": -1},
        {"ema": 1.0},
        {"label_smoothing": 1.0},
        {"class_weights": "auto"},
        {"mixup": 1.5},
        {"monitor": "val_loss"},
        {"validation": 0.0},
        {"validation": 0.6},
        {"precision": "float16"},
        {"accumulate": 0},
        {"accumulate": 3},
        {"scale": "big"},
        {"scale": "256:"},
        {"scale": "512:256"},
        {"scale": "128", "image_size": 224},
        {"scale": "-3"},
        {"scale": "256:100000"},
    ],
)
def test_a_bad_recipe_says_which_field(bad):
    with pytest.raises(InputError, match="configuration" if "arch" in bad else next(iter(bad))):
        Recipe(**bad)


def test_fields_that_depend_on_the_optimizer():
    sgd, adamw = Recipe(), Recipe(optimizer="adamw")
    assert (sgd.learning_rate, sgd.weight_decay, sgd.l2_penalty) == (1e-2, 5e-4, 5e-4)
    assert (adamw.learning_rate, adamw.weight_decay, adamw.l2_penalty) == (1e-3, 5e-2, 0)
    assert Recipe(optimizer="adamw", learning_rate=0.01, weight_decay=0.0).weight_decay == 0


def test_a_recipe_says_whether_it_is_the_papers():
    assert recipe_text(Recipe("A", image_size=64, epochs=9, seed=3)) == "the paper's recipe"
    modern = Recipe(
        "A",
        optimizer="adamw",
        schedule="cosine",
        warmup=3,
        label_smoothing=0.1,
        randaugment=True,
        batch_norm=True,
    )
    assert recipe_text(modern) == (
        "not the paper's: batch normalization, AdamW, cosine schedule (warmup 3), "
        "label smoothing 0.1, RandAugment, weight decay 0.05"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine", "patience": 3},
        {"schedule": "plateau", "warmup": 2},
        {"warmup": 5, "epochs": 5, "schedule": "cosine"},
        {"optimizer": "adamw", "momentum": 0.5},
        {"optimizer": "adamw", "copied_rate": 0.1, "init_from": "x"},
        {"ema": 0.99, "accumulate": 2},
        {"class_weights": "balanced", "mixup": 0.2},
    ],
)
def test_fields_that_contradict_each_other_are_both_named(fields):
    with pytest.raises(InputError) as refused:
        Recipe(**fields)
    assert all(name in str(refused.value) for name in [*fields][:2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": "conv"}, "set init_from as well"),
        ({"copied_rate": 0.1}, "set init_from as well"),
        (
            {"freeze": "all", "init_from": "x"},
            "freeze must be none, conv, features; received 'all'",
        ),
        ({"copied_rate": 0.0, "init_from": "x"}, r"copied_rate must be in \(0, 1\]; received 0.0"),
        ({"copied_rate": 2.0, "init_from": "x"}, r"copied_rate must be in \(0, 1\]; received 2.0"),
    ],
)
def test_bad_fine_tuning_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe(**fields)
