"""TODO"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vggkeras import configs, models
from vggkeras import layers as layers_module
from vggkeras.card import ModelCard
from vggkeras.configs import FC
from vggkeras.errors import InputError
from vggkeras.files import remove, replacing
from vggkeras.weights.files import SLICE, in_torch
from vggkeras.weights.layouts import TORCH_MEAN_RGB, TORCH_STD, tensor_names, their_shape
from vggkeras.weights.load import weighted
from vggkeras.weights.torch_file import write_header

# ---- and back ----------------------------------------------------------------------------------------------------------

DESTINATIONS = "torchvision:FILE.pth, torchvision:FILE.safetensors, timm:FILE, keras:FILE.h5 or keras:FILE.weights.h5"


def save_weights(model: keras.Model, destination: str) -> dict[str, Any]:
    """Write a network's weights as another library reads them. Atomic.

    Args:
        model: of `build()`.
        destination: torchvision:FILE or timm:FILE, .safetensors or, with torch, .pth or .pt; keras:FILE.h5 in the layout
            of keras.applications' files, or keras:FILE.weights.h5 in that of Keras 3.

    Returns:
        What its reader has to do to an image: {"order": RGB or BGR, "scale", "mean", "std"}, that is (image x scale - mean)
        / std, mean and std in that order. A warning says where this is not the library's usual preprocessing, because the
        model subtracts another mean than ImageNet's of that library.

    Raises:
        InputError (a ValueError): an unknown destination, a configuration that the library has not, torch is missing.
    """
    kind, _, rest = str(destination).partition(":")
    path = Path(rest)
    suffixes = {
        "keras": (".h5",),
        "torchvision": (".safetensors", ".pth", ".pt"),
        "timm": (".safetensors", ".pth", ".pt"),
    }
    if kind not in suffixes or path.suffix not in suffixes[kind] or path.is_dir():
        raise InputError(f"Unknown destination {destination!r}: expected {DESTINATIONS}.")
    arch, batch_norm = _configuration(model)
    if arch in ("C", "A-LRN") or (kind == "keras" and (batch_norm or arch not in ("D", "E"))):
        has = (
            "VGG16 and VGG19 (D, E) without batch normalisation"
            if kind == "keras"
            else "VGG11, 13, 16, 19 (A, B, D, E)"
        )
        raise InputError(
            f"{destination}: the model is configuration {arch}{' with batch normalisation' if batch_norm else ''}, and "
            f"{'keras.applications' if kind == 'keras' else kind} has {has} alone."
        )
    mean = layers_module.mean_rgb(model)
    asked: dict[str, Any]
    if kind == "keras":
        standard = configs.IMAGENET_MEAN_RGB
        asked = {"order": "BGR", "scale": 1.0, "mean": list(mean[::-1]), "std": [1.0, 1.0, 1.0]}
        write = _write_keras3 if path.name.endswith(".weights.h5") else _write_legacy
    else:
        standard = TORCH_MEAN_RGB
        asked = {
            "order": "RGB",
            "scale": 1 / 255,
            "mean": [m / 255 for m in mean],
            "std": list(TORCH_STD),
        }
        write = _write_safetensors if path.suffix == ".safetensors" else _write_torch
    if len(mean) != 3:
        raise InputError(
            f"{destination}: the model takes images of {len(mean)} channels, and {kind} those of 3."
        )
    names = tensor_names("keras" if kind == "keras" else kind, arch, batch_norm, 3)
    with replacing(path) as beside:
        write(beside, model, names, kind)
    if not np.allclose(mean, standard, rtol=0, atol=1e-3):
        warnings.warn(
            f"{destination}: the model subtracts the mean RGB {', '.join(f'{m:.3f}' for m in mean)}, not "
            f"{', '.join(f'{m:.3f}' for m in standard)} as is usual there: its reader must use mean "
            f"{', '.join(f'{m:.5g}' for m in asked['mean'])} ({asked['order']})",
            stacklevel=2,
        )
    return asked


def _configuration(model: keras.Model) -> tuple[str, bool]:
    """(configuration, whether with batch normalisation) of a network of `build()`."""
    layers = weighted(model)
    kernels = {name: layer.weights[0].shape[0] for name, layer in layers.items() if "_conv" in name}
    for arch, blocks in configs.CONFIGURATIONS.items():
        lrn = configs.LRN in blocks[0]
        plan = {step.name: step.kernel for step in configs.plan(arch) if step.kind == "conv"}
        if (
            plan == kernels
            and lrn == any(layer.name == "lrn" for layer in model.layers)
            and set(FC) <= set(layers)
        ):
            return arch, any("_bn" in name for name in layers)
    raise InputError(f"save_weights expects a model of vggkeras.build(); received {model.name!r}.")


def _blocks(model: keras.Model, layer: str, number: int, kind: str) -> Iterator[np.ndarray]:
    """A weight in another library's layout, in slices of its first axis."""
    weight = model.get_layer(layer).weights[number]
    shape = tuple(weight.shape)
    torch = kind in ("torchvision", "timm")
    axis = -1 if torch else 0
    step = max(1, SLICE // (4 * math.prod(shape) // shape[axis]))
    h, w = (model.input_shape[1] // 32, model.input_shape[2] // 32) if layer == "fc1" else (1, 1)
    for first in range(0, shape[axis], step):
        where = (..., slice(first, first + step)) if torch else (slice(first, first + step),)
        block = keras.ops.convert_to_numpy(weight.value[where])
        if layer == "block1_conv1" and number == 0 and torch:
            block = block * (255.0 * np.reshape(TORCH_STD, (-1, 1)))
        elif layer == "block1_conv1" and number == 0 and kind == "keras":
            block = block[:, :, ::-1]
        if torch and len(shape) == 4:
            block = block.transpose(3, 2, 0, 1)
        elif torch and len(shape) == 2:
            block = block.reshape(h, w, -1, block.shape[-1]).transpose(3, 2, 0, 1)
            if kind == "torchvision" or layer == "predictions":
                block = block.reshape(len(block), -1)
        yield np.ascontiguousarray(block, np.float32)


def _their_shapes(
    model: keras.Model, names: dict[str, list[str]], kind: str
) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Tensor name -> (our layer, which of its weights, its shape there)."""
    style = "keras" if kind == "keras" else kind
    found = {}
    for layer, own in names.items():
        for number, name in enumerate(own):
            ours = tuple(model.get_layer(layer).weights[number].shape)
            received = (0,) * (4 if style == "timm" and layer in ("fc1", "fc2") else len(ours))
            found[name] = (
                layer,
                number,
                their_shape(style, layer, ours, received, model.input_shape[1:]),
            )
    return found


def _write_safetensors(
    path: Path, model: keras.Model, names: dict[str, list[str]], kind: str
) -> None:
    """Slice by slice; the package would want all of it in memory."""
    found = _their_shapes(model, names, kind)
    with open(path, "wb") as file:
        write_header(file, {name: shape for name, (_, _, shape) in found.items()})
        for layer, number, _ in found.values():
            for block in _blocks(model, layer, number, kind):
                file.write(block.astype("<f4", copy=False).data)


def _write_torch(path: Path, model: keras.Model, names: dict[str, list[str]], kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vggkeras-") as folder:
        copy = Path(folder) / "weights.safetensors"
        _write_safetensors(copy, model, names, kind)
        in_torch("write", copy, path, path.name)


def _h5_weights(
    model: keras.Model, layer: str, group: Any, names: Sequence[str], kind: str
) -> None:
    for number, name in enumerate(names):
        dataset = group.create_dataset(
            name, tuple(model.get_layer(layer).weights[number].shape), "float32"
        )
        start = 0
        for block in _blocks(model, layer, number, kind):
            dataset[start : start + len(block)] = block
            start += len(block)


def _write_legacy(path: Path, model: keras.Model, names: dict[str, list[str]], kind: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in names]
        file.attrs["backend"], file.attrs["keras_version"] = (
            b"tensorflow",
            keras.__version__.encode(),
        )
        for layer, own in names.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in own]
            _h5_weights(model, layer, group, own, kind)


KERAS3 = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}


def _write_keras3(path: Path, model: keras.Model, names: Iterable[str], kind: str) -> None:
    """Keras 3 finds a layer by its class and its number among those of the class."""
    import h5py

    counts = dict.fromkeys(KERAS3.values(), 0)
    with h5py.File(path, "w") as file:
        for layer in names:
            word = KERAS3[type(model.get_layer(layer)).__name__]
            group = file.create_group(
                f"layers/{word}_{counts[word]}/vars" if counts[word] else f"layers/{word}/vars"
            )
            counts[word] += 1
            group.attrs["name"] = layer
            _h5_weights(
                model,
                layer,
                group,
                [str(i) for i in range(len(model.get_layer(layer).weights))],
                kind,
            )


def save_model(model: keras.Model, path: Path, card: ModelCard) -> None:
    """`models.save_model` for a network of `build()`, without a second copy of its weights in memory. Atomic.

    Keras gathers the whole file in memory before it writes it.
    """
    entries = {
        "metadata.json": json.dumps(
            {"keras_version": keras.__version__, "date_saved": time.strftime("%Y-%m-%d@%H:%M:%S")}
        ),
        "config.json": model.to_json(),
        models.ABOUT: json.dumps(card.to_json()),
    }
    with replacing(path) as beside:
        numbers = beside.with_name(f"{beside.name}.weights.h5")
        try:
            _write_keras3(numbers, model, list(weighted(model)), "ours")
            with zipfile.ZipFile(beside, "w") as archive:
                for name, text in entries.items():
                    archive.writestr(name, text)
                archive.write(numbers, "model.weights.h5")
        finally:
            remove(numbers)
