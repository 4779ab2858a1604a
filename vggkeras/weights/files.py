"""TODO"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from vggkeras import configs
from vggkeras.configs import FC
from vggkeras.errors import InputError

SLICE = 32 << 20  # bytes of a tensor that are read at once
# keras.applications' downloads, as its get_file checks them (MD5).
KERAS_DOWNLOADS = {
    "vgg16": ("VGG16", "64373286793e3c8b2b4e3219cbf3544b"),
    "vgg19": ("VGG19", "cbe5617147190e668d6c5d5026f83318"),
}


class Tensors(NamedTuple):
    """A file's tensors by name."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[..., np.ndarray]  # (name, slices of its first axes) -> float32
    called: Callable[[str], str] = str  # what the file itself calls one of them


def download(name: str) -> Path:
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


def safetensors(path: Path, name: str) -> Tensors:
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

    return _unwrapped(Tensors({key: tuple(entry["shape"]) for key, entry in header.items()}, plain))


def torch_tensors(path: Path, name: str) -> Tensors:
    """By way of a copy as .safetensors among the temporary files, which goes when the last reader does."""
    folder = tempfile.TemporaryDirectory(prefix="vggkeras-")
    copy = Path(folder.name) / "weights.safetensors"
    said = in_torch("read", path, copy, name)
    if "refused" in said:
        raise InputError(
            f"{name} holds more than tensors ({' '.join(said['refused'].split())[:160]}): loading that would run code, so it "
            "was refused and nothing of it was run. Save the network's state_dict() alone, or as .safetensors."
        )
    if "damaged" in said:
        raise _damaged(name, said["damaged"], "a torch file")
    tensors = safetensors(copy, name)

    def read(
        key: str, *where: slice, folder: Any = folder
    ) -> np.ndarray:  # which lives as long as this function
        return tensors.read(key, *where)

    return Tensors(tensors.shapes, read, tensors.called)


def in_torch(what: str, source: Path, target: Path, name: str) -> dict[str, str]:
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


def _unwrapped(tensors: Tensors) -> Tensors:
    """Without the prefix that torch's DataParallel gives every name."""
    prefix = "module."
    if not tensors.shapes or not all(key.startswith(prefix) for key in tensors.shapes):
        return tensors
    return Tensors(
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


def h5_tensors(path: Path, name: str, *, ours: bool = False) -> Tensors:
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

    return Tensors(shapes, read, places.__getitem__)


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
