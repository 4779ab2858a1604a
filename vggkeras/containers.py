"""Read and append what lies inside an exported file, and hash its parts.

| member            | .onnx            | .tflite                   | SavedModel                 |
|-------------------|------------------|---------------------------|----------------------------|
| description, JSON | "vggkeras"       | vggkeras.json             | assets.extra/vggkeras.json |
| labels            | "labels"         | labels.txt                | (in the description)       |
| golden answers    | "golden", base85 | golden.npz                | assets.extra/golden.npz    |
| seal              | "sha256"         | the zip archive's comment | assets.extra/sha256.json   |
| in                | metadata_props   | a zip archive at its end  | files                      |

Labels and golden answers of a .tflite file are TFLite's "associated files". The seal comes last.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggkeras import files, typed

DESCRIPTION = "vggkeras.json"
GOLDEN = "golden.npz"
SEAL = "sha256.json"
LABELS = "labels"
ONNX_NAMES = {"vggkeras": DESCRIPTION, "golden": GOLDEN, "sha256": SEAL}  # others keep their name
TFLITE_NAMES = {"labels.txt": LABELS, DESCRIPTION: DESCRIPTION, GOLDEN: GOLDEN}

# The parts of a file, as messages call them; the seal has a sha256 of each.
PARTS = (
    "weights",
    "graph",
    "labels",
    "mean RGB",
    "description",
    "golden answers",
    "other bytes",  # everything before the seal
)
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


class DamagedError(ValueError):
    """A file that vggkeras wrote, and that was cut short or changed since."""


@dataclass(frozen=True)
class Parts:
    """What a file is made of."""

    members: dict[str, bytes]  # by name: DESCRIPTION, LABELS, GOLDEN, SEAL
    hashes: dict[str, str]  # the sha256 of "weights", "graph" and "other bytes"

    def digests(self) -> dict[str, str]:
        """Return the sha256 of every part in PARTS.

        Raises ValueError or KeyError where the description cannot be read.
        """
        description = typed.parse(self.members[DESCRIPTION])
        labels = self.members.get(LABELS, b"").decode("latin-1")
        described = {
            "labels": [description.pop("class_names"), labels],
            "mean RGB": description.pop("mean_rgb"),
            "description": description,
        }
        contents = {
            part: json.dumps(value, sort_keys=True).encode() for part, value in described.items()
        }
        contents["golden answers"] = self.members[GOLDEN]
        return self.hashes | {
            part: hashlib.sha256(content).hexdigest() for part, content in contents.items()
        }


def seal_text(digests: dict[str, str]) -> bytes:
    """Return the seal's content."""
    return json.dumps({part: digests[part] for part in PARTS}).encode()


def parts_of(path: Path) -> Parts:
    """Return what a .onnx or .tflite file, or a SavedModel folder, is made of.

    Raises one of UNREADABLE for a file that is not whole.
    """
    members = members_of(path)
    if path.is_dir():
        hashes = {
            "weights": files.sha256(path / "variables"),
            "graph": files.sha256(path / "saved_model.pb"),
        }
    else:
        data = memoryview(mapped_file(path))
        hashes = _onnx_hashes(data) if path.suffix == ".onnx" else _tflite_hashes(path, data)
    sealed = other_bytes(path, len(members.get(SEAL, b"")))
    return Parts(members, hashes | {"other bytes": sealed})


def members_of(path: Path) -> dict[str, bytes]:
    """Return what travels in a file, by name; of a large file little else is read.

    Raises one of UNREADABLE for a file that is not whole.
    """
    if path.is_dir():
        return {file.name: file.read_bytes() for file in (path / "assets.extra").glob("*")}
    if path.suffix == ".onnx":
        data = memoryview(mapped_file(path))
        entries = [dict(_fields(value)) for number, value in _fields(data) if number == METADATA]
        named = {bytes(entry[1]).decode(): bytes(entry[2]) for entry in entries}
        return {ONNX_NAMES.get(name, name): content for name, content in named.items()}
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        inside = [item for item in archive.infolist() if item.filename in TFLITE_NAMES]
        if any(item.compress_type != zipfile.ZIP_STORED for item in inside):
            raise ValueError("what travels in it is compressed")  # to any size
        members = {TFLITE_NAMES[item.filename]: archive.read(item) for item in inside}
        return {**members, SEAL: archive.comment}


def other_bytes(path: Path, length: int) -> str:
    """Return the sha256 of a file but for the seal at its end, of that length; or of a folder's."""
    if not path.is_dir():
        return files.sha256(path, path.stat().st_size - length)
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / "assets.extra" / SEAL:
            name = file.relative_to(path).as_posix()
            whole.update(f"{name}\0{files.sha256(file)}\0".encode())
    return whole.hexdigest()


def append(path: Path, name: str, content: bytes) -> None:
    """Add a member, GOLDEN or SEAL, at a file's end; nothing before it is read or written."""
    if path.is_dir():
        (path / "assets.extra" / name).write_bytes(content)
    elif path.suffix == ".onnx":  # a protocol buffer with a field appended is a protocol buffer
        text = base64.b85encode(content) if name == GOLDEN else content
        entry = field(1, name.split(".")[0].encode()) + field(2, text)
        with open(path, "ab") as file:
            file.write(field(METADATA, entry))
    else:
        with zipfile.ZipFile(path, "a") as archive:
            if name == SEAL:  # the comment is the last bytes of all, and nothing depends on it
                archive.comment = content
            else:
                archive.writestr(zipfile.ZipInfo(name), content)  # without a date


def overwrite_seal(path: Path, content: bytes) -> None:
    """Replace the seal at a file's end by another of the same length."""
    with open(path / "assets.extra" / SEAL if path.is_dir() else path, "r+b") as file:
        file.seek(-len(content), io.SEEK_END)
        file.write(content)


def mapped_file(path: Path) -> mmap.mmap:
    """Return a file's bytes, which are read when needed and unmapped with the last reference."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# ONNX's protocol buffer is read by hand: `onnx.load` holds a VGG-16 twice (1.1 GB; 11 s instead of
# 3), keeps no bytes to hash, and would be one more package that `export.verify` needs.

# Numbers of fields in onnx.proto.
GRAPH, METADATA, INITIALIZER, EXTERNAL_DATA = 7, 14, 5, 13
# Where messages hold tensors: kind of message -> number of a field -> kind of message in it.
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


def _onnx_hashes(data: memoryview) -> dict[str, str]:
    weights, graph = hashlib.sha256(), hashlib.sha256()
    for number, value in _fields(data):
        if number == GRAPH:
            for inner, part in _fields(value):
                (weights if inner == INITIALIZER else graph).update(part)
        elif number != METADATA:
            graph.update(value)
    return {"weights": weights.hexdigest(), "graph": graph.hexdigest()}


def external_data(path: Path) -> list[str]:
    """Return the other files in which an ONNX file keeps weights; [] where it keeps them inside.

    Raises ValueError where the file cannot be read to its end.
    """
    locations: set[str] = set()
    unread: list[tuple[str, memoryview]] = [("model", memoryview(mapped_file(path)))]
    while unread:
        kind, message = unread.pop()
        for number, value in _fields(message):
            if kind == "tensor" and number == EXTERNAL_DATA:
                entry = dict(_fields(value))
                if bytes(entry.get(1, b"")) == b"location":
                    locations.add(bytes(entry.get(2, b"")).decode(errors="replace"))
            elif number in NESTED.get(kind, ()):
                unread.append((NESTED[kind][number], value))
    return sorted(locations)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the content of each field of a protocol buffer.

    Raises ValueError where the data are cut short, or are no protocol buffer.
    """
    start = 0
    while start < len(data):
        key, start = _varint(data, start)
        kind = key & 7  # the wire type
        if kind == 2:
            length, start = _varint(data, start)
            end = start + length
        elif kind == 0:
            _, end = _varint(data, start)
        elif kind in (1, 5):
            end = start + (8 if kind == 1 else 4)
        else:
            raise ValueError("it is no protocol buffer")
        if end > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[start:end]
        start = end


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """Return the number that starts at an index, and the index after it."""
    value = 0
    for shift, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, start + shift + 1
    raise ValueError("it ends too early" if start + 10 > len(data) else "it is no protocol buffer")


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer: its key, its length, its content."""
    return key(number, len(content)) + content


def key(number: int, length: int) -> bytes:
    """Return what stands before the content of a protocol buffer's field: its key and length."""

    def varint(value: int) -> bytes:
        encoded = bytearray()
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*encoded, value])

    return varint(number << 3 | 2) + varint(length)


def _tflite_hashes(path: Path, data: memoryview) -> dict[str, str]:
    from ai_edge_litert import schema_py_generated as schema

    end = len(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            end = min((item.header_offset for item in archive.infolist()), default=end)
    model = schema.Model.GetRootAs(data, 0)
    buffers = (model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength()))
    arrays = [array for array in buffers if isinstance(array, np.ndarray) and len(array)]
    weights, graph = hashlib.sha256(), hashlib.sha256()
    first, offset = np.frombuffer(data, np.uint8).ctypes.data, 0
    for array in sorted(arrays, key=lambda array: array.ctypes.data):
        weights.update(array.data)
        graph.update(data[offset : array.ctypes.data - first])  # what lies between two arrays
        offset = array.ctypes.data - first + len(array)
    graph.update(data[offset:end])
    return {"weights": weights.hexdigest(), "graph": graph.hexdigest()}


def names_vggkeras(path: Path) -> bool:
    """Return whether a file, which may be cut short, names vggkeras as its writer.

    A .tflite file that ends before it could name any writer counts, too.
    """
    if path.is_dir():
        return any((path / "assets.extra" / name).exists() for name in (DESCRIPTION, GOLDEN, SEAL))
    if not path.stat().st_size:
        return False
    data = mapped_file(path)
    if path.suffix == ".onnx":
        return data[:200].find(b"vggkeras") >= 0
    return data.find(b"vggkeras ") >= 0 or _ends_before_its_writer(memoryview(data))


def _ends_before_its_writer(data: memoryview) -> bool:
    """Return whether a .tflite file ends before the description that its head points to."""
    from ai_edge_litert import schema_py_generated as schema

    if bytes(data[4:8]) != b"TFL3":
        return False
    try:
        text = schema.Model.GetRootAs(data, 0).Description()
    except (struct.error, IndexError, ValueError, TypeError):
        return True
    return bool(text) and b"vggkeras ".startswith(text)
