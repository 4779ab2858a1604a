"""Parts of a folder of labels: each is a range of the source's rows, and a Parquet file.

A part depends on the model, the source and its range alone, so whoever writes it, and however
often, it has the same bits. It is written beside its place and renamed: a part that is there is
whole.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras import files, rows
from vggkeras.batch.labelling import Labeller, columns
from vggkeras.batch.listing import parquet_file
from vggkeras.batch.manifest import Manifest
from vggkeras.batch.sources import Reader, Source
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.runtimes.providers import Options

TOGETHER = 8  # images that a thread is given at once: handing over costs as much as a small one
NAMED = 20  # unreadable images that a summary names
Advance = Callable[[int], None]  # takes how many more images have been labelled


@dataclass(frozen=True)
class Job:
    """What is to be labelled, and where to."""

    out: Path
    source: Source
    manifest: Manifest
    options: Options  # how the model is loaded

    def path(self, part: int) -> Path:
        """Return the path of a part."""
        return self.out / f"part-{part:06d}.parquet"

    def missing(self) -> list[int]:
        """Return the parts that are not there."""
        there = set(os.listdir(self.out))
        return [k for k in range(self.manifest.parts()) if self.path(k).name not in there]


def write_parts(job: Job, labeller: Labeller, numbers: Iterable[int], advance: Advance) -> None:
    """Label the images of some parts, and write each part when it is done.

    Images are read and decoded in threads ahead of the model, across the ends of parts. The folder
    must be claimed (`files.claimed`) by this process.
    """
    from vggkeras.data.decoding import in_threads
    from vggkeras.evaluation.protocols import windows
    from vggkeras.runtimes.providers import cores

    numbers = list(numbers)
    reader, manifest = Reader(job.source), job.manifest

    def read(*some: tuple[str, Any]) -> list[tuple[str, Any]]:
        return [(name, labeller.read(name, source)) for name, source in some]

    ranges = (manifest.rows_of(number) for number in numbers)
    wanted = (row for r in ranges for row in reader.rows(r.start, r.stop))
    # Two batches, for one waits while the model is at the other; and enough for every thread.
    ahead = max(2 * manifest.batch // TOGETHER, 2 * cores())
    read_ahead = in_threads(read, map(tuple, windows(wanted, TOGETHER)), ahead)
    images = itertools.chain.from_iterable(read_ahead)
    for number in numbers:
        path = job.path(number)
        beside = files.partial(path)
        about = {"model": manifest.sha256, "part": number}
        table = rows.WRITERS[path.suffix](beside, columns(labeller.predictor, labeller.top), about)
        with table as write:
            of_part = itertools.islice(images, len(manifest.rows_of(number)))
            for window in windows(of_part, manifest.batch):
                for prediction in labeller.label(window):
                    write(prediction.to_row(labeller.top))
                advance(len(window))
        files.move(beside, path)


@dataclass
class Labelled:
    """A folder of labels that is whole."""

    out: Path
    images: int  # rows
    failed: int = 0  # of which so many could not be read
    begun: int = 0  # rows that were there before
    classes: Counter[str] = field(default_factory=Counter)  # images by their most probable class
    probability: dict[str, float] = field(default_factory=dict)  # of that class, summed
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # the first: image, reason


def summary(job: Job, begun: int) -> Labelled:
    """Return what all parts say together, one after the other.

    Raises:
        InputError (a ValueError): a part is not there, or has not the rows that it should have.
    """
    from pyarrow import compute

    found = Labelled(job.out, job.manifest.images, begun=begun)
    for number in range(job.manifest.parts()):
        path, expected = job.path(number), len(job.manifest.rows_of(number))
        with parquet_file(str(path)) as file:
            wanted = ["image", "class", "probability", "error"]
            part = file.read([c for c in wanted if c in file.schema_arrow.names], use_threads=False)
        if len(part) != expected:
            raise InputError(
                f"{path} has {len(part):,} rows and should have {expected:,}: remove it, and label "
                "again with --resume."
            )
        failed = part.filter(compute.is_valid(part["error"]))
        found.failed += len(failed)
        more = failed.slice(0, NAMED - len(found.unreadable)).to_pylist()
        found.unreadable += [(row["image"], row["error"]) for row in more]
        if "class" in part.column_names:
            part = part.filter(compute.is_valid(part["class"]))
            for row in (
                part.group_by("class")
                .aggregate([("probability", "sum"), ("class", "count")])
                .to_pylist()
            ):
                name, total = row["class"], row["probability_sum"]
                found.classes[name] += row["class_count"]
                found.probability[name] = found.probability.get(name, 0.0) + total
    return found
