"""Images that are files: given by name, in folders, or in .csv and .parquet lists."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from vggkeras.batch import storage
from vggkeras.batch.storage import File
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BUFFER = 1 << 20  # bytes of a column of a Parquet file that are read at once
ROWS_AT_ONCE = 4096  # of a list
ID = ("id", "image_id", "key")  # names of the column of ids, where a list has one


class Entry(NamedTuple):
    """An image that is a file."""

    image: str  # its id
    file: File


class List(NamedTuple):
    """A list of images, and its columns."""

    place: str
    image: str
    id: str | None
    holds_bytes: bool

    @property
    def words(self) -> str:
        """Say which columns are read."""
        what = "bytes" if self.holds_bytes else "paths"
        otherwise = "FILE:ROW" if self.holds_bytes else self.image
        return f"{what} of images from column {self.image}, ids from {self.id or otherwise}"


def image_files(paths: Sequence[Path], unread: Counter[str] | None = None) -> list[str]:
    """Return files as given, and of folders all image files within, sorted; none that is hidden.

    Args:
        paths: files and folders.
        unread: counts the other files of the folders, by suffix.

    Raises:
        InputError (a ValueError): no such file, a folder without images, a name that is not UTF-8,
            or no path at all.
    """
    from vggkeras.data.decoding import check_names

    images = [file.path for path in paths for file in _files(str(path), unread)]
    if not images:
        raise InputError("Expected image files or folders; received none.")
    check_names(images)
    return images


def _files(place: str, unread: Counter[str] | None) -> Iterator[File]:
    """Yield a file, or all image files in a folder."""
    from vggkeras.data import formats, reading

    if not storage.is_folder(place):
        file = storage.state(place)
        if file.size == storage.NOT_STATED:
            raise InputError(f"No image at {place}: expected a {formats.NAMES} file, or a folder.")
        yield file
        return
    others: Counter[str] = Counter()
    is_empty = True
    for file in storage.within(place):
        suffix = os.path.splitext(file.path)[1].lower()
        if suffix in formats.SUFFIXES:
            is_empty = False
            yield file
        else:
            others[suffix] += 1
    if is_empty:
        also = f"; {reading.unread(others)}" if others else ""
        raise InputError(f"{place} has no images ({', '.join(formats.SUFFIXES)}){also}.")
    if unread is not None:
        unread += others


def is_of_many(place: str) -> bool:
    """Return whether a place is neither an image file nor a folder, but may name many images."""
    is_pattern = bool(storage.WILD.search(place)) and not os.path.exists(place)
    return is_pattern or storage.is_url(place) or is_list(place)


def is_list(place: str) -> bool:
    """Return whether a place is a .csv or .parquet file."""
    from vggkeras.data import lists

    return place.lower().endswith(lists.SUFFIXES) and not storage.is_folder(place)


def read_list(place: str) -> List:
    """Return a list's columns; raises InputError where it is no list, or has none of images."""
    import pyarrow as pa

    from vggkeras.data import lists

    schema = None
    if place.lower().endswith(".parquet"):
        with parquet_file(place) as file:
            schema = file.schema_arrow
        names = schema.names
    else:
        with _text(place) as (_, first, separator):
            names = next(csv.reader([first], delimiter=separator), [])
    kinds = {"image": lists.COLUMNS["image"], "id": ID}
    found = lists.find_columns(place, names, kinds, ["image"])
    image, id_column = found["image"], found.get("id")
    if schema is None:
        return List(place, image, id_column, holds_bytes=False)
    column = schema.field(image).type
    if pa.types.is_dictionary(column):
        column = column.value_type
    if column in (pa.string(), pa.large_string(), pa.string_view()):
        return List(place, image, id_column, holds_bytes=False)
    if column in (pa.binary(), pa.large_binary(), pa.binary_view()) or pa.types.is_struct(column):
        return List(place, image, id_column, holds_bytes=True)
    raise InputError(
        f"{place}: column {image} is of type {column}: expected paths (string) or the images' "
        "bytes (binary, or as Hugging Face datasets writes them)."
    )


@contextmanager
def parquet_file(place: str) -> Iterator[ParquetFile]:
    """Open a Parquet file, here or elsewhere; no more than a page of a column is then in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with (
            storage.opened(place) as file,
            parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as table,
        ):
            yield table
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{place} cannot be read as .parquet ({str(error)[:200]}).") from error


@contextmanager
def _text(place: str) -> Iterator[tuple[IO[str], str, str]]:
    """Open a .csv file: give it from its start, its first line, and what separates its fields."""
    from vggkeras.data import lists

    try:
        with storage.opened(place) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            first = text.readline()
            text.seek(0)
            yield text, first, lists.separator(first)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{place} is no UTF-8 .csv file ({error}): save it as one.") from error


def entries(place: str, lists: Mapping[str, List], unread: Counter[str] | None) -> Iterator[Entry]:
    """Yield the images of a place, where they are files."""
    if place not in lists:
        yield from (Entry(file.path, file) for file in _files(place, unread))
        return
    about = lists[place]
    read = _parquet_rows if place.lower().endswith(".parquet") else _csv_rows
    for number, (path, id_) in enumerate(read(about), 1):
        if not path or id_ in (None, ""):
            raise InputError(
                f"{place}: row {number} has no {'id' if path else 'image'}: expected the path of "
                "an image, and an id where there is a column of them."
            )
        if storage.is_url(path):  # no question to the store for each of them
            yield Entry(str(id_), File(path, storage.NOT_STATED, 0))
        elif storage.is_url(place):
            url = f"{place.rpartition('/')[0]}/{path}"
            yield Entry(str(id_), File(url, storage.NOT_STATED, 0))
        else:
            here = os.path.join(os.path.dirname(place), os.path.expanduser(path))
            yield Entry(str(id_), storage.state(here))


def _parquet_rows(about: List) -> Iterator[tuple[Any, Any]]:
    """Yield the path and the id of each row of a .parquet list."""
    with parquet_file(about.place) as file:
        columns = list(dict.fromkeys(filter(None, (about.image, about.id))))
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
            paths = batch.column(about.image).to_pylist()
            yield from zip(
                paths, batch.column(about.id).to_pylist() if about.id else paths, strict=True
            )


def _csv_rows(about: List) -> Iterator[tuple[Any, Any]]:
    """Yield the path and the id of each row of a .csv list."""
    with _text(about.place) as (file, _, separator):
        for row in csv.DictReader(file, delimiter=separator, strict=True):
            path = (row[about.image] or "").strip()
            yield path, row[about.id] if about.id else path
