"""What travels with an exported file: labels, preprocessing, provenance, golden answers, and the certificate.

Inside the file, in three pieces: a description as JSON (vggkeras), a few golden images with the answers to them (golden),
and the seal: the sha256 of every part, so that what was changed can be told, and of all bytes before it. In ONNX they are
metadata_props, with the labels as a JSON list under "labels"; in a .tflite file members of the zip archive at its end
(TFLite's associated files), with labels.txt, and the seal is that archive's comment; in a SavedModel files of assets.extra.
Beside the file: golden.npz and certificate.json.

Reading takes NumPy, Pillow and, for .tflite, LiteRT's own package: no onnx, no Keras.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vggkeras
from vggkeras import augment, datasets, files
from vggkeras.errors import InputError
from vggkeras.processor import this_processor
from vggkeras.runtimes import Predictor, features_path

GOLDEN = "golden.npz"
USE = (  # of features
    "Not normalised: average an image's and its mirror's and divide by their length at each scale, then average or stack "
    "the scales and divide by the length again."
)
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
INSIDE = (2, 16)  # golden images inside a file, at least and at most,
SHARE = 0.01  # of its bytes
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
ORIGINAL_BYTES = (
    1 << 18
)  # of the encoded photograph that the first one was cut from; a larger one is made smaller


def describe(
    about: dict[str, Any],
    reference: Predictor,
    model_sha256: str,
    dense: bool = False,
    precision: str = "float32",
) -> dict[str, Any]:
    """The JSON that travels inside an exported file, which gives what the reference does: probabilities or features."""
    h, w, c = reference.input_shape
    output = {"name": reference.output_name, "type": "float32", "shape": answer_shape(reference)}
    rescaled = f"smallest side to {reference.scale} px (Pillow BILINEAR), then "
    return {
        "precision": precision,
        "class_names": reference.class_names,
        "mean_rgb": about["mean_rgb"],
        "input": {"name": "images", "type": "uint8", "shape": input_shape(reference, dense), "smallest": [h, w, c], "order": "RGB" if c == 3 else "as trained"},
        "output": output | ({"use": USE} if reference.features else {}),
        "scale": reference.scale,
        "resize": rescaled + ("the whole image" if dense else f"the central {h} x {w} crop"),
        "provenance": {
            key: about[key] for key in ("arch", "recipe", "data", "seed", "epoch", "images") if key in about
        } | {"trained_with": about.get("versions"), "model_sha256": model_sha256},
        "versions": {"vggkeras": vggkeras.__version__},
        **{key: about[key] for key in ("pixels", "tolerance") if key in about},
        **({"processor": made_on.to_json()} if (made_on := this_processor()) else {}),
    }  # fmt: skip


def answer_shape(predictor: Predictor) -> list[str | int]:
    """Return the shape of what a file answers, for people and JSON."""
    return ["batch", predictor.features or len(predictor.class_names)]


def input_shape(predictor: Predictor, dense: bool) -> list[str | int]:
    """Return the shape of the images a file takes, for people and JSON."""
    h, w, c = predictor.input_shape
    return ["batch", "height", "width", c] if dense else ["batch", h, w, c]


@dataclass(frozen=True)
class Golden:
    """Images that travel inside a file, and what answers to expect; of a file of features, these are the probabilities."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int64 [N]
    probabilities: np.ndarray  # float32 [N, classes], of the Keras model
    answers: np.ndarray  # float32 [N, classes], of the file itself where it was made
    layers: dict[
        str, np.ndarray
    ]  # layer -> the mean of each channel of the Keras model's output of the first image;
    # "decode": some pixels of its photograph
    original: bytes | None  # the encoded photograph that the first image was cut from


@dataclass(frozen=True)
class Contents:
    """What an exported file says of itself."""

    about: dict[str, Any]  # the description
    golden: Golden | None
    changed: list[str]  # the parts that are not what they were when the file was sealed


def seal(path: Path, golden: Golden) -> None:
    """Put golden images and answers into a written file, and the seal behind them. Nothing before them is rewritten."""
    arrays: dict[str, Any] = {
        "probabilities": golden.probabilities,
        "answers": golden.answers,
        "labels": np.full(len(golden.images), -1, np.int64)
        if golden.labels is None
        else golden.labels,
        "shape": np.array(golden.images.shape),
        "layers": np.array(list(golden.layers)),
        "means": np.concatenate([*golden.layers.values(), np.empty(0, np.float32)]),
        "sizes": np.array([len(values) for values in golden.layers.values()], np.int64),
    }
    n, h, w, c = golden.images.shape
    if c in (1, 3):  # losslessly, one below the other
        buffer = io.BytesIO()
        Image.fromarray(golden.images.reshape(n * h, w, c).squeeze()).save(
            buffer, "PNG", optimize=True
        )
        arrays["png"] = np.frombuffer(buffer.getvalue(), np.uint8)
    else:
        arrays["images"] = golden.images
    if golden.original is not None:
        arrays["original"] = np.frombuffer(golden.original, np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _append(path, GOLDEN, buffer.getvalue())
    # First a blank one: it is as long as the seal, and so all bytes before it are what they will be.
    _append(path, SEAL, _as_bytes(dict.fromkeys(PARTS, "0" * 64)))
    content = _as_bytes(_digests(*_parts(path)))
    with open(path / "assets.extra" / SEAL if path.is_dir() else path, "r+b") as file:
        file.seek(-len(content), io.SEEK_END)
        file.write(content)


def _as_bytes(digests: dict[str, str]) -> bytes:
    return json.dumps({part: digests[part] for part in PARTS}).encode()


def golden_count(path: Path, golden: np.ndarray) -> int:
    """How many of the golden images travel inside a file."""
    least, most = INSIDE
    return min(len(golden), max(least, min(most, int(files.size(path) * SHARE / golden[0].nbytes))))


def small_original(encoded: bytes, scale: int) -> bytes:
    """An encoded photograph; as a JPEG, of twice the side it is rescaled to at most, where it is too large to travel."""
    if len(encoded) <= ORIGINAL_BYTES:
        return encoded
    image = datasets.decode(encoded)
    smaller = augment.rescale(image, min(2 * scale, *image.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(smaller).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoded_samples(image: np.ndarray) -> np.ndarray:
    """Some pixels of a decoded photograph, by which another decoder's can be compared: float32 `[192]`."""
    rows, columns = (np.linspace(0, side - 1, 8).astype(int) for side in image.shape[:2])
    return image[rows[:, None], columns].astype(np.float32).ravel()


def read(path: Path) -> Contents:
    """What a file says of itself, and which of its parts are not what they were.

    Raises:
        InputError (a ValueError): the file is of another make.
        DamagedError (a ValueError): it is ours, and cut short or past reading.
    """
    try:
        members, hashes = _parts(path)
    except UNREADABLE as error:
        if not _is_ours(path):
            raise _of_another_make(path) from error
        raise DamagedError(f"it is cut short or damaged ({error})") from error
    if "vggkeras.json" not in members and not _is_ours(path):
        raise _of_another_make(path)
    for name, what in (
        ("vggkeras.json", "description"),
        (GOLDEN, "golden answers"),
        (SEAL, "checksums"),
    ):
        if not members.get(name):
            raise DamagedError(
                f"its {what} are missing: it is cut short or damaged, or was exported by an older version"
                if what.endswith("s")
                else f"its {what} is missing: it is cut short or damaged"
            )
    try:
        about, found = json.loads(members["vggkeras.json"]), _digests(members, hashes)
        _ = (
            [about["input"][key] for key in ("name", "smallest")],
            about["output"]["name"],
            about["scale"],
            about["resize"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its description cannot be read ({error}): it is damaged") from error
    try:
        sealed = dict(json.loads(members[SEAL]))
        if missing := [part for part in PARTS if part not in sealed]:
            raise ValueError(f"none of {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"its checksums cannot be read ({error}): it is cut short or damaged"
        ) from error
    changed = [part for part in PARTS if found[part] != sealed.get(part)]
    if len(changed) > 1:  # the others say it better
        changed = [part for part in changed if part != "other bytes"]
    if not changed and members[SEAL] != _as_bytes(found):
        changed = ["checksums"]
    if "golden answers" in changed:
        return Contents(about, None, changed)
    try:
        return Contents(about, _golden(members[GOLDEN], path.suffix), changed)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DamagedError(f"its golden answers cannot be read ({error}): it is damaged") from error


class DamagedError(ValueError):
    """A file of ours that is not whole any more."""


def _of_another_make(path: Path) -> InputError:
    return InputError(
        f"{path} is not of vggkeras: there is nothing inside to verify it against; export with `python -m export`, which "
        "puts golden answers into every file."
    )


def _is_ours(path: Path) -> bool:
    """Whether a file that may be cut short names us as the one who wrote it, or ends before it would name anyone."""
    if path.is_dir():
        return any(
            (path / "assets.extra" / name).exists() for name in ("vggkeras.json", GOLDEN, SEAL)
        )
    if not path.stat().st_size:
        return False
    mapped = _mapped(path)
    if path.suffix == ".onnx":
        return mapped[:200].find(b"vggkeras") >= 0
    return mapped.find(b"vggkeras ") >= 0 or _ends_too_early(memoryview(mapped))


def _ends_too_early(data: memoryview) -> bool:
    """Whether a .tflite file, whoever made it, ends before the description that its head points to."""
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != b"TFL3":
        return False
    try:
        text = schema.Model.GetRootAs(data, 0).Description()
    except (struct.error, IndexError, ValueError, TypeError):
        return True
    return bool(text) and b"vggkeras ".startswith(text)


def _mapped(path: Path) -> mmap.mmap:
    """A file's bytes, unmapped when nothing refers to them any more: an error's frames may do so for a while."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _golden(packed: bytes, suffix: str) -> Golden:
    packed = base64.b85decode(packed) if suffix == ".onnx" else packed
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        if "png" in arrays:
            images = np.asarray(Image.open(io.BytesIO(arrays["png"].tobytes()))).reshape(
                arrays["shape"]
            )
        else:
            images = arrays["images"]
        means = np.split(arrays["means"], np.cumsum(arrays["sizes"])[:-1])
        labels = arrays["labels"]
        return Golden(
            images,
            None if (labels < 0).any() else labels,
            arrays["probabilities"],
            arrays["answers"],
            dict(zip(arrays["layers"].tolist(), means, strict=True)),
            arrays["original"].tobytes() if "original" in arrays else None,
        )


def _digests(members: dict[str, bytes], hashes: dict[str, str]) -> dict[str, str]:
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


def _parts(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What travels inside a file, by name, and the sha256 of its weights, of its graph, and of all before the seal."""
    if path.is_dir():
        return _saved_model_parts(path)
    data = memoryview(_mapped(path))
    members, hashes = _onnx_parts(data) if path.suffix == ".onnx" else _tflite_parts(path, data)
    before = data[: len(data) - len(members.get(SEAL, b""))]
    return members, hashes | {"other bytes": hashlib.sha256(before).hexdigest()}


def _append(path: Path, name: str, content: bytes) -> None:
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
    left: list[tuple[str, memoryview]] = [("model", memoryview(_mapped(path)))]
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


def save_golden(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    answers: np.ndarray,
    sizes: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    *,
    features: bool = False,
) -> None:
    """Write golden.npz: images uint8 `[N, H, W, C]`, labels int64 `[N]` (-1: unknown), probabilities float32.

    `sizes` are (images, probabilities) of other sizes, for dense files: images_HxW and probabilities_HxW. Features go to
    golden.features.npz, with features and features_HxW in the probabilities' place.
    """
    output = _answers_name(features)
    known = np.full(len(images), -1, np.int64) if labels is None else labels
    arrays: dict[str, Any] = {"images": images, "labels": known, output: answers}
    for shown, others in sizes:
        size = f"{shown.shape[1]}x{shown.shape[2]}"
        arrays |= {f"images_{size}": shown, f"{output}_{size}": others}
    with files.replacing(golden_path(folder, features=features)) as beside:
        np.savez_compressed(beside, **arrays)


def golden_path(folder: Path, *, features: bool = False) -> Path:
    """Where the golden answers of a folder's files lie: golden.npz; of those that give features, golden.features.npz."""
    return features_path(folder / GOLDEN) if features else folder / GOLDEN


def _answers_name(features: bool) -> str:
    return "features" if features else "probabilities"


def golden_sizes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, probabilities) of other sizes in golden.npz; [] where there is none."""
    return load_golden(folder)[3] if (folder / GOLDEN).is_file() else []


def load_golden(
    folder: Path, *, features: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Images, labels (None where unknown), probabilities, and (images, probabilities) of other sizes; or features.

    Raises InputError when the file is missing or damaged.
    """
    path, output = golden_path(folder, features=features), _answers_name(features)
    if not path.is_file():
        raise InputError(
            f"There is no {path} to verify against: export with `python -m export`, which writes it."
        )
    try:
        with np.load(path, allow_pickle=False) as golden:
            images, labels, answers = golden["images"], golden["labels"], golden[output]
            others = [name for name in golden.files if name.startswith("images_")]
            sizes = [(golden[name], golden[name.replace("images", output)]) for name in others]
    except Exception as error:  # a damaged zip raises what its layer raises
        raise InputError(f"{path} cannot be read ({error}): export again.") from error
    if not len(images) or len(images) != len(answers):
        raise InputError(
            f"{path} has {len(images)} images and {len(answers)} answers: export again."
        )
    return images, None if (labels < 0).any() else labels, answers, sizes
