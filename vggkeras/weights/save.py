"""Write a network's weights as other libraries read them.

python -m vggkeras convert runs/latest torchvision:vgg16.safetensors
"""

from __future__ import annotations

import json
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

import keras
import numpy as np

from vggkeras import archives, configs
from vggkeras import layers as layers_module
from vggkeras.card import ModelCard
from vggkeras.configs import FC
from vggkeras.errors import InputError
from vggkeras.files import remove, replacing
from vggkeras.weights.files import import_torch
from vggkeras.weights.layouts import LAYOUTS, Layout
from vggkeras.weights.load import weighted

DESTINATIONS = (
    "torchvision:FILE.pth, torchvision:FILE.safetensors, timm:FILE, keras:FILE.h5 or "
    "keras:FILE.weights.h5"
)
Weights = dict[str, dict[str, np.ndarray]]  # layer -> tensor name -> values


class ReaderPreprocessing(TypedDict):
    """What the reader of the weights has to do to an image: (image x scale - mean) / std."""

    order: str  # RGB or BGR; mean and std are in this order
    scale: float
    mean: list[float]
    std: list[float]


def save_weights(model: keras.Model, destination: str) -> ReaderPreprocessing:
    """Write a network's weights as another library reads them. Atomic.

    Args:
        model: of `build()`.
        destination: torchvision:FILE or timm:FILE, .safetensors or, with torch, .pth or .pt;
            keras:FILE.h5 in the layout of keras.applications' files, or keras:FILE.weights.h5 in
            that of Keras 3.

    Returns:
        What its reader has to do to an image: {"order": RGB or BGR, "scale", "mean", "std"}, that
        is (image x scale - mean) / std, mean and std in that order. A warning says where this is
        not the library's usual preprocessing, because the model subtracts another mean than
        ImageNet's of that library.

    Raises:
        InputError (a ValueError): an unknown destination, a configuration that the library does not
            have, torch is missing.
    """
    library, _, rest = str(destination).partition(":")
    layout, path = LAYOUTS.get(library), Path(rest)
    if layout is None or path.suffix not in layout.suffixes or path.is_dir():
        raise InputError(f"Unknown destination {destination!r}: expected {DESTINATIONS}.")
    arch, batch_norm = _configuration(model)
    _check_representable(model, arch, batch_norm, layout, destination)
    write = _writer(path)
    grid = model.input_shape[1] // 32, model.input_shape[2] // 32
    weights: Weights = {
        layer: {
            name: layout.from_ours(layer, array, grid)
            for name, array in zip(names, model.get_layer(layer).get_weights(), strict=True)
        }
        for layer, names in layout.tensor_names(arch, batch_norm).items()
    }
    with replacing(path) as beside:
        write(beside, weights)
    return _reader_preprocessing(layers_module.mean_rgb(model), layout, destination)


def _configuration(model: keras.Model) -> tuple[str, bool]:
    """Return (configuration, whether with batch normalization) of a network of `build()`."""
    layers = weighted(model)
    kernels = {name: layer.weights[0].shape[0] for name, layer in layers.items() if "_conv" in name}
    lrn = any(layer.name == "lrn" for layer in model.layers)
    for arch in configs.CONFIGURATIONS:
        plan = list(configs.plan(arch))
        if (
            kernels == {step.name: step.kernel for step in plan if step.kind == "conv"}
            and lrn == any(step.kind == "lrn" for step in plan)
            and set(FC) <= set(layers)
        ):
            return arch, any("_bn" in name for name in layers)
    raise InputError(
        f"save_weights expects a model of vggkeras.build(); received {model.name!r}: build the "
        "network with it."
    )


def _check_representable(
    model: keras.Model, arch: str, batch_norm: bool, layout: Layout, destination: str
) -> None:
    """Raise InputError for a network that a library does not have."""
    if arch not in layout.archs or (batch_norm and not layout.batch_norm):
        aliases = [alias for alias, letter in configs.ALIASES.items() if letter in layout.archs]
        raise InputError(
            f"{destination}: the model is configuration {arch}"
            f"{' with batch normalization' if batch_norm else ''}, and {layout.library} has only "
            f"{', '.join(aliases)} ({', '.join(layout.archs)})"
            f"{'' if layout.batch_norm else ' without batch normalization'}: give another library."
        )
    channels = model.input_shape[-1]
    if channels != 3:
        raise InputError(
            f"{destination}: the model takes images of {channels} channels, and {layout.library} "
            "those of 3: save it as .keras."
        )


def _reader_preprocessing(
    mean_rgb: tuple[float, ...], layout: Layout, destination: str
) -> ReaderPreprocessing:
    """Return what a reader has to do to an image, and warn where that is not usual."""
    usual = layout.preprocessing
    step = -1 if usual.order == "BGR" else 1
    mean = [value / usual.divisor for value in mean_rgb[::step]]
    std = list(np.broadcast_to(usual.std, 3)[::step].tolist())
    if not np.allclose(mean_rgb, usual.mean_rgb, rtol=0, atol=1e-3):
        warnings.warn(
            f"{destination}: the model subtracts the mean RGB {_listed(mean_rgb, '.3f')}, not "
            f"{_listed(usual.mean_rgb, '.3f')} as is usual there: its reader must use mean "
            f"{_listed(mean, '.5g')} ({usual.order})",
            stacklevel=3,
        )
    return {"order": usual.order, "scale": 1 / usual.divisor, "mean": mean, "std": std}


def _listed(values: tuple[float, ...] | list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def save_model(model: keras.Model, path: Path, card: ModelCard) -> None:
    """Write a .keras file as `models.save_model` does, for a model that is not compiled. Atomic.

    One layer at a time is copied; Keras' own `save` gathers the whole file in memory.
    """
    saved = {"keras_version": keras.__version__, "date_saved": time.strftime("%Y-%m-%d@%H:%M:%S")}
    with replacing(path) as beside:
        weights = beside.with_name(f"{beside.name}.weights.h5")
        try:
            layers = weighted(model).items()
            _write_groups(weights, ((name, layer.get_weights()) for name, layer in layers))
            with zipfile.ZipFile(beside, "w") as archive:
                archive.writestr("metadata.json", json.dumps(saved))
                archive.writestr("config.json", model.to_json())
                archive.writestr(archives.ABOUT, json.dumps(card.to_json()))
                archive.write(weights, "model.weights.h5")
        finally:
            remove(weights)


# ---- writers ------------------------------------------------------------------------------------


def _writer(path: Path) -> Callable[[Path, Weights], None]:
    if path.name.endswith(".weights.h5"):
        return _write_keras3
    if path.suffix == ".h5":
        return _write_legacy
    if path.suffix == ".safetensors":
        return _write_safetensors
    import_torch(path.name)
    return _write_torch


def _flat(weights: Weights) -> dict[str, np.ndarray]:
    return {name: array for arrays in weights.values() for name, array in arrays.items()}


def _write_safetensors(path: Path, weights: Weights) -> None:
    from safetensors.numpy import save_file

    save_file(_flat(weights), path, metadata={"format": "pt"})


def _write_torch(path: Path, weights: Weights) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in _flat(weights).items()}, path)


def _write_legacy(path: Path, weights: Weights) -> None:
    """Write the layout of Keras 2, as keras.applications' files have it."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in weights]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = keras.__version__.encode()
        for layer, arrays in weights.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group.create_dataset(name, data=array)


def _write_keras3(path: Path, weights: Weights) -> None:
    _write_groups(path, ((layer, list(arrays.values())) for layer, arrays in weights.items()))


def _write_groups(path: Path, layers: Iterable[tuple[str, list[np.ndarray]]]) -> None:
    """Write the layout of Keras 3, which finds a layer by its class and its number in the class."""
    import h5py

    counts = {"conv2d": 0, "batch_normalization": 0, "dense": 0}
    with h5py.File(path, "w") as file:
        for layer, arrays in layers:
            before_fc = "batch_normalization" if "_bn" in layer else "conv2d"
            layer_class = "dense" if layer in FC else before_fc
            suffix = f"_{counts[layer_class]}" if counts[layer_class] else ""
            counts[layer_class] += 1
            group = file.create_group(f"layers/{layer_class}{suffix}/vars")
            group.attrs["name"] = layer
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array)
