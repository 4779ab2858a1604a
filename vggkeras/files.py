"""Write files atomically (the old one or the new one, never half of one), and hash them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vggkeras.errors import InputError

PARTIAL = ".partial-"  # then the process' number, then the name
MODELS = (".keras", ".onnx", ".tflite")
CERTIFICATE = "certificate.json"
CERTIFIED = (  # what every entry of a certificate has
    "sha256",
    "bytes",
    "runtime",
    "version",
    "input",
    "output",
    "tolerance",
    "model_sha256",
    "passed",
    "failures",
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to.

    It is renamed into place at the end, and removed on any failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    beside = partial(path)
    try:
        yield beside
        move(beside, path)
    finally:
        remove(beside)


def partial(path: Path) -> Path:
    """Return where this process writes what will be renamed to `path`."""
    return path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")


def sweep(folder: Path) -> None:
    """Remove what processes that were killed had half written into a folder."""
    import psutil  # here, as those who only read files can do without it

    for leftover in folder.glob(f"{PARTIAL}*"):
        process = leftover.name.removeprefix(PARTIAL).split("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            remove(leftover)


def check_writable(folder: Path) -> None:
    """Check that a folder can be made and written to, before long work is done for it.

    Raises:
        InputError (a ValueError): it cannot.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        obstacle = "read-only" if existing.is_dir() else "a file, not a folder"
        raise InputError(
            f"{folder} cannot be written: {existing} is {obstacle}; give another path."
        )


def check_file(path: Path) -> None:
    """Check that a path can be that of a file to write, before long work is done for it.

    Raises:
        InputError (a ValueError): it cannot, or it has the name of a model, which nothing
            overwrites.
    """
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder: expected the path of a file to write.")
    if path.suffix in MODELS:
        raise InputError(
            f"{path} is a model's name: expected that of another file to write; no model is "
            "overwritten."
        )
    check_writable(path.parent)


def move(beside: Path, path: Path) -> None:
    """Rename a file or a folder into the place of another one, or of nothing.

    Raises:
        IsADirectoryError: a file would take a folder's place, and everything in it.
    """
    if path.is_dir() and not beside.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to be replaced")
    if path.is_dir() and not path.is_symlink():  # a full folder cannot be renamed over
        old = partial(path.with_name(f"old-{path.name}"))
        os.rename(path, old)
        os.rename(beside, path)
        shutil.rmtree(old)
    else:
        os.replace(beside, path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_certificate(folder: Path) -> dict[str, dict[str, Any]]:
    """Return an export's certificate.json: file name -> entry; {} where there is none.

    Raises:
        InputError (a ValueError): it is damaged.
    """
    path = folder / CERTIFICATE
    if not path.is_file():
        return {}
    try:
        certificate = json.loads(path.read_text(encoding="utf-8"))
        for record in certificate.values():
            missing = set(CERTIFIED) - set(record)
            if missing:
                raise ValueError(f"an entry has no {', '.join(sorted(missing))}")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it and export again.") from error
    return certificate


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative paths and contents, in order."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_dir():
            continue
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if not file.is_dir())
