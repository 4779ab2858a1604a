"""The recipe: the paper's defaults, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from vggkeras import configs
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
