"""Find weights and identify the network that they are of, by what is in the file.

A source is named by one string:

    runs/NAME, FILE.keras             a run's folder, or a .keras file of vggkeras
    keras:vgg16, keras:vgg19          keras.applications' files, in Keras' cache or downloaded
    keras:FILE.h5, .weights.h5        a file of that layout, with or without the FC layers
    torchvision:FILE, timm:FILE       .safetensors, or .pth through torch; names of either
    kerashub:FOLDER                   a preset of KerasHub's VGG, backbone or classifier
"""

from __future__ import annotations

import math
import mmap
import operator
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import archives, configs, models, typed
from vggkeras.card import ModelCard
from vggkeras.data import imagenet
from vggkeras.errors import InputError
from vggkeras.weights import files
from vggkeras.weights.files import KERAS_DOWNLOADS, Tensor
from vggkeras.weights.layouts import FIRST, LAYOUTS, OWN, Layout, Preprocessing

EXPECTED = (
    "expected a run's folder or a .keras file of vggkeras, keras:vgg16, keras:vgg19, "
    "keras:FILE.h5, torchvision:FILE.pth, torchvision:FILE.safetensors, timm:FILE or "
    "kerashub:FOLDER"
)
COUNTER = ".num_batches_tracked"  # of torch's batch normalization; no answer depends on it


@dataclass(frozen=True)
class Source:
    """Weights that were found and identified. Only headers were read; `read` gives the numbers."""

    name: str  # in messages
    layout: Layout
    preprocessing: Preprocessing
    arch: str
    batch_norm: bool
    width: float
    fc_units: int | None  # None, like classes, in a file without these layers
    classes: int | None
    input_shape: tuple[int, int, int]  # (H, W, C)
    card: ModelCard = field(repr=False)  # what else travels on with the weights
    shapes: dict[str, list[tuple[int, ...]]] = field(repr=False)  # layer -> as build() has them
    parts: dict[str, list[Tensor]] = field(repr=False)  # layer -> the tensors that it is made from

    @property
    def mean_rgb(self) -> tuple[float, ...]:
        """The mean, 0-255, that a network with these weights has to subtract."""
        return tuple(float(mean) for mean in self.preprocessing.mean_rgb)

    @property
    def network(self) -> str:
        """The name that `build` gives such a network: vgg_d."""
        return models.network_name(self.arch)

    @property
    def tensors(self) -> dict[str, list[str]]:
        """Layer -> the names, in the file, of the tensors that it is made from."""
        return {layer: [tensor.name for tensor in parts] for layer, parts in self.parts.items()}

    def read(self, layer: str) -> list[np.ndarray]:
        """Return a layer's weights as `build()` has them, float32.

        Kernel and bias, or gamma, beta, moving mean and moving variance.
        """
        weights = [_aligned(shape) for shape in self.shapes[layer]]
        for weight, tensor in zip(weights, self.parts[layer], strict=False):
            tensor.copy_to(self.layout.view(layer, weight, _grid(self.input_shape)))
        if layer == FIRST:
            weights[0][...] = self.preprocessing.fold(weights[0])
        return weights

    def origin(self, layer: str) -> str:
        """Return where a layer comes from, in words: the other network and its layer."""
        if self.layout is OWN:
            return f"{self.network} {layer}"
        if not self.layout.sequence:  # its layers have our names
            return f"{self.name} {layer}"
        return f"{self.name} {self.parts[layer][0].name.rpartition('.')[0]}"


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that begins on a memory page, as TensorFlow needs it to take it over."""
    return np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32).reshape(shape)


@dataclass(frozen=True)
class _File:
    """Weights that were opened, before they are identified."""

    spec: str
    name: str
    layout: Layout
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing
    # What only a file of vggkeras says.
    input_shape: tuple[int, int, int] | None = None
    lrn: bool = False
    card: ModelCard | None = None


def open_source(spec: str | os.PathLike) -> Source:
    """Find weights and identify the network that they are of. Reads headers only.

    Args:
        spec: see the module's docstring. torchvision and timm files, and KerasHub's presets
            without a preprocessor, take ImageNet's preprocessing of those libraries
            (0-1, mean .485 .456 .406, deviation .229 .224 .225).

    Raises:
        InputError (a ValueError): nothing is there, a damaged file, another network (with the first
            missing and unexpected names), a tensor of another shape, a pickle that would run code,
            a package that is missing.
    """
    spec = os.fspath(spec)
    library, _, rest = spec.partition(":")
    if library not in LAYOUTS:
        if rest and not Path(spec).exists():
            raise InputError(f"Unknown weights {spec!r}: {EXPECTED}.")
        return _identified(_open_own(spec))
    if not rest:
        raise InputError(f"{spec!r} names no file: {EXPECTED}.")
    layout = LAYOUTS[library]
    downloaded = library == "keras" and rest in KERAS_DOWNLOADS
    path = files.download(rest) if downloaded else Path(rest)
    if not path.exists() or (path.is_dir() and library != "kerashub"):
        raise InputError(f"{spec}: there is no file {path}; {EXPECTED}.")
    name = f"{library}:{rest if downloaded else path.name}"
    preprocessing = layout.preprocessing
    if library == "kerashub":
        preprocessing = _hub_preprocessing(path / "preprocessor.json", name) or preprocessing
    return _identified(_File(spec, name, layout, layout.read(path, name), preprocessing))


def trained_file(path: Path | str) -> Path:
    """Return the .keras file of a run's folder, or the file itself.

    Raises InputError where there is none.
    """
    file = Path(path) / "model.keras" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"{path}: expected a run's folder with model.keras in it, or a .keras file; there is "
            "none."
        )
    return file


def _open_own(spec: str) -> _File:
    path = trained_file(spec)
    config, described = archives.read_keras_archive(path)
    try:
        layers = {
            layer["config"].get("name"): layer["config"] for layer in config["config"]["layers"]
        }
        if "boxes" in layers:
            raise InputError(
                f"{path} is a network of boxes: expected a classifier, such as the one that its "
                "training began with."
            )
        height, width, channels = map(operator.index, layers["images"]["batch_shape"][1:])
        mean = tuple(map(float, _mean(layers["mean_rgb"])))
        if min(height, width) < 32 or len(mean) != channels or not np.isfinite(mean).all():
            raise ValueError(f"images {height} x {width} x {channels}, mean {mean}")
    except archives.DAMAGED as error:
        raise InputError(
            f"{path} is no network of vggkeras: expected a .keras file that it saved "
            f"({type(error).__name__}: {error}); weights of keras.applications are given as "
            "keras:FILE."
        ) from error
    card = ModelCard.from_json(described, path)
    tensors = files.read_own(path)
    shape = height, width, channels
    return _File(spec, spec, OWN, tensors, Preprocessing(mean), shape, "lrn" in layers, card)


def _mean(config: dict[str, Any]) -> list[float]:
    """Return the mean RGB in a layer's config: a Rescaling's, or a MeanRGB's of version 0.1."""
    return config["mean"] if "mean" in config else [-value for value in config["offset"]]


def _hub_preprocessing(path: Path, name: str) -> Preprocessing | None:
    """Return what a preset's image converter does: image x scale + offset. None without one."""
    if not path.is_file():
        return None
    try:
        content = typed.parse(path.read_bytes())
        converter = content["config"]["image_converter"]["config"]
        scale = _three(converter.get("scale"), 1.0)
        offset = _three(converter.get("offset"), 0.0)
    except archives.DAMAGED as error:
        raise InputError(
            f"{name}: {path.name} does not say scale and offset of its image converter ({error}): "
            "expected what KerasHub's save_to_preset writes; save the preset again."
        ) from error
    if not all(scale):
        raise InputError(
            f"{name}: {path.name} has an image converter of scale {scale}: expected numbers other "
            "than 0."
        )
    mean = tuple(-o / s for o, s in zip(offset, scale, strict=True))
    return Preprocessing(mean, tuple(1 / s for s in scale))


def _three(value: Any, default: float) -> list[float]:
    return [float(v) for v in np.broadcast_to(default if value is None else value, 3)]


# ---- which network it is ------------------------------------------------------------------------


def _identified(file: _File) -> Source:
    """Return the network that a file's tensors are of: all of its tensors, with its shapes."""
    arch, batch_norm, layout, names = _configuration(file)
    parts = {
        layer: [file.tensors[n] for n in own if n in file.tensors] for layer, own in names.items()
    }
    # The sizes of biases, which every library lays out alike.
    outputs = {layer: math.prod(tensors[1].shape) for layer, tensors in parts.items()}
    width = _width(arch, [n for layer, n in outputs.items() if "_conv" in layer])
    input_shape = file.input_shape or _input_shape(layout, width, parts)
    fc_units, classes = outputs.get("fc1"), outputs.get("predictions")
    expected = weight_shapes(arch, input_shape, classes or 2, batch_norm, width, fc_units or 1)
    shapes = {layer: expected[layer] for layer in parts}
    described = f"configuration {arch} of width {width:g} at {input_shape[0]} px"
    for layer, tensors in parts.items():
        for tensor, shape in zip(tensors, shapes[layer], strict=False):
            four_axes = len(tensor.shape) == 4
            stored = layout.shape(layer, shape, _grid(input_shape), four_axes=four_axes)
            if tensor.shape != stored:
                raise InputError(
                    f"{file.name}: {tensor.name} ({layer}) has shape {list(tensor.shape)}; "
                    f"expected {list(stored)} in a {described}: give the weights of one network of "
                    "Table 1."
                )
    card = file.card
    if card is None:
        labels = tuple(imagenet.class_names()) if classes == imagenet.CLASSES else ()
        mean = file.preprocessing.mean_rgb
        card = ModelCard(labels, mean, arch=arch, pretrained=file.spec)
    return Source(
        name=file.name,
        layout=layout,
        preprocessing=file.preprocessing,
        arch=arch,
        batch_norm=batch_norm,
        width=width,
        fc_units=fc_units,
        classes=classes,
        input_shape=input_shape,
        card=card,
        shapes=shapes,
        parts=parts,
    )


def _configuration(file: _File) -> tuple[str, bool, Layout, dict[str, list[str]]]:
    """Return (arch, whether with batch normalization, layout, layer -> tensor names) of a file.

    The number of convolutions says which configuration it is; that of D is C's too, which differs
    by its 1 x 1 kernels. torchvision's and timm's files differ by the names of the FC layers.
    """
    tensors = file.tensors

    def fc_tensors(layout: Layout) -> list[int]:
        return [
            sum(name + weight in tensors for weight in layout.conv_weights)
            for name in layout.fc_layers
        ]

    layout = max((file.layout, *LAYOUTS.values()), key=lambda layout: sum(fc_tensors(layout)))
    fc1, fc2, predictions = fc_tensors(layout)
    fc = 3 if predictions else 2 if fc1 or fc2 else 0
    batch_norm = any(name.endswith(layout.norm_weights[2]) for name in tensors)
    prefix, kernel = layout.sequence or "block", layout.conv_weights[0]
    convolutions = sum(
        name.startswith(prefix) and name.endswith(kernel) and len(tensor.shape) == 4
        for name, tensor in tensors.items()
    )
    arch = min("ABDE", key=lambda letter: abs(len(_filters(letter)) - convolutions))
    names = layout.tensor_names(arch, batch_norm, fc)
    for layer in names:
        counter = names[layer][0].rpartition(".")[0] + COUNTER
        if "_bn" in layer and counter in tensors:
            names[layer].append(counter)
    _check_names(file, arch, batch_norm, names)
    if arch == "D" and tensors[names["block3_conv3"][0]].shape[:2] == (1, 1):
        arch = "C"
    return "A-LRN" if file.lrn else arch, batch_norm, layout, names


def _check_names(file: _File, arch: str, batch_norm: bool, names: dict[str, list[str]]) -> None:
    wanted = [name for own in names.values() for name in own]
    missing = [name for name in wanted if name not in file.tensors]
    unexpected = [name for name in file.tensors if name not in set(wanted)]
    if missing or unexpected:
        alias = next(alias for alias, letter in configs.ALIASES.items() if letter == arch)
        differences = [
            f"{len(own)} {what}, first {', '.join(map(repr, own[:3]))}"
            for what, own in (("missing", missing), ("unexpected", unexpected))
            if own
        ]
        raise InputError(
            f"{file.name} is not a VGG network of Table 1 as {file.layout.library} names it; the "
            f"nearest is {alias}{' with batch normalization' if batch_norm else ''}, of whose "
            f"tensors {'; '.join(differences)}: give the weights of such a network."
        )


def _filters(arch: str) -> list[int]:
    """Return the numbers of filters in Table 1."""
    blocks = configs.CONFIGURATIONS[arch]
    return [entry[1] for block in blocks for entry in block if not isinstance(entry, str)]


def _width(arch: str, filters: list[int]) -> float:
    """Return the multiplier of Table 1 that gives these numbers of filters.

    Where there is none, the middle one of what each needs: the shapes then say what is wrong.
    """
    pairs = list(zip(filters, _filters(arch), strict=True))
    ratios = sorted(count / table for count, table in pairs)
    lowest = max((count - 0.5) / table if count > 1 else 0 for count, table in pairs)
    highest = min((count + 0.5) / table for count, table in pairs)
    for width in (*ratios, (lowest + highest) / 2):
        if width > 0 and all(max(1, round(table * width)) == count for count, table in pairs):
            return width
    return statistics.median(ratios) or 1.0


def _input_shape(
    layout: Layout, width: float, parts: dict[str, list[Tensor]]
) -> tuple[int, int, int]:
    """Return the square crop for which fc1 has its size; the paper's without an fc1."""
    if "fc1" not in parts:
        return 224, 224, 3
    kernel, bias = (math.prod(tensor.shape) for tensor in parts["fc1"][:2])
    positions = kernel // (max(1, bias) * max(1, round(512 * width)))
    side = 32 * max(1, math.isqrt(positions))
    return side, side, 3


def _grid(input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return height and width of the last feature map."""
    return input_shape[0] // 32, input_shape[1] // 32


def weight_shapes(
    arch: str,
    input_shape: tuple[int, int, int],
    classes: int,
    batch_norm: bool,
    width: float,
    fc_units: int,
) -> dict[str, list[tuple[int, ...]]]:
    """Return layer -> its weights' shapes, in `build`'s order and convention."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    inputs = input_shape[2]
    for step in configs.plan(
        arch, input_shape, classes, batch_norm=batch_norm, width=width, fc_units=fc_units
    ):
        outputs = step.output_shape[-1]
        if step.kind == "conv":
            shapes[step.name] = [(step.kernel, step.kernel, inputs, outputs), (outputs,)]
            if batch_norm:
                shapes[step.name.replace("conv", "bn")] = [(outputs,)] * 4
        elif step.kind in ("dense", "predictions"):
            shapes[step.name] = [(inputs, outputs), (outputs,)]
        inputs = outputs
    return shapes
