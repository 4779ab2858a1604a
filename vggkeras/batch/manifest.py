"""What a folder of labels is of: a JSON file in it, which a job that goes on must agree with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggkeras
from vggkeras import files, typed
from vggkeras.batch.sources import Source
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.runtimes import Predictor

# Programs that read the folder as one data set pass over names with an underscore.
NAME = "_manifest.json"
INDEX = "_source.parquet"
SCHEMA = 1
ROWS_PER_PART = 1024  # what a killed process may have to do again
BATCH = 64  # images a call of the runtime, a divisor of the above


@dataclass(frozen=True)
class Manifest:
    """All that the rows of a folder depend on."""

    model: str  # path; that it is the same file, its digest says
    sha256: str  # of the model
    runtime: str
    version: str  # of the runtime
    provider: str  # where it computes
    threads: int | None  # CPU threads of one operation, on which the last bits may depend
    input_shape: tuple[int, ...]  # (H, W, C)
    shown: str  # the central crop, or whole images
    scale: int  # smallest side, px, that images are rescaled to first
    exif: bool  # whether images are turned upright
    fast_decode: bool  # whether large JPEGs are decoded reduced
    top: int  # classes in a row; 0: all of them
    columns: tuple[str, ...]
    class_names: tuple[str, ...]  # in the order of the model
    source: tuple[str, ...]  # as it was asked for
    source_columns: tuple[str, ...]  # which columns of lists are read
    images: int
    source_digest: str  # SHA-256 of the ids in order, and of the files' sizes and times
    rows_per_part: int = ROWS_PER_PART
    batch: int = BATCH
    schema: int = SCHEMA
    batch_sizes: tuple[int, ...] = ()  # that a GPU is prepared for
    versions: dict[str, str] = field(default_factory=dict)  # package -> version

    @classmethod
    def of(
        cls,
        predictor: Predictor,
        source: Source,
        columns: Sequence[str],
        top: int,
        exif: bool,
        fast_decode: bool,
    ) -> Manifest:
        """Return the manifest of what a model, as it is loaded here, says of a source."""
        packages = {name: version(name) for name in ("numpy", "pillow", "pyarrow")}
        return cls(
            model=str(predictor.path),
            sha256=files.sha256(predictor.path),
            runtime=predictor.runtime,
            version=predictor.version,
            provider=predictor.provider,
            threads=predictor.threads,
            input_shape=predictor.input_shape,
            shown="whole, and mirrored" if predictor.features else "central crop",
            scale=predictor.scale,
            exif=exif,
            fast_decode=fast_decode,
            top=top,
            columns=tuple(columns),
            class_names=tuple(predictor.class_names),
            source=source.asked,
            source_columns=source.columns,
            images=source.count,
            source_digest=source.digest,
            versions={"vggkeras": vggkeras.__version__, **packages},
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in a folder, None where there is none.

        Raises:
            InputError (a ValueError): it is damaged.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            return typed.instance(cls, typed.parse(path.read_bytes()), path.name)
        except ValueError as error:
            raise InputError(
                f"{path} is damaged ({error}): remove {folder}, and label again."
            ) from error

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        files.write_json(folder / NAME, dataclasses.asdict(self))

    def differences(self, other: Manifest) -> list[str]:
        """Return in words what another one says otherwise, but for the model's path."""
        return [
            f"{name.name} was {_short(before)}, is {_short(now)}"
            for name in dataclasses.fields(self)
            if name.name != "model"
            and (before := getattr(self, name.name)) != (now := getattr(other, name.name))
        ]

    def parts(self) -> int:
        """Return the number of parts."""
        return -(-self.images // self.rows_per_part)

    def rows_of(self, part: int) -> range:
        """Return the rows of the source that a part has."""
        start = part * self.rows_per_part
        return range(start, min(start + self.rows_per_part, self.images))


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(value):,})"


def first_change(before: Path, now: Path) -> str:
    """Return in words the first image that two indexes of a source have otherwise; "" if none."""
    from pyarrow import parquet

    def entries(index: Path):
        with parquet.ParquetFile(index) as file:
            for batch in file.iter_batches(columns=["image", "size", "mtime"]):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    if not before.exists() or not now.exists():
        return ""
    for old, new in itertools.zip_longest(entries(before), entries(now)):
        if old != new:
            names = [each[0] if each else "nothing" for each in (old, new)]
            if names[0] == names[1]:
                return f"; the first image that has changed is {names[0]}"
            return f"; the first difference is {names[1]}, where {names[0]} was"
    return ""
