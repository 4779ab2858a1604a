"""Readers of weight files: .safetensors, torch, and Keras' .h5 and .keras.

A reader reads the headers and returns the tensors by name; each is read when it is asked for, a
part at a time, because fc1 alone has 411 MB in the paper's networks.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import keras
import numpy as np

from vggkeras import archives, configs
from vggkeras.configs import FC
from vggkeras.errors import InputError

# keras.applications' files: its class, and the MD5 that Keras checks after the download.
KERAS_DOWNLOADS = {
    "vgg16": ("VGG16", "64373286793e3c8b2b4e3219cbf3544b"),
    "vgg19": ("VGG19", "cbe5617147190e668d6c5d5026f83318"),
}


PART = 8 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    name: str  # in the file
    shape: tuple[int, ...]
    rows: Callable[[slice], np.ndarray]  # reads some of the first axis

    def copy_to(self, target: np.ndarray) -> None:
        """Copy the tensor into a float32 array, or a view of one, of as many numbers."""
        if target.flags.c_contiguous:
            target = target.reshape(self.shape)
        step = max(1, PART // (4 * max(1, math.prod(self.shape[1:]))))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            target[rows] = self.rows(rows).reshape(target[rows].shape)


def download(name: str) -> Path:
    """Return keras.applications' file in Keras' cache; Keras downloads and checks a missing one.

    keras.applications itself would build a second network only to fill it.
    """
    function, md5 = KERAS_DOWNLOADS[name]
    module = sys.modules[getattr(keras.applications, function).__module__]
    address = module.WEIGHTS_PATH  # type: ignore[attr-defined]
    home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
    path = Path(home) / "models" / address.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.get_file(
                path.name, address, cache_dir=home, cache_subdir="models", file_hash=md5
            )
        except Exception as error:  # Keras raises Exception itself
            raise InputError(
                f"keras:{name}: {path.name} is not in {path.parent} and could not be downloaded "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): download "
                f"{address} where there is a network and put it at {path}, or give another file "
                "as keras:FILE.h5."
            ) from error
    return path


# ---- safetensors and torch ----------------------------------------------------------------------


def read_torch(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of one that torch saved, by name."""
    read = _read_safetensors if path.suffix == ".safetensors" else _read_state_dict
    tensors = read(path, name)
    prefix = "module."  # which torch's DataParallel gives every name
    if all(key.startswith(prefix) for key in tensors):
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def rows(key: str, part: slice) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:  # what it maps of a file stays in memory
            return file.get_slice(key)[part]

    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                header = file.get_slice(key)
                if header.get_dtype() not in ("F16", "F32", "F64", "I64"):
                    raise InputError(
                        f"{name}: {key} is of type {header.get_dtype()}: expected float16, float32 "
                        "or float64; convert it first."
                    )
                shape = tuple(header.get_shape())
                tensors[key] = Tensor(key, shape, functools.partial(rows, key))
    except (SafetensorError, OSError) as error:
        raise archives.damaged(name, error, "a .safetensors file") from error
    return tensors


def import_torch(name: str) -> ModuleType:
    """Return torch. Raises InputError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{name} needs torch, which is not installed: pip install 'vggkeras[torch]', or use a "
            ".safetensors file, which does not need it."
        ) from error
    return torch


def _read_state_dict(path: Path, name: str) -> dict[str, Tensor]:
    def rows(key: str, part: slice) -> np.ndarray:
        return _state_dict(path, name)[key][part].detach().float().numpy()

    tensors = _state_dict(path, name)
    try:
        if zipfile.is_zipfile(path):  # torch itself compares no checksum
            with zipfile.ZipFile(path) as archive:
                archives.check_members(archive)
        size = path.stat().st_size
        for key, tensor in tensors.items():
            size -= tensor.numel()
            if size < 0 or not _is_plain(tensor):
                raise ValueError(f"{key} is not stored as an array of real numbers")
    except archives.DAMAGED as error:
        raise archives.damaged(name, error, "a torch file") from error
    return {
        key: Tensor(key, tuple(tensor.shape), functools.partial(rows, key))
        for key, tensor in tensors.items()
    }


def _is_plain(tensor: Any) -> bool:
    layout = str(tensor.layout) == "torch.strided" and tensor.device.type == "cpu"
    return layout and not (tensor.is_complex() or tensor.is_quantized)


def _state_dict(path: Path, name: str) -> dict[str, Any]:
    """Return the tensors of a state dict, mapped; it may be inside {"state_dict": …}."""
    torch = import_torch(name)
    content = _unpickled(torch, path, name)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content if isinstance(content, dict) else {"it": content}
    for key, tensor in entries.items():
        if not torch.is_tensor(tensor) or entries is not content:
            reason = f"expected a state dict; {key} is a {type(tensor).__name__}, not a tensor"
            raise archives.damaged(name, reason, "a torch file")
    return {str(key): tensor for key, tensor in entries.items()}


def _unpickled(torch: ModuleType, path: Path, name: str) -> Any:
    """Return what a torch file holds. Code in it does not run: weights_only takes only tensors."""
    mmap = zipfile.is_zipfile(path)  # not so before torch 1.6
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        # A global or an operation that is not allowed, in the words of several versions of torch.
        refused = re.search(
            r"[^\n]*(unsupported|not an allowed|blocked)[^\n]*", str(error), re.IGNORECASE
        )
        if not refused:
            raise archives.damaged(name, error, "a torch file") from error
        raise InputError(
            f"{name} holds more than tensors ({' '.join(refused[0].split())[:160]}): loading that "
            "would run code, so it was refused and nothing of it was run. Save the network's "
            "state_dict() alone, or as .safetensors."
        ) from error
    except archives.DAMAGED as error:
        raise archives.damaged(name, error, "a torch file") from error


# ---- Keras --------------------------------------------------------------------------------------


def read_keras(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file of Keras, by layer/kernel, layer/bias and so on.

    Raises InputError for a file of vggkeras too, whose preprocessing is another.
    """
    return _read_h5(path, name, own=False)


def read_own(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .keras file of vggkeras, named as by `read_keras`."""
    return _read_h5(path, str(path), own=True)


def read_kerashub(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a preset's folder: its backbone, and the head of a classifier."""
    parts = [folder / "task.weights.h5", folder / "model.weights.h5"]
    if not parts[1].is_file():
        raise InputError(
            f"{name}: expected a preset's folder with config.json and model.weights.h5 in it; "
            f"there is none at {folder}: give the folder that save_to_preset wrote."
        )
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if part.is_file():
            tensors |= read_keras(part, name)
    return tensors


def _read_h5(path: Path, name: str, *, own: bool) -> dict[str, Tensor]:
    def rows(dataset: str, part: slice) -> np.ndarray:
        try:
            with archives.opened_h5(path) as file:
                return file[dataset][part]
        except OSError as error:  # a compressed part
            raise archives.damaged(name, error, "a weights file of Keras") from error

    if not own and zipfile.is_zipfile(path):  # our own was checked with its config
        archives.read_keras_archive(path)
    tensors = {}
    with archives.checked_h5(path, name) as (file, shapes):
        # Keras names a layer without weights by its class: MeanRGB in version 0.1, Rescaling.
        if not own and ("layers/mean_rgb" in file or "layers/rescaling" in file):
            raise InputError(
                f"{name} is of a network of vggkeras, which prepares images otherwise than "
                "keras.applications: give the run's folder or the .keras file, without keras: "
                "before it."
            )
        for layer, datasets in _h5_layers(file, shapes):
            for weight, dataset in zip_longest(_weight_names(layer), datasets):
                if dataset is not None:
                    key = f"{layer}/{weight or dataset}"
                    read = functools.partial(rows, dataset)
                    tensors[key] = Tensor(dataset, shapes[dataset], read)
    return tensors


def _weight_names(layer: str) -> tuple[str, ...]:
    if "_bn" in layer:
        return "gamma", "beta", "moving_mean", "moving_variance"
    return "kernel", "bias"


def _h5_layers(file: Any, datasets: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (layer, its data sets in order) of a file of Keras 2, or of Keras 3."""
    legacy = file.get("model_weights", file)
    if "layer_names" in legacy.attrs:
        for group in legacy.values():
            names = archives.names_in(group, "weight_names")
            if names:
                yield group.name.rsplit("/", 1)[1], [f"{group.name}/{name}" for name in names]
        return
    # layers/conv2d_3/vars/0 … The group says its layer's name, but not in older files of Keras 3.
    groups: dict[str, list[str]] = {}
    for dataset in datasets:
        group, _, number = dataset.rpartition("/")
        if group.endswith("/vars") and not group.startswith(("/optimizer", "/vars")):
            groups.setdefault(group, []).append(number)
    named = {group: archives.names_in(file[group], "name") for group in groups}
    layers = {group: names[0] for group, names in named.items() if names}
    layers |= _counted([group for group, names in named.items() if not names])
    for group, numbers in groups.items():
        if group in layers:
            yield layers[group], [f"{group}/{number}" for number in sorted(numbers, key=int)]


def _counted(groups: list[str]) -> dict[str, str]:
    """Return group -> layer of unnamed groups: layers/conv2d_3/vars is the fourth convolution."""

    def position(group: str) -> tuple[bool, int]:
        layer_class, _, number = group.split("/")[-2].partition("_")
        return layer_class == "dense", int(number or 0)

    count = sum(not position(group)[0] for group in groups)
    layers: list[str] = []
    if count:
        by_depth = {8: "A", 10: "B", 13: "D", 16: "E"}
        if count not in by_depth:
            raise ValueError(f"it has {count} convolutions, as no VGG network has")
        layers = [step.name for step in configs.plan(by_depth[count]) if step.kind == "conv"]
    return dict(zip(sorted(groups, key=position), [*layers, *FC], strict=False))
