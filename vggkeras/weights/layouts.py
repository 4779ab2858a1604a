"""How each library stores a VGG network: names, axis and flattening order, preprocessing.

One `Layout` serves both directions. To take weights from a further library, add its `Layout` to
`LAYOUTS` and, where its files need one, a reader to `files`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vggkeras import configs
from vggkeras.configs import FC
from vggkeras.weights import files
from vggkeras.weights.files import Tensor

FIRST = "block1_conv1"


@dataclass(frozen=True)
class Preprocessing:
    """What a library does to an image of 0-255: (image / divisor - mean) / std.

    Loading folds it into the first kernel and the mean that our first layer subtracts. Nothing is
    approximated, because the networks pad after this step.
    """

    mean: tuple[float, ...]  # RGB
    std: tuple[float, ...] = (1.0,)  # RGB, or one for all channels
    divisor: float = 1.0
    order: Literal["RGB", "BGR"] = "RGB"  # of the channels that the first convolution sees

    @property
    def mean_rgb(self) -> tuple[float, ...]:
        """The mean to subtract from an image of 0-255."""
        return tuple(self.divisor * mean for mean in self.mean)

    def fold(self, kernel: np.ndarray) -> np.ndarray:
        """Return a first kernel [h, w, in, out] for images that have only their mean subtracted."""
        kernel = kernel[:, :, ::-1] if self.order == "BGR" else kernel
        gain = [1 / (self.divisor * std) for std in self.std]
        return (kernel * np.reshape(gain, (-1, 1))).astype(np.float32)

    def unfold(self, kernel: np.ndarray) -> np.ndarray:
        """Return the first kernel for images that this preprocessing was applied to."""
        kernel = (kernel * (self.divisor * np.reshape(self.std, (-1, 1)))).astype(np.float32)
        return kernel[:, :, ::-1] if self.order == "BGR" else kernel


@dataclass(frozen=True)
class Layout:
    """How one library stores a VGG network."""

    library: str  # its name in messages and in front of a source: torchvision:FILE
    read: Callable[[Path, str], dict[str, Tensor]]
    # Axes of a kernel: Height, Width, Inputs, Outputs. An FC kernel is one too, over the whole last
    # feature map and then flattened, so this is also the order in which fc1 reads that map:
    # C, H, W in torchvision and timm; H, W, C in Keras and here.
    axes: Literal["OIHW", "HWIO"]
    conv_weights: tuple[str, str]  # what follows a layer's name: kernel, bias
    norm_weights: tuple[str, str, str, str]  # gamma, beta, moving mean, moving variance
    fc_layers: tuple[str, str, str]  # its names of fc1, fc2, predictions
    preprocessing: Preprocessing
    sequence: str = ""  # the torch.nn.Sequential of the convolutions; "": they have our names
    fc_as_convolution: tuple[str, ...] = ()  # layers whose kernel is stored with four axes
    # What `save_weights` may write.
    suffixes: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    batch_norm: bool = False

    def tensor_names(self, arch: str, batch_norm: bool, fc: int = 3) -> dict[str, list[str]]:
        """Return layer -> the names of its tensors, with the first `fc` FC layers."""
        names: dict[str, list[str]] = {}
        index = 0  # in the sequence, where every layer counts: convolution, norm, ReLU, pool
        for step in configs.plan(arch):
            if step.kind == "conv":
                norm = step.name.replace("conv", "bn")
                conv_name = f"{self.sequence}.{index}" if self.sequence else step.name
                norm_name = f"{self.sequence}.{index + 1}" if self.sequence else norm
                names[step.name] = [conv_name + weight for weight in self.conv_weights]
                if batch_norm:
                    names[norm] = [norm_name + weight for weight in self.norm_weights]
                index += 3 if batch_norm else 2
            elif step.kind == "pool":
                index += 1
        for layer, name in list(zip(FC, self.fc_layers, strict=True))[:fc]:
            names[layer] = [name + weight for weight in self.conv_weights]
        return names

    def shape(
        self, layer: str, shape: tuple[int, ...], grid: tuple[int, int], *, four_axes: bool
    ) -> tuple[int, ...]:
        """Return the shape that a weight has in this layout.

        Args:
            layer: our name of it.
            shape: our shape of the weight.
            grid: height and width of the feature map that fc1 reads.
            four_axes: whether an FC layer is stored as a convolution.
        """
        if len(shape) == 1:
            return shape
        if len(shape) == 4:
            sizes = dict(zip("HWIO", shape, strict=True))
        else:
            (h, w), (rows, outputs) = _map(layer, grid), shape
            sizes = {"H": h, "W": w, "I": rows // (h * w), "O": outputs}
            if not four_axes:
                return (outputs, rows) if self.axes[0] == "O" else shape
        return tuple(sizes[axis] for axis in self.axes)

    def view(self, layer: str, weight: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Return a view of a weight of `build()` with its axes in this layout's order.

        Copying a tensor of a file into the view loads it, copying the view saves it. A kernel has
        four axes in it, also that of an FC layer, which here is [h * w * in, out].
        """
        if weight.ndim == 1:
            return weight
        if layer in FC:
            weight = weight.reshape(*_map(layer, grid), -1, weight.shape[-1])
        return weight.transpose(["HWIO".index(axis) for axis in self.axes])

    def from_ours(self, layer: str, weight: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Return a weight of `build()` as this layout has it, float32 and contiguous."""
        four_axes = layer in self.fc_as_convolution
        shape = self.shape(layer, weight.shape, grid, four_axes=four_axes)
        if layer == FIRST and weight.ndim > 1:
            weight = self.preprocessing.unfold(weight)
        return np.ascontiguousarray(self.view(layer, weight, grid), np.float32).reshape(shape)


def _map(layer: str, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that an FC layer covers, as a convolution."""
    return grid if layer == "fc1" else (1, 1)


# RGB in 0-1: torchvision, timm and KerasHub without a preprocessor of its own.
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), divisor=255.0)

KERAS = Layout(
    library="keras",
    read=files.read_keras,
    axes="HWIO",
    conv_weights=("/kernel", "/bias"),
    norm_weights=("/gamma", "/beta", "/moving_mean", "/moving_variance"),
    fc_layers=FC,
    preprocessing=Preprocessing(configs.IMAGENET_MEAN_RGB, order="BGR"),
    suffixes=(".h5",),
    archs=("D", "E"),
)
TORCHVISION = Layout(
    library="torchvision",
    read=files.read_torch,
    axes="OIHW",
    conv_weights=(".weight", ".bias"),
    norm_weights=(".weight", ".bias", ".running_mean", ".running_var"),
    fc_layers=("classifier.0", "classifier.3", "classifier.6"),
    preprocessing=IMAGENET,
    sequence="features",
    suffixes=(".safetensors", ".pth", ".pt"),
    archs=("A", "B", "D", "E"),
    batch_norm=True,
)
TIMM = replace(
    TORCHVISION,
    library="timm",
    fc_layers=("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
    fc_as_convolution=("fc1", "fc2"),
)
KERASHUB = replace(
    KERAS,
    library="kerashub",
    read=files.read_kerashub,
    preprocessing=IMAGENET,
    suffixes=(),
    archs=(),
)
LAYOUTS = {layout.library: layout for layout in (KERAS, TORCHVISION, TIMM, KERASHUB)}
OWN = replace(KERAS, library="vggkeras", preprocessing=Preprocessing(()))  # the file says its mean
