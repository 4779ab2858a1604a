"""What is certified of an exported file: certificate.json, and the table on the terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import golden
from export.formats import Target
from export.parity import Parity
from vggkeras import files
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from rich.console import Console

    from export.measure import Peak

# What the file itself says; left out where it does not.
OPTIONAL = ("calibration", "left_in_float", "processor")


@dataclass(frozen=True)
class Entry:
    """A file's entry in certificate.json: what was checked, where, and how it came out.

    The fields are JSON's, in their order.
    """

    sha256: str
    bytes: int
    precision: str
    runtime: str
    version: str
    provider: str
    threads: int | None
    tf32: bool
    input: dict[str, Any]  # name, type, shape
    output: dict[str, Any]
    features: int | None  # how many the file gives; None of a classifier
    batch_sizes: list[int]  # that were tried
    sizes: list[list[int]]  # (height, width) of the images
    images: int
    max_abs_error: float | None  # None where it is infinite
    max_rel_error: float | None
    top1_agreement: float | None  # this and all accuracies are None of features
    smallest_cosine: float | None  # None of a classifier
    accuracy_reference: float | None
    accuracy_artifact: float | None
    mcnemar_p: float | None
    unoptimized_difference: float | None  # of int8 in ONNX
    tolerance: float | None
    most_lost: float | None
    least_agreement: float | None
    least_cosine: float | None
    top1_agreement_interval: tuple[float, float] | None
    accuracy_interval: tuple[float, float] | None
    calibration: dict[str, Any] | None  # of int8, as are the layers kept in float32
    left_in_float: list[str] | None
    processor: dict[str, Any] | None
    milliseconds: float | None  # median time of a call with one image
    evidence: str  # which images these are
    model_sha256: str  # of the .keras file
    passed: bool
    failures: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return what certificate.json holds."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if v is not None or k not in OPTIONAL}


def entry_of(
    path: Path, candidate: Predictor, parity: Parity, evidence: str, milliseconds: float | None
) -> Entry:
    """Return a file's entry.

    Args:
        path: the file as it is now.
        candidate: the file in its runtime.
        parity: what comparing it with Keras gave.
        evidence: which images it was compared on.
        milliseconds: median time of a call with one image.
    """
    card, gate = candidate.card, parity.gate
    description = card.to_description()
    input_shape, output_shape = card.shapes
    return Entry(
        sha256=files.sha256(path),
        bytes=files.size(path),
        precision=card.precision,
        runtime=candidate.runtime,
        version=candidate.version,
        provider=candidate.provider,
        threads=candidate.threads,
        tf32=candidate.tf32,
        input={"name": candidate.input_name, "type": "uint8", "shape": input_shape},
        output={"name": candidate.output_name, "type": "float32", "shape": output_shape},
        features=candidate.features or None,
        batch_sizes=list(parity.batch_sizes),
        sizes=[list(size) for size in parity.sizes],
        images=parity.images,
        max_abs_error=_finite(parity.max_abs_error),
        max_rel_error=_finite(parity.max_rel_error),
        top1_agreement=_finite(parity.top1_agreement),
        smallest_cosine=_finite(parity.smallest_cosine),
        accuracy_reference=_finite(parity.accuracy_reference),
        accuracy_artifact=_finite(parity.accuracy_artifact),
        mcnemar_p=_finite(parity.mcnemar_p),
        unoptimized_difference=_finite(parity.unoptimized_difference),
        tolerance=gate.tolerance,
        most_lost=gate.most_lost,
        least_agreement=gate.least_agreement,
        least_cosine=gate.least_cosine,
        top1_agreement_interval=parity.top1_agreement_interval,
        accuracy_interval=parity.accuracy_interval,
        **{key: description.get(key) for key in OPTIONAL},
        milliseconds=milliseconds,
        evidence=evidence,
        model_sha256=card.model_sha256,
        passed=parity.passed,
        failures=[str(failure) for failure in parity.failures],
    )


def _finite(value: float | None) -> float | None:
    """Return a number that JSON has, None for any other."""
    return value if value is not None and math.isfinite(value) else None


def update(folder: Path, entries: Mapping[str, Entry], model_sha256: str) -> list[str]:
    """Put entries into certificate.json, beside those of the same model's other files.

    Returns:
        The names of files that are there and of another model, whose entries are dropped.
    """
    before = files.read_certificate(folder)
    kept = {k: v for k, v in before.items() if v["model_sha256"] == model_sha256}
    written = {name: entry.to_json() for name, entry in entries.items()}
    files.write_json(folder / files.CERTIFICATE, kept | written)
    return sorted(
        name for name in before.keys() - kept.keys() - entries.keys() if (folder / name).exists()
    )


@dataclass(frozen=True)
class Row:
    """A file's row in the table."""

    target: Target
    entry: Entry
    peak: Peak  # of writing it

    @property
    def path(self) -> Path:
        """Where the file lies now."""
        return self.target.path if self.entry.passed else self.target.rejected


def print_table(console: Console, rows: list[Row]) -> None:
    """Print a row a file, every failure, and what to do next."""
    from vggkeras import terminal

    terminal.print_table(_table([(row, row.entry) for row in rows]), console)
    for row in rows:
        for failure in row.entry.failures:
            console.print(f"{row.path.name}: {failure}", style="red", soft_wrap=True)
    folder, last = rows[0].target.folder, rows[-1]
    passed = all(row.entry.passed for row in rows)
    beside = golden.golden_path(folder, last.target.form).name
    console.print(
        f"{'proven' if passed else 'NOT proven'}: {folder} (certificate.json, {beside})",
        soft_wrap=True,
    )
    if passed:
        console.print(
            f"each proves itself wherever it goes: python -m export.verify {last.path}",
            soft_wrap=True,
        )


def _table(rows: list[tuple[Row, Entry]]) -> Any:
    """Return the table of what was found out about each file."""
    from rich.table import Table

    first = rows[0][1]
    sizes = ", ".join(f"{h} x {w}" for h, w in first.sizes)
    at = f", at {sizes} px" if len(first.sizes) > 1 else ""
    table = Table(title=f"Parity with Keras on {first.evidence}{at}")
    cosines = any(entry.smallest_cosine is not None for _, entry in rows)
    columns = ["artifact", "bytes", "max error", "relative"]
    columns += ["smallest cosine"] if cosines else []
    columns += ["agreement", "accuracy [95%]", "ms an image", "written in", "peak memory"]
    for column in columns:
        table.add_column(column, justify="left" if column == "artifact" else "right")
    for row, entry in rows:
        accuracy = "-"
        if entry.accuracy_artifact is not None and entry.accuracy_interval is not None:
            low, high = entry.accuracy_interval
            accuracy = f"{entry.accuracy_artifact:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
        cells = [row.path.name, f"{entry.bytes:,}"]
        cells += [
            _text(entry.max_abs_error, ".1e", "inf"),
            _text(entry.max_rel_error, ".1e", "inf"),
        ]
        cells += [_text(entry.smallest_cosine, ".9f")] if cosines else []
        cells += [_text(entry.top1_agreement, ".2%"), accuracy, _text(entry.milliseconds, ".2f")]
        cells += [f"{row.peak.seconds:.1f} s", f"{row.peak.gigabytes:.2f} GB"]
        table.add_row(*cells, style=None if entry.passed else "red")
    return table


def _text(value: float | None, form: str, unknown: str = "-") -> str:
    return unknown if value is None else format(value, form)
