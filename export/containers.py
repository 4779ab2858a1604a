"""TODO"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from export.golden import GOLDEN
from vggkeras import files

SEAL = "sha256.json"
PARTS = (
    "weights",
    "graph",
    "labels",
    "mean RGB",
    "description",
    "golden answers",
    "other bytes",
)  # each with a sha256
UNREADABLE = (  # what the readers of damaged protocol buffers, flatbuffers, zips and arrays raise
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    OSError,
    EOFError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)


def as_bytes(digests: dict[str, str]) -> bytes:
    return json.dumps({part: digests[part] for part in PARTS}).encode()


class DamagedError(ValueError):
    """A file of ours that is not whole any more."""


def mapped_file(path: Path) -> mmap.mmap:
    """A file's bytes, unmapped when nothing refers to them any more: an error's frames may do so for a while."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def part_digests(members: dict[str, bytes], hashes: dict[str, str]) -> dict[str, str]:
    """The sha256 of every part of a file, by the name a message calls it."""
    about = json.loads(members["vggkeras.json"])
    parts = {
        "labels": [about.pop("class_names"), members.get("labels", b"").decode("latin-1")],
        "mean RGB": about.pop("mean_rgb"),
        "description": about,
    }
    found = {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }
    return found | hashes | {"golden answers": hashlib.sha256(members[GOLDEN]).hexdigest()}


def parts_of(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What travels inside a file, by name, and the sha256 of its weights, of its graph, and of all before the seal."""
    if path.is_dir():
        return _saved_model_parts(path)
    data = memoryview(mapped_file(path))
    members, hashes = _onnx_parts(data) if path.suffix == ".onnx" else _tflite_parts(path, data)
    before = data[: len(data) - len(members.get(SEAL, b""))]
    return members, hashes | {"other bytes": hashlib.sha256(before).hexdigest()}


def append(path: Path, name: str, content: bytes) -> None:
    if path.is_dir():
        (path / "assets.extra" / name).write_bytes(content)
    elif path.suffix == ".onnx":
        # A protocol buffer that is added to is one with the fields of both: nothing of the file is read.
        text = base64.b85encode(content) if name == GOLDEN else content
        entry = field(1, name.split(".")[0].encode()) + field(2, text)
        with open(path, "ab") as file:
            file.write(field(METADATA, entry))
    else:
        with zipfile.ZipFile(path, "a") as archive:
            if name == SEAL:  # the last bytes of all, with nothing elsewhere that depends on them
                archive.comment = content
            else:
                archive.writestr(zipfile.ZipInfo(name), content)  # without a date


# ONNX's fields, by number: of ModelProto, GraphProto, TensorProto, StringStringEntryProto.
GRAPH, METADATA, INITIALIZER, EXTERNAL_DATA = 7, 14, 5, 13


def _onnx_parts(data: memoryview) -> tuple[dict[str, bytes], dict[str, str]]:
    weights, graph, members = hashlib.sha256(), hashlib.sha256(), {}
    for number, value in _fields(data):
        if number == METADATA:
            entry = dict(_fields(value))
            members[bytes(entry[1]).decode()] = bytes(entry[2])
        elif number == GRAPH:
            for inner, part in _fields(value):
                (weights if inner == INITIALIZER else graph).update(part)
        else:
            graph.update(value)
    names = {"vggkeras": "vggkeras.json", "golden": GOLDEN, "sha256": SEAL}
    members = {names.get(name, name): value for name, value in members.items()}
    return members, {"weights": weights.hexdigest(), "graph": graph.hexdigest()}


# Where an ONNX file's messages have tensors: a message's field -> the kind of message that it is.
NESTED = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}


def external_data(path: Path) -> list[str]:
    """The files that an ONNX file keeps weights in, as it names them; [] where it is whole.

    Raises ValueError where it cannot be read to its end.
    """
    found = []
    left: list[tuple[str, memoryview]] = [("model", memoryview(mapped_file(path)))]
    while left:
        kind, message = left.pop()
        for number, value in _fields(message):
            if kind == "tensor" and number == EXTERNAL_DATA:
                entry = dict(_fields(value))
                if bytes(entry.get(1, b"")) == b"location":
                    found.append(bytes(entry.get(2, b"")).decode(errors="replace"))
            elif number in NESTED.get(kind, ()):
                left.append((NESTED[kind][number], value))
    return sorted(set(found))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of a protocol buffer's fields. Raises ValueError where it ends within one."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(data):
                raise ValueError("it ends too early")
            byte = data[place]
            value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("it is no protocol buffer")

    while place < len(data):
        key, start = varint(), place
        kind = key & 7
        if kind == 0:
            varint()
        elif kind == 2:
            length = varint()
            start, place = place, place + length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError("it is no protocol buffer")
        if place > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[start:place]


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer: its key, its length, its content."""
    return key(number, len(content)) + content


def key(number: int, length: int) -> bytes:
    """Return what stands before a protocol buffer's field of bytes: its key and its length."""

    def varint(value: int) -> bytes:
        found = bytearray()
        while value > 0x7F:
            found.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*found, value])

    return varint(number << 3 | 2) + varint(length)


def _tflite_parts(path: Path, data: memoryview) -> tuple[dict[str, bytes], dict[str, str]]:
    from ai_edge_litert import schema_py_generated as schema

    members: dict[str, bytes] = {}
    end = len(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            end = min((item.header_offset for item in archive.infolist()), default=end)
            known = {"labels.txt": "labels", "vggkeras.json": "vggkeras.json", GOLDEN: GOLDEN}
            members = {
                known[name]: archive.read(name) for name in archive.namelist() if name in known
            }
            members[SEAL] = archive.comment
    model = schema.Model.GetRootAs(data, 0)
    weights, graph = hashlib.sha256(), hashlib.sha256()
    start, place = np.frombuffer(data, np.uint8).ctypes.data, 0
    arrays = [
        values for i in range(model.BuffersLength()) if len(values := _values(model.Buffers(i)))
    ]
    for values in sorted(
        arrays, key=lambda values: values.ctypes.data
    ):  # what is between them is the graph
        weights.update(values.data)
        graph.update(data[place : values.ctypes.data - start])
        place = values.ctypes.data - start + len(values)
    graph.update(data[place:end])
    return members, {"weights": weights.hexdigest(), "graph": graph.hexdigest()}


def _values(buffer: Any) -> np.ndarray:
    values = buffer.DataAsNumpy()
    return (
        values if isinstance(values, np.ndarray) else np.empty(0, np.uint8)
    )  # it is 0 where there are none


def _saved_model_parts(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    extra = path / "assets.extra"
    members = (
        {file.name: file.read_bytes() for file in sorted(extra.glob("*"))} if extra.is_dir() else {}
    )
    graph = hashlib.sha256((path / "saved_model.pb").read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file != extra / SEAL):
        whole.update(f"{file.relative_to(path).as_posix()}\0{files.sha256(file)}\0".encode())
    return members, {
        "weights": files.sha256(path / "variables"),
        "graph": graph,
        "other bytes": whole.hexdigest(),
    }
