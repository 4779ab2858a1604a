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
    from vggkeras.models import LRN as LRN
    from vggkeras.models import MeanRGB as MeanRGB
    from vggkeras.models import build as build
    from vggkeras.models import to_dense as to_dense
    from vggkeras.runtimes import Predictor as Predictor
    from vggkeras.runtimes import load as load
    from vggkeras.train import train as train

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "LRN": "models",
    "MeanRGB": "models",
    "Predictor": "runtimes",
    "Recipe": "configs",
    "build": "models",
    "load": "runtimes",
    "load_data": "datasets",
    "posteriors": "evaluate",
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
    """Keeps `vggkeras.train` the function: importing the submodule of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.train if name == "train" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
