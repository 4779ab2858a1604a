"""What several test modules share: small pictures, tiny networks, and how a run is cut off."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import numpy_helper
from PIL import ExifTags, Image

import export
import vggkeras
from export import artifact
from export import golden as golden_module
from vggkeras import certificate, configs, containers, files, models
from vggkeras.card import Form, ModelCard
from vggkeras.data import decoding
from vggkeras.recipe import Recipe
from vggkeras.training import checkpoints
from vggkeras.training.train import train


def photo(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3], which JPEG keeps well; another for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write_photos(folder: Path, count: int, seed: int = 0, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(photo(seed + i)).save(folder / f"{i:03d}{suffix}")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


STORED = {  # what undoes `decoding.TURNS`
    o: {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(o, turn)
    for o, turn in decoding.TURNS.items()
}


def stored(image: Image.Image, orientation: int, kind: str = "PNG", **options) -> bytes:
    """Encode an image as a camera would that was held in another way."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if orientation in STORED:
        image = image.transpose(STORED[orientation])
    return encoded(image, kind, exif=exif.tobytes(), **options)


RGB = Image.fromarray(photo(1))
GREY = RGB.convert("L")
KINDS = {
    "jpeg": (encoded(RGB, "JPEG", quality=95, subsampling=0), RGB, 12),
    "progressive jpeg": (
        encoded(RGB, "JPEG", quality=95, subsampling=0, progressive=True),
        RGB,
        12,
    ),
    "grey jpeg": (encoded(GREY, "JPEG", quality=95), GREY.convert("RGB"), 6),
    "cmyk jpeg": (encoded(RGB.convert("CMYK"), "JPEG", quality=95), RGB, 12),
    "png": (encoded(RGB, "PNG"), RGB, 0),
    "grey png": (encoded(GREY, "PNG"), GREY.convert("RGB"), 0),
    "palette png": (encoded(RGB.quantize(16), "PNG"), RGB.quantize(16).convert("RGB"), 0),
    "one-bit png": (encoded(GREY.convert("1"), "PNG"), GREY.convert("1").convert("RGB"), 0),
    "16-bit png": (
        encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
        GREY.convert("RGB"),
        0,
    ),
    "bmp": (encoded(RGB, "BMP"), RGB, 0),
    "gif": (
        encoded(
            RGB.quantize(64), "GIF", save_all=True, append_images=[RGB.rotate(180).quantize(64)]
        ),
        RGB.quantize(64).convert("RGB"),
        0,
    ),
}

CARD = ModelCard(
    tuple("abcde"),
    (0.0,) * 3,
    scale=64,
    arch="any",
    input_shape=(64, 64, 3),
    outputs=5,
    model_sha256="0",
    written_with="test",
)


def trained_looking(arch: str, shape, batch_norm: bool, **options):
    """Return a network with biases and batch norm like a trained one's: answers follow the image.

    Moving averages are near those of images, for with any others the maps end up constant. Batch
    norm shifts by one deviation on average: without, rectified sums of large terms that cancel are
    mostly rounding, as no trained network's are.
    """
    model = vggkeras.build(arch, shape, 5, batch_norm=batch_norm, seed=0, **options)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, *shape), dtype=np.uint8)
    for layer in model.layers[1:]:
        if "_bn" in layer.name:
            n, maps = layer.moving_mean.shape[0], np.asarray(x)
            mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
            near = [
                mean + rng.normal(0, 0.1, n) * np.sqrt(variance),
                variance * rng.uniform(0.8, 1.25, n),
            ]
            layer.set_weights([rng.uniform(0.8, 1.25, n), rng.normal(0, 1, n), *near])
        elif layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
        x = layer(x, training=False)
    assert np.asarray(x).std(axis=0).max() > 1e-3, "one answer for all images proves little"
    return model


README = Path(__file__).parents[1] / "README.md"
REFUSING_OURS = """
import runpy, sys
REFUSED = ("keras", "tensorflow", "jax", "onnx", "tf2onnx", "rich", "tyro", "vggkeras", "export")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
"""
STRANGER = f"""{REFUSING_OURS}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
REPOSITORY = Path(export.__file__).parents[1]
DOCS = REPOSITORY / "docs"


def textured(seed: int) -> np.ndarray:
    """A colorful photograph whose details make every filter show: uint8 [96, 132, 3]."""
    rough = Image.fromarray(photo(1000 + seed, 48, 66)[np.random.default_rng(seed).permutation(48)])
    fine = np.asarray(rough.resize((132, 96), Image.Resampling.BILINEAR)).astype(np.float32)
    return (0.7 * photo(seed, 96, 132) + 0.3 * fine).astype(np.uint8)


# A fresh environment with numpy, pillow and the packages in the first argument.
FRESH_ENVIRONMENT = """
import runpy, sys

ALLOWED = {"numpy", "PIL", "vggkeras", "export", *sys.argv.pop(1).split(",")}
ALLOWED |= sys.stdlib_module_names


class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED and not name.startswith("__editable__"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuses())
"""
NOTHING_ELSE = f"""{FRESH_ENVIRONMENT}
runpy.run_module("export.verify", run_name="__main__", alter_sys=True)
"""
FORMATS = ("model.onnx", "model.tflite", "saved_model")
EXPORTED = (
    *FORMATS,
    "model.float16.onnx",
    "model.float16.tflite",
    "model.int8.onnx",
    "model.int8.tflite",
)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new))


def edit_member(path: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change a member of a file, by the name that containers.py gives it; None removes it."""
    if path.is_dir():
        file = path / "assets.extra" / name
        content = change(file.read_bytes())
        file.unlink() if content is None else file.write_bytes(content)
    elif path.suffix == ".onnx":
        model = onnx.load(path)
        (entry,) = (p for p in model.metadata_props if p.key == name.split(".")[0])
        content = change(entry.value.encode())
        if content is None:
            model.metadata_props.remove(entry)
        else:
            entry.value = content.decode()
        onnx.save(model, path)
    else:
        with zipfile.ZipFile(path) as archive:
            members = {item.filename: archive.read(item) for item in archive.infolist()} | {
                containers.SEAL: archive.comment
            }
            end = min(item.header_offset for item in archive.infolist())
        members = {key: change(value) if key == name else value for key, value in members.items()}
        os.truncate(path, end)
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = members.pop(containers.SEAL) or b""
            for key, value in members.items():
                if value is not None:
                    archive.writestr(zipfile.ZipInfo(key), value)


def edit_onnx(path: Path, change: Callable[[onnx.GraphProto, dict[str, np.ndarray]], None]) -> None:
    """Change an .onnx file's graph, and its weights by name."""
    model = onnx.load(path)
    weights = {
        tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer
    }
    change(model.graph, weights)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in weights.items()
    )
    onnx.save(model, path)


def tflite_values(data: bytearray, name: str, kind: type = np.float32) -> np.ndarray:
    """The values of a tensor of a .tflite file, to be changed in place."""
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    (tensor,) = (tensor for tensor in tensors if tensor.Name() == name.encode())
    stored = model.Buffers(tensor.Buffer()).DataAsNumpy()
    start = stored.ctypes.data - np.frombuffer(data, np.uint8).ctypes.data
    return np.frombuffer(data, kind, stored.nbytes // np.dtype(kind).itemsize, start)


def edit_tflite(
    path: Path, name: str, change: Callable[[np.ndarray], None], kind: type = np.float32
) -> None:
    data = bytearray(path.read_bytes())
    values = tflite_values(data, name, kind)
    change(values)
    del values
    path.write_bytes(data)


def edit_golden_answers(path: Path) -> None:
    """Change one byte in the middle of the golden answers."""

    def other(packed: bytes) -> bytes:
        packed, middle = bytearray(packed), len(packed) // 2
        packed[middle] = ord("A") if packed[middle] != ord("A") else ord("B")
        return bytes(packed)

    edit_member(path, golden_module.GOLDEN, other)


def certify_golden_answers(folder: Path, form: Form = Form.CLASSIFIER) -> None:
    """Make all entries name the golden answers that lie there now, as who wants to deceive does."""
    digest = files.sha256(golden_module.golden_path(folder, form))
    entries = {
        name: dataclasses.replace(entry, golden_sha256=digest)
        if golden_module.shares(form, entry)
        else entry
        for name, entry in certificate.read(folder).items()
    }
    (folder / "certificate.json").write_text(certificate.text_of(entries))


def swap_layers(path: Path, one: str, other: str) -> None:
    """Exchange the kernels of two layers of one shape, in a file of any precision."""
    if path.suffix == ".onnx":

        def change(graph, weights):
            for name in [name for name in weights if name.startswith(f"{one}.kernel")]:
                partner = name.replace(one, other)
                weights[name], weights[partner] = weights[partner], weights[name]

        edit_onnx(path, change)
        return
    data = bytearray(path.read_bytes())
    suffix = ".kernel.float16" if "float16" in path.name else ".kernel"
    first, second = (tflite_values(data, layer + suffix, np.uint8) for layer in (one, other))
    first[:], second[:] = second.copy(), first.copy()
    del first, second
    path.write_bytes(data)


def the_mean_of_the_graph(path: Path) -> None:
    """Change the mean RGB that the graph subtracts."""
    mean = np.array(configs.IMAGENET_MEAN_RGB, np.float32)
    if path.is_dir():
        replace_bytes(path / "saved_model.pb", (-mean).tobytes(), (-mean - 1).tobytes())
    elif path.suffix == ".onnx":
        edit_onnx(path, lambda graph, weights: weights["mean_rgb.mean"].__iadd__(1))
    else:
        edit_tflite(path, "mean_rgb.mean", lambda values: values.__iadd__(1))


def resealed(path: Path, change: Callable[[Path], None]) -> None:
    """Alter a file and make all checksums fit, as somebody does who wants to deceive."""
    golden = artifact.read(path).golden
    change(path)
    edit_member(path, golden_module.GOLDEN, lambda _: None)
    if not path.is_dir():
        edit_member(path, containers.SEAL, lambda _: None)
    artifact.seal(path, golden)
    assert artifact.read(path).changed == []


class Cut(Exception):
    """Stands for an end without warning."""


class CutAfter(keras.callbacks.Callback):
    """Raises Cut after that many steps, when the checkpoint of the last one is written."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            raise Cut
        self.left -= 1


def cut_at(recipe, steps: int, data=None) -> None:
    """Train, and be cut off after that many steps."""
    with pytest.raises(Cut):
        train(recipe, data=data, callbacks=[CutAfter(steps)])


def assert_same_end(run, other) -> None:
    """Assert that two runs ended with the same bits."""
    assert history(run.path) == history(other.path)
    assert all(
        run.metadata[key] == other.metadata[key]
        for key in ("metrics", "best_epoch", "epochs_trained")
    )
    for a, b in zip(run.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    a, b = (last_checkpoint(path).arrays for path in (run.path, other.path))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def last_checkpoint(path: Path) -> checkpoints.Checkpoint:
    checkpoint, damaged = checkpoints.load(path / "resume")
    assert checkpoint, damaged
    return checkpoint


def on_devices(photos: str, out: Path):
    """Train without what differs by device: dropout's draws, and batch normalization's batch."""
    changes = {
        "epochs": 5,
        "dropout": 0.0,
        "batch_norm": False,
        "learning_rate": 0.5,
        "patience": 9,
    }
    return train(tiny(out, data=photos, **changes))


def tiny(out: Path, **changes) -> Recipe:
    fields = {
        "width": 0.05,
        "fc_units": 8,
        "epochs": 2,
        "batch_size": 4,
        "image_size": 32,
        "batch_norm": True,
    }
    return Recipe("A", out=out, **{**fields, **changes})


def history(path: Path) -> list[dict[str, str]]:
    with open(path / "history.csv") as file:
        return list(csv.DictReader(file))


CLASSES = ["cat", "dog"]


def saved(path: Path, model, class_names=CLASSES) -> Path:
    models.save_model(model, path, ModelCard(tuple(class_names or ())))
    return path


def equal_layers(model, other) -> set[str]:
    """Names of the layers whose weights are the same in both."""
    theirs = {layer.name: layer.get_weights() for layer in other.layers if layer.weights}
    return {
        layer.name
        for layer in model.layers
        if layer.weights
        and layer.name in theirs
        and all(
            np.array_equal(a, b)
            for a, b in zip(layer.get_weights(), theirs[layer.name], strict=True)
        )
    }


def shaken(model):
    """Every weight another number, biases and moving averages too, so that equal means copied."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 1, w.shape) for w in layer.get_weights()])
    return model


def bare_run(folder: Path, classes: list[str], data: str, **changes) -> Path:
    """Write a run's folder as before its first epoch's end, with an untrained network."""
    recipe = vggkeras.Recipe("A", data, folder, **changes)
    folder.mkdir(parents=True)
    about = {
        "arch": "A",
        "recipe": {**dataclasses.asdict(recipe), "out": str(folder), "init_from": None},
        "data": data,
        "class_names": classes,
        "image_size": 32,
        "scale": 32,
        "images": {"validation": 4 * len(classes)},
    }
    network = vggkeras.build("A", (32, 32, 3), len(classes), width=0.05, fc_units=8, seed=0)
    models.save_model(network, folder / "model.keras", ModelCard.from_json(about, folder))
    (folder / "run.json").write_text(json.dumps({**about, "status": "training", "metrics": {}}))
    return folder


def speed_of(file: str, p50: float = 2.0, rate: float = 400.0) -> dict:
    """Return what the report reads of a benchmark's row."""
    ratios = {"ratio": 0.5, "ratio_range": [0.25, 1.5], "rounds": [{}, {}]}
    return {
        "file": file,
        "precision": "int8" if "int8" in file else "float32",
        "runtime": "litert",
        "version": "2.3.0",
        "provider": "cpu",
        "threads": 2,
        "cold_start_s": 0.75,
        "peak_memory_mib": 66.4,
        "bytes": 12345,
        "single_stream": {
            "queries": 1234,
            "p50_ms": p50,
            "p90_ms": 2 * p50,
            "p99_ms": 3 * p50,
            **ratios,
        },
        "offline": {"images_per_second": rate, **ratios},
    }


def speeds(*rows: dict, **changed) -> dict:
    """Return what `python -m export.benchmark --json` writes of some rows."""
    settings = {
        "official": False,
        "rounds": 2,
        "processor": "CPU",
        "cores": 2,
        "gpu": None,
        "loadgen": "6",
        "batch": 8,
    }
    return {"settings": {**settings, **changed}, "rows": list(rows)}
