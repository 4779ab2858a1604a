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
import importlib.util
import io
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from vggkeras import configs, imagenet, models
from vggkeras.errors import InputError
from vggkeras.files import remove, replacing
from vggkeras.torch_file import write_header

FIRST_CONVOLUTIONS = 4  # of a shallower network are taken over, and its FC layers
FC = ("fc1", "fc2", "predictions")
SLICE = 32 << 20  # bytes of a tensor that are read at once
OTHERS = ("keras", "torchvision", "timm", "kerashub")
EXPECTED = (
    "expected a run's folder or a .keras file of ours, keras:vgg16, keras:vgg19, keras:FILE.h5, torchvision:FILE.pth, "
    "torchvision:FILE.safetensors, timm:FILE or kerashub:FOLDER"
)

TORCH_MEAN, TORCH_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of RGB in 0-1: torchvision, timm, KerasHub
TORCH_MEAN_RGB = (255 * 0.485, 255 * 0.456, 255 * 0.406)
# keras.applications' downloads, as its get_file checks them (MD5).
KERAS_DOWNLOADS = {
    "vgg16": ("VGG16", "64373286793e3c8b2b4e3219cbf3544b"),
    "vgg19": ("VGG19", "cbe5617147190e668d6c5d5026f83318"),
}

Part = tuple[
    int, np.ndarray, np.ndarray
]  # which of a layer's weights, which rows of it, and what is in them


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
    class_names: list[str] | None
    about: dict[str, Any] = field(repr=False)  # what else should travel on with the weights
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


class _Tensors(NamedTuple):
    """A file's tensors by name."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[..., np.ndarray]  # (name, slices of its first axes) -> float32
    called: Callable[[str], str] = str  # what the file itself calls one of them


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
    path = _download(rest) if kind == "keras" and rest in KERAS_DOWNLOADS else Path(rest)
    if not path.is_file():
        raise InputError(f"{spec}: there is no file {path}; {EXPECTED}.")
    name = f"{kind}:{rest if rest in KERAS_DOWNLOADS else path.name}"
    if kind == "keras":
        return _understand(spec, name, kind, _h5_tensors(path, name), ["keras"])
    tensors = (
        _safetensors(path, name) if path.suffix == ".safetensors" else _torch_tensors(path, name)
    )
    styles = ["torchvision", "timm"] if kind == "torchvision" else ["timm", "torchvision"]
    return _understand(spec, name, kind, tensors, styles)


def _download(name: str) -> Path:
    """keras.applications' file in Keras' cache: the one that lies there as it is, else the download that Keras checks.

    keras.applications itself would build its network beside ours only to fill it.
    """
    function, md5 = KERAS_DOWNLOADS[name]
    address = sys.modules[getattr(keras.applications, function).__module__].WEIGHTS_PATH  # type: ignore[attr-defined]
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
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): download {address} where there is a network "
                f"and put it at {path}, or give another file as keras:FILE.h5."
            ) from error
    return path


# ---- files -----------------------------------------------------------------------------------------------------------


def _damaged(name: str, error: object, kind: str) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"{name} cannot be read as {kind} ({reason}): it is damaged, cut short or of another kind; fetch it again."
    )


NUMBERS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}


def _safetensors(path: Path, name: str) -> _Tensors:
    """Checked by its package, then read without: what that maps of a file stays in memory, and a column maps it all."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            f"{name} needs a package that is not installed: pip install safetensors."
        ) from error
    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, ValueError, struct.error) as error:
        raise _damaged(name, error, "a .safetensors file") from error
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if entry["dtype"] not in NUMBERS:
            raise InputError(
                f"{name}: {key} is of type {entry['dtype']}: convert it to float32 first."
            )

    def read(key: str, rows: slice, columns: slice | None = None) -> np.ndarray:
        entry, shape = header[key], header[key]["shape"]
        kind = np.dtype(NUMBERS[entry["dtype"]])
        each = math.prod(shape[2:])  # numbers of a column of a row
        row = math.prod(shape[1:])
        first, last = (columns.start * each, columns.stop * each) if columns else (0, row)
        found = np.empty((rows.stop - rows.start, last - first), kind)
        start = 8 + length + entry["data_offsets"][0] + kind.itemsize * (rows.start * row + first)
        with open(path, "rb", buffering=0) as file:
            for i in range(len(found) if columns else 1):
                file.seek(start + kind.itemsize * i * row)
                whole = found[i] if columns else found.reshape(-1)
                if file.readinto(whole.data.cast("B")) != whole.nbytes:
                    raise OSError(f"{name} was cut short while it was read")
        return found.reshape(len(found), -1, *shape[2:]) if len(shape) > 1 else found.reshape(-1)

    def plain(key: str, *where: slice) -> np.ndarray:
        return read(key, *where).astype(np.float32, copy=False)

    return _unwrapped(
        _Tensors({key: tuple(entry["shape"]) for key, entry in header.items()}, plain)
    )


def _torch_tensors(path: Path, name: str) -> _Tensors:
    """By way of a copy as .safetensors among the temporary files, which goes when the last reader does."""
    folder = tempfile.TemporaryDirectory(prefix="vggkeras-")
    copy = Path(folder.name) / "weights.safetensors"
    said = _in_torch("read", path, copy, name)
    if "refused" in said:
        raise InputError(
            f"{name} holds more than tensors ({' '.join(said['refused'].split())[:160]}): loading that would run code, so it "
            "was refused and nothing of it was run. Save the network's state_dict() alone, or as .safetensors."
        )
    if "damaged" in said:
        raise _damaged(name, said["damaged"], "a torch file")
    tensors = _safetensors(copy, name)

    def read(
        key: str, *where: slice, folder: Any = folder
    ) -> np.ndarray:  # which lives as long as this function
        return tensors.read(key, *where)

    return _Tensors(tensors.shapes, read, tensors.called)


def _in_torch(what: str, source: Path, target: Path, name: str) -> dict[str, str]:
    """Read or write a torch file in a process of its own (see torch_file.py), and what that says."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{name} needs torch, which is not installed: pip install 'vggkeras[torch]', or use a .safetensors file, which "
            "needs it not."
        )
    script = Path(__file__).with_name("torch_file.py")
    command = [sys.executable, "-P", str(script), what, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise OSError(f"{name}: torch could not {what} it: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _unwrapped(tensors: _Tensors) -> _Tensors:
    """Without the prefix that torch's DataParallel gives every name."""
    prefix = "module."
    if not tensors.shapes or not all(key.startswith(prefix) for key in tensors.shapes):
        return tensors
    return _Tensors(
        {key.removeprefix(prefix): shape for key, shape in tensors.shapes.items()},
        lambda key, *where: tensors.read(prefix + key, *where),
        lambda key: prefix + key,
    )


class _Window(io.RawIOBase):
    """A stored entry of a zip archive as a file of its own, that can be read from anywhere."""

    def __init__(self, path: Path, entry: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115 (closed below)
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry} in it is compressed, which Keras does not do")
        self.file.seek(info.header_offset + 26)
        self.start = info.header_offset + 30 + sum(struct.unpack("<HH", self.file.read(4)))
        self.size, self.place = info.file_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.size - self.place)]
        self.file.seek(self.start + self.place)
        count = self.file.readinto(view)  # type: ignore[attr-defined]
        self.place += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def _opened_h5(path: Path) -> Iterator[Any]:
    import h5py

    zipped = zipfile.is_zipfile(path)
    with (
        _Window(path, "model.weights.h5") if zipped else nullcontext(path) as file,
        h5py.File(file, "r") as h5,
    ):
        yield h5


WEIGHTS = {"conv": ("kernel", "bias"), "bn": ("gamma", "beta", "moving_mean", "moving_variance")}


def _weight_names(layer: str) -> tuple[str, ...]:
    return WEIGHTS["bn" if "_bn" in layer else "conv"]


def _h5_tensors(path: Path, name: str, *, ours: bool = False) -> _Tensors:
    """Of a weights file of Keras: layer/kernel, layer/bias …, whatever the file calls them."""
    places: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with _opened_h5(path) as file:
            # The layer mean_rgb, under its class: MeanRGB in files of version 0.1, Rescaling since.
            own = "layers/mean_rgb" in file or "layers/rescaling" in file
            for layer, found in _h5_layers(file):
                names = _weight_names(layer)
                for number, dataset in enumerate(found):
                    key = f"{layer}/{names[number] if number < len(names) else number}"
                    shapes[key], places[key] = tuple(file[dataset].shape), dataset
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(name, error, "a weights file of Keras") from error
    if own and not ours:
        raise InputError(
            f"{name} is of a network of vggkeras, whose convention is another than keras.applications': give the run's "
            "folder or the .keras file, without keras: before it."
        )

    def read(key: str, *where: slice) -> np.ndarray:
        with _opened_h5(path) as file:
            return np.asarray(file[places[key]][where], np.float32)

    return _Tensors(shapes, read, places.__getitem__)


def _h5_layers(file: Any) -> Iterator[tuple[str, list[str]]]:
    """(layer, its datasets in order) of a file of the old layout, or of Keras 3's."""
    import h5py

    old = file.get("model_weights", file)
    if "layer_names" in old.attrs:
        for group in old.values():
            names = [
                n.decode() if isinstance(n, bytes) else str(n)
                for n in group.attrs.get("weight_names", ())
            ]
            if names:
                yield group.name.rsplit("/", 1)[1], [f"{group.name}/{n}" for n in names]
        return
    # layers/conv2d_3/vars/0, in groups that say their layer's name; older files of Keras 3 do not, but count.
    found: list[h5py.Group] = []
    file.visititems(lambda _, item: found.append(item) if item.name.endswith("/vars") else None)
    unnamed: list[str] = []
    for group in found:
        if group.name.startswith("/optimizer") or group.name == "/vars":
            continue
        layer = group.attrs.get("name")
        if len(group) and layer is None:
            unnamed.append(group.name)
        elif len(group):
            yield str(layer), [f"{group.name}/{i}" for i in sorted(group, key=int)]
    if unnamed:

        def count(place: str) -> tuple[int, int]:
            kind, _, number = place.split("/")[-2].partition("_")
            return kind == "dense", int(number or 0)

        unnamed.sort(key=count)
        convolutions = sum(not count(place)[0] for place in unnamed)
        by_depth = {8: "A", 10: "B", 13: "D", 16: "E"}
        if convolutions not in (0, *by_depth):
            raise ValueError(f"it has {convolutions} convolutions, as no VGG network has")
        layers = (
            [s.name for s in configs.plan(by_depth.get(convolutions, "A")) if s.kind == "conv"]
            if convolutions
            else []
        )
        for layer, place in zip([*layers, *FC], unnamed, strict=False):
            yield layer, [f"{place}/{i}" for i in sorted(file[place], key=int)]


# ---- which network, and whether it is whole ----------------------------------------------------------------------------


def _names(style: str, arch: str, batch_norm: bool, fc: int) -> dict[str, list[str]]:
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


def _understand(
    spec: str,
    name: str,
    kind: str,
    tensors: _Tensors,
    styles: Sequence[str],
    scale: Sequence[float] = (),
    mean: Sequence[float] = (),
    ours: dict[str, Any] | None = None,
) -> Source:
    """Which network a file's tensors are of; every one accounted for, of the shape it should have.

    Args:
        scale: what the first kernel is multiplied by, one number a channel of its own order; by default the library's.
        mean: what is subtracted from RGB, 0-255; by default the library's.
        ours: input_shape, lrn and about, of our own files.
    """
    found = set(tensors.shapes)
    best: tuple[list[str], list[str], str, bool, str, dict[str, list[str]]] | None = None
    for style in styles:
        for fc in (3, 2, 0):
            for batch_norm in (False, True):
                for arch in ("A", "B", "D", "E"):
                    layers = _names(style, arch, batch_norm, fc)
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
    tensors: _Tensors,
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
    expected = _shapes(arch, shape, classes or 2, batch_norm, width, fc_units or 1)
    turned: dict[str, list[tuple[int, ...]]] = {}
    for layer, names in layers.items():
        turned[layer] = expected[layer]
        for names_own, wanted in zip(names, expected[layer], strict=False):
            received = tensors.shapes[names_own]
            theirs = _their_shape(style, layer, wanted, received, shape)
            if received != theirs:
                raise InputError(
                    f"{name}: {tensors.called(names_own)} ({layer}) has shape {list(received)}; expected {list(theirs)} in a "
                    f"configuration {arch} of width {width:g} at {shape[0]} px: give the weights of one network of Table 1."
                )
    if ours:
        mean, scale = ours["mean"], ()
        about, class_names = ours["about"], ours["about"].get("class_names")
    else:
        class_names = imagenet.class_names() if classes == imagenet.CLASSES else None
        if kind == "keras":
            mean = mean or configs.IMAGENET_MEAN_RGB
        else:
            mean = mean or TORCH_MEAN_RGB
            scale = scale or [1 / (255 * std) for std in TORCH_STD]
        about = {
            "arch": arch,
            "pretrained": spec,
            "class_names": class_names,
            "mean_rgb": list(mean),
        }
        if class_names is None:
            del about["class_names"]
    grid = shape[0] // 32, shape[1] // 32
    parts: dict[str, Callable[[], Iterator[Part]]] = {
        layer: functools.partial(
            _layer_parts,
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
    names_list = list(class_names) if class_names else None
    sizes = (
        arch,
        batch_norm,
        width,
        fc_units,
        classes,
        (shape[0], shape[1], channels),
        tuple(float(m) for m in mean),
    )
    return Source(name, kind, *sizes, names_list, about, turned, called, parts)


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


def _shapes(
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


def _their_shape(
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


def _layer_parts(
    tensors: _Tensors,
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
    tensors: _Tensors, name: str, flat: bool, whole: bool
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
    tensors: _Tensors, name: str, grid: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """torch's kernel of an FC layer, [outputs, C x H x W], as rows of ours, [H x W x C, outputs]: some channels at once."""
    shape, (h, w) = tensors.shapes[name], grid
    channels = math.prod(shape[1:]) // (h * w)
    places = np.arange(h * w * channels).reshape(h, w, channels)
    for c in _slices((channels, h, w, shape[0])):
        columns = c if len(shape) == 4 else slice(c.start * h * w, c.stop * h * w)
        block = tensors.read(name, slice(0, shape[0]), columns).reshape(shape[0], -1, h, w)
        yield places[:, :, c].ravel(), block.transpose(2, 3, 1, 0).reshape(-1, shape[0])


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
            about = (
                json.loads(archive.read(models.ABOUT)) if models.ABOUT in archive.namelist() else {}
            )
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
    known = {"input_shape": tuple(shape), "mean": mean, "lrn": "lrn" in layers, "about": about}
    return _understand(
        spec, spec, "ours", _h5_tensors(path, str(path), ours=True), ["keras"], ours=known
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
    tensors = _h5_tensors(folder / "model.weights.h5", name)
    if (folder / "task.weights.h5").is_file():
        head = _h5_tensors(folder / "task.weights.h5", name)
        backbone = tensors

        def of(key: str) -> _Tensors:
            return backbone if key in backbone.shapes else head

        tensors = _Tensors(
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


# ---- into a network ----------------------------------------------------------------------------------------------------


def _weighted(model: keras.Model) -> dict[str, Any]:
    return {layer.name: layer for layer in model.layers if layer.weights}


def _fill(layer: Any, source: Source, name: str, *, in_place: bool = False) -> None:
    """A layer's weights from a source.

    Args:
        in_place: write TensorFlow's variables row by row, of a network that nobody has seen yet: a tensor that was read
            from one before would change too, and there must be one device.
    """
    if not in_place or keras.backend.backend() != "tensorflow":
        layer.set_weights(source.layers[name]())
        return
    import tensorflow as tf

    if any(isinstance(weight.value, tf.distribute.DistributedValues) for weight in layer.weights):
        layer.set_weights(source.layers[name]())
        return
    for number, rows, block in source.parts[name]():
        weight = layer.weights[number]
        if len(block) == weight.shape[0]:
            weight.assign(block)
            continue
        # variable[rows].assign() would do, but first copies the whole, and leaves a variable that is copied at each read.
        tf.raw_ops.InplaceUpdate(x=weight.value.value(), i=rows.astype(np.int32), v=block)
        if not np.array_equal(
            weight.value[int(rows[-1])], block[-1]
        ):  # its documentation does not promise it
            layer.set_weights(source.layers[name]())
            return


def init_from(
    model: keras.Model, source: Source | str | os.PathLike, class_names: Sequence[str]
) -> dict[str, str | None]:
    """Copy trained weights into a new network, layer by layer.

    - The same configuration: every layer.
    - A shallower one: its first four convolutions (with their batch normalisation) and its FC layers, as the paper did;
      the rest keeps the initialisation it has.
    - Where the classes are others: not the last layer, `predictions`.
    - Where the images are of another size, so that fc1 covers another map, or the source has no FC layers: none of these.

    The mean that `model` subtracts stays as it is. `explain` says in words what was not taken.

    Args:
        model: of `build()`.
        source: of `open_source()`, or what that takes.
        class_names: the new model's classes, in order.

    Returns:
        Layer name -> where its weights came from, or None where they stay; in the network's order.

    Raises:
        InputError (a ValueError): see `open_source`; a deeper or another kind of network; a layer whose shapes differ.
    """
    source = source if isinstance(source, Source) else open_source(source)
    theirs, ours = source.shapes, _weighted(model)
    surplus = [name for name in theirs if name not in ours]
    if surplus:
        raise InputError(
            f"--init-from {source.name} is {source.network} with a layer {surplus[0]!r} that {model.name} has not: start "
            "from the same configuration or a shallower one, with batch normalisation in both or in neither."
        )
    convolutions = [name for name in theirs if "_conv" in name]
    taken = set(theirs)
    if len(convolutions) < sum("_conv" in name for name in ours) or source.batch_norm != any(
        "_bn" in n for n in ours
    ):
        if any("_bn" in name for name in ours) and not source.batch_norm:
            raise InputError(
                f"--init-from {source.name} is {source.network} without batch normalisation, which {model.name} has: start "
                "from a run with --batch-norm, or train without it."
            )
        first = convolutions[:FIRST_CONVOLUTIONS]
        taken = {*first, *(name.replace("conv", "bn") for name in first), *FC} & set(theirs)
    if list(source.class_names or ()) != list(class_names):
        taken.discard("predictions")
    if "fc1" in theirs and "fc1" in ours and _other_map(theirs["fc1"], ours["fc1"], source, model):
        taken -= set(FC)
    copied: dict[str, str | None] = {}
    for name, layer in ours.items():
        if name not in taken:
            copied[name] = None
            continue
        mine = [tuple(v.shape) for v in layer.weights]
        if mine != theirs[name]:
            hint = (
                "the --fc-units differ"
                if name.startswith("fc")
                else "the --width or configuration differ"
            )
            raise InputError(
                f"--init-from {source.name}: layer {name} has shapes {theirs[name]} there and {mine} here ({hint}): give this "
                "network the other's sizes."
            )
        copied[name] = source.origin(name)
    for name in taken:
        _fill(ours[name], source, name)
    return copied


def _map(shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int]:
    """The feature map (h, w, c) that an fc1 reads in a network for images of a shape."""
    h, w = shape[0] // 32, shape[1] // 32
    return h, w, kernel[0] // (h * w)


def _other_map(
    theirs: Sequence[tuple[int, ...]], layer: Any, source: Source, model: keras.Model
) -> bool:
    """Whether an fc1 is the same but for the size of the map it covers."""
    mine = [tuple(v.shape) for v in layer.weights]
    here, there = _map(model.input_shape[1:], mine[0]), _map(source.input_shape, theirs[0])
    return here[:2] != there[:2] and here[2] == there[2] and mine[1] == theirs[1]


def explain(copied: dict[str, str | None], source: Source, model: keras.Model) -> list[str]:
    """What `init_from` did not take and why, a sentence each."""
    ours = _weighted(model)
    told = []
    fresh = [name for name, origin in copied.items() if origin is None]
    middle = [name for name in fresh if name not in FC]
    if middle:
        told.append(
            f"{len(middle)} layers start anew ({', '.join(middle[:3])}{' …' if len(middle) > 3 else ''}): {source.name} is a "
            f"shallower network, of which the first {FIRST_CONVOLUTIONS} convolutions are taken"
        )
    if "fc1" in fresh and "fc1" not in source.shapes:
        told.append(
            f"{', '.join(n for n in FC if n in fresh)} start anew: {source.name} has no FC layers"
        )
    elif "fc1" in fresh:
        there = _map(source.input_shape, source.shapes["fc1"][0])
        here = _map(model.input_shape[1:], ours["fc1"].weights[0].shape)
        told.append(
            f"fc1 starts anew: its kernel covers {' x '.join(map(str, there))} there and {' x '.join(map(str, here))} here; "
            "so do fc2 and predictions, which read it"
        )
    elif "predictions" in fresh:
        here = ours["predictions"].weights[1].shape[0]
        if source.classes is None:
            told.append(f"predictions starts anew: {source.name} has none")
        elif source.classes != here:
            told.append(f"predictions starts anew: {source.classes} classes there, {here} here")
        else:
            told.append(
                f"predictions starts anew: the {here} classes there have other names, or none"
            )
    return told


def load_weights(
    model: keras.Model, source: Source | str | os.PathLike, *, head: bool = True
) -> dict[str, str]:
    """Fill a network with a source's weights, all of them, so that it gives the source's own answers.

    Every tensor of the source is used exactly once and every weight of the model filled exactly once. The model's first
    layer then subtracts the source's mean RGB, and functions that it had traced (predict, evaluate, fit) are made anew.

    Args:
        model: of `build()`, of the same configuration and sizes as the source.
        source: of `open_source()`, or what that takes.
        head: False leaves `predictions` as it is, and the other FC layers too where the source has none.

    Returns:
        Layer name -> where its weights came from.

    Raises:
        InputError (a ValueError): see `open_source`; what is missing and what is left over, by name; a layer whose shapes
            differ; other class counts, or a source without FC layers, with head=True. The model is then as it was.
    """
    return _load(model, source if isinstance(source, Source) else open_source(source), head=head)


def _load(
    model: keras.Model, source: Source, *, head: bool = True, in_place: bool = False
) -> dict[str, str]:
    ours = _weighted(model)
    left = () if head else tuple(n for n in FC if n == "predictions" or n not in source.shapes)
    wanted = [name for name in ours if name not in left]
    given = [name for name in source.shapes if name not in left]
    missing, unexpected = [n for n in wanted if n not in given], [n for n in given if n not in ours]
    if head and missing == [n for n in FC if n not in source.shapes] and missing and not unexpected:
        raise InputError(
            f"{source.name} has no {', '.join(missing)}: pass head=False to fill the other layers alone, and train these."
        )
    lrn = any(layer.name == "lrn" for layer in model.layers)
    if missing or unexpected or lrn != (source.arch == "A-LRN"):
        told = [
            f"{len(names)} {what}, first {', '.join(names[:3])}"
            for what, names in (
                ("layers of the model are not in it", missing),
                ("of its layers are not in the model", unexpected),
            )
            if names
        ] or ["one of them has local response normalisation"]
        raise InputError(
            f"{source.name} is {source.network}{' with batch normalisation' if source.batch_norm else ''} and the model "
            f"{model.name}: {'; '.join(told)}. Build the same configuration, or use vggkeras.pretrained(source)."
        )
    for name in wanted:
        mine = [tuple(v.shape) for v in ours[name].weights]
        if mine != source.shapes[name]:
            if name == "predictions" and mine[0][0] == source.shapes[name][0][0]:
                raise InputError(
                    f"{source.name} has {source.classes} classes and the model {mine[1][0]}: build it with "
                    f"classes={source.classes}, or pass head=False to keep its own last layer."
                )
            raise InputError(
                f"{source.name}: layer {name} has shapes {source.shapes[name]} there and {mine} in the model: build it with "
                f"input_shape={source.input_shape}, width={source.width:g}, fc_units={source.fc_units}."
            )
    if not any(layer.name == "mean_rgb" for layer in model.layers):
        raise InputError(
            f"load_weights expects a model of vggkeras.build(); {model.name!r} has no layer mean_rgb."
        )
    for name in wanted:
        _fill(ours[name], source, name, in_place=in_place)
    model.get_layer("mean_rgb").offset = [-value for value in source.mean_rgb]
    # They hold the mean that they were traced with.
    model.predict_function = model.test_function = model.train_function = None
    return {name: source.origin(name) for name in wanted}


def pretrained(source: Source | str | os.PathLike) -> keras.Model:
    """The network that weights are of, filled with them: it takes images 0-255, RGB, and gives the source's own answers.

    Args:
        source: of `open_source()`, or what that takes; with its FC layers.

    Raises:
        InputError (a ValueError): see `open_source`; a source without FC layers.
    """
    source = source if isinstance(source, Source) else open_source(source)
    if source.fc_units is None or source.classes is None:
        lacks = ", ".join(name for name in FC if name not in source.shapes)
        raise InputError(
            f"{source.name} has no {lacks}, so it classifies nothing: start a training from it with --init-from "
            f"{source.name}, or give a file with the FC layers."
        )
    model = models.build(
        source.arch,
        source.input_shape,
        source.classes,
        batch_norm=source.batch_norm,
        width=source.width,
        fc_units=source.fc_units,
        mean_rgb=source.mean_rgb,
        init="zeros",
    )
    _load(model, source, in_place=True)
    return model


# ---- and back ----------------------------------------------------------------------------------------------------------

DESTINATIONS = "torchvision:FILE.pth, torchvision:FILE.safetensors, timm:FILE, keras:FILE.h5 or keras:FILE.weights.h5"


def save_weights(model: keras.Model, destination: str) -> dict[str, Any]:
    """Write a network's weights as another library reads them. Atomic.

    Args:
        model: of `build()`.
        destination: torchvision:FILE or timm:FILE, .safetensors or, with torch, .pth or .pt; keras:FILE.h5 in the layout
            of keras.applications' files, or keras:FILE.weights.h5 in that of Keras 3.

    Returns:
        What its reader has to do to an image: {"order": RGB or BGR, "scale", "mean", "std"}, that is (image x scale - mean)
        / std, mean and std in that order. A warning says where this is not the library's usual preprocessing, because the
        model subtracts another mean than ImageNet's of that library.

    Raises:
        InputError (a ValueError): an unknown destination, a configuration that the library has not, torch is missing.
    """
    kind, _, rest = str(destination).partition(":")
    path = Path(rest)
    suffixes = {
        "keras": (".h5",),
        "torchvision": (".safetensors", ".pth", ".pt"),
        "timm": (".safetensors", ".pth", ".pt"),
    }
    if kind not in suffixes or path.suffix not in suffixes[kind] or path.is_dir():
        raise InputError(f"Unknown destination {destination!r}: expected {DESTINATIONS}.")
    arch, batch_norm = _configuration(model)
    if arch in ("C", "A-LRN") or (kind == "keras" and (batch_norm or arch not in ("D", "E"))):
        has = (
            "VGG16 and VGG19 (D, E) without batch normalisation"
            if kind == "keras"
            else "VGG11, 13, 16, 19 (A, B, D, E)"
        )
        raise InputError(
            f"{destination}: the model is configuration {arch}{' with batch normalisation' if batch_norm else ''}, and "
            f"{'keras.applications' if kind == 'keras' else kind} has {has} alone."
        )
    mean = models.mean_rgb(model)
    asked: dict[str, Any]
    if kind == "keras":
        standard = configs.IMAGENET_MEAN_RGB
        asked = {"order": "BGR", "scale": 1.0, "mean": list(mean[::-1]), "std": [1.0, 1.0, 1.0]}
        write = _write_keras3 if path.name.endswith(".weights.h5") else _write_legacy
    else:
        standard = TORCH_MEAN_RGB
        asked = {
            "order": "RGB",
            "scale": 1 / 255,
            "mean": [m / 255 for m in mean],
            "std": list(TORCH_STD),
        }
        write = _write_safetensors if path.suffix == ".safetensors" else _write_torch
    if len(mean) != 3:
        raise InputError(
            f"{destination}: the model takes images of {len(mean)} channels, and {kind} those of 3."
        )
    names = _names("keras" if kind == "keras" else kind, arch, batch_norm, 3)
    with replacing(path) as beside:
        write(beside, model, names, kind)
    if not np.allclose(mean, standard, rtol=0, atol=1e-3):
        warnings.warn(
            f"{destination}: the model subtracts the mean RGB {', '.join(f'{m:.3f}' for m in mean)}, not "
            f"{', '.join(f'{m:.3f}' for m in standard)} as is usual there: its reader must use mean "
            f"{', '.join(f'{m:.5g}' for m in asked['mean'])} ({asked['order']})",
            stacklevel=2,
        )
    return asked


def _configuration(model: keras.Model) -> tuple[str, bool]:
    """(configuration, whether with batch normalisation) of a network of `build()`."""
    layers = _weighted(model)
    kernels = {name: layer.weights[0].shape[0] for name, layer in layers.items() if "_conv" in name}
    for arch, blocks in configs.CONFIGURATIONS.items():
        lrn = configs.LRN in blocks[0]
        plan = {step.name: step.kernel for step in configs.plan(arch) if step.kind == "conv"}
        if (
            plan == kernels
            and lrn == any(layer.name == "lrn" for layer in model.layers)
            and set(FC) <= set(layers)
        ):
            return arch, any("_bn" in name for name in layers)
    raise InputError(f"save_weights expects a model of vggkeras.build(); received {model.name!r}.")


def _blocks(model: keras.Model, layer: str, number: int, kind: str) -> Iterator[np.ndarray]:
    """A weight in another library's layout, in slices of its first axis."""
    weight = model.get_layer(layer).weights[number]
    shape = tuple(weight.shape)
    torch = kind in ("torchvision", "timm")
    axis = -1 if torch else 0
    step = max(1, SLICE // (4 * math.prod(shape) // shape[axis]))
    h, w = (model.input_shape[1] // 32, model.input_shape[2] // 32) if layer == "fc1" else (1, 1)
    for first in range(0, shape[axis], step):
        where = (..., slice(first, first + step)) if torch else (slice(first, first + step),)
        block = keras.ops.convert_to_numpy(weight.value[where])
        if layer == "block1_conv1" and number == 0 and torch:
            block = block * (255.0 * np.reshape(TORCH_STD, (-1, 1)))
        elif layer == "block1_conv1" and number == 0 and kind == "keras":
            block = block[:, :, ::-1]
        if torch and len(shape) == 4:
            block = block.transpose(3, 2, 0, 1)
        elif torch and len(shape) == 2:
            block = block.reshape(h, w, -1, block.shape[-1]).transpose(3, 2, 0, 1)
            if kind == "torchvision" or layer == "predictions":
                block = block.reshape(len(block), -1)
        yield np.ascontiguousarray(block, np.float32)


def _their_shapes(
    model: keras.Model, names: dict[str, list[str]], kind: str
) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Tensor name -> (our layer, which of its weights, its shape there)."""
    style = "keras" if kind == "keras" else kind
    found = {}
    for layer, own in names.items():
        for number, name in enumerate(own):
            ours = tuple(model.get_layer(layer).weights[number].shape)
            received = (0,) * (4 if style == "timm" and layer in ("fc1", "fc2") else len(ours))
            found[name] = (
                layer,
                number,
                _their_shape(style, layer, ours, received, model.input_shape[1:]),
            )
    return found


def _write_safetensors(
    path: Path, model: keras.Model, names: dict[str, list[str]], kind: str
) -> None:
    """Slice by slice; the package would want all of it in memory."""
    found = _their_shapes(model, names, kind)
    with open(path, "wb") as file:
        write_header(file, {name: shape for name, (_, _, shape) in found.items()})
        for layer, number, _ in found.values():
            for block in _blocks(model, layer, number, kind):
                file.write(block.astype("<f4", copy=False).data)


def _write_torch(path: Path, model: keras.Model, names: dict[str, list[str]], kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vggkeras-") as folder:
        copy = Path(folder) / "weights.safetensors"
        _write_safetensors(copy, model, names, kind)
        _in_torch("write", copy, path, path.name)


def _h5_weights(
    model: keras.Model, layer: str, group: Any, names: Sequence[str], kind: str
) -> None:
    for number, name in enumerate(names):
        dataset = group.create_dataset(
            name, tuple(model.get_layer(layer).weights[number].shape), "float32"
        )
        start = 0
        for block in _blocks(model, layer, number, kind):
            dataset[start : start + len(block)] = block
            start += len(block)


def _write_legacy(path: Path, model: keras.Model, names: dict[str, list[str]], kind: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in names]
        file.attrs["backend"], file.attrs["keras_version"] = (
            b"tensorflow",
            keras.__version__.encode(),
        )
        for layer, own in names.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in own]
            _h5_weights(model, layer, group, own, kind)


KERAS3 = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}


def _write_keras3(path: Path, model: keras.Model, names: Iterable[str], kind: str) -> None:
    """Keras 3 finds a layer by its class and its number among those of the class."""
    import h5py

    counts = dict.fromkeys(KERAS3.values(), 0)
    with h5py.File(path, "w") as file:
        for layer in names:
            word = KERAS3[type(model.get_layer(layer)).__name__]
            group = file.create_group(
                f"layers/{word}_{counts[word]}/vars" if counts[word] else f"layers/{word}/vars"
            )
            counts[word] += 1
            group.attrs["name"] = layer
            _h5_weights(
                model,
                layer,
                group,
                [str(i) for i in range(len(model.get_layer(layer).weights))],
                kind,
            )


def save_model(model: keras.Model, path: Path, about: dict[str, Any]) -> None:
    """`models.save_model` for a network of `build()`, without a second copy of its weights in memory. Atomic.

    Keras gathers the whole file in memory before it writes it.
    """
    entries = {
        "metadata.json": json.dumps(
            {"keras_version": keras.__version__, "date_saved": time.strftime("%Y-%m-%d@%H:%M:%S")}
        ),
        "config.json": model.to_json(),
        models.ABOUT: json.dumps(about),
    }
    with replacing(path) as beside:
        numbers = beside.with_name(f"{beside.name}.weights.h5")
        try:
            _write_keras3(numbers, model, list(_weighted(model)), "ours")
            with zipfile.ZipFile(beside, "w") as archive:
                for name, text in entries.items():
                    archive.writestr(name, text)
                archive.write(numbers, "model.weights.h5")
        finally:
            remove(numbers)
