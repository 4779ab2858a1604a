"""The networks of Simonyan & Zisserman (2015) in Keras 3: built, trained, evaluated, and loaded from any export.

Public names are resolved when they are first used (PEP 562): `import vggkeras` loads neither Keras nor TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggkeras.configs import Recipe as Recipe
    from vggkeras.datasets import load_data as load_data
    from vggkeras.errors import InputError as InputError
    from vggkeras.evaluate import posteriors as posteriors
    from vggkeras.features import features as features
    from vggkeras.models import LRN as LRN
    from vggkeras.models import build as build
    from vggkeras.models import to_dense as to_dense
    from vggkeras.runtimes import Predictor as Predictor
    from vggkeras.runtimes import load as load
    from vggkeras.train import train as train
    from vggkeras.weights import load_weights as load_weights
    from vggkeras.weights import pretrained as pretrained
    from vggkeras.weights import save_weights as save_weights

__version__ = "0.2.0"

_HOME = {
    "InputError": "errors",
    "LRN": "models",
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


class _WhenKerasIsImported:
    """Registers the layer LRN with Keras, now or as soon as Keras is imported.

    `keras.saving.load_model` then loads an A-LRN network after `import vggkeras` alone, and `import vggkeras`
    itself still does without Keras.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)  # so that the real finders are asked, once
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("vggkeras.models")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    importlib.import_module("vggkeras.models")
else:
    sys.meta_path.insert(0, _WhenKerasIsImported())  # type: ignore[arg-type]
