"""The trained network's features of digits, shared by the tests of this folder."""

from __future__ import annotations

import pytest

import vggkeras
from vggkeras.features.extraction import Described, describe, load_images
from vggkeras.runtimes.predictor import Predictor


@pytest.fixture(scope="package")
def predictor(run) -> Predictor:
    return vggkeras.load(run.path)


@pytest.fixture(scope="package")
def form(predictor) -> Predictor:
    return predictor.features_form()


@pytest.fixture(scope="package")
def described(form) -> Described:
    return describe(form, load_images("digits"), scales=(32,))
