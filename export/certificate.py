"""Certify exported files: put them and certificate.json into their places, and print the table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import golden
from export.formats import Target
from export.parity import Parity
from vggkeras import certificate, files
from vggkeras.certificate import Entry
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from rich.console import Console

    from export.measure import Peak


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
    (input_shape, output_shape), (image_type, answer_type) = card.shapes, card.types
    return Entry(
        sha256=files.sha256(path),
        bytes=files.size(path),
        precision=card.precision,
        target=card.target or None,
        runtime=candidate.runtime,
        version=candidate.version,
        provider=candidate.provider,
        threads=candidate.threads,
        tf32=candidate.tf32,
        input={"name": candidate.input_name, "type": image_type, "shape": input_shape},
        output={"name": candidate.output_name, "type": answer_type, "shape": output_shape},
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
        calibration=description.get("calibration"),
        left_in_float=description.get("left_in_float"),
        processor=description.get("processor"),
        milliseconds=milliseconds,
        evidence=evidence,
        model_sha256=card.model_sha256,
        passed=parity.passed,
        failures=[str(failure) for failure in parity.failures],
    )


def _finite(value: float | None) -> float | None:
    """Return a number that JSON has, None for any other."""
    return value if value is not None and math.isfinite(value) else None


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


def place(
    rows: Sequence[Row], packed_golden: bytes, model_sha256: str
) -> tuple[dict[str, Entry], list[str]]:
    """Rename proven files, and their golden answers, into their places, and certify them.

    A kill at any moment leaves the old files, or the new ones once the folder is read again.

    Args:
        rows: of the files, which lie beside their places.
        packed_golden: the content of golden.npz.
        model_sha256: of their model; entries of its other files stay.

    Returns:
        The entries of these files, and the names of files that are there and of another model,
        whose entries are dropped.
    """
    folder, form = rows[0].target.folder, rows[0].target.form
    digest = hashlib.sha256(packed_golden).hexdigest()
    before = certificate.read(folder)
    placed = {row.target.name: replace(row.entry, golden_sha256=digest) for row in rows}
    kept = {
        name: replace(
            entry,
            golden_sha256=digest if golden.shares(form, entry) else entry.golden_sha256,
        )
        for name, entry in before.items()
        if entry.model_sha256 == model_sha256
    }
    after = kept | placed
    moves = {row.target.beside: row.path for row in rows}
    contents = {
        golden.golden_path(folder, form): packed_golden,
        folder / certificate.CERTIFICATE: certificate.text_of(after).encode(),
    }
    for path, content in contents.items():
        moves[files.partial(path)] = path
        files.partial(path).write_bytes(content)
    files.move_all(moves)
    for row in rows:
        if row.entry.passed:
            files.remove(row.target.rejected)
    stale = sorted(name for name in before.keys() - after.keys() if (folder / name).exists())
    return placed, stale


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
    judged = ["agreement", "accuracy [95%]"]
    if first.form.is_boxes:
        columns[2], judged = "max error, px", ["same verdicts", "localized [95%]"]
    columns += [*judged, "ms an image", "written in", "peak memory"]
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
