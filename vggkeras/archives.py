"""Read .keras archives and HDF5 files that others may have written.

Nothing in them is believed: checksums are compared before a number is used, sizes are bounded
before anything is read, and a file that points to other files is refused.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras import typed
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import h5py

WEIGHTS = "model.weights.h5"  # entry of a .keras file
ABOUT = "vggkeras.json"  # another one, the model's card, that Keras itself ignores
MEMBERS = 10_000  # of an archive; a .keras file of ours has four
TEXT = 16 << 20  # bytes of all entries of a .keras file but the weights
OBJECTS, DEPTH = 100_000, 64  # of groups and data sets in an HDF5 file
FLOOR, EXPANSION = 16 << 20, 100  # an HDF5 file of n bytes may declare FLOOR + EXPANSION x n
ATTRIBUTE = 1 << 20  # bytes of a list of names

# What the readers of zip, npz, HDF5 and JSON raise where a file was cut short or changed.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)


def damaged(name: str, error: object, expected: str) -> InputError:
    """Return the error that a file is not of the kind that its reader expects."""
    reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return InputError(
        f"{name} cannot be read as {expected} ({' '.join(reason.split())[:300]}): it is damaged, "
        "cut short or of another kind; fetch it again."
    )


def check_members(archive: zipfile.ZipFile) -> None:
    """Check that an archive's names are unique, and each entry against its CRC-32, in parts.

    An entry with a comment, which none of our writers makes, hides those behind it in the archive's
    directory: one changed byte does that.

    Raises:
        ValueError: they are not, or an entry was changed; or another error of `DAMAGED`.
    """
    names = archive.namelist()
    if len(names) > MEMBERS or len(set(names)) < len(names):
        raise ValueError(f"{len(names)} entries, {len(set(names))} names")
    if any(entry.comment for entry in archive.infolist()):
        raise ValueError("an entry has a comment")
    if changed := archive.testzip():
        raise ValueError(f"the checksum of {changed} in it is wrong")


# ---- .keras -------------------------------------------------------------------------------------


def read_keras_archive(path: Path) -> tuple[Any, Any]:
    """Return the JSON of config.json, and of the card ({} without one), of a .keras file.

    The whole file is checked first: every checksum, and how large its entries become.

    Raises:
        InputError (a ValueError): another kind of file, a damaged one, or one that would inflate.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a .keras file (they are zip archives): it is damaged or of another "
            "kind; save it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            texts = sum(i.file_size for i in archive.infolist() if i.filename != WEIGHTS)
            if texts > TEXT:
                raise InputError(
                    f"{path} inflates to {texts / 2**20:,.0f} MB beside its weights: expected "
                    f"{TEXT >> 20} MB or less; fetch it again from whom you trust."
                )
            if archive.getinfo(WEIGHTS).compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{WEIGHTS} in it is compressed, which Keras does not do")
            check_members(archive)
            described = typed.parse(archive.read(ABOUT)) if ABOUT in archive.namelist() else {}
            return typed.parse(archive.read("config.json")), described
    except InputError:
        raise
    except DAMAGED as error:
        raise damaged(str(path), error, "a .keras file") from error


# ---- HDF5 ---------------------------------------------------------------------------------------


@contextmanager
def opened_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, or that in a .keras file, without a copy of it. It is not checked."""
    import h5py

    zipped = zipfile.is_zipfile(path)
    with (
        _StoredEntry(path, WEIGHTS) if zipped else nullcontext(path) as file,
        h5py.File(file, "r") as h5,
    ):
        yield h5


@contextmanager
def checked_h5(path: Path, name: str) -> Iterator[tuple[h5py.File, dict[str, tuple[int, ...]]]]:
    """Open an HDF5 file, or that in a .keras file, of which every part was looked at first.

    Yields:
        The file, and the shape of every data set by its path.

    Raises:
        InputError (a ValueError): a damaged file; a link or a data set that leads out of it, or an
            object under two names; data sets that are larger than the file can hold, or not of
            numbers.
    """
    try:
        with opened_h5(path) as file:
            yield file, _shapes(file, path.stat().st_size)
    except InputError:
        raise
    except _OutsideError as error:
        raise InputError(
            f"{name}: {error}, which would read something else than this file's own numbers: it "
            "was refused and nothing of it was read. Save the weights again, in one file."
        ) from error
    except DAMAGED as error:
        raise damaged(name, error, "a weights file of Keras") from error


def names_in(item: Any, attribute: str) -> list[str]:
    """Return the names that an attribute of a group lists, [] without it.

    Raises:
        ValueError: it is too large.
    """
    if attribute not in item.attrs:
        return []
    stored = item.attrs.get_id(attribute)
    if math.prod(stored.shape) * max(1, stored.dtype.itemsize) > ATTRIBUTE:
        raise ValueError(f"the attribute {attribute} of {item.name} is too large")
    values = item.attrs[attribute]
    values = [values] if isinstance(values, str | bytes) else list(values)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


class _OutsideError(ValueError):
    """A part of a file leads out of it, or is not what it seems to be."""


def _shapes(file: h5py.File, size: int) -> dict[str, tuple[int, ...]]:
    """Return path -> shape of all data sets, after a look at every link on the way to them."""
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    seen = {h5py.h5o.get_info(file.id).addr}
    left = FLOOR + EXPANSION * size
    while groups:
        prefix, group = groups.pop()
        for key in group:
            path = f"{prefix}/{key}"
            link = group.get(key, getclass=True, getlink=True)
            if link is not h5py.HardLink:
                raise _OutsideError(f"{path} is a link ({link.__name__})")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise _OutsideError(f"{path} is another name of what has one already")
            seen.add(address)
            if len(seen) > OBJECTS or path.count("/") > DEPTH:
                raise ValueError(f"more than {OBJECTS} objects, or {DEPTH} groups in each other")
            if isinstance(item, h5py.Group):
                groups.append((path, item))
            elif isinstance(item, h5py.Dataset):
                left -= _bytes(path, item)
                if left < 0:
                    raise _OutsideError(f"{path} {list(item.shape)} is larger than the file")
                shapes[path] = tuple(item.shape)
    return dict(sorted(shapes.items()))


def _bytes(path: str, dataset: h5py.Dataset) -> int:
    """Return how many bytes reading a data set takes."""
    if dataset.external or dataset.is_virtual:  # asked before its shape, which may open the others
        raise _OutsideError(f"{path} is stored in other files")
    number = dataset.dtype
    if number.kind not in "biufV" or number.names or number.subdtype or dataset.shape is None:
        raise _OutsideError(f"{path} is of type {number}")
    size = math.prod(dataset.shape) * number.itemsize
    stored = dataset.id.get_storage_size()
    if stored < (1 if dataset.chunks else size) and size:
        raise ValueError(f"{path} {list(dataset.shape)} stores {stored:,} bytes")
    return max(size, math.prod(dataset.chunks or ()) * number.itemsize)


class _StoredEntry(io.RawIOBase):
    """An uncompressed entry of a zip archive, for h5py to read without a copy of it."""

    def __init__(self, path: Path, entry: str) -> None:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry} in it is compressed, which Keras does not do")
        self._file = open(path, "rb")  # noqa: SIM115 (closed below)
        self._file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", self._file.read(4))
        self._start = info.header_offset + 30 + name_length + extra_length
        self._size = info.file_size
        self.seek(0)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = (0, self.tell(), self._size)[whence]
        return self._file.seek(self._start + origin + offset) - self._start

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
