"""The networks of Simonyan & Zisserman (2015) in Keras 3: built, trained, evaluated, exported.

Public names are resolved when they are first used (PEP 562): `import vggkeras` loads neither Keras
nor TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggkeras.batch.jobs import label as label
    from vggkeras.data.sources import load_data as load_data
    from vggkeras.data.splits import Data as Data
    from vggkeras.errors import InputError as InputError
    from vggkeras.evaluation.protocols import posteriors as posteriors
    from vggkeras.features.extraction import extract_features as extract_features
    from vggkeras.layers import LRN as LRN
    from vggkeras.localization.votes import locate as locate
    from vggkeras.models import build as build
    from vggkeras.models import to_dense as to_dense
    from vggkeras.recipe import Recipe as Recipe
    from vggkeras.runtimes import Predictor as Predictor
    from vggkeras.runtimes import load as load
    from vggkeras.training.schedule import paper_callbacks as paper_callbacks
    from vggkeras.training.train import train as train
    from vggkeras.weights.load import load_weights as load_weights
    from vggkeras.weights.load import pretrained as pretrained
    from vggkeras.weights.save import save_weights as save_weights

__version__ = "0.2.0"

_HOME = {
    "Data": "data.splits",
    "InputError": "errors",
    "LRN": "layers",
    "Predictor": "runtimes",
    "Recipe": "recipe",
    "build": "models",
    "extract_features": "features.extraction",
    "label": "batch.jobs",
    "load": "runtimes",
    "load_data": "data.sources",
    "load_weights": "weights.load",
    "locate": "localization.votes",
    "paper_callbacks": "training.schedule",
    "posteriors": "evaluation.protocols",
    "pretrained": "weights.load",
    "save_weights": "weights.save",
    "to_dense": "models",
    "train": "training.train",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vggkeras' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vggkeras.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


class _WhenKerasIsImported:
    """An import hook that registers the layer LRN with Keras as soon as Keras is imported.

    `keras.saving.load_model` then loads an A-LRN network after `import vggkeras` alone, and
    `import vggkeras` itself still does without Keras.
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
                importlib.import_module("vggkeras.layers")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    importlib.import_module("vggkeras.layers")
else:
    sys.meta_path.insert(0, _WhenKerasIsImported())  # type: ignore[arg-type]
