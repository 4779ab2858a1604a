"""int8: the range of every activation, its scale and zero point, and what int8 costs each layer.

In int8 a value is (integer - zero point) * scale, in ONNX and in TFLite. Activations have one
scale for each tensor, from calibration images (`calibrate`); kernels have one for each filter, and
zero point 0 (`quantize_kernel`); biases are int32, their scale the input's times the kernel's.
Symmetric activations, for TensorRT, are signed: their zero point is 0 too, and biases stay float32.
Images go in as bytes and probabilities come out as float32: the mean's subtraction, LRN, soft-max
and the class scores are computed in float32. A file for NPUs has all of these but LRN in int8, and
int8 images and probabilities (`with_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from export.activations import BATCH, activations, check_finite, linear, tensors_of
from vggkeras import layers

FRACTIONS = np.linspace(0.3, 1, 36)  # of the largest value, tried as the end of a range
BINS = 2048
PAIR_LIMIT = 128  # of two adjacent weights of one sign: 255 * 128 fits in 16 bits
FACTORS = np.linspace(1, 2, 21)  # tried on each filter's scale
BLOCK = 1 << 22  # weights that are quantized at once
SAMPLED = 1 << 18  # values of an activation that a histogram counts, of a few images


@dataclass(frozen=True)
class Quantization:
    """Scale and zero point: value = (integer - zero_point) * scale, integer in 0-255.

    If symmetric, the integer is in -127 to 127, and the zero point is 0.
    """

    scale: float
    zero_point: int
    symmetric: bool = False

    @classmethod
    def of_range(cls, low: float, high: float, *, symmetric: bool = False) -> Quantization:
        """Return those of a range, which is widened to hold zero, so that padding is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        if symmetric:
            return cls(float(np.float32(max(-low, high) / 127 or 1.0)), 0, True)
        scale = (high - low) / 255 or 1.0
        return cls(float(np.float32(scale)), int(np.clip(round(-low / scale), 0, 255)))

    @property
    def integers(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return (-127, 127) if self.symmetric else (0, 255)

    def round(self, values: Any) -> np.ndarray:
        """Return values as they are after quantizing and dequantizing, float32."""
        scale = np.float32(self.scale)
        integers = np.clip(np.rint(np.asarray(values) / scale) + self.zero_point, *self.integers)
        return ((integers - self.zero_point) * scale).astype(np.float32)


@dataclass(frozen=True)
class Int8Plan:
    """How a network is quantized."""

    # Layer -> its output's, after the ReLU; in the network's order, from mean_rgb on.
    activations: Mapping[str, Quantization]
    weighted: tuple[str, ...]  # the layers with kernels, in order
    images: int  # from which the ranges come
    classes: int  # that these images show
    signal_to_noise_db: Mapping[str, float] = field(default_factory=dict)  # by layer
    kept_in_float32: tuple[str, ...] = ()  # layers
    scores: Quantization | None = None  # of the class scores, where images and answers are int8

    def keeping(self, layers: Sequence[str]) -> Int8Plan:
        """Return the same plan with other layers kept in float32."""
        return replace(self, kept_in_float32=tuple(layers))

    def quantizes(self, layer: str) -> bool:
        """Return whether a layer computes in int8."""
        return layer in self.weighted and layer not in self.kept_in_float32

    def quantizes_output(self, layer: str) -> bool:
        """Return whether a layer's output is quantized: an int8 layer makes it or takes it."""
        names = list(self.activations)
        index = names.index(layer) + 1
        following = names[index] if index < len(names) else self.weighted[-1]
        return self.quantizes(layer) or self.quantizes(following)


def calibrate(
    graph: keras.Model,
    images: np.ndarray,
    classes: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
    *,
    symmetric: bool = False,
) -> Int8Plan:
    """Return the plan of a network, with the range of every activation on calibration images.

    Where a range ends is chosen for each layer: the end with the least squared error of the values
    seen, cut off and rounded. A few large values would otherwise make the scale of all others
    coarse.

    Args:
        graph: what `to_saved_model.inference_model` made.
        images: uint8 `[N, H, W, C]`.
        classes: how many classes the images show.
        track: passes on an index for each batch, and may show a progress bar.
        symmetric: give every activation zero point 0, and a sign.

    Raises:
        InputError (a ValueError): NaN or infinite activations, by layer.
    """
    tensors = tensors_of(graph)
    # A centered byte has a known range, whatever the images; all others are positive, by a ReLU.
    mean = layers.mean_rgb(graph)
    centered = Quantization.of_range(-max(mean), 255 - min(mean), symmetric=symmetric)
    ranges = {"mean_rgb": centered}
    measured = {name: tensor for name, tensor in tensors.outputs.items() if name not in ranges}
    network = keras.Model(tensors.images, measured)
    histograms = {name: _Histogram() for name in measured}
    for start in track(range(0, len(images), BATCH)):
        batch = images[start : start + BATCH]
        for name, value in network(batch, training=False).items():
            values = ops.convert_to_numpy(value).ravel()
            if not np.isfinite(values.max()):
                check_finite(graph, batch)
            histograms[name].add(values)
    ranges |= {name: histogram.best_range(symmetric) for name, histogram in histograms.items()}
    in_order = {name: ranges[name] for name in tensors.outputs}
    weighted = tuple(layer.name for layer in graph.layers if layer.weights)
    return Int8Plan(in_order, weighted, len(images), classes)


def with_scores(graph: keras.Model, plan: Int8Plan, images: np.ndarray) -> Int8Plan:
    """Return the plan of a classifier whose images, class scores and probabilities are int8.

    The scores' range is from the smallest to the largest one of the calibration images. It is not
    cut off, as those of other layers are: soft-max makes most of its ends.
    """
    starts = range(0, len(images), BATCH)
    parts = [activations(graph, images[i : i + BATCH])["predictions"] for i in starts]
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    return replace(plan, scores=Quantization.of_range(float(low), float(high)))


class _Histogram:
    """Counts of an activation's values, in bins from 0 to `end`; all values are 0 or more."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.end = self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count values, float32 `[N]`; the bins get wider where they do not hold them."""
        largest = float(values.max())
        self.largest = max(self.largest, largest)
        self.end = self.end or largest
        while largest > self.end > 0:  # bins twice as wide
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2)])
            self.end *= 2
        if self.end:
            every = len(values) // SAMPLED + 1  # counting all takes longer than the network
            self.counts += np.histogram(values[::every], BINS, (0, self.end))[0]

    def best_range(self, symmetric: bool) -> Quantization:
        """Return the range, from 0 to a fraction of the largest value, of least squared error."""
        centers = (np.arange(BINS) + 0.5) * (self.end / BINS)
        candidates = [
            Quantization.of_range(0.0, self.largest * part, symmetric=symmetric)
            for part in FRACTIONS
        ]
        errors = []
        for candidate in candidates:
            cut = np.maximum(centers - candidate.integers[1] * candidate.scale, 0)
            # Within a range the error is that of rounding, scale^2 / 12; zeros, in the first bin,
            # are exact.
            rounding = self.counts[1:].sum() * candidate.scale**2 / 12
            errors.append((self.counts * cut**2).sum() + rounding)
        return candidates[int(np.argmin(errors))]


def signal_to_noise(graph: keras.Model, plan: Int8Plan, images: np.ndarray) -> dict[str, float]:
    """Return each layer's signal-to-noise ratio, dB, if it alone were quantized; in their order.

    The layer takes the float32 network's own activations, rounded to its input's scale; its kernel
    and its output are rounded too.
    """
    outputs = activations(graph, images)
    tensors = tensors_of(graph)
    inputs = keras.Model(tensors.images, tensors.inputs)(images, training=False)
    names, ratios = list(plan.activations), {}
    for name in plan.weighted:
        index = names.index(name) if name in names else len(names)
        # Pooling and flattening keep scale and zero point: those of the output before.
        before = plan.activations[names[index - 1]]
        layer = graph.get_layer(name)
        kernel, bias = (ops.convert_to_numpy(weight) for weight in layer.weights)
        pairs = not before.symmetric
        integers, scales, biases = quantize_kernel(kernel, bias, before.scale, pairs=pairs)
        bias = (biases * scales.astype(np.float64) * before.scale).astype(np.float32)
        x = before.round(ops.convert_to_numpy(inputs[name]))
        y = linear(layer, integers * scales, bias, x)
        if name != "predictions":
            y = np.maximum(y, 0)
        if name != plan.weighted[-1]:  # whose output stays float32
            y = plan.activations[name].round(y)
        signal = np.square(outputs[name], dtype=np.float64).sum()
        noise = np.square(outputs[name] - y, dtype=np.float64).sum()
        ratios[name] = float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
    return ratios


def quantize_kernel(
    kernel: np.ndarray, bias: np.ndarray, scale: float, *, pairs: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the int8 kernel, a float32 scale for each filter, and the int32 bias.

    Args:
        kernel: float32 `[..., filters]`.
        bias: float32 `[filters]`.
        scale: of the layer's input.
        pairs: keep every two adjacent weights of a filter from saturating, see `_paired`; the
            filter's scale is then the one with the least squared error of its weights.
    """
    filters = kernel.shape[-1]
    rows = kernel.reshape(-1, filters)
    integers, scales = np.empty(rows.shape, np.int8), np.empty(filters, np.float32)
    biases = np.empty(filters, np.int32)
    # For a pixel with an odd number of channels, kernels that take pixels one by one begin pairs
    # at odd rows, too.
    starts = (0, 1) if kernel.ndim == 4 and kernel.shape[2] % 2 else (0,)
    at_once = max(1, BLOCK // len(rows))
    for start in range(0, filters, at_once):  # a block of filters at a time, for memory
        part = slice(start, start + at_once)
        values = np.ascontiguousarray(rows[:, part].T)  # [filters, rows]
        largest = np.abs(values).max(axis=1)
        # The bias of a filter of tiny weights must not overflow.
        smallest = np.abs(bias[part]) / (scale * 2**30)
        filter_scales = np.maximum(largest / 127, smallest).astype(np.float32)
        filter_scales[filter_scales == 0] = 1.0
        if pairs:
            filter_scales *= _best_factors(values / filter_scales[:, None], starts)
            whole = _paired(values / filter_scales[:, None], starts)
        else:
            whole = np.rint(values / filter_scales[:, None])
        integers[:, part] = np.clip(whole, -127, 127).T
        scales[part] = filter_scales
        # Where scale * filter_scales underflows, the filter and its bias are zero.
        bias_scales = filter_scales.astype(np.float64) * scale
        biases[part] = np.rint(bias[part].astype(np.float64) / bias_scales)
    return integers.reshape(kernel.shape), scales, biases


def _best_factors(whole: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return by how much to enlarge each filter's scale for the least squared error.

    Rounding costs scale^2 / 12 for each weight; lowering a pair costs half the square of what it
    exceeds the limit by. Filters whose weights are mostly small keep all 8 bits.

    Args:
        whole: weights over the scale, float32 `[filters, rows]`.
        starts: at which rows pairs begin.

    Returns:
        float32 `[filters]`.
    """
    sums = []
    for start in starts:
        first, second = _pairs(whole, start)
        sums.append(np.where(first * second > 0, np.abs(first + second), 0))
    over = [row[row > PAIR_LIMIT] for row in np.concatenate(sums, axis=1)]
    errors = [
        whole.shape[1] * factor**2 / 12
        + np.array([(np.maximum(row - PAIR_LIMIT * factor, 0) ** 2).sum() / 2 for row in over])
        for factor in FACTORS
    ]
    return FACTORS[np.argmin(errors, axis=0)].astype(np.float32)


def _paired(whole: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return the nearest integers of which no two adjacent ones of one sign exceed 128 together.

    Processors with AVX2 or AVX-512 but no VNNI multiply unsigned activations, 255 at most, by two
    adjacent weights and add the products in 16 bits: 255 * 128 = 32,640 fits in them, anything
    more may not. Others add in 32 bits, so all then have the same sums.

    Args:
        whole: weights over the scale, float32 `[filters, rows]`, in the order in which products
            are added.
        starts: at which rows pairs begin.
    """
    integers = np.clip(np.rint(whole), -127, 127)
    for start in starts:
        first, second = _pairs(integers, start)
        over = np.abs(first + second) - PAIR_LIMIT
        indices = np.nonzero((over > 0) & (first * second > 0))
        sign = np.sign(first[indices])
        lowered = np.rint(np.abs(first[indices]) - over[indices] / 2)
        first[indices] = sign * lowered
        second[indices] = sign * (PAIR_LIMIT - lowered)
    return integers


def _pairs(whole: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second one of every two adjacent rows: views."""
    end = start + (whole.shape[1] - start) // 2 * 2
    return whole[:, start:end:2], whole[:, start + 1 : end : 2]
