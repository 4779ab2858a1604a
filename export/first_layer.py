"""Find the first layer at which two models differ, by the names of layers and tensors.

`export.comparison` asks for it where no difference of preprocessing explains different answers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from export import layer_means, stages
from export.diagnosis import Pair, softmax
from export.image_changes import Array
from export.image_model import ImageModel
from export.layer_means import KerasLayers

LAYER = 1e-4  # largest error of a layer's channel means, relative to the largest of them

Graph = Mapping[str, Sequence[str]]  # layer -> the layers that take its output


def first_layer(pair: Pair, images: Array, precision: str) -> str:
    """Return the first layer that differs, in words; "" where no layers match or none differs."""
    models, inputs = [], []
    for side in ("reference", "candidate"):
        model = pair.models[side]
        shown = pair.plain[side](images[:1], rounded=not model.takes_floats)
        models.append(model)
        inputs.append(model.arranged(np.repeat(shown, model.input.shape[0] or 1, axis=0)))
    return _first_to_differ(models, inputs, max(LAYER, stages.LAYER[precision]))


def _first_to_differ(models: list[ImageModel], inputs: list[Array], tolerance: float) -> str:
    """Return the first layer of both models whose channel means differ, in words; "" for none.

    Converters fold a batch normalization into the convolution before it, and an activation into
    both. So a layer may agree with one of those that directly follow it; and one that differs,
    while all layers that take its output agree, was folded.
    """
    in_keras = [
        layer_means.keras_layers(model.keras_model, images) if model.keras_model else None
        for model, images in zip(models, inputs, strict=True)
    ]
    tensors = [[] if m.keras_model else layer_means.tensor_names(m.path) for m in models]
    names = _layers_to_find(in_keras, tensors)
    means = [
        layers.means if layers else _means_by_layer(model.path, _matched(computed, names), images)
        for layers, computed, model, images in zip(in_keras, tensors, models, inputs, strict=True)
    ]
    common = [name for name in names if all(name in one for one in means)]
    graph: Graph | None = next((layers.consumers for layers in in_keras if layers), None)
    one_is_keras = graph is not None and not all(in_keras)
    if graph is None:  # only the order is known
        graph = {name: [after] for name, after in itertools.pairwise(common)}
    one, other = means if in_keras[0] else means[::-1]  # Keras first
    errors = {}
    for name in common:
        same = [name, *(_followers(graph, name, {*common}) if one_is_keras else ())]
        errors[name] = min(_difference(one[layer], other[name]) for layer in same)
    for name, error in errors.items():
        takers = _next_common(graph, name, {*common})
        was_folded = takers and all(errors[taker] <= tolerance for taker in takers)
        if error > tolerance and not was_folded:
            before = [layer for layer in graph if name in _next_common(graph, layer, {*common})]
            hidden = [layer for layer in before if layer not in common]
            where = f"{name}, or {', '.join(hidden)} before it" if hidden else name
            return f"{where} (channel means off by {error:.2g}, relative)"
    return ""


def _layers_to_find(in_keras: list[KerasLayers | None], tensors: list[list[str]]) -> list[str]:
    """Return a Keras model's layers; without one, those that most tensors are named after."""
    for layers in in_keras:
        if layers:
            return list(layers.means)
    candidates = [_layer_names(computed) for computed in tensors]
    return max(candidates, key=lambda names: sum(len(_matched(one, names)) for one in tensors))


def _difference(means: Array, others: Array) -> float:
    """Return how far two layers' channel means are apart, relative to the largest."""
    if means.shape != others.shape:
        return np.inf
    pairs = [(means, others)]
    # A layer of scores may hold its soft-max in one file and not in the other.
    if abs(means.sum() - 1) < 1e-3 and abs(others.sum() - 1) > 1e-3:
        pairs.append((means, softmax(others[None])[0]))
    return min(
        float(np.nan_to_num(np.abs(a - b), nan=np.inf).max() / max(np.abs(a).max(), 1e-12))
        for a, b in pairs
    )


def _followers(graph: Graph, name: str, common: set[str]) -> Iterator[str]:
    """Yield the layers that follow one in a single line, until one has a tensor of its own."""
    seen = {name}  # a layer may be called twice
    while len(after := graph.get(name, ())) == 1 and after[0] not in common | seen:
        name = after[0]
        seen.add(name)
        yield name


def _next_common(graph: Graph, name: str, common: set[str]) -> set[str]:
    """Return the first layers in `common` on every way on from a layer."""
    reached: set[str] = set()
    seen, waiting = {name}, [name]
    while waiting:
        for after in graph.get(waiting.pop(), ()):
            if after in common:
                reached.add(after)
            elif after not in seen:
                seen.add(after)
                waiting.append(after)
    return reached


def _components(tensor: str) -> list[list[str]]:
    """Return the parts of a tensor's name: TFLite joins those of fused operators by semicolons."""
    return [piece.split(":")[0].split("/") for piece in tensor.split(";")]


def _layer_names(tensors: list[str]) -> list[str]:
    """Return the layers that tensors are named after, in order.

    A layer is the first part of a path that does not stand for a whole model.
    """
    paths = [parts for tensor in tensors for parts in _components(tensor)]
    counts = Counter(part for parts in paths for part in {*parts[:-1]})
    nested = sum(len(parts) > 1 for parts in paths)
    models = {part for part, count in counts.items() if 2 * count > nested}
    names: dict[str, None] = {}
    for parts in paths:
        layers = [part for part in (parts[:-1] or parts) if part not in models]
        if layers:
            names.pop(layers[0], None)  # its last tensor counts
            names[layers[0]] = None
    return list(names)


def _matched(tensors: list[str], layers: Sequence[str]) -> dict[str, str]:
    """Return each layer's last tensor; one tensor of several fused layers is that of the last."""
    order = {layer: i for i, layer in enumerate(layers)}
    best: dict[str, str] = {}
    for suffix in ("", r"_\d+$"):  # Keras' exporter may number the layers
        matched = {}
        for tensor in tensors:
            parts = {re.sub(suffix, "", part) for path in _components(tensor) for part in path}
            named = [part for part in parts if part in order]
            if named:
                matched[max(named, key=order.__getitem__)] = tensor
        best = max(best, matched, key=len)
    return best


def _means_by_layer(path: Path, tensors: dict[str, str], images: Array) -> dict[str, Array]:
    """Return the channel means, by layer, of a .onnx or .tflite file's tensors."""
    unreadable = path.suffix == ".tflite" and images.dtype not in (np.uint8, np.float32)
    if not tensors or unreadable:
        return {}
    means, _ = layer_means.file_means(path, sorted({*tensors.values()}), images)
    return {layer: means[tensor] for layer, tensor in tensors.items() if tensor in means}
