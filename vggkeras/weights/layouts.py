"""TODO"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vggkeras import configs
from vggkeras.configs import FC
from vggkeras.weights.files import SLICE, WEIGHTS, Tensors

TORCH_MEAN, TORCH_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of RGB in 0-1: torchvision, timm, KerasHub
TORCH_MEAN_RGB = (255 * 0.485, 255 * 0.456, 255 * 0.406)

Part = tuple[
    int, np.ndarray, np.ndarray
]  # which of a layer's weights, which rows of it, and what is in them


# ---- which network, and whether it is whole ----------------------------------------------------------------------------


def tensor_names(style: str, arch: str, batch_norm: bool, fc: int) -> dict[str, list[str]]:
    """Our layer -> the tensors it is made from, in the names of a library; with the first `fc` FC layers."""
    layers, place = {}, 0
    for step in configs.plan(arch, batch_norm=batch_norm):
        if step.kind == "conv":
            norm = step.name.replace("conv", "bn")
            if style == "keras":
                layers[step.name] = [f"{step.name}/{w}" for w in WEIGHTS["conv"]]
                if batch_norm:
                    layers[norm] = [f"{norm}/{w}" for w in WEIGHTS["bn"]]
                continue
            layers[step.name] = [f"features.{place}.{w}" for w in ("weight", "bias")]
            if batch_norm:
                layers[norm] = [
                    f"features.{place + 1}.{w}"
                    for w in ("weight", "bias", "running_mean", "running_var")
                ]
            place += 3 if batch_norm else 2
        elif step.kind == "pool":
            place += 1
    stems = {
        "keras": ("fc1/kernel", "fc2/kernel", "predictions/kernel"),
        "torchvision": ("classifier.0.weight", "classifier.3.weight", "classifier.6.weight"),
        "timm": ("pre_logits.fc1.weight", "pre_logits.fc2.weight", "head.fc.weight"),
    }[style]
    for layer, kernel in list(zip(FC, stems, strict=True))[:fc]:
        layers[layer] = [kernel, kernel.replace("kernel", "bias").replace("weight", "bias")]
    return layers


COUNTER = "num_batches_tracked"  # of torch's batch normalisation: how often it was trained, which no answer depends on


def their_shape(
    style: str,
    layer: str,
    ours: tuple[int, ...],
    received: tuple[int, ...],
    shape: tuple[int, int, int],
) -> tuple[int, ...]:
    """What a weight's shape is in a library's layout; where a library has two, the received one says which."""
    if len(ours) == 1:
        return ours
    if len(ours) == 4:
        h, w, i, o = ours
        return ours if style == "keras" else (o, i, h, w)
    rows, o = ours
    h, w = (shape[0] // 32, shape[1] // 32) if layer == "fc1" else (1, 1)
    if len(received) == 4:  # an FC layer as a convolution: timm's and KerasHub's
        return (h, w, rows // (h * w), o) if style == "keras" else (o, rows // (h * w), h, w)
    return ours if style == "keras" else (o, rows)


def layer_parts(
    tensors: Tensors,
    layer: str,
    names: Sequence[str],
    torch: bool,
    bgr: bool,
    scale: tuple[float, ...],
    grid: tuple[int, int],
) -> Iterator[Part]:
    """A layer's numbers in our convention, by rows."""
    for number, name in enumerate(names):
        kernel = number == 0 and "_bn" not in layer
        if torch and kernel and layer in FC:
            blocks = _torch_rows(tensors, name, grid if layer == "fc1" else (1, 1))
        else:
            blocks = _rows(tensors, name, kernel and layer in FC, whole=layer not in FC)
        for rows, block in blocks:
            if kernel and "_conv" in layer:
                if torch:
                    block = block.transpose(2, 3, 1, 0)  # [O, I, h, w] -> [h, w, I, O]
                    rows = np.arange(len(block))
                if layer == "block1_conv1":
                    block = block[:, :, ::-1] if bgr else block
                    if scale:
                        block = (block * np.array(scale).reshape(-1, 1)).astype(np.float32)
            yield number, rows, block


def _slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of a tensor, as many at once as `SLICE` says."""
    step = max(1, SLICE // (4 * max(1, math.prod(shape[1:]))))
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))


def _rows(
    tensors: Tensors, name: str, flat: bool, whole: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(which rows, the rows) of a tensor; `flat`, a convolution's kernel [h, w, I, O] has h x w x I of them."""
    shape = tensors.shapes[name]
    each = shape[1] * shape[2] if flat and len(shape) == 4 else 1
    for rows in [slice(0, shape[0])] if whole else _slices(shape):
        block = tensors.read(name, rows)
        if flat:
            block = block.reshape(-1, shape[-1])
        yield np.arange(rows.start * each, rows.stop * each), block


def _torch_rows(
    tensors: Tensors, name: str, grid: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """torch's kernel of an FC layer, [outputs, C x H x W], as rows of ours, [H x W x C, outputs]: some channels at once."""
    shape, (h, w) = tensors.shapes[name], grid
    channels = math.prod(shape[1:]) // (h * w)
    places = np.arange(h * w * channels).reshape(h, w, channels)
    for c in _slices((channels, h, w, shape[0])):
        columns = c if len(shape) == 4 else slice(c.start * h * w, c.stop * h * w)
        block = tensors.read(name, slice(0, shape[0]), columns).reshape(shape[0], -1, h, w)
        yield places[:, :, c].ravel(), block.transpose(2, 3, 1, 0).reshape(-1, shape[0])
