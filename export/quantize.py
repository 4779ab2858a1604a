"""Calibration and quantization parameters for float16 and int8, and the signal-to-noise ratio of each layer in int8.

In int8 a value is (integer - zero point) * scale, in ONNX and in TFLite. Activations have one scale for each tensor, from
calibration images; kernels have one for each filter, and zero point 0; biases are int32, their scale the input's times the
kernel's. Images go in as bytes and probabilities come out as float32: centring, LRN, soft-max and the class scores are
computed in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from vggkeras import layers as layers_module
from vggkeras.errors import InputError

FLOAT16_MAX = 65504.0
BATCH = 4  # images at once: all activations of configuration D at 224 px take 60 MB each
SHARES = np.linspace(0.3, 1, 36)  # of the largest value, tried as the end of a range
BINS = 2048
PAIR_LIMIT = 128  # of two adjacent weights of one sign: 255 * 128 fits in 16 bits
FACTORS = np.linspace(1, 2, 21)  # tried on each filter's scale
BLOCK = 1 << 22  # weights that are quantized at once
SAMPLED = 1 << 18  # values of an activation that a histogram counts, of a few images


@dataclass(frozen=True)
class Steps:
    """256 steps: value = (step - zero) * scale, step in 0-255."""

    scale: float
    zero: int

    @classmethod
    def between(cls, low: float, high: float) -> Steps:
        """Steps over a range, which is made to hold zero: padding is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        return cls(float(np.float32(scale)), int(np.clip(round(-low / scale), 0, 255)))

    def rounded(self, values: Any) -> np.ndarray:
        """The nearest values that these steps can say."""
        steps = np.clip(np.rint(np.asarray(values) / np.float32(self.scale)) + self.zero, 0, 255)
        return ((steps - self.zero) * np.float32(self.scale)).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """How a network is quantized: the scale and zero point of every activation, and which layers stay float32."""

    steps: dict[
        str, Steps
    ]  # layer -> its output's, after the ReLU; in the network's order, from mean_rgb on
    weighted: tuple[str, ...]  # the layers with kernels, in order
    images: int  # that the ranges come from
    classes: int  # that these show
    floats: tuple[str, ...] = ()

    def leaving(self, floats: Sequence[str]) -> Plan:
        """Return the same with other layers kept in float32."""
        return replace(self, floats=tuple(floats))

    def quantizes(self, layer: str) -> bool:
        """Whether a layer computes in int8."""
        return layer in self.weighted and layer not in self.floats

    def in_steps(self, layer: str) -> bool:
        """Whether a layer's output is wanted in steps: an int8 layer makes it or takes it."""
        sites = list(self.steps)
        place = sites.index(layer) + 1
        following = sites[place] if place < len(sites) else self.weighted[-1]
        return self.quantizes(layer) or self.quantizes(following)


def kernel_steps(
    kernel: np.ndarray, bias: np.ndarray, scale: float, *, pairs: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the int8 kernel, a float32 scale a filter, and the int32 bias, for an input of scale `scale`.

    Args:
        kernel: float32 `[..., filters]`.
        bias: float32 `[filters]`.
        scale: of the input.
        pairs: keep every two adjacent weights of a filter from saturating, see `_paired`; the
            filter's scale is then the one with the least squared error of its weights.
    """
    filters = kernel.shape[-1]
    rows = kernel.reshape(-1, filters)
    steps, scales = np.empty(rows.shape, np.int8), np.empty(filters, np.float32)
    biases = np.empty(filters, np.int32)
    some = max(1, BLOCK // len(rows))
    for start in range(0, filters, some):  # a block of filters at a time, for memory
        part = slice(start, start + some)
        values = np.ascontiguousarray(rows[:, part].T)  # [filters, rows]
        largest = np.abs(values).max(axis=1)
        # A filter of next to nothing must not make its bias overflow.
        step = np.maximum(largest / 127, np.abs(bias[part]) / (scale * 2**30)).astype(np.float32)
        step[step == 0] = 1.0
        if pairs:
            # A pixel of an odd number of channels: kernels that take pixels one by one begin pairs at odd rows, too.
            starts = (0, 1) if kernel.ndim == 4 and kernel.shape[2] % 2 else (0,)
            step *= _best_factors(values / step[:, None], starts)
            whole = _paired(values / step[:, None], starts)
        else:
            whole = np.rint(values / step[:, None])
        steps[:, part] = np.clip(whole, -127, 127).T
        scales[part] = step
        # Where scale * scales underflows, the filter and its bias are zero.
        biases[part] = np.rint(bias[part].astype(np.float64) / (step.astype(np.float64) * scale))
    return steps.reshape(kernel.shape), scales, biases


def _best_factors(whole: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return by how much to enlarge each filter's scale for the least squared error, float32 `[filters]`.

    Rounding costs scale^2 / 12 a weight; lowering a pair costs half the square of what it exceeds the limit by.
    Filters whose weights are mostly small keep all 8 bits.

    Args:
        whole: weights over the scale, float32 `[filters, rows]`.
        starts: at which rows pairs begin.
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


def _pairs(whole: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second one of every two adjacent rows: views."""
    end = start + (whole.shape[1] - start) // 2 * 2
    return whole[:, start:end:2], whole[:, start + 1 : end : 2]


def _paired(whole: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return the nearest whole numbers of which no two adjacent ones of one sign exceed 128 together.

    Processors with AVX2 or AVX-512 but no VNNI multiply unsigned activations, 255 at most, by two adjacent weights and
    add the products in 16 bits: 255 * 128 = 32,640 fits in them, anything more may not. Others add in 32 bits, so all
    then have the same sums.

    Args:
        whole: weights over the scale, float32 `[filters, rows]`, in the order in which products are added.
        starts: at which rows pairs begin.
    """
    found = np.clip(np.rint(whole), -127, 127)
    for start in starts:
        first, second = _pairs(found, start)
        over = np.abs(first + second) - PAIR_LIMIT
        places = np.nonzero((over > 0) & (first * second > 0))
        sign = np.sign(first[places])
        lowered = np.rint(np.abs(first[places]) - over[places] / 2)
        first[places] = sign * lowered
        second[places] = sign * (PAIR_LIMIT - lowered)
    return found


def _sites(graph: keras.Model) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The images, layer -> its output after the ReLU, and layer -> its input, as Keras tensors.

    Outputs are of mean_rgb, lrn and whatever has a kernel, but of the last; inputs of whatever has a kernel.
    """
    images = x = keras.Input(graph.input_shape[1:], dtype="uint8")
    outputs: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for layer in graph.layers[1:]:  # a chain, whose layers belong to another model as well
        if layer.weights:
            inputs[layer.name] = x
        x = layer(x)
        if layer.name in ("mean_rgb", "lrn") or (layer.weights and layer.name != "predictions"):
            outputs[layer.name] = x
        elif isinstance(layer, layers.ReLU):
            outputs[list(outputs)[-1]] = x
    return images, outputs, inputs


def activations(graph: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every layer's output after the ReLU, and that of `predictions` before soft-max, of images uint8 `[N, H, W, C]`."""
    shown, outputs, _ = _sites(graph)
    found = {
        k: ops.convert_to_numpy(v)
        for k, v in keras.Model(shown, outputs)(images, training=False).items()
    }
    last = [layer for layer in graph.layers if layer.weights][-1]
    if last.name == "predictions":
        weights = [ops.convert_to_numpy(weight) for weight in last.weights]
        found["predictions"] = _linear(last, weights, found["fc2"])
    return found


def _linear(layer: layers.Layer, weights: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return what a layer gives before its activation, with other weights."""
    kernel, bias = weights
    if isinstance(layer, layers.Dense):
        return x @ kernel + bias
    return ops.convert_to_numpy(ops.conv(x, kernel, padding=layer.padding)) + bias


def check_finite(graph: keras.Model, images: np.ndarray | None = None) -> None:
    """Raises InputError naming the first layer with NaN or infinite weights or, of the images, activations."""
    for layer in graph.layers:
        for weight in layer.weights:
            if not np.isfinite(ops.convert_to_numpy(weight)).all():
                raise InputError(
                    f"Layer {layer.name} has NaN or infinite numbers in its {weight.name}: expected a trained network; "
                    "train it again, or export an earlier one."
                )
    if images is None:
        return
    for name, values in activations(graph, images).items():
        if not np.isfinite(values).all():
            raise InputError(
                f"Layer {name} gives NaN or infinite numbers: its weights are finite but too large; train again with a "
                "lower rate, or export an earlier network."
            )


def check_float16(graph: keras.Model, images: np.ndarray) -> None:
    """Raises InputError naming the first layer whose weights or, of the images, activations leave float16's range."""
    advice = "export it as float32 or int8."
    for layer in graph.layers:
        for weight in layer.weights:
            if (largest := np.abs(ops.convert_to_numpy(weight)).max()) > FLOAT16_MAX:
                raise InputError(
                    f"Layer {layer.name} does not fit float16: expected weights up to {FLOAT16_MAX:g}; its {weight.name} "
                    f"reaches {largest:.4g}: {advice}"
                )
    for start in range(0, len(images), BATCH):
        for name, values in activations(graph, images[start : start + BATCH]).items():
            if (largest := np.abs(values).max()) > FLOAT16_MAX:
                raise InputError(
                    f"Layer {name} does not fit float16: expected outputs up to {FLOAT16_MAX:g}; they reach "
                    f"{largest:.4g}: {advice}"
                )


def calibrate(
    graph: keras.Model, images: np.ndarray, classes: int, track=lambda parts: parts
) -> Plan:
    """The steps in which a network's activations are counted, from images uint8 `[N, H, W, C]`.

    Where a range ends is chosen for each layer: the end that leaves the least squared error of what was seen, cut off and
    rounded. A few large values would otherwise make the steps of all others coarse.

    Raises:
        InputError (a ValueError): NaN or infinite activations, by layer.
    """
    shown, sites, _ = _sites(graph)
    # What is centred is bytes less their mean, whatever is seen; all others are positive, by a ReLU.
    mean = layers_module.mean_rgb(graph)
    steps = {"mean_rgb": Steps.between(-max(mean), 255 - min(mean))}
    network = keras.Model(shown, {name: sites[name] for name in sites if name not in steps})
    counts = {name: np.zeros(BINS) for name in network.output}
    high = dict.fromkeys(network.output, 0.0)  # where the bins end
    largest = dict.fromkeys(network.output, 0.0)
    for start in track(range(0, len(images), BATCH)):
        for name, value in network(images[start : start + BATCH], training=False).items():
            values = ops.convert_to_numpy(value).ravel()
            most = float(values.max())
            if not np.isfinite(most):
                check_finite(graph, images[start : start + BATCH])
            largest[name] = max(largest[name], most)
            high[name] = high[name] or most
            while most > high[name] > 0:  # bins twice as wide
                counts[name] = np.concatenate(
                    [counts[name].reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)]
                )
                high[name] *= 2
            if high[name]:
                every = (
                    len(values) // SAMPLED + 1
                )  # a histogram of all takes longer than the network
                counts[name] += np.histogram(values[::every], BINS, (0, high[name]))[0]
    steps |= {name: _best(counts[name], high[name], largest[name]) for name in network.output}
    steps = {name: steps[name] for name in sites}
    weighted = tuple(layer.name for layer in graph.layers if layer.weights)
    return Plan(steps, weighted, len(images), classes)


def _best(counts: np.ndarray, high: float, largest: float) -> Steps:
    """Of the ranges that end at a share of the largest value, the one with the least squared error.

    The counts are of bins up to `high`.
    """
    width = high / BINS
    centres = (np.arange(BINS) + 0.5) * width
    candidates = [Steps.between(0.0, largest * share) for share in SHARES]
    errors = []
    for steps in candidates:
        cut = np.maximum(centres - 255 * steps.scale, 0)
        # Within a range the error is that of rounding, scale^2 / 12; zeros, in the first bin, are exact.
        errors.append((counts * cut**2).sum() + counts[1:].sum() * steps.scale**2 / 12)
    return candidates[int(np.argmin(errors))]


def signal_to_noise(graph: keras.Model, plan: Plan, images: np.ndarray) -> dict[str, float]:
    """What a layer alone would add in int8: its output's signal over its error, dB, in the network's order.

    The layer takes the float network's own activations, rounded to its input's steps; kernel and output are rounded too.
    """
    outputs = activations(graph, images)
    sites, found = list(plan.steps), {}
    shown, _, inputs = _sites(graph)
    fed = keras.Model(shown, inputs)(images, training=False)
    for name in plan.weighted:
        at = sites.index(name) if name in sites else len(sites)
        layer, before = graph.get_layer(name), plan.steps[sites[at - 1]]
        kernel, bias = (ops.convert_to_numpy(weight) for weight in layer.weights)
        steps, scales, biases = kernel_steps(kernel, bias, before.scale, pairs=True)
        # Pooling and flattening keep the steps, so that what comes in is in those of the site before.
        x = before.rounded(ops.convert_to_numpy(fed[name]))
        rounded = [
            steps * scales,
            (biases * scales.astype(np.float64) * before.scale).astype(np.float32),
        ]
        y = _linear(layer, rounded, x)
        if name != "predictions":
            y = np.maximum(y, 0)
        if name != plan.weighted[-1]:  # which answers in float
            y = plan.steps[name].rounded(y)
        signal = np.square(outputs[name], dtype=np.float64).sum()
        noise = np.square(outputs[name] - y, dtype=np.float64).sum()
        found[name] = float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
    return found
