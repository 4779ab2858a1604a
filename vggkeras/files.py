"""Write files atomically (the old one or the new one, never half of one), and hash them."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkeras import exchange, locks, typed
from vggkeras.errors import InputError

# What is half written is .partial-MACHINE-PROCESS-RANDOM-NAME; while its process lives, a file
# .partial-MACHINE-PROCESS-RANDOM beside it is locked: the claim.
PARTIAL = ".partial-"
CLAIM = re.compile(r"\.partial-[0-9a-f]{8}-\d+-[0-9a-f]{8}")
ASIDE = "~"  # instead of the last -: a folder that is being replaced
DECIDED = "="  # after a claim: the list of what takes its place, even if this process is killed
FOREIGN_SECONDS = 24 * 3600  # after which another machine's process has certainly ended
FINISH_SECONDS = 10.0  # in which a process that lives has renamed its files
MODELS = (".keras", ".onnx", ".tflite")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or a folder to.

    It is renamed into place at the end, and removed on any failure.
    """
    with claimed(path.parent, _claim()) as claim:
        beside = path.with_name(f"{claim}-{path.name}")
        yield beside
        move(beside, path)


@contextmanager
def claimed(folder: Path, claim: str | None = None) -> Iterator[str]:
    """Give the beginning of names in a folder that are this process' own while the block runs.

    No other process removes what has such a name; at the end it is removed here. The folder is made
    if it is not there, and what processes that were killed had half written is swept out of it.

    Args:
        folder: where to write.
        claim: how the names begin; by default as those of `partial`.
    """
    claim = claim or _process_claim(os.getpid())
    lock, new = folder / claim, locks.missing_folders(folder)
    sweep(folder)
    descriptor = locks.acquire_own(lock)
    try:
        for made in new:
            _sync(made.parent)
        yield claim
    finally:
        _clear(lock)
        locks.release(lock, descriptor)


def partial(path: Path) -> Path:
    """Return where this process writes what will be renamed to `path`; see `claimed`."""
    return path.with_name(f"{_process_claim(os.getpid())}-{path.name}")


def _claim() -> str:
    return f"{PARTIAL}{locks.machine()}-{os.getpid()}-{secrets.token_hex(4)}"


@functools.cache
def _process_claim(process: int) -> str:
    return _claim()


def sweep(folder: Path) -> None:
    """Remove what processes that have ended had half written into a folder.

    A process of this machine, in whatever container, has ended where its claim is not locked. Of
    one of another machine that is not certain, as its locks may not reach here: what it left is
    removed after a day. A folder that was moved aside to be replaced is put back if its place is
    empty; and what `move_all` had begun is finished.
    """
    claims: dict[str, list[Path]] = {}
    for left in folder.glob(f"{PARTIAL}*"):
        if named := CLAIM.match(left.name):
            claims.setdefault(named[0], []).append(left)
        elif _age([left]) > FOREIGN_SECONDS:  # from an earlier version, whose names say less
            remove(left)
    for claim, names in claims.items():
        # Another user's; or its process has just ended, and has removed it itself.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            _sweep(folder / claim, names)


def _sweep(lock: Path, names: Sequence[Path]) -> None:
    """Remove what begins with the name of a lock, if its process has ended."""
    is_old = _age(names) > FOREIGN_SECONDS
    is_here = lock in names and lock.name.startswith(f"{PARTIAL}{locks.machine()}-")
    if not is_here and not is_old:
        return
    try:
        descriptor = locks.acquire(lock) if lock in names else locks.NO_LOCK
    except locks.NoLocksError:
        descriptor = locks.NO_LOCK if is_old else None
    if descriptor is None:
        return
    _clear(lock)
    locks.release(lock, descriptor)


def _age(paths: Sequence[Path]) -> float:
    """Return the seconds since the youngest was written; 0 where one has just been removed."""
    try:
        return time.time() - max(path.lstat().st_mtime for path in paths)
    except FileNotFoundError:
        return 0.0


def _clear(lock: Path) -> None:
    """Finish what was decided, put back what was moved aside, and remove what was half written."""
    _finish(lock.with_name(lock.name + DECIDED))
    for left in lock.parent.glob(f"{lock.name}?*"):
        claim, aside, name = left.name.partition(ASIDE)
        if aside and CLAIM.fullmatch(claim) and not os.path.lexists(left.with_name(name)):
            os.rename(left, left.with_name(name))
        else:
            remove(left)


def _finish(decided: Path) -> None:
    """Move what `move_all` has listed into its place, unless it is there already.

    Under its old name there is then nothing, or the folder that it was exchanged with.
    """
    if not decided.exists():
        return
    try:
        listed = [
            (decided.with_name(name), decided.with_name(place), digest)
            for name, place, digest in typed.parse(decided.read_bytes())
        ]
    except (ValueError, TypeError) as error:
        raise InputError(f"{decided} is damaged ({error}): remove it and export again.") from error
    for beside, path, digest in listed:
        if beside.exists() and (digest is None or sha256(beside) == digest):
            move(beside, path)
    decided.unlink()


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


@dataclass(frozen=True)
class Kind:
    """What a command writes: a file of it may be overwritten by another one."""

    name: str  # in words
    holds: Callable[[Path], bool]  # whether a file is of it; any error means that it is not


def check_file(path: Path, kind: Kind) -> None:
    """Check that a path can be that of a file to write, before long work is done for it.

    A file that is there is overwritten only if it is of the kind that is to be written, so that no
    file of a run, an export or the user is lost.

    Args:
        path: where to write.
        kind: what.

    Raises:
        InputError (a ValueError): it cannot; a file of another kind is there; it has the name of a
            model, which nothing overwrites; or it would lie inside a SavedModel or a run's resume/.
    """
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder: expected the path of a file to write.")
    if path.suffix in MODELS:
        raise InputError(
            f"{path} is a model's name: expected that of another file to write; no model is "
            "overwritten."
        )
    for folder in path.resolve().parents:
        is_resume = folder.name == "resume" and (folder.parent / "run.json").exists()
        if is_resume or (folder / "saved_model.pb").exists():
            raise InputError(
                f"{path} would lie in {folder}, which is no place for other files: give another "
                "path."
            )
    if path.exists() and not (path.is_file() and _holds(path, kind)):
        raise InputError(
            f"{path} is there already and is not {kind.name}: only such a file is overwritten; "
            "give another path."
        )
    check_writable(path.parent)


def _holds(path: Path, kind: Kind) -> bool:
    try:
        return kind.holds(path)
    except Exception:  # readers of damaged files raise what their layers raise
        return False


def json_with(*keys: str) -> Callable[[Path], bool]:
    """Return whether a file is JSON whose object, or first object of its list, has these keys."""

    def has_keys(path: Path) -> bool:
        value = json.loads(path.read_text(encoding="utf-8"))
        first = value[0] if isinstance(value, list) else value
        return set(keys) <= set(first)

    return has_keys


def page_of(title: str) -> Callable[[Path], bool]:
    """Return whether a file is one of our pages, by words of its title."""

    def has_title(path: Path) -> bool:
        with open(path, encoding="utf-8") as page:
            found = re.search("(?s)<title>.*?</title>", page.read(1 << 16))
        return found is not None and title in found[0] and "vggkeras" in found[0]

    return has_title


def move(beside: Path, path: Path) -> None:
    """Rename a file or a folder into the place of another one, or of nothing.

    Its content is on the disk before its new name is. A folder takes another one's place in one
    step where the system can exchange two; elsewhere the old one is moved aside first, and the next
    command that writes there puts it back if this one was killed in between.

    Args:
        beside: from `replacing` or `partial`.
        path: where it belongs, in the same folder.

    Raises:
        IsADirectoryError: a file would take a folder's place, and everything in it.
    """
    if path.is_dir() and not beside.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to be replaced")
    _sync_all(beside)
    if not path.is_dir() or path.is_symlink():
        os.replace(beside, path)
    elif not exchange.exchanged(beside, path):  # a full folder cannot be renamed over
        claim = CLAIM.match(beside.name)
        assert claim, beside
        aside = path.with_name(f"{claim[0]}{ASIDE}{path.name}")
        os.rename(path, aside)
        os.rename(beside, path)
        beside = aside
    _sync(path.parent)
    remove(beside)


def move_all(moves: Mapping[Path, Path]) -> None:
    """Move several files or folders into their places, all or none.

    If this process is killed before they are listed in the folder, none is moved; if later, the
    next process that writes there, or asks for it by `finish`, moves the rest.

    Args:
        moves: where each belongs, by what `partial` gave, all in one folder of `claimed`.
    """
    first = next(iter(moves))
    claim = CLAIM.match(first.name)
    assert claim, first
    for beside in moves:
        _sync_all(beside)
    listed = [
        (beside.name, path.name, sha256(beside) if beside.is_dir() else None)
        for beside, path in moves.items()
    ]
    written = first.with_name(f"{claim[0]}-{DECIDED}")
    written.write_text(json.dumps(listed))
    decided = first.with_name(claim[0] + DECIDED)
    move(written, decided)
    _finish(decided)


def finish(folder: Path) -> None:
    """Move the rest of what a process had begun to move all together when it was killed.

    One that is still at it is waited for.

    Raises:
        InputError (a ValueError): this process cannot.
    """
    until = time.monotonic() + FINISH_SECONDS
    while begun := list(folder.glob(f"{PARTIAL}*{DECIDED}")):
        sweep(folder)
        if time.monotonic() > until:
            raise InputError(
                f"{folder} holds files of two exports: one was cut off while its files took their "
                f"places, and {begun[0].name} says which ones are left. Run the command again "
                "where that folder can be written, on the machine that exported; or export again."
            )
        time.sleep(1e-3)


def _sync_all(path: Path) -> None:
    """Wait until a file is on the disk, or a folder with all that is in it."""
    if path.is_symlink():
        return
    if path.is_dir():
        for inside in path.iterdir():
            _sync_all(inside)
    _sync(path)


def _sync(path: Path) -> None:
    windows, is_folder = os.name == "nt", path.is_dir()
    if is_folder and windows:  # which cannot
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno != errno.EINVAL:  # of file systems that cannot
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as beside:
        # In JSON the escape of what is not UTF-8 in a path is read as what it was.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a value as our JSON files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sha256(path: Path, length: int | None = None) -> str:
    """Return the SHA-256 of a file, or of a folder's relative paths and contents, in order.

    Args:
        path: the file or folder.
        length: bytes of the file to read; all by default.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_dir():
            continue
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        unread = file.stat().st_size if length is None else length
        with open(file, "rb") as stream:
            while chunk := stream.read(min(unread, 1 << 20)):
                digest.update(chunk)
                unread -= len(chunk)
    return digest.hexdigest()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if not file.is_dir())
