"""Hostile .keras files: code, bombs, wrong types, archives that no writer makes."""

from __future__ import annotations

import base64
import json
import marshal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damage import with_node

CONFIG, CARD, WEIGHTS = "config.json", "vggkeras.json", "model.weights.h5"
GIGABYTES = 3 << 30
UNASKED = "data to be fetched"
Members = dict[str, bytes]


@dataclass(frozen=True)
class Hostile:
    """One file: what it is, and how it is written from a good one's members."""

    name: str
    write: Callable[[Members, Path], None]


def _edited(member: str, path: tuple[Any, ...], value: Any) -> Callable[[Members, Path], None]:
    def write(members: Members, target: Path) -> None:
        content = with_node(json.loads(members[member]), path, value)
        write_zip(members | {member: json.dumps(content).encode()}, target)

    return write


def _replaced(member: str, content: bytes | None) -> Callable[[Members, Path], None]:
    def write(members: Members, target: Path) -> None:
        kept = {key: v for key, v in members.items() if key != member}
        write_zip(kept if content is None else kept | {member: content}, target)

    return write


def write_zip(members: Members, target: Path) -> None:
    """Write members, stored as Keras stores them."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _bomb(member: str, start: bytes, filler: bytes) -> Callable[[Members, Path], None]:
    """Return a writer of a member that inflates to gigabytes."""

    def write(members: Members, target: Path) -> None:
        write_zip({key: v for key, v in members.items() if key != member}, target)
        block = filler * (1 << 20)
        with (
            zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(member, "w", force_zip64=True) as file,
        ):
            file.write(start)
            for _ in range(GIGABYTES // len(block)):
                file.write(block)

    return write


def _function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def _layer(module: str, class_name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": class_name,
        "config": {"name": "mean_rgb", **config},
        "registered_name": class_name,
        "name": "mean_rgb",
        "inbound_nodes": [],
    }


def _code(canary: Path) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Yield (what, where in config.json, what stands there) of files that would run code."""
    touch = f"touch {canary}"
    source = compile(f"lambda x: open({str(canary)!r}, 'w')", "", "eval").co_consts[0]
    marshalled = base64.b64encode(marshal.dumps(source)).decode()
    lambda_config = {"class_name": "__lambda__", "config": {"value": [marshalled, None, None]}}
    layer = ("config", "layers", 1)
    yield "a Lambda layer", layer, _layer("keras.layers", "Lambda", function=lambda_config)
    system = _function("os", "system")
    yield "Lambda of os.system", layer, _layer("keras.layers", "Lambda", function=system)
    for module, name, config in (
        ("os", "system", {"command": touch}),
        ("subprocess", "Popen", {"args": touch, "shell": True}),
        ("builtins", "exec", {"source": f"open({str(canary)!r}, 'w')"}),
        ("keras.utils", "get_file", {"fname": str(canary), "origin": "file:///etc/passwd"}),
        ("keras.src.utils.file_utils", "get_file", {"origin": "file:///etc/hostname"}),
        ("pickle", "loads", {"data": "cos\nsystem\n"}),
        ("numpy", "load", {"file": "/etc/passwd", "allow_pickle": True}),
        ("tensorflow", "io.write_file", {"filename": str(canary), "contents": "x"}),
    ):
        yield f"a layer {module}.{name}", layer, _layer(module, name, **config)
    for where, value in (
        ("activation", _function("os", "system")),
        ("activation", {"class_name": "__lambda__", "config": {"value": [marshalled, None, None]}}),
        ("activation", _function("keras.config", "enable_unsafe_deserialization")),
        ("kernel_initializer", _function("subprocess", "getoutput")),
        ("kernel_regularizer", _layer("subprocess", "Popen", args=touch, shell=True)),
        ("dtype", _layer("os", "system", command=touch)),
    ):
        yield f"{where} of a convolution", ("config", "layers", 2, "config", where), value
    vocabulary = _layer("keras.layers", "StringLookup", vocabulary="/etc/passwd")
    yield "a vocabulary from a file", layer, vocabulary
    saved_model = _layer("keras.layers", "TFSMLayer", filepath="/tmp", call_endpoint="serve")
    yield "a TFSMLayer", layer, saved_model
    yield "the model a function", ("module",), "os"


def _config_edits() -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Yield edits of config.json that ask for too much, or are of other types."""
    filters = ("config", "layers", 2, "config", "filters")
    yield (
        "images of 10^9 px",
        ("config", "layers", 0, "config", "batch_shape"),
        [
            None,
            10**9,
            10**9,
            3,
        ],
    )
    yield (
        "images of 10^5 px",
        ("config", "layers", 0, "config", "batch_shape"),
        [
            None,
            10**5,
            10**5,
            3,
        ],
    )
    yield "a shape of text", ("config", "layers", 0, "config", "batch_shape"), "text"
    yield "10^12 filters", filters, 10**12
    yield "-1 filters", filters, -1
    yield "filters of text", filters, "\x1b[31m[/b]"
    yield "no layers", ("config", "layers"), []
    yield "layers of text", ("config", "layers"), "text"
    yield "a layer twice", ("config", "layers", 3, "config", "name"), "block1_conv1"
    yield "an offset of text", ("config", "layers", 1, "config", "offset"), "text"
    yield "a mean of NaN", ("config", "layers", 1, "config", "offset"), [float("nan")] * 3


def _card_edits() -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Yield edits of the card."""
    yield "class names a number", ("class_names",), 7
    yield "class names numbers", ("class_names",), [1, 2]
    yield "class names too few", ("class_names",), ["0"]
    yield "class names with codes", ("class_names",), ["\x1b[2J[/b]"] * 10
    yield "a scale of text", ("scale",), "text"
    yield "a scale of 10^12", ("scale",), 10**12
    yield UNASKED, ("data",), "tfds:mnist"
    yield "a recipe of wrong types", ("recipe", "epochs"), "many"
    yield "versions a list", ("versions",), [1]
    yield "a mean of objects", ("mean_rgb",), [{}]


def hostile_keras(canary: Path) -> list[Hostile]:
    """Return 56 hostile .keras files; what would run code creates `canary`."""
    files = [Hostile(name, _edited(CONFIG, path, v)) for name, path, v in _code(canary)]
    files += [Hostile(name, _edited(CONFIG, path, v)) for name, path, v in _config_edits()]
    files += [Hostile(name, _edited(CARD, path, v)) for name, path, v in _card_edits()]
    files += [
        Hostile("a config of gigabytes", _bomb(CONFIG, b"{", b" ")),
        Hostile("a card of gigabytes", _bomb(CARD, b"{", b" ")),
        Hostile("metadata of gigabytes", _bomb("metadata.json", b"{", b" ")),
        Hostile("weights of gigabytes", _bomb(WEIGHTS, b"\x89HDF\r\n\x1a\n", b"\0")),
        Hostile("a card that is a list", _replaced(CARD, b"[1]")),
        Hostile("a config that is a list", _replaced(CONFIG, b"[1]")),
        Hostile("a config that is no JSON", _replaced(CONFIG, b"\xff\xfe")),
        Hostile("a card that is no JSON", _replaced(CARD, b"\xff\xfe")),
        Hostile("a config nested too deep", _replaced(CONFIG, b"[" * 100_000)),
        Hostile("a card nested too deep", _replaced(CARD, b'{"a":' * 100_000)),
        Hostile("no config", _replaced(CONFIG, None)),
        Hostile("no weights", _replaced(WEIGHTS, None)),
        Hostile("weights that are none", _replaced(WEIGHTS, b"text")),
        Hostile("a member outside", _replaced(f"../../../../../{canary}", b"x")),
        Hostile("a member at an absolute path", _replaced(str(canary), b"x")),
        Hostile("assets outside", _replaced(f"assets/../../../../../../{canary}", b"x")),
    ]
    return files
