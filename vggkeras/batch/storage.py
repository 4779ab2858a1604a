"""Open and list files, here or in an object store (s3://, gs://, …, as pyarrow and fsspec have)."""

from __future__ import annotations

import functools
import glob
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vggkeras.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

URL = re.compile(r"([a-z][a-z0-9+.-]+)://([^/]*)")  # C:\ is none
OF_ARROW = ("file", "s3", "gs", "gcs")  # others are fsspec's
WILD = re.compile(r"[*?[]")
NOT_STATED = -1  # the size of a file that is not there, or that was not asked for


class File(NamedTuple):
    """A file, and by what it is seen to have changed."""

    path: str  # or URL
    size: int  # bytes, or NOT_STATED
    mtime: int  # ns since 1970; 0 where the store does not say


def is_url(place: str | os.PathLike) -> bool:
    """Return whether a place is a URL, not a path."""
    return URL.match(str(place)) is not None


def fetched(source: str | Path | bytes) -> str | Path | bytes:
    """Return the bytes that a URL names; bytes and paths as they are.

    Raises:
        OSError: there is no such file.
        InputError (a ValueError): it has more bytes than an image may.
    """
    from vggkeras.data.decoding import MAX_BYTES

    if isinstance(source, bytes) or not is_url(source):
        return source
    with opened(str(source)) as file:
        if file.size() > MAX_BYTES:
            raise InputError(f"has more than {MAX_BYTES / 1e6:.0f} MB")
        return file.read()


def opened(place: str) -> Any:
    """Open the file at a path or a URL to read from anywhere in it (pyarrow's NativeFile)."""
    system, path = _at(place)
    return system.open_input_file(path)


def _at(place: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or a URL, and its path there."""
    from pyarrow import fs

    match = URL.match(place)
    if match is None:
        return fs.LocalFileSystem(), place
    scheme, host = match[1], match[2]
    after = place[match.end(1) + len("://") :]
    if scheme in ("http", "https"):  # fsspec's paths of them are the URLs
        after = place
    return _file_system(scheme, host), f"/{after}" if scheme == "memory" else after


@functools.cache
def _file_system(scheme: str, host: str) -> FileSystem:
    """Return the file system of URLs; credentials and endpoints are those of the environment."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        if scheme in OF_ARROW:
            system, _ = fs.FileSystem.from_uri(f"{scheme}://{host or '/'}")
            return system
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError, OSError, pa.ArrowException) as error:
        raise InputError(
            f"{scheme}://{host} cannot be opened ({str(error)[:200]}): expected a URL that pyarrow "
            f"({', '.join(OF_ARROW)}) or fsspec has; for the latter pip install 'vggkeras[scale]' "
            "and the package that it names."
        ) from error


def state(place: str) -> File:
    """Return a file's size and time; `NOT_STATED` where there is no regular file."""
    if not is_url(place):
        try:
            found = os.stat(place)
        except OSError:
            return File(place, NOT_STATED, 0)
        if not stat.S_ISREG(found.st_mode):
            return File(place, NOT_STATED, 0)
        return File(place, found.st_size, found.st_mtime_ns)
    info = _info(place)
    return _file(place, info) if info.is_file else File(place, NOT_STATED, 0)


def is_folder(place: str) -> bool:
    """Return whether there is a folder at a path or a URL."""
    from pyarrow.fs import FileType

    return _info(place).type is FileType.Directory if is_url(place) else os.path.isdir(place)


def _info(url: str) -> FileInfo:
    system, path = _at(url)
    try:
        return system.get_file_info(path.rstrip("/") or "/")
    except OSError as error:  # no such bucket, no right to read it, no network
        raise InputError(f"{url} cannot be read ({str(error)[:200]}).") from error


def _file(url: str, info: FileInfo) -> File:
    return File(url, info.size if info.size is not None else NOT_STATED, info.mtime_ns or 0)


def within(folder: str) -> Iterator[File]:
    """Yield all files in a folder and in its folders, in the order of their paths' parts.

    None that is hidden: names that begin with a dot, and, here, links to folders.
    """
    if not is_url(folder):
        yield from map(state, paths_within("" if folder == "." else folder))
        return
    from pyarrow.fs import FileSelector

    system, path = _at(folder)
    start = folder[: len(folder) - len(path.lstrip("/"))]

    def listed(inside: str) -> Iterator[File]:
        found = system.get_file_info(FileSelector(inside))
        for info in sorted(found, key=lambda info: info.base_name):
            if info.base_name.startswith("."):
                continue
            if info.is_file:
                yield _file(start + info.path.lstrip("/"), info)
            else:
                yield from listed(info.path)

    yield from listed(path.rstrip("/") or "/")


def paths_within(folder: str) -> Iterator[str]:
    """Yield the paths of `within`, of a folder here."""
    with os.scandir(folder or ".") as entries:
        names = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if not entry.name.startswith(".")
        )
    for name, is_folder in names:
        path = os.path.join(folder, name)
        if is_folder:
            yield from paths_within(path)
        elif not os.path.isdir(path):  # a link to a folder may lead back
            yield path


def matching(place: str) -> list[str]:
    """Return a place itself, or, sorted, what a pattern with *, ** and ? names.

    Raises:
        InputError (a ValueError): a pattern that names nothing.
    """
    if not WILD.search(place) or (not is_url(place) and os.path.exists(place)):
        return [place]
    if not is_url(place):
        found = sorted(glob.glob(place, recursive=True))
        if "**" in place:  # it names folders, too, whose files it names anyway
            found = [path for path in found if not os.path.isdir(path)]
    else:
        folder = place[: WILD.search(place).start()].rpartition("/")[0]  # type: ignore[union-attr]
        parts = re.split(r"(\*\*/?|\*|\?)", place)
        words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        pattern = re.compile("".join(words.get(part) or re.escape(part) for part in parts))
        found = [file.path for file in within(folder) if pattern.fullmatch(file.path)]
    if not found:
        raise InputError(f"{place} names no file: expected a pattern of files that are there.")
    return found
