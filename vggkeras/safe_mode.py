"""Check the network that a .keras file describes, before any part of it is made.

Keras' own safe mode stays on. This adds that only classes of a network are named, so that nothing
of another package is imported; and that the network is no larger than the weights beside it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import keras
from keras.src.backend.common import global_state

MODELS = {"Functional", "Model", "Sequential"}  # of keras.models, which has load_model too
PARTS = 50_000  # objects of a config; keras.applications' largest has a tenth
# Where Keras' parts of a network are. Not keras.utils, keras.saving, keras.export and others, nor
# keras_hub, which Keras would import.
MODULES = re.compile(
    r"keras(\.src)?(\.(activations|constraints|dtype_policies|initializers|layers|losses|metrics"
    r"|models|ops|optimizers|quantizers|random|regularizers)(\.\w+)*)?"
)
CODE = {  # run code of the file, or read others
    *("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "FeatureSpace"),
    *("StringLookup", "IntegerLookup", "TextVectorization"),
}
LITERALS = {
    *("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"),
}
SPARE = 4 << 20  # numbers beside the weights: states of random layers, and the like


def check_network(config: Any, stored: int) -> None:
    """Check a network's config.

    Args:
        config: the parsed config.json.
        stored: how many numbers the file has.

    Raises:
        ValueError: it names what is no part of a network and was not registered in this process,
            or makes more weights than the file has.
    """
    config = {**config, "compile_config": None}
    registered = keras.saving.get_custom_objects()
    parts, count = [config], 0
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "class_name" in part:
            _check_class(part, registered)
            count += 1
        if isinstance(part, dict | list):
            parts.extend(part.values() if isinstance(part, dict) else part)
    if count > PARTS:
        raise ValueError(f"{count:,} objects in its config.json; expected {PARTS:,} or fewer")
    scope = keras.StatelessScope(initialize_variables=False)
    try:
        with scope:  # its variables have a shape, and no memory
            network = keras.saving.deserialize_keras_object(config, safe_mode=True)
    finally:
        global_state.set_global_attribute("uninitialized_variables", [])
    made = sum(math.prod(variable.shape) for variable in getattr(network, "variables", ()))
    if made > stored + SPARE:
        raise ValueError(f"the network would have {made:,} weights, and the file has {stored:,}")


def _check_class(part: dict[str, Any], registered: dict[str, Any]) -> None:
    kind, module = str(part["class_name"]), part.get("module")
    is_function = kind == "function"
    name, key = part.get("config") if is_function else kind, part.get("registered_name")
    if (name if is_function else key) in registered or kind in LITERALS:
        return
    known = module in (None, "builtins") or MODULES.fullmatch(str(module)) is not None
    if str(module).startswith("keras.models"):
        known = name in MODELS
    if not known or name in CODE or not re.fullmatch(r"[A-Za-z]\w*", str(name)):
        raise ValueError(f"{name} of {module} is no part of a network")
