"""Sources of images: files, folders, patterns, lists, Parquet files of bytes, URLs of them.

Whatever was asked for becomes Parquet: of files, an index of their names, sizes and times is
written; Parquet files that hold the images' bytes are read as they are. A range of rows is then
read without the rows before it, in whatever process, and memory does not grow with their number.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras.batch import listing, storage
from vggkeras.batch.listing import ID, Entry, List, parquet_file
from vggkeras.batch.storage import File
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ROW_GROUP = 4096  # of the index
ROWS_AT_ONCE = 16  # of a Parquet file in memory: photographs have megabytes each
INDEX = ("image", "path", "size", "mtime")  # columns of the index


@dataclass(frozen=True)
class Table:
    """A Parquet file with a row an image."""

    name: str  # as it was asked for
    file: File
    groups: tuple[int, ...]  # rows of each row group

    @property
    def rows(self) -> int:
        """Return the number of its rows."""
        return sum(self.groups)


@dataclass(frozen=True)
class Source:
    """Images in an order, each with an id."""

    asked: tuple[str, ...]
    columns: tuple[str, ...]  # of lists, in words: which are read
    tables: tuple[Table, ...]
    image: str  # column of where the images are: paths, or bytes
    id: str | None  # column of ids; None: the file and the number of the row
    count: int
    digest: str = ""  # SHA-256 of the ids in order; of files also their sizes and times


class Reader:
    """Reads ranges of a source; those that follow each other without opening anything anew."""

    def __init__(self, source: Source) -> None:
        """Open nothing yet."""
        self.source = source
        self._groups = [(table, i) for table in source.tables for i in range(len(table.groups))]
        sizes = (table.groups[i] for table, i in self._groups)
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._at = -1  # the row that comes next
        self._rows: Iterator[tuple[str, Any]] = iter(())

    def rows(self, start: int, stop: int) -> Iterator[tuple[str, str | bytes | None]]:
        """Yield the id of each image in a range, and where its file is, or its bytes."""
        group = bisect.bisect_right(self._starts, start) - 1
        if not self._starts[group] <= self._at <= start:
            self._at, self._rows = self._starts[group], self._from(group)
        for _ in itertools.islice(self._rows, start - self._at):
            pass
        self._at = start
        for row in itertools.islice(self._rows, stop - start):
            self._at += 1
            yield row

    def _from(self, group: int) -> Iterator[tuple[str, Any]]:
        """Yield all rows from a row group on."""
        source = self.source
        columns = [name for name in (source.id, source.image) if name]
        for table, groups in itertools.groupby(self._groups[group:], key=lambda pair: pair[0]):
            with parquet_file(table.file.path) as file:
                for _, number in groups:
                    row = sum(table.groups[:number])
                    for batch in file.iter_batches(
                        ROWS_AT_ONCE, row_groups=[number], columns=columns, use_threads=False
                    ):
                        ids = _ids(batch, source.id, table.name, row)
                        cells = batch.column(source.image)
                        images = (_content(cell, table.file.path) for cell in cells)
                        yield from zip(ids, images, strict=True)
                        row += len(batch)


def _ids(batch: pa.RecordBatch, column: str | None, path: str, first: int) -> list[str]:
    """Return the ids of rows: FILE:ROW where no column has them."""
    if column is None:
        return [f"{path}:{row}" for row in range(first, first + len(batch))]
    ids = batch.column(column).to_pylist()
    if None in ids:
        raise InputError(f"{path}: row {first + ids.index(None)} (from 0) has no {column}.")
    return list(map(str, ids))


def _content(cell: Any, file: str) -> str | bytes | None:
    """Return the bytes or the path of a cell, which Hugging Face datasets writes as both.

    A path is from the folder of the Parquet file on, as in lists.
    """
    value = cell.as_py()
    value = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    if isinstance(value, str) and not storage.is_url(value):
        return os.path.join(os.path.dirname(file), value)
    return value


def load(asked: Sequence[str], index: Path, unread: Counter[str] | None = None) -> Source:
    """Return the images of files, folders, patterns, lists and URLs of them, in that order.

    Args:
        asked: paths, patterns or URLs. Lists are .csv or .parquet files with a column of paths; or
            all are .parquet files with a column of the images' bytes.
        index: where to write the index, where the images are files.
        unread: counts the other files of folders, by suffix.

    Raises:
        InputError (a ValueError): nothing there, no image, a list without the column, or two images
            with one id (named).
    """
    from vggkeras.data.decoding import some

    places = [place for each in asked for place in storage.matching(each)]
    lists = {place: listing.read_list(place) for place in places if listing.is_list(place)}
    of_bytes = [each for each in lists.values() if each.holds_bytes]
    ids = _Ids()
    if of_bytes:
        _check_alike(of_bytes, places)
        tables = tuple(map(_table, places))
        image, id_column = of_bytes[0].image, of_bytes[0].id
        ids.digest.update(repr([(t.name, t.file.size, t.file.mtime) for t in tables]).encode())
    else:
        entries = (entry for place in places for entry in listing.entries(place, lists, unread))
        _write_index(entries, index, ids)
        tables, image, id_column = (_table(str(index)),), "path", "image"
    columns = tuple(dict.fromkeys(each.words for each in lists.values()))
    count = sum(table.rows for table in tables)
    source = Source(tuple(asked), columns, tables, image, id_column, count)
    if not count:
        raise InputError(f"{', '.join(asked)}: expected a row an image or more; received none.")
    if of_bytes:
        for part in _ids_of(source):
            ids.add(part)
    if repeated := ids.repeated(source):
        raise InputError(
            f"{', '.join(asked)}: {len(repeated):,} ids are those of several images: "
            f"{some(repeated)}. Expected each image once: remove the others, or give them ids in a "
            f"column {ID[0]} of a list."
        )
    return replace(source, digest=ids.digest.hexdigest())


def _check_alike(of_bytes: Sequence[List], places: Sequence[str]) -> None:
    """Raise InputError unless all places hold bytes, in columns of the same names, each once."""
    from vggkeras.data.decoding import some

    first = of_bytes[0]
    for place in places:
        if place not in [each.place for each in of_bytes]:
            raise InputError(
                f"{first.place} holds the bytes of images, and {place} does not: expected one or "
                "the other; label them into two folders."
            )
    for other in of_bytes:
        if (other.image, other.id) != (first.image, first.id):
            raise InputError(
                f"{first.place} and {other.place} have other columns ({first.words}; "
                f"{other.words}): expected the same."
            )
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise InputError(f"{some(twice)}: asked for more than once; give each once.")


def _table(place: str) -> Table:
    with parquet_file(place) as file:
        about = file.metadata
        groups = tuple(about.row_group(i).num_rows for i in range(about.num_row_groups))
    here = place if storage.is_url(place) else os.path.abspath(place)
    return Table(place, storage.state(here), groups)


def _write_index(entries: Iterable[Entry], index: Path, ids: _Ids) -> None:
    """Write where the images are, with their sizes and times, and take in their ids."""
    import pyarrow as pa
    from pyarrow import parquet

    from vggkeras.data.decoding import check_names

    types = (pa.string(), pa.string(), pa.int64(), pa.int64())
    schema = pa.schema(list(zip(INDEX, types, strict=True)))
    entries = iter(entries)
    with parquet.ParquetWriter(index, schema, compression="zstd") as writer:
        while window := list(itertools.islice(entries, ROW_GROUP)):
            names = [image for image, _ in window]
            files = [file for _, file in window]
            check_names(names)
            places = [f.path if storage.is_url(f.path) else os.path.abspath(f.path) for f in files]
            columns = [names, places, [f.size for f in files], [f.mtime for f in files]]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
            ids.add(names, [f"{file.size}\0{file.mtime}" for file in files])


def _ids_of(source: Source) -> Iterator[list[str]]:
    """Yield all ids in order, some at a time; none where they are the numbers of rows."""
    for table in source.tables if source.id else ():
        with parquet_file(table.file.path) as file:
            row = 0
            for batch in file.iter_batches(ROW_GROUP, columns=[source.id], use_threads=False):
                yield _ids(batch, source.id, table.name, row)
                row += len(batch)


class _Ids:
    """The digest of ids, and whether there is one twice; in memory are 8 bytes of each."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._hashes: list[np.ndarray] = []

    def add(self, ids: Sequence[str], states: Sequence[str] | None = None) -> None:
        """Take in ids, and what else their digest is of."""
        import numpy as np

        self._hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        lines = map("\0".join, zip(ids, states, strict=True)) if states else ids
        self.digest.update("\n".join([*lines, ""]).encode())

    def repeated(self, source: Source) -> list[str]:
        """Return the ids that several images have; reads them anew where some may be the same."""
        import numpy as np

        hashes = np.sort(np.concatenate(self._hashes)) if self._hashes else np.zeros(0, np.int64)
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        counts = Counter(i for ids in _ids_of(source) if twice for i in ids if hash(i) in twice)
        return [name for name, count in counts.items() if count > 1]


def moved(source: Source, index: Path, to: Path) -> Source:
    """Return a source whose index lies elsewhere now; one without an index as it is."""
    if [table.name for table in source.tables] != [str(index)]:
        return source
    (table,) = source.tables
    return replace(source, tables=(replace(table, file=storage.state(str(to.absolute()))),))
