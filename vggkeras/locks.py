"""Locks between processes, as files that the system locks.

A lock is free as soon as its process has ended, even by kill -9. It holds between containers that
share a volume, and between machines whose file system shares its locks, as NFS does.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import json
import os
import platform
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vggkeras.errors import InputError

NAME = ".vggkeras.lock"  # in a folder that a command writes
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
NO_LOCK = -1  # the descriptor where there are none
MSVCRT_BYTE = 1 << 30  # Windows lets nobody read a locked byte: one after the text


class NoLocksError(OSError):
    """A file system that has no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep other processes from writing into a folder while the block runs.

    Yields:
        Whether the folder is new. A new one in which nothing was left is removed at the end.

    Raises:
        InputError (a ValueError): another process writes into it; the message names it.
    """
    new = missing_folders(folder)
    lock = folder / NAME
    try:
        descriptor = acquire(lock)
    except NoLocksError:
        descriptor = NO_LOCK
        warnings.warn(
            f"{folder} is on a file system without locks: make sure that no other process writes "
            "into it",
            stacklevel=3,
        )
    if descriptor is None:
        raise InputError(
            f"{folder} is being written by {_owner(lock)}: wait until it has ended, end it, or "
            "give another folder."
        )
    try:
        _write_owner(descriptor)
        yield bool(new)
    finally:
        release(lock, descriptor)
        with contextlib.suppress(OSError):  # not empty
            for made in new:
                made.rmdir()


def others_in(folder: Path) -> list[Path]:
    """Return all that lies in a locked folder, but for its lock."""
    return [path for path in folder.iterdir() if path.name != NAME]


def missing_folders(folder: Path) -> list[Path]:
    """Return the folders that have to be made for a folder to be there, the innermost first."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def acquire(path: Path) -> int | None:
    """Return the descriptor of a locked file, None where another process holds it.

    The file and its folder are made if they are not there.

    Raises:
        NoLocksError: the file system has no locks; the file is there nevertheless.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:  # who had made the folder has just removed it
            continue
        try:
            held = not _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                raise NoLocksError(*error.args) from error
            raise
        if held:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # who held it has just removed it


def acquire_own(path: Path) -> int:
    """Return the descriptor of a locked file of a name that is this process' own; -1 without locks.

    As `acquire`, but another process holds it for as long as it looks whether it is free, at most.
    """
    try:
        while (descriptor := acquire(path)) is None:
            time.sleep(1e-3)
    except NoLocksError:
        return NO_LOCK
    return descriptor


def release(path: Path, descriptor: int) -> None:
    """Remove a locked file, and free it."""
    if descriptor == NO_LOCK:
        path.unlink(missing_ok=True)
    elif os.name == "nt":  # it removes no open file, and so none that another process has locked
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        if _is_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


@functools.cache
def machine() -> str:
    """Return a name of the running system; its processes, in containers too, share its locks."""
    try:
        running = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        running = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(running.encode()).hexdigest()[:8]


def _lock(descriptor: int) -> bool:
    """Lock a file, and return whether that was possible at once."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, MSVCRT_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    if descriptor == NO_LOCK:
        return
    owner = {
        "host": platform.node(),
        "process": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())


def _owner(lock: Path) -> str:
    """Return in words who holds a lock."""
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"  # which has not written yet who it is, or has just ended
