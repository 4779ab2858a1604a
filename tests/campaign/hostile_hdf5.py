"""Hostile HDF5 weight files: what they name lies elsewhere, does not fit, or has no end."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SECRET = np.arange(1000, 1064, dtype=np.float32)  # what a file of someone else's holds


def _first(file: h5py.File) -> str:
    """Return the name of the first bias in a file."""
    names: list[str] = []
    file.visititems(
        lambda name, item: (
            names.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 1 else None
        )
    )
    return names[0]


def _replace(file: h5py.File, make: Callable[[str, tuple[int, ...]], Any]) -> None:
    name = _first(file)
    shape = file[name].shape
    del file[name]
    make(name, shape)


def _external(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        files = [(str(secret), 0, 4 * shape[0])]
        file.create_dataset(name, shape, np.float32, external=files)

    _replace(file, make)


def _external_relative(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        files = [("../" * 12 + str(secret)[1:], 0, 4 * shape[0])]
        file.create_dataset(name, shape, np.float32, external=files)

    _replace(file, make)


def _virtual(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        layout = h5py.VirtualLayout(shape, np.float32)
        source = h5py.VirtualSource(str(secret.with_suffix(".h5")), "secret", (len(SECRET),))
        layout[:] = source[: shape[0]]
        file.create_virtual_dataset(name, layout)

    _replace(file, make)


def _virtual_same_file(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        file.create_dataset("hidden", data=np.zeros(shape, np.float32))
        layout = h5py.VirtualLayout(shape, np.float32)
        layout[:] = h5py.VirtualSource(".", "hidden", shape)[:]
        file.create_virtual_dataset(name, layout)

    _replace(file, make)


def _soft_link(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        file.create_dataset("hidden", data=np.zeros(shape, np.float32))
        file[name] = h5py.SoftLink("/hidden")

    _replace(file, make)


def _soft_link_to_itself(file: h5py.File, secret: Path) -> None:
    _replace(file, lambda name, _: file.__setitem__(name, h5py.SoftLink(f"/{name}")))


def _soft_link_to_nothing(file: h5py.File, secret: Path) -> None:
    _replace(file, lambda name, _: file.__setitem__(name, h5py.SoftLink("/none")))


def _external_link(file: h5py.File, secret: Path) -> None:
    other = str(secret.with_suffix(".h5"))
    _replace(file, lambda name, _: file.__setitem__(name, h5py.ExternalLink(other, "/secret")))


def _group_link(file: h5py.File, secret: Path) -> None:
    name = _first(file)
    group = name.rsplit("/", 1)[0]
    file.move(group, "hidden")
    file[group] = h5py.SoftLink("/hidden")


def _external_group_link(file: h5py.File, secret: Path) -> None:
    group = _first(file).rsplit("/", 1)[0]
    del file[group]
    file[group] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")


def _cycle(file: h5py.File, secret: Path) -> None:
    group = file[_first(file)].parent
    group["0cycle"] = group.parent
    _replace(file, lambda name, _: file.__setitem__(name, file["/"]))


def _absurd_shape(file: h5py.File, secret: Path) -> None:
    _replace(file, lambda name, _: file.create_dataset(name, (1 << 44,), np.float32, chunks=(8,)))


def _absurd_chunked(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        file.create_dataset(name, (1 << 31,), np.float32, chunks=(1 << 20,), fillvalue=1)

    _replace(file, make)


def _other(value: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, secret: Path) -> None:
        _replace(file, lambda name, _: file.create_dataset(name, data=value))

    return change


def _kind(dtype: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, secret: Path) -> None:
        _replace(file, lambda name, shape: file.create_dataset(name, shape, dtype))

    return change


def _wild_names(file: h5py.File, secret: Path) -> None:
    file.attrs["layer_names"] = [b"\x1b[31m[/b]", b"../../x"]
    file.create_group("\x1b[31m[/b]").attrs["weight_names"] = [b"/etc/passwd"]


def _bomb(file: h5py.File, secret: Path) -> None:
    def make(name: str, shape: tuple[int, ...]) -> None:
        data = file.create_dataset(name, (1 << 28,), np.float32, compression="gzip", chunks=True)
        data[:100] = 1

    _replace(file, make)


HOSTILE: dict[str, Callable[[h5py.File, Path], None]] = {
    "external storage": _external,
    "external storage, relative": _external_relative,
    "a virtual dataset": _virtual,
    "a virtual dataset of the same file": _virtual_same_file,
    "a soft link": _soft_link,
    "a soft link to itself": _soft_link_to_itself,
    "a soft link to nothing": _soft_link_to_nothing,
    "an external link": _external_link,
    "a soft link to a group": _group_link,
    "an external link to a group": _external_group_link,
    "a cycle of groups": _cycle,
    "a shape of 10^13": _absurd_shape,
    "a shape of 2^31": _absurd_chunked,
    "text": _other("text"),
    "a scalar": _other(1.0),
    "complex numbers": _kind(np.complex64),
    "references": _kind(h5py.ref_dtype),
    "records": _kind(np.dtype([("a", "f4"), ("b", "S8")])),
    "wild names": _wild_names,
    "a bomb": _bomb,
}


def write_secret(folder: Path) -> Path:
    """Write the files that hostile ones try to read, and return the plain one's path."""
    secret = folder / "secret"
    secret.write_bytes(SECRET.tobytes())
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["secret"] = SECRET
    return secret


def has_secret(data: bytes) -> bool:
    """Return whether bytes contain the beginning of the secret."""
    return struct.pack("<2f", *SECRET[:2]) in data
