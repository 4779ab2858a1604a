"""Write rows to a .csv, .jsonl or .parquet file one after the other, however many there are.

`predict --out` and `evaluate --per-image` write a row per image with it. Memory holds one row, or
one row group of a .parquet file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vggkeras import files
from vggkeras.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096  # rows of a .parquet file in memory
CSV_CLASSES = 1000  # that have a column each in a .csv file
FIRST_ROW = 1 << 26  # characters; more are not read to know a file's kind

Row = Mapping[str, Any]  # column -> str, float, list, array or None (as if left out)
Write = Callable[[Row], None]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Literal["text", "number"] = "text"  # float32
    each: tuple[str, ...] | None = None  # of a list: its columns in a .csv file, an item each


BOX = Column("box", "number", ("xmin", "ymin", "xmax", "ymax"))  # px of the image


def probabilities(class_names: Sequence[str]) -> Column:
    """Return the column of the probabilities of all classes, in the order of the model."""
    return Column("probabilities", "number", tuple(f"p_{name}" for name in class_names))


def kind(name: str, *columns: str) -> files.Kind:
    """Return the kind of file that has these columns; see `files.check_file`."""

    def has_columns(path: Path) -> bool:
        return set(columns) <= set(_columns_of(path))

    return files.Kind(name, has_columns)


def _columns_of(path: Path) -> list[str]:
    """Return the names of the columns of a file that is there already."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return list(parquet.read_schema(path).names)
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return list(json.loads(file.readline(FIRST_ROW)))
        return next(csv.reader([file.readline(FIRST_ROW)]))


def check_out(path: Path, of: files.Kind) -> None:
    """Check that rows can be written to a path, before long work is done for them.

    Raises:
        InputError (a ValueError): another suffix, or as `files.check_file`.
    """
    files.check_file(path, of)
    if path.suffix not in WRITERS:
        *others, last = WRITERS
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(others)} or {last}; received "
            f"{path.suffix!r}."
        )


@contextmanager
def writing(
    path: Path, columns: Sequence[Column], about: Mapping[str, Any] | None = None
) -> Iterator[Write]:
    """Give the function that writes a row; the file takes its place when the block ends.

    If the block fails, nothing is left of it. A .csv file has all text in quotation marks. A .jsonl
    file has an object with all columns on each line. A .parquet file has lists as lists.

    Args:
        path: checked by `check_out`.
        columns: of every row.
        about: JSON for the metadata of a .parquet file, under "vggkeras".

    Raises:
        InputError (a ValueError): a .csv file would have more than `CSV_CLASSES` columns of a list.
    """
    widest = max((len(column.each or ()) for column in columns), default=0)
    if path.suffix == ".csv" and widest > CSV_CLASSES:
        raise InputError(
            f"{path} would have a column for each of {widest:,} classes: expected {CSV_CLASSES:,} "
            "at most; write a .jsonl or .parquet file, which have lists, or fewer classes."
        )
    with (
        files.replacing(path) as beside,
        WRITERS[path.suffix](beside, columns, about or {}) as write,
    ):
        yield write


@contextmanager
def _csv(path: Path, columns: Sequence[Column], about: Mapping[str, Any]) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(name for column in columns for name in column.each or (column.name,))

        def write(row: Row) -> None:
            cells: list[Any] = []
            for column in columns:
                value = _plain(row.get(column.name))
                if column.each is None:
                    cells.append(value)
                else:
                    cells += [None] * len(column.each) if value is None else value
            writer.writerow(cells)

        yield write


@contextmanager
def _jsonl(path: Path, columns: Sequence[Column], about: Mapping[str, Any]) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:

        def write(row: Row) -> None:
            values = {column.name: _plain(row.get(column.name)) for column in columns}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

        yield write


def _plain(value: Any) -> Any:
    """Return an array as a list of Python's numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


@contextmanager
def _parquet(path: Path, columns: Sequence[Column], about: Mapping[str, Any]) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(column.name, _arrow_type(column)) for column in columns])
    schema = schema.with_metadata({"vggkeras": json.dumps(about, ensure_ascii=False)})
    waiting: list[Row] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            arrays = [
                pa.array([row.get(field.name) for row in waiting], field.type) for field in schema
            ]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=ROW_GROUP)
            waiting.clear()

        def write(row: Row) -> None:
            waiting.append(row)
            if len(waiting) == ROW_GROUP:
                flush()

        yield write
        if waiting:
            flush()


def _arrow_type(column: Column) -> pa.DataType:
    import pyarrow as pa

    item = pa.string() if column.kind == "text" else pa.float32()
    return item if column.each is None else pa.list_(item)


Writer = Callable[[Path, Sequence[Column], Mapping[str, Any]], AbstractContextManager[Write]]
WRITERS: dict[str, Writer] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
