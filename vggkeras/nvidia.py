"""What of NVIDIA's is here: the card, TensorRT's version, and who installed CUDA's libraries."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = re.compile(r"lib(cudnn|cublas|cudart|nvinfer)\.so\.\d+")
MAJOR, MINOR = 75, 76  # attributes of a device in CUDA's driver: its compute capability
MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Card:
    """The GPU that CUDA calls device 0, which every runtime here computes on."""

    name: str
    compute_capability: str  # 9.0


def this_card() -> Card | None:
    """Return the first GPU that this process may use; None without a driver, or without a GPU.

    The driver itself is asked, which knows of CUDA_VISIBLE_DEVICES; nvidia-smi does not.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    numbers = [ctypes.c_int(), ctypes.c_int()]
    results = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(numbers[0]), MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(numbers[1]), MINOR, device),
    )
    if any(result() for result in results):  # 0 is success
        return None
    capability = ".".join(str(number.value) for number in numbers)
    return Card(name.value.decode(errors="replace"), capability)


def tensorrt_version() -> str | None:
    """Return the version of the TensorRT 10 that ONNX Runtime would load; None if there is none."""
    try:
        number = ctypes.CDLL("libnvinfer.so.10").getInferLibVersion()
    except OSError:
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


@dataclass(frozen=True)
class Library:
    """A library of CUDA's, cuDNN's or TensorRT's on this machine."""

    path: Path
    owners: tuple[str, ...]  # distributions that installed it, with versions; none: the system
    is_loaded: bool  # into this process


def libraries() -> list[Library]:
    """Return the libraries that Python distributions installed, and those that are loaded.

    Two distributions may own one path: whichever was installed last wrote the file, and either
    removes it when it is removed.
    """
    owners: dict[Path, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if not name.lower().startswith(("nvidia", "tensorrt")):
            continue
        for file in distribution.files or ():
            if LIBRARIES.fullmatch(file.name):
                path = Path(str(distribution.locate_file(file))).resolve()
                owners.setdefault(path, []).append(f"{name} {distribution.version}")
    loaded = set(_loaded())
    paths = sorted({*owners, *loaded}, key=lambda path: (path.name, path))
    return [Library(path, tuple(sorted(owners.get(path, ()))), path in loaded) for path in paths]


def _loaded() -> Iterator[Path]:
    """Yield the paths of such libraries that this process has loaded; nothing but on Linux."""
    if not MAPS.exists():
        return
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        path = Path(line.split(maxsplit=5)[5]) if line.count("/") else Path()
        # A library of the system's is loaded by its whole version, libcudnn.so.9.10.2.
        if re.match(LIBRARIES.pattern, path.name):
            yield path
