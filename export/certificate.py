"""What is certified of an exported file, and how a person reads it: certificate.json, and the table on the terminal."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export import golden as golden_module
from export.parity import Parity
from vggkeras import files
from vggkeras.card import Form
from vggkeras.runtimes.predictor import Predictor

if TYPE_CHECKING:
    from rich.console import Console


INSIDE = ("calibration", "left_in_float", "processor")  # what the file itself says


@dataclass(frozen=True)
class Row:
    """What was found out about one file."""

    path: Path
    parity: Parity
    peak: Peak
    milliseconds: float | None  # median time of a call with one image


def entry(
    path: Path,
    candidate: Predictor,
    parity: Parity,
    evidence: str,
    model_sha256: str,
    milliseconds: float | None,
) -> dict[str, Any]:
    """A certificate's entry: what was checked, where, and how it came out; median time of a call with one image, ms.

    How many features a file gives is None of a classifier, whose agreement and accuracies are None of features.
    """
    described = candidate.card.to_description()
    (input_shape, output_shape) = candidate.card.shapes
    record = asdict(parity)
    record |= record.pop("gate")  # tolerance, most_lost, least_agreement
    record.pop("failures")
    record.pop("labelled")
    record |= {
        "top1_agreement_interval": parity.top1_agreement_interval,
        "accuracy_interval": parity.accuracy_interval,
    }
    return {
        "sha256": files.sha256(path),
        "bytes": files.size(path),
        "precision": candidate.card.precision,
        "runtime": candidate.runtime,
        "version": candidate.version,
        "provider": candidate.provider,
        "threads": candidate.threads,
        "tf32": candidate.tf32,
        "input": {
            "name": candidate.input_name,
            "type": "uint8",
            "shape": input_shape,
        },
        "output": {
            "name": candidate.output_name,
            "type": "float32",
            "shape": output_shape,
        },
        "features": candidate.features or None,
        "batch_sizes": list(record.pop("batch_sizes")),
        "sizes": [list(size) for size in record.pop("sizes")],
        **{
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        },
        **{key: described[key] for key in INSIDE if key in described},
        "milliseconds": milliseconds,
        "evidence": evidence,
        "model_sha256": model_sha256,
        "passed": parity.passed,
        "failures": [str(failure) for failure in parity.failures],
    }


def update(folder: Path, entries: dict[str, dict[str, Any]], model_sha256: str) -> list[str]:
    """Put entries into certificate.json, beside those of the same model's other artifacts.

    Returns the names of artifacts that are there and of another model, whose entries are dropped.
    """
    known = files.read_certificate(folder)
    kept = {k: v for k, v in known.items() if v["model_sha256"] == model_sha256}
    files.write_json(folder / files.CERTIFICATE, {**kept, **entries})
    return sorted(
        name for name in known.keys() - kept.keys() - entries.keys() if (folder / name).exists()
    )


def milliseconds_of(predictor: Predictor, images: np.ndarray) -> float:
    """Return the median time of a call with one image, ms."""
    times = []
    for image in [images[0], *images[:20]]:
        start = time.perf_counter()
        predictor(image[None])
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[len(times[1:]) // 2] * 1e3


class Peak:
    """Seconds and peak resident memory of this process and its children, together, while a block runs."""

    seconds = gigabytes = 0.0

    def __enter__(self) -> Peak:
        import psutil

        self.before = _lifetime_peak()
        self.start, self.stop = time.perf_counter(), threading.Event()
        me = psutil.Process()

        def look() -> None:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
                    total += process.memory_info().rss
            self.gigabytes = max(self.gigabytes, total / 1e9)

        def watch() -> None:
            while not self.stop.wait(0.02):
                look()

        look()
        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.stop.set()
        self.thread.join()
        # A spike between two looks is in the process' own count, if it was its highest so far.
        if _lifetime_peak() > self.before:
            self.gigabytes = max(self.gigabytes, _lifetime_peak())


def _lifetime_peak() -> float:
    """Peak resident memory of this process since it started, GB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_table(console: Console, rows: list[Row], evidence: str) -> None:
    """Print a row a file, every failure, and what to do next."""
    from rich.table import Table

    from vggkeras import terminal

    sizes = [f"{h} x {w}" for h, w in rows[0].parity.sizes]
    table = Table(
        title=f"Parity with Keras on {evidence}{', at ' + ', '.join(sizes) + ' px' if len(sizes) > 1 else ''}"
    )
    of_features = any(row.parity.smallest_cosine is not None for row in rows)
    for column in (
        "artifact",
        "bytes",
        "max error",
        "relative",
        *(["smallest cosine"] if of_features else []),
        "agreement",
        "accuracy [95%]",
        "ms an image",
        "written in",
        "peak memory",
    ):
        table.add_column(column, justify="left" if column == "artifact" else "right")
    for row in rows:
        path, result = row.path, row.parity
        accuracy = "-"
        if result.accuracy_artifact is not None and result.accuracy_interval is not None:
            low, high = result.accuracy_interval
            accuracy = f"{result.accuracy_artifact:.2%} [{100 * low:.1f}, {100 * high:.1f}]"
        table.add_row(
            path.name,
            f"{files.size(path):,}",
            f"{result.max_abs_error:.1e}",
            f"{result.max_rel_error:.1e}",
            *([f"{result.smallest_cosine:.9f}"] if result.smallest_cosine is not None else []),
            "-" if result.top1_agreement is None else f"{result.top1_agreement:.2%}",
            accuracy,
            "-" if row.milliseconds is None else f"{row.milliseconds:.2f}",
            f"{row.peak.seconds:.1f} s",
            f"{row.peak.gigabytes:.2f} GB",
            style=None if result.passed else "red",
        )
    terminal.print_table(table, console)
    for row in rows:
        for failure in row.parity.failures:
            console.print(f"{row.path.name}: {failure}", style="red", soft_wrap=True)
    folder = rows[0].path.parent
    passed = all(row.parity.passed for row in rows)
    golden = golden_module.golden_path(
        folder, Form.FEATURES if of_features else Form.CLASSIFIER
    ).name
    console.print(
        f"{'proven' if passed else 'NOT proven'}: {folder} (certificate.json, {golden})",
        soft_wrap=True,
    )
    if passed:
        console.print(
            f"each proves itself wherever it goes: python -m export.verify {rows[-1].path}",
            soft_wrap=True,
        )
