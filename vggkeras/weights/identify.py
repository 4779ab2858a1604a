"""Weights from elsewhere in our one convention (RGB, 0-255, minus a mean), into a network of ours; and ours in others'.

A source is named by one string:

    runs/NAME, FILE.keras             a run's folder, or a .keras file of ours
    keras:vgg16, keras:vgg19          keras.applications' own files, from Keras' cache or downloaded into it
    keras:FILE.h5, .weights.h5        a file of that layout, old or of Keras 3, with or without the FC layers
    torchvision:FILE, timm:FILE       .safetensors, or .pth through torch; key names of either
    kerashub:FOLDER                   a preset of KerasHub's VGG, backbone or classifier

What the other library does to an image before its network is folded into the first kernel and the mean that our first
layer subtracts; nothing is approximated, for padding comes after centring in all of them. Tensors are read one at a time
and the largest in slices, so that no more than one copy of the weights is ever in memory.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import configs, models
from vggkeras.card import ModelCard
from vggkeras.data import imagenet
from vggkeras.errors import InputError
from vggkeras.weights.files import (
    KERAS_DOWNLOADS,
    Tensors,
    download,
    h5_tensors,
    safetensors,
    torch_tensors,
)
from vggkeras.weights.layouts import (
    COUNTER,
    TORCH_MEAN_RGB,
    TORCH_STD,
    Part,
    layer_parts,
    tensor_names,
    their_shape,
)

OTHERS = ("keras", "torchvision", "timm", "kerashub")
EXPECTED = (
    "expected a run's folder or a .keras file of ours, keras:vgg16, keras:vgg19, keras:FILE.h5, torchvision:FILE.pth, "
    "torchvision:FILE.safetensors, timm:FILE or kerashub:FOLDER"
)


@dataclass(frozen=True)
class Source:
    """Weights that were found and understood, by their files' headers: the numbers are read when they are asked for."""

    name: str  # what a message calls it
    kind: str  # ours, keras, torchvision, timm or kerashub
    arch: str
    batch_norm: bool
    width: float
    fc_units: int | None  # None, as the classes: in a file without FC layers
    classes: int | None
    input_shape: tuple[int, int, int]  # (H, W, C)
    mean_rgb: tuple[float, ...]  # 0-255, what the weights expect to have been subtracted
    card: ModelCard = field(repr=False)  # what else should travel on with the weights
    shapes: dict[str, list[tuple[int, ...]]] = field(
        repr=False
    )  # our layer name -> its weights' shapes, our convention
    tensors: dict[str, list[str]] = field(
        repr=False
    )  # our layer name -> the names of what it is made from
    parts: dict[str, Callable[[], Iterator[Part]]] = field(
        repr=False
    )  # our layer name -> its numbers, slice by slice

    @property
    def layers(self) -> dict[str, Callable[[], list[np.ndarray]]]:
        """Our layer name -> a function that reads its weights (kernel, bias; gamma, beta, mean, variance), float32."""
        return {name: functools.partial(self._read, name) for name in self.shapes}

    def _read(self, name: str) -> list[np.ndarray]:
        arrays = [np.empty(shape, np.float32) for shape in self.shapes[name]]
        for number, rows, block in self.parts[name]():
            arrays[number][rows] = block
        return arrays

    @property
    def network(self) -> str:
        """What `build` calls such a network: vgg_d."""
        return f"vgg_{self.arch.lower().replace('-', '_')}"

    def origin(self, layer: str) -> str:
        """Where a layer comes from, in words: the other network and its layer."""
        if self.kind == "ours":
            return f"{self.network} {layer}"
        if self.kind in ("keras", "kerashub"):  # whose layers have our names
            return f"{self.name} {layer}"
        first = self.tensors[layer][0]
        return f"{self.name} {first.rpartition('.')[0]}"


def trained_file(path: Path | str) -> Path:
    """The .keras file of a run's folder, or the file itself. Raises InputError where there is none."""
    file = Path(path) / "model.keras" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"--init-from {path}: expected a run's folder with model.keras in it, or a .keras file; there is none."
        )
    return file


def open_source(spec: str | os.PathLike) -> Source:
    """Find weights and understand them: which network they are of, and what each tensor is for. Reads headers alone.

    Args:
        spec: see the module's docstring. Of KerasHub's presets without a preprocessor, and of all torchvision and timm
            files, the preprocessing is ImageNet's of those libraries (0-1, mean .485 .456 .406, deviation .229 .224 .225).

    Raises:
        InputError (a ValueError): nothing there, a damaged file, another network (the first missing and unexpected names),
            a tensor of another shape, a pickle that would run code, a package that is missing.
    """
    spec = os.fspath(spec)
    kind, _, rest = spec.partition(":")
    if kind not in OTHERS:
        if rest and not Path(spec).exists():
            raise InputError(f"Unknown weights {spec!r}: {EXPECTED}.")
        return _open_ours(spec)
    if not rest:
        raise InputError(f"{spec!r} names no file: {EXPECTED}.")
    if kind == "kerashub":
        return _open_hub(spec, Path(rest))
    path = download(rest) if kind == "keras" and rest in KERAS_DOWNLOADS else Path(rest)
    if not path.is_file():
        raise InputError(f"{spec}: there is no file {path}; {EXPECTED}.")
    name = f"{kind}:{rest if rest in KERAS_DOWNLOADS else path.name}"
    if kind == "keras":
        return _understand(spec, name, kind, h5_tensors(path, name), ["keras"])
    tensors = (
        safetensors(path, name) if path.suffix == ".safetensors" else torch_tensors(path, name)
    )
    styles = ["torchvision", "timm"] if kind == "torchvision" else ["timm", "torchvision"]
    return _understand(spec, name, kind, tensors, styles)


def _understand(
    spec: str,
    name: str,
    kind: str,
    tensors: Tensors,
    styles: Sequence[str],
    scale: Sequence[float] = (),
    mean: Sequence[float] = (),
    ours: dict[str, Any] | None = None,
) -> Source:
    """Which network a file's tensors are of; every one accounted for, of the shape it should have.

    Args:
        scale: what the first kernel is multiplied by, one number a channel of its own order; by default the library's.
        mean: what is subtracted from RGB, 0-255; by default the library's.
        ours: input_shape, lrn and card, of our own files.
    """
    found = set(tensors.shapes)
    best: tuple[list[str], list[str], str, bool, str, dict[str, list[str]]] | None = None
    for style in styles:
        for fc in (3, 2, 0):
            for batch_norm in (False, True):
                for arch in ("A", "B", "D", "E"):
                    layers = tensor_names(style, arch, batch_norm, fc)
                    wanted = [n for names in layers.values() for n in names]
                    counters = {
                        f"{v[0].rsplit('.', 1)[0]}.{COUNTER}"
                        for k, v in layers.items()
                        if "_bn" in k
                    }
                    missing = [n for n in wanted if n not in found]
                    unexpected = [n for n in tensors.shapes if n not in set(wanted) | counters]
                    if best is None or len(missing) + len(unexpected) < len(best[0]) + len(best[1]):
                        best = missing, unexpected, arch, batch_norm, style, layers
    assert best is not None
    missing, unexpected, arch, batch_norm, style, layers = best
    if missing or unexpected:
        alias = next(alias for alias, letter in configs.ALIASES.items() if letter == arch)
        told = [
            f"{len(names)} {what}, first {', '.join(map(repr, names[:3]))}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(
            f"{name} is not a VGG network of Table 1 as {' or '.join(styles)} names it; the nearest is {alias}"
            f"{' with batch normalisation' if batch_norm else ''}, of whose tensors {'; '.join(told)}: give the weights of "
            "such a network."
        )
    for layer, names in layers.items():
        counter = f"{names[0].rsplit('.', 1)[0]}.{COUNTER}"
        if "_bn" in layer and counter in found:
            names.append(counter)
    if style == "keras" and tensors.shapes.get("block3_conv3/kernel", ())[:1] == (1,):
        arch = "C"  # which differs from D by its 1 x 1 kernels alone
    if ours and ours["lrn"]:
        arch = "A-LRN"
    return _sized(spec, name, kind, tensors, style, arch, batch_norm, layers, scale, mean, ours)


def _sized(
    spec: str,
    name: str,
    kind: str,
    tensors: Tensors,
    style: str,
    arch: str,
    batch_norm: bool,
    layers: dict[str, list[str]],
    scale: Sequence[float],
    mean: Sequence[float],
    ours: dict[str, Any] | None,
) -> Source:
    """A network's sizes, by its tensors' shapes; every shape is checked against them."""
    torch = style != "keras"

    def size(layer: str, number: int, axis: int) -> int:
        shape = tensors.shapes[layers[layer][number]]
        return shape[axis] if len(shape) > (axis if axis >= 0 else ~axis) else 1

    filters = {layer: size(layer, 1, 0) for layer in layers if "_conv" in layer}  # the biases'
    width = _width(arch, list(filters.values()))
    with_fc = "fc1" in layers
    fc_units = size("fc1", 1, 0) if with_fc else None
    classes = size("predictions", 1, 0) if "predictions" in layers else None
    channels = size("block1_conv1", 0, 1 if torch else 2)
    if ours:
        shape = ours["input_shape"]
    else:
        last = max(1, round(512 * width))
        kernel = tensors.shapes[layers["fc1"][0]] if with_fc else (7, 7, last, 0)
        if len(kernel) == 2:
            area = kernel[1 if torch else 0] // last
        else:
            area = kernel[-1] * kernel[-2] if torch else kernel[0] * kernel[1]
        side = 32 * max(1, math.isqrt(area))
        shape = (side, side, 3)
    expected = weight_shapes(arch, shape, classes or 2, batch_norm, width, fc_units or 1)
    turned: dict[str, list[tuple[int, ...]]] = {}
    for layer, names in layers.items():
        turned[layer] = expected[layer]
        for names_own, wanted in zip(names, expected[layer], strict=False):
            received = tensors.shapes[names_own]
            theirs = their_shape(style, layer, wanted, received, shape)
            if received != theirs:
                raise InputError(
                    f"{name}: {tensors.called(names_own)} ({layer}) has shape {list(received)}; expected {list(theirs)} in a "
                    f"configuration {arch} of width {width:g} at {shape[0]} px: give the weights of one network of Table 1."
                )
    if ours:
        mean, scale, card = ours["mean"], (), ours["card"]
    else:
        if kind == "keras":
            mean = mean or configs.IMAGENET_MEAN_RGB
        else:
            mean = mean or TORCH_MEAN_RGB
            scale = scale or [1 / (255 * std) for std in TORCH_STD]
        names_of_classes = imagenet.class_names() if classes == imagenet.CLASSES else ()
        card = ModelCard(tuple(names_of_classes), tuple(mean), arch=arch, pretrained=spec)
    grid = shape[0] // 32, shape[1] // 32
    parts: dict[str, Callable[[], Iterator[Part]]] = {
        layer: functools.partial(
            layer_parts,
            tensors,
            layer,
            names[: len(expected[layer])],
            torch,
            kind == "keras",
            tuple(scale),
            grid,
        )
        for layer, names in layers.items()
    }
    called = {layer: [tensors.called(n) for n in names] for layer, names in layers.items()}
    sizes = (
        arch,
        batch_norm,
        width,
        fc_units,
        classes,
        (shape[0], shape[1], channels),
        tuple(float(m) for m in mean),
    )
    return Source(name, kind, *sizes, card, turned, called, parts)


def _width(arch: str, filters: list[int]) -> float:
    """The multiplier that gives these numbers of filters; where none does, the middle one of what each would need."""
    table = [
        e[1] for block in configs.CONFIGURATIONS[arch] for e in block if not isinstance(e, str)
    ]
    ratios = sorted({n / t for n, t in zip(filters, table, strict=True)})
    low = max((n - 0.5) / t if n > 1 else 0 for n, t in zip(filters, table, strict=True))
    high = min((n + 0.5) / t for n, t in zip(filters, table, strict=True))
    for width in (*ratios, (low + high) / 2):
        if width > 0 and all(
            max(1, round(t * width)) == n for n, t in zip(filters, table, strict=True)
        ):
            return width
    return statistics.median(n / t for n, t in zip(filters, table, strict=True)) or 1.0


def weight_shapes(
    arch: str,
    shape: tuple[int, int, int],
    classes: int,
    batch_norm: bool,
    width: float,
    fc_units: int,
) -> dict[str, list[tuple[int, ...]]]:
    """Layer -> its weights' shapes, in `build`'s order and convention."""
    found: dict[str, list[tuple[int, ...]]] = {}
    inputs = shape[2]
    for step in configs.plan(
        arch, shape, classes, batch_norm=batch_norm, width=width, fc_units=fc_units
    ):
        outputs = step.output_shape[-1]
        if step.kind == "conv":
            found[step.name] = [(step.kernel, step.kernel, inputs, outputs), (outputs,)]
            if batch_norm:
                found[step.name.replace("conv", "bn")] = [(outputs,)] * 4
        elif step.kind in ("dense", "predictions"):
            found[step.name] = [(inputs, outputs), (outputs,)]
        inputs = outputs
    return found


# ---- ours, KerasHub's --------------------------------------------------------------------------------------------------


def _open_ours(spec: str) -> Source:
    path = trained_file(spec)
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a .keras file (they are zip archives): it is damaged or of another kind; save it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
            described = (
                json.loads(archive.read(models.ABOUT)) if models.ABOUT in archive.namelist() else {}
            )
        card = ModelCard.from_json(described, path)
        layers = {layer["config"].get("name"): layer for layer in config["layers"]}
        mean = _mean(layers["mean_rgb"]["config"])
        (shape,) = (
            lay["config"]["batch_shape"][1:]
            for lay in config["layers"]
            if lay["class_name"] == "InputLayer"
        )
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no network of vggkeras: expected a .keras file that it saved ({type(error).__name__}: {error}); "
            "weights of keras.applications are given as keras:FILE."
        ) from error
    known = {"input_shape": tuple(shape), "mean": mean, "lrn": "lrn" in layers, "card": card}
    return _understand(
        spec, spec, "ours", h5_tensors(path, str(path), ours=True), ["keras"], ours=known
    )


def _mean(config: dict[str, Any]) -> list[float]:
    """Return the mean RGB in a layer's configuration: a Rescaling's, or a MeanRGB's of version 0.1."""
    return config["mean"] if "mean" in config else [-value for value in config["offset"]]


def _open_hub(spec: str, folder: Path) -> Source:
    """A preset folder: config.json, model.weights.h5 of the backbone, task.weights.h5 of a classifier's head."""
    name = f"kerashub:{folder.name}"
    if not (folder / "model.weights.h5").is_file():
        raise InputError(
            f"{spec}: expected a preset's folder with config.json and model.weights.h5 in it; there is none."
        )
    tensors = h5_tensors(folder / "model.weights.h5", name)
    if (folder / "task.weights.h5").is_file():
        head = h5_tensors(folder / "task.weights.h5", name)
        backbone = tensors

        def of(key: str) -> Tensors:
            return backbone if key in backbone.shapes else head

        tensors = Tensors(
            {**head.shapes, **backbone.shapes},
            lambda key, *where: of(key).read(key, *where),
            lambda key: of(key).called(key),
        )
    scale, mean = _hub_preprocessing(folder, name)
    return _understand(spec, name, "kerashub", tensors, ["keras"], scale, mean)


def _hub_preprocessing(folder: Path, name: str) -> tuple[list[float], list[float]]:
    """(scale, mean RGB 0-255) of a preset's image converter, whose images are image x scale + offset; ([], []) without."""
    path = folder / "preprocessor.json"
    if not path.is_file():
        return [], []
    try:
        converter = json.loads(path.read_text(encoding="utf-8"))["config"]["image_converter"][
            "config"
        ]
        scale, offset = (
            [
                float(v)
                for v in np.broadcast_to(
                    default if converter.get(key) is None else converter[key], 3
                )
            ]
            for key, default in (("scale", 1.0), ("offset", 0.0))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{name}: {path.name} does not say scale and offset of its image converter ({error})."
        ) from error
    if not all(scale):
        raise InputError(
            f"{name}: {path.name} has an image converter of scale {scale}: expected numbers other than 0."
        )
    return scale, [-o / s for o, s in zip(offset, scale, strict=True)]
