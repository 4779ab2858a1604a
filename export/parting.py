"""Where two models part: the first layer whose channel means differ, by the names of layers and tensors."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export import foreign, stages
from export.changes import Array
from export.diagnosis import Pair, softmax

LAYER = 1e-4  # largest error of a layer's channel means, relative to the largest of them


@dataclass(frozen=True)
class _Layers:
    """Each layer's channel means, in the order of computing, and which layers take its output."""

    means: dict[str, Array]
    consumers: dict[str, list[str]]


def first_layer(pair: Pair, images: Array, precision: str) -> str:
    """Return the first layer that parts, in words; "" where no layers match or none does."""
    models, arrays = [], []
    for side in ("reference", "candidate"):
        model = pair.models[side]
        shown = pair.plain[side](images[:1], rounded=not model.takes_floats)
        models.append(model)
        arrays.append(model.arranged(np.repeat(shown, model.shape[0] or 1, axis=0)))
    found = _first_that_parts(models, arrays, max(LAYER, stages.LAYER[precision]))
    return "" if found is None else f"{found[0]} (channel means off by {found[1]:.2g}, relative)"


def _first_that_parts(
    models: list[foreign.ImageModel], arrays: list[Array], limit: float
) -> tuple[str, float] | None:
    """Return the first layer that two models name whose channel means differ by more than `limit`.

    Converters fold a batch normalization into the convolution before it, and an activation into
    both. So a layer may agree with one of those that directly follow it; and one that differs,
    where all that it feeds agree, was folded.
    """
    noted = [
        _keras_layers(m.kept, x) if m.kept else None for m, x in zip(models, arrays, strict=True)
    ]
    tensors = [[] if m.kept else _tensors(m.path) for m in models]
    names = _common_names(noted, tensors)
    means = [
        layers.means if layers else _tensor_means(m.path, _matched(t, names), x)
        for layers, t, m, x in zip(noted, tensors, models, arrays, strict=True)
    ]
    common = [name for name in names if all(name in one for one in means)]
    graph = next((layers.consumers for layers in noted if layers), None)
    one_is_keras = graph is not None and not all(noted)
    if graph is None:  # the order is all that is known
        graph = {name: [after] for name, after in itertools.pairwise(common)}
    keras, other = means if noted[0] else means[::-1]
    errors = {}
    for name in common:
        same = [name, *(_followers(graph, name, {*common}) if one_is_keras else ())]
        errors[name] = min(_means_apart(keras[layer], other[name]) for layer in same)
    for name, error in errors.items():
        fed = _nearest_fed(graph, name, {*common})
        if error > limit and not (fed and all(errors[one] <= limit for one in fed)):
            before = [one for one in graph if name in _nearest_fed(graph, one, {*common})]
            hidden = [one for one in before if one not in common]
            return name + (f", or {', '.join(hidden)} before it" if hidden else ""), error
    return None


def _common_names(noted: list[_Layers | None], tensors: list[list[str]]) -> list[str]:
    """Return the names to look for: a Keras model's, or those that more tensors bear."""
    for layers in noted:
        if layers:
            return list(layers.means)
    lists = [_layer_names(one) for one in tensors]
    return max(lists, key=lambda names: sum(len(_matched(one, names)) for one in tensors))


def _means_apart(one: Array, other: Array) -> float:
    """Return how far two layers' channel means are apart, relative to the largest."""
    if one.shape != other.shape:
        return np.inf
    # A layer of scores may hold its soft-max in one file and not in the other.
    ways = [(one, other)]
    if abs(one.sum() - 1) < 1e-3 and abs(other.sum() - 1) > 1e-3:
        ways.append((one, softmax(other[None])[0]))
    return min(
        float(np.nan_to_num(np.abs(a - b), nan=np.inf).max() / max(np.abs(a).max(), 1e-12))
        for a, b in ways
    )


def _followers(graph: Mapping[str, Sequence[str]], name: str, common: set[str]) -> Iterator[str]:
    """Yield the layers that follow one in a single line, until one has a tensor of its own."""
    passed = {name}  # a layer may be called twice
    while len(after := graph.get(name, ())) == 1 and after[0] not in common | passed:
        name = after[0]
        passed.add(name)
        yield name


def _nearest_fed(graph: Mapping[str, Sequence[str]], name: str, common: set[str]) -> set[str]:
    """Return the first layers in `common` on every way on from a layer."""
    fed: set[str] = set()
    passed, waiting = {name}, [name]
    while waiting:
        for after in graph.get(waiting.pop(), ()):
            if after in common:
                fed.add(after)
            elif after not in passed:
                passed.add(after)
                waiting.append(after)
    return fed


def _tensors(path: Path) -> list[str]:
    """Return the names of what a .onnx or .tflite file computes, in order; [] for a SavedModel."""
    if path.suffix == ".onnx":
        import onnx

        return [
            name
            for node in onnx.load(path, load_external_data=False).graph.node
            for name in node.output
        ]
    if path.suffix == ".tflite":
        from ai_edge_litert import schema_py_generated as schema

        graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
        operators = (graph.Operators(i) for i in range(graph.OperatorsLength()))
        return [
            graph.Tensors(int(t)).Name().decode() for one in operators for t in one.OutputsAsNumpy()
        ]
    return []


def _components(tensor: str) -> list[list[str]]:
    """Return the parts of a tensor's name: TFLite joins those of fused operators by semicolons."""
    return [piece.split(":")[0].split("/") for piece in tensor.split(";")]


def _layer_names(tensors: list[str]) -> list[str]:
    """Return the layers that tensors are named after, in order.

    A layer is the first part of a path that does not stand for a whole model.
    """
    paths = [parts for tensor in tensors for parts in _components(tensor)]
    counts = Counter(part for parts in paths for part in {*parts[:-1]})
    roots = {
        part for part, count in counts.items() if 2 * count > sum(len(parts) > 1 for parts in paths)
    }
    names: dict[str, None] = {}
    for parts in paths:
        kept = [part for part in (parts[:-1] or parts) if part not in roots]
        if kept:
            names.pop(kept[0], None)  # its last tensor counts
            names[kept[0]] = None
    return list(names)


def _matched(tensors: list[str], layers: Sequence[str]) -> dict[str, str]:
    """Return each layer's last tensor; of several layers fused into one tensor, the last has it."""
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


def _tensor_means(path: Path, tensors: dict[str, str], array: Array) -> dict[str, Array]:
    """Return the channel means, by layer, of a .onnx or .tflite file's tensors."""
    if not tensors or (
        array.dtype != np.uint8 and path.suffix == ".tflite" and array.dtype != np.float32
    ):
        return {}
    read = stages._onnx_layers if path.suffix == ".onnx" else stages._tflite_layers
    means, _ = read(path, sorted({*tensors.values()}), array)
    return {layer: means[tensor] for layer, tensor in tensors.items() if tensor in means}


def _keras_layers(model: Any, array: Array) -> _Layers:
    """Run a Keras model, and note what each layer gives and which take it; in nested models too."""
    means: dict[str, Array] = {}
    makers: dict[int, str] = {}  # the layer that gave a tensor last, by the tensor's identity
    held: list[Any] = []  # the tensors, so that identities stay unique
    consumers: dict[str, list[str]] = {}

    def note(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for maker in {makers[id(one)]: None for one in inputs if id(one) in makers}:
            consumers.setdefault(maker, []).append(layer.name)
        if getattr(output, "ndim", 0) >= 2:
            held.append(output)
            makers[id(output)] = layer.name
            axis = 1 if getattr(layer, "data_format", "") == "channels_first" else -1
            means[layer.name] = stages._channel_means(np.asarray(output, np.float32), axis)

    with _noted(list(_leaves(model)), note):
        model(array, training=False)
    return _Layers(means, consumers)


def _leaves(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer


@contextmanager
def _noted(leaves: list[Any], note: Callable[[Any, tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Call `note(layer, inputs, output)` after each call of a layer, while the block runs."""

    def noting(layer: Any) -> Callable[..., Any]:
        call = layer.call

        def noted(*inputs: Any, **options: Any) -> Any:
            output = call(*inputs, **options)
            flat = [x for one in inputs for x in (one if isinstance(one, list | tuple) else [one])]
            note(layer, tuple(flat), output)
            return output

        return noted

    for layer in leaves:
        vars(layer)["call"] = noting(layer)  # past Keras' tracking of attributes
    try:
        yield
    finally:
        for layer in leaves:
            vars(layer).pop("call", None)
