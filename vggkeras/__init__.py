"""The networks of Simonyan & Zisserman (2015) in Keras 3: built, trained, evaluated, and loaded from any export.

Public names are resolved when they are first used (PEP 562): `import vggkeras` loads neither Keras nor TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggkeras.configs import Recipe as Recipe
    from vggkeras.datasets import load_data as load_data
    from vggkeras.errors import InputError as InputError
    from vggkeras.evaluate import posteriors as posteriors
    from vggkeras.features import features as features
    from vggkeras.models import LRN as LRN
    from vggkeras.models import MeanRGB as MeanRGB
    from vggkeras.models import build as build
    from vggkeras.models import to_dense as to_dense
    from vggkeras.runtimes import Predictor as Predictor
    from vggkeras.runtimes import load as load
    from vggkeras.train import train as train
    from vggkeras.weights import load_weights as load_weights
    from vggkeras.weights import pretrained as pretrained
    from vggkeras.weights import save_weights as save_weights

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "LRN": "models",
    "MeanRGB": "models",
    "Predictor": "runtimes",
    "Recipe": "configs",
    "build": "models",
    "features": "features",
    "load": "runtimes",
    "load_data": "datasets",
    "load_weights": "weights",
    "posteriors": "evaluate",
    "pretrained": "weights",
    "save_weights": "weights",
    "to_dense": "models",
    "train": "train",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vggkeras' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vggkeras.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


class _Package(ModuleType):
    """Keeps `vggkeras.train` and `features` functions: importing a submodule of that name would put it in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
